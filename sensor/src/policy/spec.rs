//! What a policy document may hold. The comments here are what an editor shows: the published schema is made of them.
use std::{collections::BTreeMap, fmt};

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::example::Examples;
use crate::event::Operation;

/// A policy of Pathwatch: which accesses to which files raise an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Version of the language.
    pub api_version: ApiVersion,
    /// Whose files and pods it may speak of.
    pub kind: Kind,
    /// Its name.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

/// Versions of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only one so far.
    #[serde(rename = "pathwatch.dev/v1alpha1")]
    V1Alpha1,
}

/// Kinds of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// Speaks of the whole node.
    ClusterPathPolicy,
    /// Speaks of the pods of its own namespace.
    PathPolicy,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ClusterPathPolicy, Self::PathPolicy];

    /// The name of the resource, as kubectl and RBAC have it.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::ClusterPathPolicy => "clusterpathpolicies",
            Self::PathPolicy => "pathpolicies",
        }
    }
}

/// What Kubernetes calls an object's metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among the policies of its kind and namespace.
    pub name: String,
    /// The namespace of a PathPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// For people and tools; the sensor does not look at them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For people and tools; the sensor does not look at them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Why an alert matters, in one sentence.
    #[serde(default)]
    pub description: String,
    /// How much it matters.
    #[serde(default)]
    pub severity: Severity,
    /// Free words for the reader of alerts.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The techniques of MITRE ATT&CK that it is about.
    #[serde(default)]
    pub threat: Vec<Threat>,
    /// Switches it off without deleting it.
    #[serde(default)]
    pub suspend: bool,
    /// Who opens: processes of pods, of the host, or all. By default pods. ClusterPathPolicy only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subjects: Option<Subjects>,
    /// Whose file: the opener's own (its container's and its pod's), the host's, or any. By default any.
    /// ClusterPathPolicy only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
    /// Labels of the opener's namespace. ClusterPathPolicy only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the opener's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// The opener's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_selector: Option<ContainerSelector>,
    /// Globs of the files to watch. `*` any bytes but `/`, `?` one byte but `/`, `**` whole components, `[a-z]`,
    /// `{a,b}`, `\` escapes, `\xNN` one byte. `/dir/**` is what is below `/dir`.
    pub paths: Vec<String>,
    /// Globs of files that are left out again.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// What must be done to a file; by default read, write, create, truncate, rename, link and delete.
    #[serde(default = "default_operations")]
    pub operations: Vec<Operation>,
    /// How it must have ended; by default success or denied.
    #[serde(default = "default_results")]
    pub results: Vec<Outcome>,
    /// Accesses that raise no alert: any one of these entries is enough.
    #[serde(default)]
    pub exceptions: Vec<Exception>,
    /// Repeats of an alert within the window are counted, not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,
    /// What goes beyond it is summed up instead of sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// What the policy does, shown on accesses; `pathwatch policy check` holds it to them.
    #[serde(default)]
    pub examples: Examples,
}

fn default_operations() -> Vec<Operation> {
    use Operation::{Create, Delete, Link, Read, Rename, Truncate, Write};
    vec![Read, Write, Create, Truncate, Rename, Link, Delete]
}

fn default_results() -> Vec<Outcome> {
    vec![Outcome::Success, Outcome::Denied]
}

/// How much an alert matters. The numbers are OCSF's `severity_id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For the record.
    Informational = 1,
    /// Worth a look in passing.
    Low = 2,
    /// Worth a look.
    #[default]
    Medium = 3,
    /// Worth a look now.
    High = 4,
    /// Worth waking somebody.
    Critical = 5,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        })
    }
}

/// A technique of MITRE ATT&CK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Threat {
    /// Such as `TA0006`.
    pub tactic: String,
    /// Such as `T1003` or `T1003.008`.
    pub technique: String,
}

/// Who opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Subjects {
    /// Processes in containers.
    #[default]
    Pods,
    /// All others.
    Host,
    /// Everybody.
    All,
}

/// Whose file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Files {
    /// The opener's own.
    Own,
    /// The host's, opened from a container.
    Host,
    /// Anybody's.
    #[default]
    Any,
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it was meant to.
    Success,
    /// With EACCES or EPERM.
    Denied,
    /// With ENOENT or ENOTDIR.
    Missing,
    /// With any other errno.
    Error,
}

impl Outcome {
    /// What `result`, zero or a negative errno, means.
    #[must_use]
    pub fn of(result: i32) -> Self {
        match result {
            0 => Self::Success,
            -1 | -13 => Self::Denied,
            -2 | -20 => Self::Missing,
            _ => Self::Error,
        }
    }
}

/// Kubernetes' label selector: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LabelSelector {
    /// Labels with these values.
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    pub match_expressions: Vec<Requirement>,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Comparison,
    /// What it is compared with; empty for `Exists` and `DoesNotExist`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Comparison {
    /// Its value is one of the values.
    In,
    /// There is no such label, or its value is none of the values.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is none.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether `labels` are selected.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |condition: &Requirement| {
            let value = labels.get(&condition.key);
            let among = value.is_some_and(|value| condition.values.contains(value));
            match condition.operator {
                Comparison::In => among,
                Comparison::NotIn => !among,
                Comparison::Exists => value.is_some(),
                Comparison::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(holds)
    }
}

/// Containers by name and image; both must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerSelector {
    /// Globs of names in the pod; absent is any.
    pub names: Vec<String>,
    /// Globs of fully qualified images, without tag and digest; absent is any.
    pub images: Vec<String>,
}

/// Accesses that raise no alert: every field that is there must hold, by any one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Exception {
    /// Globs of the running program, by the kernel's path. It counts only if the program is trusted: on the host it
    /// is root's and nobody else can write it, in a container it came with the image.
    pub executables: Vec<String>,
    /// Globs of scripts that were executed through their `#!` line; `python x.py` has none.
    pub scripts: Vec<String>,
    /// Globs of a parent's, grandparent's … program, up to 5 generations up.
    pub ancestors: Vec<String>,
    /// Effective user ids, in the process's user namespace.
    pub users: Vec<u32>,
    /// Globs of fully qualified images, without tag and digest.
    pub images: Vec<String>,
    /// Globs of files.
    pub paths: Vec<String>,
    /// SHA-256 sums of the executable, in hexadecimal digits.
    pub sha256: Vec<String>,
    /// The author knows that this exception lets anybody through who can run an interpreter or a shell.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub acknowledge_broad: bool,
}

/// Repeats of an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedup {
    /// How long repeats are counted before their number is sent; `0s` sends every one.
    #[schemars(with = "String")]
    pub window: SignedDuration,
}

/// Most alerts of a policy on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}
