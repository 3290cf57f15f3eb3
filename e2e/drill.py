#!/usr/bin/env python3
"""drill.py BINARY   every alert of the chart's PrometheusRule is made to fire by a real fault: real sensors, a real Kafka, a real
Prometheus. Its section in docs/operations.md must name what `pathwatch status` then shows, and the cure must end it. Needs root.
UPDATE=1 also renders the dashboard and a status page from what was measured, into docs/images/."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import picture

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("PATHWATCH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pathwatch")
PATIENCE = 90
# Opens at once of which one cgroup's share is less, and alerts that fill a spool of 1 MiB.
STORM, ALERTS = 60_000, 1_500
TOPIC = "pathwatch-alerts"


class Failed(Exception):
    pass


def free_ports(count):
    """Ports on which nothing listens now; all at once, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def until(what, condition, patience=PATIENCE):
    end = time.time() + patience
    while time.time() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise Failed(f"gave up waiting for {what}")


class Drill:
    def __init__(self, binary, work):
        self.binary, self.work, self.running, self.fired = binary, work, {}, set()
        self.kafka_port, self.controller, self.prometheus_port, *sensors = free_ports(5)
        self.ports = dict(zip(("one", "two"), sensors))
        self.rules = (ROOT / "charts/pathwatch/files/rules.yaml").read_text()
        self.runbook = (ROOT / "docs/operations.md").read_text().split("# Runbook")[1]

    def start(self, name, command, **more):
        with open(self.work / f"{name}.log", "a") as log:
            self.running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.work, **more)

    def stop(self, name, how=signal.SIGTERM):
        process = self.running.pop(name)
        process.send_signal(how)
        process.wait(timeout=PATIENCE)

    def stop_all(self):
        for name in list(self.running):
            self.stop(name, signal.SIGKILL)

    # --- what takes part

    def java(self, *arguments):
        return ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{CACHE}/kafka-4.3.1/*", *arguments]

    def make_kafka(self):
        settings = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.bootstrap.servers": f"127.0.0.1:{self.controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.kafka_port},CONTROLLER://127.0.0.1:{self.controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.kafka_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER", "inter.broker.listener.name": "PLAINTEXT", "log.dirs": self.work / "kafka",
            "auto.create.topics.enable": "true", "num.partitions": 1, "offsets.topic.replication.factor": 1,
            "log.cleaner.dedupe.buffer.size": 4194304,
        }
        file = self.work / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        format_ = self.java("kafka.tools.StorageTool", "format", "--standalone", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", str(file))
        subprocess.run(format_, check=True, capture_output=True, cwd=self.work)

    def start_kafka(self):
        self.start("kafka", self.java("kafka.Kafka", str(self.work / "server.properties")))

    def environment(self, node):
        settings = {
            "NODE__NAME": node, "HTTP__LISTEN": f"127.0.0.1:{self.ports[node]}", "HTTP__SOCKET": str(self.work / f"{node}.sock"),
            "SHIP__SINK": "kafka", "SHIP__STATE_DIR": str(self.work / f"state-{node}"), "SHIP__SPOOL__MAX_BYTES": "1MiB",
            "SHIP__KAFKA__BROKERS": f"['127.0.0.1:{self.kafka_port}']", "SHIP__KAFKA__TOPIC": TOPIC, "CLUSTER__NAME": "drill",
            # Every open is an alert: a spool is filled sooner.
            "SHIP__STORM": "{window: 0s, policy: {per_second: 1000000, burst: 1000000}, node: {per_second: 1000000, burst: 1000000}}",
            # All of this machine is one cgroup: a broker that starts is no storm.
            "CAPTURE__SHARE": "{rate: 2000, burst: 30000}",
            "POLICIES__DIRECTORY": str(self.work / f"policies-{node}"), "SHIP__HEARTBEAT": "1s",
        }
        if node == "two":
            settings["SHIP__KAFKA__TLS"] = json.dumps({f"{what}_file": str(self.work / f"{what}.pem") for what in ("ca", "certificate", "key")})
        return {**os.environ, **{f"PATHWATCH__{name}": value for name, value in settings.items()}}

    def start_sensor(self, node):
        self.start(node, [self.binary, "run"], env=self.environment(node))

    def status(self, node, *arguments):
        command = [self.binary, "status", *(arguments or ["--json"])]
        done = subprocess.run(command, env=self.environment(node), capture_output=True, text=True, check=False)
        return done.stdout if arguments else json.loads(done.stdout or "null")

    def terminal(self, node, page):
        """A page as a terminal has it."""
        command = ["script", "-qec", f"{self.binary} {page}", "/dev/null"]
        return subprocess.run(command, env=self.environment(node), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout

    def policy(self, node, name, rest):
        directory = self.work / f"policies-{node}"
        directory.mkdir(exist_ok=True)
        head = f"apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: {name}}}\n"
        (directory / f"{name}.yaml").write_text(f"{head}spec: {{subjects: all, {rest}}}\n")

    def certificate(self, days):
        """A new one takes the place of the old one at once."""
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=two"]
        made = ["-keyout", "key.new", "-out", "certificate.new"]
        subprocess.run(["openssl", "req", "-x509", *key, "-days", str(days), *made], check=True, capture_output=True, cwd=self.work)
        shutil.copy(self.work / "certificate.new", self.work / "ca.pem")
        for what in ("key", "certificate"):
            (self.work / f"{what}.new").rename(self.work / f"{what}.pem")

    def start_prometheus(self):
        # What takes minutes there takes seconds here.
        (self.work / "rules.yaml").write_text(re.sub(r"for: \d+m", "for: 3s", self.rules))
        targets = "".join(f"      - {{targets: ['127.0.0.1:{port}'], labels: {{node: {node}}}}}\n" for node, port in self.ports.items())
        (self.work / "prometheus.yaml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\n"
            f"scrape_configs:\n  - job_name: pathwatch\n    static_configs:\n{targets}"
        )
        self.start("prometheus", [CACHE / "bin/prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=tsdb",
                                  f"--web.listen-address=127.0.0.1:{self.prometheus_port}", "--log.level=warn"])

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as why:
            # It is on its way up.
            if why.code == 503:
                return None
            raise Failed(f"{url}: {why.read().decode()}") from None
        except OSError:
            return None

    def firing(self):
        found = (self.ask("alerts") or {"alerts": []})["alerts"]
        return {(one["labels"]["alertname"], one["labels"].get("node")) for one in found if one["state"] == "firing"}

    # --- the drill

    def section(self, alert):
        found = re.search(rf"^### {alert}\n(.*?)(?=^### |\Z)", self.runbook, re.M | re.S)
        if not found:
            raise Failed(f"docs/operations.md has no section {alert}")
        return found[1]

    def fires(self, alert, node, sign, shown=None):
        """The alert fires; its section of the runbook speaks of `sign`, and the page of `status`, if there is a sensor to ask, has
        `shown`, which is not on the page of a sensor that is well."""
        began = time.time()
        until(f"{alert} of {node}", lambda: (alert, node) in self.firing())
        if sign not in self.section(alert):
            raise Failed(f"the section {alert} of the runbook does not speak of '{sign}'")
        if node in self.running:
            # Whose the lost opens are is known when what came before them is worked through.
            until(f"'{shown}' on the page of status", lambda: re.search(shown, self.status(node, "--all")))
            if re.search(shown, self.well):
                raise Failed(f"'{shown}' is on the page of a sensor that is well, too")
        self.fired.add(alert)
        print(f"drill: ok: {alert} fires after {time.time() - began:.0f} s; status and runbook say '{sign}'", flush=True)

    def ends(self, alert, node, cure):
        until(f"the end of {alert} of {node}", lambda: (alert, node) not in self.firing())
        print(f"drill: ok: {alert} ends: {cure}", flush=True)

    def begin(self):
        self.secret = self.work / "secret"
        self.secret.write_text("secret")
        for node in self.ports:
            self.policy(node, "watched", f"severity: medium, paths: ['{self.secret if node == 'one' else '/nowhere'}']")
        self.certificate(3)
        self.make_kafka()
        self.start_kafka()
        for node in self.ports:
            self.start_sensor(node)
        self.start_prometheus()
        until("two sensors that answer", lambda: (self.ask("query", query='sum(up{job="pathwatch"})') or {"result": []})["result"]
              and self.ask("query", query='sum(up{job="pathwatch"})')["result"][0]["value"][1] == "2")
        until("a broker that acknowledges", lambda: not (self.status("one") or {"sink": {"degraded": True}})["sink"]["degraded"])

    def open(self, times):
        for _ in range(times):
            os.close(os.open(self.secret, os.O_RDONLY))

    def run(self):
        self.begin()
        self.well = self.status("one", "--all")
        self.fires("PathwatchCertificateExpires", "two", "certificate", r"Kafka certificate +expires in [23]d")
        # Where the kernel refuses fexit, there is no need to make the fault.
        if self.status("one")["sight"]["mode"] == "tracepoint":
            # This kernel is never well.
            self.well = self.well.replace("instead of fexit", "")
            self.fires("PathwatchSeesLess", "one", "instead of fexit", "instead of fexit")
        else:
            print("drill: not done: PathwatchSeesLess: this kernel shows everything")
        quiet = {alert for alert, node in self.firing() if node == "one"} - {"PathwatchSeesLess"}
        if quiet:
            raise Failed(f"before any fault there are alerts of a sensor that is well: {quiet}")
        self.certificate(30)
        self.ends("PathwatchCertificateExpires", "two", "another certificate in its place")

        self.policy("one", "broken", "pahts: [/etc/shadow]")
        self.fires("PathwatchPolicyNotInForce", "one", "failed", r"failed +broken .*\n.*unknown field 'pahts'")
        (self.work / "policies-one/broken.yaml").unlink()
        self.ends("PathwatchPolicyNotInForce", "one", "the policy mended")

        (self.work / "policies-two/watched.yaml").unlink()
        self.fires("PathwatchNoPolicies", "two", "POLICIES", "POLICIES +0 in force")
        self.policy("two", "watched", "paths: [/nowhere]")
        self.ends("PathwatchNoPolicies", "two", "a policy")

        self.open(STORM)
        self.fires("PathwatchOpensLost", "one", "limited", r"limited +capture")

        self.stop("kafka", signal.SIGKILL)
        self.open(ALERTS)
        self.fires("PathwatchNotDelivering", "one", "DELIVERY", "does not acknowledge")
        self.fires("PathwatchSpoolFills", "one", "spool", r"spool +[5-9]\d\d\.\d KiB of|spool +1\.0 MiB of")
        self.fires("PathwatchAlertsLost", "one", "spool_full", "spool_full")
        self.policy("one", "broken", "pahts: [/etc/shadow]")
        until("a policy that fails", lambda: self.status("one")["policies"][0]["state"] == "failed")
        until("Prometheus to know of it", lambda: self.ask("query", query="max(pathwatch_policy_errors) > 0")["result"])
        pages = {"status": self.terminal("one", "status"), "doctor": self.terminal("one", "doctor")}
        # Each panel has data, or it says so. With the pages, it is one moment that the pictures show.
        panels = picture.panels(ROOT / "charts/pathwatch/files/dashboard.json", self.ask)
        (self.work / "policies-one/broken.yaml").unlink()
        self.start_kafka()
        self.ends("PathwatchNotDelivering", "one", "the broker is back")
        until("an empty spool", lambda: self.status("one")["alerts"]["waiting"] == 0)

        self.stop("one", signal.SIGKILL)
        self.fires("PathwatchDown", "one", "events")
        self.start_sensor("one")
        self.ends("PathwatchDown", "one", "it runs again")
        return pages, panels


def main():
    binary = Path(sys.argv[1]).resolve()
    work = tempfile.mkdtemp(prefix="pathwatch-drill-")
    drill = Drill(binary, Path(work))
    try:
        pages, panels = drill.run()
        alerts = set(re.findall(r"- alert: (\w+)", drill.rules))
        if alerts - drill.fired - {"PathwatchSeesLess"}:
            raise Failed(f"never made to fire: {alerts - drill.fired}")
        if os.environ.get("UPDATE"):
            picture.write(ROOT / "docs/images", panels, pages)
        print(f"test result: ok. {len(drill.fired)} passed; 0 failed")
    except (Failed, OSError, subprocess.SubprocessError) as why:
        for log in sorted(Path(work).glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-1500:]}")
        print(f"drill: FAILED: {why}\ntest result: FAILED. 0 passed; 1 failed")
        sys.exit(1)
    finally:
        drill.stop_all()
        # A test of a sensor that was killed leaves directories deeper than Python goes.
        until("an empty directory", lambda: subprocess.run(["rm", "-rf", work], capture_output=True, check=False).returncode == 0)


if __name__ == "__main__":
    main()
