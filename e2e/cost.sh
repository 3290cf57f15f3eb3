#!/usr/bin/env bash
# cost.sh KERNEL...   what watching costs an open, in instructions, in a guest of each kernel: docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2s/^# \{0,1\}//p' "$0" >&2; exit 64; }
mkdir -p target/guests
run() { cargo test --locked -p sensor --test cost --config "target.'cfg(unix)'.runner=[$1]" -- "${@:2}"; }
files=()
for kernel in "$@"; do
  file=$PWD/target/guests/cost-$kernel.txt; files+=("$file")
  # One CPU that takes a nanosecond for each instruction: the same again and again.
  GUEST_CPU='-smp 1 -icount shift=0' run "'$PWD/e2e/guest.sh', '$kernel'" | tee "$file"
done
run "'env'" table "$PWD/docs/performance.md" "${files[@]}"
