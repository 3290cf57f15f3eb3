//! A record on its way: an encoded document and what the stage must know of it.
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

/// What a record tells, by its CloudEvents type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A policy fired.
    #[serde(rename = "dev.pathwatch.alert.v1")]
    Alert,
    /// Alerts that were counted instead of sent.
    #[serde(rename = "dev.pathwatch.summary.v1")]
    Summary,
    /// Something is lost.
    #[serde(rename = "dev.pathwatch.loss.v1")]
    Loss,
    /// Something about the sensor has changed.
    #[serde(rename = "dev.pathwatch.health.v1")]
    Health,
    /// How far the sequence has got.
    #[serde(rename = "dev.pathwatch.heartbeat.v1")]
    Heartbeat,
}

impl Kind {
    /// The CloudEvents type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alert => "dev.pathwatch.alert.v1",
            Self::Summary => "dev.pathwatch.summary.v1",
            Self::Loss => "dev.pathwatch.loss.v1",
            Self::Health => "dev.pathwatch.health.v1",
            Self::Heartbeat => "dev.pathwatch.heartbeat.v1",
        }
    }

    /// True for what goes to `ship.kafka.system_topic`.
    pub(super) fn is_system(self) -> bool {
        matches!(self, Self::Loss | Self::Health | Self::Heartbeat)
    }
}

/// One record, stored in the spool as a CloudEvents 1.0 event in JSON. A sink takes it apart again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) specversion: String,
    /// `event.id`.
    pub(super) id: Uuid,
    /// `/clusters/<cluster>/nodes/<node>`.
    pub(super) source: String,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    pub(super) time: Timestamp,
    /// `<namespace>/<pod>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<String>,
    /// The document's schema.
    pub(super) dataschema: String,
    /// Name of the policy, for keys and for accounts of losses; empty if there is none.
    pub(super) policy: String,
    /// Uid of the pod, if there is one.
    pub(super) pod: Option<String>,
    /// Id of the container, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<String>,
    /// The document.
    pub(super) data: Box<RawValue>,
}

/// The project's own fields of a document, whatever its schema.
pub(super) fn own(document: &Value) -> Option<&Value> {
    document.get("pathwatch").or_else(|| document.pointer("/unmapped/pathwatch"))
}

impl Record {
    /// What stands in for a record that cannot be read.
    pub(super) fn empty() -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: Uuid::nil(),
            source: String::new(),
            kind: Kind::Alert,
            time: Timestamp::now(),
            subject: None,
            dataschema: String::new(),
            policy: String::new(),
            pod: None,
            container: None,
            data: Box::default(),
        }
    }
}
