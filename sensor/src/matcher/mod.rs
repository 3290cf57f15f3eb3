//! Decides which policies want an event. Pure: no clock, no files, nothing that waits.
use std::sync::Arc;

use crate::{
    event::{Enriched, Event, PathStatus},
    policy::{Alert, Compiled, PolicySet, View},
};

/// EPERM and EACCES: the kernel said no.
const DENIED: [i32; 2] = [-1, -13];

/// One alert for each policy that wants the event.
#[must_use]
pub fn matches(event: &Arc<Enriched>, set: &PolicySet) -> Vec<Alert> {
    // Opens that succeeded or were denied; a missing file is nobody's business by default.
    if event.event.result != 0 && !DENIED.contains(&event.event.result) {
        return Vec::new();
    }
    let operations = event.event.operations();
    let wants = |policy: &&Arc<Compiled>| policy.policy.spec.operations.iter().any(|o| operations.contains(o));
    let fire = |policy: &Arc<Compiled>| {
        let (view, pattern) = matched(&event.event, policy)?;
        Some(Alert { event: event.clone(), policy: policy.clone(), pattern: pattern.to_owned(), view })
    };
    set.policies.iter().filter(wants).filter_map(fire).collect()
}

/// The view of the file that the policy matches and does not exclude, and the pattern it matches.
fn matched<'a>(event: &Event, policy: &'a Compiled) -> Option<(View, &'a str)> {
    let replaced = event.status.contains(&PathStatus::FdReplaced);
    let views = [
        (View::Path, event.path.as_ref()),
        // What was asked for says nothing about a file that was found, since a link may lie between; but it is all
        // there is where the found file may be another one.
        (View::Requested, event.requested.as_ref().filter(|_| event.file.is_none() || replaced)),
    ];
    views.into_iter().find_map(|(view, name)| {
        let path = name?.as_bytes();
        let pattern = policy.paths.first_match(path)?;
        let excluded = !doubtful(event) && policy.exclude.first_match(path).is_some();
        (!excluded).then_some((view, pattern))
    })
}

/// True if the file may have another path than the one we have: it is then not excluded by that path.
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
