#!/usr/bin/env bash
# precision.sh PATHWATCH   how many opens of ordinary work the kernel's filter lets pass under the whole policy library, and why: in a
# guest with Debian's own file system, packages are installed and removed by apt, and a Rust program is built with what it
# depends on. Prints a table. Fails if more than SHARE percent pass (default 5), or if nothing does.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 1 ] && [ "$(id -u)" = 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; echo "precision: needs root" >&2; exit 64; }
sensor=$1 cache=${PATHWATCH_CACHE:?run it by make} kernel=6.12 out=target/guests/precision.txt
disk=$cache/precision.ext4
# What is installed in the guest, from packages that are on its disk.
packages="git nginx-light python3 sqlite3 logrotate cron openssh-server"

# make_disk: Debian, the Rust that builds this project, and a program to build.
make_disk() {
  local root=$cache/precision.new toolchain
  trap 'rm -rf "$root" "$disk.new"' EXIT
  echo "setup: making Debian's file system for a guest (about 3 minutes)" >&2
  rm -rf "$root"
  e2e/apt-root.sh "$cache/apt" update
  head -n 1 "$cache/apt/etc/apt/sources.list" | mmdebstrap --quiet --variant=minbase --include=gcc,libc6-dev,bpftool,procps bookworm "$root" - >&2
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  chroot "$root" apt-get -qq update
  chroot "$root" apt-get -qq install -y --download-only --no-install-recommends $packages >&2
  toolchain=$(rustc --print sysroot)
  mkdir -p "$root/opt/rust" "$root/work"
  tar -C "$toolchain" --exclude share/doc --exclude lib/rustlib/src -c bin lib libexec 2>/dev/null | tar -x -C "$root/opt/rust"
  (cd "$root/work" && HOME=$HOME cargo -q init --name built && cargo -q add regex@1 serde_json@1 serde@1 --features serde/derive &&
    cargo -q vendor --locked --versioned-dirs >vendor.toml 2>/dev/null || cargo -q vendor --versioned-dirs >vendor.toml
    mkdir -p .cargo && mv vendor.toml .cargo/config.toml) >&2
  mke2fs -q -t ext4 -d "$root" "$disk.new" "$(($(du -sm "$root" | cut -f1) + 2500))m"
  mv "$disk.new" "$disk"; rm -rf "$root"; trap - EXIT
}
[ -e "$disk" ] || make_disk

files=$(mktemp -d); trap 'rm -rf "$files"' EXIT
cp "$sensor" "$files/pathwatch"; cp -r policies "$files/policies"; cp "$cache/kernels/$kernel/modules/virtio_blk.ko" "$cache/busybox" "$files/"
cat >"$files/begin" <<'S'
#!/bin/busybox sh
insmod /virtio_blk.ko && mkdir -p /disk && mount -t ext4 /dev/vda /disk && cd /disk || exit 1
mkdir -p old opt/policies && cp /pathwatch opt/ && cp -r /policies/* opt/policies/ && cp /work.sh opt/ && cp /busybox bin/busybox
ln -s busybox bin/poweroff; ln -s busybox bin/wget
for name in proc sys dev; do mount --move /$name $name; done
mount -t tmpfs run run; mount -t tmpfs tmp tmp
pivot_root . old && umount -l /old
exec /bin/bash /opt/work.sh
S
cat >"$files/work.sh" <<'S'
set -eu
export PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive
echo 1 >/proc/sys/kernel/bpf_stats_enabled
# Services are not started by what installs them: there is no init.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
PATHWATCH__CAPTURE__SELF_TEST=false PATHWATCH__HTTP__LISTEN=127.0.0.1:9753 /opt/pathwatch run --policies /opt/policies >/tmp/alerts 2>/tmp/log & sensor=$!
n=0; until grep -q 'capture is attached' /tmp/log; do n=$((n + 1)); [ $n -lt 600 ] || { cat /tmp/log; exit 1; }; sleep 0.1; done
# Until enrichment has looked, everything passes.
passed() { wget -q -O - http://127.0.0.1:9753/metrics | grep 'reason="everything"' | cut -d' ' -f2; }
n=0; before=-1; until now=$(passed) && [ "$now" = "$before" ]; do before=$now; n=$((n + 1)); [ $n -lt 300 ] || exit 1; sleep 2; done
# tell WHAT: opens so far, and what has become of them.
tell() {
  local opens
  opens=$(bpftool prog show name do_filp_open | grep -o 'run_cnt [0-9]*' | cut -d' ' -f2)
  echo "PRECISION $1 opens $opens"
  wget -q -O - http://127.0.0.1:9753/metrics | grep -E '^pathwatch_(capture_passed|matcher_events|capture_lost)_total' | sed "s/^/PRECISION $1 /"
}
tell start
apt-get -qq install -y --no-download --no-install-recommends PACKAGES >/tmp/apt 2>&1 || { tail -20 /tmp/apt; exit 1; }
apt-get -qq purge -y nginx-light sqlite3 >>/tmp/apt 2>&1
tell apt
cd /work; cargo build --offline 2>&1 | tail -3
tell build
kill $sensor; wait $sensor
echo "PRECISION end alerts $(wc -l </tmp/alerts)"; head -c 2000 /tmp/alerts; tail -3 /tmp/log
S
sed -i "s/PACKAGES/$packages/" "$files/work.sh"
chmod +x "$files/begin"; mkdir -p target/guests
GUEST_CPU="-smp 2 -drive file=$disk,format=raw,if=virtio,snapshot=on" GUEST_FILES=$files GUEST_MEMORY=3072 GUEST_TIMEOUT=1500 \
  e2e/guest.sh $kernel "$files/begin" | tee "$out"
python3 - "$out" "${SHARE:-5}" <<'PY'
import collections, re, sys
figures = collections.defaultdict(dict)
for line in open(sys.argv[1]):
    if match := re.match(r"PRECISION (start|apt|build) (?:opens|\S*?(?:reason|outcome)=\"(\w+)\"}) (\d+)", line):
        figures[match[1]][match[2] or "opens"] = int(match[3])
names = [name for name in figures["start"] if name != "unmatched"]
print(f"{'':<8}" + "".join(f"{name:>12}" for name in names) + f"{'passed':>12}")
shares = []
for what, before in (("apt", "start"), ("build", "apt"), ("build", "start")):
    row = {name: figures[what][name] - figures[before][name] for name in names}
    passed = sum(row.values()) - row["opens"] - row["matched"]
    shares.append(100 * passed / row["opens"])
    title = "all" if before == "start" and what == "build" else what
    print(f"{title:<8}" + "".join(f"{row[name]:>12}" for name in names) + f"{shares[-1]:>10.2f} %")
ok = 0 < shares[-1] <= float(sys.argv[2])
print(f"test result: {'ok' if ok else 'FAILED'}. {int(ok)} passed; {int(not ok)} failed")
sys.exit(not ok)
PY
