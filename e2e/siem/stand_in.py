"""stand_in.py   a filter for records, until the sensor does both itself. Then this file goes.

1. No store may take a name for a date: a string that looks like one gets a space at its end, and `pathwatch.padded`
   names its field.
2. No field per label: `kubernetes.labels` holds the recommended labels only.
"""
import json
import re
import sys

# Wider than what OpenSearch 2.19 takes for a date: no miss in 17,665 mutated dates.
LIKE_A_DATE = re.compile(r"(?=.*[^0-9])[+-]?[0-9]{4,}[-+/:.,0-9]*([T ].*)?", re.DOTALL)
DATES = {"@timestamp", "event.created", "event.start", "event.end", "process.start", "process.parent.start"}
RECOMMENDED = {"app"} | {
    f"app_kubernetes_io_{name}" for name in ("name", "instance", "version", "component", "part-of", "managed-by")
}


def padded(value, field, found):
    if isinstance(value, dict):
        return {key: padded(inner, f"{field}.{key}" if field else key, found) for key, inner in value.items()}
    if isinstance(value, list):
        return [padded(inner, field, found) for inner in value]
    if isinstance(value, str) and field not in DATES and LIKE_A_DATE.fullmatch(value):
        found.add(field)
        return value + " "
    return value


def main():
    for line in sys.stdin:
        record, found = json.loads(line), set()
        labels = record.get("kubernetes", {}).get("labels", {})
        for key in labels.keys() - RECOMMENDED:
            del labels[key]
        record = padded(record, "", found)
        if found:
            record.setdefault("pathwatch", {})["padded"] = sorted(found)
        print(json.dumps(record, ensure_ascii=False))


main()
