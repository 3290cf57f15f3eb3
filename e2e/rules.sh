#!/usr/bin/env bash
# rules.sh   the chart's alert rules held to prometheus/rules_test.yaml by promtool, and each rule shown to be needed:
# without it the tests fail
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
promtool=$cache/bin/promtool rules=$here/../charts/pathwatch/files/rules.yaml
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cp "$here/prometheus/rules_test.yaml" "$rules" "$work"
"$promtool" check rules "$work/rules.yaml"
"$promtool" test rules "$work/rules_test.yaml"
passed=1
for alert in $(awk '/- alert:/ { print $3 }' "$rules"); do
  # One that can never fire.
  awk -v alert="$alert" '{ print } $0 ~ "- alert: " alert "$" { getline; sub(/expr: /, "expr: absent(vector(1)) and "); print }' "$rules" >"$work/rules.yaml"
  if "$promtool" test rules "$work/rules_test.yaml" >"$work/out" 2>&1; then
    echo "rules: FAILED: no test needs $alert"; echo "test result: FAILED. $passed passed; 1 failed"; exit 1
  fi
  echo "rules: ok: $alert is tested"; passed=$((passed + 1))
done
echo "test result: ok. $passed passed; 0 failed"
