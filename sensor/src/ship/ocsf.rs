//! The Open Cybersecurity Schema Framework 1.5.0, for security lakes: made of the ECS document, so that both say the same.
//!
//! Alerts and summaries are class 2004 Detection Finding; losses and health 6008 Application Error, which is made for
//! applications that generate OCSF; heartbeats 6002 Application Lifecycle.
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    ecs,
    encoder::{Encoder, Place, RECORD_LIMIT, Said},
    limits,
};

/// CloudEvents `dataschema`.
pub(super) const SCHEMA: &str = "https://schema.ocsf.io/1.5.0/classes";
/// Words for `severity_id`.
const SEVERITIES: [&str; 6] = ["Unknown", "Informational", "Low", "Medium", "High", "Critical"];

/// What is said as one OCSF document.
pub(super) fn document(encoder: &Encoder, said: &Said<'_>, place: Place) -> Value {
    let mut ecs = ecs::document(encoder, said, place);
    limits::put_in_order(&mut ecs, false);
    // What it holds stands in up to three places here.
    let size = ecs.to_string().len();
    limits::shrink(&mut ecs, size, RECORD_LIMIT / 3);
    let ecs = Ecs(&ecs);
    let mut document = match said {
        Said::Alert(_) | Said::Summary(_) => finding(ecs, said),
        Said::Loss(_) | Said::Health(_) => error(ecs, said),
        Said::Heartbeat(beat) => lifecycle(ecs, beat.last),
    };
    if let Value::Object(fields) = &mut document {
        fields.insert("metadata".to_owned(), metadata(ecs, said));
        fields.insert("device".to_owned(), device(ecs));
        fields.insert("message".to_owned(), ecs.get("/message"));
        fields.insert("time".to_owned(), ecs.millis("/@timestamp"));
        fields.insert("unmapped".to_owned(), unmapped(ecs));
    }
    limits::prune(&mut document);
    document
}

/// Fields of an ECS document by their JSON pointers; null where there is none.
#[derive(Clone, Copy)]
struct Ecs<'a>(&'a Value);

impl Ecs<'_> {
    fn get(self, pointer: &str) -> Value {
        self.0.pointer(pointer).cloned().unwrap_or(Value::Null)
    }

    fn has(self, pointer: &str) -> bool {
        self.0.pointer(pointer).is_some()
    }

    /// A time in milliseconds since 1970.
    fn millis(self, pointer: &str) -> Value {
        let time = self.0.pointer(pointer).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
        time.map_or(Value::Null, |time| time.as_millisecond().into())
    }

    /// A number that ECS has as text; left out where it does not fit 32 bits, which lakes have for it.
    fn number(self, pointer: &str) -> Value {
        let number = self.0.pointer(pointer).and_then(Value::as_str).and_then(|text| text.parse::<i32>().ok());
        number.map_or(Value::Null, Value::from)
    }
}

fn metadata(ecs: Ecs<'_>, said: &Said<'_>) -> Value {
    let kind = said.kind().name();
    let mut profiles = Vec::new();
    match said {
        Said::Alert(_) => profiles.extend(["linux/linux_users", "security_control"]),
        Said::Summary(_) => profiles.push("security_control"),
        Said::Loss(_) | Said::Health(_) | Said::Heartbeat(_) => profiles.push("host"),
    }
    let in_process = matches!(said, Said::Alert(_)) && (ecs.has("/container") || ecs.has("/process/vpid"));
    if in_process {
        profiles.push("container");
    }
    profiles.sort_unstable();
    json!({
        "version": "1.5.0",
        "product": {"name": "Pathwatch", "vendor_name": "Pathwatch", "version": env!("CARGO_PKG_VERSION")},
        "uid": ecs.get("/event/id"),
        "sequence": ecs.get("/event/sequence"),
        "event_code": kind,
        "log_name": kind,
        "logged_time": if ecs.has("/event/created") { ecs.millis("/event/created") } else { ecs.millis("/@timestamp") },
        "correlation_uid": ecs.get("/pathwatch/open_id"),
        "profiles": profiles,
    })
}

fn device(ecs: Ecs<'_>) -> Value {
    json!({
        "hostname": ecs.get("/host/name"),
        "name": ecs.get("/host/name"),
        "type_id": 1,
        "type": "Server",
        "boot_uid": ecs.get("/host/boot/id"),
        "os": {"name": "Linux", "type_id": 200, "type": "Linux"},
        "agent_list": [{
            "name": "pathwatch",
            "uid": ecs.get("/agent/id"),
            "uid_alt": ecs.get("/agent/ephemeral_id"),
            "type_id": 99,
            "type": "File access sensor",
            "version": env!("CARGO_PKG_VERSION"),
        }],
    })
}

/// Class 2004.
fn finding(ecs: Ecs<'_>, said: &Said<'_>) -> Value {
    let is_summary = matches!(said, Said::Summary(_));
    let severity = ecs.get("/event/severity");
    let word = severity.as_u64().and_then(|id| SEVERITIES.get(usize::try_from(id).ok()?)).copied();
    let (start, end) = if is_summary { ("/event/start", "/event/end") } else { ("/@timestamp", "/@timestamp") };
    let count = match said {
        Said::Summary(folded) => i32::try_from(folded.suppressed + folded.limited).unwrap_or(i32::MAX),
        Said::Alert(_) | Said::Loss(_) | Said::Health(_) | Said::Heartbeat(_) => 1,
    };
    let denied = ecs.0.pointer("/event/type/1").and_then(Value::as_str) == Some("denied");
    let (activity, name) = if is_summary { (2, "Update") } else { (1, "Create") };
    json!({
        "class_uid": 2004, "class_name": "Detection Finding", "category_uid": 2, "category_name": "Findings",
        "activity_id": activity, "activity_name": name, "type_uid": 200_400 + activity,
        "type_name": format!("Detection Finding: {name}"),
        "severity_id": severity, "severity": word,
        "start_time": ecs.millis(start), "end_time": ecs.millis(end), "count": count,
        "is_alert": true,
        "action_id": if denied { 2 } else { 3 }, "action": if denied { "Denied" } else { "Observed" },
        "disposition_id": if denied { 26 } else { 19 }, "disposition": if denied { "Unauthorized" } else { "Alert" },
        "status_detail": ecs.get("/event/reason"),
        "finding_info": finding_info(ecs, said),
        "evidences": [evidence(ecs, is_summary)],
        "resources": resources(ecs),
        "observables": observables(ecs),
    })
}

fn finding_info(ecs: Ecs<'_>, said: &Said<'_>) -> Value {
    let tags = ecs.get("/tags");
    let first = ecs.get("/pathwatch/summary/first_alert");
    json!({
        "uid": ecs.get("/event/id"),
        "title": ecs.get("/rule/name"),
        "desc": ecs.get("/rule/description"),
        "created_time": ecs.millis("/event/created"),
        "types": ["file"],
        "data_sources": ["pathwatch"],
        "first_seen_time": ecs.millis("/event/start"),
        "last_seen_time": ecs.millis("/event/end"),
        "related_events": (!first.is_null()).then(|| json!([{"uid": first}])),
        "analytic": {
            "uid": ecs.get("/rule/id"), "name": ecs.get("/rule/name"), "type_id": 1, "type": "Rule",
            "category": "file", "desc": ecs.get("/rule/description"), "version": ecs.get("/rule/version"),
        },
        "attacks": match said {
            Said::Alert(alert) => alert.policy.policy.spec.threat.iter().map(attack).collect(),
            Said::Summary(folded) => folded.rule.threat.iter().map(attack).collect(),
            Said::Loss(_) | Said::Health(_) | Said::Heartbeat(_) => Vec::new(),
        },
        "tags": (!tags.is_null()).then(|| json!([{"name": "tags", "values": tags}])),
    })
}

fn attack(threat: &crate::policy::Threat) -> Value {
    let technique = threat.technique.split('.').next().unwrap_or_default();
    let sub = threat.technique.contains('.').then(|| json!({"uid": threat.technique}));
    json!({"tactic": {"uid": threat.tactic}, "technique": {"uid": technique}, "sub_technique": sub})
}

fn evidence(ecs: Ecs<'_>, is_summary: bool) -> Value {
    let container = container(ecs);
    // A process must have a number; of a summary's it is the first that was seen.
    let pid = ecs.get("/pathwatch/summary/process/0/pid");
    let mut process = Value::Null;
    if is_summary && !pid.is_null() {
        process = json!({"pid": pid, "path": ecs.get("/process/executable")});
    } else if !is_summary {
        process = json!({
            "pid": ecs.get("/process/pid"),
            "namespace_pid": ecs.get("/process/vpid"),
            "tid": ecs.get("/process/thread/id"),
            "uid": ecs.get("/process/entity_id"),
            "name": ecs.get("/process/name"),
            "path": ecs.get("/process/executable"),
            "cmd_line": ecs.get("/process/command_line"),
            "working_directory": ecs.get("/process/working_directory"),
            "created_time": ecs.millis("/process/start"),
            "user": {"uid": ecs.get("/process/real_user/id")},
            "group": {"uid": ecs.get("/process/real_group/id")},
            "euid": ecs.number("/process/user/id"),
            "egid": ecs.number("/process/group/id"),
            "auid": ecs.number("/pathwatch/process/login_uid"),
            "container": container,
            "parent_process": ecs.has("/process/parent").then(|| json!({
                "pid": ecs.get("/process/parent/pid"),
                "uid": ecs.get("/process/parent/entity_id"),
                "name": ecs.get("/process/parent/name"),
                "path": ecs.get("/process/parent/executable"),
            })),
        });
    }
    json!({
        "name": ecs.get("/event/action"),
        "file": file(ecs),
        "process": process,
        "user": {"uid": ecs.get("/user/id")},
        "container": container,
    })
}

fn file(ecs: Ecs<'_>) -> Value {
    let path = ecs.get("/file/path");
    let base = path.as_str().and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty());
    // A file must have a name; of one whose path is not known it is said so.
    let name = base.unwrap_or(if path.is_null() { "(unknown)" } else { "/" });
    let (id, word) = match ecs.0.pointer("/file/type").and_then(Value::as_str) {
        Some("file") => (1, "Regular File"),
        Some("dir") => (2, "Folder"),
        Some("char_device") => (3, "Character Device"),
        Some("block_device") => (4, "Block Device"),
        Some("socket") => (5, "Local Socket"),
        Some("fifo") => (6, "Named Pipe"),
        Some("symlink") => (7, "Symbolic Link"),
        _ => (0, "Unknown"),
    };
    json!({
        "path": path, "name": name, "type_id": id, "type": word,
        "parent_folder": ecs.get("/file/directory"), "ext": ecs.get("/file/extension"),
        "uid": ecs.get("/file/inode"), "volume": ecs.get("/file/device"),
    })
}

fn container(ecs: Ecs<'_>) -> Value {
    if !ecs.has("/container/id") {
        return Value::Null;
    }
    let digest = ecs.get("/container/image/hash/all/0");
    let sum = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let tag = ecs.get("/container/image/tag/0");
    let pod = ecs.get("/orchestrator/resource/id");
    // Of a static pod it is the hash of a manifest, which is no UUID.
    let is_uuid = pod.as_str().is_some_and(|uid| uid.parse::<uuid::Uuid>().is_ok() && uid.contains('-'));
    json!({
        "uid": ecs.get("/container/id"),
        "name": ecs.get("/container/name"),
        "runtime": ecs.get("/container/runtime"),
        "orchestrator": ecs.has("/orchestrator/resource").then_some("kubernetes"),
        "pod_uuid": if is_uuid { pod } else { Value::Null },
        "image": sum.map(|_| json!({
            "uid": digest,
            "name": ecs.get("/container/image/name"),
            "tags": (!tag.is_null()).then(|| json!([{"name": "tag", "value": tag}])),
        })),
        "hash": sum.map(|sum| json!({"algorithm_id": 3, "algorithm": "SHA-256", "value": sum})),
    })
}

fn resources(ecs: Ecs<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    let namespace = ecs.get("/orchestrator/namespace");
    if ecs.has("/orchestrator/resource") {
        all.push(json!({
            "type": "pod",
            "uid": ecs.get("/orchestrator/resource/id"),
            "name": ecs.get("/orchestrator/resource/name"),
            "namespace": namespace,
            "ip": ecs.get("/orchestrator/resource/ip/0"),
            "labels": ecs.get("/orchestrator/resource/label"),
        }));
    }
    if ecs.has("/orchestrator/cluster/name") {
        all.push(json!({"type": "cluster", "name": ecs.get("/orchestrator/cluster/name")}));
    }
    all
}

fn observables(ecs: Ecs<'_>) -> Vec<Value> {
    [
        (45, "File Path", "evidences[].file.path", "/file/path"),
        (9, "Process Name", "evidences[].process.name", "/process/name"),
        (10, "Resource UID", "resources[].uid", "/orchestrator/resource/id"),
    ]
    .into_iter()
    .filter(|(.., pointer)| ecs.has(pointer))
    .map(|(id, word, name, pointer)| json!({"type_id": id, "type": word, "name": name, "value": ecs.get(pointer)}))
    .collect()
}

/// Class 6008.
fn error(ecs: Ecs<'_>, said: &Said<'_>) -> Value {
    let (severity, count) = match said {
        Said::Loss(loss) => (3, loss.count),
        Said::Health(notice) => (2, notice.count),
        Said::Alert(_) | Said::Summary(_) | Said::Heartbeat(_) => (1, 1),
    };
    json!({
        "class_uid": 6008, "class_name": "Application Error", "category_uid": 6, "category_name": "Application Activity",
        "activity_id": 1, "activity_name": "General Error", "type_uid": 600_801,
        "type_name": "Application Error: General Error",
        "severity_id": severity, "severity": SEVERITIES.get(severity),
        "status_code": match said {
            Said::Loss(loss) => Value::from(loss.kind.reason.as_str()),
            Said::Alert(_) | Said::Summary(_) | Said::Health(_) | Said::Heartbeat(_) => ecs.get("/event/action"),
        },
        "status_detail": ecs.get("/event/reason"),
        "count": (count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX)),
        "start_time": ecs.millis("/event/start"), "end_time": ecs.millis("/event/end"),
    })
}

/// Class 6002.
fn lifecycle(_: Ecs<'_>, stops: bool) -> Value {
    let (activity, name) = if stops { (4, "Stop") } else { (99, "Heartbeat") };
    json!({
        "class_uid": 6002, "class_name": "Application Lifecycle", "category_uid": 6,
        "category_name": "Application Activity",
        "activity_id": activity, "activity_name": name, "type_uid": 600_200 + activity,
        "type_name": format!("Application Lifecycle: {}", if stops { "Stop" } else { "Other" }),
        "severity_id": 1, "severity": "Informational",
        "app": {"name": "Pathwatch", "vendor_name": "Pathwatch", "version": env!("CARGO_PKG_VERSION")},
    })
}

/// What the classes have no attribute for, in its ECS form.
fn unmapped(ecs: Ecs<'_>) -> Value {
    let mut fields = Map::new();
    for name in ["pathwatch", "kubernetes"] {
        fields.insert(name.to_owned(), ecs.get(&format!("/{name}")));
    }
    fields.insert("file".to_owned(), json!({"mode": ecs.get("/file/mode")}));
    fields.insert(
        "process".to_owned(),
        json!({
            "saved_user": ecs.get("/process/saved_user"),
            "saved_group": ecs.get("/process/saved_group"),
            "args": ecs.get("/process/args"),
        }),
    );
    fields.into()
}
