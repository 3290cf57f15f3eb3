//! Encodes alerts, numbers them, keeps them until somebody acknowledges them.
//!
//! Must not know how events are captured or enriched. Alert → spool (fsync) → sink → deleted on acknowledgement.
mod ecs;
mod identity;
mod kafka;
mod lines;
mod opener;
mod pretty;
mod record;
mod sender;
mod spool;
mod writer;

use std::{path::PathBuf, sync::Arc};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::{
    ecs::Encoder,
    identity::{Identity, Node},
    kafka::{Config as KafkaConfig, Key},
    lines::{FileConfig, Stdout},
    pretty::{open_line, paint},
};
use self::{
    sender::{Sender, Sink},
    spool::Spool,
    writer::Writer,
};
use crate::{metrics::Metrics, notice::Notices, policy::Alert};

/// Where alerts go, and what keeps them until they are there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `stdout`, `file` or `kafka`.
    pub sink: SinkKind,
    /// Directory of the spool and of the sensor's identity. Not used for `stdout`.
    pub state_dir: PathBuf,
    /// The spool.
    pub spool: SpoolConfig,
    /// Settings of `sink: file`.
    pub file: FileConfig,
    /// Settings of `sink: kafka`.
    pub kafka: KafkaConfig,
}

/// Kinds of sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// Readable lines on a terminal, JSON lines otherwise; without a spool.
    Stdout,
    /// Rotated JSON lines.
    File,
    /// A topic of Apache Kafka.
    Kafka,
}

/// How much may wait for the sink.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Most bytes of alerts that are kept; further ones are counted as lost. The file can need twice that.
    pub max_bytes: ByteSize,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { max_bytes: ByteSize::mib(256) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sink: SinkKind::Stdout,
            state_dir: "/var/lib/pathwatch".into(),
            spool: SpoolConfig::default(),
            file: FileConfig::default(),
            kafka: KafkaConfig::default(),
        }
    }
}

impl Config {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if self.spool.max_bytes < ByteSize::mib(1) {
            return Err(format!("ship.spool.max_bytes is {}; it must be at least 1MiB", self.spool.max_bytes));
        }
        match self.sink {
            SinkKind::Stdout => Ok(()),
            SinkKind::File => self.file.check(),
            SinkKind::Kafka => self.kafka.check(),
        }
    }
}

/// Starts the stage for `alerts`. When they end, it goes on until all is delivered or `give_up` is cancelled;
/// what is then in the spool stays there for the next run.
///
/// # Errors
/// When the spool or the sink cannot be opened.
pub fn start(
    config: &Config,
    node: Node,
    alerts: mpsc::Receiver<Alert>,
    metrics: Arc<Metrics>,
    notices: Notices,
    give_up: CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if config.sink == SinkKind::Stdout {
        let stdout = Stdout::new(Encoder::new(Identity::ephemeral(), node), metrics);
        tasks.spawn_blocking(move || stdout.run(alerts));
        return Ok(());
    }
    let agent_id = identity::agent_id(&config.state_dir)?;
    let spool = Spool::open(&config.state_dir, config.spool.max_bytes.as_u64(), &notices)?;
    let identity = Identity { agent_id, epoch: spool.epoch() };
    let encoder = Encoder::new(identity, node);
    let sink = match config.sink {
        SinkKind::Kafka => Sink::Kafka(kafka::Producer::new(&config.kafka, encoder.node_name(), notices.clone())?),
        SinkKind::File | SinkKind::Stdout => Sink::File(lines::File::open(&config.file)?),
    };
    let (committed, committed_reader) = watch::channel(spool.last());
    let (acknowledged, acknowledged_reader) = watch::channel(spool.first().saturating_sub(1));
    let sender =
        Sender::new(spool.reader(), sink, committed_reader, acknowledged, metrics.clone(), notices.clone());
    let writer = Writer::new(encoder, spool, alerts, committed, acknowledged_reader, metrics, notices);
    tasks.spawn(sender.run(give_up));
    tasks.spawn(writer.run());
    Ok(())
}
