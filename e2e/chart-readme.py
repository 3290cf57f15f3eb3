#!/usr/bin/env python3
"""chart-readme.py CHART: the chart's README, its table of values made of values.yaml and its comments."""
import re
import sys
from pathlib import Path

chart = Path(sys.argv[1])
version = re.search(r"^version: (.*)$", (chart / "Chart.yaml").read_text(), re.M)[1]

HEAD = """<!-- Made by e2e/chart-readme.py of values.yaml; change that. -->
# Pathwatch {version}

Watches file opens on every node by policy, and ships alerts to Kafka. Needs Kubernetes 1.28 or newer with Linux nodes of
kernel 5.10 or newer (with `/sys/kernel/btf/vmlinux`), and Helm 3 or 4.

<!-- not run: it takes a cluster; e2e/cluster/journey.py, case install -->
```sh
kubectl create namespace pathwatch
kubectl label namespace pathwatch pod-security.kubernetes.io/enforce=privileged   # the sensor mounts the node's /proc
helm install pathwatch charts/pathwatch -n pathwatch \\
  --set cluster.name=production --set 'kafka.brokers={{kafka-0.example:9092}}'
```
The topic must exist. `helm uninstall` leaves the custom resource definitions, with the policies in them, and the spool
(`/var/lib/pathwatch` on each node); to remove those, too:
<!-- not run: the same, case without_crds -->
```sh
kubectl delete crd pathpolicies.pathwatch.dev clusterpathpolicies.pathwatch.dev
```

## What it may do
Not privileged, no namespace of the node's, a read-only root file system, seccomp's default profile, and four capabilities:
BPF and PERFMON load programs, SYS_PTRACE and DAC_READ_SEARCH tell which programs run. It mounts the node's `/proc` and
cgroups to read, and its spool to write. Said honestly: who owns the sensor can read the node's files, and through
`/proc/1/root` change them. `securityProfile: strict` leaves it BPF and PERFMON; then programs that ran before the
sensor did, or of other users, have no name, and exceptions by program do not hold for them.

The service account may list and watch pods, namespaces and policies, and ask whether a token is the controller's. The
controller, of which there is one, may write the status of policies, and Events. Neither may read a Secret. Said honestly:
whoever has the sensor's token can list all pods, with what stands in their environment; whoever has the controller's can write
Events in any namespace, under any name.

Whoever may edit a namespace may write as many objects as the API server takes. Sensors look at 64 PathPolicies of a
namespace, the oldest first, and the others' status says so; spare the API server the rest:
<!-- not run: the same, case quota -->
```sh
kubectl -n payments create quota pathpolicies --hard=count/pathpolicies.pathwatch.dev=64
```

## Policies
1. From the image, by severity: `policies.library`; single ones by `policies.overrides`.
2. As objects: `kubectl apply` of a `PathPolicy` or `ClusterPathPolicy`; whoever may edit a namespace may write its PathPolicies.
   `kubectl get pathpolicies -A` shows what has become of them.
3. As values, `policies.files`, or as ConfigMaps, `policies.configMaps`: in force once the kubelet has swapped the files,
   which takes it up to a minute or two.

## Values
| value | default | |
| --- | --- | --- |
"""


def rows(text):
    """(path, default, comment) of every leaf of values.yaml, which is written in block style above, and flow style below."""
    path, comment, found = [], [], []
    for line in text.splitlines()[1:]:
        if not line.strip():
            comment = []
            continue
        if match := re.match(r"\s*# ?(-- )?(.*)", line):
            comment = [match[2]] if match[1] else [*comment, match[2]]
            continue
        indent, key, value = re.match(r"( *)([A-Za-z]+): ?(.*)", line).groups()
        path = path[: len(indent) // 2] + [key]
        if value:
            found.append((".".join(path), value, " ".join(comment)))
        elif comment:
            found.append((".".join(path), "", " ".join(comment)))
        comment = []
    return found


out = HEAD.format(version=version)
for path, value, comment in rows((chart / "values.yaml").read_text()):
    shown = f"`{value}`" if value else ""
    out += f"| `{path}` | {shown} | {comment} |\n".replace("||", "\\|\\|")
sys.stdout.write(out)
