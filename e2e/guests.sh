#!/usr/bin/env bash
# guests.sh TEST KERNEL...   [TEST_ARGUMENTS=...] runs the sensor's test TEST in a guest of each kernel, and for `this` on this machine; two at a
# time, because most of what a guest does it does on one CPU. Shows what each printed when it ends, and keeps it in
# target/guests/TEST-KERNEL.txt. Fails if one does.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 64; }

one() {
  local test=$1 kernel=$2 file=target/guests/$1-$2.txt by="'$PWD/e2e/guest.sh', '$2'" status=0
  if [ "$kernel" = this ]; then by="'env'"; [ "$(id -u)" = 0 ] || by="'sudo', '-E'"; fi
  cargo test --locked -p sensor --test "$test" --config "target.'cfg(unix)'.runner=[$by]" -- ${TEST_ARGUMENTS:---test-threads=1 --nocapture} \
    >"$file" 2>&1 || status=1
  sed $'/^METRIC\t/d' "$file"
  [ "$status" = 0 ] || echo "guests: $test failed on $kernel" >&2
  return "$status"
}

if [ "$1" = one ]; then one "$2" "$3"; exit; fi
test=$1; shift
mkdir -p target/guests
cargo test --locked -p sensor --test "$test" --no-run
printf '%s\n' "$@" | xargs -P 2 -I{} e2e/guests.sh one "$test" {}
