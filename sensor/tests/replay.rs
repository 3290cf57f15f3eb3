//! The pipeline without a kernel: recorded opens in, alerts out, to the byte.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod common;
#[path = "common/schema.rs"]
mod schema;

use std::{fs, path::Path};

use common::{pathwatch, root};
use serde_json::{Value, json};

/// An open in the form of a recording; `change` says what is special about it.
fn open(sequence: u64, change: &Value) -> Value {
    let mut event = json!({
        "time": "2026-11-22T12:00:00.000000001Z", "boot_id": "d2c1025b-5a45-44fe-8456-52608314bb86",
        "mode": "fexit", "cpu": 0, "sequence": sequence, "pid": 4711, "tid": 4712, "start_ns": 5_000_000_000_u64,
        "cgroup_id": 77, "uid": 1000, "gid": 1000, "comm": "cat", "flags": 0o100_000, "result": 0,
        "file": {"inode": 12, "device": (254 << 20) + 1, "mode": 0o100_640, "links": 1, "created": false},
        "path": "/etc/shadow", "home": null, "requested": null, "status": [],
        "process": {"pid": 4711, "start_ns": 5_000_000_000_u64, "executable": "/usr/bin/cat"},
        "ancestors": [{"pid": 1, "start_ns": 0, "executable": "/sbin/init"}],
        "cgroup_path": "/user.slice", "container": null, "enrichment": "complete",
    });
    for (field, value) in change.as_object().unwrap() {
        event[field] = value.clone();
    }
    event
}

fn denied(path: &str, errno: i32) -> Value {
    json!({"result": -errno, "file": null, "path": null, "requested": path})
}

/// Runs `opens` through `policy` and returns the alerts.
fn alerts(policy: &str, opens: &[Value]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let policy = policy.replacen('{', "{subjects: all, ", 1);
    let text = format!(
        "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: p}}\nspec: {policy}\n"
    );
    fs::write(dir.path().join("p.yaml"), text).unwrap();
    let lines: String = opens.iter().map(|open| format!("{open}\n")).collect();
    fs::write(dir.path().join("opens.jsonl"), lines).unwrap();
    let alerts = replay(dir.path(), "opens.jsonl", ".");
    let alerts: Vec<Value> = alerts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    alerts.iter().for_each(schema::check);
    alerts
}

fn replay(directory: &Path, recording: &str, policies: &str) -> String {
    let out =
        pathwatch().args(["replay", recording, "--policies", policies]).current_dir(directory).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn paths(alerts: &[Value]) -> Vec<&str> {
    alerts.iter().map(|alert| alert["file"]["path"].as_str().unwrap()).collect()
}

#[test]
fn the_same_recording_gives_the_same_bytes_in_any_directory() {
    let recording: String = (1..=500)
        .map(|n| {
            open(n, &json!({"path": if n % 3 == 0 { "/etc/shadow" } else { "/root/.ssh/id_rsa" }})).to_string()
                + "\n"
        })
        .collect();
    let outputs: Vec<String> = (0..2)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("opens.jsonl"), &recording).unwrap();
            std::os::unix::fs::symlink(root().join("policies"), dir.path().join("policies")).unwrap();
            replay(dir.path(), "opens.jsonl", "policies")
        })
        .collect();
    assert_eq!(outputs[0].lines().count(), 500);
    assert!(outputs[0] == outputs[1]);
    let ids: std::collections::BTreeSet<String> = outputs[0]
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"]["id"].to_string())
        .collect();
    assert_eq!(ids.len(), 500, "ids repeat");
}

#[test]
fn an_alert_has_the_fields_that_the_schema_asks_for() {
    let got = alerts(
        "{description: why, severity: high, tags: [t], threat: [{tactic: TA0006, technique: T1003.008}], paths: [/etc/shadow]}",
        &[open(9, &json!({"container": {"id": "c".repeat(64), "pod_uid": "u"}}))],
    );
    let alert = &got[0];
    for (field, want) in [
        ("/@timestamp", json!("2026-11-22T12:00:00.000000001Z")),
        ("/ecs/version", json!("9.4.0")),
        ("/message", json!("cat[4711] read /etc/shadow (p)")),
        ("/event/kind", json!("alert")),
        ("/event/category", json!(["file"])),
        ("/event/type", json!(["access"])),
        ("/event/outcome", json!("success")),
        ("/event/dataset", json!("pathwatch.alert")),
        ("/event/severity", json!(4)),
        ("/event/sequence", json!(1)),
        ("/data_stream/dataset", json!("pathwatch.alert")),
        ("/file/path", json!("/etc/shadow")),
        ("/file/directory", json!("/etc")),
        ("/file/name", json!("shadow")),
        ("/file/inode", json!("12")),
        ("/file/device", json!("254:1")),
        ("/file/mode", json!("0640")),
        ("/process/pid", json!(4711)),
        ("/process/thread/id", json!(4712)),
        ("/process/executable", json!("/usr/bin/cat")),
        ("/process/parent/executable", json!("/sbin/init")),
        ("/process/real_user/id", json!("1000")),
        ("/container/id", json!("c".repeat(64))),
        ("/orchestrator/resource/id", json!("u")),
        ("/host/name", json!("replay")),
        ("/rule/name", json!("p")),
        ("/rule/description", json!("why")),
        ("/threat/tactic/id", json!(["TA0006"])),
        ("/threat/technique/id", json!(["T1003"])),
        ("/threat/technique/subtechnique/id", json!(["T1003.008"])),
        ("/tags", json!(["t"])),
        ("/pathwatch/pattern", json!("/etc/shadow")),
        ("/pathwatch/matched_by", json!("path")),
        ("/pathwatch/policy/source", json!("./p.yaml")),
        ("/pathwatch/operation", json!(["read"])),
    ] {
        assert_eq!(alert.pointer(field), Some(&want), "{field} in {alert:#}");
    }
}

#[test]
fn paths_exclude_and_operations_decide() {
    let opens = [
        open(1, &json!({"path": "/d/read"})),
        open(2, &json!({"path": "/d/write", "flags": 0o100_001})),
        open(3, &json!({"path": "/d/both", "flags": 0o100_002})),
        open(4, &json!({"path": "/d/left-out", "flags": 0o100_002})),
        open(5, &json!({"path": "/d/cut", "flags": 0o101_001})),
        open(
            6,
            &json!({"path": "/d/new", "flags": 0o100_101, "file": {"inode": 1, "device": 1, "mode": 0o100_644, "links": 1, "created": true}}),
        ),
        open(7, &json!({"path": "/d/run", "flags": 0o100_040})),
        open(8, &json!({"path": "/d/ref", "flags": 0o10_000_000})),
        open(
            9,
            &json!({"path": "/d/dir", "file": {"inode": 1, "device": 1, "mode": 0o040_755, "links": 2, "created": false}}),
        ),
        open(10, &json!({"path": "/elsewhere"})),
    ];
    let fired = |rest: &str| {
        let found = alerts(&format!("{{paths: [/d/*], exclude: [/d/left-*]{rest}}}"), &opens);
        found.iter().map(|a| a["file"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(fired(""), ["read", "write", "both", "cut", "new"]);
    assert_eq!(fired(", operations: [read]"), ["read", "both"]);
    assert_eq!(fired(", operations: [write]"), ["write", "both", "cut", "new"]);
    assert_eq!(fired(", operations: [create]"), ["new"]);
    assert_eq!(fired(", operations: [truncate]"), ["cut"]);
    assert_eq!(fired(", operations: [exec, reference, list]"), ["run", "ref", "dir"]);
    assert_eq!(fired(", suspend: true"), Vec::<String>::new());
}

#[test]
fn a_denied_open_fires_on_its_requested_name_and_a_missing_file_does_not() {
    let opens = [
        open(1, &denied("/etc/shadow", 13)),
        open(2, &denied("/etc/shadow", 1)),
        open(3, &denied("/etc/shadow", 2)),
    ];
    let got = alerts("{paths: [/etc/shadow]}", &opens);
    assert_eq!(got.len(), 2);
    let event = &got[0]["event"];
    assert_eq!((&event["outcome"], &event["action"]), (&json!("failure"), &json!("open-denied")));
    assert_eq!(
        (&event["category"], &event["type"]),
        (&json!(["file", "intrusion_detection"]), &json!(["access", "denied"]))
    );
    assert_eq!(got[0]["pathwatch"]["matched_by"], "requested");
    assert_eq!(got[0]["message"], "cat[4711] was denied to read /etc/shadow (p)");
}

#[test]
fn what_was_asked_for_fires_by_its_own_name_unless_a_chroot_gave_it_another_meaning() {
    let linked = open(1, &json!({"path": "/real", "requested": "/etc/shadow"}));
    let jailed = open(2, &json!({"path": "/real", "requested": "/etc/shadow", "status": ["chroot"]}));
    let got = alerts("{paths: [/etc/shadow]}", &[linked, jailed]);
    assert_eq!((got.len(), &got[0]["pathwatch"]["matched_by"]), (1, &json!("requested")));
}

#[test]
fn an_excluded_name_that_leads_to_a_watched_file_excludes_nothing() {
    let linked = |name: &str, path: &str| open(1, &json!({"requested": name, "path": path}));
    let spec = "{paths: ['/home/*/.ssh/**'], exclude: ['/home/*/.ssh/known_hosts']}";
    for (asked, found, fires) in [
        ("/home/a/.ssh/known_hosts", "/home/a/.ssh/known_hosts", 0),
        ("/home/a/.ssh/known_hosts", "/home/a/.ssh/id_rsa", 1),
        ("/home/a/.ssh/x", "/home/a/.ssh/known_hosts", 1),
        ("/tmp/x", "/home/a/.ssh/known_hosts", 0),
        ("/tmp/x", "/home/a/.ssh/id_rsa", 1),
    ] {
        assert_eq!(alerts(spec, &[linked(asked, found)]).len(), fires, "{asked} -> {found}");
    }
}

#[test]
fn an_exempt_script_is_one_that_was_executed_not_one_that_is_an_argument() {
    let by = |executable: &str, script: Value, trusted: bool| {
        let process =
            json!({"pid": 4711, "start_ns": 5, "executable": executable, "script": script, "trusted": trusted});
        open(1, &json!({"process": process}))
    };
    let spec = "{paths: [/etc/shadow], exceptions: [{scripts: [/opt/backup/run.py]}]}";
    for (executable, script, trusted, fires) in [
        ("/usr/bin/python3.11", json!("/opt/backup/run.py"), true, 0),
        // `python3 /opt/backup/run.py` and `python3 -c`: the interpreter was executed, no script.
        ("/usr/bin/python3.11", Value::Null, true, 1),
        ("/usr/bin/python3.11", json!("/tmp/run.py"), true, 1),
        ("/tmp/python3.11", json!("/opt/backup/run.py"), false, 1),
    ] {
        assert_eq!(alerts(spec, &[by(executable, script.clone(), trusted)]).len(), fires, "{executable} {script}");
    }
}

#[test]
fn an_open_with_a_doubtful_path_is_not_excluded_by_it() {
    let with = |status: &str| open(1, &json!({"path": "/d/fine", "status": [status]}));
    for (status, fires) in
        [("detached", 1), ("foreign_mount", 1), ("fd_replaced", 1), ("fd_race_possible", 0), ("deleted", 0)]
    {
        assert_eq!(alerts("{paths: [/d/*], exclude: [/d/fine]}", &[with(status)]).len(), fires, "{status}");
    }
}

#[test]
fn two_policies_on_one_open_are_two_alerts_of_one_open() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let text = format!(
            "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: {name}}}\nspec: {{subjects: all, paths: ['**/shadow']}}\n"
        );
        fs::write(dir.path().join(format!("{name}.yaml")), text).unwrap();
    }
    fs::write(dir.path().join("opens.jsonl"), open(1, &json!({})).to_string()).unwrap();
    let got: Vec<Value> =
        replay(dir.path(), "opens.jsonl", ".").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&got[0]["rule"]["name"], &got[1]["rule"]["name"]), (&json!("a"), &json!("b")));
    assert_ne!(got[0]["event"]["id"], got[1]["event"]["id"]);
    assert_eq!(got[0]["pathwatch"]["open_id"], got[1]["pathwatch"]["open_id"]);
    assert_eq!((&got[0]["event"]["sequence"], &got[1]["event"]["sequence"]), (&json!(1), &json!(2)));
}

#[test]
fn names_that_are_no_text_are_readable_and_kept() {
    let opens = [open(1, &json!({"path": "/d/\\xff\\x1b[31m\\\\n"}))];
    let got = alerts("{paths: ['/d/\\xff*']}", &opens);
    assert_eq!(paths(&got), ["/d/\\xff\u{1b}[31m\\n"]);
    // base64 of 2f 64 2f ff 1b 5b 33 31 6d 5c 6e
    assert_eq!(got[0]["pathwatch"]["raw"]["file"]["path"], "L2Qv/xtbMzFtXG4=");
    assert!(got[0]["message"].as_str().unwrap().contains("/d/\\xff\\x1b[31m\\\\n"));
}

#[test]
fn a_line_that_is_no_event_is_named_and_what_came_before_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("opens.jsonl"), format!("{}\n\n{{}}\n", open(1, &json!({})))).unwrap();
    let policies = root().join("policies");
    let out = pathwatch()
        .arg("replay")
        .arg(dir.path().join("opens.jsonl"))
        .arg("--policies")
        .arg(policies)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 1);
    let complaint = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        complaint.contains("opens.jsonl:3: not an event of `pathwatch trace --record`: missing field"),
        "{complaint}"
    );
}
