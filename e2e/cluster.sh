#!/usr/bin/env bash
# cluster.sh up native|guest|none   a cluster from nothing: etcd, the control plane, one node (or none), a Kafka broker
# cluster.sh sweep              removes what tests before it left of pods' cgroups
# cluster.sh down               ends it and leaves nothing behind, whatever state it is in
# cluster.sh kubectl|helm ARG...    as its administrator        cluster.sh kafka ARG...   kcat at the broker
# cluster.sh stop|start kafka    the broker, with all that it holds
# cluster.sh import TAR...      images for the node        cluster.sh node ARG...   a command where the node's files are
# All of it lives in a network namespace of its own, without uplink. The native node shadows the places of a kubelet in
# a mount namespace, so this machine's own are not touched. Needs root, and `setup.sh cluster kafka containers helm`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
run=${PATHWATCH_E2E:-/tmp/pathwatch-e2e}
pki=$run/pki bin=$cache/cluster
# The service network's first address, which pods find in their environment, and the node's.
API=10.96.0.1 NODE_IP=10.96.255.15 NODE=node1 NS=pathwatch-e2e
SHADOWED="/run/netns /var/lib/containerd /run/containerd /var/lib/kubelet /var/log/pods /var/log/containers
  /etc/cni/net.d /etc/kubernetes /run/cni-ipam /var/lib/cni /var/lib/pathwatch"
SYSCTLS="vm.overcommit_memory kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes"
. "$here/cluster/node-config.sh"

say() { printf 'cluster: %s\n' "$*" >&2; }
inside() { nsenter --net="$run/net" -- "$@"; }
# A command where the node's processes and files are; its output and status.
node() { if [ -e "$run/is-guest" ]; then "$here/cluster/console.py" "$run/console.sock" "$@"; else on_host "$@"; fi; }
on_host() { nsenter --net="$run/net" --mount="/proc/$(cat "$run/pids/mounts")/ns/mnt" -- "$@"; }
kubectl() { inside "$bin/kubectl" --kubeconfig "$pki/admin.conf" "$@"; }
alive() { [ -e "$run/pids/$1" ] && kill -0 "$(cat "$run/pids/$1")" 2>/dev/null; }
# until_true SECONDS WHAT COMMAND...
until_true() {
  local began=${began:-$SECONDS} end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { say "gave up waiting for $what"; tail -n 15 "$run"/log/* >&2; return 1; }
    sleep 0.1
  done
  say "$what ($((SECONDS - began)) s)"
}
# start NAME COMMAND...: in the background, in cgroups by which `down` finds all that comes of it.
start() {
  local name=$1; shift
  (for tree in $(trees); do mkdir -p "$tree/$NS"; echo "$BASHPID" >"$tree/$NS/cgroup.procs"; done
    exec setsid "$@" >>"$run/log/$name" 2>&1 </dev/null) &
  echo $! >"$run/pids/$name"
}
# The cgroup hierarchies that processes are sorted in.
trees() {
  if [ -e /sys/fs/cgroup/cgroup.procs ]; then echo /sys/fs/cgroup; else echo /sys/fs/cgroup/systemd /sys/fs/cgroup/memory; fi
}

# Removes the cgroups of pods and of our own that no process is in.
cgroups_gone() {
  local tree name
  for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do
    for name in "$tree/kubepods" "$tree/$NS"; do [ ! -d "$name" ] || find "$name" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
  done
}

network() {
  touch "$run/net"
  unshare --net="$run/net" true
  inside ip link set lo up
  for address in $API $NODE_IP; do inside ip address replace "$address/32" dev lo; done
  # Sensors that a test only pretends to have.
  inside ip route add local 10.97.0.0/16 dev lo
  # A guest must not see its own address as its caller's.
  inside ip route replace local $NODE_IP dev lo proto kernel scope host src $API table local
  inside sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}

control_plane() {
  "$here/cluster/pki.sh" "$pki" $API $NODE $NODE_IP
  start etcd nsenter --net="$run/net" "$bin/etcd" --name e2e --data-dir "$run/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster e2e=http://127.0.0.1:2380
  start kube-apiserver nsenter --net="$run/net" "$bin/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=443 --advertise-address=$NODE_IP \
    --service-cluster-ip-range=10.96.0.0/24 --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --kubelet-client-certificate="$pki/apiserver-kubelet.crt" --kubelet-client-key="$pki/apiserver-kubelet.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/accounts.pub" --service-account-signing-key-file="$pki/accounts.key" \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
    --requestheader-username-headers=X-Remote-User \
    --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key"
  broker
  until_true 120 "the API server is ready" kubectl get --raw /readyz
  start kube-controller-manager nsenter --net="$run/net" "$bin/kube-controller-manager" --bind-address=127.0.0.1 --leader-elect=false \
    --kubeconfig="$pki/controllers.conf" --authentication-kubeconfig="$pki/controllers.conf" --authorization-kubeconfig="$pki/controllers.conf" \
    --use-service-account-credentials --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/accounts.key" \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key"
  start kube-scheduler nsenter --net="$run/net" "$bin/kube-scheduler" --bind-address=127.0.0.1 --leader-elect=false \
    --kubeconfig="$pki/scheduler.conf" --authentication-kubeconfig="$pki/scheduler.conf" --authorization-kubeconfig="$pki/scheduler.conf"
  until_true 60 "namespaces have service accounts" kubectl get serviceaccount default
}

# A single Kafka broker at the service network's first address, for pods and for this machine.
broker() {
  cat >"$run/server.properties" <<P
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:9093
# On all addresses of the namespace: what a guest sends to $API arrives at the loopback one.
listeners=PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093
advertised.listeners=PLAINTEXT://$API:9092
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=$run/kafka
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=4194304
P
  java -Xmx256m -cp "$(echo "$cache"/kafka-*/)*" kafka.tools.StorageTool format --standalone -t AAAAAAAAAAAAAAAAAAAAAA -c "$run/server.properties" >"$run/log/format" 2>&1
  start_kafka
}

start_kafka() {
  start kafka nsenter --net="$run/net" java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$(echo "$cache"/kafka-*/)*" \
    kafka.Kafka "$run/server.properties"
}

topic() {
  until_true 120 "the broker is ready" grep -q 'Kafka Server started' "$run/log/kafka"
  inside java -Xmx128m -cp "$(echo "$cache"/kafka-*/)*" org.apache.kafka.tools.TopicCommand --bootstrap-server $API:9092 \
    --create --if-not-exists --topic pathwatch-alerts --partitions 2 --replication-factor 1 >"$run/log/topic" 2>&1
}

native_node() {
  # `down` ends all pods on this machine, which must be its own. Cgroups without processes are other tests' leftovers.
  cgroups_gone
  if compgen -G '/sys/fs/cgroup/*/kubepods' >/dev/null || [ -e /sys/fs/cgroup/kubepods ]; then
    say "this machine has a kubelet's cgroups already (kubepods); a test's node must not touch them"; return 1
  fi
  local place
  for place in $SHADOWED; do
    [ -e "$place" ] || echo "$place" >>"$run/made"
    mkdir -p "$place" "$run/node$place"
  done
  # shellcheck disable=SC2086
  sysctl $SYSCTLS >"$run/sysctls"
  start mounts unshare --mount --propagation slave bash -c "
    mount --make-rshared /
    for place in $(echo $SHADOWED); do mount --bind $run/node\$place \$place; mount --make-shared \$place; done
    touch $run/mounted; exec sleep infinity"
  until_true 10 "the node has its places" test -e "$run/mounted"
  mkdir -p "$run/node/etc/kubernetes/manifests"; : >"$run/node/etc/kubernetes/resolv.conf"
  containerd_config >"$run/node/etc/kubernetes/containerd.toml"
  cni_config >"$run/node/etc/cni/net.d/10-e2e.conflist"
  kubelet_config "$pki" >"$run/node/etc/kubernetes/kubelet.yaml"
  local on=(nsenter --net="$run/net" --mount="/proc/$(cat "$run/pids/mounts")/ns/mnt")
  start containerd "${on[@]}" containerd --config /etc/kubernetes/containerd.toml
  until_true 30 "containerd answers" node ctr version
  import "$cache"/images/*.tar
  start kubelet "${on[@]}" "$bin/kubelet" --config /etc/kubernetes/kubelet.yaml --kubeconfig "$pki/kubelet.conf" \
    --hostname-override $NODE --node-ip $NODE_IP --v=2
}

import() { local tar; for tar in "$@"; do node ctr -n k8s.io images import - <"$tar" >/dev/null; done; }

up() {
  local began=$SECONDS
  [ ! -e "$run" ] || down
  mkdir -p "$run"/{log,pids}
  trap 'say "it did not come up"; down' EXIT
  network
  control_plane
  case $1 in
    none) ;;
    native) native_node ;;
    guest) . "$here/cluster/guest-node.sh"; guest_node ;;
  esac
  topic
  [ "$1" = none ] || until_true "${NODE_WAIT:-180}" "the node is ready" kubectl wait --for=condition=Ready node/$NODE --timeout=1s
  trap - EXIT
}

down() {
  local began=$SECONDS name tree round
  [ -e "$run" ] || return 0
  for name in qemu kubelet kube-scheduler kube-controller-manager kafka; do ! alive $name || kill "$(cat "$run/pids/$name")" || true; done
  # Pods, their shims and all daemons are in these cgroups and nobody else is.
  for round in 1 2 3 4 5 6 7 8; do
    local left; left=$(for tree in $(trees); do find "$tree/$NS" "$tree/kubepods" -name cgroup.procs -exec cat {} + 2>/dev/null || true; done | sort -u)
    [ -n "$left" ] || break
    # shellcheck disable=SC2086
    [ "$round" = 1 ] || kill -9 $left 2>/dev/null || true
    sleep 0.3
  done
  [ ! -e "$run/sysctls" ] || sysctl -q -p "$run/sysctls" || true
  cgroups_gone
  umount "$run/net" 2>/dev/null || true
  [ ! -e "$run/made" ] || xargs rmdir 2>/dev/null <"$run/made" || true
  rm -rf --one-file-system "$run"
  say "down ($((SECONDS - began)) s)"
}

command=${1:-}; [ $# -eq 0 ] || shift
case $command in
  up) case ${1:-} in native | guest | none) up "$1" ;; *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 64 ;; esac ;;
  down) down ;;
  sweep) cgroups_gone ;;
  kubectl) kubectl "$@" ;;
  helm) inside env KUBECONFIG="$pki/admin.conf" HELM_CACHE_HOME="$run/helm" HELM_CONFIG_HOME="$run/helm" HELM_DATA_HOME="$run/helm" "$bin/helm" "$@" ;;
  kafka) inside kcat -b $API:9092 "$@" ;;
  stop) kill "$(cat "$run/pids/$1")"; until_true 30 "$1 has ended" bash -c "! kill -0 $(cat "$run/pids/$1") 2>/dev/null" ;;
  start) : >"$run/log/$1"; began=$SECONDS; "start_$1"; until_true 120 "$1 is ready" grep -q 'Kafka Server started' "$run/log/$1" ;;
  import) import "$@" ;;
  node) node "$@" ;;
  inside) inside "$@" ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
