#!/usr/bin/env python3
"""chart-unit.py HELM CHART: what must hold of the chart whatever its values; each rule is shown to find a planted defect."""
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree

helm, chart = sys.argv[1], Path(sys.argv[2])
BASE = ["--set", "cluster.name=c", "--set", "kafka.brokers={k:9092}"]
PROFILES = {
    "strict": ["BPF", "PERFMON"],
    "minimal": ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"],
    "compat": ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH", "SYS_RESOURCE"],
}


def render(where, *more):
    done = subprocess.run([helm, "template", "r", str(where), "-n", "ns", *BASE, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text):
    return [part for part in re.split(r"^---$", text, flags=re.M) if "kind:" in part]


def of_kind(text, kind):
    return next(part for part in documents(text) if re.search(rf"^kind: {kind}$", part, re.M))


def capabilities(where):
    """each profile adds its capabilities and no other"""
    for profile, want in PROFILES.items():
        pod = of_kind(render(where, "--set", f"securityProfile={profile}"), "DaemonSet")
        added = re.search(r"add:\n((?: +- \w+\n)+)", pod)[1].split("- ")[1:]
        assert [name.strip() for name in added] == want, f"{profile}: {added}"
        for line in ("privileged: false", "allowPrivilegeEscalation: false", "readOnlyRootFilesystem: true", "drop: [ALL]"):
            assert line in pod, f"{profile}: no '{line}'"
    assert "privileged: true" in of_kind(render(where, "--set", "securityProfile=privileged"), "DaemonSet")


def host(where):
    """no namespace of the node's, no runtime's socket, and nothing is mounted to be written but the spool and a place in memory"""
    pod = of_kind(render(where), "DaemonSet")
    for word in ("hostPID", "hostNetwork", "hostIPC", "containerd.sock", "docker.sock", "subPath"):
        assert word not in pod, word
    mounts = dict(re.findall(r"\{name: (\w+), mountPath: \S+?(, readOnly: true)?\}", pod))
    writable = {name for name, flag in mounts.items() if not flag}
    assert writable == {"spool", "run"}, writable
    assert "name: run, emptyDir: {medium: Memory, sizeLimit: 1Mi}" in pod
    assert re.search(r"name: spool, hostPath: \{path: /var/lib/pathwatch, type: DirectoryOrCreate\}", pod)


def rights(where):
    """no role lets anybody read Secrets, write pods, or use a wildcard"""
    text = render(where)
    roles = "\n".join(part for part in documents(text) if re.search(r"^kind: (Cluster)?Role$", part, re.M))
    for word in ("secrets", '"*"', "'*'", "exec", "impersonate", "escalate", "bind]"):
        assert word not in roles, word


def restarts(where):
    """another setting restarts the sensors, another policy does not"""
    sum_of = lambda *more: re.search(r"checksum/config: (\w+)", render(where, *more))[1]
    assert sum_of() != sum_of("--set", "logLevel=debug")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
        values.write("policies: {files: {mine.yaml: 'kind: ClusterPathPolicy'}}")
        values.flush()
        assert sum_of() == sum_of("-f", values.name)


def rules(where):
    """every metric that a rule or a panel asks for is one that the sensor has"""
    # Which is held to the sensor by a test of its own.
    page = (chart.parent.parent / "docs/metrics.md").read_text()
    known = {re.sub("_total$", "", name) for name in re.findall(r"pathwatch_[a-z_]+", page)}
    text = (where / "files/rules.yaml").read_text() + (where / "files/dashboard.json").read_text()
    asked = set(re.findall(r"pathwatch_[a-z_]+", text))
    unknown = {name for name in asked if re.sub(r"_(total|bucket|sum|count)$", "", name) not in known}
    assert asked and not unknown, unknown


TESTS = {
    capabilities: ("templates/daemonset.yaml", "- PERFMON\n", "- PERFMON\n                - SYS_ADMIN\n"),
    host: ("templates/daemonset.yaml", "mountPath: /host/proc, readOnly: true", "mountPath: /host/proc"),
    rights: ("templates/rbac.yaml", "resources: [pods, namespaces]", "resources: [pods, namespaces, secrets]"),
    restarts: ("templates/daemonset.yaml", 'include "pathwatch.config" . | sha256sum', '"x" | sha256sum'),
    rules: ("files/rules.yaml", "pathwatch_policy_errors", "pathwatch_policy_erors"),
}
for test, (file, right, wrong) in TESTS.items():
    test(chart)
    with tempfile.TemporaryDirectory() as work:
        broken = Path(work) / "pathwatch"
        copytree(chart, broken)
        text = (broken / file).read_text()
        assert right in text, (test.__name__, right)
        (broken / file).write_text(text.replace(right, wrong))
        try:
            test(broken)
        except AssertionError:
            print(f"chart: ok: {test.__doc__}, and a planted defect is found")
        else:
            sys.exit(f"chart: {test.__name__} does not find a planted defect")
