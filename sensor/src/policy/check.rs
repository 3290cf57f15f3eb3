//! What serde cannot see: fields that contradict each other, and what no author can have meant.
use std::time::Duration;

use super::{
    Decided, Glob, Kind, Policy, Severity,
    diagnostic::Fault,
    exception,
    spec::{Comparison, LabelSelector, Spec},
};

/// Longest description, in bytes: every alert carries it.
const DESCRIPTION_LIMIT: usize = 4096;
/// Most patterns of a list.
const PATTERNS_LIMIT: usize = 10_000;
/// Most bytes of all patterns of a policy together, braces multiplied out.
const EXPANDED_LIMIT: usize = 1 << 20;
/// Longest window of repeats.
const WINDOW_LIMIT: Duration = Duration::from_secs(86_400);

/// What a PathPolicy, which anybody with rights in a namespace may write, can ask of every node.
mod quota {
    pub(super) const PATHS: usize = 256;
    pub(super) const EXCEPTIONS: usize = 64;
    pub(super) const PATTERN: usize = 1024;
    pub(super) const EXPANDED: usize = 64 << 10;
}

/// What is too large to be looked at closely.
pub(super) fn sizes(policy: &Policy) -> Vec<Fault> {
    let spec = &policy.spec;
    let tenant = policy.kind == Kind::PathPolicy;
    let (paths, exceptions) =
        if tenant { (quota::PATHS, quota::EXCEPTIONS) } else { (PATTERNS_LIMIT, PATTERNS_LIMIT) };
    let own = |exception: &super::Exception| {
        [
            exception.executables.len(),
            exception.scripts.len(),
            exception.ancestors.len(),
            exception.users.len(),
            exception.images.len(),
            exception.paths.len(),
            exception.sha256.len(),
        ]
        .iter()
        .sum::<usize>()
    };
    let counts = [
        ("spec.paths", "patterns", spec.paths.len(), paths),
        ("spec.exclude", "patterns", spec.exclude.len(), paths),
        ("spec.exceptions", "entries", spec.exceptions.len(), exceptions),
        ("spec.exceptions", "values", spec.exceptions.iter().map(own).sum(), exceptions * 16),
        ("spec.examples", "examples", spec.examples.fires.len() + spec.examples.silent.len(), 1000),
    ];
    let mut faults: Vec<Fault> = counts
        .into_iter()
        .filter(|(_, _, count, limit)| count > limit)
        .map(|(field, what, count, limit)| {
            let kind = policy.kind;
            Fault::error(field, format!("{count} {what}; a {kind:?} may have {limit}"), "split the policy")
        })
        .collect();
    if tenant {
        for (at, text) in spec.paths.iter().enumerate().filter(|(_, text)| text.len() > quota::PATTERN) {
            let message = format!("a pattern of {} bytes; a PathPolicy's may have {}", text.len(), quota::PATTERN);
            faults.push(Fault::error(format!("spec.paths[{at}]"), message, "shorten it with a wildcard"));
        }
    }
    faults
}

/// Everything else that is wrong with `policy`, whose `spec.paths` are `paths`, as far as they could be parsed.
pub(super) fn faults(policy: &Policy, paths: &[Glob]) -> Vec<Fault> {
    let spec = &policy.spec;
    let mut faults = metadata(policy);
    faults.extend(lists(spec));
    faults.extend(kind(policy, paths));
    faults.extend(threat(spec));
    for (field, selector) in
        [("spec.namespaceSelector", &spec.namespace_selector), ("spec.podSelector", &spec.pod_selector)]
    {
        faults.extend(selector.iter().flat_map(|selector| label_selector(field, selector)));
    }
    faults.extend(rates(spec));
    faults.extend(reach(policy, paths));
    faults.extend(exception::faults(spec, paths));
    faults.extend(super::example::faults(&spec.examples));
    faults
}

fn metadata(policy: &Policy) -> Vec<Fault> {
    let metadata = &policy.metadata;
    let mut faults = Vec::new();
    let object = |name: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        (1..=253).contains(&name.len())
            && name.bytes().all(|byte| inner(byte) || byte == b'-' || byte == b'.')
            && name.bytes().next().is_some_and(inner)
            && name.bytes().last().is_some_and(inner)
    };
    let names = [("metadata.name", Some(&metadata.name)), ("metadata.namespace", metadata.namespace.as_ref())];
    for (field, name) in names {
        if let Some(name) = name.filter(|name| !object(name)) {
            let message = format!("'{}' cannot name an object", super::diagnostic::shortened(name));
            faults.push(Fault::error(field, message, "use small letters, digits, '-' and '.', at most 253"));
        }
    }
    match (policy.kind, &metadata.namespace) {
        (Kind::PathPolicy, None) => faults.push(Fault::error(
            "metadata",
            "a PathPolicy belongs to a namespace",
            "add metadata.namespace, or make it a ClusterPathPolicy",
        )),
        (Kind::ClusterPathPolicy, Some(_)) => faults.push(Fault::error(
            "metadata.namespace",
            "a ClusterPathPolicy belongs to no namespace",
            "leave it out, or make it a PathPolicy",
        )),
        _ => {}
    }
    faults
}

fn lists(spec: &Spec) -> Vec<Fault> {
    let empty = [
        (spec.paths.is_empty(), "spec.paths", "name at least one file to watch"),
        (
            spec.operations.is_empty(),
            "spec.operations",
            "leave it out for read, write, create, truncate, rename, link and delete",
        ),
        (spec.results.is_empty(), "spec.results", "leave it out for success and denied"),
    ];
    let mut faults: Vec<Fault> = empty
        .into_iter()
        .filter(|(empty, ..)| *empty)
        .map(|(_, field, help)| Fault::error(field, format!("{field} is empty"), help))
        .collect();
    if spec.description.len() > DESCRIPTION_LIMIT {
        let message = format!("more than {DESCRIPTION_LIMIT} bytes, and every alert carries it");
        faults.push(Fault::error("spec.description", message, "shorten it"));
    }
    faults
}

/// What only one kind of policy may say.
fn kind(policy: &Policy, paths: &[Glob]) -> Vec<Fault> {
    if policy.kind == Kind::ClusterPathPolicy {
        return Vec::new();
    }
    let spec = &policy.spec;
    let cluster_only = [
        ("subjects", spec.subjects.is_some()),
        ("files", spec.files.is_some()),
        ("namespaceSelector", spec.namespace_selector.is_some()),
    ];
    let mut faults: Vec<Fault> = cluster_only
        .into_iter()
        .filter(|(_, used)| *used)
        .map(|(field, _)| {
            let message = format!("'{field}' in a PathPolicy, which sees the pods of its own namespace only");
            Fault::error(format!("spec.{field}"), message, "leave it out, or make it a ClusterPathPolicy")
        })
        .collect();
    if spec.severity > Severity::High {
        let message = "a PathPolicy may be 'high' at most";
        faults.push(Fault::error("spec.severity", message, "'critical' is for ClusterPathPolicies"));
    }
    for (at, _) in paths.iter().enumerate().filter(|(_, glob)| glob.decided() == Decided::User) {
        let message = "a PathPolicy's pattern needs a directory it begins with, or a file name or extension";
        faults.push(Fault::error(
            format!("spec.paths[{at}]"),
            message,
            "write '/dir/**', '**/name' or '**/*.ext'",
        ));
    }
    faults
}

fn threat(spec: &Spec) -> Vec<Fault> {
    let digits = |text: &str, len: usize| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    let technique = |id: &str| {
        id.strip_prefix('T').is_some_and(|id| match id.split_once('.') {
            Some((id, sub)) => digits(id, 4) && digits(sub, 3),
            None => digits(id, 4),
        })
    };
    let mut faults = Vec::new();
    for (at, threat) in spec.threat.iter().enumerate() {
        if !threat.tactic.strip_prefix("TA").is_some_and(|id| digits(id, 4)) {
            let message =
                format!("'{}' is no tactic of MITRE ATT&CK", super::diagnostic::shortened(&threat.tactic));
            faults.push(Fault::error(format!("spec.threat[{at}].tactic"), message, "write it as in TA0006"));
        }
        if !technique(&threat.technique) {
            let id = super::diagnostic::shortened(&threat.technique);
            let message = format!("'{id}' is no technique of MITRE ATT&CK");
            let help = "write it as in T1003 or T1003.008";
            faults.push(Fault::error(format!("spec.threat[{at}].technique"), message, help));
        }
    }
    faults
}

fn label_selector(field: &str, selector: &LabelSelector) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (at, condition) in selector.match_expressions.iter().enumerate() {
        let field = format!("{field}.matchExpressions[{at}].values");
        let listed = matches!(condition.operator, Comparison::In | Comparison::NotIn);
        if listed && condition.values.is_empty() {
            faults.push(Fault::error(
                field,
                format!("{:?} without values", condition.operator),
                "list at least one",
            ));
        } else if !listed && !condition.values.is_empty() {
            let message = format!("{:?} takes no values", condition.operator);
            faults.push(Fault::error(field, message, "leave them out, or write In or NotIn"));
        }
    }
    faults
}

fn rates(spec: &Spec) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(dedup) = &spec.dedup
        && Duration::try_from(dedup.window).map_or(true, |window| window > WINDOW_LIMIT)
    {
        faults.push(Fault::error(
            "spec.dedup.window",
            "the window is below 0s or above 24h",
            "write it as in 60s",
        ));
    }
    if let Some(limit) = &spec.rate_limit
        && (limit.per_second == 0 || limit.burst < limit.per_second)
    {
        let message = "perSecond is 0, or burst is less than perSecond";
        faults.push(Fault::error("spec.rateLimit", message, "write {perSecond: 5, burst: 100} or more"));
    }
    faults
}

/// Patterns that match nothing, or far too much.
fn reach(policy: &Policy, paths: &[Glob]) -> Vec<Fault> {
    let spec = &policy.spec;
    let mut faults = Vec::new();
    let limit = if policy.kind == Kind::PathPolicy { quota::EXPANDED } else { EXPANDED_LIMIT };
    let expanded: usize = paths.iter().map(Glob::expanded_len).sum();
    if expanded > limit {
        let message =
            format!("the patterns have {expanded} bytes with their braces multiplied out; {limit} are allowed");
        faults.push(Fault::error("spec.paths", message, "split the policy"));
        return faults;
    }
    let excluded: Vec<Glob> = spec.exclude.iter().filter_map(|text| Glob::parse(text).ok()).collect();
    for (at, (glob, text)) in paths.iter().zip(&spec.paths).enumerate() {
        let field = format!("spec.paths[{at}]");
        let text = super::diagnostic::shortened(text);
        if let Some((_, by)) = excluded.iter().zip(&spec.exclude).find(|(excluded, _)| excluded.covers(glob)) {
            let by = super::diagnostic::shortened(by);
            let message = format!("'{text}' can never match: exclude '{by}' takes all of it out");
            faults.push(Fault::error(field, message, "leave one of them out"));
        } else if glob.decided() == Decided::User && policy.kind == Kind::ClusterPathPolicy {
            let message =
                format!("nothing in '{text}' narrows the search, so every open on the node comes to user space");
            let help = "begin with a directory, or end with a file name or extension";
            faults.push(Fault::warning(field, message, help));
        }
    }
    faults
}
