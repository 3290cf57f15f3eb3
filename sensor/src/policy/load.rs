//! From texts to the policies in force: one bad policy disables neither the others nor its own last good version.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Compiled, Diagnostic, Exception, Fault, InForce, Kind, Level, Object, Policy, PolicySet, Severity, State,
    object::{NAMESPACE_LIMIT, TENANTS_LIMIT},
    parse::{self, Key},
};

/// What a policy's examples say about it: a fault for each that does not behave.
pub type Judge = fn(&Arc<Compiled>) -> Vec<Fault>;

/// A change to a policy that somebody else wrote.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Override {
    /// Switches it off, or on again.
    pub suspend: Option<bool>,
    /// How much an alert matters here.
    pub severity: Option<Severity>,
    /// More exceptions.
    pub exceptions: Vec<Exception>,
}

impl Override {
    /// Changes `policy`; returns the fields that it changed.
    fn apply(&self, policy: &mut Policy) -> Vec<String> {
        let mut fields = Vec::new();
        if let Some(suspend) = self.suspend {
            policy.spec.suspend = suspend;
            fields.push("suspend".to_owned());
        }
        if let Some(severity) = self.severity {
            policy.spec.severity = severity;
            fields.push("severity".to_owned());
        }
        if !self.exceptions.is_empty() {
            policy.spec.exceptions.extend(self.exceptions.iter().cloned());
            fields.push("exceptions".to_owned());
        }
        fields
    }
}

/// What a reading of all policies came to.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The policies to work with, suspended ones left out.
    pub set: Arc<PolicySet>,
    /// All that are good, suspended ones included.
    pub policies: Vec<Arc<Compiled>>,
    /// Faults and warnings, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// Policies that are bad now and of which the last good version stays in force.
    pub stale: Vec<String>,
    /// What has become of each object of the API server.
    pub objects: Vec<InForce>,
}

impl Loaded {
    /// The diagnostics for which a policy is not used.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.fault.level == Level::Error)
    }
}

/// A text that holds policies.
pub(super) struct Text {
    /// The file; of an object its kind and name.
    pub(super) place: PathBuf,
    pub(super) text: Result<String, Fault>,
    pub(super) object: Option<Object>,
    /// It is of the library, of which only so much as this is wanted.
    pub(super) from: Option<Severity>,
}

impl Text {
    pub(super) fn of_object(object: Object) -> Self {
        let refused = || match object.refused.clone() {
            Some(why) => Fault::error("", why, "delete others, or write several patterns into one policy"),
            None => Fault::error("", "there is room for it again", "it is being fetched"),
        };
        let text = object.text.as_deref().map(str::to_owned).ok_or_else(refused);
        Self { place: object.reference.place().into(), text, object: Some(object), from: None }
    }

    /// What alerts name as a policy's source.
    fn source(&self) -> String {
        let place = self.place.display();
        self.object.as_ref().map_or_else(|| place.to_string(), |object| format!("{place}@{}", object.generation))
    }
}

/// What is remembered from one reading to the next.
pub(super) struct Loader {
    overrides: BTreeMap<String, Override>,
    judge: Judge,
    /// The last good version of each policy and the place that it came from.
    good: HashMap<Key, (PathBuf, Arc<Compiled>)>,
}

impl Loader {
    pub(super) fn new(overrides: BTreeMap<String, Override>, judge: Judge) -> Self {
        Self { overrides, judge, good: HashMap::new() }
    }

    /// Forgets the last good version of a policy.
    pub(super) fn forget(&mut self, key: &Key) {
        self.good.remove(key);
    }

    /// Of two policies of one name, the first is used.
    pub(super) fn load(&mut self, texts: &[Text]) -> Loaded {
        let mut loading = Loading::new(self);
        texts.iter().for_each(|text| loading.text(text));
        loading.keep_last_good();
        // In the order of the files again.
        loading.found.sort_by(|(_, one, _), (_, other, _)| one.cmp(other));
        for name in std::mem::take(&mut loading.overrides) {
            let fault =
                Fault::warning("", format!("no policy is named '{name}'"), "name one, or leave the override out");
            loading.diagnostics.push(without_place(&format!("policies.overrides.{name}"), fault));
        }
        let Loading { diagnostics, stale, found, mut objects, .. } = loading;
        for object in objects.iter_mut().filter(|object| object.state == State::Failed) {
            let place = PathBuf::from(object.reference.place());
            if found.iter().any(|(_, from, _)| *from == place) {
                object.state = State::Stale;
            }
        }
        let policies: Vec<Arc<Compiled>> = found.iter().map(|(_, _, policy)| policy.clone()).collect();
        self.good = found.into_iter().map(|(key, path, policy)| (key, (path, policy))).collect();
        Loaded { set: Arc::new(PolicySet::new(policies.clone())), policies, diagnostics, stale, objects }
    }
}

/// One reading of all texts.
struct Loading<'a> {
    loader: &'a Loader,
    /// Names of overrides that have not met their policy yet.
    overrides: BTreeSet<&'a String>,
    seen: HashMap<Key, String>,
    /// Policies that somebody has written, good or bad: those of the library by these names are not meant.
    named: HashSet<Key>,
    /// Policies in the order of the files, with the file that each came from.
    found: Vec<(Key, PathBuf, Arc<Compiled>)>,
    diagnostics: Vec<Diagnostic>,
    stale: Vec<String>,
    objects: Vec<InForce>,
    /// Policies that are bad now.
    wanted: Vec<Key>,
}

impl<'a> Loading<'a> {
    fn new(loader: &'a Loader) -> Self {
        Self {
            loader,
            overrides: loader.overrides.keys().collect(),
            seen: HashMap::new(),
            named: HashSet::new(),
            found: Vec::new(),
            diagnostics: Vec::new(),
            stale: Vec::new(),
            objects: Vec::new(),
            wanted: Vec::new(),
        }
    }

    fn text(&mut self, text: &Text) {
        let known = self.diagnostics.len();
        self.documents(text);
        let Some(object) = &text.object else { return };
        let new = self.diagnostics.get_mut(known..).unwrap_or_default();
        new.iter_mut().for_each(|diagnostic| *diagnostic = of_object(diagnostic));
        // An override that does not fit is the configuration's fault, and the object is used without.
        let place = text.place.display().to_string();
        let error = new.iter().find(|found| found.fault.level == Level::Error && found.file == place);
        let reason = error.map(|error| format!("{}; {}", error.fault.message, error.fault.help));
        let policy = self.found.last().filter(|(key, ..)| *key == object.reference.key());
        let state = match &reason {
            Some(_) if text.text.is_err() => State::Refused,
            Some(_) => State::Failed,
            None if policy.is_some_and(|(.., policy)| policy.policy.spec.suspend) => State::Suspended,
            None => State::Active,
        };
        let reason = reason.unwrap_or_default();
        self.objects.push(InForce {
            reference: object.reference.clone(),
            generation: object.generation,
            state,
            reason,
        });
    }

    fn documents(&mut self, source: &Text) {
        let Text { place: path, text, .. } = source;
        let name = path.display().to_string();
        let file = match text {
            Ok(text) => parse::File::new(&name, text),
            Err(fault) => Err(Box::new(without_place(&name, fault.clone()))),
        };
        let file = match file {
            Ok(file) => file,
            Err(diagnostic) => {
                self.diagnostics.push(*diagnostic);
                // A tenant's that there is no room for must not take room as its last good version.
                if source.object.as_ref().is_none_or(|object| object.reference.kind != Kind::PathPolicy) {
                    self.keep_all_of(path);
                }
                return;
            }
        };
        // An editor that has cut a file and not written it yet; to take policies away, one deletes it.
        if text.as_ref().is_ok_and(|text| text.trim().is_empty()) && self.has_good(path) {
            let fault = Fault::error("", "the file is empty", "delete it if its policies are no longer wanted");
            self.diagnostics.push(without_place(&name, fault));
            return self.keep_all_of(path);
        }
        for document in file.documents() {
            if source.from.is_some() && document.key.as_ref().is_some_and(|key| self.named.contains(key)) {
                continue;
            }
            self.named.extend(document.key.clone());
            let outcome = match &document.policy {
                Ok(policy) => {
                    self.compile(policy.clone(), source).map_err(|faults| file.diagnose(&document, faults))
                }
                Err(diagnostics) => Err(diagnostics.clone()),
            };
            match outcome {
                Ok(policy) => {
                    self.diagnostics.extend(file.diagnose(&document, policy.warnings.clone()));
                    self.found.push((parse::key_of(&policy.policy), path.to_path_buf(), policy));
                }
                Err(diagnostics) => {
                    self.diagnostics.extend(diagnostics);
                    match document.key.clone().filter(|key| self.loader.good.contains_key(key)) {
                        Some(key) => self.wanted.push(key),
                        // Which of those that were in this file it was cannot be told.
                        None => self.keep_all_of(path),
                    }
                }
            }
        }
    }

    fn compile(&mut self, mut policy: Policy, text: &Text) -> Result<Arc<Compiled>, Vec<Fault>> {
        let file = text.source();
        let key = parse::key_of(&policy);
        if let Some(other) = self.seen.get(&key) {
            let message = format!("a policy named '{}' is already in {other}", key.2);
            return Err(vec![Fault::error("metadata.name", message, "rename one")]);
        }
        self.seen.insert(key.clone(), file.clone());
        self.quota(&policy)?;
        let full_name = match &policy.metadata.namespace {
            Some(namespace) => format!("{namespace}/{}", policy.metadata.name),
            None => policy.metadata.name.clone(),
        };
        // Whoever changes one policy again and again does not have all of them compiled again and again.
        let unchanged =
            |good: &Compiled| good.policy == policy && good.source == file && good.overridden.is_empty();
        let unwanted = text.from.is_some_and(|from| policy.spec.severity < from);
        if let Some((_, good)) = self.loader.good.get(&key).filter(|(_, good)| unchanged(good))
            && !self.loader.overrides.contains_key(&full_name)
            && !unwanted
        {
            return Ok(good.clone());
        }
        let compiled = Arc::new(Compiled::new(policy.clone(), file.clone(), vec![])?);
        // Held to its examples as its author wrote it: an override may well change what they show.
        let faults = (self.loader.judge)(&compiled);
        if !faults.is_empty() {
            return Err(faults);
        }
        let change = self.loader.overrides.get(&full_name);
        if change.is_none() && !unwanted {
            return Ok(compiled);
        }
        self.overrides.retain(|name| **name != full_name);
        policy.spec.suspend |= unwanted;
        let overridden = change.cloned().unwrap_or_default().apply(&mut policy);
        match Compiled::new(policy, file, overridden) {
            Ok(changed) => Ok(Arc::new(changed)),
            Err(faults) => {
                let place = format!("policies.overrides.{full_name}");
                let unused = |mut fault: Fault| {
                    fault.help += "; the policy is used without this override";
                    without_place(&place, fault)
                };
                self.diagnostics.extend(faults.into_iter().map(unused));
                Ok(compiled)
            }
        }
    }

    /// Anybody with rights in a namespace may write PathPolicies: there is a limit to how many.
    fn quota(&self, policy: &Policy) -> Result<(), Vec<Fault>> {
        if policy.kind != Kind::PathPolicy {
            return Ok(());
        }
        let tenants = self
            .found
            .iter()
            .map(|(_, _, policy)| &policy.policy)
            .filter(|policy| policy.kind == Kind::PathPolicy);
        let own = tenants.clone().filter(|other| other.metadata.namespace == policy.metadata.namespace).count();
        let message = if own >= NAMESPACE_LIMIT {
            format!("the namespace has {NAMESPACE_LIMIT} PathPolicies already")
        } else if tenants.count() >= TENANTS_LIMIT {
            format!("there are {TENANTS_LIMIT} PathPolicies already")
        } else {
            return Ok(());
        };
        Err(vec![Fault::error("metadata.name", message, "delete one, or write several patterns into one policy")])
    }

    /// Keeps the last good version of each policy that is bad now and has no good one anywhere.
    fn keep_last_good(&mut self) {
        for key in std::mem::take(&mut self.wanted) {
            if let Some((path, policy)) = self.loader.good.get(&key)
                && self.found.iter().all(|(found, ..)| *found != key)
            {
                self.stale.push(policy.full_name());
                self.found.push((key, path.clone(), policy.clone()));
            }
        }
    }

    fn has_good(&self, path: &Path) -> bool {
        self.loader.good.values().any(|(from, _)| from == path)
    }

    /// Keeps all that came from a file of which it cannot be told what is in it now.
    fn keep_all_of(&mut self, path: &Path) {
        let mut keys: Vec<Key> =
            self.loader.good.iter().filter(|(_, (from, _))| from == path).map(|(key, _)| key.clone()).collect();
        keys.sort();
        self.wanted.extend(keys);
    }
}

/// A fault of a whole file, or of the configuration.
pub(super) fn without_place(file: &str, fault: Fault) -> Diagnostic {
    Diagnostic { file: file.to_owned(), line: 0, column: 0, policy: None, text: None, fault, source: None }
}

/// An object has fields, but no lines.
fn of_object(found: &Diagnostic) -> Diagnostic {
    let Fault { level, field, message, help } = found.fault.clone();
    let message = if field.is_empty() { message } else { format!("{field}: {message}") };
    let fault = Fault { level, field, message, help };
    Diagnostic { policy: found.policy.clone(), text: found.text.clone(), ..without_place(&found.file, fault) }
}
