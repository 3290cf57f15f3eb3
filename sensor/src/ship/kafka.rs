//! The Kafka producer. The spool is the buffer; this holds no more than what is on its way.
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    record::Record,
    sender::{Handed, Settled},
};
use crate::notice::Notices;

/// Settings that `ship.kafka.properties` may not change, because delivery depends on them, and why.
const OWN: &[(&str, &str, &str)] = &[
    ("enable.idempotence", "true", "it forces acks=all and keeps retries from reordering or repeating"),
    ("acks", "all", "an acknowledged alert must survive the loss of a broker"),
    ("message.timeout.ms", "0", "the spool decides when an alert is given up, not a timer"),
    ("message.send.max.retries", "2147483647", "the spool decides when an alert is given up, not a count"),
    ("queue.buffering.max.messages", "10000", "it bounds the sensor's memory"),
    ("queue.buffering.max.kbytes", "16384", "it bounds the sensor's memory"),
    ("delivery.report.only.error", "", "an alert is deleted from the spool when its delivery is reported"),
    ("test.mock.num.brokers", "", "a mock would acknowledge what nobody keeps"),
    ("transactional.id", "", "the spool resends, it does not use transactions"),
    // Their other names in librdkafka's CONFIGURATION.md.
    ("request.required.acks", "", "an acknowledged alert must survive the loss of a broker"),
    ("delivery.timeout.ms", "", "the spool decides when an alert is given up, not a timer"),
    ("retries", "", "the spool decides when an alert is given up, not a count"),
    ("metadata.broker.list", "", "it is ship.kafka.brokers"),
    ("compression.codec", "", "it is ship.kafka.compression"),
    ("bootstrap.servers", "", "it is ship.kafka.brokers"),
    ("compression.type", "", "it is ship.kafka.compression"),
];

/// Defaults that `ship.kafka.properties` may change.
const DEFAULTS: &[(&str, &str)] = &[
    ("linger.ms", "20"),
    // A broker's limit is on the batch (max.message.bytes, 1,048,588 by default), not on the record.
    ("batch.size", "900000"),
    ("partitioner", "murmur2_random"),
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.max.ms", "5000"),
    ("statistics.interval.ms", "0"),
    ("enable.metrics.push", "false"),
    ("client.id", "pathwatch"),
];

/// Settings of `sink: kafka`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to start from, each `host:port`.
    pub brokers: Vec<String>,
    /// The topic; it must exist.
    pub topic: String,
    /// What keeps the order: alerts with the same key go to the same partition.
    pub key: Key,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`; Azure Event Hubs takes gzip only.
    pub compression: String,
    /// Other settings of librdkafka by their own names.
    pub properties: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: "pathwatch-alerts".to_owned(),
            key: Key::Node,
            compression: "zstd".to_owned(),
            properties: BTreeMap::new(),
        }
    }
}

/// What a record's key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// The node's name.
    Node,
    /// The pod's uid; the node's name on the host.
    Pod,
    /// The policy's name.
    Policy,
    /// No key: any partition.
    None,
}

impl Config {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.brokers.is_empty() {
            return Err("ship.kafka.brokers is empty; name at least one as host:port".to_owned());
        }
        if let Some(bad) =
            self.brokers.iter().find(|b| b.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()))
        {
            return Err(format!("ship.kafka.brokers: '{bad}' is not host:port, such as kafka.example:9092"));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.topic.is_empty() || self.topic.len() > 249 || !self.topic.chars().all(allowed) {
            return Err(format!(
                "ship.kafka.topic is '{}'; Kafka allows letters, digits, '.', '_' and '-', at most 249",
                self.topic
            ));
        }
        for name in self.properties.keys() {
            if let Some((_, _, why)) = OWN.iter().find(|(own, _, _)| own == name) {
                return Err(format!("ship.kafka.properties: '{name}' cannot be set: {why}"));
            }
        }
        self.client().map(|_| ())
    }

    /// Checks every property by asking librdkafka.
    fn client(&self) -> Result<ClientConfig, String> {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers.join(",")).set("compression.type", &self.compression);
        for (name, value) in DEFAULTS {
            client.set(*name, *value);
        }
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        for (name, value, _) in OWN.iter().filter(|(_, value, _)| !value.is_empty()) {
            client.set(*name, *value);
        }
        client.set_log_level(RDKafkaLogLevel::Warning);
        match client.create_native_config() {
            Ok(_) => Ok(client),
            Err(KafkaError::ClientConfig(_, what, name, value)) => {
                Err(format!("ship.kafka: {name}={value}: {what}"))
            }
            Err(why) => Err(format!("ship.kafka: {why}")),
        }
    }
}

/// A producer for one topic.
pub(super) struct Producer {
    client: ClientConfig,
    topic: String,
    key: Key,
    node: String,
    context: Context,
    producer: ThreadedProducer<Context>,
}

/// What librdkafka's threads tell. Bounded by `queue.buffering.max.messages`: nothing is told twice.
#[derive(Clone)]
struct Context(Arc<Shared>);

struct Shared {
    settled: Mutex<Vec<Settled>>,
    something: Notify,
    degraded: AtomicBool,
    notices: Notices,
}

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.degrade(&format!("{reason} ({error})"));
    }
}

impl ProducerContext for Context {
    /// The record's sequence number.
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: Self::DeliveryOpaque) {
        let settled = match result {
            Ok(_) => {
                if self.0.degraded.swap(false, Ordering::Relaxed) {
                    tracing::info!("Kafka acknowledges again");
                }
                Settled::Delivered(*sequence)
            }
            Err((why, message)) => {
                self.degrade(&format!("topic {}: {why}", message.topic()));
                Settled::Failed(*sequence)
            }
        };
        self.0.settled.lock().unwrap_or_else(PoisonError::into_inner).push(settled);
        self.0.something.notify_one();
    }
}

impl Context {
    fn degrade(&self, why: &str) {
        if !self.0.degraded.swap(true, Ordering::Relaxed) {
            tracing::warn!("Kafka is degraded; alerts wait in the spool: {why}");
        }
        self.0.notices.add("ship", "kafka_degraded", 1, why);
    }
}

impl Producer {
    /// Connects in the background: an unreachable broker is no error here.
    pub(super) fn new(config: &Config, node: &str, notices: Notices) -> anyhow::Result<Self> {
        let client = config.client().map_err(anyhow::Error::msg)?;
        let context = Context(Arc::new(Shared {
            settled: Mutex::default(),
            something: Notify::new(),
            degraded: AtomicBool::new(false),
            notices,
        }));
        let producer = client.create_with_context(context.clone()).context("cannot make a Kafka producer")?;
        let (topic, key, node) = (config.topic.clone(), config.key, node.to_owned());
        Ok(Self { client, topic, key, node, context, producer })
    }

    /// Hands a record over.
    pub(super) fn send(&self, sequence: u64, record: &Record) -> Handed {
        let id = record.id.to_string();
        let time = record.time.to_string();
        let key = match self.key {
            Key::Node => Some(self.node.as_str()),
            Key::Pod => Some(record.pod.as_deref().unwrap_or(&self.node)),
            Key::Policy => Some(record.policy.as_str()),
            Key::None => None,
        };
        // CloudEvents 1.0, Kafka protocol binding, binary mode.
        let headers = [
            ("content-type", "application/json"),
            ("ce_specversion", record.specversion.as_str()),
            ("ce_id", &id),
            ("ce_source", &record.source),
            ("ce_type", &record.kind),
            ("ce_time", &time),
        ];
        let headers = headers.into_iter().chain(key.map(|key| ("ce_partitionkey", key)));
        let headers = headers
            .fold(OwnedHeaders::new(), |all, (name, value)| all.insert(Header { key: name, value: Some(value) }));
        let mut message = BaseRecord::with_opaque_to(&self.topic, Box::new(sequence))
            .payload(record.data.get())
            .timestamp(record.time.as_millisecond())
            .headers(headers);
        message.key = key;
        match self.producer.send(message) {
            Ok(()) => Handed::Taken,
            // Not a fault: the broker is slower than the spool. A delivery report makes room.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Handed::Full,
            Err((why, _)) => {
                self.context.degrade(&format!("topic {}: {why}", self.topic));
                Handed::Refused
            }
        }
    }

    /// Waits for delivery reports.
    pub(super) async fn settled(&self) -> Vec<Settled> {
        loop {
            let settled =
                std::mem::take(&mut *self.context.0.settled.lock().unwrap_or_else(PoisonError::into_inner));
            if !settled.is_empty() {
                return settled;
            }
            self.context.0.something.notified().await;
        }
    }

    /// Replaces the producer if it met a fatal error, from which librdkafka does not come back. What it still
    /// held is reported as failed.
    pub(super) fn renew(&mut self) {
        let Some((code, why)) = self.producer.client().fatal_error() else { return };
        match self.client.create_with_context(self.context.clone()) {
            Ok(producer) => {
                self.context.degrade(&format!("a fatal error of the producer, which is replaced: {why} ({code})"));
                self.producer = producer;
            }
            Err(why) => self.context.degrade(&format!("cannot make a new producer: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config { brokers: vec!["127.0.0.1:9092".to_owned()], ..Config::default() };
        assert_eq!(config.check(), Ok(()));
        change(&mut config);
        config.check().unwrap_err()
    }

    #[test]
    fn contradictions_are_named_with_their_remedy() {
        assert_eq!(
            complaint(|c| c.brokers.clear()),
            "ship.kafka.brokers is empty; name at least one as host:port"
        );
        assert_eq!(
            complaint(|c| c.brokers[0] = "kafka".into()),
            "ship.kafka.brokers: 'kafka' is not host:port, such as kafka.example:9092"
        );
        assert_eq!(
            complaint(|c| drop(c.properties.insert("acks".into(), "1".into()))),
            "ship.kafka.properties: 'acks' cannot be set: an acknowledged alert must survive the loss of a broker"
        );
        assert_eq!(
            complaint(|c| drop(c.properties.insert("no.such".into(), "1".into()))),
            "ship.kafka: no.such=1: No such configuration property: \"no.such\""
        );
        assert!(complaint(|c| c.compression = "rar".into()).starts_with("ship.kafka: compression.type=rar: "));
    }
}
