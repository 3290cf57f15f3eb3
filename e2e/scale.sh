#!/usr/bin/env bash
# scale.sh BINARY   cluster/scale.py at a control plane without a node
set -euo pipefail
cd "$(dirname "$0")/.."
trap 'e2e/cluster.sh down' EXIT
e2e/cluster.sh up none
# A connection for each watch and each sensor.
ulimit -n "$(ulimit -H -n)"
e2e/cluster.sh inside e2e/cluster/scale.py "$1"
