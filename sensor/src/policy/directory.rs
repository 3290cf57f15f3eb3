//! Policies from a directory of YAML files, read again when it changes.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    string::FromUtf8Error,
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Compiled, Diagnostic, Errors, Exception, Fault, Kind, Level, Policy, PolicySet, Severity,
    parse::{self, Key},
};

/// Largest file that is read, in bytes: far beyond any sensible policy, small enough to parse in an instant.
const FILE_LIMIT: u64 = 1 << 20;
/// Deepest directory, so that a loop of bind mounts ends.
const DEPTH_LIMIT: usize = 8;
/// Most files.
const FILES_LIMIT: usize = 10_000;
/// Most PathPolicies of one namespace, and of all.
const NAMESPACE_LIMIT: usize = 64;
const TENANTS_LIMIT: usize = 1000;

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

/// What a reading of the directory came to.
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
}

impl Loaded {
    /// The diagnostics for which a policy is not used.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.fault.level == Level::Error)
    }
}

/// What tells that a file has changed: path, device, inode, size, and times of content and of status.
type Stamp = (PathBuf, u64, u64, u64, (i64, i64), (i64, i64));

/// A directory of policies, or several, or single files.
pub struct Directory {
    paths: Vec<PathBuf>,
    overrides: BTreeMap<String, Override>,
    judge: Judge,
    stamps: Vec<Stamp>,
    /// The last good version of each policy and the file it was in.
    good: HashMap<Key, (PathBuf, Arc<Compiled>)>,
}

impl Directory {
    /// All `*.yaml` and `*.yml` at and below `paths`, changed by `overrides` and held to their examples by `judge`.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>, overrides: BTreeMap<String, Override>, judge: Judge) -> Self {
        Self { paths, overrides, judge, stamps: Vec::new(), good: HashMap::new() }
    }

    /// Reads everything if a file has come, gone or changed since the last call; None if nothing has.
    ///
    /// # Errors
    /// If a directory cannot be read; what was loaded before stays as it was.
    pub fn poll(&mut self) -> Result<Option<Loaded>, Errors> {
        let mut before = self.list()?;
        if before == self.stamps {
            return Ok(None);
        }
        // A volume of Kubernetes is swapped as a whole, by renaming `..data`: what was read of both is of neither.
        for _ in 0..10 {
            let files: Vec<_> = before.iter().map(|(path, ..)| (path.clone(), read(path))).collect();
            let after = self.list()?;
            if before == after {
                self.stamps = after;
                return Ok(Some(self.load(files)));
            }
            before = after;
        }
        Err(Errors(
            "the policies change faster than they can be read; the next look may find them at rest".to_owned(),
        ))
    }

    /// The same of one text, as if it were the only file.
    #[must_use]
    pub fn read_text(text: &[u8], judge: Judge) -> Loaded {
        let text = String::from_utf8(text.to_vec()).map_err(not_text);
        Self::new(Vec::new(), BTreeMap::new(), judge).load(vec![("policy.yaml".into(), text)])
    }

    fn list(&self) -> Result<Vec<Stamp>, Errors> {
        let mut stamps = Vec::new();
        for path in &self.paths {
            if let Err((at, why)) = list(path, 0, &mut HashSet::new(), &mut stamps) {
                let remedy =
                    if at == *path { "; name another with --policies DIR or policies.directory" } else { "" };
                return Err(Errors(format!("cannot read the policies in {}: {why}{remedy}", at.display())));
            }
        }
        stamps.sort();
        if stamps.len() > FILES_LIMIT {
            return Err(Errors(format!("{} files of policies; at most {FILES_LIMIT} are read", stamps.len())));
        }
        Ok(stamps)
    }

    fn load(&mut self, files: Vec<(PathBuf, Result<String, Fault>)>) -> Loaded {
        let mut loading = Loading::new(self);
        for (path, text) in &files {
            loading.file(path, text);
        }
        loading.keep_last_good();
        // In the order of the files again.
        loading.found.sort_by(|(_, one, _), (_, other, _)| one.cmp(other));
        for name in std::mem::take(&mut loading.overrides) {
            let fault =
                Fault::warning("", format!("no policy is named '{name}'"), "name one, or leave the override out");
            loading.diagnostics.push(without_place(&format!("policies.overrides.{name}"), fault));
        }
        let Loading { diagnostics, stale, found, .. } = loading;
        let policies: Vec<Arc<Compiled>> = found.iter().map(|(_, _, policy)| policy.clone()).collect();
        self.good = found.into_iter().map(|(key, path, policy)| (key, (path, policy))).collect();
        Loaded { set: Arc::new(PolicySet::new(policies.clone())), policies, diagnostics, stale }
    }
}

/// One reading of all files.
struct Loading<'a> {
    directory: &'a Directory,
    /// Names of overrides that have not met their policy yet.
    overrides: BTreeSet<&'a String>,
    seen: HashMap<Key, String>,
    /// Policies in the order of the files, with the file that each came from.
    found: Vec<(Key, PathBuf, Arc<Compiled>)>,
    diagnostics: Vec<Diagnostic>,
    stale: Vec<String>,
    /// Policies that are bad now.
    wanted: Vec<Key>,
}

impl<'a> Loading<'a> {
    fn new(directory: &'a Directory) -> Self {
        Self {
            directory,
            overrides: directory.overrides.keys().collect(),
            seen: HashMap::new(),
            found: Vec::new(),
            diagnostics: Vec::new(),
            stale: Vec::new(),
            wanted: Vec::new(),
        }
    }

    fn file(&mut self, path: &Path, text: &Result<String, Fault>) {
        let name = path.display().to_string();
        let file = match text {
            Ok(text) => parse::File::new(&name, text),
            Err(fault) => Err(Box::new(without_place(&name, fault.clone()))),
        };
        let file = match file {
            Ok(file) => file,
            Err(diagnostic) => {
                self.diagnostics.push(*diagnostic);
                return self.keep_all_of(path);
            }
        };
        // An editor that has cut a file and not written it yet; to take policies away, one deletes it.
        if text.as_ref().is_ok_and(|text| text.trim().is_empty()) && self.has_good(path) {
            let fault = Fault::error("", "the file is empty", "delete it if its policies are no longer wanted");
            self.diagnostics.push(without_place(&name, fault));
            return self.keep_all_of(path);
        }
        for document in file.documents() {
            let outcome = match &document.policy {
                Ok(policy) => {
                    self.compile(policy.clone(), &name).map_err(|faults| file.diagnose(&document, faults))
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
                    match document.key.clone().filter(|key| self.directory.good.contains_key(key)) {
                        Some(key) => self.wanted.push(key),
                        // Which of those that were in this file it was cannot be told.
                        None => self.keep_all_of(path),
                    }
                }
            }
        }
    }

    fn compile(&mut self, mut policy: Policy, file: &str) -> Result<Arc<Compiled>, Vec<Fault>> {
        let key = parse::key_of(&policy);
        if let Some(other) = self.seen.get(&key) {
            let message = format!("a policy named '{}' is already in {other}", key.2);
            return Err(vec![Fault::error("metadata.name", message, "rename one")]);
        }
        self.seen.insert(key, file.to_owned());
        self.quota(&policy)?;
        let full_name = match &policy.metadata.namespace {
            Some(namespace) => format!("{namespace}/{}", policy.metadata.name),
            None => policy.metadata.name.clone(),
        };
        let compiled = Arc::new(Compiled::new(policy.clone(), file.to_owned(), vec![])?);
        // Held to its examples as its author wrote it: an override may well change what they show.
        let faults = (self.directory.judge)(&compiled);
        if !faults.is_empty() {
            return Err(faults);
        }
        let Some(change) = self.directory.overrides.get(&full_name) else { return Ok(compiled) };
        self.overrides.retain(|name| **name != full_name);
        let overridden = change.apply(&mut policy);
        match Compiled::new(policy, file.to_owned(), overridden) {
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
            if let Some((path, policy)) = self.directory.good.get(&key)
                && self.found.iter().all(|(found, ..)| *found != key)
            {
                self.stale.push(policy.full_name());
                self.found.push((key, path.clone(), policy.clone()));
            }
        }
    }

    fn has_good(&self, path: &Path) -> bool {
        self.directory.good.values().any(|(from, _)| from == path)
    }

    /// Keeps all that came from a file of which it cannot be told what is in it now.
    fn keep_all_of(&mut self, path: &Path) {
        let mut keys: Vec<Key> =
            self.directory.good.iter().filter(|(_, (from, _))| from == path).map(|(key, _)| key.clone()).collect();
        keys.sort();
        self.wanted.extend(keys);
    }
}

/// A fault of a whole file, or of the configuration.
fn without_place(file: &str, fault: Fault) -> Diagnostic {
    Diagnostic { file: file.to_owned(), line: 0, column: 0, policy: None, text: None, fault, source: None }
}

fn list(
    path: &Path,
    depth: usize,
    seen: &mut HashSet<(u64, u64)>,
    stamps: &mut Vec<Stamp>,
) -> Result<(), (PathBuf, io::Error)> {
    let at = |why| (path.to_path_buf(), why);
    let found = fs::metadata(path).map_err(at)?;
    if found.is_file() {
        let times = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        stamps.push((path.to_path_buf(), found.dev(), found.ino(), found.size(), times.0, times.1));
    }
    // A link to a directory above leads here again.
    if !found.is_dir() || !seen.insert((found.dev(), found.ino())) {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?.path();
        let name = entry.file_name().unwrap_or_default().as_encoded_bytes();
        // Hidden: editors' leftovers, and the directories behind a mounted ConfigMap's links.
        let hidden = name.first() == Some(&b'.');
        let yaml = matches!(entry.extension().map(|e| e.as_encoded_bytes()), Some(b"yaml" | b"yml"));
        if hidden || depth >= DEPTH_LIMIT || !(yaml || entry.is_dir()) {
            continue;
        }
        // One that cannot be looked at is one bad file, unless it has just gone.
        if list(&entry, depth + 1, seen, stamps).is_err() && fs::symlink_metadata(&entry).is_ok() {
            stamps.push((entry, 0, 0, 0, (0, 0), (0, 0)));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Fault> {
    let unreadable = |why: io::Error| Fault::error("", format!("cannot be read: {why}"), "check its permissions");
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(unreadable)?;
    file.by_ref().take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_LIMIT {
        let size = file.metadata().map_or(FILE_LIMIT + 1, |found| found.size());
        return Err(Fault::error(
            "",
            format!("the file has {size} bytes; at most {FILE_LIMIT} are read"),
            "split it",
        ));
    }
    String::from_utf8(bytes).map_err(not_text)
}

fn not_text(why: FromUtf8Error) -> Fault {
    let at = why.utf8_error().valid_up_to();
    Fault::error("", format!("byte {at} is not UTF-8"), "write a byte that is no text as \\xNN in a pattern")
}
