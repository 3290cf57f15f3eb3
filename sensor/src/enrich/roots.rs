//! What the literal paths of policies lead to, in every root: a policy may name a symbolic link, and the kernel tells
//! the path behind it.
//!
//! The names on the way belong to whoever owns the container: each root is looked at by a thread of its own, and one
//! that hangs there, in a file system of the owner's making, costs only that container's names.
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use super::trust::{host, mount_namespace};
use crate::{event::Name, notice::Notices, policy::PolicySet, procfs};

/// When what was found is looked up anew.
const REFRESH: Duration = Duration::from_secs(30);
/// When a root of which no process was left is looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// When a look-up that has not come back is taken for one that hangs.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most look-ups at one time, those that hang left out.
const THREADS: usize = 4;
/// Most look-ups that may hang before no more are begun.
const HANGING: usize = 64;
/// Most roots that are remembered.
const CACHE_LIMIT: usize = 2000;

/// Real paths, and the literals that lead there.
type Links = BTreeMap<Vec<u8>, Vec<Name>>;

struct Root {
    links: Arc<Links>,
    /// The set of which the literals were.
    policies: Arc<PolicySet>,
    since: Instant,
    /// A thread is at it.
    busy: bool,
}

/// Roots by the inode of the mount namespace.
pub(super) struct Roots {
    known: Arc<Mutex<HashMap<u64, Root>>>,
    notices: Notices,
}

impl Roots {
    pub(super) fn new(notices: Notices) -> Self {
        Self { known: Arc::default(), notices }
    }

    /// The literals of `policies` that lead to `path` in mount namespace `namespace`, as far as they are known; what is
    /// not is looked up meanwhile, through the first of `lineage`, pids of a process and its ancestors, that is there.
    pub(super) fn names(
        &self,
        namespace: u64,
        lineage: impl Iterator<Item = u32>,
        path: &[u8],
        policies: &Arc<PolicySet>,
        now: Instant,
    ) -> Vec<Name> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let root = known.get(&namespace);
        let fresh = root.is_some_and(|root| {
            root.busy || Arc::ptr_eq(&root.policies, policies) && now.duration_since(root.since) < REFRESH
        });
        let found = root.and_then(|root| root.links.get(path)).cloned().unwrap_or_default();
        if let Some(root) = root.filter(|root| root.busy && now.duration_since(root.since) > DEADLINE) {
            let waiting = now.duration_since(root.since).as_secs();
            let detail = format!("links in mount namespace {namespace} are not resolved since {waiting} s");
            self.notices.add("enrich", "root_hangs", 1, detail);
        }
        if !fresh {
            let overdue = |root: &&Root| now.duration_since(root.since) > DEADLINE;
            let (hanging, busy): (Vec<_>, Vec<_>) = known.values().filter(|root| root.busy).partition(overdue);
            let (hanging, busy) = (hanging.len(), busy.len());
            if busy >= THREADS || hanging >= HANGING {
                self.notices.add(
                    "enrich",
                    "roots_busy",
                    1,
                    format!("{busy} roots are being looked at; links of others wait"),
                );
                return found;
            }
            if known.len() >= CACHE_LIMIT {
                known.retain(|_, root| root.busy);
            }
            let links = known.get(&namespace).map(|root| root.links.clone()).unwrap_or_default();
            known.insert(namespace, Root { links, policies: policies.clone(), since: now, busy: true });
            drop(known);
            self.start(namespace, lineage.chain([host()]).collect(), policies.clone());
        }
        found
    }

    fn start(&self, namespace: u64, lineage: Vec<u32>, policies: Arc<PolicySet>) {
        let known = self.known.clone();
        let work = move || {
            // A process in a chroot would show its own root for that of all.
            let whole = |pid: &u32| {
                mount_namespace(*pid) == Some(namespace)
                    && fs::read_link(procfs::of(pid, "root")).is_ok_and(|root| root == Path::new("/"))
            };
            let member = lineage.into_iter().find(whole);
            let links = member.and_then(|pid| resolve(pid, &policies));
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(root) = known.get_mut(&namespace) {
                root.busy = false;
                // A process that ended meanwhile had no root to look at; what was known before is still the best, and
                // another process will do in a while.
                match links {
                    Some(links) => root.links = Arc::new(links),
                    None => root.since = root.since.checked_sub(REFRESH - RETRY).unwrap_or(root.since),
                }
            }
        };
        // Whoever takes all the pids that there are must not end the sensor.
        if let Err(why) = std::thread::Builder::new().name("roots".to_owned()).spawn(work) {
            self.notices.add("enrich", "root_unresolved", 1, format!("no thread to resolve links: {why}"));
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.remove(&namespace);
        }
    }
}

/// What the literals of `policies` lead to in the root of process `pid`, where that is elsewhere; None if it is gone.
fn resolve(pid: u32, policies: &PolicySet) -> Option<Links> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(procfs::of(pid, "root"), flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let mut links = Links::new();
    for literal in policies.literals() {
        // Most do not exist. The kernel follows 40 links at most, and none out of the root.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = OsStr::from_bytes(literal);
        let Ok(file) = openat2(root.as_fd(), path, flags, Mode::empty(), resolve) else { continue };
        let Ok(real) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else { continue };
        let real = real.into_os_string().into_vec();
        if real != *literal {
            links.entry(real).or_default().push(literal.clone().into());
        }
    }
    Some(links)
}
