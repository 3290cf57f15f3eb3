//! Alerts in the Elastic Common Schema, which SIEMs read without a mapping.
use std::{fmt::Write as _, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json, value::RawValue};
use uuid::Uuid;

use super::{
    identity::{Identity, Node, event_id},
    opener,
    record::Record,
};
use crate::{
    event::{Enriched, Name, Operation},
    policy::{Alert, Compiled},
};

/// Version of the schema that the documents follow.
const ECS_VERSION: &str = "9.4.0";
/// Version of the fields below `pathwatch`.
const SCHEMA_VERSION: u64 = 1;

/// Turns alerts into records of one sender.
#[derive(Clone)]
pub struct Encoder {
    identity: Identity,
    node: Arc<Node>,
}

impl Encoder {
    /// An encoder for alerts of `node`.
    #[must_use]
    pub fn new(identity: Identity, node: Node) -> Self {
        Self { identity, node: Arc::new(node) }
    }

    pub(super) fn node_name(&self) -> &str {
        &self.node.name
    }

    /// The alert as one ECS document. `created` is when the sensor made it.
    #[must_use]
    pub fn document(&self, alert: &Alert, sequence: u64, created: Timestamp) -> Value {
        let (event, policy) = (&alert.event.event, &alert.policy.policy);
        let id = self.alert_id(alert);
        let mut raw = Map::new();
        let mut document = json!({
            "@timestamp": event.time.to_string(),
            "ecs": {"version": ECS_VERSION},
            "message": message(alert),
            "data_stream": {"type": "logs", "dataset": "pathwatch.alert", "namespace": "default"},
            "event": event_fields(alert, id, sequence, created),
            "file": file(&alert.event, &mut raw),
            "process": opener::process(self.identity.agent_id, &alert.event, &mut raw),
            "user": {"id": event.ids.uid.to_string()},
            "host": {"name": self.node.name, "hostname": self.node.name, "boot": {"id": event.boot_id}},
            "observer": {"vendor": "Pathwatch", "product": "Pathwatch", "type": "sensor", "version": env!("CARGO_PKG_VERSION")},
            "agent": {
                "id": self.identity.agent_id, "ephemeral_id": self.identity.epoch, "type": "pathwatch",
                "name": self.node.name, "version": env!("CARGO_PKG_VERSION"),
            },
            "rule": {
                "id": policy.metadata.name, "name": policy.metadata.name, "ruleset": "pathwatch", "category": "file",
                "description": policy.spec.description,
            },
            "threat": threat(&alert.policy),
            "tags": policy.spec.tags,
            "related": {"user": [event.ids.uid.to_string()], "hosts": [self.node.name]},
            "container": alert.event.container.as_deref().map(opener::container),
            "orchestrator": opener::orchestrator(&self.node, &alert.event),
            "kubernetes": alert.event.pod.as_deref().map(|pod| opener::kubernetes(&self.node, alert.event.container.as_deref(), pod)),
            "pathwatch": self.own(alert),
        });
        if !raw.is_empty()
            && let Some(own) = document.get_mut("pathwatch").and_then(Value::as_object_mut)
        {
            own.insert("raw".to_owned(), raw.into());
        }
        prune(&mut document);
        document
    }

    /// The alert as a record for the spool.
    pub(super) fn record(&self, alert: &Alert, sequence: u64, created: Timestamp) -> serde_json::Result<Record> {
        let cluster = self.node.cluster.as_deref().unwrap_or("-");
        Ok(Record {
            specversion: "1.0".to_owned(),
            id: self.alert_id(alert),
            source: format!("/clusters/{cluster}/nodes/{}", self.node.name),
            kind: "dev.pathwatch.alert.v1".to_owned(),
            time: alert.event.event.time,
            policy: alert.policy.name().to_owned(),
            pod: alert.event.container.as_ref().and_then(|c| c.pod_uid.clone()),
            data: RawValue::from_string(serde_json::to_string(&self.document(alert, sequence, created))?)?,
        })
    }

    fn alert_id(&self, alert: &Alert) -> Uuid {
        event_id(self.identity.agent_id, &alert.event.event, Some(alert.policy.name()))
    }

    fn own(&self, alert: &Alert) -> Value {
        let event = &alert.event.event;
        let mut fields = json!({
            "schema_version": SCHEMA_VERSION,
            "open_id": event_id(self.identity.agent_id, event, None),
            "severity": alert.policy.policy.spec.severity,
            "matched_by": alert.view,
            "pattern": alert.pattern,
            "policy": {
                "name": alert.policy.name(), "namespace": alert.policy.policy.metadata.namespace,
                "source": alert.policy.source, "version": alert.policy.version, "overridden": alert.policy.overridden,
            },
            "operation": event.operations(),
            "open_flags": format!("{:#o}", event.flags),
            "capture_mode": event.mode,
            "path": {
                "status": event.status,
                "requested": event.requested.as_ref().map(text),
                "home": event.home.as_ref().map(text),
            },
        });
        if let Value::Object(fields) = &mut fields {
            fields.extend(opener::own(&alert.event));
        }
        fields
    }
}

fn event_fields(alert: &Alert, id: Uuid, sequence: u64, created: Timestamp) -> Value {
    let event = &alert.event.event;
    let opened = event.result == 0;
    let operations = event.operations();
    // ECS allows the type `denied` for the category `intrusion_detection`, not for `file` alone.
    let category = if opened { json!(["file"]) } else { json!(["file", "intrusion_detection"]) };
    let mut types = vec![if opened { kind_of_access(&operations) } else { "access" }];
    if !opened {
        types.push("denied");
    }
    json!({
        "kind": "alert",
        "category": category,
        "type": types,
        "action": if opened { "open" } else { "open-denied" },
        "outcome": if opened { "success" } else { "failure" },
        "module": "pathwatch",
        "dataset": "pathwatch.alert",
        "provider": event.mode,
        "severity": alert.policy.policy.spec.severity as u8,
        "id": id,
        "sequence": sequence,
        "created": created.to_string(),
        "reason": (!opened).then(|| std::io::Error::from_raw_os_error(-event.result).to_string()),
    })
}

fn kind_of_access(operations: &[Operation]) -> &'static str {
    if operations.contains(&Operation::Create) {
        "creation"
    } else if operations.contains(&Operation::Write) || operations.contains(&Operation::Truncate) {
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

fn threat(policy: &Compiled) -> Value {
    let threats = &policy.policy.spec.threat;
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
fn message(alert: &Alert) -> String {
    let event = &alert.event.event;
    let denied = if event.result == 0 { "" } else { "was denied to " };
    let path = event.best_path().map_or_else(|| "a file of unknown path".to_owned(), Name::to_string);
    format!("{}[{}] {denied}{} {path} ({})", event.comm, event.pid, event.deed(), alert.policy.name())
}

/// Text of bytes for a field: the characters as they are, bytes that are no characters as `\xNN`.
pub(super) fn text(name: &Name) -> String {
    let mut text = String::new();
    for part in name.as_bytes().utf8_chunks() {
        text.push_str(part.valid());
        for byte in part.invalid() {
            // Writing to a String cannot fail.
            if write!(text, "\\x{byte:02x}").is_err() {}
        }
    }
    text
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

/// Adds the fields of `more`, object by object.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more,
    }
}

/// Takes out nulls, and objects and lists in which nothing is left.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| {
            prune(value);
            !(value.is_null()
                || value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty))
        });
    }
}
