//! Policies made ready to be asked about every event.
use std::{collections::HashMap, sync::Arc};

use regex_automata::{MatchKind, meta, util::syntax};

use super::{Glob, Policy};

/// Most memory that the wildcards of one policy may compile to: one author cannot exhaust the node.
const REGEX_LIMIT: usize = 10 << 20;

/// Longest description, in bytes.
const DESCRIPTION_LIMIT: usize = 4096;

/// A list of patterns, of which the first that matches is named.
#[derive(Debug)]
pub struct Patterns {
    texts: Vec<String>,
    /// Patterns without wildcards: the path, and its place in `texts`.
    literals: HashMap<Vec<u8>, usize>,
    /// The others in one automaton, and their places in `texts`.
    wild: Option<(meta::Regex, Vec<usize>)>,
}

impl Patterns {
    /// Parses and compiles `texts`; `field` is their place in the policy, for errors.
    ///
    /// # Errors
    /// One line for each bad pattern.
    pub fn compile(field: &str, texts: &[String]) -> Result<Self, Vec<String>> {
        let (mut literals, mut wild, mut places, mut errors) = (HashMap::new(), vec![], vec![], vec![]);
        for (place, text) in texts.iter().enumerate() {
            match Glob::parse(text) {
                Ok(glob) => {
                    if let Some(path) = glob.literal() {
                        literals.entry(path).or_insert(place);
                    } else {
                        wild.push(glob.regex());
                        places.push(place);
                    }
                }
                Err(why) => errors.push(format!("{field}[{place}]: {why}")),
            }
        }
        let syntax = syntax::Config::new().utf8(false).unicode(false);
        let config = meta::Config::new()
            .utf8_empty(false)
            .match_kind(MatchKind::LeftmostFirst)
            .nfa_size_limit(Some(REGEX_LIMIT));
        let built = meta::Regex::builder().configure(config).syntax(syntax).build_many(&wild);
        let wild = match built {
            Ok(_) if places.is_empty() => None,
            Ok(regex) => Some((regex, places)),
            Err(why) => {
                errors.push(format!(
                    "{field}: together the wildcards are too large to compile ({why}); split the policy"
                ));
                None
            }
        };
        if errors.is_empty() { Ok(Self { texts: texts.to_vec(), literals, wild }) } else { Err(errors) }
    }

    /// The first pattern that matches `path`, as it was written: one without wildcards before the others.
    #[must_use]
    pub fn first_match(&self, path: &[u8]) -> Option<&str> {
        let place = self.literals.get(path).copied().or_else(|| {
            let (regex, places) = self.wild.as_ref()?;
            places.get(regex.find(path)?.pattern().as_usize()).copied()
        })?;
        self.texts.get(place).map(String::as_str)
    }
}

/// A policy with its patterns compiled.
#[derive(Debug)]
pub struct Compiled {
    /// As it was written.
    pub policy: Policy,
    /// The file it came from.
    pub source: String,
    /// What it watches.
    pub paths: Patterns,
    /// What it leaves out again.
    pub exclude: Patterns,
}

impl Compiled {
    /// Compiles `policy`, which came from `source`.
    ///
    /// # Errors
    /// One line for each fault.
    pub fn new(policy: Policy, source: String) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        if policy.metadata.name.is_empty() {
            errors.push("metadata.name is empty; alerts name their policy by it".to_owned());
        }
        if policy.spec.paths.is_empty() {
            errors.push("spec.paths is empty; name at least one file to watch".to_owned());
        }
        if policy.spec.operations.is_empty() {
            errors.push("spec.operations is empty; leave it out for read, write, create and truncate".to_owned());
        }
        if policy.spec.description.len() > DESCRIPTION_LIMIT {
            errors.push(format!(
                "spec.description has more than {DESCRIPTION_LIMIT} bytes, and every alert carries it; shorten it"
            ));
        }
        let mut patterns = |field: &str, texts: &[String]| {
            Patterns::compile(field, texts).map_err(|more| errors.extend(more)).ok()
        };
        let paths = patterns("spec.paths", &policy.spec.paths);
        let exclude = patterns("spec.exclude", &policy.spec.exclude);
        match (paths, exclude) {
            (Some(paths), Some(exclude)) if errors.is_empty() => Ok(Self { policy, source, paths, exclude }),
            _ => Err(errors),
        }
    }

    /// The policy's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.policy.metadata.name
    }
}

/// All policies in force at one time.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    /// In the order of their files, suspended ones left out.
    pub policies: Vec<Arc<Compiled>>,
}
