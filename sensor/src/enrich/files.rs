//! What a file is called beside the path by which it was reached: where it lives, and which paths of policies lead to it.
use std::{
    collections::BTreeSet,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    mounts::{Living, Mounts},
    roots::{Roots, Where},
    trust::{host, mount_namespace},
};
use crate::{
    event::{Call, Container, Event, Name, Owner, PathStatus},
    keys::Known,
    notice::Notices,
    policy::PolicySet,
};

/// Most literals in a directory that is renamed of which an event tells.
const MOVED: usize = 64;

/// When links are compared with those that were told, of which there may be as many as before.
const LINKS: Duration = Duration::from_secs(1);

/// What is known of files.
pub(super) struct Files {
    mounts: Mounts,
    roots: Roots,
    /// The host's mount namespace.
    host: Option<u64>,
    /// What [`Files::known`] was about, and when.
    told: Option<((usize, u64), usize)>,
    looked: Instant,
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
        Self {
            mounts: Mounts::default(),
            roots: Roots::new(notices),
            host: mount_namespace(host()),
            told: None,
            looked: Instant::now(),
        }
    }

    /// Says it, and adds to the event where its file and its other name live.
    pub(super) fn describe(&mut self, event: &mut Event, opener: &Opener<'_>) -> Called {
        let mut owner = None;
        if let Some(file) = event.file.as_ref() {
            let device = file.device;
            let mut live = |inner: Option<&Name>, path: Option<&Name>| {
                let Living { mut homes, owner } =
                    inner.map(|inner| self.live(device, inner, opener)).unwrap_or_default();
                // Said only if it is another.
                homes.retain(|home| Some(home) != path);
                (homes, owner)
            };
            let (homes, whose) = live(event.inner.as_ref(), event.path.as_ref());
            let mut homes = homes.into_iter();
            (event.home, event.more_homes, owner) = (homes.next(), homes.collect(), whose);
            event.target_home = live(event.target_inner.as_ref(), event.target.as_ref()).0.into_iter().next();
        }
        if let (Some(file), Some(namespace)) = (event.file.as_ref(), event.mount_ns) {
            self.mounts.meet(file.device, namespace.into(), event.pid, opener.now);
        }
        let namespaces = self.namespaces(event, opener);
        let (known_as, target_known_as) = self.known_as(event, &namespaces, opener);
        self.learn(event, &namespaces, owner, opener);
        Called { owner, known_as, target_known_as }
    }

    /// A program of this mount namespace is run: what literals lead to there is looked up, if it is not known.
    pub(super) fn entered(&mut self, namespace: u64, pid: u32, policies: &Arc<PolicySet>, now: Instant) {
        let place = Where { namespace, lineage: std::iter::once(pid) };
        self.roots.names(place, &[], None, policies, now);
    }

    /// What the kernel's filter has to know, if that may be something else than the last time.
    pub(super) fn known(&mut self, policies: &Arc<PolicySet>, now: Instant) -> Option<Known> {
        self.mounts.refresh(now);
        self.roots.refresh(policies, now);
        let (links, changes) = (self.roots.paths(), self.mounts.changes());
        if self.told.as_ref() == Some(&(changes, links.len())) && now.duration_since(self.looked) < LINKS {
            return None;
        }
        (self.told, self.looked) = (Some((changes, links.len())), now);
        Some(Known { mounts: self.mounts.all(), links })
    }

    fn live(&mut self, device: u32, inner: &Name, opener: &Opener<'_>) -> Living {
        match opener.container {
            Some(container) => self.mounts.in_container(container, opener.lineage, device, inner, opener.now),
            None => Living { homes: self.mounts.on_host(device, inner, opener.now), owner: None },
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
                // Others than its own first process may show the host's namespace by a root of their own.
                let lineage = if self.host == Some(*namespace) { &[] } else { lineage };
                let place = Where { namespace: *namespace, lineage: lineage.iter().copied() };
                found.extend(self.roots.names(place, path, file, policies, now));
            }
            found.sort_unstable();
            found.dedup();
            found.retain(|name| path.is_none_or(|path| name != path));
            found
        };
        let target = event.target.as_ref();
        let mut known_as = names(event.path.as_ref(), file);
        let mut target_known_as = target.map(|target| names(Some(target), None)).unwrap_or_default();
        if event.call == Call::Rename && event.file.as_ref().is_none_or(|file| file.kind() == "dir") {
            // All that is in a directory gets another name with it.
            let inside = |path: &Name| -> Vec<Name> {
                let path = path.as_bytes();
                let literals = below(policies.literals(), path).filter(|literal| *literal != path);
                literals.take(MOVED).map(|literal| literal.clone().into()).collect()
            };
            known_as.extend(event.best_path().map(inside).unwrap_or_default());
            target_known_as.extend(target.map(inside).unwrap_or_default());
        }
        (known_as, target_known_as)
    }

    /// Takes in what the event says of paths that policies name. What a path leads to is so in the process's own namespace;
    /// where the file lives, on the host or in the container.
    fn learn(&self, event: &Event, namespaces: &[u64], owner: Option<Owner>, opener: &Opener<'_>) {
        let literals = opener.policies.literals();
        let Some(file) = event.file.as_ref().filter(|_| event.result == 0 && !literals.is_empty()) else { return };
        let file_id = (file.device, file.inode);
        let (own, other) = ([&event.path, &event.home], [&event.target, &event.target_home]);
        let is_there = match event.call {
            Call::Open | Call::Truncate if event.status.contains(&PathStatus::Deleted) => None,
            Call::Open | Call::Truncate => Some(own),
            // It is there now.
            Call::Rename | Call::Link => Some(other),
            Call::Delete => None,
        };
        if let Some([path, home]) = is_there {
            let began = opener.container.and_then(|container| self.mounts.namespace_of(container));
            let lives = if opener.container.is_none() || owner == Some(Owner::Host) { self.host } else { began };
            let places =
                [(path.as_ref(), event.mount_ns.map(u64::from)), (home.as_ref().or(path.as_ref()), lives)];
            for (name, namespace) in places {
                if let (Some(name), Some(namespace)) =
                    (name.filter(|name| literals.contains(name.as_bytes())), namespace)
                {
                    self.roots.met(&[namespace], name, file_id);
                }
            }
        }
        let changes = event.call != Call::Open && event.call != Call::Truncate || file.created;
        let touched = |name: &Name| below(literals, name.as_bytes()).next().is_some();
        if changes && own.into_iter().chain(other).flatten().any(touched) {
            let gone = (event.call == Call::Delete && file.links <= 1).then_some(file_id);
            self.roots.changed(namespaces, gone, opener.now);
        }
    }
}

/// The literals that are this path or below it.
fn below<'a>(literals: &'a BTreeSet<Vec<u8>>, path: &'a [u8]) -> impl Iterator<Item = &'a Vec<u8>> {
    let from = (Bound::Included(path), Bound::Unbounded);
    let after = literals.range::<[u8], _>(from).take_while(move |literal| literal.starts_with(path));
    // `/etc-old` stands between `/etc` and `/etc/x`.
    after.filter(move |literal| matches!(literal.get(path.len()), None | Some(b'/')))
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
            assert_eq!(below(&literals, path.as_bytes()).next().is_some(), want, "{path}");
        }
    }
}
