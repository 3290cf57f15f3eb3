//! The policy language: what it says, how it is read, what it compiles to.
//!
//! Must not know where events come from nor where alerts go.
mod alias;
mod check;
mod compile;
mod crd;
mod diagnostic;
mod directory;
mod example;
mod exception;
mod glob;
mod keys;
mod load;
mod object;
mod parse;
mod position;
mod reload;
mod resources;
mod spec;
mod standing;
mod subject;
mod trie;

use std::sync::Arc;

use serde::Serialize;

pub use self::{
    alias::names,
    compile::{Compiled, Exempt, Namespace, Patterns, PolicySet},
    crd::crd,
    diagnostic::{Diagnostic, Errors, Fault, Level, shown},
    directory::Directory,
    example::{Example, Examples},
    exception::is_broad,
    glob::{Decided, Glob, GlobError},
    keys::wants_of,
    load::{Judge, Loaded, Override},
    object::{InForce, Object, Objects, Reference, State},
    reload::{Readers, reload, tell_unseen},
    resources::{resource, watch_resources},
    spec::{
        ApiVersion, Comparison, ContainerSelector, Exception, Files, Kind, LabelSelector, Metadata, Outcome,
        Policy, Requirement, Severity, Spec, Subjects, Threat,
    },
    standing::{Standing, Use},
    subject::Other,
};
use crate::event::Enriched;

/// The form of a policy's document as a JSON Schema, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Policy).to_value()
}

/// The name of a file that a policy matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// The path of the file.
    Path,
    /// The path of the file where it lives, whatever mounts lie between.
    Home,
    /// The name that was asked for.
    Requested,
    /// The file that a path of the policy leads to through symbolic links.
    Identity,
    /// The other name of a rename or link.
    Target,
}

impl View {
    /// The word for it in alerts.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Home => "home",
            Self::Requested => "requested",
            Self::Identity => "identity",
            Self::Target => "target",
        }
    }
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
