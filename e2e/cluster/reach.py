"""Ways to reach a file from a pod: the attack of e2e/attack in one, and what the kubelet makes for it."""
import base64
import os
from pathlib import Path

from lab import ROOT, alerts, apply, at, condition, expect, get, kubectl, pod, policy, until

# A pod's root is an overlay, and what it holds of rights decides what it can try.
ATTACK = Path(os.environ.get("PATHWATCH_ATTACK", ROOT / "target/x86_64-unknown-linux-gnu/release/attack"))
DIR = "/tmp/a"
EVERYTHING = {
    "operations": ["read", "write", "create", "truncate", "rename", "link", "delete", "exec", "list", "reference"],
    "results": ["success", "denied", "missing", "error"],
}


def in_force(kind, name, namespace=None):
    until(name, lambda: condition(get(kind, name, namespace), "Programmed")["status"] == "True")


def named(record, view):
    """The name that an alert has for a view of the file."""
    fields = {"path": "file__path", "home": "pathwatch__path__home", "requested": "pathwatch__path__requested",
              "target": "pathwatch__path__target", "target_home": "pathwatch__path__target_home"}
    return at(record, fields[view]) if view in fields else None


def attacked():
    """every way to reach a file that a pod's rights allow: one alert, with the container's path, naming the pod"""
    literals = [f"{DIR}/{case}/secret" for case in ("hard-link", "hard-link-left", "rename-around")]
    apply(policy("attacked", None, subjects="pods", paths=[f"{DIR}/*/secret", *literals], **EVERYTHING))
    in_force("clusterpathpolicies", "attacked")
    apply(pod("attacker", "team-a", "exec sleep 100000"))
    kubectl("-n", "team-a", "wait", "--for=condition=Ready", "pod/attacker", "--timeout=120s")
    within = lambda script, **more: kubectl("-n", "team-a", "exec", "-i", "attacker", "--", "sh", "-c", script, timeout=600, **more)
    within("base64 -d >/attack && chmod +x /attack", text=base64.b64encode(ATTACK.read_bytes()).decode())
    lines = [line.split("\t") for line in within(f"/attack {DIR}").splitlines()]
    tried = {name: (operation, view) for name, _, failed, operation, view in lines if not failed}
    # Those that another name is the point of, or none, or that read the file before, are told by the sensor's own tests.
    tried = {name: want for name, want in tried.items() if want[1] and not name.startswith("name-") and name != "deleted"}
    expect("most can be tried", len(tried) > 40, [line for line in lines if line[2]])
    # Alerts come in order: this one is the last.
    within(f"mkdir -p {DIR}/last && cat {DIR}/last/secret || true")
    mine = lambda: alerts(rule__name="attacked", kubernetes__pod__name="attacker")
    until("the last", lambda: any(named(record, "requested") == f"{DIR}/last/secret" for record in mine()))
    found, wrong = mine(), {}
    for name, (operation, view) in tried.items():
        secret = f"{DIR}/{name}/secret"
        is_it = lambda record: view == "identity" and record["pathwatch"]["matched_by"] == "identity" \
            and (record["file"]["path"] + "/").startswith(f"{DIR}/{name}/") or named(record, view) == secret
        of_case = [record for record in found if is_it(record) and " ".join(record["pathwatch"]["operation"]) == operation]
        if len(of_case) != 1:
            wrong[name] = f"{len(of_case)} alerts of {operation} by {view}"
        elif at(of_case[0], "kubernetes__namespace") != "team-a" or at(of_case[0], "container__id") is None:
            wrong[name] = "not of the pod"
    expect("one alert each", not wrong, wrong)
    kubectl("delete", "clusterpathpolicy", "attacked")
    return f"{len(tried)} of {len(lines)} could be tried, each is one alert"


def volumes():
    """a policy on /var/lib/kubelet is silent for what the kubelet made for the pod, and fires for a hostPath"""
    apply(policy("kubelet-files", None, subjects="pods", paths=["/var/lib/kubelet/**", "/var/lib/containerd/**"], **EVERYTHING))
    apply(policy("volumes-end", "team-a", paths=["/tmp/volumes-end"]))
    in_force("clusterpathpolicies", "kubelet-files")
    in_force("pathpolicies", "volumes-end", "team-a")
    own = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    script = f"cat /etc/hosts /etc/resolv.conf /etc/hostname {own} >/dev/null; echo x >/data/f; cat /data/f; " \
        "mv /data/f /data/g; touch /tmp/volumes-end; exec sleep 100000"
    data = {"name": "data", "emptyDir": {}}
    ordinary = pod("ordinary", "team-a", script, volumes=[data])
    ordinary["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    apply(ordinary)
    of_host = {"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet"}}
    curious = pod("curious", "team-a", "ls /k/pods; touch /tmp/volumes-end; exec sleep 100000", volumes=[of_host])
    curious["spec"]["containers"][0]["volumeMounts"] = [{"name": "kubelet", "mountPath": "/k"}]
    apply(curious)
    for name in ("ordinary", "curious"):
        until(f"{name}'s end", lambda: alerts(rule__name="volumes-end", kubernetes__pod__name=name))
    by = lambda name: alerts(rule__name="kubelet-files", kubernetes__pod__name=name)
    told = [(at(record, "file__path"), named(record, "home")) for record in by("ordinary")]
    expect("nothing of the pod's own", not told, told)
    homes = {named(record, "home") for record in by("curious")}
    expect("the host's by its own path", "/var/lib/kubelet/pods" in homes, homes)
    kubectl("delete", "clusterpathpolicy", "kubelet-files")
