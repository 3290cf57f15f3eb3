#!/usr/bin/env bash
# Ordinary work of a Debian machine under the whole policy library: which alerts does it give? Installs packages, makes
# and removes a user, starts cron, sshd and containerd: for a machine that nobody needs. Prints the alerts by policy,
# program and file; any is a failure, to be cured by an exception or told here. POLICIES=DIR takes other policies: the
# same without their exceptions must give more than a hundred.
# Usage: workload.sh PATHWATCH
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "workload: needs root" >&2; exit 77; }
sensor=$1 cache=${PATHWATCH_CACHE:?run it by make}
work=$(mktemp -d); port=5790
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  id pwuser >/dev/null 2>&1 && userdel -r pwuser 2>/dev/null || true
  umount -R "$work/containerd" 2>/dev/null || true
  rm -rf "$work" /root/.ssh/id_pathwatch_workload{,.pub}
}
trap cleanup EXIT
# until_ COMMAND...: waits for a condition, not for a time.
until_() { local n=0; until "$@" >/dev/null 2>&1; do n=$((n + 1)); [ $n -lt 600 ] || { echo "workload: timed out: $*" >&2; exit 1; }; sleep 0.1; done; }
step() { echo "workload: $*" >&2; }

"$sensor" run --policies ${POLICIES:-policies} >"$work/alerts.jsonl" 2>"$work/log" & pids+=($!); sensor_pid=$!
until_ grep -q 'capture is attached' "$work/log"

export DEBIAN_FRONTEND=noninteractive
step "apt update, install, reinstall, remove"
apt-get -qq update
apt-get -qq install -y --no-install-recommends hello cron logrotate openssh-server openssh-client containerd runc passwd login >"$work/apt.log" 2>&1
apt-get -qq install -y --reinstall hello cron logrotate passwd login openssh-server >>"$work/apt.log" 2>&1
apt-get -qq purge -y hello >>"$work/apt.log" 2>&1

step "users: useradd, passwd, chage, su, usermod"
useradd -m -s /bin/bash pwuser
echo 'pwuser:a-Good-passw0rd' | chpasswd
passwd -S pwuser >/dev/null; passwd -l pwuser >/dev/null; passwd -u pwuser >/dev/null; chage -l pwuser >/dev/null
su - pwuser -c 'id; ls -la' >/dev/null
usermod -aG users pwuser; gpasswd -d pwuser users >/dev/null

step "ssh-keygen, sshd, ssh"
mkdir -p /run/sshd /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_pathwatch_workload
ssh-keygen -l -f /root/.ssh/id_pathwatch_workload >/dev/null
cp /root/.ssh/id_pathwatch_workload.pub "$work/keys"; chmod 755 "$work"
/usr/sbin/sshd -D -p 5791 -o ListenAddress=127.0.0.1 -o AuthorizedKeysFile="$work/keys" -o StrictModes=no -o PidFile=none & pids+=($!)
until_ ssh -q -p 5791 -i /root/.ssh/id_pathwatch_workload -o StrictHostKeyChecking=no -o UserKnownHostsFile="$work/known" 127.0.0.1 true

step "cron: a user's job at start"
echo "@reboot touch /tmp/pathwatch-cron-ran" | crontab -u pwuser -
crontab -u pwuser -l >/dev/null
rm -f /tmp/pathwatch-cron-ran /run/crond.reboot; /usr/sbin/cron -f & pids+=($!); cron_pid=$!
until_ test -e /tmp/pathwatch-cron-ran; rm -f /tmp/pathwatch-cron-ran
kill $cron_pid; crontab -u pwuser -r

step "logrotate"
printf '%s\n' "/var/log/pathwatch-workload.log { rotate 2" "compress" "}" >"$work/rotate.conf"
echo line >/var/log/pathwatch-workload.log
logrotate -f -s "$work/rotate.state" "$work/rotate.conf"; rm -f /var/log/pathwatch-workload.log*
logrotate -s "$work/rotate.state" /etc/logrotate.conf

step "a build: cc, cargo, git"
printf 'int main(void){return 0;}\n' >"$work/x.c"; cc -o "$work/x" "$work/x.c"; "$work/x"
(cd "$work" && cargo -q new built && cd built && cargo -q build --offline && git add -A && git -c user.name=x -c user.email=x@x commit -qm x)

step "containerd: pull an image, start containers"
python3 e2e/registry.py "$cache/busybox" $port & pids+=($!)
mkdir -p "$work/containerd"
printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "%s/sock"\n' "$work/containerd" "$work/containerd" "$work/containerd" >"$work/containerd.toml"
containerd --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 & pids+=($!)
ctr() { command ctr -a "$work/containerd/sock" "$@"; }
until_ ctr version
until_ bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
ctr images pull --plain-http "127.0.0.1:$port/busybox:latest" >/dev/null
for n in 1 2 3; do ctr run --rm "127.0.0.1:$port/busybox:latest" "$(printf '%064x' $((n + 0x51f)))" sh -c 'cat /etc/resolv.conf /proc/self/status 2>/dev/null; ls /; true' >/dev/null; done

step "cleaning up"
userdel -r pwuser 2>/dev/null
kill -TERM "$sensor_pid"; wait "$sensor_pid" || { cat "$work/log" >&2; exit 1; }
cp "$work/alerts.jsonl" "${ALERTS:-/dev/null}"
python3 - "$work/alerts.jsonl" "$work" <<'PY'
import collections, json, sys
rows = collections.Counter()
for line in open(sys.argv[1]):
    a = json.loads(line)
    parent = a["process"].get("parent", {}).get("executable", "?")
    rows[(a["rule"]["name"], a["process"].get("executable", "?"), parent, ",".join(a["pathwatch"]["operation"]),
          a["file"]["path"].replace(sys.argv[2], "$WORK"))] += 1
for (policy, program, parent, operation, path), n in sorted(rows.items()):
    print(f"{n:>4}  {policy:<22} {program:<30} (by {parent}) {operation} {path}")
print(f"workload: {sum(rows.values())} alerts of {len(rows)} kinds")
print(f"test result: {'FAILED' if rows else 'ok'}. {int(not rows)} passed; {int(bool(rows))} failed")
sys.exit(bool(rows))
PY
