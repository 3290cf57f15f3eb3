#!/usr/bin/env bash
# first-light.sh   the README's journey by its own door: make run, cat /etc/shadow, one alert within a second; JSON
# lines in a pipe, columns on a terminal, and an end when the reader leaves.
set -euo pipefail
# This make is the user's own, not a part of the one that may have started this script.
unset MAKELEVEL MAKEFLAGS MFLAGS
cd "$(dirname "$0")/.."
work=$(mktemp -d); started=()
finish() { for pid in "${started[@]}"; do $sudo kill "$pid" 2>/dev/null || true; done; rm -rf "$work"; }
trap finish EXIT
passed=0
ok() { passed=$((passed + 1)); echo "first-light: ok: $*"; }
die() { echo "first-light: FAILED: $*" >&2; cat "$work"/*.log >&2 || true; echo "test result: FAILED. $passed passed; 1 failed"; exit 1; }
# until_true SECONDS COMMAND...: polls a condition.
until_true() { local end=$(($(date +%s) + $1)); shift; until "$@"; do [ "$(date +%s)" -lt "$end" ] || return 1; sleep 0.02; done; }
now() { date +%s%N; }
shadow() { $sudo cat /etc/shadow >/dev/null; }
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo

# Set-up and build first, so that the times below are the sensor's.
make release >&2

make run >"$work/out" 2>"$work/run.log" & run=$!; started+=("$run")
until_true 60 grep -q 'capture is attached' "$work/run.log" || die "the sensor did not start"
began=$(now); shadow
until_true 10 grep -q '"name":"cat"' "$work/out" || die "no alert"
took=$((($(now) - began) / 1000000))
[ "$took" -lt 1000 ] || die "the alert took $took ms"
kill -TERM "$run"; wait "$run" || true
until_true 20 grep -q totals "$work/run.log" || die "make run did not end in order"
python3 - "$work/out" <<'P' || die "not one alert for one cat"
import json, sys
alerts = [json.loads(line) for line in open(sys.argv[1])]
# sudo, where it is needed, reads the file too.
cats = [a for a in alerts if a["process"]["name"] == "cat"]
assert len(cats) == 1 and cats[0]["file"]["path"] == "/etc/shadow", alerts
P
ok "one JSON line for one cat, after $took ms"

(make run 2>"$work/head.log" | head -1 >"$work/head") & pipe=$!; started+=("$pipe")
until_true 60 grep -q 'capture is attached' "$work/head.log" || die "the sensor did not start in a pipe"
shadow
until_true 20 bash -c "! kill -0 $pipe 2>/dev/null" || die "make run | head -1 does not end"
python3 -c 'import json,sys; json.load(open(sys.argv[1]))' "$work/head" || die "head -1 is not one JSON object"
ok "make run 2>/dev/null | head -1 is one JSON object and ends"

# A terminal whose keyboard is a pipe.
mkfifo "$work/keys"; exec 7<>"$work/keys"
script -qefc 'make run' "$work/terminal" >/dev/null 2>&1 <"$work/keys" & terminal=$!; started+=("$terminal")
until_true 60 grep -q 'capture is attached' "$work/terminal" || die "the sensor did not start on a terminal"
shadow
until_true 10 grep -q 'shadow-read' "$work/terminal" || die "no alert on the terminal"
until_true 10 grep -q 'by cat\[' "$work/terminal" || die "the alert on the terminal does not say who"
grep -q $'\x1b\[' "$work/terminal" || die "no colour on a terminal"
printf '\003' >&7
until_true 20 bash -c "! kill -0 $terminal 2>/dev/null" || die "ctrl-c does not end it"
grep -q totals "$work/terminal" || die "ctrl-c does not end it in order"
ok "columns and colour on a terminal, and an end on ctrl-c"
make install DESTDIR="$work/root" >"$work/install.log" 2>&1 || die "make install"
echo '# changed' >>"$work/root/etc/pathwatch/pathwatch.yaml"
make install DESTDIR="$work/root" >"$work/install.log" 2>&1 || die "make install a second time"
grep -q '# changed' "$work/root/etc/pathwatch/pathwatch.yaml" || die "make install takes what was configured away"
local=$work/root/usr/local unit=$work/root/usr/local/lib/systemd/system/pathwatch.service
man -l "$local/share/man/man1/pathwatch-run.1" >"$work/page" || die "no page for man(1)"
grep -q -- '--policies' "$work/page" || die "a man page without its options"
bash -c 'source "$1" && complete -p pathwatch' - "$local/share/bash-completion/completions/pathwatch" >/dev/null || die "no completions"
# What systemd says of the unit is nothing, and of one with a mistake something.
sed "s|=/usr/local|=$local|" "$unit" >"$work/pathwatch.service"
said() { systemd-analyze --man=no verify "$work/pathwatch.service" 2>&1; }
[ -z "$(said)" ] || die "systemd says of the unit: $(said)"
sed -i 's/^NoNewPrivileges/NoNewPrivilege/' "$work/pathwatch.service"
[ -n "$(said)" ] || die "a mistake in the unit goes unnoticed"
# What it starts works with its settings and policies, and with no right but those that it names.
sed -i "s|/usr/local|$local|; s|/etc/|$work/root/etc/|" "$work/root/etc/pathwatch/pathwatch.yaml"
read -ra words < <(sed -n 's/^ExecStart=//p' "$work/pathwatch.service")
rights=$(sed -n 's/^CapabilityBoundingSet=//; T; s/CAP_/+/g; s/ /,/g; p' "$work/pathwatch.service" | tr A-Z a-z)
own=(PATHWATCH__SHIP__STATE_DIR="$work/state" PATHWATCH__HTTP__SOCKET="$work/socket")
$sudo env "${own[@]}" setpriv --bounding-set "-all,$rights" --inh-caps "-all" --no-new-privs \
  "${words[@]/#\/etc/$work/root/etc}" >"$work/service" 2>"$work/service.log" & service=$!; started+=("$service")
until_true 60 grep -q 'capture is attached' "$work/service.log" || die "what the unit starts does not start"
shadow
until_true 10 grep -q '"name":"cat"' "$work/service" || die "no alert of the service's"
tested() { $sudo env "${own[@]}" "$local/bin/pathwatch" status --json | jq -e '[.self_test.cases[]? | .answer] | length > 0 and (map(select(. == "wrong" or . == "lost")) == [])'; }
until_true 60 tested >/dev/null 2>&1 || die "the self-test of the service's says nothing, or something is wrong"
$sudo kill -TERM "$service"; wait "$service" || die "the service does not end in order"
ok "make install: binary, unit, policies, man page and completions; the unit's capabilities are enough"
echo "test result: ok. $passed passed; 0 failed"
