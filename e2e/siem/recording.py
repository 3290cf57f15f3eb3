"""recording.py DIR   writes opens.jsonl and policies/siem.yaml: 1,000 opens that are alerts, one of them too large for any
topic; repeats of some; some more than their policy's rate lets through.

Everything in it is what an attacker or an honest user may choose: names that look like dates (also as the first that
the index ever sees), 2,000 keys of labels, a path longer than an index searches, bytes that are no text, addresses.
"""
import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

DISTINCT, NAMESPACES = 1000, 10
# Numbers of opens that come three times; the open that no broker takes; opens of one program in one container.
REPEATED, TOO_LARGE, BURST = range(20), 11, range(2000, 2010)
START = datetime(2026, 11, 22, tzinfo=timezone.utc)
# The first record decides what an index takes each field for: each of its names looks like a date.
TODAY = "2026-11-22"
POLICIES = "".join(
    "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\n"
    f"metadata: {{name: '{name}'}}\nspec: {{severity: high, subjects: all, tags: ['{tag}'], {more}}}\n---\n"
    for name, tag, more in [
        (TODAY, TODAY, f"paths: ['/data/{TODAY}']"),
        ("siem", "plain", f"paths: [/data/**], exclude: ['/data/{TODAY}']"),
        (f"{TODAY}.burst", TODAY, "paths: [/burst/**], rateLimit: {perSecond: 1, burst: 1}"),
    ]
)
# By number of the open. The others are /data/<namespace>/file-<number>, or below /burst.
PATHS = {
    0: f"/data/{TODAY}",
    1: "/data/shadow",
    2: f"/data/passwd.{TODAY}",
    3: "/data/" + "long/" * 200 + "end",
    4: "/data/\\xff\\xfe",
    5: "/data/2026/11/22",
    6: "/data/2026-11-22T12:00:00Z",
    7: "/data/passwd.txt",
    8: "/data/\u65e5\u672c \"quoted\" \\\\n",
}

# Addresses may begin like a date, too.
ADDRESSES = {12: "2001:470:1:2::5"}
# What a store takes for a date and then cannot read costs its own record.
REQUESTED = {0: TODAY, 9: "2026/02/31", 10: "2026-13"}


def labels(number):
    """Two keys of its own for each pod, a quarter below the prefix of the recommended labels, and one of those."""
    prefix = "app.kubernetes.io/" if number % 4 == 0 else "team.example/"
    if number == 0:
        # As `key:value` it is a time of day.
        return {f"{TODAY}T12": "00"}
    own = {f"{prefix}key-{number}-{n}": f"value {n}" for n in range(2)}
    return own | {"app.kubernetes.io/version": TODAY if number % 7 == 0 else f"v{number}"}


def arguments(number):
    if number == TOO_LARGE:
        return ["cat", *("x" * 1000 for _ in range(100))]
    return [TODAY] if number == 0 else []


def an_open(number, pid=None):
    dated = number in (0, 9)
    namespace = TODAY if dated else f"team-{number % NAMESPACES}"
    uid = f"00000000-0000-4000-8000-{number:012}"
    top = "burst" if number in BURST else "data"
    container = BURST.start if number in BURST else number
    pid = 1000 + number if pid is None else pid
    process = {"pid": pid, "start_ns": 10**10 + number, "executable": "/usr/bin/cat", "args": arguments(number)}
    return {
        "time": (START + timedelta(seconds=60 * number)).isoformat().replace("+00:00", ".000000001Z"),
        "boot_id": "d2c1025b-5a45-44fe-8456-52608314bb86", "mode": "fexit", "cpu": 0, "sequence": pid,
        "pid": process["pid"], "tid": process["pid"], "start_ns": process["start_ns"], "cgroup_id": 100 + number,
        "uid": 0, "gid": 0, "comm": TODAY if dated else "cat", "flags": 0o100000, "result": 0,
        "file": {"inode": 12, "device": (254 << 20) + 1, "mode": 0o100640, "links": 1, "created": False},
        "path": PATHS.get(number, f"/{top}/{namespace}/file-{number}"), "home": None,
        "requested": REQUESTED.get(number), "status": [], "process": process,
        "ancestors": [{"pid": 1, "start_ns": 0, "executable": "/sbin/init"}], "cgroup_path": f"/kubepods/pod{uid}/c",
        "container": {
            "id": f"{container:064x}", "pod_uid": uid, "runtime": "containerd", "name": TODAY if dated else "main",
            "image": "registry.example/app", "image_tag": TODAY if dated else "v1",
        },
        "pod": {
            "namespace": namespace, "name": TODAY if dated else f"pod-{number}", "uid": uid, "ips": [ADDRESSES.get(number, "10.1.2.3")],
            "labels": labels(number), "owners": [{"kind": "ReplicaSet", "name": TODAY if dated else f"set-{number}"}],
            "namespace_labels": None,
        },
        "enrichment": "complete",
    }


def main():
    directory = Path(sys.argv[1])
    opens = [an_open(number) for number in range(DISTINCT)]
    keys = {key for an_open in opens for key in an_open["pod"]["labels"]}
    assert len(keys) == 2 * DISTINCT, len(keys)
    again = [an_open(number, 5000 + 10 * number + time) for time in range(2) for number in REPEATED]
    # The first goes first, and what is folded is in the part that the sensor reads before it starts anew.
    opens[REPEATED.stop:REPEATED.stop] = again + [an_open(number) for number in BURST]
    directory.joinpath("opens.jsonl").write_text("".join(json.dumps(an_open) + "\n" for an_open in opens))
    directory.joinpath("policies").mkdir(exist_ok=True)
    directory.joinpath("policies/siem.yaml").write_text(POLICIES)


main()
