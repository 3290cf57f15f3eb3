"""What the tests of a cluster are written with: its commands, its objects, the records in its topic."""
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "charts" / "pathwatch"
RUN = Path(os.environ.get("PATHWATCH_E2E", "/tmp/pathwatch-e2e"))
# A guest is emulated, and everything in it takes its time.
SLOW = 6 if os.environ.get("PATHWATCH_NODE") == "guest" else 1


class Failed(Exception):
    """A command or an expectation failed."""


def run(*command, text=None, ok=True, timeout=300):
    """Runs a command; returns its output, or with ok=False its output and errors, whatever came of it."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if ok and done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout if ok else (done.returncode, done.stdout + done.stderr)


def cluster(*arguments, **more):
    return run(str(HERE.parent / "cluster.sh"), *arguments, **more)


def kubectl(*arguments, **more):
    return cluster("kubectl", *arguments, **more)


def helm(*arguments, **more):
    return cluster("helm", *arguments, **more)


def get(kind, name=None, namespace=None):
    """An object, or all of a kind."""
    where = ["-n", namespace] if namespace else []
    return json.loads(kubectl("get", kind, *([name] if name else []), *where, "-o", "json"))


def apply(document):
    """Applies an object; returns when the API server has acknowledged it."""
    kubectl("apply", "-f", "-", text=document if isinstance(document, str) else json.dumps(document))
    return time.time()


def until(what, condition, patience=60):
    """Waits for a condition to give something, which it returns."""
    end = time.time() + patience * SLOW
    last = None
    while time.time() < end:
        try:
            found = condition()
            if found:
                return found
        except (Failed, KeyError, IndexError, ValueError, subprocess.TimeoutExpired) as why:
            last = why
        time.sleep(0.1)
    raise Failed(f"gave up waiting for {what}" + (f": {last}" if last else ""))


def expect(what, is_so, shown=""):
    if not is_so:
        raise Failed(f"{what}: {shown}")


class Topic:
    """A consumer of the topic from its beginning, that goes on while the tests run."""

    def __init__(self, name="pathwatch-alerts"):
        self.path, self.name = RUN / "records", name
        self.begin()

    def begin(self):
        self.read, self.found = 0, []
        with open(self.path, "wb") as file:
            command = [str(HERE.parent / "cluster.sh"), "kafka", "-t", self.name, "-C", "-u", "-q", "-o", "beginning"]
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL, start_new_session=True)

    def records(self):
        # It ends when there is no broker for a while.
        if self.process.poll() is not None:
            self.begin()
        with open(self.path, "rb") as file:
            file.seek(self.read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.read += len(whole) + len(newline)
        self.found += [json.loads(line) for line in whole.splitlines()]
        return self.found

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)


topic = None


def records():
    """All records of the topic so far, in the order of each partition."""
    global topic
    topic = topic or Topic()
    return list(topic.records())


def alerts(**fields):
    """Alerts whose fields, by their ECS names with __ for a dot, have these values."""
    found = [record for record in records() if record["event"]["kind"] == "alert"]
    return [record for record in found if all(at(record, name) == value for name, value in fields.items())]


def at(record, name):
    for part in name.split("__"):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def when(record):
    """Seconds since 1970 at which the kernel saw it."""
    whole, part = record["@timestamp"].rstrip("Z").split(".")
    moment = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return moment.timestamp() + float("0." + part)


def condition(policy, kind):
    for found in policy.get("status", {}).get("conditions", []):
        if found["type"] == kind:
            return found
    return {"status": None, "reason": None, "message": ""}


def pod(name, namespace, script, image="docker.io/library/busybox:1.35", **spec):
    """A pod of an ordinary image that runs a shell script."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, "team": namespace}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "containers": [{"name": "main", "image": image, "command": ["sh", "-c", script]}],
            **spec,
        },
    }


def policy(name, namespace, **spec):
    kind = "PathPolicy" if namespace else "ClusterPathPolicy"
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    # Every open is an alert of its own, so that times can be told.
    spec = {"severity": "high", "dedup": {"window": "0s"}, "rateLimit": {"perSecond": 1000, "burst": 1000}, **spec}
    return {"apiVersion": "pathwatch.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


# The release under test.
NS, RELEASE = "pathwatch", "pathwatch"
INSTALL = ["--set", "cluster.name=e2e", "--set", "kafka.brokers={10.96.0.1:9092}"]
# In the emulator it takes minutes, beside all else: SELF_TEST=1 has it.
SELF_TEST = SLOW == 1 or "SELF_TEST" in os.environ
if not SELF_TEST:
    INSTALL += ["--set", "config.capture.self_test=false"]


def sensor_pod():
    pods = kubectl("-n", NS, "get", "pods", "-l", "app.kubernetes.io/component=sensor", "-o", "json")
    return next(found for found in json.loads(pods)["items"] if "deletionTimestamp" not in found["metadata"])


def on_node(*command):
    return cluster("node", *command)


def ask(path, *more):
    """What the sensor answers, and the status in a line of its own."""
    address = sensor_pod()["status"]["podIP"]
    if SLOW > 1:
        # A guest's pods are reached from inside only.
        return on_node("wget", "-qO-", f"http://{address}:9753{path}")
    return cluster("inside", "curl", "-sS", "-w", "\n%{http_code}", f"http://{address}:9753{path}", *more)


def counter(name, labels):
    line = next(line for line in ask("/metrics").splitlines() if line.startswith(f"{name}{{{labels}}}"))
    return float(line.split()[1])


class Report:
    """Runs cases in turn, and says how they went in the words that CI counts."""

    def __init__(self, name):
        self.name, self.passed, self.began = name, 0, time.time()

    def case(self, test):
        began = time.time()
        try:
            said = test()
        except Exception as why:  # whatever it is, it is this case's failure
            print(f"{self.name}: FAILED: {test.__doc__}: {why}", flush=True)
            self.diagnose()
            self.close()
            print(f"test result: FAILED. {self.passed} passed; 1 failed", flush=True)
            sys.exit(1)
        self.passed += 1
        more = f" ({said})" if said else ""
        print(f"{self.name}: ok: {test.__doc__}{more} [{time.time() - began:.0f} s]", flush=True)

    def close(self):
        if topic:
            topic.close()

    def diagnose(self):
        for arguments in (
            ["get", "pods,pathpolicies,clusterpathpolicies", "-A", "-o", "wide"],
            ["-n", "pathwatch", "logs", "daemonset/pathwatch", "--tail=15"],
            ["-n", "pathwatch", "logs", "deployment/pathwatch-controller", "--tail=15"],
            ["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ):
            print("\n".join(kubectl(*arguments, ok=False)[1].splitlines()[-25:]), file=sys.stderr, flush=True)

    def end(self):
        self.close()
        print(f"test result: ok. {self.passed} passed; 0 failed ({time.time() - self.began:.0f} s)", flush=True)
