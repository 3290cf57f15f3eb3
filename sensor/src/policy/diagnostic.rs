//! What is wrong with a policy, where, and what to write instead.
use std::fmt;

use serde::Serialize;

/// Most faults that are told of one document.
pub(super) const FAULTS_LIMIT: usize = 100;
/// Most bytes of a policy's text that a message repeats.
const SHOWN_LIMIT: usize = 120;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The policy is not used.
    Error,
    /// The policy is used, but probably does not do what its author wants.
    Warning,
}

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// How bad it is.
    pub level: Level,
    /// Where in the document: `spec.paths[0]`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

impl Fault {
    /// A reason not to use the policy.
    pub fn error(field: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { level: Level::Error, field: field.into(), message: message.into(), help: help.into() }
    }

    /// A reason to look at it again.
    pub fn warning(field: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(field, message, help) }
    }
}

/// A fault and the place where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file.
    pub file: String,
    /// Line, from 1; 0 if it is about the whole file.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The policy, if its name could be read.
    pub policy: Option<String>,
    /// The offending text, if it is one word of the file.
    pub text: Option<String>,
    /// What is wrong there.
    #[serde(flatten)]
    pub fault: Fault,
    /// The line, for a person.
    #[serde(skip)]
    pub source: Option<String>,
}

impl fmt::Display for Diagnostic {
    /// One line: `file:line:column: what is wrong; what to write instead`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { level, message, help, .. } = &self.fault;
        let level = if *level == Level::Warning { "warning: " } else { "" };
        let place = if self.line == 0 { String::new() } else { format!("{}:{}:", self.line, self.column) };
        write!(f, "{}:{place} {level}{}; {}", shown(&self.file), shown(message), shown(help))
    }
}

/// `text` for a terminal: a policy's author must not be able to move the cursor of its reader.
#[must_use]
pub fn shown(text: &str) -> String {
    crate::event::Name::from(text).to_string().replace("\\\\", "\\")
}

/// The beginning of `text`, if it is long.
pub(super) fn shortened(text: &str) -> String {
    let mut end = SHOWN_LIMIT.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < text.len() { "…" } else { "" };
    format!("{}{more}", text.get(..end).unwrap_or_default())
}

/// Why there are no policies to work with, a line for each fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Errors(pub String);

/// The word among `known` that `unknown` was probably meant to be.
pub(super) fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |word: &&str| strsim::damerau_levenshtein(&unknown.to_lowercase(), &word.to_lowercase());
    // A third of the word may be wrong; what is longer than any field is no misspelling of one.
    let near = known.iter().map(|word| (distance(word), *word)).min()?;
    (unknown.len() <= 64 && near.0 <= unknown.len().max(near.1.len()).div_ceil(3)).then_some(near.1)
}
