//! Policies made ready to be asked about every event.
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{Decided, Fault, Glob, Kind, Level, Policy, check, trie::Trie};

/// A list of patterns, of which the first that matches is named.
#[derive(Debug)]
pub struct Patterns {
    texts: Vec<String>,
    trie: Trie<u32>,
}

impl Patterns {
    /// Parses `texts`; `field` is their place in the policy, for errors.
    ///
    /// # Errors
    /// One fault for each bad pattern.
    pub fn compile(field: &str, texts: &[String]) -> Result<Self, Vec<Fault>> {
        Ok(Self::of(texts, &parse(field, texts, Glob::parse)?))
    }

    /// The same of patterns that do not begin with a slash: names of containers and images.
    ///
    /// # Errors
    /// One fault for each bad pattern.
    pub fn compile_names(field: &str, texts: &[String]) -> Result<Self, Vec<Fault>> {
        Ok(Self::of(texts, &parse(field, texts, Glob::parse_name)?))
    }

    fn of(texts: &[String], globs: &[Glob]) -> Self {
        let mut trie = Trie::default();
        globs.iter().zip(0..).for_each(|(glob, place)| trie.insert(glob, place));
        Self { texts: texts.to_vec(), trie }
    }

    /// The first pattern that matches `path`, as it was written.
    #[must_use]
    pub fn first_match(&self, path: &[u8]) -> Option<&str> {
        let mut first: Option<u32> = None;
        self.trie.matches(path, |place| first = Some(first.map_or(place, |first| first.min(place))));
        self.texts.get(first? as usize).map(String::as_str)
    }

    /// Whether a program's path matches, by that name or by its other one where /usr is merged.
    #[must_use]
    pub fn matches_program(&self, path: &[u8]) -> bool {
        let others = || super::alias::of_same_directories(path);
        self.first_match(path).is_some() || others().iter().any(|other| self.first_match(other).is_some())
    }

    /// The same of a name without slash in front, for [`Self::compile_names`].
    #[must_use]
    pub fn matches_name(&self, name: &str) -> bool {
        self.first_match(format!("/{name}").as_bytes()).is_some()
    }
}

/// Parses every text; `field` is their place in the policy.
pub(super) fn parse(
    field: &str,
    texts: &[String],
    parse: fn(&str) -> Result<Glob, super::GlobError>,
) -> Result<Vec<Glob>, Vec<Fault>> {
    let (mut globs, mut faults) = (Vec::new(), Vec::new());
    for (place, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(glob) => globs.push(glob),
            Err(why) => faults.push(Fault::error(format!("{field}[{place}]"), why.message, why.help)),
        }
    }
    if faults.is_empty() { Ok(globs) } else { Err(faults) }
}

/// One of a policy's exceptions, compiled. What the policy does not say is None, and holds for every event.
#[derive(Debug)]
pub struct Exempt {
    /// Programs.
    pub executables: Option<Patterns>,
    /// Scripts.
    pub scripts: Option<Patterns>,
    /// Programs of parents.
    pub ancestors: Option<Patterns>,
    /// Effective user ids.
    pub users: Option<Vec<u32>>,
    /// Images.
    pub images: Option<Patterns>,
    /// Files.
    pub paths: Option<Patterns>,
    /// Sums of the program, in small letters.
    pub sha256: Option<Vec<String>>,
}

/// A policy with its patterns compiled.
#[derive(Debug)]
pub struct Compiled {
    /// As it was written.
    pub policy: Policy,
    /// The file it came from.
    pub source: String,
    /// Fields that the configuration changed.
    pub overridden: Vec<String>,
    /// Changes whenever the policy does.
    pub version: String,
    /// What it watches; as many as there are in the policy's `spec.paths`.
    pub paths: Vec<Glob>,
    /// What it leaves out again.
    pub exclude: Patterns,
    /// Who is no reason for an alert.
    pub exceptions: Vec<Exempt>,
    /// Names of containers that it selects.
    pub container_names: Option<Patterns>,
    /// Images that it selects.
    pub container_images: Option<Patterns>,
    /// What its author should look at.
    pub warnings: Vec<Fault>,
}

/// What the parser and the checks of a policy's fields have to say, gathered.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    /// The value, or its faults noted.
    fn keep<T>(&mut self, outcome: Result<T, Vec<Fault>>) -> Option<T> {
        outcome.map_err(|more| self.0.extend(more)).ok()
    }

    /// Compiles `texts`, if there are any.
    fn patterns(&mut self, field: &str, texts: &[String]) -> Option<Patterns> {
        if texts.is_empty() { None } else { self.keep(Patterns::compile(field, texts)) }
    }

    /// The same for programs, of which a name in any directory is refused.
    fn programs(&mut self, field: &str, texts: &[String]) -> Option<Patterns> {
        let known = self.0.len();
        let patterns = self.patterns(field, texts);
        let new = self.0.iter_mut().skip(known).filter(|fault| fault.help.contains("for any directory"));
        new.for_each(|fault| "write its full path".clone_into(&mut fault.help));
        patterns
    }

    /// The same for names of containers and images.
    fn names(&mut self, field: &str, texts: &[String]) -> Option<Patterns> {
        if texts.is_empty() { None } else { self.keep(Patterns::compile_names(field, texts)) }
    }
}

impl Compiled {
    /// Compiles `policy`, which came from `source`; `overridden` are the fields that the configuration changed.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(policy: Policy, source: String, overridden: Vec<String>) -> Result<Self, Vec<Fault>> {
        let spec = &policy.spec;
        let mut faults = Faults(check::sizes(&policy));
        // What is too large is not compiled to say more about it.
        if !faults.0.is_empty() {
            return Err(faults.0);
        }
        let paths = faults.keep(parse("spec.paths", &spec.paths, Glob::parse));
        let exclude = faults.keep(Patterns::compile("spec.exclude", &spec.exclude));
        let exceptions = spec.exceptions.iter().enumerate().map(|(at, exception)| {
            let field = |name: &str| format!("spec.exceptions[{at}].{name}");
            Exempt {
                executables: faults.programs(&field("executables"), &exception.executables),
                scripts: faults.programs(&field("scripts"), &exception.scripts),
                ancestors: faults.programs(&field("ancestors"), &exception.ancestors),
                users: (!exception.users.is_empty()).then(|| exception.users.clone()),
                images: faults.names(&field("images"), &exception.images),
                paths: faults.patterns(&field("paths"), &exception.paths),
                sha256: (!exception.sha256.is_empty())
                    .then(|| exception.sha256.iter().map(|sum| sum.to_lowercase()).collect()),
            }
        });
        let exceptions = exceptions.collect();
        let selector = spec.container_selector.clone().unwrap_or_default();
        let container_names = faults.names("spec.containerSelector.names", &selector.names);
        let container_images = faults.names("spec.containerSelector.images", &selector.images);
        faults.0.extend(check::faults(&policy, paths.as_deref().unwrap_or_default()));
        let (errors, warnings): (Vec<_>, Vec<_>) =
            faults.0.into_iter().partition(|fault| fault.level == Level::Error);
        let (Some(paths), Some(exclude), true) = (paths, exclude, errors.is_empty()) else { return Err(errors) };
        let version = version(&policy);
        Ok(Self {
            policy,
            source,
            overridden,
            version,
            paths,
            exclude,
            exceptions,
            container_names,
            container_images,
            warnings,
        })
    }

    /// The policy's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.policy.metadata.name
    }

    /// Its name with the namespace, if it has one.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.policy.metadata.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name()),
            None => self.name().to_owned(),
        }
    }

    /// Where it can be decided that an open is none of this policy's: the worst of its patterns.
    #[must_use]
    pub fn decided(&self) -> Decided {
        self.paths.iter().map(Glob::decided).max().unwrap_or(Decided::User)
    }
}

/// The beginning of the SHA-256 sum of what the policy says.
fn version(policy: &Policy) -> String {
    let text = serde_json::to_vec(policy).unwrap_or_default();
    let mut sum = format!("{:x}", Sha256::digest(text));
    sum.truncate(12);
    sum
}

/// A policy's place in its set, and a pattern's in the policy.
type PatternId = (u32, u32);

/// The namespace of an event's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace<'a> {
    /// This one.
    Is(&'a str),
    /// That of a pod, or maybe of none, which is not known.
    Unknown,
    /// The process is the host's.
    None,
}

/// All policies in force at one time, and one tree of all their patterns.
#[derive(Debug, Default)]
pub struct PolicySet {
    /// In the order of their files, suspended ones left out.
    pub policies: Vec<Arc<Compiled>>,
    /// Patterns of ClusterPathPolicies.
    cluster: Trie<PatternId>,
    /// Patterns of PathPolicies by namespace: what one namespace writes costs the others nothing.
    namespaces: HashMap<String, Trie<PatternId>>,
    literals: BTreeSet<Vec<u8>>,
    /// Programs that some exception names.
    programs: Trie<()>,
    /// Programs of which some exception asks for the sum.
    summed: HashSet<Vec<u8>>,
}

impl PolicySet {
    /// A set of `policies`.
    #[must_use]
    pub fn new(policies: Vec<Arc<Compiled>>) -> Self {
        let mut set = Self::default();
        let active = policies.into_iter().filter(|policy| !policy.policy.spec.suspend);
        for (policy, id) in active.zip(0..) {
            let namespace = policy.policy.metadata.namespace.clone().unwrap_or_default();
            let trie = match policy.policy.kind {
                Kind::ClusterPathPolicy => &mut set.cluster,
                Kind::PathPolicy => set.namespaces.entry(namespace).or_default(),
            };
            policy.paths.iter().zip(0..).for_each(|(glob, pattern)| trie.insert(glob, (id, pattern)));
            set.add_programs(&policy);
            if policy.policy.kind == Kind::ClusterPathPolicy {
                set.literals.extend(policy.paths.iter().filter_map(Glob::literals).flatten());
            }
            set.policies.push(policy.clone());
        }
        set
    }

    /// Notes what must be known of which programs.
    fn add_programs(&mut self, policy: &Compiled) {
        for exception in &policy.policy.spec.exceptions {
            let named = [&exception.executables, &exception.scripts, &exception.ancestors];
            let globs =
                |texts: &[String]| texts.iter().filter_map(|text| Glob::parse(text).ok()).collect::<Vec<_>>();
            named.into_iter().flat_map(|texts| globs(texts)).for_each(|glob| self.programs.insert(&glob, ()));
            if !exception.sha256.is_empty() {
                self.summed.extend(globs(&exception.executables).iter().filter_map(Glob::literals).flatten());
            }
        }
    }

    /// Calls `found` with policy and pattern, by their places, for every pattern that matches `path` and may apply to
    /// a process of `namespace`; in no order and maybe more than once.
    pub fn matches(&self, path: &[u8], namespace: Namespace<'_>, mut found: impl FnMut(u32, u32)) {
        self.cluster.matches(path, |(policy, pattern)| found(policy, pattern));
        let mut search = |own: &Trie<PatternId>| own.matches(path, |(policy, pattern)| found(policy, pattern));
        match namespace {
            Namespace::Is(name) => self.namespaces.get(name).into_iter().for_each(search),
            Namespace::Unknown => self.namespaces.values().for_each(&mut search),
            Namespace::None => {}
        }
    }

    /// The literal paths of ClusterPathPolicies, each once: what may be a symbolic link.
    pub fn literals(&self) -> &BTreeSet<Vec<u8>> {
        &self.literals
    }

    /// True if some exception names the program at `path`, by that name or by its other one where /usr is merged.
    #[must_use]
    pub fn excepts(&self, path: &[u8]) -> bool {
        let mut found = false;
        self.programs.matches(path, |()| found = true);
        super::alias::of_same_directories(path)
            .iter()
            .for_each(|name| self.programs.matches(name, |()| found = true));
        found
    }

    /// True if some exception asks for the sum of the program at `executable`.
    #[must_use]
    pub fn wants_sum(&self, executable: &[u8]) -> bool {
        self.summed.contains(executable)
    }
}
