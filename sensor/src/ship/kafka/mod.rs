//! The Kafka producer. The spool is the buffer; this holds no more than what is on its way.
mod config;
mod oauth;
mod reader;
mod security;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use tokio::sync::Notify;

pub use self::{
    config::{Config, Key},
    reader::{Begin, Consumed, Reader, is_compacted},
    security::{Mechanism, Sasl, Tls},
};
use self::{oauth::TokenSource, security::Material};
use super::{
    record::Record,
    sender::{Fault, Handed, Settled},
};
use crate::{metrics::Metrics, notice::Notices};

/// How often the security files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a producer that was replaced may still deliver what it has.
const DRAIN: Duration = Duration::from_secs(10);
/// From how long before its end on a certificate is complained of.
const EXPIRES_SOON: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// A producer for one sink; it is replaced when it can no longer work, or when the security files are.
pub(super) struct Producer {
    config: Config,
    node: String,
    shared: Arc<Shared>,
    generation: u32,
    producer: ThreadedProducer<Context>,
    /// Replaced ones that may still deliver what they have, and until when.
    retired: Vec<(Instant, ThreadedProducer<Context>)>,
    /// The files that the producer was made with.
    sum: [u8; 32],
    expires: Option<Timestamp>,
    looked: Instant,
}

/// What librdkafka's threads tell.
struct Shared {
    /// Bounded by `queue.buffering.max.messages`: nothing is told twice.
    settled: Mutex<Vec<Settled>>,
    something: Notify,
    degraded: AtomicBool,
    metrics: Arc<Metrics>,
    notices: Notices,
}

/// What one producer tells.
struct Context {
    shared: Arc<Shared>,
    generation: u32,
    tokens: Option<TokenSource>,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.shared.degrade("no broker can be reached");
        } else {
            // A broker that refuses our certificate says so in the text only.
            let code = if reason.contains("SSL routines") { Some(RDKafkaErrorCode::SSL) } else { code };
            self.shared.degrade(&format!("{reason} ({error}){}", code.map_or("", remedy)));
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.tokens.as_ref().ok_or("no source of tokens")?.token().map_err(|why| {
            self.shared.degrade(&format!("{why:#}; check ship.kafka.sasl"));
            why.into()
        })
    }
}

impl ProducerContext for Context {
    /// The record's sequence number.
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Self::DeliveryOpaque) {
        let fault = match result {
            Ok(_) => {
                self.shared.recover();
                None
            }
            Err((why, message)) => Some(match why.rdkafka_error_code() {
                Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge) => {
                    Fault::TooLarge
                }
                code => {
                    let remedy = code.map_or("", remedy);
                    self.shared.degrade(&format!("topic {}: {why}{remedy}", message.topic()));
                    Fault::Later
                }
            }),
        };
        self.shared.settle(Settled { number: *number, generation: self.generation, fault });
    }
}

/// What whoever reads the message can do.
fn remedy(code: RDKafkaErrorCode) -> &'static str {
    use RDKafkaErrorCode as Code;
    #[expect(clippy::wildcard_enum_match_arm, reason = "there are some 150 codes")]
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "; check the name and the password in ship.kafka.sasl"
        }
        Code::SSL => "; check ship.kafka.tls: who signed the broker's certificate, and has one expired?",
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            "; allow this user WRITE on the topic (and DESCRIBE)"
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition => "; make the topic, or change ship.kafka.topic",
        Code::InvalidTimestamp => "; does the node's clock agree with the broker's?",
        Code::InvalidRecord => "; is the topic compacted and ship.kafka.key none?",
        _ => "",
    }
}

impl Shared {
    fn degrade(&self, why: &str) {
        if !self.degraded.swap(true, Ordering::Relaxed) {
            tracing::warn!("Kafka is degraded; alerts wait in the spool: {why}");
        }
        self.metrics.sink_degraded.set(1);
        self.notices.add("ship", "kafka_degraded", 1, why);
    }

    fn recover(&self) {
        if self.degraded.swap(false, Ordering::Relaxed) {
            tracing::info!("Kafka acknowledges again");
            self.metrics.sink_degraded.set(0);
            self.notices.add("ship", "kafka_recovered", 1, "Kafka acknowledges again");
        }
    }

    fn settle(&self, settled: Settled) {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).push(settled);
        self.something.notify_one();
    }
}

impl Producer {
    /// Connects in the background: an unreachable broker is no error here.
    ///
    /// # Errors
    /// When a security file is missing or wrong.
    pub(super) fn new(
        config: &Config,
        node: &str,
        metrics: Arc<Metrics>,
        notices: Notices,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            settled: Mutex::default(),
            something: Notify::new(),
            degraded: AtomicBool::new(false),
            metrics,
            notices,
        });
        let material = Material::read(config).context("ship.kafka")?;
        let (sum, expires) = (material.sum, material.expires);
        let producer = connect(config, &shared, material, 1)?;
        let producer = Self {
            config: config.clone(),
            node: node.to_owned(),
            shared,
            generation: 1,
            producer,
            retired: Vec::new(),
            sum,
            expires,
            looked: Instant::now(),
        };
        producer.tell_expiry();
        Ok(producer)
    }

    /// Which producer records go to now.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Hands a record over.
    pub(super) fn send(&self, number: u64, record: &Record) -> Handed {
        let id = record.id.to_string();
        let time = record.time.to_string();
        let key = match self.config.key {
            Key::Node => Some(self.node.as_str()),
            Key::Pod => Some(record.pod.as_deref().unwrap_or(&self.node)),
            Key::Policy if record.policy.is_empty() => Some(self.node.as_str()),
            Key::Policy => Some(record.policy.as_str()),
            Key::None => None,
        };
        // CloudEvents 1.0, Kafka protocol binding, binary mode.
        let headers = [
            ("content-type", "application/json"),
            ("ce_specversion", record.specversion.as_str()),
            ("ce_id", &id),
            ("ce_source", &record.source),
            ("ce_type", record.kind.name()),
            ("ce_time", &time),
            ("ce_dataschema", &record.dataschema),
        ];
        let optional = [("ce_subject", record.subject.as_deref()), ("ce_partitionkey", key)];
        let headers =
            headers.into_iter().chain(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let headers = headers
            .fold(OwnedHeaders::new(), |all, (name, value)| all.insert(Header { key: name, value: Some(value) }));
        let system = self.config.system_topic.as_ref().filter(|_| record.kind.is_system());
        let topic = system.unwrap_or(&self.config.topic);
        // A broker refuses what is from an hour ahead; the document keeps the event's own time.
        let time = record.time.min(Timestamp::now());
        let mut message = BaseRecord::with_opaque_to(topic, Box::new(number))
            .payload(record.data.get())
            .timestamp(time.as_millisecond())
            .headers(headers);
        message.key = key;
        match self.producer.send(message) {
            Ok(()) => Handed::Taken,
            // Not a fault: the broker is slower than the spool. A delivery report makes room.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Handed::Full,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => Handed::TooLarge,
            Err((why, _)) => {
                let remedy = why.rdkafka_error_code().map_or("", remedy);
                self.shared.degrade(&format!("topic {topic}: {why}{remedy}"));
                Handed::Refused
            }
        }
    }

    /// Waits for delivery reports.
    pub(super) async fn settled(&self) -> Vec<Settled> {
        loop {
            let settled = std::mem::take(&mut *self.shared.settled.lock().unwrap_or_else(PoisonError::into_inner));
            if !settled.is_empty() {
                return settled;
            }
            self.shared.something.notified().await;
        }
    }

    /// Says that the broker takes what it is sent and does not answer.
    pub(super) fn stalled(&self, age: Duration) {
        let age = age.as_secs();
        self.shared.degrade(&format!(
            "no answer for {age} s: the broker hangs, or too few replicas are in sync (min.insync.replicas)"
        ));
    }

    /// Replaces the producer if it met a fatal error, from which librdkafka does not come back.
    pub(super) fn heal(&mut self) {
        if let Some((code, why)) = self.producer.client().fatal_error() {
            let remedy = remedy(code);
            self.replace(&format!("a fatal error of the producer: {why} ({code}){remedy}"), Duration::ZERO);
        }
    }

    /// Makes a new producer; the old one may go on for `drain` with what it has. If none can be made, it stays.
    pub(super) fn replace(&mut self, why: &str, drain: Duration) {
        let made = Material::read(&self.config).and_then(|material| {
            let (sum, expires) = (material.sum, material.expires);
            Ok((connect(&self.config, &self.shared, material, self.generation + 1)?, sum, expires))
        });
        match made {
            Ok((producer, sum, expires)) => {
                let old = std::mem::replace(&mut self.producer, producer);
                self.retired.push((Instant::now() + drain, old));
                self.generation += 1;
                (self.sum, self.expires) = (sum, expires);
                tracing::info!("the Kafka producer is replaced: {why}");
                self.shared.notices.add("ship", "kafka_producer_replaced", 1, why);
                self.tell_expiry();
            }
            Err(error) => {
                let what = format!("{why}; but no new producer can be made, and the old one stays: {error:#}");
                tracing::debug!("{what}");
                self.shared.notices.add("ship", "kafka_producer_stays", 1, what);
            }
        }
        self.drop_retired();
    }

    /// Looks at the security files, and ends producers whose time is over. What those still held is reported as failed.
    pub(super) fn look(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        self.drop_retired();
        // One that cannot be read now is being replaced.
        if let Ok(sum) = security::sum(&self.config)
            && sum != self.sum
        {
            // Whatever comes of it: files of one set are not replaced at one instant, and the next change is another sum.
            self.sum = sum;
            self.replace("a certificate, key or password was replaced", DRAIN);
        }
    }

    fn drop_retired(&mut self) {
        let now = Instant::now();
        let (over, left) = std::mem::take(&mut self.retired).into_iter().partition(|(until, _)| *until <= now);
        self.retired = left;
        let over: Vec<_> = over;
        if !over.is_empty() {
            // librdkafka waits for its threads.
            // Where no thread can be made, it is waited for here.
            std::thread::Builder::new().spawn(move || drop(over)).ok();
        }
    }

    fn tell_expiry(&self) {
        let Some(expires) = self.expires else { return };
        self.shared.metrics.certificate_expires.set(u64::try_from(expires.as_second()).unwrap_or(0));
        if expires.duration_since(Timestamp::now()) < EXPIRES_SOON {
            let what =
                format!("the sensor's certificate expires at {expires}; replace ship.kafka.tls.certificate_file");
            self.shared.notices.add("ship", "certificate_expires", 1, what);
        }
    }
}

fn connect(
    config: &Config,
    shared: &Arc<Shared>,
    material: Material,
    generation: u32,
) -> anyhow::Result<ThreadedProducer<Context>> {
    let client: ClientConfig = config.producer(Some(&material)).map_err(anyhow::Error::msg)?;
    let context = Context { shared: shared.clone(), generation, tokens: material.tokens };
    client.create_with_context(context).context("cannot make a Kafka producer")
}
