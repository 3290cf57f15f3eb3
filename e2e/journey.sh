#!/usr/bin/env bash
# journey.sh native|guest   the chart in a real cluster: cluster/journey.py between `cluster.sh up` and `cluster.sh down`,
# and a look at whether anything was left behind. CASES="install upgrade" runs some only; KEEP=1 leaves the cluster up.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATHWATCH_NODE=$1 SENSOR_IMAGE=$PWD/target/image/pathwatch.tar
# What this machine has of what a cluster makes.
traces() {
  {
    find /sys/fs/cgroup -maxdepth 2 \( -name kubepods -o -name pathwatch-e2e \) 2>/dev/null
    awk '$5 ~ "kubelet|containerd|pathwatch-e2e|/var/lib/cni" { print $5 }' /proc/self/mountinfo
    ip netns list 2>/dev/null; ls /sys/class/net
    # The dead whom their new parent has not buried are none of ours.
    pgrep -af "pathwatch-e2e|kube-|kubelet|containerd-shim|qemu-system" | grep -vE "journey|<defunct>" || true
    ls -d /var/lib/kubelet /var/lib/cni /var/lib/pathwatch 2>/dev/null || true
  } | sort
}
e2e/cluster.sh sweep
before=$(traces)
finish() {
  local status=$?
  [ -z "${KEEP:-}" ] || exit "$status"
  e2e/cluster.sh down
  if ! diff <(echo "$before") <(traces) >&2; then
    echo "cluster: FAILED: the lines above are what it left behind (>) or took along (<)"
    echo "test result: FAILED. 0 passed; 1 failed"
    exit 1
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM
e2e/cluster.sh up "$1"
[ "$1" = guest ] || e2e/cluster.sh import "$SENSOR_IMAGE"
e2e/cluster/journey.py
