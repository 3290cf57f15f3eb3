#!/usr/bin/env bash
# siem.sh [BINARY]   a thousand alerts from the sensor's own spool through a real Kafka and rsyslog into a real OpenSearch
# into which nobody wrote a mapping, a template or a pipeline: none is refused, none is there twice, every query finds
# exactly its alerts, and what is not there is told by a loss.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); cd "$here/.."
binary=${1:-target/$(uname -m)-unknown-linux-gnu/release/pathwatch}
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
topic=pathwatch-alerts node=replay
work=$(mktemp -d); started=()
finish() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  # Java writes while it stops: the directory goes after it.
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
say() { echo "siem: $*" >&2; }
die() {
  say "FAILED: $*"
  tail -n 5 "$work"/*.log >&2 || true
  tail -n 3 "$work"/log/{refused,unreadable} >&2 2>/dev/null || true
  echo "test result: FAILED. $passed passed; $((failed + 1)) failed;"
  exit 1
}
# until_true SECONDS PID COMMAND...: polls a condition that only a living process can make true.
until_true() {
  local end=$(($(date +%s) + $1)) pid=$2; shift 2
  until "$@"; do [ "$(date +%s)" -lt "$end" ] && kill -0 "$pid" 2>/dev/null || return 1; sleep 0.1; done
}
connects() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# java_ MEMORY JARS ARGUMENT...: replaces this shell, so that $! is java itself; elsewhere call it in brackets.
java_() { exec java -Xmx"$1" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$cache/$2/*" "${@:3}"; }
checks() { python3 "$here/siem/checks.py" --store "http://127.0.0.1:$http" --work "$work" "$@"; }
pages() { python3 "$here/siem/pages.py"; }
passed=0 failed=0
# judge COMMAND...: runs checks and adds up what they say.
judge() {
  local sums; sums=$("$@") || true
  [[ $sums =~ ^([0-9]+)\ ([0-9]+)$ ]] || die "$* broke off"
  passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
}
# arrives ID WHAT: a check of its own.
arrives() {
  if until_true 60 "$rsyslog" checks arrived "$1"; then passed=$((passed + 1)); say "ok: $2"
  else failed=$((failed + 1)); say "FAILED: $2"; fi
}
# On which nothing listens now; all at once, so that they differ.
read -r port controller < <(python3 -c '
import socket
held = [socket.socket() for _ in range(2)]
for one in held: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))')

kafka_starts() {
  cat > "$work/server.properties" <<P
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$work/kafka
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=4194304
P
  (java_ 128m kafka-4.3.1 kafka.tools.StorageTool format --standalone -t MkU3OEVBNTcwNTJENDM2Qg -c "$work/server.properties") \
    > "$work/format.log" 2>&1 || die "storage was not formatted"
  java_ 256m kafka-4.3.1 kafka.Kafka "$work/server.properties" > "$work/kafka.log" 2>&1 & kafka=$!; started+=("$kafka")
}

# Ends if another takes its port in the moment in which it has found it free.
opensearch_starts() {
  java_ 700m opensearch-2.19.1.0 -Djava.security.manager=allow org.codelibs.opensearch.runner.OpenSearchRunner -numOfNode 1 \
    -basePath "$work/opensearch" -clusterName "siem-$$" "$@" > "$work/opensearch.log" 2>&1 &
  opensearch=$!; started+=("$opensearch")
}

opensearch_runs() { grep -q 'Node *\] started' "$work/opensearch.log"; }

rsyslog_starts() {
  mkdir -p "$work/log" "$work/spool"
  # Its own directory is an argument of the machine's service; here it is this run's.
  { echo "global(workDirectory=\"$work/spool\")"; cat docs/siem/rsyslog.conf; } > "$work/rsyslog.conf"
  PATHWATCH_BROKER=127.0.0.1:$port PATHWATCH_TOPIC=$topic PATHWATCH_INDEX=pathwatch \
    PATHWATCH_STORE=http://127.0.0.1:$http PATHWATCH_LOG=$work/log \
    "$cache/rsyslog-8.2302.0/usr/sbin/rsyslogd" -n -f "$work/rsyslog.conf" -i "$work/rsyslog.pid" \
    -M "$cache/rsyslog-8.2302.0/modules" > "$work/rsyslog.log" 2>&1 &
  rsyslog=$!; started+=("$rsyslog")
}

# ship FIRST LAST: the sensor reads these lines of the recording, and ends when there is no $work/hold and Kafka has all.
ship() {
  { sed -n "$1,$2p" "$work/opens.jsonl"; while [ -e "$work/hold" ]; do sleep 0.1; done; } |
    timeout 180 "$binary" replay - --policies "$work/policies" --ship --config "$work/pathwatch.yaml" \
      > "$work/sensor-$1.log" 2>&1 & sensor=$!; started+=("$sensor")
}
sensor_config() {
  # Nothing but repeats is folded, but for the policy that has a rate of its own.
  local most='{per_second: 1000000, burst: 1000000}'
  cat > "$work/pathwatch.yaml" <<P
cluster: {name: lab}
node: {name: $node}
ship:
  sink: kafka
  state_dir: $work/state
  heartbeat: 1s
  storm: {window: 10m, policy: $most, node: $most}
  kafka: {brokers: ['127.0.0.1:$port'], topic: $topic, properties: {message.max.bytes: '65536'}}
P
}
# send TYPE: each line of standard input is one record.
send() {
  sed "s/^/$node\t/" | kcat -P -q -b "127.0.0.1:$port" -t "$topic" -K '\t' -H "ce_type=$1" -H content-type=application/json
}
# consumed: what is in the topic; with headers, and without.
consumed() {
  kcat -C -q -e -o beginning -b "127.0.0.1:$port" -t "$topic" -f '%h\t%s\n' > "$work/topic.tsv"
  cut -f 2 "$work/topic.tsv" > "$work/topic.jsonl"
}
# again: every fifth record of the topic as it is there, until there are 200.
again() {
  local type
  sed -E 's/^[^\t]*ce_type=([^,\t]*)[^\t]*/\1/' "$work/topic.tsv" |
    awk -F '\t' -v to="$work/again-" 'NR % 5 == 0 && n++ < 200 { print $2 > (to $1) }'
  for type in "$work"/again-*; do send "${type##*/again-}" < "$type"; done
}

began=$(date +%s)
sensor_config
python3 "$here/siem/recording.py" "$work"
opensearch_starts
# The sensor is there before its broker: it says so once it can.
touch "$work/hold"
ship 1 900
until_true 30 "$sensor" grep -q kafka_degraded "$work/sensor-1.log" || die "the sensor did not notice that Kafka is away"
kafka_starts
say "Kafka and OpenSearch start; the sensor waits for Kafka"
until_true 120 "$kafka" grep -q 'Kafka Server started' "$work/kafka.log" || die "Kafka did not start"
until_true 120 "$kafka" connects "$port" || die "Kafka does not answer"
(java_ 128m kafka-4.3.1 org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$port" --create --topic "$topic" --partitions 3) \
  > "$work/topic.log" 2>&1 || die "the topic was not made"
rm "$work/hold"
wait "$sensor" || die "the sensor did not send all"
# It starts anew, and says since when nobody looked.
ship 901 '$'
wait "$sensor" || die "the sensor did not send the rest"
consumed
again
consumed
# It takes the first free port from 9201 on and says which.
until_true 120 "$opensearch" opensearch_runs || { opensearch_starts; until_true 120 "$opensearch" opensearch_runs; } ||
  die "OpenSearch did not start"
http=$(sed -n 's/.*HttpServerTransport\].*publish_address {127\.0\.0\.1:\([0-9]*\)}.*/\1/p' "$work/opensearch.log")
say "$(wc -l < "$work/topic.jsonl") records are in the topic after $(($(date +%s) - began)) s; rsyslog carries them over"
rsyslog_starts
until_true 180 "$rsyslog" checks settled || die "the store has not answered for every record"
judge checks prove
[ "$failed" = 0 ] || die "the checks above did not hold"

# A check that cannot fail proves nothing: documents that nobody sent must make every one of them fail.
cp "$work/topic.jsonl" "$work/proved.jsonl"
checks plant | send dev.pathwatch.planted.v1
consumed
until_true 60 "$rsyslog" checks settled || die "the planted records got no answer"
cp "$work/proved.jsonl" "$work/topic.jsonl"
judge checks refute

# A store that answers "too many requests", as it does when its disk is nearly full, is asked again.
checks busy on
echo '{"event":{"id":"waits","kind":"alert"}}' | send dev.pathwatch.alert.v1
until_true 60 "$rsyslog" checks busy asked || die "a full store refused nothing"
checks busy off
arrives waits "a record that a full store put off arrives later"
# The same of one that is killed.
kill -KILL "$opensearch"; wait "$opensearch" 2>/dev/null || true
echo '{"event":{"id":"waits-too","kind":"alert"}}' | send dev.pathwatch.alert.v1
until_true 60 "$rsyslog" checks away || die "rsyslog did not notice that the store is away"
opensearch_starts -baseHttpPort "$((http - 1))"
arrives waits-too "a record for a store that is away arrives later"

judge checks template
judge pages
say "done after $(($(date +%s) - began)) s"
[ "$failed" = 0 ] && verdict=ok || verdict=FAILED
echo "test result: $verdict. $passed passed; $failed failed;"
[ "$failed" = 0 ]
