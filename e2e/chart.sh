#!/usr/bin/env bash
# chart.sh BINARY            the chart without a cluster: lint by both helms, renders as committed, what is generated fresh
# UPDATE=1 chart.sh BINARY   writes the renders and what is generated
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
binary=$1 chart=charts/pathwatch passed=0
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
ok() { passed=$((passed + 1)); echo "chart: ok: $*"; }
die() { echo "chart: FAILED: $*"; echo "test result: FAILED. $passed passed; 1 failed"; exit 1; }

# generated FILE COMMAND...: the file is what the command prints.
generated() {
  local file=$1; shift
  "$@" >"$work/fresh"
  if [ -n "${UPDATE:-}" ]; then cp "$work/fresh" "$file"; fi
  diff -u "$file" "$work/fresh" || die "$file is not fresh; run: UPDATE=1 e2e/chart.sh $binary"
  ok "$file is fresh"
}
generated $chart/files/crds.yaml "$binary" crd
generated $chart/README.md e2e/chart-readme.py $chart

for values in $chart/ci/*-values.yaml; do
  name=$(basename "$values" -values.yaml) golden=$chart/ci/golden/$(basename "$values" -values.yaml).yaml
  for major in 4 3; do
    "$cache/cluster/helm$major" lint --strict --quiet $chart -f "$values" >"$work/lint" 2>&1 || { cat "$work/lint"; die "helm $major lint with $name"; }
    # Kubernetes of the oldest and of a new version.
    for kubernetes in 1.28.0 1.36.4; do
      "$cache/cluster/helm$major" template pathwatch $chart -n pathwatch -f "$values" --kube-version $kubernetes >"$work/out" ||
        die "helm $major template with $name for Kubernetes $kubernetes"
      # They differ in empty lines between documents.
      sed '/^ *$/d' "$work/out" >"$work/$major-$kubernetes"
    done
  done
  for kubernetes in 1.28.0 1.36.4; do
    diff -u "$work/4-$kubernetes" "$work/3-$kubernetes" || die "helm 3 and 4 render $name differently for Kubernetes $kubernetes"
  done
  # The definitions have a check of their own.
  "$cache/cluster/helm4" template pathwatch $chart -n pathwatch -f "$values" --kube-version 1.36.4 --set crds.enabled=false >"$work/render"
  [ -z "${UPDATE:-}" ] || { mkdir -p "$(dirname "$golden")"; cp "$work/render" "$golden"; }
  diff -u "$golden" "$work/render" || die "$name renders otherwise than committed; if that is meant: UPDATE=1 e2e/chart.sh $binary"
  ok "$name: linted and rendered by helm 3 and 4, as committed"
done
e2e/chart-unit.py "$cache/cluster/helm4" $chart || die "a unit test"
passed=$((passed + 1))
echo "test result: ok. $passed passed; 0 failed"
