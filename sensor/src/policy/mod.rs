//! The policy language: what it says, how it is read, what it compiles to.
//!
//! Must not know where events come from nor where alerts go.
mod compile;
mod directory;
mod glob;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    compile::{Compiled, Patterns, PolicySet},
    directory::{Errors, load},
    glob::Glob,
};
use crate::event::{Enriched, Operation};

/// One policy as its author wrote it.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// The only one so far.
    #[serde(rename = "pathwatch.dev/v1alpha1")]
    V1Alpha1,
}

/// Kinds of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Speaks of the whole node.
    ClusterPathPolicy,
}

/// What Kubernetes calls an object's metadata.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among the policies of a directory.
    pub name: String,
}

/// What a policy says.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Globs of the files to watch.
    pub paths: Vec<String>,
    /// Globs of files that are left out again.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// What must be done to a file; by default read, write, create and truncate.
    #[serde(default = "default_operations")]
    pub operations: Vec<Operation>,
}

fn default_operations() -> Vec<Operation> {
    vec![Operation::Read, Operation::Write, Operation::Create, Operation::Truncate]
}

/// How much an alert matters. The numbers are OCSF's `severity_id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threat {
    /// Such as `TA0006`.
    pub tactic: String,
    /// Such as `T1003` or `T1003.008`.
    pub technique: String,
}

/// The name of a file that a policy matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// The path of the opened file.
    Path,
    /// The name that was asked for.
    Requested,
}

/// A policy fired on an event.
#[derive(Clone, Debug)]
pub struct Alert {
    /// The event.
    pub event: Arc<Enriched>,
    /// The policy.
    pub policy: Arc<Compiled>,
    /// The pattern of the policy that matched, as it was written.
    pub pattern: String,
    /// What it matched.
    pub view: View,
}
