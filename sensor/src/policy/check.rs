//! What serde cannot see: fields that contradict each other, and what no author can have meant.
use std::time::Duration;

use super::{
    Decided, Glob, Kind, Policy, Severity,
    diagnostic::Fault,
    exception,
    spec::{Comparison, LabelSelector, Spec},
};

/// Most tags and techniques of a policy, and most bytes of one: every alert carries them.
const TAGS: usize = 16;
const TAG_LIMIT: usize = 128;
/// Longest description, in bytes: every alert carries it.
const DESCRIPTION_LIMIT: usize = 4096;
/// Most patterns of a list.
const PATTERNS_LIMIT: usize = 10_000;
/// Most bytes of all patterns of a policy together, braces multiplied out.
const EXPANDED_LIMIT: usize = 1 << 20;
/// Patterns without braces that `globs` stand for.
pub(super) fn comparisons<'a>(globs: impl Iterator<Item = &'a Glob>) -> usize {
    globs.map(|glob| glob.alternatives().len()).sum()
}

/// Most pairs of patterns that are compared.
pub(super) const COMPARISONS_LIMIT: usize = 1 << 17;
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
        (
            "spec.exceptions",
            "values",
            spec.exceptions.iter().map(own).sum(),
            if tenant { exceptions * 16 } else { PATTERNS_LIMIT },
        ),
        ("spec.tags", "tags", spec.tags.len(), TAGS),
        ("spec.threat", "techniques", spec.threat.len(), TAGS),
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
    if faults.is_empty() {
        faults.extend(patterns_size(policy, tenant));
    }
    faults
}

/// Every list of patterns of a policy, by its field.
fn lists_of_patterns(spec: &Spec) -> Vec<(String, &[String])> {
    let mut lists =
        vec![("spec.paths".to_owned(), spec.paths.as_slice()), ("spec.exclude".to_owned(), &spec.exclude)];
    for (at, exception) in spec.exceptions.iter().enumerate() {
        let field = |name: &str| format!("spec.exceptions[{at}].{name}");
        lists.extend([
            (field("executables"), exception.executables.as_slice()),
            (field("scripts"), &exception.scripts),
            (field("ancestors"), &exception.ancestors),
            (field("paths"), &exception.paths),
        ]);
    }
    lists
}

/// What the patterns of a policy take together, counted one by one so that too many are never there at a time.
fn patterns_size(policy: &Policy, tenant: bool) -> Option<Fault> {
    let limit = if tenant { quota::EXPANDED } else { EXPANDED_LIMIT };
    let mut expanded = 0;
    for (field, texts) in lists_of_patterns(&policy.spec) {
        for (at, text) in texts.iter().enumerate() {
            if tenant && text.len() > quota::PATTERN {
                let message =
                    format!("a pattern of {} bytes; a PathPolicy's may have {}", text.len(), quota::PATTERN);
                return Some(Fault::error(format!("{field}[{at}]"), message, "shorten it with a wildcard"));
            }
            expanded += Glob::parse(text).map_or(0, |glob| glob.expanded_len());
            if expanded > limit {
                let message = format!(
                    "from here on the patterns, with their braces multiplied out, take more than {limit} bytes"
                );
                return Some(Fault::error(format!("{field}[{at}]"), message, "split the policy"));
            }
        }
    }
    None
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
    faults.extend(images(spec));
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
    if let Some((at, tag)) = spec.tags.iter().enumerate().find(|(_, tag)| tag.len() > TAG_LIMIT) {
        let message = format!("{} bytes; at most {TAG_LIMIT}", tag.len());
        faults.push(Fault::error(format!("spec.tags[{at}]"), message, "shorten it"));
    }
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
    for (at, _) in paths.iter().enumerate().filter(|(_, glob)| glob.any_components() > 2) {
        let message = "a PathPolicy's pattern with more than two **";
        faults.push(Fault::error(format!("spec.paths[{at}]"), message, "write * for the directories in between"));
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

/// Images by names that no container has: the runtime's are fully qualified, and tag and digest are kept apart.
fn images(spec: &Spec) -> Vec<Fault> {
    let selector = spec
        .container_selector
        .iter()
        .map(|selector| ("spec.containerSelector.images".to_owned(), &selector.images));
    let exceptions = spec.exceptions.iter().enumerate();
    let exceptions =
        exceptions.map(|(at, exception)| (format!("spec.exceptions[{at}].images"), &exception.images));
    let mut faults = Vec::new();
    for (field, texts) in selector.chain(exceptions) {
        for (at, text) in texts.iter().enumerate() {
            let shown = super::diagnostic::shortened(text);
            let (registry, name) = text.split_once('/').unwrap_or(("", text));
            let qualified = registry.contains(['.', ':', '*', '?', '[', '{'])
                || registry == "localhost"
                || text.starts_with('*');
            let fault = if text.contains('@') || name.contains(':') {
                (format!("'{shown}' has a tag or digest and can never match"), "write the image without")
            } else if !qualified {
                (
                    format!("'{shown}' has no registry and can never match"),
                    "write it in full, as in 'docker.io/library/nginx'",
                )
            } else {
                continue;
            };
            faults.push(Fault::error(format!("{field}[{at}]"), fault.0, fault.1));
        }
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
    // Of thousands by thousands nobody is told which one is idle.
    let few = comparisons(paths.iter()) * spec.exclude.len() <= COMPARISONS_LIMIT;
    let excluded: Vec<Glob> =
        spec.exclude.iter().filter(|_| few).filter_map(|text| Glob::parse(text).ok()).collect();
    for (at, (glob, text)) in paths.iter().zip(&spec.paths).enumerate() {
        let field = format!("spec.paths[{at}]");
        let text = super::diagnostic::shortened(text);
        if let Some((_, by)) = excluded.iter().zip(&spec.exclude).find(|(excluded, _)| excluded.covers(glob)) {
            let by = super::diagnostic::shortened(by);
            let message = format!("'{text}' can never match: exclude '{by}' takes all of it out");
            faults.push(Fault::error(field, message, "leave one of them out"));
        } else if ["/proc/self/", "/proc/thread-self/"].iter().any(|link| text.starts_with(link)) {
            let message = format!("'{text}' can never match: to the kernel it is the directory of some process");
            faults.push(Fault::error(field, message, "write '/proc/*/…'"));
        } else if glob.decided() == Decided::User && policy.kind == Kind::ClusterPathPolicy {
            let message =
                format!("nothing in '{text}' narrows the search, so every open on the node comes to user space");
            let help = "begin with a directory, or end with a file name or extension";
            faults.push(Fault::warning(field, message, help));
        }
    }
    faults
}
