//! A topic read from its beginning to what is its end now, or on from there.
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rdkafka::{
    ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::OAuthToken,
    config::FromClientConfigAndContext as _,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
};

use super::{Config, oauth::TokenSource, security::Material};

/// Longest wait for a broker.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A record as it was read.
#[derive(Debug)]
pub struct Consumed {
    /// Where it is.
    pub partition: i32,
    /// And at which place there.
    pub offset: i64,
    /// The document.
    pub payload: Vec<u8>,
}

struct Context {
    tokens: Option<TokenSource>,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!("{reason} ({error})");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.tokens.as_ref().ok_or("no source of tokens")?.token().map_err(Into::into)
    }
}

impl ConsumerContext for Context {}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest record that is kept.
    Beginning,
    /// With what comes from now on.
    End,
}

/// A reader of a topic. It is no member of a group, and changes nothing.
pub struct Reader {
    consumer: BaseConsumer<Context>,
    topic: String,
    /// The offset at which each partition ended when this began, of those that are not read up to it yet.
    ends: HashMap<i32, i64>,
    /// Records up to there.
    total: u64,
    /// Partitions at whose beginning retention has removed records.
    cut: HashSet<i32>,
}

impl Reader {
    /// Opens `topic` of the configured brokers.
    ///
    /// # Errors
    /// When there is no broker or no topic, or if the topic is compacted: that removes records of its own accord.
    pub fn open(config: &Config, topic: &str, begin: Begin) -> anyhow::Result<Self> {
        let material = Material::read(config)?;
        let mut client = config.client(Some(&material));
        client
            .set("group.id", "pathwatch-reader")
            .set("enable.auto.commit", "false")
            .set("client.id", "pathwatch");
        client.set("fetch.message.max.bytes", "4194304").set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer<Context> =
            client.create_with_context(Context { tokens: material.tokens.clone() })?;
        let brokers = config.brokers.join(",");
        // With tokens, the first comes by way of a poll.
        drop(consumer.poll(Duration::from_millis(1)));
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).with_context(|| {
            format!("no answer from {brokers}; are the addresses and ship.kafka.tls and sasl right?")
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty());
        let Some(found) = found else { bail!("there is no topic {topic} at {brokers}") };
        let (mut ends, mut total, mut cut) = (HashMap::new(), 0, HashSet::new());
        let mut assignment = TopicPartitionList::new();
        for partition in found.partitions() {
            let id = partition.id();
            let (low, high) = consumer.fetch_watermarks(topic, id, TIMEOUT)?;
            if low > 0 {
                cut.insert(id);
            }
            if high > low {
                ends.insert(id, high);
                total += u64::try_from(high - low).unwrap_or(0);
            }
            let offset = if begin == Begin::Beginning { Offset::Offset(low) } else { Offset::Offset(high) };
            assignment.add_partition_offset(topic, id, offset)?;
        }
        if begin == Begin::End {
            ends.clear();
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer, topic: topic.to_owned(), ends, total, cut })
    }

    /// Records that the topic holds, about: what transactions and compaction left out counts too.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether retention has removed records at the partition's beginning.
    #[must_use]
    pub fn is_cut(&self, partition: i32) -> bool {
        self.cut.contains(&partition)
    }

    /// The next record up to what was the end at the beginning; None when all were read.
    ///
    /// # Errors
    /// When the broker is gone, or does not let this user read.
    pub fn next_of_all(&mut self) -> anyhow::Result<Option<Consumed>> {
        while !self.ends.is_empty() {
            match self.poll(TIMEOUT)? {
                Some(consumed) => {
                    if self.ends.get(&consumed.partition).is_some_and(|end| consumed.offset + 1 >= *end) {
                        self.ends.remove(&consumed.partition);
                    }
                    return Ok(Some(consumed));
                }
                None => {
                    // The last offsets may hold no records: where the next would come from is what counts.
                    let position = self.consumer.position()?;
                    let before = self.ends.len();
                    self.ends.retain(|id, end| {
                        let at = position.find_partition(&self.topic, *id).map(|at| at.offset());
                        !matches!(at, Some(Offset::Offset(at)) if at >= *end)
                    });
                    if self.ends.len() == before {
                        bail!("the broker has stopped answering; what was read is not all of {}", self.topic);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The next record, if one comes in that time.
    ///
    /// # Errors
    /// As [`Self::next_of_all`].
    pub fn poll(&self, timeout: Duration) -> anyhow::Result<Option<Consumed>> {
        let Some(message) = self.consumer.poll(timeout) else { return Ok(None) };
        let message = message.with_context(|| format!("cannot read {}", self.topic))?;
        Ok(Some(Consumed {
            partition: message.partition(),
            offset: message.offset(),
            payload: message.payload().unwrap_or_default().to_vec(),
        }))
    }
}

/// Whether the topic is compacted. Who may not ask is not told.
///
/// # Errors
/// When no client can be made.
pub async fn is_compacted(config: &Config, topic: &str) -> anyhow::Result<bool> {
    let material = Material::read(config)?;
    let client = config.client(Some(&material));
    let admin = AdminClient::from_config_and_context(&client, Context { tokens: material.tokens.clone() })?;
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let answer = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await?;
    let policy = answer
        .into_iter()
        .flatten()
        .find_map(|resource| resource.get("cleanup.policy").and_then(|entry| entry.value.clone()));
    Ok(policy.is_some_and(|policy| policy.contains("compact")))
}
