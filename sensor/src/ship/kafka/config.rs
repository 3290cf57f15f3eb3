//! Settings of `sink: kafka`.
use std::collections::BTreeMap;

use jiff::SignedDuration;
use rdkafka::{ClientConfig, config::RDKafkaLogLevel, error::KafkaError};
use serde::{Deserialize, Serialize};

use super::security::{Material, Sasl, Tls};

/// Settings that `ship.kafka.properties` may not change, because delivery depends on them, and why.
const OWN: &[(&str, &str, &str)] = &[
    ("enable.idempotence", "true", "it forces acks=all and keeps retries from reordering or repeating"),
    ("acks", "all", "an acknowledged alert must survive the loss of a broker"),
    ("message.timeout.ms", "0", "the spool decides when an alert is given up, not a timer"),
    ("message.send.max.retries", "2147483647", "the spool decides when an alert is given up, not a count"),
    ("queue.buffering.max.messages", "4000", "it bounds the sensor's memory"),
    ("queue.buffering.max.kbytes", "6144", "it bounds the sensor's memory"),
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
    ("security.protocol", "", "it follows from ship.kafka.tls and ship.kafka.sasl"),
    ("sasl.mechanism", "", "it is ship.kafka.sasl.mechanism"),
    ("sasl.mechanisms", "", "it is ship.kafka.sasl.mechanism"),
    ("debug", "", "it would log what is sent"),
    ("plugin.library.paths", "", "it would load code into the sensor"),
];

/// Beginnings of names that hold secrets, or say where they are.
const SECRET: &[(&str, &str)] = &[
    ("sasl.username", "ship.kafka.sasl"),
    ("sasl.password", "ship.kafka.sasl.password_file"),
    ("sasl.oauthbearer", "ship.kafka.sasl"),
    ("ssl.key", "ship.kafka.tls.key_file"),
    ("ssl.certificate", "ship.kafka.tls.certificate_file"),
    ("ssl.ca", "ship.kafka.tls.ca_file"),
    ("ssl.keystore", "ship.kafka.tls"),
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
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to start from, each `host:port`.
    pub brokers: Vec<String>,
    /// The topic; it must exist.
    pub topic: String,
    /// Another topic for losses, health and heartbeats.
    pub system_topic: Option<String>,
    /// What keeps the order: alerts with the same key go to the same partition.
    pub key: Key,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`; Azure Event Hubs takes gzip only.
    pub compression: String,
    /// Encryption; `{}` trusts the machine's own certificate authorities.
    pub tls: Option<Tls>,
    /// Who the sensor is to the broker.
    pub sasl: Option<Sasl>,
    /// How long a broker may take what it is sent without an answer before that is said; after five times as long the
    /// connection is made anew.
    #[schemars(with = "String")]
    pub stall: SignedDuration,
    /// Other settings of librdkafka by their own names.
    pub properties: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: "pathwatch-alerts".to_owned(),
            system_topic: None,
            key: Key::Node,
            compression: "zstd".to_owned(),
            tls: None,
            sasl: None,
            stall: SignedDuration::from_secs(60),
            properties: BTreeMap::new(),
        }
    }
}

/// What a record's key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// Refuses addresses that are none.
    fn check_brokers(&self) -> Result<(), String> {
        if self.brokers.is_empty() {
            return Err("ship.kafka.brokers is empty; name at least one as host:port".to_owned());
        }
        if let Some(bad) =
            self.brokers.iter().find(|b| b.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()))
        {
            return Err(format!("ship.kafka.brokers: '{bad}' is not host:port, such as kafka.example:9092"));
        }
        Ok(())
    }

    /// Refuses settings that contradict each other, or that librdkafka refuses.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        self.check_brokers()?;
        let topics = [("topic", Some(&self.topic)), ("system_topic", self.system_topic.as_ref())];
        for (name, topic) in topics.into_iter().filter_map(|(name, topic)| Some((name, topic?))) {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if topic.is_empty() || topic.len() > 249 || !topic.chars().all(allowed) {
                return Err(format!(
                    "ship.kafka.{name} is '{topic}'; Kafka allows letters, digits, '.', '_' and '-', at most 249"
                ));
            }
        }
        if self.system_topic.as_ref() == Some(&self.topic) {
            return Err("ship.kafka.system_topic is ship.kafka.topic; leave it out, or name another".to_owned());
        }
        if !(1..=3600).contains(&self.stall.as_secs()) {
            return Err(format!("ship.kafka.stall is {:#}; it must be from 1s to 1h", self.stall));
        }
        for name in self.properties.keys() {
            if let Some((_, _, why)) = OWN.iter().find(|(own, _, _)| own == name) {
                return Err(format!("ship.kafka.properties: '{name}' cannot be set: {why}"));
            }
            if let Some((_, instead)) = SECRET.iter().find(|(secret, _)| name.starts_with(secret)) {
                return Err(format!("ship.kafka.properties: '{name}' cannot be set: use {instead}"));
            }
        }
        if let Some(sasl) = &self.sasl {
            sasl.check(self.tls.is_some())?;
        }
        if let Some(tls) = &self.tls {
            tls.check()?;
        }
        self.producer(None).map(|_| ())
    }

    /// A client of these brokers, with the security `material` once that is read.
    pub(super) fn client(&self, material: Option<&Material>) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers.join(","));
        client.set_log_level(RDKafkaLogLevel::Warning);
        for (name, value) in material.into_iter().flat_map(Material::properties) {
            client.set(name, value);
        }
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        client
    }

    /// The same for a producer; every property is checked by asking librdkafka.
    pub(super) fn producer(&self, material: Option<&Material>) -> Result<ClientConfig, String> {
        let mut client = self.client(material);
        client.set("compression.type", &self.compression);
        for (name, value) in DEFAULTS.iter().filter(|(name, _)| !self.properties.contains_key(*name)) {
            client.set(*name, *value);
        }
        for (name, value, _) in OWN.iter().filter(|(_, value, _)| !value.is_empty()) {
            client.set(*name, *value);
        }
        match client.create_native_config() {
            Ok(_) => Ok(client),
            // The value may be a secret, whatever the name: somebody may have put it in the wrong place.
            Err(KafkaError::ClientConfig(_, what, name, value)) => {
                Err(format!("ship.kafka: {name}: {}", what.replace(&value, "…")))
            }
            Err(why) => Err(format!("ship.kafka: {why}")),
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

    fn property(name: &str) -> String {
        complaint(|c| drop(c.properties.insert(name.into(), "1".into())))
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
            property("acks"),
            "ship.kafka.properties: 'acks' cannot be set: an acknowledged alert must survive the loss of a broker"
        );
        assert_eq!(
            property("sasl.password"),
            "ship.kafka.properties: 'sasl.password' cannot be set: use ship.kafka.sasl.password_file"
        );
        assert_eq!(property("no.such"), "ship.kafka: no.such: No such configuration property: \"no.such\"");
        assert!(complaint(|c| c.compression = "rar".into()).starts_with("ship.kafka: compression.type: "));
        let jaas = complaint(|c| drop(c.properties.insert("sasl.jaas.config".into(), "hunter2".into())));
        assert!(jaas.starts_with("ship.kafka: sasl.jaas.config: ") && !jaas.contains("hunter2"), "{jaas}");
        assert_eq!(
            complaint(|c| c.stall = SignedDuration::ZERO),
            "ship.kafka.stall is 0s; it must be from 1s to 1h"
        );
        let sasl = |mechanism: &str, more: &str| {
            complaint(|c| {
                c.tls = Some(Tls::default());
                c.sasl = Some(serde_yaml::from_str(&format!("{{mechanism: {mechanism}{more}}}")).unwrap());
            })
        };
        assert_eq!(sasl("PLAIN", ""), "ship.kafka.sasl.username is missing; PLAIN needs it, or username_file");
        assert_eq!(
            sasl("SCRAM-SHA-512", ", username: u"),
            "ship.kafka.sasl.password_file is missing; SCRAM-SHA-512 needs it"
        );
        assert_eq!(
            sasl("OAUTHBEARER", ""),
            "ship.kafka.sasl needs token_file, or token_endpoint with client_id and client_secret_file"
        );
        assert_eq!(
            complaint(|c| c.sasl =
                Some(serde_yaml::from_str("{mechanism: PLAIN, username: u, password_file: f}").unwrap())),
            "ship.kafka.sasl without ship.kafka.tls would send the password where others can read it; add 'tls: {}'"
        );
        assert_eq!(
            complaint(|c| c.tls = Some(serde_yaml::from_str("{key_file: f}").unwrap())),
            "ship.kafka.tls.certificate_file is missing; a key_file needs it"
        );
    }
}
