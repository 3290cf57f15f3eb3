#!/usr/bin/env bash
# cost.sh PATHWATCH KERNEL [OTHER...]   what watching costs an open, in instructions, in a guest of KERNEL, and what it costs with
# others' programs; and what the verifiers of all of them make of the programs: docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 64; }
release=$1 kernel=$2; shift 2
files=$PWD/target/guests/cost-files; rm -rf "$files"; mkdir -p "$files"
cp -a "${PATHWATCH_CACHE:?run it by make}/peers/root/." "$files/"
cp "$release" "$files/pathwatch"
# auditd looks for the group of its log.
echo root:x:0:0:root:/:/bin/sh >"$files/etc/passwd"; printf 'root:x:0:\nadm:x:4:\n' >"$files/etc/group"
run() { cargo test --locked -p sensor --test cost --config "target.'cfg(unix)'.runner=[$1]" -- "${@:2}"; }
logs=()
# in_guest LOG KERNEL ARG...: keeps what is printed there.
in_guest() { logs+=("$PWD/target/guests/$1"); run "'$PWD/e2e/guest.sh', '$2'" "${@:3}" | tee "$PWD/target/guests/$1"; }
# One CPU that takes a nanosecond for each instruction: the same again and again, which is seen by doing it again.
for nth in cost again; do
  GUEST_CPU='-smp 1 -icount shift=0' GUEST_FILES=$files GUEST_MEMORY=2048 in_guest "$nth-$kernel.txt" "$kernel"
done
for other in "$@"; do in_guest "verified-$other.txt" "$other" verify; done
run "'env'" report "$PWD/docs/performance.md" "${logs[@]}"
