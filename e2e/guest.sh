#!/usr/bin/env bash
# guest.sh fetch KERNEL            downloads and unpacks a Debian kernel (5.10, 6.1, 6.12, 7; 6.1-arm64, 6.12-arm64)
# guest.sh KERNEL BINARY [ARG...]  boots it in QEMU and runs the static BINARY there, as root, under busybox
#   GUEST_TIMEOUT=900  seconds until a hang is killed    GUEST_MEMORY=1024  MiB    GUEST_CMDLINE=  more kernel arguments
#   GUEST_CPU='-smp 2'  arguments of QEMU's about CPUs      GUEST_FILES=DIR  what else is in the guest's root
# Relays the guest's output; exits with BINARY's status, 124 after a hang, 125 if the guest died before it ended.
# It is made to be a cargo runner: cargo test --config "target.'cfg(unix)'.runner=['e2e/guest.sh','6.12']"
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}

# ABI numbers move with every security update and old ones vanish, so the newest match in the archive is taken.
declare -A packages=(
  [5.10]='^linux-image-5\.10\.0-[0-9]+-cloud-amd64$'
  [6.1]='^linux-image-6\.1\.0-[0-9]+-cloud-amd64$'
  [6.12]='^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64$'
  [7]='^linux-binary-7\.[0-9.]+\+deb13-cloud-amd64$'
  [6.1-arm64]='^linux-image-6\.1\.0-[0-9]+-cloud-arm64$'
  [6.12-arm64]='^linux-image-6\.12\.[0-9]+\+deb12-cloud-arm64$'
)

# What a guest needs to be a Kubernetes node: a disk, a network, containers.
MODULES="virtio_blk failover net_failover virtio_net llc stp bridge veth overlay"

fetch() {
  local kernel=$1 dir=$cache/kernels/$1 pattern=${packages[$1]:-} package work module found
  [ -n "$pattern" ] || { echo "guest: no kernel '$kernel'; known: ${!packages[*]}" >&2; exit 64; }
  [ -e "$dir/modules/.complete" ] && return
  local apt=$cache/apt modules=$MODULES
  case $kernel in *-arm64) apt=$cache/apt-arm64 modules=overlay; export APT_ARCHITECTURE=arm64 ;; esac
  "$here/apt-root.sh" "$apt" update
  package=$("$here/apt-root.sh" "$apt" names linux- | grep -E "$pattern" | sort -V | tail -n 1)
  [ -n "$package" ] || { echo "guest: the archive has no package like $pattern" >&2; exit 1; }
  echo "setup: fetching the guest kernel $package" >&2
  work=$dir.new; rm -rf "$work"; mkdir -p "$work"
  # From 7 on the modules are a package of their own.
  local debs=("$package"); [ "${package#linux-binary-}" = "$package" ] || debs+=("linux-modules-${package#linux-binary-}")
  (cd "$work" && "$here/apt-root.sh" "$apt" download "${debs[@]}" && for deb in ./*.deb; do dpkg -x "$deb" .; done)
  mv "$(find "$work" -name 'vmlinuz*' -type f | head -n 1)" "$work.vmlinuz"
  mkdir -p "$work.modules"
  for module in $modules; do
    found=$(find "$work" -name "$module.ko*" -type f | head -n 1)
    [ -n "$found" ] || { echo "guest: $package has no module $module" >&2; exit 1; }
    case $found in *.xz) xz -dc "$found" >"$work.modules/$module.ko" ;; *) cp "$found" "$work.modules/$module.ko" ;; esac
  done
  touch "$work.modules/.complete"
  rm -rf "$work" "$dir"; mkdir -p "$dir"; mv "$work.vmlinuz" "$dir/vmlinuz"; mv "$work.modules" "$dir/modules"
}

[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 64; }
if [ "$1" = fetch ]; then fetch "$2"; exit; fi
kernel=$1 binary=$2; shift 2
fetch "$kernel"
# Of what machine it is, and what is different there.
case $kernel in
  *-arm64) busybox=$cache/busybox-arm64 console=ttyAMA0 machine=(qemu-system-aarch64 -M virt -cpu neoverse-n1) ;;
  *) busybox=$cache/busybox console=ttyS0 machine=(qemu-system-x86_64 -cpu max) ;;
esac
# arm64 has no fexit before 6.4 (DYNAMIC_FTRACE_WITH_DIRECT_CALLS).
case $kernel in 6.1-arm64) require= ;; *) require=PATHWATCH_REQUIRE_FEXIT=1 ;; esac

work=$(mktemp -d "${TMPDIR:-/tmp}/pathwatch-guest.XXXXXX"); trap 'rm -rf "$work"' EXIT
root=$work/root; mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp}
cp "$busybox" "$root/bin/busybox"
cp "$binary" "$root/bin/workload"
cp "$cache/kernels/$kernel/modules/overlay.ko" "$root/"
[ -z "${GUEST_FILES:-}" ] || cp -a "$GUEST_FILES/." "$root/"
# The first root cannot be left by pivot_root(2); a system's own root can.
cat > "$root/init" <<'S'
#!/bin/busybox sh
/bin/busybox mkdir /root
/bin/busybox mount -t tmpfs root /root
for name in /*; do [ $name = /root ] || /bin/busybox cp -a $name /root/; done
exec /bin/busybox switch_root /root /start
S
chmod +x "$root/init"
cat > "$root/start" <<S
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ RUST_BACKTRACE=1 $require
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracing /sys/kernel/tracing
mount -t tmpfs tmp /tmp
ip link set lo up
insmod /overlay.ko
echo "GUEST-UP \$(uname -r)"
/bin/workload$([ $# -eq 0 ] || printf ' %q' "$@")
echo "GUEST-EXIT \$?"
poweroff -f
S
chmod +x "$root/start"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initrd"

run() {
  timeout --foreground "${GUEST_TIMEOUT:-900}" "${machine[@]}" -accel tcg -m "${GUEST_MEMORY:-1024}" ${GUEST_CPU:--smp 2} \
    -nographic -no-reboot -nic none -kernel "$cache/kernels/$kernel/vmlinuz" -initrd "$work/initrd" \
    -append "console=$console quiet loglevel=1 panic=-1 rdinit=/init ${GUEST_CMDLINE:-}" </dev/null 2>&1
  echo "QEMU-EXIT $?"
}
up= status=125 before=() int3=
while IFS= read -r line; do
  line=${line//$'\r'/}
  case $line in *"Oops: int3"*) int3=1 ;; esac
  case $line in
    *GUEST-UP*) up=1; echo "guest $kernel: uname -r: ${line##*GUEST-UP }" ;;
    *GUEST-EXIT*) status=${line##*GUEST-EXIT } ;;
    "QEMU-EXIT 124") [ "$status" != 125 ] || { status=124; echo "guest $kernel: no end after ${GUEST_TIMEOUT:-900} s, killed" >&2; } ;;
    "QEMU-EXIT "*) ;;
    *) if [ -n "$up" ]; then printf '%s\n' "$line"; else before+=("$line"); fi ;;
  esac
done < <(run)
[ -n "$up" ] || { printf '%s\n' "${before[@]}" >&2; echo "guest $kernel: did not boot" >&2; }
# QEMU's emulation of two CPUs seldom runs the breakpoint that the kernel puts into a function while it patches it, after
# the kernel has taken it away again; on a real CPU that cannot be.
if [ -n "$int3" ] && [ -z "${GUEST_AGAIN:-}" ]; then
  echo "guest $kernel: the emulator ran a breakpoint of the kernel's own (Oops: int3); once more" >&2
  rm -rf "$work"; GUEST_AGAIN=1 exec "$0" "$kernel" "$binary" "$@"
fi
exit "$status"
