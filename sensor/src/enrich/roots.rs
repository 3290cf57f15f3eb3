//! What the literal paths of policies lead to, in every root: a policy may name a symbolic link, and the kernel tells
//! the path behind it; and a file may have another name, by a hard link.
//!
//! The names on the way belong to whoever owns the container: each root is looked at by a thread of its own, and one
//! that hangs there, in a file system of the owner's making, costs only that container's names.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open, openat2};

use super::{
    mounts::device,
    trust::{host, mount_namespace},
};
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
/// Most files of one root to which more may be learned than was looked up.
const FILES: usize = 10_000;
/// Most roots that are remembered.
const CACHE_LIMIT: usize = 2000;

/// A file, by the kernel's number of its device and its inode.
type File = (u32, u64);

/// What literals lead to.
#[derive(Clone, Default)]
struct Links {
    /// The literals that lead to a path.
    paths: BTreeMap<Vec<u8>, Vec<Name>>,
    /// The literals that lead to a file.
    files: HashMap<File, Vec<Name>>,
}

impl Links {
    fn names(&self, path: &[u8], file: Option<File>) -> impl Iterator<Item = &Name> {
        let by_path = self.paths.get(path).into_iter().flatten();
        by_path.chain(file.and_then(|file| self.files.get(&file)).into_iter().flatten())
    }
}

/// A place to look up literals in.
pub(super) struct Where<I> {
    /// Its mount namespace.
    pub(super) namespace: u64,
    /// Pids of processes that may be in it, the best first.
    pub(super) lineage: I,
}

struct Root {
    links: Arc<Links>,
    /// The set of which the literals were.
    policies: Arc<PolicySet>,
    since: Instant,
    /// A thread is at it.
    busy: bool,
    /// Pids of processes that may be in it, by which it was looked at last.
    through: Vec<u32>,
    /// What was learned since that thread began.
    learned: Vec<(File, Name)>,
    /// Something has changed since then: what it finds may be old.
    dirty: bool,
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

    /// The literals of `policies` that lead to `path`, or to `file`, in a mount namespace, as far as they are known; what is
    /// not is looked up meanwhile, through the first process that is there.
    pub(super) fn names(
        &self,
        place: Where<impl Iterator<Item = u32>>,
        path: &[u8],
        file: Option<File>,
        policies: &Arc<PolicySet>,
        now: Instant,
    ) -> Vec<Name> {
        let Where { namespace, lineage } = place;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let root = known.get(&namespace);
        let fresh = root.is_some_and(|root| {
            root.busy || Arc::ptr_eq(&root.policies, policies) && now.duration_since(root.since) < REFRESH
        });
        let found = root.map(|root| root.links.names(path, file).cloned().collect()).unwrap_or_default();
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
                known.retain(|namespace, root| root.busy || Some(*namespace) == mount_namespace(host()));
            }
            let links = known.get(&namespace).map(|root| root.links.clone()).unwrap_or_default();
            let mut through: Vec<u32> = lineage.chain([host()]).collect();
            through.dedup();
            known.insert(
                namespace,
                Root {
                    through: through.clone(),
                    links,
                    policies: policies.clone(),
                    since: now,
                    busy: true,
                    learned: Vec::new(),
                    dirty: false,
                },
            );
            drop(known);
            self.start(namespace, through, policies.clone());
        }
        found
    }

    /// Looks up anew what is old, as many as may be looked at: the kernel's filter goes by it, and tells of nobody who opens
    /// what it does not know.
    pub(super) fn refresh(&self, policies: &Arc<PolicySet>, now: Instant) {
        let mut due = Vec::new();
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let room = THREADS.saturating_sub(known.values().filter(|root| root.busy).count());
            let old = known.iter_mut().filter(|(_, root)| {
                let is_old = !Arc::ptr_eq(&root.policies, policies) || now.duration_since(root.since) >= REFRESH;
                is_old && !root.busy && !root.through.is_empty()
            });
            for (namespace, root) in old.take(room) {
                // Nobody is left through whom to look: whoever opens something there will be another.
                root.through.retain(|pid| mount_namespace(*pid) == Some(*namespace));
                if !root.through.is_empty() {
                    due.push((*namespace, root.through.clone()));
                }
            }
        }
        for (namespace, through) in due {
            self.names(Where { namespace, lineage: through.into_iter() }, &[], None, policies, now);
        }
    }

    /// All paths that literals lead to, as far as they are known, each once, sorted.
    pub(super) fn paths(&self) -> Vec<Vec<u8>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let all: BTreeSet<&Vec<u8>> = known.values().flat_map(|root| root.links.paths.keys()).collect();
        all.into_iter().cloned().collect()
    }

    /// What a literal leads to in these namespaces from now on: a file was met there, or put there.
    pub(super) fn met(&self, namespaces: &[u64], literal: &Name, file: File) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for namespace in namespaces {
            let Some(root) = known.get_mut(namespace) else { continue };
            if root.links.files.get(&file).is_some_and(|names| names.contains(literal)) {
                continue;
            }
            let links = Arc::make_mut(&mut root.links);
            // It is no other file any more.
            links.files.retain(|_, names| {
                names.retain(|name| name != literal);
                !names.is_empty()
            });
            if links.files.len() < FILES {
                links.files.entry(file).or_default().push(literal.clone());
                if root.busy && root.learned.len() < FILES {
                    root.learned.push((file, literal.clone()));
                }
            }
        }
    }

    /// Something has changed on the way to a literal: it is looked up anew soon. `gone` is no more.
    pub(super) fn changed(&self, namespaces: &[u64], gone: Option<File>, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let soon = now.checked_sub(REFRESH - RETRY).unwrap_or(now);
        for namespace in namespaces {
            let Some(root) = known.get_mut(namespace) else { continue };
            if root.busy {
                root.dirty = true;
            } else {
                root.since = root.since.min(soon);
            }
            if let Some(gone) = gone.filter(|gone| root.links.files.contains_key(gone)) {
                root.learned.retain(|(file, _)| *file != gone);
                Arc::make_mut(&mut root.links).files.remove(&gone);
            }
        }
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
                if root.dirty {
                    root.since = root.since.checked_sub(REFRESH - RETRY).unwrap_or(root.since);
                }
                // A process that ended meanwhile had no root to look at; what was known before is still the best, and
                // another process will do in a while.
                match links {
                    Some(mut links) => {
                        for (file, literal) in root.learned.drain(..) {
                            links.files.entry(file).or_default().push(literal);
                        }
                        root.links = Arc::new(links);
                    }
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

/// What the literals of `policies` lead to in the root of process `pid`; None if it is gone.
fn resolve(pid: u32, policies: &PolicySet) -> Option<Links> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(procfs::of(pid, "root"), flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let devices = devices(&fs::read(procfs::of(pid, "mountinfo")).ok()?);
    let mut links = Links::default();
    for literal in policies.literals() {
        // Most do not exist. The kernel follows 40 links at most, and none out of the root.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = OsStr::from_bytes(literal);
        let Ok(file) = openat2(root.as_fd(), path, flags, Mode::empty(), resolve) else { continue };
        if let Some(id) = identity(&file, &devices) {
            links.files.entry(id).or_default().push(literal.clone().into());
        }
        let Ok(real) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else { continue };
        let real = real.into_os_string().into_vec();
        if real != *literal {
            links.paths.entry(real).or_default().push(literal.clone().into());
        }
    }
    Some(links)
}

/// The devices of the mounts of a /proc/PID/mountinfo, by the mount's number.
fn devices(mounts: &[u8]) -> HashMap<u64, u32> {
    let lines = mounts.split(|byte| *byte == b'\n');
    let of_line = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        Some((id, device(words.nth(1)?)?))
    };
    lines.filter_map(of_line).collect()
}

/// What the kernel knows a file by. Its stat(2) may say otherwise: on btrfs of the device, on overlays of both. The
/// number of the inode is in fdinfo from 5.14 on.
fn identity(file: &OwnedFd, devices: &HashMap<u64, u32>) -> Option<File> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let field = |name| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let device = devices.get(&field("mnt_id:")?)?;
    let inode = field("ino:").or_else(|| fstat(file).ok().map(|stat| stat.st_ino))?;
    Some((*device, inode))
}
