//! A record on its way: an encoded alert and what the sink must know of it.
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// One record, stored in the spool as a CloudEvents 1.0 event in JSON. A sink may take it apart again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) specversion: String,
    /// `event.id`.
    pub(super) id: Uuid,
    /// `/clusters/<cluster>/nodes/<node>`.
    pub(super) source: String,
    /// Such as `dev.pathwatch.alert.v1`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) time: Timestamp,
    /// Name of the policy, for keys and for accounts of losses.
    pub(super) policy: String,
    /// Uid of the pod, if there is one.
    pub(super) pod: Option<String>,
    /// The ECS document.
    pub(super) data: Box<RawValue>,
}
