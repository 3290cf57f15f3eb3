//! Whether a program is what its path says: an exception names a program by its path, and whoever can put another
//! program there must not pass for it.
use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind::NotFound,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    sync::OnceLock,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, makedev, open, openat2, statx},
    io::Errno,
};

use super::container::is_in_container;
use crate::{event::Name, procfs};

/// Most generations between a process and the first one of its container.
const GENERATIONS: usize = 64;
/// Write permission of group and others.
const WRITABLE: u32 = 0o022;

/// A process whose root and mount namespace are the host's: the first, or the kernel's own first thread where the node
/// hides that, or else this one.
pub(super) fn host() -> u32 {
    static HOST: OnceLock<u32> = OnceLock::new();
    *HOST.get_or_init(|| {
        // Of a kernel thread there is no program; elsewhere than in the initial pid namespace, 2 is anybody.
        let is_kernel = |pid| fs::read_link(procfs::of(pid, "exe")).is_err_and(|why| why.kind() == NotFound);
        let shown = |pid: &u32| mount_namespace(*pid).is_some() && find(*pid, b"/", ResolveFlags::empty()).is_ok();
        if let Some(pid) = [1, 2].into_iter().find(|pid| shown(pid) && (*pid == 1 || is_kernel(*pid))) {
            return pid;
        }
        tracing::warn!(
            "not permitted to look into /proc/1/root: programs are compared with the sensor's own root, so exceptions by path hold only if it runs on the host itself; needs CAP_SYS_PTRACE, and the node's /proc in enrich.proc"
        );
        std::process::id()
    })
}

/// The first process of the container that processes `lineage`, the nearest first, are in: the last on the way up to the
/// host that has a mount namespace of its own. Nothing is decided by what it is, but what it shows is what the runtime made.
pub(super) fn first_of_container(lineage: &[u32]) -> Option<u32> {
    let outside = mount_namespace(host())?;
    let mut first = lineage.iter().copied().find(|pid| mount_namespace(*pid).is_some_and(|own| own != outside))?;
    for _ in 0..GENERATIONS {
        match super::proc::parent_of(first) {
            Some(parent) if parent != 0 && mount_namespace(parent).is_some_and(|own| own != outside) => {
                first = parent
            }
            _ => return Some(first),
        }
    }
    None
}

/// A program as the kernel reported it.
pub(super) struct Candidate<'a> {
    /// Its path from the root of the process's mount namespace.
    pub(super) path: &'a [u8],
    /// Device of its superblock, as the kernel holds it: 12 bits major, 20 bits minor.
    pub(super) device: u32,
    /// Its inode number.
    pub(super) inode: u64,
}

/// What a process interprets, as it was asked for.
#[derive(Debug)]
pub(super) struct Script {
    /// Its path, by the letters.
    pub(super) path: Name,
    /// The mount namespace of the process.
    pub(super) mount_ns: u64,
    /// Its root was that of the namespace, so that the path leads where it says.
    pub(super) certain: bool,
}

impl Script {
    /// Whether the path can only hold what root or the image put there, now as at the exec: the kernel has closed the
    /// script by the time that it reports, and the interpreter opens the name once more.
    pub(super) fn is_trusted(&self, lineage: &[u32]) -> bool {
        let path = self.path.as_bytes();
        let in_namespace = |pid: u32| mount_namespace(pid) == Some(self.mount_ns);
        self.certain
            && path.starts_with(b"/")
            && (in_namespace(host()) && is_roots_all_the_way(path)
                || entry_of_container(lineage)
                    .is_some_and(|entry| in_namespace(entry) && comes_with_image(path, entry, |_| true)))
    }
}

/// Whether a file of the host, and every directory on the way to it, is root's and nobody else may write it.
fn is_roots_all_the_way(path: &[u8]) -> bool {
    let ends = (1..=path.len()).filter(|end| path.get(*end).is_none_or(|byte| *byte == b'/'));
    ends.filter_map(|end| path.get(..end)).all(|part| {
        let found = find(host(), part, ResolveFlags::empty()).ok().and_then(|file| fstat(file).ok());
        found.is_some_and(|found| found.st_uid == 0 && found.st_mode & WRITABLE == 0)
    })
}

/// Whether the candidate's path can only hold what root or the image put there. `lineage` are pids of the process that
/// runs it and of its ancestors, the nearest first, as far as they are known.
///
/// On the host: root's, nobody else may write it, and the host's own root has this very file at that path, so that no
/// bind mount or chroot of the process's making lies in between. In a container: the container's own root has it at
/// that path, without a mount in between, and it is not in the layer that the container writes.
pub(super) fn is_trusted(candidate: &Candidate<'_>, lineage: &[u32]) -> bool {
    candidate.path.starts_with(b"/")
        && (of_host(candidate) || entry_of_container(lineage).is_some_and(|entry| of_image(candidate, entry)))
}

fn of_host(candidate: &Candidate<'_>) -> bool {
    let found = find(host(), candidate.path, ResolveFlags::empty());
    let found = found.ok().and_then(|file| candidate.is(&file, host()));
    found.is_some_and(|found| found.st_uid == 0 && found.st_mode & WRITABLE == 0)
}

fn of_image(candidate: &Candidate<'_>, entry: u32) -> bool {
    comes_with_image(candidate.path, entry, |file| candidate.is(file, entry).is_some())
}

/// Whether what is at `path` in the root of the container that process `entry` is the first of `is_it`, lies in no volume
/// and is not in the layer that the container writes.
fn comes_with_image(path: &[u8], entry: u32, is_it: impl Fn(&OwnedFd) -> bool) -> bool {
    if !find(entry, path, ResolveFlags::NO_XDEV).is_ok_and(|file| is_it(&file)) {
        return false;
    }
    let Ok(mounts) = fs::read(procfs::of(entry, "mountinfo")) else { return false };
    match upper_layer(&mounts) {
        Some(Upper::ReadOnly) => true,
        Some(Upper::At(directory)) => {
            let copy = find(host(), &[directory.as_slice(), path].concat(), ResolveFlags::empty());
            copy.is_err_and(|why| why == Errno::NOENT || why == Errno::NOTDIR)
        }
        None => false,
    }
}

impl Candidate<'_> {
    /// What stat(2) says of `file`, found in the root of process `pid`, if it is this very program.
    fn is(&self, file: &OwnedFd, pid: u32) -> Option<Stat> {
        let found = fstat(file).ok().filter(|found| found.st_ino == self.inode)?;
        let same = found.st_dev == makedev(self.device >> 20, self.device & 0xf_ffff)
            // Some file systems show stat(2) another device than their superblock's: btrfs, overlays of several.
            || superblock_device(file, pid) == Some(self.device);
        same.then_some(found)
    }
}

/// Device of the superblock that `file` is on, by the mount table of process `pid`.
fn superblock_device(file: &OwnedFd, pid: u32) -> Option<u32> {
    let mount = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?.stx_mnt_id;
    let mounts = fs::read_to_string(procfs::of(pid, "mountinfo")).ok()?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount.to_string().as_str()))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
}

/// What stands at `path` in the root of process `pid`, reached by no symbolic link.
fn find(pid: u32, path: &[u8], more: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let root = open(procfs::of(pid, "root"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | more;
    openat2(root, OsStr::from_bytes(path), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The first process of the container that a lineage is in: the one whose parent is on the host. None on the host.
///
/// The runtime, which is root's, has made its root; those below it may have made roots of their own.
fn entry_of_container(lineage: &[u32]) -> Option<u32> {
    let outside = mount_namespace(host())?;
    // The nearest that still lives.
    let (mut entry, mut namespace) = lineage.iter().find_map(|pid| Some((*pid, mount_namespace(*pid)?)))?;
    for _ in 0..GENERATIONS {
        if namespace == outside {
            return None;
        }
        let parent = super::proc::parent_of(entry)?;
        // Its parent is in a pid namespace that is not ours to see: nothing is known of it.
        if parent == 0 {
            return None;
        }
        namespace = mount_namespace(parent)?;
        if namespace == outside {
            // The runtime runs as root, and has not given the container a user namespace: in one of its own, the
            // first process could have made another root after that.
            let table = procfs::cgroups(entry)?;
            let root = fs::metadata(procfs::of(parent, "")).ok()?.uid() == 0;
            let own = namespace_of(entry, "user")? != namespace_of(host(), "user")?;
            return (root && !own && is_in_container(&table)).then_some(entry);
        }
        entry = parent;
    }
    None
}

/// Inode of a process's mount namespace.
pub(super) fn mount_namespace(pid: u32) -> Option<u64> {
    namespace_of(pid, "mnt")
}

fn namespace_of(pid: u32, kind: &str) -> Option<u64> {
    fs::metadata(procfs::of(pid, &format!("ns/{kind}"))).ok().map(|found| found.ino())
}

/// The layer of an overlay that is written to.
#[derive(Debug, PartialEq, Eq)]
enum Upper {
    At(Vec<u8>),
    ReadOnly,
}

/// The upper layer of the root file system in a /proc/PID/mountinfo; None if the root is no overlay.
fn upper_layer(mounts: &[u8]) -> Option<Upper> {
    // The last mount on `/` is the one that is seen (proc_pid_mountinfo(5)).
    let line =
        mounts.split(|byte| *byte == b'\n').rfind(|line| line.split(|byte| *byte == b' ').nth(4) == Some(b"/"))?;
    let mut words = line.split(|byte| *byte == b' ').skip_while(|word| word != b"-").skip(1);
    if words.next() != Some(b"overlay") {
        return None;
    }
    let upper = words.nth(1)?.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"upperdir="));
    match upper {
        None => Some(Upper::ReadOnly),
        // A relative one cannot be found, nor one with characters that the kernel writes as `\040`.
        Some(directory) if directory.first() == Some(&b'/') && !directory.contains(&b'\\') => {
            Some(Upper::At(directory.to_vec()))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_layer_is_found_in_the_line_of_the_root() {
        let line = |root: &str, options: &str| {
            format!("1 2 0:3 / {root} rw,relatime shared:1 - overlay overlay {options}\n")
        };
        let other = "5 1 0:4 / /proc rw - proc proc rw\n";
        for (table, want) in [
            (line("/", "rw,lowerdir=/l,upperdir=/u/fs,workdir=/w") + other, Some(Upper::At(b"/u/fs".to_vec()))),
            (line("/", "ro,lowerdir=/l"), Some(Upper::ReadOnly)),
            (line("/", "rw,upperdir=relative"), None),
            (line("/", "rw,upperdir=/with\\040space"), None),
            (line("/x", "rw,upperdir=/u"), None),
            (line("/", "rw,upperdir=/old") + &line("/", "rw,upperdir=/new"), Some(Upper::At(b"/new".to_vec()))),
            ("1 2 8:1 / / rw - ext4 /dev/sda1 rw\n".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(upper_layer(table.as_bytes()), want, "{table}");
        }
    }
}
