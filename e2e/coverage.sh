#!/usr/bin/env bash
# coverage.sh KERNEL...   every way to reach a file that e2e/attack knows of, in a guest of each kernel and on this machine,
# and docs/coverage.md of what they say. Fails if an answer is wrong, or if an open at full speed is neither seen nor counted.
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/coverage; mkdir -p "$out"
cargo test --locked -p sensor --test coverage --no-run
runner() { printf "target.'cfg(unix)'.runner=[%s]" "$1"; }
run() { cargo test --locked -p sensor --test coverage --config "$(runner "$1")" -- "${@:2}"; }
files=() failed=0
sudo=; [ "$(id -u)" = 0 ] || sudo="'sudo', '-E'"
for kernel in "$@" this; do
  case $kernel in this) by=${sudo:-"'env'"} ;; *) by="'$PWD/e2e/guest.sh', '$kernel'" ;; esac
  status=0; run "$by" > "$out/$kernel.txt" 2>&1 || status=$?
  files+=("$PWD/$out/$kernel.txt")
  grep '^coverage:' "$out/$kernel.txt" | sed "s/^/$kernel: /" || true
  if [ "$status" = 0 ]; then echo "test result: ok. 1 passed; 0 failed (coverage on $kernel)"; else
    failed=1; grep -E $'\tWRONG\t|panicked|assertion' "$out/$kernel.txt" || tail -30 "$out/$kernel.txt"
    echo "test result: FAILED. 0 passed; 1 failed (coverage on $kernel)"
  fi
done
[ "$failed" = 0 ] || exit 1
before=$(cat docs/coverage.md 2>/dev/null || true)
run "'env'" table "$PWD/docs/coverage.md" "${files[@]}"
# Another machine's own kernel may show other things; what the guests say is the same everywhere.
columns() { awk -F'|' '/^\|/ { for (n = 2; n < NF - 1; n++) printf "%s|", $n; print "" }' <<<"$1"; }
if [ "$(columns "$before")" != "$(columns "$(cat docs/coverage.md)")" ]; then
  echo "coverage: docs/coverage.md has changed; commit it, if it is meant so"
fi
# Where the kernel may interrupt a program, it skips runs of it: that is loss, and must add up.
GUEST_CMDLINE=preempt=full run "'$PWD/e2e/guest.sh', '6.12'" conserve
echo "test result: ok. 1 passed; 0 failed (every open is received or counted as lost)"
