//! What a file is called beside the path by which it was reached: where it lives, and which paths of policies lead to it.
use std::{collections::BTreeSet, ops::Bound, sync::Arc, time::Instant};

use super::{
    mounts::{Living, Mounts},
    roots::{Roots, Where},
    trust::{host, mount_namespace},
};
use crate::{
    event::{Call, Container, Event, Name, Owner, PathStatus},
    notice::Notices,
    policy::PolicySet,
};

/// What is known of files.
pub(super) struct Files {
    mounts: Mounts,
    roots: Roots,
    /// The host's mount namespace.
    host: Option<u64>,
}

/// What there is to say of an event's file.
#[derive(Default)]
pub(super) struct Called {
    /// Whose it is, if that is known.
    pub(super) owner: Option<Owner>,
    /// Paths of policies that lead to it.
    pub(super) known_as: Vec<Name>,
    /// Paths of policies that lead to where its other name is.
    pub(super) target_known_as: Vec<Name>,
}

/// Who opened it, and when.
pub(super) struct Opener<'a> {
    pub(super) container: Option<&'a Container>,
    /// Pids of the process and its ancestors, the nearest first.
    pub(super) lineage: &'a [u32],
    pub(super) policies: &'a Arc<PolicySet>,
    pub(super) now: Instant,
}

impl Files {
    pub(super) fn new(notices: Notices) -> Self {
        Self { mounts: Mounts::default(), roots: Roots::new(notices), host: mount_namespace(host()) }
    }

    /// Says it, and adds to the event where its file and its other name live.
    pub(super) fn describe(&mut self, event: &mut Event, opener: &Opener<'_>) -> Called {
        let mut owner = None;
        if let Some(file) = event.file.as_ref() {
            let device = file.device;
            let mut live = |inner: Option<&Name>, path: Option<&Name>| {
                let Living { home, owner } =
                    inner.map(|inner| self.live(device, inner, opener)).unwrap_or_default();
                // Said only if it is another.
                (home.filter(|home| Some(home) != path), owner)
            };
            (event.home, owner) = live(event.inner.as_ref(), event.path.as_ref());
            event.target_home = live(event.target_inner.as_ref(), event.target.as_ref()).0;
        }
        let namespaces = self.namespaces(event, opener);
        let (known_as, target_known_as) = self.known_as(event, &namespaces, opener);
        self.learn(event, &namespaces, opener);
        Called { owner, known_as, target_known_as }
    }

    fn live(&mut self, device: u32, inner: &Name, opener: &Opener<'_>) -> Living {
        match opener.container {
            Some(container) => self.mounts.in_container(container, opener.lineage, device, inner, opener.now),
            None => Living { home: self.mounts.on_host(device, inner, opener.now), owner: None },
        }
    }

    /// The mount namespaces whose names count: the process's own, the one that its container began in, the host's.
    fn namespaces(&self, event: &Event, opener: &Opener<'_>) -> Vec<u64> {
        let began = opener.container.and_then(|container| self.mounts.namespace_of(container));
        let all = [event.mount_ns.map(u64::from), began, self.host];
        let distinct: BTreeSet<u64> = all.into_iter().flatten().collect();
        distinct.into_iter().collect()
    }

    fn known_as(&self, event: &Event, namespaces: &[u64], opener: &Opener<'_>) -> (Vec<Name>, Vec<Name>) {
        let Opener { lineage, policies, now, .. } = *opener;
        let file = event.file.as_ref().map(|file| (file.device, file.inode));
        let own = event.mount_ns.map(u64::from);
        let names = |path: Option<&Name>, file| {
            let mut found = Vec::new();
            for namespace in namespaces {
                // By its letters a path leads somewhere in its own namespace only.
                let path = path.filter(|_| own == Some(*namespace)).map(Name::as_bytes).unwrap_or_default();
                let place = Where { namespace: *namespace, lineage: lineage.iter().copied() };
                found.extend(self.roots.names(place, path, file, policies, now));
            }
            found.sort_unstable();
            found.dedup();
            found.retain(|name| path.is_none_or(|path| name != path));
            found
        };
        let target = event.target.as_ref();
        (names(event.path.as_ref(), file), target.map(|target| names(Some(target), None)).unwrap_or_default())
    }

    /// Takes in what the event says of paths that policies name.
    fn learn(&self, event: &Event, namespaces: &[u64], opener: &Opener<'_>) {
        let literals = opener.policies.literals();
        let Some(file) = event.file.as_ref().filter(|_| event.result == 0 && !literals.is_empty()) else { return };
        let file_id = (file.device, file.inode);
        let (own, other) = ([&event.path, &event.home], [&event.target, &event.target_home]);
        let is_literal = |name: &&Name| literals.contains(name.as_bytes());
        let there = match event.call {
            Call::Open | Call::Truncate if event.status.contains(&PathStatus::Deleted) => None,
            Call::Open | Call::Truncate => own.into_iter().flatten().find(is_literal),
            // It is there now.
            Call::Rename | Call::Link => other.into_iter().flatten().find(is_literal),
            Call::Delete => None,
        };
        if let Some(literal) = there {
            self.roots.met(namespaces, literal, file_id);
        }
        let changes = event.call != Call::Open && event.call != Call::Truncate || file.created;
        let touched = |name: &Name| leads_to(literals, name.as_bytes());
        if changes && own.into_iter().chain(other).flatten().any(touched) {
            let gone = (event.call == Call::Delete && file.links <= 1).then_some(file_id);
            self.roots.changed(namespaces, gone, opener.now);
        }
    }
}

/// Whether some literal is this path or below it.
fn leads_to(literals: &BTreeSet<Vec<u8>>, path: &[u8]) -> bool {
    let from = (Bound::Included(path), Bound::Unbounded);
    let mut after = literals.range::<[u8], _>(from).take_while(|literal| literal.starts_with(path));
    // `/etc-old` stands between `/etc` and `/etc/x`.
    after.any(|literal| matches!(literal.get(path.len()), None | Some(b'/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_a_directory_changes_what_is_below() {
        let literals: BTreeSet<Vec<u8>> =
            ["/etc-old/x", "/etc/shadow", "/srv"].map(|l| l.as_bytes().to_vec()).into();
        for (path, want) in [
            ("/etc", true),
            ("/etc/shadow", true),
            ("/etc/shadow-", false),
            ("/etc/sha", false),
            ("/srv", true),
            ("/srv/x", false),
            ("/e", false),
            ("/zzz", false),
        ] {
            assert_eq!(leads_to(&literals, path.as_bytes()), want, "{path}");
        }
    }
}
