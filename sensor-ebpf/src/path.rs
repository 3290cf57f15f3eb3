//! The path walk: from a dentry up to the root of the mount namespace, whatever `chroot` says.
use sensor_ebpf::{STATUS_CWD_SHIFT, STATUS_DETACHED, STATUS_DISCONNECTED, STATUS_FOREIGN_MOUNT, STATUS_TOO_LONG};

use crate::{
    kernel::{
        DENTRY_D_NAME, DENTRY_D_PARENT, FS_STRUCT_PWD, FS_STRUCT_ROOT, MOUNT_MNT, MOUNT_MNT_MOUNTPOINT,
        MOUNT_MNT_NS, MOUNT_MNT_PARENT, NSPROXY_MNT_NS, TASK_FS, TASK_NSPROXY, VFSMOUNT_MNT_ROOT, WALK_ROUNDS,
        constant, is_error, read, read_path,
    },
    record::Builder,
    task,
};

/// Rounds of the walk up from a working directory. Deeper ones are cut and flagged: nothing is decided by them but
/// where a relative script lies, which is then not known.
const CWD_ROUNDS: usize = 256;
/// Mounts that may lie on each other at `/`: a container's root, on the host's, on the first one.
const ROOTS: usize = 8;

/// Where the walk stands.
#[derive(Clone, Copy)]
struct Cursor {
    /// `struct mount *`.
    mount: u64,
    /// Root dentry of that mount.
    root: u64,
    /// `struct dentry *`, in that mount.
    dentry: u64,
}

/// Appends the components of `(vfsmount, dentry)` to the record, leaf first.
///
/// Two passes of `WALK_ROUNDS` (1,024): together they reach the 2,047 components that a path of 4,096 bytes can
/// have. Each round may leave three branches for the verifier to come back to; with four it refuses: "The
/// sequence of 8193 jumps is too complex". So there is no test for a null pointer: what is read through one is
/// zero, and a dentry at zero is its own parent, which ends the walk as disconnected.
#[inline(always)]
pub(crate) fn put_path(record: Builder, (vfsmount, dentry): (u64, u64)) {
    if vfsmount == 0 {
        // The directory that a failed open starts from was no descriptor.
        return record.flag(STATUS_DISCONNECTED);
    }
    let rounds = constant(&WALK_ROUNDS);
    let Some(rest) = pass(record, Cursor::new(vfsmount, dentry), rounds, 0) else { return };
    if pass(record, rest, rounds, 0).is_some() {
        record.flag(STATUS_TOO_LONG);
    }
}

/// Appends the components of the task's working directory, in one shorter pass.
#[inline(always)]
pub(crate) fn put_cwd(record: Builder) {
    let fs: u64 = read(task::current(), constant(&TASK_FS));
    let (vfsmount, dentry) = read_path(fs, constant(&FS_STRUCT_PWD));
    let rounds = constant(&WALK_ROUNDS).min(CWD_ROUNDS);
    if pass(record, Cursor::new(vfsmount, dentry), rounds, STATUS_CWD_SHIFT).is_some() {
        record.flag(STATUS_TOO_LONG << STATUS_CWD_SHIFT);
    }
}

/// Whether the task's root is another than that of its mount namespace.
#[inline(always)]
pub(crate) fn is_chrooted() -> bool {
    let fs: u64 = read(task::current(), constant(&TASK_FS));
    let (vfsmount, dentry) = read_path(fs, constant(&FS_STRUCT_ROOT));
    let Cursor { mut mount, mut root, mut dentry } = Cursor::new(vfsmount, dentry);
    for _ in 0..ROOTS {
        if dentry != root {
            return true;
        }
        let parent: u64 = read(mount, constant(&MOUNT_MNT_PARENT));
        if parent == mount {
            return false;
        }
        dentry = read(mount, constant(&MOUNT_MNT_MOUNTPOINT));
        mount = parent;
        root = read(mount, constant(&MOUNT_MNT) + constant(&VFSMOUNT_MNT_ROOT));
    }
    true
}

impl Cursor {
    #[inline(always)]
    fn new(vfsmount: u64, dentry: u64) -> Self {
        let mount = vfsmount.wrapping_sub(constant(&MOUNT_MNT) as u64);
        Self { mount, root: read(vfsmount, constant(&VFSMOUNT_MNT_ROOT)), dentry }
    }
}

/// Climbs until the walk ends, or returns where it stands after so many rounds. Flags are shifted by `shift`.
#[inline(always)]
fn pass(record: Builder, start: Cursor, rounds: usize, shift: u32) -> Option<Cursor> {
    let Cursor { mut mount, mut root, mut dentry } = start;
    let mut round = 0;
    while round < rounds {
        if dentry == root {
            let parent: u64 = read(mount, constant(&MOUNT_MNT_PARENT));
            if parent == mount {
                topmost(record, mount, shift);
                return None;
            }
            if !record.put_component(0, 0) {
                record.flag(STATUS_TOO_LONG << shift);
                return None;
            }
            dentry = read(mount, constant(&MOUNT_MNT_MOUNTPOINT));
            mount = parent;
            root = read(mount, constant(&MOUNT_MNT) + constant(&VFSMOUNT_MNT_ROOT));
        } else {
            // struct qstr: hash and length in one word, then the pointer (include/linux/dcache.h).
            let name: [u64; 2] = read(dentry, constant(&DENTRY_D_NAME));
            if !record.put_component(name[1], (name[0] >> 32) as u32) {
                record.flag(STATUS_TOO_LONG << shift);
                return None;
            }
            let parent: u64 = read(dentry, constant(&DENTRY_D_PARENT));
            if parent == dentry {
                record.flag(STATUS_DISCONNECTED << shift);
                return None;
            }
            dentry = parent;
        }
        round += 1;
    }
    Some(Cursor { mount, root, dentry })
}

/// Says to which mount namespace the topmost mount belongs.
#[inline(always)]
fn topmost(record: Builder, mount: u64, shift: u32) {
    let namespace: u64 = read(mount, constant(&MOUNT_MNT_NS));
    let nsproxy: u64 = read(task::current(), constant(&TASK_NSPROXY));
    let own: u64 = read(nsproxy, constant(&NSPROXY_MNT_NS));
    if namespace == 0 {
        record.flag(STATUS_DETACHED << shift);
    } else if is_error(namespace) {
        // MNT_NS_INTERNAL (fs/namespace.c): pipes, sockets, memfds have no place in any tree.
        record.flag(STATUS_DISCONNECTED << shift);
    } else if namespace != own && own != 0 {
        record.flag(STATUS_FOREIGN_MOUNT << shift);
    }
}
