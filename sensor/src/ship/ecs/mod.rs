//! The Elastic Common Schema, which SIEMs read without a mapping.
mod told;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    encoder::{Encoder, Place, Said},
    identity::event_id,
    opener,
    text::text,
};
use crate::{
    event::{Call, Enriched, Event, Name, Operation, flags},
    policy::{Alert, Threat},
};

/// Version of the schema that the documents follow.
const ECS_VERSION: &str = "9.4.0";
/// Version of the fields below `pathwatch`.
const SCHEMA_VERSION: u64 = 1;
/// CloudEvents `dataschema`.
pub(super) const SCHEMA: &str = "https://github.com/elastic/ecs/tree/v9.4.0";

/// What is said as one ECS document.
pub(super) fn document(encoder: &Encoder, said: &Said<'_>, place: Place) -> Value {
    match said {
        Said::Alert(alert) => alert_document(encoder, alert, place),
        Said::Summary(folded) => told::summary(encoder, folded, place),
        Said::Loss(loss) => told::loss(encoder, loss, place),
        Said::Health(notice) => told::health(encoder, notice, place),
        Said::Heartbeat(beat) => told::heartbeat(encoder, beat, place),
    }
}

/// What every document has: when, who says it, which record it is.
fn base(encoder: &Encoder, place: Place, time: Timestamp, kind: &str, dataset: &str) -> Value {
    let (identity, node) = (encoder.identity, &encoder.node);
    let dataset = format!("pathwatch.{dataset}");
    json!({
        "@timestamp": time.to_string(),
        "ecs": {"version": ECS_VERSION},
        "data_stream": {"type": "logs", "dataset": dataset, "namespace": "default"},
        "event": {
            "kind": kind, "module": "pathwatch", "dataset": dataset, "id": place.id, "sequence": place.sequence,
            "created": place.created.to_string(),
        },
        "host": {"name": node.name, "hostname": node.name},
        "observer": {"vendor": "Pathwatch", "product": "Pathwatch", "type": "sensor", "version": env!("CARGO_PKG_VERSION")},
        "agent": {
            "id": identity.agent_id, "ephemeral_id": identity.epoch, "type": "pathwatch", "name": node.name,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "orchestrator": {
            "type": node.cluster.as_ref().map(|_| "kubernetes"),
            "cluster": {"name": node.cluster},
        },
    })
}

fn alert_document(encoder: &Encoder, alert: &Alert, place: Place) -> Value {
    let (event, policy) = (&alert.event.event, &alert.policy.policy);
    let mut own = own(encoder, alert);
    let mut raw = Map::new();
    let mut document = base(encoder, place, event.time, "alert", "alert");
    let (container, pod) = (alert.event.container.as_deref(), alert.event.pod.as_deref());
    let (process, redacted) = opener::process(encoder, &alert.event, &mut raw);
    let more = json!({
        "message": message(alert),
        "event": event_fields(alert),
        "file": file(&alert.event, &mut raw),
        "process": process,
        "user": {"id": event.ids.uid.to_string()},
        "host": {"boot": {"id": event.boot_id}},
        "rule": {
            "id": policy.metadata.name, "name": policy.metadata.name, "version": alert.policy.version,
            "ruleset": "pathwatch", "category": "file", "description": policy.spec.description,
        },
        "threat": threat(&policy.spec.threat),
        "tags": policy.spec.tags,
        "related": {
            "user": [event.ids.uid.to_string()], "hosts": [encoder.node.name], "ip": pod.map(|pod| &pod.ips),
        },
        "container": container.map(opener::container),
        "orchestrator": opener::orchestrator(&encoder.node, container, pod),
        "kubernetes": pod.map(|pod| opener::kubernetes(&encoder.node, container, pod)),
    });
    merge(&mut document, more);
    own.insert("redacted".to_owned(), if redacted { true.into() } else { Value::Null });
    own.insert("raw".to_owned(), raw.into());
    if let Value::Object(fields) = &mut document {
        fields.insert("pathwatch".to_owned(), own.into());
    }
    document
}

fn own(encoder: &Encoder, alert: &Alert) -> Map<String, Value> {
    let event = &alert.event.event;
    let fields = json!({
        "schema_version": SCHEMA_VERSION,
        "open_id": event_id(encoder.identity.agent_id, event, None),
        "severity": alert.policy.policy.spec.severity,
        "matched_by": alert.view,
        "pattern": alert.pattern,
        "policy": {
            "name": alert.policy.name(), "namespace": alert.policy.policy.metadata.namespace,
            "source": alert.policy.source, "version": alert.policy.version, "overridden": alert.policy.overridden,
        },
        "operation": event.operations(),
        "open_flags": (event.call == Call::Open).then(|| open_flags(event)),
        "capture_mode": event.mode,
        "path": {
            "status": event.status,
            "requested": event.requested.as_ref().map(text),
            "home": event.home.as_ref().map(text),
            "target": event.target.as_ref().map(text),
            "target_home": event.target_home.as_ref().map(text),
        },
    });
    let Value::Object(mut fields) = fields else { return Map::new() };
    fields.extend(opener::own(&alert.event));
    fields
}

/// Names of the flags of open(2).
fn open_flags(event: &Event) -> Vec<&'static str> {
    let access = match event.flags & flags::O_ACCMODE {
        0 => "O_RDONLY",
        flags::O_WRONLY => "O_WRONLY",
        _ => "O_RDWR",
    };
    let named = [
        (libc::O_CREAT, "O_CREAT"),
        (libc::O_EXCL, "O_EXCL"),
        (libc::O_TRUNC, "O_TRUNC"),
        (libc::O_APPEND, "O_APPEND"),
        (libc::O_NONBLOCK, "O_NONBLOCK"),
        (libc::O_DIRECTORY, "O_DIRECTORY"),
        (libc::O_NOFOLLOW, "O_NOFOLLOW"),
        (libc::O_CLOEXEC, "O_CLOEXEC"),
        (libc::O_PATH, "O_PATH"),
        (libc::O_DIRECT, "O_DIRECT"),
        (libc::O_NOATIME, "O_NOATIME"),
        (libc::O_SYNC & !libc::O_DSYNC, "O_SYNC"),
    ];
    let set = named.iter().filter(|(bit, _)| event.flags & bit.cast_unsigned() != 0).map(|(_, name)| *name);
    let exec = (event.flags & flags::EXEC != 0).then_some("FMODE_EXEC");
    [access].into_iter().chain(set).chain(exec).collect()
}

fn event_fields(alert: &Alert) -> Value {
    let event = &alert.event.event;
    let done = event.result == 0;
    let action = match event.call {
        Call::Open => "open",
        Call::Truncate => "truncate",
        Call::Rename => "rename",
        Call::Link => "link",
        Call::Delete => "delete",
    };
    let operations = event.operations();
    // ECS allows the type `denied` for the category `intrusion_detection`, not for `file` alone.
    let category = if done { json!(["file"]) } else { json!(["file", "intrusion_detection"]) };
    let mut types = vec![if done { kind_of_access(&operations) } else { "access" }];
    if !done {
        types.push("denied");
    }
    json!({
        "category": category,
        "type": types,
        "action": if done { action.to_owned() } else { format!("{action}-denied") },
        "outcome": if done { "success" } else { "failure" },
        "provider": event.mode,
        "severity": alert.policy.policy.spec.severity as u8,
        "reason": (!done).then(|| std::io::Error::from_raw_os_error(-event.result).to_string()),
    })
}

fn kind_of_access(operations: &[Operation]) -> &'static str {
    let any = |of: &[Operation]| operations.iter().any(|operation| of.contains(operation));
    if any(&[Operation::Create, Operation::Link]) {
        "creation"
    } else if any(&[Operation::Delete]) {
        "deletion"
    } else if any(&[Operation::Write, Operation::Truncate, Operation::Rename]) {
        "change"
    } else {
        "access"
    }
}

fn file(enriched: &Enriched, raw: &mut Map<String, Value>) -> Value {
    let event = &enriched.event;
    let Some(path) = event.best_path() else { return Value::Null };
    let (directory, name) = match path.as_bytes().iter().rposition(|b| *b == b'/') {
        Some(at) => path.as_bytes().split_at(at),
        None => (&b""[..], path.as_bytes()),
    };
    let name = name.strip_prefix(b"/").unwrap_or(name);
    let directory = if directory.is_empty() && path.as_bytes().starts_with(b"/") { b"/" } else { directory };
    let extension = name.iter().rposition(|b| *b == b'.').filter(|at| *at > 0).and_then(|at| name.get(at + 1..));
    let part = |bytes: &[u8]| (!bytes.is_empty()).then(|| text(&bytes.to_vec().into()));
    json!({
        "path": kept("file.path", path, raw),
        "directory": part(directory),
        "name": part(name),
        "extension": extension.and_then(part),
        "type": event.file.as_ref().map(|file| file.kind()),
        "inode": event.file.as_ref().map(|file| file.inode.to_string()),
        "device": event.file.as_ref().map(|file| format!("{}:{}", file.device >> 20, file.device & 0xf_ffff)),
        "mode": event.file.as_ref().map(|file| format!("{:04o}", file.mode & 0o7777)),
    })
}

fn threat(threats: &[Threat]) -> Value {
    if threats.is_empty() {
        return Value::Null;
    }
    let ids = |ids: Vec<&str>| {
        let mut distinct: Vec<&str> = Vec::new();
        ids.into_iter().for_each(|id| {
            if !distinct.contains(&id) {
                distinct.push(id)
            }
        });
        distinct.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()
    };
    let technique = |id: &str| id.split('.').next().unwrap_or_default().len();
    let subs = ids(threats.iter().map(|t| t.technique.as_str()).filter(|id| id.contains('.')).collect());
    json!({
        "framework": "MITRE ATT&CK",
        "tactic": {"id": ids(threats.iter().map(|t| t.tactic.as_str()).collect())},
        "technique": {
            "id": ids(threats.iter().filter_map(|t| t.technique.get(..technique(&t.technique))).collect()),
            "subtechnique": {"id": subs},
        },
    })
}

/// One sentence for a person.
pub(super) fn message(alert: &Alert) -> String {
    let event = &alert.event.event;
    let denied = if event.result == 0 { "" } else { "was denied to " };
    let path = event.best_path().map_or_else(|| "a file of unknown path".to_owned(), Name::to_string);
    format!("{}[{}] {denied}{} {path} ({})", event.comm, event.pid, event.deed(), alert.policy.name())
}

/// The text of `name`; if that does not tell the bytes, they go to `raw` in base64, nested as the field is.
pub(super) fn kept(field: &str, name: &Name, raw: &mut Map<String, Value>) -> String {
    if std::str::from_utf8(name.as_bytes()).is_err() {
        let mut value = Value::from(BASE64_STANDARD.encode(name.as_bytes()));
        let (top, rest) = field.split_once('.').unwrap_or((field, ""));
        for part in rest.rsplit('.').filter(|part| !part.is_empty()) {
            value = json!({ part: value });
        }
        merge(raw.entry(top).or_insert(Value::Null), value);
    }
    text(name)
}

/// Adds the fields of `more`, object by object; nulls change nothing.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (_, Value::Null) => {}
        (into, more) => *into = more,
    }
}
