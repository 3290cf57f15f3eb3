//! The node's cgroups: a tree of names by id, and the container that each is or lies in.
//!
//! The kernel tells of each at its birth; those that are older are found by a walk. A cgroup belongs to the container of
//! the process that made it, whatever its name or place: whoever may write the node's cgroups could take any name.
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs,
    os::unix::{ffi::OsStrExt as _, ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::container::{DEPTH, Home, base_of, container};
use crate::{
    event::Name,
    hierarchy::Hierarchy,
    notice::Notices,
    observation::{CgroupMade, Identity},
    procfs,
};

/// Most cgroups that are remembered; a node with 250 pods has about a thousand.
const LIMIT: usize = 16_384;
/// Most of them that lie in one container.
const NESTED_LIMIT: usize = 256;
/// How long a cgroup is remembered after its end.
const TOMBSTONE: Duration = Duration::from_secs(60);

struct Node {
    parent: u64,
    name: Name,
    /// The container that it is or lies in.
    home: Option<Arc<Home>>,
    /// Another process of that container made it, so its own name says nothing.
    by_container: bool,
    /// Containers that were made directly in it.
    births: u32,
    /// It was found, and who made it is not known: the kernel's report, if there is one, says more.
    found: bool,
    /// It was found after the start, so the report of its birth was lost: its name may be a lie.
    late: bool,
    removed: bool,
}

/// What is known of a cgroup.
pub(super) enum Lookup {
    /// Nothing.
    Unknown,
    /// It is in no container.
    Host,
    /// It is, or lies in, this one.
    In(Arc<Home>),
}

/// Cgroups by id.
pub(super) struct Cgroups {
    hierarchy: Hierarchy,
    root: u64,
    /// The cgroup below which the node's own begin: another than the root if the node is a container.
    base: u64,
    nodes: HashMap<u64, Node>,
    /// How many are remembered of each container, by its id.
    nested: HashMap<String, usize>,
    tombstones: VecDeque<(Instant, u64)>,
    walked: bool,
    notices: Notices,
}

impl Cgroups {
    pub(super) fn new(hierarchy: Hierarchy, notices: Notices) -> Self {
        let root = fs::metadata(&hierarchy.root).map_or(0, |found| found.ino());
        let (nodes, nested, tombstones) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self { hierarchy, root, base: root, nodes, nested, tombstones, walked: false, notices }
    }

    /// Remembers those that are there, the older first. The kernel reports already, so none is missed in between.
    pub(super) fn walk(&mut self) {
        // A node that is a container begins where its kubelet's cgroups do, which the sensor is in as a pod.
        if let Some(table) = procfs::cgroups("self")
            && let Some(own) = self.hierarchy.path_in(&table)
            && let Some(base) = base_of(own)
            && let Ok(found) = fs::metadata(self.at(base))
        {
            self.base = found.ino();
        }
        self.sweep(Instant::now());
        self.walked = true;
    }

    /// Compares with what is there: reports may have been lost.
    pub(super) fn sweep(&mut self, now: Instant) {
        let (mut waiting, whole) = self.find_all();
        let there: HashSet<u64> = waiting.iter().map(|found| found.id).collect();
        // Where too many are there to be looked at, none is taken for gone.
        let gone = self.nodes.iter().filter(|(id, node)| whole && !node.removed && !there.contains(id));
        gone.map(|(id, _)| *id).collect::<Vec<_>>().into_iter().for_each(|id| self.removed(id, now));
        // Ids grow with age, but the kernel may have begun anew with them: a parent may come later than its child.
        waiting.retain(|found| !self.nodes.contains_key(&found.id));
        waiting.sort_by_key(|found| found.id);
        loop {
            let before = waiting.len();
            waiting.retain(|found| {
                let ready = self.is_root(found.parent) || self.nodes.contains_key(&found.parent);
                if ready {
                    self.made(found, None);
                }
                !ready
            });
            if waiting.len() == before {
                return;
            }
        }
    }

    /// What the file system shows of all cgroups, and whether that is all; nothing of their makers.
    fn find_all(&self) -> (Vec<CgroupMade>, bool) {
        let (mut found, mut whole) = (Vec::new(), true);
        let mut ahead = vec![(self.hierarchy.root.clone(), 0)];
        while let Some((directory, depth)) = ahead.pop() {
            if found.len() + ahead.len() > LIMIT || depth > DEPTH {
                whole = false;
                self.notices.add(
                    "enrich",
                    "cgroups_full",
                    1,
                    format!("cgroups below {} are not looked at", directory.display()),
                );
                continue;
            }
            let Ok(parent) = fs::metadata(&directory) else { continue };
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Ok(id) = entry.metadata().map(|found| found.ino())
                {
                    found.push(unmade(id, parent.ino(), entry.file_name().into_vec().into()));
                    ahead.push((entry.path(), depth + 1));
                }
            }
        }
        (found, whole)
    }

    /// A cgroup was made, by a process of container `maker`.
    pub(super) fn made(&mut self, made: &CgroupMade, maker: Option<Arc<Home>>) {
        // Where it is, and so what it is, cannot be told.
        if !self.is_root(made.parent) && !self.nodes.contains_key(&made.parent) {
            return;
        }
        let found = made.by.pid == 0;
        if let Some(node) = self.nodes.get_mut(&made.id).filter(|node| !node.removed) {
            let known = !node.found || found || maker.is_none();
            node.found &= found;
            if known {
                return;
            }
            // It was taken for what its name says.
            self.nodes.get_mut(&made.parent).into_iter().for_each(|pod| pod.births = pod.births.saturating_sub(1));
        }
        self.forget(made.id);
        let parent = self.nodes.get(&made.parent);
        let inherited = parent.and_then(|node| node.home.clone());
        let by_container = maker.is_some() || parent.is_some_and(|node| node.by_container);
        let home = match maker {
            Some(maker) => Some(maker),
            // The node's runtime made it in a cgroup that a container made: a kubelet that is a container itself.
            None if by_container => self.name_home(made).or(inherited),
            None => inherited.or_else(|| self.name_home(made)),
        };
        if self.is_full(home.as_deref()) {
            return;
        }
        if let Some(home) = &home {
            *self.nested.entry(home.container.id.clone()).or_default() += 1;
        }
        let (parent, name) = (made.parent, made.name.clone());
        let node = Node {
            parent,
            name,
            home,
            by_container,
            births: 0,
            found,
            late: found && self.walked,
            removed: false,
        };
        self.nodes.insert(made.id, node);
    }

    /// The container that a new cgroup is by its name and place.
    fn name_home(&mut self, made: &CgroupMade) -> Option<Arc<Home>> {
        let above = self.names(made.parent);
        let names = above.iter().map(Name::as_bytes).chain([made.name.as_bytes()]);
        let container = Arc::new(container(names)?);
        let first = self.nodes.get_mut(&made.parent).is_some_and(|pod| {
            pod.births += 1;
            pod.births == 1
        });
        Some(Arc::new(Home { first: first && container.pod_uid.is_some(), container }))
    }

    /// Makes room, or says that there is none: a container has its share only.
    fn is_full(&mut self, home: Option<&Home>) -> bool {
        let of_home = home.and_then(|home| self.nested.get(&home.container.id)).copied().unwrap_or_default();
        if of_home < NESTED_LIMIT
            && self.nodes.len() >= LIMIT
            && let Some((_, id)) = self.tombstones.pop_front()
        {
            self.forget(id);
        }
        // A container's own that are gone make room for those that it makes.
        let of_home = if of_home >= NESTED_LIMIT { self.forget_one_of(home) } else { of_home };
        let full = of_home >= NESTED_LIMIT || self.nodes.len() >= LIMIT;
        if full {
            let whose = home.map_or("the host", |home| &home.container.id);
            self.notices.add("enrich", "cgroups_full", 1, format!("a cgroup of {whose} is not remembered"));
        }
        full
    }

    /// Forgets one of a container's that is gone, if there is one; returns how many are left.
    fn forget_one_of(&mut self, home: Option<&Home>) -> usize {
        let id = |node: &Node| node.home.as_ref().map(|home| home.container.id.clone());
        let own = home.map(|home| home.container.id.clone());
        let gone =
            self.tombstones.iter().position(|(_, gone)| self.nodes.get(gone).is_some_and(|node| id(node) == own));
        if let Some((_, gone)) = gone.and_then(|at| self.tombstones.remove(at)) {
            self.forget(gone);
        }
        own.and_then(|own| self.nested.get(&own)).copied().unwrap_or_default()
    }

    /// A cgroup was removed. Events of processes that were in it may be on their way.
    pub(super) fn removed(&mut self, id: u64, now: Instant) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.removed) {
            node.removed = true;
            self.tombstones.push_back((now, id));
        }
    }

    /// Forgets those that were removed a while ago.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((since, id)) = self.tombstones.front().copied()
            && now.duration_since(since) >= TOMBSTONE
        {
            self.tombstones.pop_front();
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        let Some(home) = self.nodes.remove(&id).and_then(|node| node.home) else { return };
        if let Some(count) = self.nested.get_mut(&home.container.id) {
            *count -= 1;
            if *count == 0 {
                self.nested.remove(&home.container.id);
            }
        }
    }

    /// What is known of cgroup `id`; one that is not known is looked for through a member, while that is alive.
    pub(super) fn look_up(&mut self, id: u64, member: Option<u32>) -> Lookup {
        if !self.is_root(id) && !self.nodes.contains_key(&id) {
            member.and_then(|pid| self.find(id, pid));
        }
        match self.nodes.get(&id) {
            Some(Node { home: Some(home), .. }) => Lookup::In(home.clone()),
            Some(_) => Lookup::Host,
            None if self.is_root(id) => Lookup::Host,
            None => Lookup::Unknown,
        }
    }

    /// Finds cgroup `id` and those above it by the path of its member `pid`. If that has been moved since, it is another's.
    fn find(&mut self, id: u64, pid: u32) -> Option<()> {
        let table = procfs::cgroups(pid)?;
        let path = self.hierarchy.path_in(&table)?.to_vec();
        if fs::metadata(self.at(&path)).ok()?.ino() != id {
            return None;
        }
        let (mut directory, mut parent) = (self.hierarchy.root.clone(), self.root);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            directory.push(std::ffi::OsStr::from_bytes(name));
            let id = fs::metadata(&directory).ok()?.ino();
            self.made(&unmade(id, parent, name.to_vec().into()), None);
            parent = id;
        }
        Some(())
    }

    /// True if it was there at the start, or if the kernel has told of its birth.
    pub(super) fn is_certain(&self, id: u64) -> bool {
        self.is_root(id) || self.nodes.get(&id).is_some_and(|node| !node.late)
    }

    /// The container that a process is in by /proc, if its cgroup is known.
    pub(super) fn home_of(&self, pid: u32) -> Option<Arc<Home>> {
        let table = procfs::cgroups(pid)?;
        let id = fs::metadata(self.at(self.hierarchy.path_in(&table)?)).ok()?.ino();
        self.nodes.get(&id)?.home.clone()
    }

    /// The path of a cgroup below the node's root, as far as it is known.
    pub(super) fn path(&self, id: u64) -> Option<Name> {
        if !self.is_root(id) && !self.nodes.contains_key(&id) {
            return None;
        }
        let names = self.names(id);
        let path = names.iter().flat_map(|name| [b"/", name.as_bytes()]).flatten().copied().collect::<Vec<u8>>();
        Some(if path.is_empty() { "/".into() } else { path.into() })
    }

    /// Names from the node's root down to `id`.
    fn names(&self, mut id: u64) -> Vec<Name> {
        let mut names = Vec::new();
        while id != self.base
            && names.len() < DEPTH
            && let Some(node) = self.nodes.get(&id)
        {
            names.push(node.name.clone());
            id = node.parent;
        }
        names.reverse();
        names
    }

    /// Cgroups that are or lie in a container, with it, and those that are surely in none.
    pub(super) fn with_homes(&self) -> impl Iterator<Item = (u64, Option<&Arc<Home>>)> {
        let nodes = self.nodes.iter().filter(|(_, node)| !node.removed && (node.home.is_some() || !node.late));
        let roots = [self.base, self.root].map(|root| (root, None));
        nodes.map(|(id, node)| (*id, node.home.as_ref())).chain(roots)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn is_root(&self, id: u64) -> bool {
        id == self.base || id == self.root
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        self.hierarchy.root.join(Path::new(std::ffi::OsStr::from_bytes(path)))
    }
}

/// A cgroup that was found, of which nobody knows who made it.
fn unmade(id: u64, parent: u64, name: Name) -> CgroupMade {
    CgroupMade { id, parent, name, by: Identity { pid: 0, start_ns: 0 }, maker: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3b3bb1fa-5a12-4f0e-9d6f-4e6f6e2f8a11";
    const VICTIM: &str = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa";

    fn cgroups() -> Cgroups {
        let mut cgroups =
            Cgroups::new(Hierarchy { controller: None, number: 0, root: "/no/such".into() }, Notices::default());
        (cgroups.root, cgroups.base) = (1, 1);
        cgroups
    }

    /// Makes the cgroups of a path, as a process of `maker` does; ids are given out from `first`.
    fn make(cgroups: &mut Cgroups, first: u64, path: &str, maker: Option<Arc<Home>>) -> u64 {
        let mut parent = 1;
        for (id, name) in (first..).zip(path.split('/').filter(|name| !name.is_empty())) {
            let there = cgroups.nodes.iter().find(|(_, node)| node.parent == parent && node.name == name.into());
            parent = match there {
                Some((id, _)) => *id,
                None => {
                    cgroups.made(&unmade(id, parent, name.into()), maker.clone());
                    id
                }
            };
        }
        parent
    }

    fn home(cgroups: &mut Cgroups, id: u64) -> Option<Arc<Home>> {
        match cgroups.look_up(id, None) {
            Lookup::In(home) => Some(home),
            Lookup::Host | Lookup::Unknown => None,
        }
    }

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn a_containers_cgroups_are_its_own_whatever_it_calls_them_and_wherever_they_lie() {
        let mut cgroups = cgroups();
        let own = make(&mut cgroups, 10, &format!("/kubepods/burstable/pod{UID}/{}", id('a')), None);
        let attacker = home(&mut cgroups, own).unwrap();
        assert_eq!(attacker.container.pod_uid.as_deref(), Some(UID));
        // Below itself, which any container can; and beside the victim, which only a privileged one can.
        for (first, path) in [
            (20, format!("/kubepods/burstable/pod{UID}/{}/kubepods/pod{VICTIM}/{}", id('a'), id('b'))),
            (30, format!("/kubepods/pod{VICTIM}/{}", id('c'))),
        ] {
            let look_alike = make(&mut cgroups, first, &path, Some(attacker.clone()));
            assert_eq!(home(&mut cgroups, look_alike).as_ref(), Some(&attacker), "{path}");
        }
        // The first of them also by a walk, which does not know who made it.
        let nested = format!("/kubepods/burstable/pod{UID}/{}/kubepods/pod{VICTIM}/{}", id('a'), id('d'));
        let nested = make(&mut cgroups, 40, &nested, None);
        assert_eq!(home(&mut cgroups, nested), Some(attacker));
        // The victim's runtime works in a directory that the attacker has made for it before.
        let victim = make(&mut cgroups, 50, &format!("/kubepods/pod{VICTIM}/{}", id('e')), None);
        let victim = home(&mut cgroups, victim).unwrap();
        assert_eq!(
            (victim.container.id.as_str(), victim.container.pod_uid.as_deref()),
            (id('e').as_str(), Some(VICTIM))
        );
    }

    #[test]
    fn the_first_container_of_a_pod_is_told_from_the_others() {
        let mut cgroups = cgroups();
        let ids = [('a', 10), ('b', 20), ('c', 30)];
        let firsts = ids.map(|(digit, first)| {
            let made = make(&mut cgroups, first, &format!("/kubepods/pod{UID}/{}", id(digit)), None);
            cgroups.removed(made, Instant::now());
            home(&mut cgroups, made).unwrap().first
        });
        assert_eq!(firsts, [true, false, false]);
    }

    #[test]
    fn one_that_was_found_before_its_report_came_is_judged_by_the_report() {
        let mut cgroups = cgroups();
        let own = make(&mut cgroups, 10, &format!("/docker/{}", id('a')), None);
        let attacker = home(&mut cgroups, own).unwrap();
        // A look-alike that a walk meets just after it was made.
        let look_alike = make(&mut cgroups, 20, &format!("/docker/{}", id('b')), None);
        assert_eq!(home(&mut cgroups, look_alike).unwrap().container.id, id('b'));
        let by = Identity { pid: 7, start_ns: 1 };
        let report = CgroupMade { by, ..unmade(look_alike, 10, id('b').as_str().into()) };
        cgroups.made(&report, Some(attacker.clone()));
        assert_eq!(home(&mut cgroups, look_alike), Some(attacker.clone()));
        // Another walk changes nothing.
        cgroups.made(&unmade(look_alike, 10, id('b').as_str().into()), None);
        assert_eq!(home(&mut cgroups, look_alike), Some(attacker));
    }

    #[test]
    fn one_that_was_removed_is_known_for_a_while_and_then_forgotten() {
        let (mut cgroups, now) = (cgroups(), Instant::now());
        let made = make(&mut cgroups, 10, &format!("/docker/{}", id('a')), None);
        cgroups.removed(made, now);
        cgroups.expire(now + TOMBSTONE - Duration::from_secs(1));
        assert!(home(&mut cgroups, made).is_some());
        assert_eq!(cgroups.with_homes().filter_map(|(_, home)| home).count(), 0);
        cgroups.expire(now + TOMBSTONE);
        assert!(matches!(cgroups.look_up(made, None), Lookup::Unknown));
        assert!(cgroups.nested.is_empty());
        assert!(matches!(cgroups.look_up(10, None), Lookup::Host));
        assert_eq!(cgroups.path(10), Some("/docker".into()));
    }

    #[test]
    fn a_container_that_makes_many_does_not_crowd_out_the_others() {
        let (mut cgroups, now) = (cgroups(), Instant::now());
        let own = make(&mut cgroups, 10, &format!("/docker/{}", id('a')), None);
        let attacker = home(&mut cgroups, own).unwrap();
        for n in 0..20_000 {
            let made = unmade(100 + n, own, format!("{n}").as_str().into());
            cgroups.made(&made, Some(attacker.clone()));
        }
        assert!(cgroups.len() <= NESTED_LIMIT + 2);
        // The host may have as many as there are, and those that are gone make room.
        for n in 0..2 * LIMIT as u64 {
            let made = unmade(100_000 + n, 1, format!("{n}.scope").as_str().into());
            cgroups.made(&made, None);
            cgroups.removed(made.id, now);
            assert!(cgroups.len() <= LIMIT);
        }
        let another = make(&mut cgroups, 200_000, &format!("/docker/{}", id('b')), None);
        assert!(home(&mut cgroups, another).is_some());
        assert!(cgroups.notices.take().iter().any(|notice| notice.reason == "cgroups_full"));
    }

    #[test]
    fn this_machines_cgroups_are_found_by_the_walk_and_by_a_member() {
        let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
        let path = hierarchy.path_in(&procfs::cgroups("self").unwrap()).unwrap().to_vec();
        let mut cgroups = Cgroups::new(hierarchy, Notices::default());
        let id = fs::metadata(cgroups.at(&path)).unwrap().ino();
        let member = Some(std::process::id());
        assert!(matches!(cgroups.look_up(id + 1_000_000, member), Lookup::Unknown));
        cgroups.look_up(id, member);
        cgroups.walk();
        assert_eq!(cgroups.path(id).unwrap().as_bytes(), path);
    }
}
