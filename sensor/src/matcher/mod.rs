//! Decides which policies fire on an event, and says why the others do not.
//!
//! Pure: no async, no I/O, no clock; must not know where events come from nor where alerts go.
mod example;
mod exempt;

use std::{borrow::Cow, sync::Arc};

pub use self::example::{event_of, run_examples};
use crate::{
    event::{Enriched, Event, Operation, Owner, PathStatus},
    policy::{Alert, Compiled, Files, Kind, Namespace, Other, Outcome, PolicySet, View, names},
};

/// A name of the event's file, with every other name for the same.
struct Sight<'a> {
    view: View,
    names: Vec<Cow<'a, [u8]>>,
    operations: Vec<Operation>,
    /// The names are of where it lives.
    home: bool,
}

/// A pattern of a policy that a view matches, by its place in the policy; and the place of the sight.
type Hit = (View, u32, usize);

/// What became of one policy on one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fires: on this view, by the pattern of this place in `spec.paths`.
    Fires(View, u32),
    /// Another kind of process than it speaks of.
    Subject,
    /// Its namespace is not known, and a PathPolicy sees its own only.
    NamespaceUnknown,
    /// Another namespace.
    Namespace,
    /// Other labels of the pod.
    Pod,
    /// Another container.
    Container,
    /// The access ended otherwise.
    Result,
    /// No pattern matches.
    Path,
    /// A pattern matches, but something else was done to the file.
    Operation(View, u32),
    /// Somebody else's file.
    Files,
    /// This pattern of `spec.exclude` takes it out again.
    Excluded(View, String),
    /// The exception at this place covers it.
    Excepted(usize),
}

/// What the policies make of an event.
#[derive(Debug, Default)]
pub struct Decision {
    /// One alert for each policy that fires, in the order of the policies.
    pub alerts: Vec<Alert>,
    /// PathPolicies that would look closer if the namespace were known.
    pub namespace_unknown: Vec<Arc<Compiled>>,
}

/// Asks every policy about the event.
#[must_use]
pub fn decide(event: &Arc<Enriched>, set: &PolicySet) -> Decision {
    let sights = sights(event);
    let mut hits = hits(event, set, &sights);
    hits.sort_unstable();
    hits.dedup();
    let mut decision = Decision::default();
    for hits in hits.chunk_by(|(one, _), (other, _)| one == other) {
        let Some(policy) = hits.first().and_then(|(id, _)| set.policies.get(*id as usize)) else { continue };
        let own: Vec<Hit> = hits.iter().map(|(_, hit)| *hit).collect();
        let verdict = judge(event, policy, &sights, &own);
        if let Verdict::Fires(view, pattern) = verdict {
            let pattern = policy.policy.spec.paths.get(pattern as usize).cloned().unwrap_or_default();
            decision.alerts.push(Alert { event: event.clone(), policy: policy.clone(), pattern, view });
        } else if verdict == Verdict::NamespaceUnknown {
            decision.namespace_unknown.push(policy.clone());
        }
    }
    decision
}

/// What every policy of the set makes of the event, in their order.
#[must_use]
pub fn explain(event: &Enriched, set: &PolicySet) -> Vec<Verdict> {
    let sights = sights(event);
    let hits = hits(event, set, &sights);
    let policies = set.policies.iter().zip(0..);
    policies
        .map(|(policy, id)| {
            let mut own: Vec<Hit> = hits.iter().filter(|(policy, _)| *policy == id).map(|(_, hit)| *hit).collect();
            own.sort_unstable();
            judge(event, policy, &sights, &own)
        })
        .collect()
}

/// Every pattern of every policy that a view matches.
fn hits(event: &Enriched, set: &PolicySet, sights: &[Sight<'_>]) -> Vec<(u32, Hit)> {
    let namespace = match &event.pod {
        // One that has moved itself is judged by both namespaces.
        _ if event.moved_from.is_some() => Namespace::Unknown,
        Some(pod) => Namespace::Is(&pod.namespace),
        None if on_host(event) => Namespace::None,
        None => Namespace::Unknown,
    };
    let mut hits = Vec::new();
    for (at, sight) in sights.iter().enumerate() {
        for name in &sight.names {
            set.matches(name, namespace, |policy, pattern| hits.push((policy, (sight.view, pattern, at))));
        }
    }
    // What a literal leads to is its own policy's business: no other's pattern may see the file by that name.
    hits.retain(|(policy, (view, pattern, at))| {
        let own = || {
            let glob = set.policies.get(*policy as usize)?.paths.get(*pattern as usize)?;
            let name = sights.get(*at)?.names.first()?;
            Some(glob.literals()?.iter().any(|literal| literal.as_slice() == name.as_ref()))
        };
        *view != View::Identity || own().unwrap_or(false)
    });
    hits
}

/// Everything that the event's file is called, in the order in which alerts name it.
fn sights(enriched: &Enriched) -> Vec<Sight<'_>> {
    let event = &enriched.event;
    // What was asked for is all there is of a file that was not found, or that may be another one. A process in a
    // chroot asks for names that are not ours.
    let requested = event.requested.as_ref().filter(|_| {
        event.file.is_none()
            || !event.status.contains(&PathStatus::Chroot)
            || event.status.contains(&PathStatus::FdReplaced)
    });
    let (done, done_there) = (event.operations(), event.target_operations());
    let named = [
        (View::Path, event.path.as_ref(), &done, false),
        (View::Home, event.home.as_ref(), &done, true),
        (View::Requested, requested, &done, false),
        (View::Target, event.target.as_ref(), &done_there, false),
        (View::Target, event.target_home.as_ref(), &done_there, true),
    ];
    let more = event.more_homes.iter().map(|home| (View::Home, Some(home), &done, true));
    let mut sights: Vec<_> = named
        .into_iter()
        .chain(more)
        .filter_map(|(view, name, operations, home)| {
            Some(Sight { view, names: names(name?.as_bytes()), operations: operations.clone(), home })
        })
        .collect();
    for (names, operations) in [(&enriched.known_as, done), (&enriched.target_known_as, done_there)] {
        sights.extend(names.iter().map(|name| Sight {
            view: View::Identity,
            names: vec![Cow::Borrowed(name.as_bytes())],
            operations: operations.clone(),
            home: false,
        }));
    }
    sights
}

/// What `policy` makes of the event, of which `hits` are the patterns that match, the preferred ones first.
fn judge(enriched: &Enriched, policy: &Compiled, sights: &[Sight<'_>], hits: &[Hit]) -> Verdict {
    if hits.is_empty() {
        return Verdict::Path;
    }
    if let Some(other) = opener(enriched, policy) {
        return other;
    }
    let spec = &policy.policy.spec;
    if !spec.results.contains(&Outcome::of(enriched.event.result)) {
        return Verdict::Result;
    }
    let mut verdict = Verdict::Path;
    for (view, pattern, at) in hits {
        let Some(sight) = sights.get(*at) else { continue };
        // Kept if no other view fires: the preferred one says most.
        let this = if !sight.operations.iter().any(|operation| spec.operations.contains(operation)) {
            Verdict::Operation(*view, *pattern)
        } else if !owned(enriched, policy, sight) {
            Verdict::Files
        } else if let Some(pattern) = excluded(enriched, policy, sight) {
            Verdict::Excluded(*view, pattern)
        } else if let Some(at) =
            policy.exceptions.iter().position(|exempt| exempt::covers(exempt, enriched, sight))
        {
            Verdict::Excepted(at)
        } else {
            return Verdict::Fires(*view, *pattern);
        };
        if verdict == Verdict::Path {
            verdict = this;
        }
    }
    verdict
}

/// Why the policy does not speak of this process, if it does not. One that has moved itself is where it was, too.
fn opener(event: &Enriched, policy: &Compiled) -> Option<Verdict> {
    let on_host = on_host(event);
    let mut answers = event.places().map(|place| policy.speaks_of(&place, on_host && place.container.is_none()));
    let first = answers.next()?.err()?;
    if answers.any(|answer| answer.is_ok()) {
        return None;
    }
    Some(match first {
        Other::Subject => Verdict::Subject,
        Other::NamespaceUnknown => Verdict::NamespaceUnknown,
        Other::Namespace => Verdict::Namespace,
        Other::Pod => Verdict::Pod,
        Other::Container => Verdict::Container,
    })
}

/// True for a process that is surely in no container; one whose cgroup is unknown may be in any.
fn on_host(event: &Enriched) -> bool {
    event.container.is_none() && event.cgroup_path.is_some()
}

/// Whether the policy speaks of this file, seen so.
fn owned(event: &Enriched, policy: &Compiled, sight: &Sight<'_>) -> bool {
    // Where a file of the host lives is no business of a namespace's author.
    if sight.home && event.owner != Some(Owner::Own) && policy.policy.kind == Kind::PathPolicy {
        return false;
    }
    match (policy.policy.spec.files.unwrap_or_default(), event.owner) {
        (Files::Any, _) | (_, None) => true,
        (Files::Own, Some(owner)) => owner == Owner::Own,
        (Files::Host, Some(owner)) => owner == Owner::Host,
    }
}

/// The pattern of `spec.exclude` that takes the file out, seen so. What was asked for can take itself out, but not
/// the file that was found: that is another view.
fn excluded(enriched: &Enriched, policy: &Compiled, sight: &Sight<'_>) -> Option<String> {
    if doubtful(&enriched.event) {
        return None;
    }
    let by = sight.names.iter().find_map(|name| policy.exclude.first_match(name))?;
    Some(by.to_owned())
}

/// True if the file may have another path than the one we have: it is then not left out by that path.
///
/// `FdRacePossible` alone does not count: it is on every event of the tracepoint mode.
fn doubtful(event: &Event) -> bool {
    event.status.iter().any(|status| match status {
        PathStatus::Detached
        | PathStatus::ForeignMount
        | PathStatus::Disconnected
        | PathStatus::Covered
        | PathStatus::TooLong
        | PathStatus::FdReplaced
        | PathStatus::RequestedCut
        | PathStatus::RequestedUntrusted => true,
        PathStatus::Chroot
        | PathStatus::Deleted
        | PathStatus::Memfd
        | PathStatus::Tmpfile
        | PathStatus::FdRacePossible => false,
    })
}
