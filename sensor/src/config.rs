//! The configuration: one closed tree, from a file and from `PATHWATCH__SECTION__FIELD` variables.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::{
    apiserver::{Source, Tokens},
    capture, enrich, http, log,
    policy::{self, Severity},
    ship,
};

/// Beginning of the variables that override a field.
const PREFIX: &str = "PATHWATCH__";

/// Everything that can be set; every field has a default.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The machine.
    pub node: Node,
    /// The cluster that it belongs to.
    pub cluster: Cluster,
    /// Where policies come from.
    pub policies: Policies,
    /// How opens are seen.
    pub capture: capture::Config,
    /// How it is found out who made them.
    pub enrich: enrich::Config,
    /// Where alerts go.
    pub ship: ship::Config,
    /// Who may ask the sensor for its state.
    pub http: http::Config,
    /// What the sensor says of itself on standard error.
    pub log: log::Config,
}

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Its name in alerts; by default the host's name.
    pub name: Option<String>,
}

/// The cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Its name in alerts.
    pub name: Option<String>,
}

/// Where policies come from.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// A directory of YAML files, read with those below it.
    pub directory: PathBuf,
    /// Policies that came with the sensor, of which only those from a severity on are in force.
    pub library: Library,
    /// Changes to policies by their names (`namespace/name` for a PathPolicy): `suspend`, `severity`, more `exceptions`.
    pub overrides: BTreeMap<String, policy::Override>,
    /// Whether to use the policies that are objects of the API server; by default wherever `enrich.kubernetes` is in use.
    pub resources: bool,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            directory: "policies".into(),
            library: Library::default(),
            overrides: BTreeMap::new(),
            resources: true,
        }
    }
}

/// Policies that came with the sensor.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Library {
    /// Where they are; by default there are none.
    pub directory: Option<PathBuf>,
    /// The lowest severity of those that are in force; an override with `suspend: false` puts others in force.
    pub severity: Severity,
}

impl Default for Library {
    fn default() -> Self {
        Self { directory: None, severity: Severity::High }
    }
}

/// Why a configuration cannot be used: one line that names the place and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    pub(crate) fn new(line: String) -> Self {
        Self(line)
    }
}

impl Config {
    /// Reads `file`, if there is one, and then the variables of `environment`.
    ///
    /// # Errors
    /// Names the file, line and key, or the variable, that is wrong.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, Error> {
        let mut tree = Value::Mapping(Mapping::new());
        if let Some(file) = file {
            let place = file.display();
            let text = std::fs::read_to_string(file)
                .map_err(|why| Error(format!("cannot read the configuration {place}: {why}")))?;
            // Once into the real types, for errors with line and column; an empty file is all defaults.
            serde_yaml::from_str::<Option<Self>>(&text).map_err(|why| Error(format!("{place}: {why}")))?;
            tree = serde_yaml::from_str(&text).map_err(|why| Error(format!("{place}: {why}")))?;
            if tree.is_null() {
                tree = Value::Mapping(Mapping::new());
            }
        }
        let mut overrides: Vec<_> = environment.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        overrides.sort();
        for (name, text) in overrides {
            let keys = name.trim_start_matches(PREFIX).to_lowercase();
            let keys: Vec<&str> = keys.split("__").collect();
            let with = |value| {
                let mut changed = tree.clone();
                set(&mut changed, &keys, value);
                serde_yaml::from_value::<Self>(changed.clone()).map(|_| changed)
            };
            let value = serde_yaml::from_str(&text).map_err(|why| Error(format!("{name}: {why}")))?;
            // A name may look like a number; then it is taken as it was written.
            let as_text = |_| with(Value::String(text.clone()));
            tree = with(value).or_else(as_text).map_err(|why| Error(format!("{name}: {why}")))?;
        }
        let config: Self = serde_yaml::from_value(tree).map_err(|why| Error(why.to_string()))?;
        if config.node.name.as_deref() == Some("") {
            return Err(Error("node.name is empty; leave it out for the host's name".to_owned()));
        }
        let checks = [config.capture.check(), config.enrich.check(), config.ship.check()];
        checks.into_iter().collect::<Result<(), _>>().map_err(Error)?;
        Ok(config)
    }

    /// In a cluster the sensor must have names: of the cluster, since alerts of several are read together, and of the node,
    /// since a pod's own host name is another.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn check_cluster(&self) -> Result<(), Error> {
        let missing = if !self.enrich.in_cluster() {
            return Ok(());
        } else if self.cluster.name.as_deref().unwrap_or_default().is_empty() {
            "cluster.name is missing; in a cluster, alerts must say in which"
        } else if self.node.name.is_none() {
            "node.name is missing; in a cluster, set PATHWATCH__NODE__NAME from the pod's spec.nodeName"
        } else {
            return Ok(());
        };
        Err(Error(missing.to_owned()))
    }

    /// Whether policies may come from the API server.
    #[must_use]
    pub fn has_policies_of_cluster(&self) -> bool {
        self.policies.resources && self.enrich.in_cluster()
    }

    /// Whom to ask for the policies that are objects; None without a cluster, or where they are not wanted.
    ///
    /// # Errors
    /// When there should be a cluster to ask, and it cannot be known which.
    pub fn policies_of_cluster(&self) -> anyhow::Result<Option<Source>> {
        self.has_policies_of_cluster().then(|| Source::new("policy", self.enrich.kubeconfig.clone())).transpose()
    }

    /// Who may ask for the state of policies; None if nobody may, or if there is no cluster that would know him.
    ///
    /// # Errors
    /// As [`Self::policies_of_cluster`].
    pub fn tokens(&self) -> anyhow::Result<Option<Tokens>> {
        let user = self.http.controller.clone().filter(|_| self.enrich.in_cluster());
        user.map(|user| Ok(Tokens::new(Source::new("http", self.enrich.kubeconfig.clone())?, user))).transpose()
    }

    /// The node's name.
    #[must_use]
    pub fn node_name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.node.name.clone().unwrap_or_else(host)
    }
}

/// Sets the field at `keys`, making the sections on the way.
fn set(tree: &mut Value, keys: &[&str], value: Value) {
    let Some((key, rest)) = keys.split_first() else {
        *tree = value;
        return;
    };
    if !tree.is_mapping() {
        *tree = Value::Mapping(Mapping::new());
    }
    if let Value::Mapping(section) = tree {
        set(section.entry(Value::from(*key)).or_insert(Value::Null), rest, value);
    }
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let place = file.path().display().to_string();
        Config::load(Some(file.path()), environment).map_err(|why| why.to_string().replace(&place, "F"))
    }

    #[test]
    fn a_field_comes_from_the_file_and_from_the_environment_over_it() {
        let text = "node: {name: a}\ncapture: {ring: 1MiB}\nship: {sink: kafka, kafka: {brokers: ['k:1']}}\n";
        let config =
            load(text, &[("PATHWATCH__NODE__NAME", "b"), ("PATHWATCH__SHIP__KAFKA__TOPIC", "t"), ("HOME", "/")])
                .unwrap();
        assert_eq!(config.node_name(), "b");
        assert_eq!((config.ship.kafka.topic.as_str(), config.ship.kafka.brokers), ("t", vec!["k:1".to_owned()]));
        assert_eq!(config.capture.ring, ByteSize::mib(1));
        assert_eq!(load("", &[]).unwrap().policies.directory, Path::new("policies"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, environment, message) in [
            (
                "ship: {snik: file}",
                &[][..],
                "F: ship: unknown field `snik`, expected one of `sink`, `state_dir`, `format`, `redact`, `heartbeat`, `spool`, `storm`, `file`, `kafka` at line 1 column 8",
            ),
            ("ship: [", &[], "F: ship: invalid type: sequence, expected struct Config at line 1 column 7"),
            (
                "capture: {ring: 5000}",
                &[],
                "capture.ring is 4.9 KiB; it must be a power of two from 4KiB to 1GiB, such as 8MiB",
            ),
            ("ship: {sink: kafka}", &[], "ship.kafka.brokers is empty; name at least one as host:port"),
            (
                "ship: {sink: file, spool: {max_bytes: 0}}",
                &[],
                "ship.spool.max_bytes is 0 B; it must be at least 1MiB",
            ),
            (
                "ship: {sink: file, file: {path: a, max_bytes: 0}}",
                &[],
                "ship.file.max_bytes is 0 B; it must be at least 4KiB",
            ),
            (
                "ship: {sink: file, file: {path: a, keep: 4000000000}}",
                &[],
                "ship.file.keep is 4000000000; it must be from 1 to 1000",
            ),
            (
                "ship: {sink: kafka, kafka: {brokers: ['k:1'], topic: a b}}",
                &[],
                "ship.kafka.topic is 'a b'; Kafka allows letters, digits, '.', '_' and '-', at most 249",
            ),
            ("enrich: {hold: 1m}", &[], "enrich.hold is 1m; it must be from 0s to 10s"),
            (
                "enrich: {kubernetes: off, kubeconfig: f}",
                &[],
                "enrich.kubeconfig is set and enrich.kubernetes is off; leave one of them out",
            ),
            ("node: {name: ''}", &[], "node.name is empty; leave it out for the host's name"),
            ("ship: {sink: file}", &[], "ship.file.path is missing; name the file that alerts go to"),
            (
                "",
                &[("PATHWATCH__CAPTURE__MODE", "magic")],
                "PATHWATCH__CAPTURE__MODE: unknown variant `magic`, expected one of `auto`, `fexit`, `tracepoint`",
            ),
            (
                "",
                &[("PATHWATCH__NO__SUCH", "1")],
                "PATHWATCH__NO__SUCH: unknown field `no`, expected one of `node`, `cluster`, `policies`, `capture`, `enrich`, `ship`, `http`, `log`",
            ),
        ] {
            assert_eq!(load(text, environment).unwrap_err(), message, "{text}");
        }
    }

    #[test]
    fn in_a_cluster_the_sensor_must_have_names() {
        for (text, missing) in [
            ("enrich: {kubernetes: off}", None),
            ("enrich: {kubernetes: on}", Some("cluster.name is missing; in a cluster, alerts must say in which")),
            (
                "{enrich: {kubeconfig: f}, cluster: {name: c}}",
                Some("node.name is missing; in a cluster, set PATHWATCH__NODE__NAME from the pod's spec.nodeName"),
            ),
            ("{enrich: {kubeconfig: f}, cluster: {name: c}, node: {name: n}}", None),
        ] {
            let told = load(text, &[]).unwrap().check_cluster().map_err(|why| why.to_string());
            assert_eq!(told.err().as_deref(), missing, "{text}");
        }
    }
}
