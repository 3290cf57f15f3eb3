//! The language a second time: no trees, no indexes, every rule where policy.md has it.
use std::{collections::BTreeSet, ffi::OsStr, os::unix::ffi::OsStrExt as _};

use globset::{Candidate, GlobBuilder, GlobMatcher};
use sensor::{
    event::{Call, Enriched, Operation, Owner, PathStatus, Program, flags},
    policy::{Comparison, Files, Kind, LabelSelector, Outcome, Subjects},
};

use super::world::{Exempt, Policy};

/// What can become of a policy on an event.
pub(crate) const BRANCHES: &[&str] = &[
    "fires",
    "no pattern",
    "subject",
    "namespace unknown",
    "namespace",
    "pod",
    "container",
    "result",
    "operation",
    "files",
    "excluded",
    "excepted",
];

pub(crate) fn glob(text: &str) -> GlobMatcher {
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .empty_alternates(true)
        .build()
        .unwrap()
        .compile_matcher()
}

pub(crate) fn glob_matches(glob: &GlobMatcher, path: &[u8]) -> bool {
    // Nothing but a pattern for it matches the root directory.
    path != b"/" && glob.is_match_candidate(&Candidate::new(OsStr::from_bytes(path)))
}

fn any(globs: &[GlobMatcher], path: &[u8]) -> bool {
    globs.iter().any(|glob| glob_matches(glob, path))
}

/// Every name of a path, by trying every rule until nothing new comes.
fn names(path: &[u8]) -> BTreeSet<Vec<u8>> {
    let pairs = [
        ("/var/run", "/run"),
        ("/var/lock", "/run/lock"),
        ("/bin", "/usr/bin"),
        ("/sbin", "/usr/sbin"),
        ("/lib", "/usr/lib"),
        ("/lib32", "/usr/lib32"),
        ("/lib64", "/usr/lib64"),
        ("/libx32", "/usr/libx32"),
    ];
    let mut names = BTreeSet::from([path.to_vec()]);
    loop {
        let mut more = names.clone();
        for name in &names {
            let text = String::from_utf8_lossy(name).into_owned();
            for (one, other) in pairs {
                for (from, to) in [(one, other), (other, one)] {
                    if text == from || text.starts_with(&format!("{from}/")) {
                        more.insert([to.as_bytes(), &name[from.len()..]].concat());
                    }
                }
            }
            let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
            for at in 1..parts.len().saturating_sub(1) {
                if parts[at] == super::world::GENERATION.as_bytes() {
                    let mut parts = parts.clone();
                    parts.remove(at);
                    more.insert(parts.join(&b'/'));
                }
            }
        }
        if more == names {
            return names;
        }
        names = more;
    }
}

/// One way to see the file: its names and what is done to it.
struct View {
    names: BTreeSet<Vec<u8>>,
    operations: Vec<Operation>,
    home: bool,
    /// Known by a policy's literal, which only that policy's own literals match.
    identity: bool,
}

fn views(event: &Enriched) -> Vec<View> {
    let mut views = Vec::new();
    let mut add = |name: &[u8], operations: Vec<Operation>, home: bool| {
        views.push(View { names: names(name), operations, home, identity: false })
    };
    let open = &event.event;
    let own = operations(event);
    if let Some(path) = &open.path {
        add(path.as_bytes(), own.clone(), false);
    }
    if let Some(home) = &open.home {
        add(home.as_bytes(), own.clone(), true);
    }
    if let Some(requested) = &open.requested {
        let chroot = open.status.contains(&PathStatus::Chroot);
        if open.file.is_none() || !chroot || open.status.contains(&PathStatus::FdReplaced) {
            add(requested.as_bytes(), own.clone(), false);
        }
    }
    if let Some(target) = &open.target {
        let operations = match open.call {
            Call::Rename => vec![Operation::Write, Operation::Rename],
            Call::Link => vec![Operation::Create, Operation::Link],
            Call::Open | Call::Truncate | Call::Delete => vec![],
        };
        add(target.as_bytes(), operations, false);
    }
    for name in &event.known_as {
        let names = BTreeSet::from([name.as_bytes().to_vec()]);
        views.push(View { names, operations: own.clone(), home: false, identity: true });
    }
    views
}

/// Whether a view is what the pattern at this place of the policy asks for.
fn matched(policy: &Policy, at: usize, view: &View) -> bool {
    let glob = &policy.paths[at];
    (!view.identity || policy.literal[at]) && view.names.iter().any(|name| glob_matches(glob, name))
}

fn operations(event: &Enriched) -> Vec<Operation> {
    let open = &event.event;
    let one = match open.call {
        Call::Truncate => Some(Operation::Truncate),
        Call::Rename => Some(Operation::Rename),
        Call::Link => Some(Operation::Link),
        Call::Delete => Some(Operation::Delete),
        Call::Open if open.flags & flags::O_PATH != 0 => Some(Operation::Reference),
        Call::Open if open.flags & flags::EXEC != 0 => Some(Operation::Exec),
        Call::Open if open.file.as_ref().is_some_and(|file| file.mode & 0o170_000 == 0o040_000) => {
            Some(Operation::List)
        }
        Call::Open => None,
    };
    if let Some(one) = one {
        return vec![one];
    }
    let mut all = Vec::new();
    match open.flags & 3 {
        0 => all.push(Operation::Read),
        1 => all.push(Operation::Write),
        _ => all.extend([Operation::Read, Operation::Write]),
    }
    if open.file.as_ref().is_some_and(|file| file.created) {
        all.push(Operation::Create);
    }
    if open.flags & 0o1000 != 0 {
        all.push(Operation::Truncate);
    }
    all
}

fn selects(selector: &LabelSelector, labels: &std::collections::BTreeMap<String, String>) -> bool {
    for (key, value) in &selector.match_labels {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for condition in &selector.match_expressions {
        let holds = match (condition.operator, labels.get(&condition.key)) {
            (Comparison::In, Some(value)) => condition.values.contains(value),
            (Comparison::In, None) | (Comparison::Exists, None) => false,
            (Comparison::NotIn, Some(value)) => !condition.values.contains(value),
            (Comparison::NotIn, None) | (Comparison::Exists, Some(_)) | (Comparison::DoesNotExist, None) => true,
            (Comparison::DoesNotExist, Some(_)) => false,
        };
        if !holds {
            return false;
        }
    }
    true
}

/// Whether the path is what it seems.
fn plain(event: &Enriched) -> bool {
    use PathStatus::{
        Covered, Detached, Disconnected, FdReplaced, ForeignMount, RequestedCut, RequestedUntrusted, TooLong,
    };
    let doubts =
        [Covered, Detached, Disconnected, FdReplaced, ForeignMount, RequestedCut, RequestedUntrusted, TooLong];
    !event.event.status.iter().any(|status| doubts.contains(status))
}

fn program_is(globs: &[GlobMatcher], program: &Program) -> bool {
    let path = program.executable.as_ref();
    program.trusted && path.is_some_and(|path| names(path.as_bytes()).iter().any(|name| any(globs, name)))
}

fn exempts(exempt: &Exempt, event: &Enriched, view: &View) -> bool {
    let image = event.container.as_ref().and_then(|container| container.image.clone());
    let script = event.process.script.as_ref().map(|script| Program {
        executable: Some(script.clone()),
        trusted: event.process.trusted,
        ..Program::default()
    });
    (exempt.executables.is_empty() || program_is(&exempt.executables, &event.process))
        && (exempt.scripts.is_empty() || script.is_some_and(|script| program_is(&exempt.scripts, &script)))
        && (exempt.ancestors.is_empty()
            || event.ancestors.iter().any(|program| program_is(&exempt.ancestors, program)))
        && (exempt.users.is_empty() || event.user.is_some_and(|user| exempt.users.contains(&user)))
        && (exempt.images.is_empty() || image.is_some_and(|image| exempt.images.contains(&image)))
        && (exempt.paths.is_empty() || plain(event) && view.names.iter().any(|name| any(&exempt.paths, name)))
        && (exempt.sums.is_empty() || event.process.sha256.as_ref().is_some_and(|sum| exempt.sums.contains(sum)))
}

/// Whether any name of the event's file matches.
pub(crate) fn matches_somewhere(event: &Enriched, glob: &GlobMatcher) -> bool {
    views(event).iter().any(|view| view.names.iter().any(|name| glob_matches(glob, name)))
}

/// Which of [`BRANCHES`] the policy takes on the event.
pub(crate) fn decide(event: &Enriched, policy: &Policy) -> &'static str {
    let views = views(event);
    let asked = |view: &&View| (0..policy.paths.len()).any(|at| matched(policy, at, view));
    let matched: Vec<&View> = views.iter().filter(asked).collect();
    if matched.is_empty() {
        return "no pattern";
    }
    if let Some(other) = opener(event, policy) {
        return other;
    }
    let outcome = match -event.event.result {
        0 => Outcome::Success,
        1 | 13 => Outcome::Denied,
        2 | 20 => Outcome::Missing,
        _ => Outcome::Error,
    };
    if !policy.compiled.policy.spec.results.contains(&outcome) {
        return "result";
    }
    let branches: Vec<&str> = matched.iter().map(|view| seen(event, policy, view)).collect();
    if branches.contains(&"fires") { "fires" } else { branches[0] }
}

/// Why the policy does not speak of this process.
fn opener(event: &Enriched, policy: &Policy) -> Option<&'static str> {
    let spec = &policy.compiled.policy.spec;
    let on_host = event.container.is_none() && event.cgroup_path.is_some();
    if policy.compiled.policy.kind == Kind::PathPolicy {
        match &event.pod {
            // Its patterns are not even looked at.
            None if on_host => return Some("no pattern"),
            None => return Some("namespace unknown"),
            Some(pod) if policy.compiled.policy.metadata.namespace.as_ref() != Some(&pod.namespace) => {
                return Some("namespace");
            }
            Some(_) => {}
        }
    } else {
        let subjects = spec.subjects.unwrap_or(Subjects::Pods);
        if subjects == Subjects::Pods && on_host || subjects == Subjects::Host && event.container.is_some() {
            return Some("subject");
        }
    }
    if let (Some(selector), Some(pod)) = (&spec.namespace_selector, &event.pod)
        && let Some(labels) = &pod.namespace_labels
        && !selects(selector, labels)
    {
        return Some("namespace");
    }
    if let (Some(selector), Some(pod)) = (&spec.pod_selector, &event.pod)
        && !selects(selector, &pod.labels)
    {
        return Some("pod");
    }
    let (Some(selector), Some(container)) = (&spec.container_selector, &event.container) else { return None };
    let other = |wanted: &[String], is: &Option<String>| {
        !wanted.is_empty() && is.as_ref().is_some_and(|is| !wanted.contains(is))
    };
    (other(&selector.names, &container.name) || other(&selector.images, &container.image)).then_some("container")
}

/// What the policy makes of one view that matches.
fn seen(event: &Enriched, policy: &Policy, view: &View) -> &'static str {
    let spec = &policy.compiled.policy.spec;
    let tenant = policy.compiled.policy.kind == Kind::PathPolicy;
    let host = event.owner == Some(Owner::Host);
    let wrong_owner = match spec.files.unwrap_or(Files::Any) {
        Files::Any => false,
        Files::Own => host,
        Files::Host => event.owner == Some(Owner::Own),
    };
    if !view.operations.iter().any(|operation| spec.operations.contains(operation)) {
        "operation"
    } else if wrong_owner || tenant && view.home && event.owner != Some(Owner::Own) {
        "files"
    } else if plain(event) && view.names.iter().any(|name| any(&policy.exclude, name)) {
        "excluded"
    } else if policy.exceptions.iter().any(|exempt| exempts(exempt, event, view)) {
        "excepted"
    } else {
        "fires"
    }
}
