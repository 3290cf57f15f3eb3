"""recording.py DIR   writes opens.jsonl, 1,200 opens of which 1,000 are distinct, and policies/siem.yaml,
and others/TYPE, one record of each type that is no alert.

Everything in it is what an attacker or an honest user may choose: names that look like dates (also as the first that
the index ever sees), 2,000 keys of labels, a path longer than an index searches, bytes that are no text.
"""
import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

DISTINCT, AGAIN, NAMESPACES = 1000, 200, 10
START = datetime(2026, 11, 22, tzinfo=timezone.utc)
OTHERS = [
    ("metric", 1, "dev.pathwatch.heartbeat.v1"), ("state", 2, "dev.pathwatch.health.v1"),
    ("pipeline_error", 3, "dev.pathwatch.loss.v1"),
]
# The first record decides what an index takes each field for: each of its names looks like a date.
TODAY = "2026-11-22"
POLICIES = "".join(
    "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\n"
    f"metadata: {{name: '{name}'}}\nspec: {{severity: high, subjects: all, tags: ['{tag}'], {paths}}}\n---\n"
    for name, tag, paths in [
        (TODAY, TODAY, f"paths: ['/data/{TODAY}']"),
        ("siem", "plain", f"paths: [/data/**], exclude: ['/data/{TODAY}']"),
    ]
)
# By number of the open. The others are /data/<namespace>/file-<number>.
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


def an_open(number):
    dated = number in (0, 9)
    namespace = TODAY if dated else f"team-{number % NAMESPACES}"
    uid = f"00000000-0000-4000-8000-{number:012}"
    process = {"pid": 1000 + number, "start_ns": 10**10 + number, "executable": "/usr/bin/cat"}
    return {
        "time": (START + timedelta(seconds=60 * number)).isoformat().replace("+00:00", ".000000001Z"),
        "boot_id": "d2c1025b-5a45-44fe-8456-52608314bb86", "mode": "fexit", "cpu": 0, "sequence": number + 1,
        "pid": process["pid"], "tid": process["pid"], "start_ns": process["start_ns"], "cgroup_id": 100 + number,
        "uid": 0, "gid": 0, "comm": TODAY if dated else "cat", "flags": 0o100000, "result": 0,
        "file": {"inode": 12, "device": (254 << 20) + 1, "mode": 0o100640, "links": 1, "created": False},
        "path": PATHS.get(number, f"/data/{namespace}/file-{number}"), "home": None,
        "requested": REQUESTED.get(number), "status": [], "process": process,
        "ancestors": [{"pid": 1, "start_ns": 0, "executable": "/sbin/init"}], "cgroup_path": f"/kubepods/pod{uid}/c",
        "container": {
            "id": f"{number:064x}", "pod_uid": uid, "runtime": "containerd", "name": TODAY if dated else "main",
            "image": "registry.example/app", "image_tag": TODAY if dated else "v1",
        },
        "pod": {
            "namespace": namespace, "name": TODAY if dated else f"pod-{number}", "uid": uid, "ips": ["10.1.2.3"],
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
    # Sent again as after a crash: the same open of the kernel, so the same id.
    opens += opens[::DISTINCT // AGAIN]
    directory.joinpath("opens.jsonl").write_text("".join(json.dumps(an_open) + "\n" for an_open in opens))
    # Not alerts: until the sensor sends these kinds, here is what they look like, by CloudEvents type.
    for kind, number, type_ in OTHERS:
        record = {
            "@timestamp": f"{TODAY}T04:00:0{number}.5Z", "ecs": {"version": "9.4.0"}, "message": f"no alert but {kind}",
            "event": {"id": f"0{number}a2008d-7400-7000-8000-000000000000", "kind": kind, "dataset": "pathwatch.alert",
                      "module": "pathwatch", "sequence": 2000 + number},
            "host": {"name": "replay"}, "pathwatch": {"schema_version": 1},
        }
        directory.joinpath("others").mkdir(exist_ok=True)
        directory.joinpath(f"others/{type_}").write_text(json.dumps(record) + "\n")
    directory.joinpath("policies").mkdir(exist_ok=True)
    directory.joinpath("policies/siem.yaml").write_text(POLICIES)


main()
