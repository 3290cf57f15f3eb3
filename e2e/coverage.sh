#!/usr/bin/env bash
# coverage.sh KERNEL...   `pathwatch doctor`: every way to reach a file that e2e/attack knows of, in a guest of each kernel and on this
# machine, and docs/coverage.md and docs/doctor.md of what they say. Fails if an answer is wrong, or if an open at full speed is neither seen nor counted.
set -euo pipefail
cd "$(dirname "$0")/.."
e2e/guests.sh coverage "$@" this | grep -v -E $'^(COVERAGE|DOCTOR)\t'
run() { cargo test --locked -p sensor --test coverage --config "target.'cfg(unix)'.runner=['$1']" -- "${@:2}"; }
# What lockdown forbids takes a boot of its own.
locked=$PWD/target/guests/coverage-locked.txt
GUEST_CMDLINE=lockdown=confidentiality run "$PWD/e2e/guest.sh', '6.12" locked-down | tee "$locked" | grep -v $'^DOCTOR\t'
files=("$locked"); for kernel in "$@" this; do files+=("$PWD/target/guests/coverage-$kernel.txt"); done
before=$(cat docs/coverage.md 2>/dev/null || true)
run env table "$PWD"/docs/{coverage,doctor}.md "${files[@]}"
# Another machine's own kernel may show other things; what the guests say is the same everywhere.
columns() { awk -F'|' '/^\|/ { for (n = 2; n < NF - 1; n++) printf "%s|", $n; print "" }' <<<"$1"; }
if [ "$(columns "$before")" != "$(columns "$(cat docs/coverage.md)")" ]; then
  echo "coverage: docs/coverage.md has changed; commit it, if it is meant so"
fi
# Where the kernel may interrupt a program, it skips runs of it: that is loss, and must add up.
GUEST_CMDLINE=preempt=full run "$PWD/e2e/guest.sh', '6.12" conserve | tee target/guests/coverage-conserve.txt | grep -v $'^METRIC\t'
