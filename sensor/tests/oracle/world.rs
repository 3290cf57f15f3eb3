//! Random policies, and events in the world that they speak of.
use std::{collections::BTreeMap, sync::Arc};

use fastrand::Rng;
use globset::GlobMatcher;
use sensor::{
    event::{Container, Enriched, Name, Operation, Owner, PathStatus, Pod, Program},
    matcher::event_of,
    policy::{Compiled, Example, Outcome},
};
use serde_json::{Value, json};

use super::{
    decision::glob,
    globs::{Pattern, SAME, pick, random_path},
};

/// A generation of an atomic-writer volume.
pub(crate) const GENERATION: &str = "..2026_11_22_10_11_12.1";

const PROGRAMS: &[&str] = &["/usr/bin/aa", "/usr/sbin/bb", "/opt/cc"];
const IMAGES: &[&str] = &["reg.example/a", "reg.example/b"];
const OPERATIONS: &[&str] =
    &["read", "write", "create", "truncate", "rename", "link", "delete", "exec", "list", "reference"];
const RESULTS: &[&str] = &["success", "denied", "missing", "error"];

/// An exception as the oracle has it.
#[derive(Default)]
pub(crate) struct Exempt {
    pub(crate) executables: Vec<GlobMatcher>,
    pub(crate) scripts: Vec<GlobMatcher>,
    pub(crate) ancestors: Vec<GlobMatcher>,
    pub(crate) users: Vec<u32>,
    pub(crate) images: Vec<String>,
    pub(crate) paths: Vec<GlobMatcher>,
    pub(crate) sums: Vec<String>,
}

/// A policy, compiled by the product and by the oracle.
pub(crate) struct Policy {
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) paths: Vec<GlobMatcher>,
    /// Which of them have no wildcards but braces.
    pub(crate) literal: Vec<bool>,
    pub(crate) exclude: Vec<GlobMatcher>,
    pub(crate) exceptions: Vec<Exempt>,
}

pub(crate) struct World {
    pub(crate) policies: Vec<Policy>,
    patterns: Vec<Pattern>,
}

/// Changes a path by a byte, a component or an alias.
pub(crate) fn mutate(path: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.usize(..=path.len());
    match rng.u8(..6) {
        0 => path.insert(at, *rng.choice(b"ab/.\xff").unwrap()),
        1 if at < path.len() => drop(path.remove(at)),
        2 => path.extend(b"/a"),
        3 => {
            let prefix = pick(rng, &["/bin", "/usr/bin", "/run", "/var/run", "/var/lock", "/usr/lib64", "/lib"]);
            path.splice(..0, prefix.bytes());
        }
        4 => {
            let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            path.splice(slash..slash, format!("/{GENERATION}").bytes());
        }
        _ => {}
    }
}

/// Calls the directory that a path begins with by another of its names, if it has one.
fn rename(path: &mut Vec<u8>, rng: &mut Rng) {
    for group in SAME {
        let own = group.iter().find(|name| {
            path.strip_prefix(name.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        });
        if let Some(own) = own {
            path.splice(..own.len(), pick(rng, group).bytes());
            return;
        }
    }
}

/// Whether the kernel can have such a path: absolute, without empty components.
pub(crate) fn is_path(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && path.len() > 1
        && !path.ends_with(b"/")
        && !path.windows(2).any(|two| two == b"//")
}

fn some<'a>(rng: &mut Rng, from: &[&'a str]) -> Vec<&'a str> {
    let chosen: Vec<&str> = from.iter().filter(|_| rng.u8(..3) > 0).copied().collect();
    if chosen.is_empty() { from.to_vec() } else { chosen }
}

fn labels(rng: &mut Rng) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for key in ["app", "team"] {
        if rng.bool() {
            labels.insert(key.to_owned(), pick(rng, &["x", "y"]).to_owned());
        }
    }
    labels
}

fn selector(rng: &mut Rng) -> Value {
    let operator = *rng.choice(&["In", "NotIn", "Exists", "DoesNotExist"]).unwrap();
    let values = if operator.ends_with("In") { json!(["x"]) } else { json!([]) };
    match rng.u8(..3) {
        0 => json!({"matchLabels": labels(rng)}),
        _ => {
            json!({"matchExpressions": [{"key": pick(rng, &["app", "team"]), "operator": operator, "values": values}]})
        }
    }
}

impl World {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut world = Self { policies: vec![], patterns: vec![] };
        while world.policies.len() < 2 {
            let name = format!("p{}", world.policies.len());
            if let Some((policy, patterns)) = Policy::random(rng, &name) {
                world.policies.push(policy);
                world.patterns.extend(patterns);
            }
        }
        world
    }

    fn path(&self, rng: &mut Rng) -> Vec<u8> {
        loop {
            let mut path = match rng.u8(..20) {
                0 => random_path(rng),
                _ => self.patterns[rng.usize(..self.patterns.len())].path(rng),
            };
            if rng.u8(..10) == 0 {
                mutate(&mut path, rng);
            }
            if rng.bool() {
                rename(&mut path, rng);
            }
            if is_path(&path) {
                return path;
            }
        }
    }

    /// An event as examples make them, changed in everything that examples cannot say.
    pub(crate) fn event(&self, rng: &mut Rng) -> Enriched {
        let verb = rng.u8(..8);
        let name = || Some("/x".to_owned());
        let operation = |rng: &mut Rng| serde_json::from_value::<Operation>(json!(pick(rng, OPERATIONS))).unwrap();
        let outcome = |rng: &mut Rng| serde_json::from_value::<Outcome>(json!(pick(rng, RESULTS))).unwrap();
        let example = Example {
            open: (verb > 2).then(name).flatten(),
            rename: (verb == 0).then(name).flatten(),
            link: (verb == 1).then(name).flatten(),
            delete: (verb == 2).then(name).flatten(),
            to: (verb < 2).then(name).flatten(),
            operation: (verb > 2 && rng.bool()).then(|| operation(rng)),
            result: (rng.u8(..10) == 0).then(|| outcome(rng)),
            ..Example::default()
        };
        let mut event = event_of(&example, false, None);
        let open = &mut event.event;
        let named = |rng: &mut Rng| Name::from(self.path(rng));
        let found = open.path.is_some();
        open.path = found.then(|| named(rng));
        open.requested = (!found || rng.u8(..4) == 0).then(|| named(rng));
        open.home = (rng.u8(..6) == 0).then(|| named(rng));
        open.target = open.target.as_ref().map(|_| named(rng));
        event.known_as = (0..rng.u8(..8) / 3).map(|_| named(rng)).collect();
        if rng.u8(..6) == 0 {
            let doubts = [
                PathStatus::Chroot,
                PathStatus::Detached,
                PathStatus::FdReplaced,
                PathStatus::FdRacePossible,
                PathStatus::Deleted,
            ];
            event.event.status = vec![*rng.choice(&doubts).unwrap()];
        }
        people(&mut event, rng);
        event
    }
}

/// Who did it.
fn people(event: &mut Enriched, rng: &mut Rng) {
    let program = |rng: &mut Rng| Program {
        executable: (rng.u8(..8) > 0).then(|| {
            let path = pick(rng, PROGRAMS);
            Name::from(if rng.bool() { path.replace("/usr/", "/") } else { path.to_owned() }.as_str())
        }),
        trusted: rng.u8(..5) > 0,
        ..Program::default()
    };
    let mut own = program(rng);
    own.script = (rng.u8(..4) == 0).then(|| pick(rng, PROGRAMS).into());
    own.sha256 = (rng.u8(..4) == 0).then(|| pick(rng, &["a", "b"]).repeat(64));
    event.process = own.into();
    event.ancestors = (0..rng.usize(..3)).map(|_| program(rng).into()).collect();
    event.user = (rng.u8(..6) > 0).then(|| rng.u32(..3));
    event.owner = *rng.choice(&[None, Some(Owner::Own), Some(Owner::Host)]).unwrap();
    let in_container = rng.u8(..10) < 6;
    event.cgroup_path = (rng.u8(..8) > 0).then(|| "/c".into());
    let container = in_container.then(|| Container {
        name: (rng.u8(..4) > 0).then(|| pick(rng, &["api", "web"]).to_owned()),
        image: (rng.u8(..4) > 0).then(|| pick(rng, IMAGES).to_owned()),
        ..Container::default()
    });
    event.container = container.map(Into::into);
    let pod = (in_container && rng.u8(..6) > 0).then(|| Pod {
        namespace: pick(rng, &["shop", "bank"]).to_owned(),
        labels: labels(rng),
        namespace_labels: (rng.u8(..4) > 0).then(|| labels(rng)),
        ..Pod::default()
    });
    event.pod = pod.map(Into::into);
}

impl Policy {
    /// A policy; None if the product refuses it, as one that can never match.
    fn random(rng: &mut Rng, name: &str) -> Option<(Self, Vec<Pattern>)> {
        let pattern = |rng: &mut Rng| {
            let literal = if rng.u8(..3) == 0 { Pattern::of_path(&random_path(rng), rng) } else { None };
            literal.unwrap_or_else(|| Pattern::random(rng))
        };
        let patterns: Vec<Pattern> = (0..rng.usize(1..4)).map(|_| pattern(rng)).collect();
        // Now and then a file that the policy watches, else anything.
        let excluded = (0..rng.u8(..4) / 2).filter_map(|_| {
            let path = patterns[0].path(rng);
            if rng.bool() && is_path(&path) { Pattern::of_path(&path, rng) } else { Some(Pattern::random(rng)) }
        });
        let exclude: Vec<Pattern> = excluded.collect();
        let texts = |patterns: &[Pattern]| patterns.iter().map(|pattern| pattern.text.clone()).collect::<Vec<_>>();
        let mut spec = json!({"paths": texts(&patterns), "exclude": texts(&exclude)});
        if rng.u8(..8) == 0 {
            spec["operations"] = json!(some(rng, OPERATIONS));
        }
        if rng.u8(..4) == 0 {
            spec["results"] = json!(some(rng, RESULTS));
        }
        let tenant = rng.u8(..8) == 0;
        if !tenant {
            spec["subjects"] = json!(pick(rng, &["all", "all", "all", "all", "all", "all", "pods", "host"]));
            if rng.u8(..8) == 0 {
                spec["files"] = json!(pick(rng, &["own", "host", "any"]));
            }
            if rng.u8(..6) == 0 {
                spec["namespaceSelector"] = selector(rng);
            }
        }
        if rng.u8(..10) == 0 {
            spec["podSelector"] = selector(rng);
        }
        if rng.u8(..10) == 0 {
            spec["containerSelector"] =
                if rng.bool() { json!({"names": ["api"]}) } else { json!({"images": [IMAGES[0]]}) };
        }
        let (fields, exceptions) = (0..rng.u8(..6) / 4).map(|_| exception(rng)).unzip::<_, _, Vec<_>, Vec<_>>();
        spec["exceptions"] = Value::from(fields);
        let mut metadata = json!({"name": name});
        if tenant {
            metadata["namespace"] = json!("shop");
        }
        let kind = if tenant { "PathPolicy" } else { "ClusterPathPolicy" };
        let document =
            json!({"apiVersion": "pathwatch.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
        let policy = serde_json::from_value(document).unwrap();
        let compiled = Arc::new(Compiled::new(policy, String::new(), vec![]).ok()?);
        let globs = |patterns: &[Pattern]| patterns.iter().map(|pattern| glob(&pattern.globset)).collect();
        let literal = patterns.iter().map(Pattern::is_literal).collect();
        let policy = Self { compiled, paths: globs(&patterns), literal, exclude: globs(&exclude), exceptions };
        // Events are about what is left out, too.
        Some((policy, [patterns, exclude].concat()))
    }
}

/// An exception, in the policy's words and in the oracle's.
fn exception(rng: &mut Rng) -> (Value, Exempt) {
    let (mut fields, mut exempt) = (json!({"acknowledgeBroad": true}), Exempt::default());
    let mut used = false;
    while !used {
        for field in ["executables", "scripts", "ancestors", "users", "images", "paths", "sha256"] {
            if rng.u8(..6) > 0 {
                continue;
            }
            used = true;
            let program = pick(rng, PROGRAMS);
            match field {
                "executables" => exempt.executables.push(glob(program)),
                "scripts" => exempt.scripts.push(glob(program)),
                "ancestors" => exempt.ancestors.push(glob(program)),
                "users" => exempt.users.push(rng.u32(..3)),
                "images" => exempt.images.push(pick(rng, IMAGES).to_owned()),
                "sha256" => exempt.sums.push("a".repeat(64)),
                _ => exempt.paths.push(glob("/{a,b,etc,usr}/**")),
            }
            fields[field] = match field {
                "users" => json!(exempt.users),
                "images" => json!(exempt.images),
                "sha256" => json!(["A".repeat(64)]),
                "paths" => json!(["/{a,b,etc,usr}/**"]),
                _ => json!([program]),
            };
        }
    }
    (fields, exempt)
}
