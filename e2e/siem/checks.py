"""checks.py --store URL --work DIR COMMAND   what siem.sh asks about the store, rsyslog and the topic.

settled    exits 0 once the store has answered for every record of DIR/topic.jsonl
prove      every check must hold
plant      puts into the store what makes them false
refute     now every check must fail: a check that cannot fail proves nothing
template   the same records and worse under docs/siem/elastic-template.json, and without it
busy on|off|asked   the store answers 429, or no longer; exits 0 once rsyslog has been told so
away       exits 0 once rsyslog has seen that the store does not answer
arrived ID exits 0 once the store has that document

prove, refute and template close with a line `passed FAILED` for siem.sh on standard output.
"""
import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

INDEX, STREAM = "pathwatch", "logs-pathwatch.alert-default"
DOCS = Path(__file__).parents[2] / "docs/siem"
MAX_FIELDS = 400
# What a store may take for a date.
DATES = {
    "@timestamp", "event.created", "event.start", "event.end", "process.start", "pathwatch.summary.process.start"
}
TODAY = "2026-11-22"
# Begins like a date.
ADDRESS = "2001:470:1:2::5"
# Records that siem.sh sends twice.
AGAIN = 200


def records(text):
    return [json.loads(line) for line in text.splitlines()]


class Store:
    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None):
        lines = isinstance(body, str)
        data = body if lines else json.dumps(body) if body is not None else None
        request = urllib.request.Request(self.url + path, data and data.encode(), method=method)
        request.add_header("content-type", "application/x-ndjson" if lines else "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # So it says that it has none.
            if (method, error.code) == ("GET", 404):
                return {}
            raise RuntimeError(f"{method} {path}: {error.read().decode()[:500]}") from error

    def documents(self, index, query="*"):
        body = {"query": {"query_string": {"query": query}}, "size": 10000}
        self.call("POST", f"/{index}/_refresh")
        return {hit["_id"]: hit["_source"] for hit in self.call("POST", f"/{index}/_search", body)["hits"]["hits"]}

    def fields(self, index):
        """Every field that counts against the index's limit, by name, and its type."""
        (mapping,) = self.call("GET", f"/{index}/_mapping").values()
        found = {}

        def walk(properties, prefix):
            for name, field in properties.items():
                found[prefix + name] = field.get("type", "object")
                walk(field.get("properties", {}), f"{prefix}{name}.")
                walk(field.get("fields", {}), f"{prefix}{name}.")

        walk(mapping["mappings"].get("properties", {}), "")
        return found

    def create(self, index, documents):
        """Puts documents in, and returns what was refused."""
        lines = "".join(
            json.dumps({"create": {"_id": document["event"]["id"]}}) + "\n" + json.dumps(document) + "\n"
            for document in documents
        )
        answers = [item["create"] for item in self.call("POST", f"/{index}/_bulk", lines)["items"]]
        return [answer["error"]["reason"] for answer in answers if answer["status"] not in (201, 409)]


def statistics(work):
    """The newest counters of rsyslog's way into the store; none before it has begun."""
    path, newest = work / "log/statistics", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        # A line may be half written.
        if (at := line.find("{")) >= 0 and line.endswith("}"):
            counters = json.loads(line[at:])
            if counters["origin"] == "omelasticsearch":
                newest = counters
    return newest


def final_answers(counters):
    return sum(counters.get(f"response.{kind}", 0) for kind in ("success", "duplicate", "bad", "badargument", "other"))


def first_of_each(sent):
    return {record["event"]["id"]: record for record in reversed(sent)}


def quoted(text):
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def totals(heartbeat):
    """Every alert that fired is in one of these, in this order: fired, sent, repeats, beyond limits, lost."""
    beat = heartbeat["pathwatch"]["heartbeat"]
    return [beat["fired"], beat["shipped"] + beat["waiting"], beat["suppressed"], beat["limited"], beat["lost"]]


def told(documents):
    """The same from what the records themselves tell."""
    summaries = [d["pathwatch"]["summary"] for d in documents if "summary" in d["pathwatch"]]
    losses = [d["pathwatch"]["loss"] for d in documents if "loss" in d["pathwatch"]]
    alerts = sum(d["event"]["kind"] == "alert" for d in documents) - len(summaries)
    suppressed, limited = (sum(summary[what] for summary in summaries) for what in ("suppressed", "limited"))
    lost = sum(loss["count"] for loss in losses if loss["stage"] == "ship")
    return [alerts + suppressed + limited + lost, alerts, suppressed, limited, lost]


def gaps(documents):
    """Numbers that no document has, and those that the losses name."""
    present = {document["event"]["sequence"] for document in documents}
    ranges = [r for d in documents for r in d["pathwatch"].get("loss", {}).get("ranges", [])]
    named = set()
    for each in ranges:
        named |= set(range(each["first"], each["last"] + 1))
    return set(range(1, max(present) + 1)) - present, named


def types(page):
    """(event.kind, ce_type) as docs/siem/README.md says."""
    rows = re.findall(r"^\| `(\w+)` \| (`dev\.pathwatch.*?`) \|", page, re.MULTILINE)
    return {(kind, type_) for kind, cell in rows for type_ in re.findall(r"`([^`]+)`", cell)}


def checks(store, work):
    """(what holds, what must be, what is), from what the recording and the topic say."""
    opens, sent = records((work / "opens.jsonl").read_text()), records((work / "topic.jsonl").read_text())
    distinct, counters = first_of_each(sent), statistics(work)
    alerts = {id for id, record in distinct.items() if record["event"]["kind"] == "alert"}
    by_open = {distinct[id]["process"]["pid"]: id for id in alerts if "pid" in distinct[id].get("process", {})}

    def ids(predicate):
        """Of the alerts whose open is such: the recording says it, not the record. Folded opens have none."""
        return {by_open[an_open["pid"]] for an_open in opens if an_open["pid"] in by_open and predicate(an_open)}

    def with_summaries(of):
        """Those alerts and the summaries of their repeats."""
        first = lambda id: distinct[id]["pathwatch"].get("summary", {}).get("first_alert")
        return of | {id for id in alerts if first(id) in of}

    def query(name, text, expected):
        assert expected, name
        return f"{name} finds exactly its {len(expected)} records", expected, set(store.documents(INDEX, text))

    def path(name, number):
        text = f"file.path.keyword:{quoted(name)}"
        return query(f"file.path {name}", text, with_summaries(ids(lambda an_open: an_open["pid"] == 1000 + number)))

    left = [name for name in ("refused", "unreadable") if (work / "log" / name).exists()]
    trouble = sum(counters[f"response.{kind}"] for kind in ("bad", "badargument", "other", "bulkrejection"))
    yield (
        "nothing is refused: not in rsyslog's counters, its files, its log",
        (0, [], ""),
        (trouble, left, (work / "rsyslog.log").read_text()),
    )
    yield (
        f"{len(sent)} records are {len(distinct)} new ones and {len(sent) - len(distinct)} sent again",
        (len(sent) - len(distinct), len(sent), len(distinct), True),
        (counters["response.duplicate"], final_answers(counters), counters["response.success"],
         len(sent) - len(distinct) >= AGAIN),
    )
    lines = [line.partition("\t") for line in (work / "topic.tsv").read_text().splitlines()]
    yield (
        "docs/siem/README.md: ce_type tells the kind, and all kinds are there",
        types((DOCS / "README.md").read_text()),
        {(json.loads(record)["event"]["kind"], re.search("ce_type=([^,]*)", head)[1]) for head, _, record in lines},
    )
    stored = store.documents(INDEX)
    yield "the documents are the records, one for each id", distinct, stored
    beats = [document for document in stored.values() if document["event"]["kind"] == "metric"]
    count = totals(max(beats, key=lambda beat: beat["event"]["sequence"]))
    yield f"the last heartbeat knows of {len(opens)} opens", len(opens), count[0]
    yield f"its alerts, repeats, limited and lost, {count[1:]}, are what the documents tell", count, told(stored.values())
    missing, named = gaps(stored.values())
    name = f"no number is missing but {sorted(missing)[:9]}, and a loss names those"
    yield name, (missing, True), (named, len(named) > 0)
    yield query("event.kind:alert", "event.kind:alert", alerts)
    single = re.search(r"without summaries `(.*?)`", (DOCS / "opensearch.md").read_text())[1]
    yield query(f"docs/siem/opensearch.md: {single}", single, set(by_open.values()))
    metrics = {id for id, record in distinct.items() if record["event"]["kind"] == "metric"}
    yield query("event.kind:metric", "event.kind:metric", metrics)
    yield path("/data/2026-11-22", 0)
    yield path("/data/shadow", 1)
    yield path("/data/\u65e5\u672c \"quoted\" \\n", 8)
    namespace, start, end = 'orchestrator.namespace.keyword:"team-3"', "2026-11-22T03:00:00Z", "2026-11-22T05:00:00Z"
    of_team = ids(lambda an_open: an_open["pod"]["namespace"] == "team-3")
    within = ids(lambda an_open: start[:19] <= an_open["time"][:19] < end[:19])
    time = f'event.action:open AND @timestamp:["{start}" TO "{end}"}}'
    yield query("orchestrator.namespace", namespace, with_summaries(of_team))
    yield query("a time range", time, within)
    yield query("both at once", f"{time} AND {namespace}", of_team & within)
    # As a reader of the page would ask.
    asked = json.loads(re.search(r"```json\n(.*?)```", (DOCS / "opensearch.md").read_text(), re.DOTALL)[1])
    senders = store.call("POST", f"/{INDEX}/_search", asked)["aggregations"]["sender"]["buckets"]
    missing = [(bucket["doc_count"], bucket["missing"]["value"]) for bucket in senders]
    yield "docs/siem/opensearch.md: no sequence number is missing untold", [(len(distinct), 0)], missing
    fields = store.fields(INDEX)
    labels = sorted(name for name in fields if re.search(r"key-\d", name))
    dates = sorted(name for name, kind in fields.items() if kind == "date" and name not in DATES)
    yield f"{len(fields)} fields, below {MAX_FIELDS}", True, len(fields) < MAX_FIELDS
    yield "no label has a field of its own", [], labels
    yield "no name is taken for a date", [], dates
    written = [{k: v for k, v in store.call("GET", at).items() if v} for at in ("/_template", "/_index_template", "/_ingest/pipeline")]
    yield "nobody wrote a template or a pipeline", [{}, {}, {}], written


def judged(found, wanted=True):
    """Prints each check; `wanted` is whether it should hold. Returns how many passed and failed."""
    passed = failed = 0
    for name, expected, actual in found:
        good = (expected == actual) == wanted
        passed, failed = passed + good, failed + (not good)
        print(f"siem: {'ok' if good else 'FAILED'}: {'' if wanted else 'can fail: '}{name}", file=sys.stderr)
        if not good:
            print(f"  wanted{'' if wanted else ' anything but'} {str(expected)[:300]}", file=sys.stderr)
            print(f"  found {str(actual)[:300]}", file=sys.stderr)
    print(passed, failed)
    return failed == 0


def plant(store, work):
    """Documents that the queries find and nobody sent, with a field for each label and a name like a date."""
    sent = records((work / "topic.jsonl").read_text())
    copy = next(r for r in sent if r["event"]["kind"] == "alert" and r["file"]["name"] == "file-183")
    for number, (field, text) in enumerate([("kind", "metric"), ("kind", "alert")] + [
        ("path", path) for path in ("/data/2026-11-22", "/data/shadow", "/data/\u65e5\u672c \"quoted\" \\n")
    ]):
        document = json.loads(json.dumps(copy))
        document["event" if field == "kind" else "file"][field] = text
        document["event"].update(id=f"planted-{number}", sequence=5000)
        if text == "metric":
            counts = ("fired", "shipped", "waiting", "suppressed", "limited", "lost")
            document["pathwatch"]["heartbeat"] = dict.fromkeys(counts, 1)
        document["kubernetes"]["labels"] = {f"key-{n}": TODAY for n in range(MAX_FIELDS)}
        store.create(INDEX, [document])
    store.call("PUT", "/_index_template/planted", {"index_patterns": ["planted"]})
    # And for rsyslog: a record that cannot be stored, and one that is there already.
    refused = {"event": {"id": "planted-refused", "kind": "alert"}, "file": "no object"}
    print(json.dumps(refused), json.dumps(copy), sep="\n")


def template(store, work):
    distinct = first_of_each(records((work / "topic.jsonl").read_text()))
    # The worst order: what looks like a date comes first, and is not padded.
    bare = lambda value: (
        {k: bare(v) for k, v in value.items()} if isinstance(value, dict)
        else [bare(v) for v in value] if isinstance(value, list)
        else value.rstrip(" ") if isinstance(value, str) else value
    )
    worst = sorted(map(bare, distinct.values()), key=lambda record: TODAY not in record.get("file", {}).get("name", ""))
    written = json.loads((DOCS / "elastic-template.json").read_text())
    store.call("PUT", "/_index_template/logs-pathwatch", written)
    refused = store.create(f"{STREAM}-as-sent", distinct.values())
    yield "the template: nothing is refused as it was sent", [], refused
    refused = store.create(STREAM, worst)
    yield "the template: nothing is refused, even if dates come first", [], refused
    yield "the template: the documents are the records", {r["event"]["id"]: r for r in worst}, store.documents(STREAM)
    named = {r["event"]["id"] for r in worst if r.get("file", {}).get("name") == TODAY}
    yield f"the template: file.name {TODAY} is a name", named, set(store.documents(STREAM, f'file.name:"{TODAY}"'))
    fields = store.fields(STREAM)
    yield f"the template: {len(fields)} fields, below {MAX_FIELDS}", True, len(fields) < MAX_FIELDS
    kinds = {"@timestamp": "date", "file.path": "keyword", "event.severity": "long", "orchestrator.resource.ip": "ip",
             "pathwatch.summary.process.start": "date"}
    yield "the template: types are ECS's", kinds, {field: fields[field] for field in kinds}
    pods = {r["event"]["id"]: r.get("kubernetes", {}).get("pod", {}) for r in worst}
    known = {id for id, pod in pods.items() if pod.get("ip") == ADDRESS}
    found = set(store.documents(STREAM, f'orchestrator.resource.ip:"{ADDRESS}"'))
    yield f"the template: {ADDRESS} finds exactly its {len(known)} records", (known, True), (found, bool(found))
    refused = store.create("without-template", worst)
    yield f"without it {len(refused)} of {len(worst)} are refused: the check can fail", True, len(refused) > len(worst) / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    store, work, (command, *rest) = Store(given.store), given.work, given.command
    counters = statistics(work)
    if command == "settled":
        return final_answers(counters) >= len((work / "topic.jsonl").read_text().splitlines())
    if command == "prove":
        return judged(checks(store, work))
    if command == "plant":
        return plant(store, work) is None
    if command == "refute":
        return judged(checks(store, work), wanted=False)
    if command == "template":
        return judged(template(store, work))
    if command == "arrived":
        try:
            return rest[0] in store.documents(INDEX)
        except (OSError, RuntimeError):
            return False
    if command == "away":
        return sum(counters.get(f"failed.{what}", 0) for what in ("checkConn", "http", "httprequests")) > 0
    if rest == ["asked"]:
        return counters.get("response.bulkrejection", 0) > 0
    block = {"index.blocks.read_only_allow_delete": rest == ["on"] or None}
    return store.call("PUT", f"/{INDEX}/_settings", block)["acknowledged"]


sys.exit(0 if main() else 1)
