//! The schemas take good records and find what is wrong with broken ones.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod common;
#[path = "common/schema.rs"]
mod schema;

use std::fs;

use schema::{check, directory, faults};
use serde_json::{Value, json};

fn good(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(directory().join("good").join(name)).unwrap()).unwrap()
}

/// Sets the field at `pointer`, or takes it out; its parent must be there.
fn change(document: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match (document.pointer_mut(parent).unwrap(), value) {
        (Value::Object(fields), Some(value)) => drop(fields.insert(key.to_owned(), value)),
        (Value::Object(fields), None) => drop(fields.remove(key).unwrap()),
        (Value::Array(items), Some(value)) => items[key.parse::<usize>().unwrap()] = value,
        (other, _) => unreachable!("{other}"),
    }
}

/// What is broken, where, its value there, and a part of the fault that must be found.
type Broken = (&'static str, &'static str, Option<Value>, &'static str);

/// Breaks the record `name` in each of these ways, one at a time.
fn each_is_found(name: &str, table: Vec<Broken>) {
    let missed: Vec<String> = table
        .into_iter()
        .filter_map(|(what, pointer, value, wanted)| {
            let mut broken = good(name);
            change(&mut broken, pointer, value);
            let found = faults(&broken);
            (!found.iter().any(|fault| fault.contains(wanted)))
                .then(|| format!("{what}: {found:?} lacks {wanted}"))
        })
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn good_records_pass() {
    let mut count = 0;
    for entry in fs::read_dir(directory().join("good")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let record = good(&name);
        assert_eq!(
            record.get("class_uid").is_some(),
            name.ends_with(".ocsf.json"),
            "{name} is not what its name says"
        );
        check(&record);
        count += 1;
    }
    assert_eq!(count, 14);
}

#[test]
fn ecs_records_that_lack_fields_or_have_unknown_words_are_found() {
    each_is_found(
        "alert.ecs.json",
        vec![
            ("no message", "/message", None, ": \"message\" is a required property"),
            ("no time", "/@timestamp", None, "\"@timestamp\" is a required property"),
            ("a time without a zone", "/@timestamp", Some(json!("2026-11-22T12:00:00")), "/@timestamp: "),
            (
                "a time in milliseconds",
                "/@timestamp",
                Some(json!(1_795_000_000_000_u64)),
                "not of type \"string\"",
            ),
            ("another version of ECS", "/ecs/version", Some(json!("8.11.0")), "/ecs/version: "),
            ("no event", "/event", None, "\"event\" is a required property"),
            ("no kind", "/event/kind", None, "/event: \"kind\" is a required property"),
            ("no dataset", "/event/dataset", None, "/event: \"dataset\" is a required property"),
            ("no module", "/event/module", None, "/event: \"module\" is a required property"),
            ("no action", "/event/action", None, "/event: \"action\" is a required property"),
            ("no namespace of the data stream", "/data_stream/namespace", None, "/data_stream: "),
            (
                "a data set with a hyphen",
                "/data_stream/dataset",
                Some(json!("pathwatch-alert")),
                "/data_stream/dataset: ",
            ),
            ("an unknown kind", "/event/kind", Some(json!("alarm")), "/event/kind: "),
            ("an unknown outcome", "/event/outcome", Some(json!("denied")), "/event/outcome: "),
            ("an unknown category", "/event/category", Some(json!(["files"])), "/event/category/0: "),
            (
                "a type that `file` does not expect",
                "/event/type",
                Some(json!(["access", "denied"])),
                "/event/category: ",
            ),
            ("a type without any category", "/event/category", None, "\"category\" is a required property"),
        ],
    );
}

#[test]
fn ecs_records_with_fields_of_other_types_or_names_are_found() {
    each_is_found(
        "alert.ecs.json",
        vec![
            ("a scalar category", "/event/category", Some(json!("file")), "/event/category: "),
            ("a list of names", "/file/name", Some(json!(["shadow"])), "/file/name: "),
            ("an empty list", "/process/args", Some(json!([])), "/process/args: "),
            ("a scalar where a list is due", "/container/image/tag", Some(json!("1")), "/container/image/tag: "),
            (
                "a scalar label",
                "/orchestrator/resource/label",
                Some(json!("app:web")),
                "/orchestrator/resource/label: ",
            ),
            ("an inode as a number", "/file/inode", Some(json!(12)), "/file/inode: "),
            ("a device as a number", "/file/device", Some(json!(65024)), "/file/device: "),
            ("a user id as a number", "/user/id", Some(json!(0)), "/user/id: "),
            ("a pid as text", "/process/pid", Some(json!("4711")), "/process/pid: "),
            ("a sequence that is no long", "/event/sequence", Some(json!(1_u64 << 63)), "/event/sequence: "),
            ("a severity as a word", "/event/severity", Some(json!("high")), "/event/severity: "),
            ("a keyword that is not searchable", "/file/path", Some(json!("x".repeat(1025))), "/file/path: "),
            ("no address", "/orchestrator/resource/ip", Some(json!(["web"])), "/orchestrator/resource/ip/0: "),
            ("a dotted key", "/file.path", Some(json!("/etc/shadow")), "('file.path' was unexpected)"),
            ("a dotted key below", "/process/parent.pid", Some(json!(1)), "/process: "),
            ("a misspelt field", "/process/exectuable", Some(json!("/bin/sh")), "('exectuable' was unexpected)"),
            ("a field that ECS does not have", "/event/count", Some(json!(3)), "('count' was unexpected)"),
            ("an object of one's own", "/policy", Some(json!({"name": "p"})), "('policy' was unexpected)"),
            ("the environment", "/process/env_vars", Some(json!(["PASSWORD=x"])), "('env_vars' was unexpected)"),
            ("free labels", "/labels", Some(json!({"a": "b"})), "('labels' was unexpected)"),
            ("null", "/file/extension", Some(json!(null)), "/file/extension: "),
            (
                "a dotted label",
                "/kubernetes/labels/app.kubernetes.io~1name",
                Some(json!("x")),
                "/kubernetes/labels",
            ),
            ("a label that nobody allowed", "/kubernetes/labels/team", Some(json!("x")), "/kubernetes/labels"),
            (
                "an owner of a kind of one's own",
                "/kubernetes/rollout",
                Some(json!({"name": "x"})),
                "/kubernetes: ",
            ),
            ("an unknown field of ours", "/pathwatch/count", Some(json!(3)), "/pathwatch: "),
            ("an unknown operation", "/pathwatch/operation/0", Some(json!("open")), "/pathwatch/operation/0: "),
            (
                "bytes that are no base64",
                "/pathwatch/raw",
                Some(json!({"file": {"path": "\\xff"}})),
                "/pathwatch/raw/file/path: ",
            ),
        ],
    );
}

#[test]
fn ocsf_records_of_another_class_time_or_profile_are_found() {
    each_is_found(
        "alert.ocsf.json",
        vec![
            ("no message", "/message", None, "\"message\" is a required property"),
            ("no time", "/time", None, "\"time\" is a required property"),
            ("no finding", "/finding_info", None, "\"finding_info\" is a required property"),
            ("no uid of the finding", "/finding_info/uid", None, "/finding_info: "),
            ("a time in seconds", "/time", Some(json!(1_795_348_800)), "/time: "),
            ("a time in nanoseconds", "/time", Some(json!(1_795_348_800_000_000_000_u64)), "/time: "),
            ("a time as text", "/start_time", Some(json!("2026-11-22T12:00:00Z")), "/start_time: "),
            ("an unknown class", "/class_uid", Some(json!(2005)), "/class_uid: "),
            ("another class's type", "/type_uid", Some(json!(600_801)), "/type_uid: "),
            ("another activity's type", "/type_uid", Some(json!(200_402)), "anyOf"),
            ("an unknown severity", "/severity_id", Some(json!(7)), "/severity_id: "),
            ("a severity as text", "/severity_id", Some(json!("4")), "/severity_id: "),
            ("another version", "/metadata/version", Some(json!("1.4.0")), "/metadata/version: "),
            ("no product", "/metadata/product", None, "/metadata: "),
            ("an unknown profile", "/metadata/profiles/0", Some(json!("kubernetes")), "/metadata/profiles/0: "),
            (
                "a class's attribute without its profile",
                "/metadata/profiles",
                Some(json!(["container", "linux/linux_users"])),
                "/metadata/profiles: ",
            ),
            (
                "a nested attribute without its profile",
                "/metadata/profiles",
                Some(json!(["container", "security_control"])),
                "/metadata/profiles: ",
            ),
        ],
    );
}

#[test]
fn ocsf_records_with_broken_evidence_are_found() {
    each_is_found(
        "alert.ocsf.json",
        vec![
            ("one piece of evidence", "/evidences", Some(json!({"name": "x"})), "/evidences: "),
            ("evidence of nothing", "/evidences", Some(json!([{"name": "x"}])), "/evidences/0: "),
            ("a file without a name", "/evidences/0/file/name", None, "/evidences/0/file: "),
            (
                "a file type of a later version",
                "/evidences/0/file/type_id",
                Some(json!(8)),
                "/evidences/0/file/type_id: ",
            ),
            (
                "an attribute of a later version",
                "/evidences/0/process/ptid",
                Some(json!(1)),
                "('ptid' was unexpected)",
            ),
            ("a role of a later version", "/resources/0/role_id", Some(json!(1)), "('role_id' was unexpected)"),
            ("a pid as text", "/evidences/0/process/pid", Some(json!("4711")), "/evidences/0/process/pid: "),
            (
                "a user id as a number",
                "/evidences/0/process/user/uid",
                Some(json!(0)),
                "/evidences/0/process/user/uid: ",
            ),
            (
                "an id that has no 32 bits",
                "/evidences/0/process/auid",
                Some(json!(u32::MAX)),
                "/evidences/0/process/auid: ",
            ),
            ("a pod without an id", "/resources/0", Some(json!({"type": "pod"})), "/resources/0: "),
            ("a pod's uid that is none", "/evidences/0/container/pod_uuid", Some(json!("web")), "pod_uuid: "),
            (
                "a digest that is none",
                "/evidences/0/container/hash/value",
                Some(json!("sha256:ab")),
                "hash/value: ",
            ),
            ("a technique as text", "/finding_info/attacks/0/technique", Some(json!("T1003")), "/technique: "),
            (
                "an attack of nothing",
                "/finding_info/attacks",
                Some(json!([{"version": "17"}])),
                "/finding_info/attacks/0: ",
            ),
            ("an analytic without its type", "/finding_info/analytic/type_id", None, "/finding_info/analytic: "),
            ("a word of ECS", "/event", Some(json!({"kind": "alert"})), "('event' was unexpected)"),
            ("a dotted key", "/metadata.uid", Some(json!("x")), "('metadata.uid' was unexpected)"),
            ("a misspelt attribute", "/observables/0/typeid", Some(json!(7)), "('typeid' was unexpected)"),
            ("data of one's own", "/unmapped/policy", Some(json!("p")), "/unmapped: "),
            ("an unknown field of ours", "/unmapped/pathwatch/count", Some(json!(3)), "/unmapped/pathwatch: "),
            ("an unmapped number", "/unmapped/file/mode", Some(json!(416)), "/unmapped/file/mode: "),
        ],
    );
}
