//! What has become of every policy, for whoever asks the sensor.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Compiled, Decided, Diagnostic, Loaded, Severity};

/// Most reasons that are kept of one policy.
const REASONS: usize = 3;

/// What has become of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its name with the namespace, if it has one; where that cannot be read, the file.
    pub name: String,
    /// Whether opens are judged by it.
    pub state: Use,
    /// How much an alert of it matters; None where it cannot be read.
    pub severity: Option<Severity>,
    /// The file, or the object and its generation.
    pub source: String,
    /// Each of its patterns, and where it is decided that an open is none of its business.
    pub patterns: Vec<(String, Decided)>,
    /// Why it is not used as it stands, or what its author should look at.
    pub reasons: Vec<String>,
}

/// Whether opens are judged by a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// It is bad, and there is no earlier version.
    Failed,
    /// It is bad now; its last good version is in force.
    Stale,
    /// As it stands.
    InForce,
    /// Its author has switched it off, or it is below what is wanted of the library.
    Suspended,
}

impl Standing {
    fn of(policy: &Compiled, state: Use) -> Self {
        let patterns = policy.policy.spec.paths.iter().zip(&policy.paths);
        Self {
            name: policy.full_name(),
            state,
            severity: Some(policy.policy.spec.severity),
            source: policy.source.clone(),
            patterns: patterns.map(|(text, glob)| (text.clone(), glob.decided())).collect(),
            reasons: Vec::new(),
        }
    }
}

impl Loaded {
    /// What has become of every policy, those first that need somebody's attention.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let mut all: BTreeMap<String, Standing> = BTreeMap::new();
        for policy in &self.policies {
            let name = policy.full_name();
            let state = match policy.policy.spec.suspend {
                _ if self.stale.contains(&name) => Use::Stale,
                true => Use::Suspended,
                false => Use::InForce,
            };
            all.insert(name, Standing::of(policy, state));
        }
        for diagnostic in self.errors() {
            let Diagnostic { file, policy, .. } = diagnostic;
            // Of a file that cannot be read it is not known which policies are in it; of those there were, it is.
            let stale = all.values().find(|standing| standing.state == Use::Stale && standing.source == *file);
            let name = policy.clone().or_else(|| stale.map(|standing| standing.name.clone()));
            let name = name.unwrap_or_else(|| file.clone());
            let failed = || Standing {
                name: name.clone(),
                state: Use::Failed,
                severity: None,
                source: file.clone(),
                patterns: Vec::new(),
                reasons: Vec::new(),
            };
            let standing = all.entry(name.clone()).or_insert_with(failed);
            if standing.reasons.len() < REASONS {
                standing.reasons.push(diagnostic.to_string());
            }
        }
        let mut all: Vec<Standing> = all.into_values().collect();
        all.sort_by_key(|standing| standing.state);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;
    use crate::policy::Directory;

    fn document(name: &str, rest: &str) -> String {
        format!(
            "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: {name}}}\nspec: {{subjects: all, {rest}}}\n"
        )
    }

    #[test]
    fn what_needs_attention_comes_first_with_its_reason() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(place.path().join(name), text).unwrap();
        write("a.yaml", document("turns-bad", "paths: [/a]"));
        write("b.yaml", document("good", "paths: [/b, '/c/**']"));
        write("c.yaml", document("asleep", "paths: [/c], suspend: true"));
        let mut directory = Directory::new(vec![place.path().to_owned()], BTreeMap::new(), |_| Vec::new());
        directory.poll().unwrap().unwrap();
        // Of a file that is no YAML any more nobody can read the name.
        write("a.yaml", "spec: [".to_owned());
        write("d.yaml", document("always-bad", "pahts: [/d]"));
        let standings = directory.poll().unwrap().unwrap().standings();
        let told: Vec<(&str, Use, usize)> =
            standings.iter().map(|one| (one.name.as_str(), one.state, one.reasons.len())).collect();
        assert_eq!(
            told,
            [
                ("always-bad", Use::Failed, 1),
                ("turns-bad", Use::Stale, 1),
                ("good", Use::InForce, 0),
                ("asleep", Use::Suspended, 0),
            ]
        );
        assert_eq!(
            standings[2].patterns,
            [("/b".to_owned(), Decided::Kernel), ("/c/**".to_owned(), Decided::Kernel)]
        );
    }
}
