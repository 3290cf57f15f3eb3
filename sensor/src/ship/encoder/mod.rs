//! What the stage has to say, as records of one sender.
#[cfg(test)]
mod golden;

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::to_raw_value};
use uuid::Uuid;

use super::{
    ecs,
    identity::{Identity, Node, event_id, record_id},
    ledger::{Loss, Totals},
    limits, ocsf,
    record::{Kind, Record},
    redact::{Redact, Redaction},
    spool::{Rank, SYSTEM},
    storm::Folded,
};
use crate::{notice::Notice, policy::Alert};

/// Largest record, in bytes; a broker's usual limit is 1 MiB for a whole batch.
pub(super) const RECORD_LIMIT: usize = 256 << 10;

/// Schemas of documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Elastic Common Schema 9.4.
    #[default]
    Ecs,
    /// Open Cybersecurity Schema Framework 1.5.0.
    Ocsf,
}

/// Something that a record tells.
pub(super) enum Said<'a> {
    Alert(&'a Alert),
    Summary(&'a Folded),
    Loss(&'a Loss),
    Health(&'a Notice),
    Heartbeat(&'a Beat),
}

/// How far the sequence has got.
pub(super) struct Beat {
    pub(super) totals: Totals,
    /// Alerts in the spool.
    pub(super) waiting: u64,
    /// Bytes in the spool, of those that it may have.
    pub(super) spool: (u64, u64),
    /// The sensor stops with this one.
    pub(super) last: bool,
}

/// Which record it is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) id: Uuid,
    pub(super) sequence: u64,
    /// When the sensor made it.
    pub(super) created: Timestamp,
}

/// Turns what is said into records of one sender.
#[derive(Clone)]
pub struct Encoder {
    pub(super) identity: Identity,
    pub(super) node: Arc<Node>,
    pub(super) redact: Redact,
    format: Format,
}

impl Encoder {
    /// An encoder for what happens on `node`.
    #[must_use]
    pub fn new(identity: Identity, node: Node, format: Format, redaction: &Redaction) -> Self {
        Self { identity, node: Arc::new(node), redact: Redact::new(redaction), format }
    }

    pub(super) fn node_name(&self) -> &str {
        &self.node.name
    }

    /// The id of an alert: the same whenever the same record of the kernel is decided by the same policy.
    pub(super) fn alert_id(&self, alert: &Alert) -> Uuid {
        event_id(self.identity.agent_id, &alert.event.event, Some(&alert.policy.full_name()))
    }

    /// The alert as one document.
    #[must_use]
    pub fn document(&self, alert: &Alert, sequence: u64, created: Timestamp) -> Value {
        self.encode(&Said::Alert(alert), Place { id: self.alert_id(alert), sequence, created })
    }

    fn encode(&self, said: &Said<'_>, place: Place) -> Value {
        match self.format {
            Format::Ecs => {
                let mut document = ecs::document(self, said, place);
                limits::put_in_order(&mut document, true);
                document
            }
            Format::Ocsf => ocsf::document(self, said, place),
        }
    }

    /// The record of number `sequence`, and how much it matters.
    pub(super) fn record(
        &self,
        said: &Said<'_>,
        sequence: u64,
        created: Timestamp,
    ) -> serde_json::Result<(Rank, Vec<u8>)> {
        let cluster = self.node.cluster.as_deref().unwrap_or("-");
        let (agent, epoch) = (self.identity.agent_id, self.identity.epoch);
        let id = match said {
            Said::Alert(alert) => self.alert_id(alert),
            Said::Summary(_) | Said::Loss(_) | Said::Health(_) | Said::Heartbeat(_) => {
                record_id(agent, epoch, sequence, created)
            }
        };
        let subject = said.pod().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let mut record = Record {
            specversion: "1.0".to_owned(),
            id,
            source: format!("/clusters/{cluster}/nodes/{}", self.node.name),
            kind: said.kind(),
            time: said.time().unwrap_or(created),
            subject,
            dataschema: match self.format {
                Format::Ecs => ecs::SCHEMA.to_owned(),
                Format::Ocsf => ocsf::SCHEMA.to_owned(),
            },
            policy: said.policy().unwrap_or_default(),
            pod: said.container().and_then(|container| container.pod_uid.clone()),
            container: said.container().map(|container| container.id.clone()),
            data: Box::default(),
        };
        let mut document = self.encode(said, Place { id, sequence, created });
        record.data = to_raw_value(&document)?;
        if limits::shrink(&mut document, record.data.get().len(), RECORD_LIMIT) {
            record.data = to_raw_value(&document)?;
        }
        Ok((said.rank(), serde_json::to_vec(&record)?))
    }
}

impl Said<'_> {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Alert(_) => Kind::Alert,
            Self::Summary(_) => Kind::Summary,
            Self::Loss(_) => Kind::Loss,
            Self::Health(_) => Kind::Health,
            Self::Heartbeat(_) => Kind::Heartbeat,
        }
    }

    fn rank(&self) -> Rank {
        match self {
            Self::Alert(alert) => alert.policy.policy.spec.severity as Rank,
            Self::Summary(_) | Self::Loss(_) | Self::Health(_) | Self::Heartbeat(_) => SYSTEM,
        }
    }

    /// When it happened, if that is another time than that of the record.
    fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Alert(alert) => Some(alert.event.event.time),
            Self::Summary(_) | Self::Loss(_) | Self::Health(_) | Self::Heartbeat(_) => None,
        }
    }

    fn policy(&self) -> Option<String> {
        match self {
            Self::Alert(alert) => Some(alert.policy.full_name()),
            Self::Summary(folded) => Some(folded.rule.full_name()),
            Self::Loss(loss) => loss.kind.policy.clone(),
            Self::Health(_) | Self::Heartbeat(_) => None,
        }
    }

    fn container(&self) -> Option<&crate::event::Container> {
        match self {
            Self::Alert(alert) => alert.event.container.as_deref(),
            Self::Summary(folded) => folded.container.as_deref(),
            Self::Loss(_) | Self::Health(_) | Self::Heartbeat(_) => None,
        }
    }

    fn pod(&self) -> Option<&crate::event::Pod> {
        match self {
            Self::Alert(alert) => alert.event.pod.as_deref(),
            Self::Summary(folded) => folded.pod.as_deref(),
            Self::Loss(_) | Self::Health(_) | Self::Heartbeat(_) => None,
        }
    }
}
