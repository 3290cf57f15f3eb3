//! Encodes alerts, numbers them, keeps them until somebody acknowledges them.
//!
//! Must not know how events are captured or enriched. Alert → spool (fsync) → sink → deleted on acknowledgement.
pub mod audit;
mod book;
mod ecs;
mod encoder;
mod identity;
mod kafka;
mod ledger;
mod limits;
mod lines;
mod ocsf;
mod opener;
mod pretty;
mod record;
mod redact;
#[cfg(test)]
mod samples;
mod sender;
mod spool;
mod store;
mod storm;
mod text;
mod writer;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    book::{Book, Now},
    sender::{Progress, Sender, Sink},
    spool::Spool,
    writer::Writer,
};
pub use self::{
    encoder::{Encoder, Format},
    identity::{Identity, Node},
    kafka::{Begin, Config as KafkaConfig, Consumed, Key, Mechanism, Reader, Sasl, Tls, is_compacted},
    lines::{FileConfig, Stdout},
    pretty::{open_line, paint, record_line},
    redact::Redaction,
    storm::{Config as StormConfig, Rate},
};
use crate::{metrics::Metrics, notice::Notices, policy::Alert};

/// Records without hope on their way to the books.
const DEAD: usize = 64;

/// Where alerts go, and what keeps them until they are there.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `stdout`, `file` or `kafka`.
    pub sink: SinkKind,
    /// Directory of the spool and of the sensor's identity. Not used for `stdout`.
    pub state_dir: PathBuf,
    /// The schema of what is sent: `ecs` or `ocsf`.
    pub format: Format,
    /// Whether secrets are taken out of arguments: `on` or `off`.
    pub redact: Redaction,
    /// How often the sensor says how far it is.
    #[schemars(with = "String")]
    pub heartbeat: SignedDuration,
    /// The spool.
    pub spool: SpoolConfig,
    /// Repeats and limits. Not used for `stdout`, which prints every alert.
    pub storm: StormConfig,
    /// Settings of `sink: file`.
    pub file: FileConfig,
    /// Settings of `sink: kafka`.
    pub kafka: KafkaConfig,
}

/// Kinds of sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Most bytes of records that wait; beyond that, alerts of the lowest severity are given up first, and counted. The
    /// file can need twice that.
    #[schemars(with = "String")]
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
            format: Format::Ecs,
            redact: Redaction::On,
            heartbeat: SignedDuration::from_secs(60),
            storm: StormConfig::default(),
            spool: SpoolConfig::default(),
            file: FileConfig::default(),
            kafka: KafkaConfig::default(),
        }
    }
}

impl Config {
    /// Where alerts go, for a person.
    #[must_use]
    pub fn target(&self) -> String {
        match self.sink {
            SinkKind::Stdout => "stdout".to_owned(),
            SinkKind::File => format!("file {}", self.file.path.display()),
            SinkKind::Kafka => format!("kafka {} at {}", self.kafka.topic, self.kafka.brokers.join(", ")),
        }
    }

    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if self.spool.max_bytes < ByteSize::mib(1) {
            return Err(format!("ship.spool.max_bytes is {}; it must be at least 1MiB", self.spool.max_bytes));
        }
        if !(1..=3600).contains(&self.heartbeat.as_secs()) {
            return Err(format!("ship.heartbeat is {:#}; it must be from 1s to 1h", self.heartbeat));
        }
        self.storm.check()?;
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
    let encoder = |identity| Encoder::new(identity, node, config.format, &config.redact);
    if config.sink == SinkKind::Stdout {
        let stdout = Stdout::new(encoder(Identity::ephemeral()), metrics);
        tasks.spawn_blocking(move || stdout.run(alerts));
        return Ok(());
    }
    let (agent_id, is_new) = identity::agent_id(&config.state_dir)?;
    let (spool, rows) = Spool::open(&config.state_dir, config.spool.max_bytes.as_u64(), !is_new, &notices)?;
    let encoder = encoder(Identity { agent_id, epoch: spool.epoch() });
    let sink = match config.sink {
        SinkKind::Kafka => {
            let name = encoder.node_name();
            Sink::Kafka(Box::new(kafka::Producer::new(&config.kafka, name, metrics.clone(), notices.clone())?))
        }
        SinkKind::File | SinkKind::Stdout => Sink::File(lines::File::open(&config.file)?),
    };
    let (committed, committed_reader) = watch::channel(spool.committed());
    let acknowledged = spool.acknowledged();
    let (progress, progress_reader) = watch::channel(Progress { acknowledged, handed: acknowledged });
    let (dead, dead_reader) = mpsc::channel(DEAD);
    let sender = Sender::new(sender::Parts {
        spool: spool.reader(),
        sink,
        stall: Duration::try_from(config.kafka.stall).unwrap_or_default(),
        committed: committed_reader,
        progress,
        dead,
        metrics: metrics.clone(),
        notices: notices.clone(),
    });
    let parts = book::Parts {
        encoder,
        spool,
        rows,
        storm: config.storm.clone(),
        heartbeat: Duration::try_from(config.heartbeat).unwrap_or_default(),
        dead_letters: book::dead_letters(&config.state_dir),
        metrics,
        notices,
    };
    let book = Book::new(parts, Now::read());
    let writer = Writer { book, alerts, dead: dead_reader, committed, progress: progress_reader };
    tasks.spawn(sender.run(give_up));
    tasks.spawn(writer.run());
    Ok(())
}
