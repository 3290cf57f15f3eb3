#!/usr/bin/env python3
"""journey.py: what a user does: install, write policies, read alerts, change, upgrade, uninstall. In a real cluster."""
import json
import os
import time

from lab import (
    CHART, INSTALL, NS, RELEASE, ROOT, RUN, SELF_TEST, SLOW, Report, alerts, apply, at, cluster, condition, counter, expect, get, helm, kubectl,
    on_node, pod, policy, records, run, sensor_pod, until, when,
)
from misuse import endpoint, flood, pod_security, quota, refusals, refused_rights, rights, tenancy
from reach import attacked, volumes

WAIT = ["--wait", "--timeout", f"{90 + 30 * SLOW}s"]
# BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH (include/uapi/linux/capability.h)
MINIMAL = 1 << 39 | 1 << 38 | 1 << 19 | 1 << 2
GUEST = SLOW > 1


def sensor_pid():
    """The sensor's process id on the node."""
    container = sensor_pod()["status"]["containerStatuses"][0]["containerID"].split("//")[1]
    tasks = cluster("node", "ctr", "-n", "k8s.io", "tasks", "list")
    return next(line.split()[1] for line in tasks.splitlines() if line.startswith(container))


def install():
    """helm install with a broker and a cluster's name: the sensor is ready, not privileged"""
    began = time.time()
    helm("install", RELEASE, str(CHART), "-n", NS, "--create-namespace", *INSTALL, *WAIT)
    took = time.time() - began
    found = sensor_pod()
    context = found["spec"]["containers"][0]["securityContext"]
    want = {"BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"}
    expect("capabilities", set(context["capabilities"]["add"]) == want, context)
    expect("not privileged", not context["privileged"] and context["readOnlyRootFilesystem"], context)
    expect("seccomp", context["seccompProfile"] == {"type": "RuntimeDefault"}, context)
    host = [field for field in ("hostPID", "hostNetwork", "hostIPC") if found["spec"].get(field)]
    expect("no namespace of the host's", not host, host)
    return f"DaemonSet ready after {took:.0f} s"


def capabilities():
    """the process holds four capabilities, is confined by seccomp, and has no perf event"""
    pid = sensor_pid()
    status = dict(line.split(":", 1) for line in on_node("cat", f"/proc/{pid}/status").splitlines())
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        expect(kind, int(status[kind], 16) == MINIMAL, status[kind])
    expect("nothing inheritable", all(int(status[kind], 16) == 0 for kind in ("CapInh", "CapAmb")), status)
    expect("seccomp filters", status["Seccomp"].strip() == "2" and status["NoNewPrivs"].strip() == "1", status)
    descriptors = on_node("ls", "-l", f"/proc/{pid}/fd")
    expect("descriptors of maps", "bpf" in descriptors and "perf_event" not in descriptors, descriptors)
    return f"CapEff {status['CapEff'].strip()}"


def status():
    """in its own pod the sensor says what it sees there, and of what its rights do not let it try, what a guest has answered"""
    config = ["--config", "/etc/pathwatch/config/pathwatch.yaml"]
    ask = lambda *command: kubectl("-n", NS, "exec", sensor_pod()["metadata"]["name"], "--", "/pathwatch", *command, *config)
    until("an answer", lambda: ask("status"))
    until("the self-test", lambda: not SELF_TEST or json.loads(ask("status"))["self_test"], 120)
    found = json.loads(ask("status"))
    expect("Kafka is well", not found["sink"]["degraded"], found["sink"])
    expect("a page", "SEEING" in ask("status", "--all"), found)
    if not SELF_TEST:
        return f"by {found['sight']['mode']}; no self-test here, SELF_TEST=1 has one"
    expect("it sees", not found["self_test"]["failure"], found["self_test"])
    cases = found["self_test"]["cases"]
    of = lambda *answers: [case for case in cases if case["answer"] in answers]
    expect("nothing seen wrongly", not of("wrong"), of("wrong"))
    expect("most can be tried", len(of("right", "marked")) > 35, [case["name"] for case in of("not_tried", "not_seen")])
    expect("what cannot was in a guest", all(case["elsewhere"] for case in of("not_tried")), of("not_tried"))
    numbers = {answer: len(of(answer)) for answer in ("right", "marked", "not_seen", "not_tried")}
    return f"{numbers}, in {found['self_test']['seconds']:.0f} s"


def first_alert():
    """a PathPolicy, a pod of its namespace that reads the file, and the record in the broker names all of it"""
    kubectl("create", "namespace", "team-a")
    acknowledged = apply(policy("passwords", "team-a", paths=["/etc/shadow"], operations=["read"]))
    until("Programmed", lambda: condition(get("pathpolicies", "passwords", "team-a"), "Programmed")["status"] == "True")
    programmed = time.time() - acknowledged
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "team-a"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web", "tier": "front"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "reader", "image": "docker.io/library/busybox:1.35",
                                    "command": ["sh", "-c", "sleep 3; cat /etc/shadow; exec sleep 100000"]}],
                },
            },
        },
    }
    apply(deployment)
    record = until("the alert", lambda: alerts(rule__name="passwords", kubernetes__namespace="team-a"))[0]
    made = json.loads(kubectl("-n", "team-a", "get", "pods", "-l", "app=web", "-o", "json"))["items"][0]
    status = made["status"]["containerStatuses"][0]
    object_ = get("pathpolicies", "passwords", "team-a")
    node = get("node", made["spec"]["nodeName"])
    want = {
        "orchestrator__cluster__name": "e2e",
        "kubernetes__node__name": node["metadata"]["name"],
        "host__name": node["metadata"]["name"],
        "kubernetes__namespace": made["metadata"]["namespace"],
        "kubernetes__pod__name": made["metadata"]["name"],
        "kubernetes__pod__uid": made["metadata"]["uid"],
        "kubernetes__container__name": status["name"],
        "container__id": status["containerID"].split("//")[1],
        "container__image__name": status["image"].rsplit(":", 1)[0],
        "container__image__tag": [status["image"].rsplit(":", 1)[1]],
        "kubernetes__deployment__name": deployment["metadata"]["name"],
        "file__path": object_["spec"]["paths"][0],
        "rule__name": object_["metadata"]["name"],
        "pathwatch__policy__source": "kubernetes:PathPolicy/team-a/passwords@%d" % object_["metadata"]["generation"],
        "process__name": "cat",
        "process__args": ["cat", "/etc/shadow"],
        "event__outcome": "success",
    }
    # The guest's kernel allows what this machine's may not.
    want |= {"event__provider": "fexit"} if GUEST else {}
    for name, value in want.items():
        expect(name.replace("__", "."), at(record, name) == value, f"{at(record, name)!r} is not {value!r}")
    labels = at(record, "orchestrator__resource__label")
    for label, value in made["metadata"]["labels"].items():
        expect(f"label {label}", f"{label}:{value}" in labels, labels)
    expect("nothing is missing", at(record, "pathwatch__missing") is None, record.get("pathwatch"))
    line = kubectl("-n", "team-a", "get", "pathpolicies").splitlines()
    print("\n".join("  " + text for text in line), flush=True)
    expect("columns", line[1].split()[:5] == ["passwords", "high", "True", "True", "1/1"], line)
    return f"Programmed {programmed:.1f} s after the API's acknowledgement"


def token():
    """the service-account-token policy fires on a projected token, and is silent for a program that is exempt"""
    apply((ROOT / "policies/credential-access/service-account-token.yaml").read_text())
    accepted = lambda: condition(get("clusterpathpolicies", "service-account-token"), "Programmed")["status"] == "True"
    until("Programmed", accepted)
    path = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    exempt = "registry.k8s.io/e2e/agent:1"
    # Both read another file after the token, by which it is known that the token has been read.
    apply(policy("marker", "team-a", paths=["/tmp/marker"]))
    until("the marker's policy", lambda: condition(get("pathpolicies", "marker", "team-a"), "Programmed")["status"] == "True")
    script = f"cat {path} >/dev/null && touch /tmp/marker; exec sleep 100000"
    apply(pod("thief", "team-a", script))
    apply(pod("agent", "team-a", script, image=exempt))
    for name in ("thief", "agent"):
        until(f"{name}'s marker", lambda: alerts(rule__name="marker", kubernetes__pod__name=name))
    found = alerts(rule__name="service-account-token")
    named = {at(record, "kubernetes__pod__name") for record in found}
    expect("who raised it", "thief" in named and "agent" not in named, named)
    return f"{at(found[0], 'file__path')}"


def changes():
    """a policy that is edited, suspended, made invalid, mended and deleted: each is in effect within 2 s"""
    spec = {"operations": ["read"]}
    writer = "touch /tmp/one /tmp/two; while :; do cat /tmp/one /tmp/two; usleep 50000; done"
    apply(policy("watched", "team-a", paths=["/tmp/one"], **spec))
    apply(pod("busy", "team-a", writer))
    seen = lambda path, after: [record for record in alerts(rule__name="watched", file__path=path) if when(record) > after]
    until("the first alert", lambda: seen("/tmp/one", 0))
    took = {}

    def starts(what, path, acknowledged):
        took[what] = when(until(what, lambda: seen(path, acknowledged))[0]) - acknowledged

    def ends(what, path, acknowledged):
        # The pod goes on for three seconds more; what came late is then there.
        marker = time.time() + 3
        until("other alerts", lambda: [r for r in records() if when(r) > marker], 90)
        took[what] = max([when(record) - acknowledged for record in seen(path, acknowledged)], default=0)

    # Another policy fires all the while, so that silence is a policy's and not the sensor's.
    apply(policy("pulse", "team-a", paths=["/tmp/two"], **spec))
    edited = apply(policy("watched", "team-a", paths=["/tmp/two"], **spec))
    starts("edited: new path", "/tmp/two", edited)
    ends("edited: old path", "/tmp/one", edited)
    suspended = apply(policy("watched", "team-a", paths=["/tmp/two"], suspend=True, **spec))
    ends("suspended", "/tmp/two", suspended)
    resumed = apply(policy("watched", "team-a", paths=["/tmp/two"], **spec))
    starts("resumed", "/tmp/two", resumed)
    invalid = apply(policy("watched", "team-a", paths=["/tmp/[z-a]"], **spec))
    refused = lambda: condition(get("pathpolicies", "watched", "team-a"), "Accepted")["status"] == "False"
    until("the refusal", refused)
    took["invalid: told"] = time.time() - invalid
    starts("invalid: the last good version", "/tmp/two", time.time() + 1)
    found = get("pathpolicies", "watched", "team-a")
    expect("the message", "spec.paths[0]" in condition(found, "Accepted")["message"], condition(found, "Accepted"))
    event = until("the Event", lambda: [
        event for event in get("events.events.k8s.io", namespace="team-a")["items"]
        if event["regarding"]["name"] == "watched" and event["reason"] == "Invalid"])[0]
    until("Degraded", lambda: condition(get("pathpolicies", "watched", "team-a"), "Degraded")["status"] == "True")
    mended = apply(policy("watched", "team-a", paths=["/tmp/one"], **spec))
    starts("mended", "/tmp/one", mended)
    kubectl("-n", "team-a", "delete", "pathpolicy", "watched")
    deleted = time.time()
    ends("deleted", "/tmp/one", deleted)
    kubectl("-n", "team-a", "delete", "pod", "busy", "--wait=false")
    kubectl("-n", "team-a", "delete", "pathpolicy", "pulse")
    slow = {what: seconds for what, seconds in took.items() if seconds > 2 * SLOW}
    expect("within 2 s", not slow, took)
    return ", ".join(f"{what} {seconds:.2f} s" for what, seconds in took.items()) + f"; Event: {event['note'][:60]}"


def recreated():
    """a policy that is replaced by another of its name has a status of its own, and nothing of the first stays in force"""
    apply(policy("again", "team-a", paths=["/tmp/again"]))
    of = lambda kind: condition(get("pathpolicies", "again", "team-a"), kind)
    until("Programmed", lambda: of("Programmed")["status"] == "True")
    anew = lambda **spec: kubectl("replace", "--force", "-f", "-", text=json.dumps(policy("again", "team-a", **spec)))
    anew(paths=["/tmp/again"])
    until("its status", lambda: of("Programmed")["status"] == "True")
    anew(paths=["/tmp/[z-a]"])
    until("the refusal", lambda: "nor is any other" in of("Programmed")["message"])
    kubectl("-n", "team-a", "delete", "pathpolicy", "again")


def config_map():
    """a policy in a ConfigMap is in effect within 2 s of the kubelet's swap; the kubelet's own delay is told"""
    apply(pod("filer", "team-a", "touch /tmp/map; while :; do cat /tmp/map; usleep 50000; done"))
    text = policy("of-a-map", None, paths=["/tmp/map"], subjects="pods", operations=["read"])
    patch = {"data": {"mine.yaml": json.dumps(text)}}
    kubectl("-n", NS, "patch", "configmap", f"{RELEASE}-policies", "--type=merge", "-p", json.dumps(patch))
    acknowledged = time.time()
    data = f"/proc/{sensor_pid()}/root/etc/pathwatch/policies/values/..data"
    record = until("the alert", lambda: alerts(rule__name="of-a-map"), 120)[0]
    # The link's own time is when the kubelet made it, an instant before the rename.
    swapped = float(on_node("stat", "-c", "%Y", data)) if GUEST else os.lstat(data).st_mtime
    took = when(record) - swapped
    expect("within 2 s of the swap", took < 2 * SLOW + (1 if GUEST else 0), took)
    kubectl("-n", "team-a", "delete", "pod", "filer", "--wait=false")
    return f"kubelet {swapped - acknowledged:.1f} s, then {took:.2f} s"


def upgrade():
    """helm upgrade and rollback, with the broker away: what waited in the spool arrives, without a gap"""
    before = {record["event"]["id"] for record in records()}
    cluster("stop", "kafka")
    fired = counter("pathwatch_ship_alerts_total", 'outcome="fired"')
    apply(pod("early", "team-a", "cat /etc/shadow; exec sleep 100000"))
    until("the alert", lambda: counter("pathwatch_ship_alerts_total", 'outcome="fired"') > fired)
    # New values and a new version of the chart and image.
    copy = RUN / "chart"
    run("cp", "-r", str(CHART), str(copy))
    text = (copy / "Chart.yaml").read_text().replace("ersion: 0.1.0", "ersion: 0.1.1")
    (copy / "Chart.yaml").write_text(text)
    image = "ghcr.io/pathwatch/pathwatch"
    cluster("node", "ctr", "-n", "k8s.io", "images", "tag", "--force", f"{image}:0.1.0", f"{image}:0.1.1")
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["perf_event_open"], "action": "SCMP_ACT_KILL_PROCESS"}]}
    on_node("sh", "-c", f"mkdir -p /var/lib/kubelet/seccomp && echo '{json.dumps(profile)}' >/var/lib/kubelet/seccomp/no-perf.json")
    old = sensor_pod()["metadata"]["name"]
    helm("upgrade", RELEASE, str(copy), "-n", NS, *INSTALL, "--set", "logLevel=debug",
         "--set", "seccompProfile=Localhost/no-perf.json", *WAIT)
    until("another pod", lambda: sensor_pod()["metadata"]["name"] != old)
    new = sensor_pod()
    expect("the new version", new["spec"]["containers"][0]["image"].endswith(":0.1.1"), new["spec"])
    expect("it would have died of perf_event_open", new["status"]["containerStatuses"][0]["restartCount"] == 0, new["status"])
    # Again and again: in its first second a sensor has not been told of policy objects yet.
    again = "while :; do cat /etc/shadow; sleep 1; done"
    apply(pod("late", "team-a", again))
    time_of_restart = time.time()
    cluster("start", "kafka")
    arrived = lambda name: [record for record in alerts(rule__name="passwords", kubernetes__pod__name=name) if record["event"]["id"] not in before]
    for name in ("early", "late"):
        until(f"{name}'s alert", lambda: arrived(name), 120)
    helm("rollback", RELEASE, "1", "-n", NS, *WAIT)
    until("the old version", lambda: sensor_pod()["spec"]["containers"][0]["image"].endswith(":0.1.0"))
    apply(pod("later", "team-a", again))
    until("later's alert", lambda: arrived("later"), 120)
    return f"the broker was away for {time_of_restart - when(arrived('early')[0]):.0f} s of it"


def whole():
    """pathwatch audit proves the topic whole"""
    now = time.time()
    until("a heartbeat", lambda: [r for r in records() if r["event"]["kind"] == "metric" and when(r) > now], 70)
    binary = run("sh", "-c", "ls target/*-unknown-linux-gnu/release/pathwatch").strip()
    status, said = cluster("inside", "env", 'PATHWATCH__SHIP__KAFKA__BROKERS=["10.96.0.1:9092"]', binary, "audit", ok=False)
    print("\n".join("  " + line for line in said.splitlines()[-12:]), flush=True)
    expect("nothing is missing", status == 0, said)


def uninstall():
    """uninstall leaves the CRDs and the spool, which NOTES names; another release in another namespace works"""
    notes = helm("get", "notes", RELEASE, "-n", NS)
    expect("NOTES names what stays", "/var/lib/pathwatch" in notes and "CRDs" in notes, notes)
    helm("uninstall", RELEASE, "-n", NS, *WAIT)
    kinds = kubectl("api-resources", "--verbs=list", "-o", "name").split()
    left = set()
    until("the pods' end", lambda: not json.loads(kubectl("-n", NS, "get", "pods", "-o", "json"))["items"])
    for line in kubectl("get", ",".join(kinds), "-A", "-l", "app.kubernetes.io/name=pathwatch", "-o", "name", "--ignore-not-found").splitlines():
        left.add(line)
    left |= set(kubectl("get", "crd", "-o", "name").split())
    want = {f"customresourcedefinition.apiextensions.k8s.io/{kind}.pathwatch.dev" for kind in ("pathpolicies", "clusterpathpolicies")}
    # Endpoints go with their service, a moment later.
    expect("what is left", {name for name in left if not name.startswith("endpoint")} == want, left)
    expect("the spool", "spool" in cluster("node", "ls", "/var/lib/pathwatch"))
    expect("policies stay", get("pathpolicies", "passwords", "team-a"))
    helm("install", "second", str(CHART), "-n", "elsewhere", "--create-namespace", *INSTALL, *WAIT)
    apply(pod("after", "team-a", "while :; do cat /etc/shadow; sleep 1; done"))
    until("an alert by the second release", lambda: alerts(rule__name="passwords", kubernetes__pod__name="after"), 90)
    changed = RUN / "changed"
    run("cp", "-r", str(CHART), str(changed))
    crds = changed / "files" / "crds.yaml"
    crds.write_text(crds.read_text().replace("pathwatch.dev/schema: ", "pathwatch.dev/schema: new"))
    status, said = helm("upgrade", "second", str(changed), "-n", "elsewhere", *INSTALL, ok=False)
    expect("an old CRD is named with the remedy", status != 0 and "kubectl annotate crd" in said, said)
    helm("uninstall", "second", "-n", "elsewhere", *WAIT)


def without_crds():
    """without the CRDs the sensor works by files, and picks policies up when the CRDs appear"""
    kubectl("delete", "crd", "pathpolicies.pathwatch.dev", "clusterpathpolicies.pathwatch.dev")
    helm("install", RELEASE, str(CHART), "-n", NS, *INSTALL, "--set", "crds.enabled=false", *WAIT)
    # The library's own, which comes in the image.
    apply(pod("still", "team-a", "cat /etc/shadow; exec sleep 100000"))
    until("an alert by a file", lambda: alerts(rule__name="shadow-read", kubernetes__pod__name="still"))
    before = len(alerts(rule__name="late-comer"))
    kubectl("apply", "--server-side", "-f", str(CHART / "files" / "crds.yaml"))
    kubectl("wait", "--for=condition=Established", "crd/pathpolicies.pathwatch.dev", "--timeout=30s")
    appeared = apply(policy("late-comer", "team-a", paths=["/tmp/late"]))
    apply(pod("comer", "team-a", "while :; do touch /tmp/late; sleep 1; done"))
    record = until("the alert", lambda: alerts(rule__name="late-comer")[before:], 120)[0]
    took = when(record) - appeared
    kubectl("delete", "crd", "pathpolicies.pathwatch.dev")
    # Another goes on all the while, by which it is known that the sensor still sees.
    apply(policy("pulse", None, paths=["/etc/shadow"], subjects="pods"))
    apply(pod("pulse", "team-a", "while :; do cat /etc/shadow; usleep 300000; done"))
    until("no policy of that kind in force, and others", lambda: is_silent("late-comer", "pulse"), 60)
    return f"in force {took:.0f} s after it was written"


def is_silent(rule, other):
    """Whether a rule raised nothing while another raised something, which came after three seconds of waiting."""
    now = time.time()
    repeats = lambda name: [r for r in records() if at(r, "rule__name") == name and when(r) > now]
    until(f"more of {other}", lambda: any(when(record) > now + 3 for record in repeats(other)), 90)
    return not repeats(rule)


ALL = [install, capabilities, status, first_alert, token, changes, recreated, config_map, refusals, tenancy, quota, flood, rights, endpoint,
       refused_rights, upgrade, whole, uninstall, without_crds, pod_security]
# What differs there is the kernel: how it sees, and what it lets a container do.
# What is the host's own place needs a host: the native node is a mount namespace on this machine, whose paths are others.
IN_GUEST = [install, capabilities, status, first_alert, token, volumes, attacked, upgrade, whole]

if __name__ == "__main__":
    os.chdir(ROOT)
    report = Report("cluster (guest)" if GUEST else "cluster")
    names = os.environ.get("CASES", "").split()
    for case in IN_GUEST if GUEST else ALL:
        if not names or case.__name__ in names:
            report.case(case)
    report.end()
