//! The path walk: from a dentry up to the root of the mount namespace, whatever `chroot` says.
use sensor_ebpf::{
    STATUS_ABOVE_CUT, STATUS_COVERED, STATUS_DETACHED, STATUS_DISCONNECTED, STATUS_FOREIGN_MOUNT, STATUS_SHIFT,
    STATUS_TOO_LONG, Section,
};

use crate::{
    kernel::{
        Address, DENTRY_D_FLAGS, DENTRY_D_INLINE, DENTRY_D_NAME, DENTRY_D_PARENT, FS_STRUCT_PWD, FS_STRUCT_ROOT,
        HAS_TASK_BTF, MOUNT_MNT, MOUNT_MNT_CHILD, MOUNT_MNT_MOUNTPOINT, MOUNT_MNT_MOUNTS, MOUNT_MNT_NS,
        MountParts, TASK_FS, Typed, VFSMOUNT_MNT_ROOT, WALK_ROUNDS, constant, is_error, load, mount_parts,
        path_at, read,
    },
    record::{Builder, Kept, MOUNTED, Room},
    task,
};

/// `(vfsmount, dentry)`: where a walk begins.
pub(crate) type Place = (u64, u64);

/// Stands for the mount of a place that has no more components; no address of the kernel's.
const WHOLE: u64 = 1;
/// Rounds of the walk up from a directory that a name starts from, and of that above a mount's root. Deeper ones are cut
/// and flagged.
const SHORT: usize = 128;
/// Components of a file that are read where the verifier knows its dentries; those above cost more.
const NEAR: usize = 24;
/// Mounts that may lie on each other at `/`: a container's root, on the host's, on the first one.
const ROOTS: usize = 8;
/// Mounts on a mount that are looked through for the one that covers a place. Beyond, it counts as covered.
const CHILDREN: usize = 64;

/// Where the parts of `d_name` stand in it: hash, length, address (include/linux/dcache.h).
pub(crate) const LEN: usize = 4;
pub(crate) const NAME: usize = 8;

/// Where the walk stands.
#[derive(Clone, Copy)]
struct Cursor {
    /// `struct mount *`.
    mount: u64,
    /// Where that stands, and its root.
    parts: MountParts,
    /// `struct dentry *`, in that mount.
    dentry: u64,
}

/// How far a walk may go, and what it may cost.
///
/// Each round leaves three branches for the verifier to come back to, and with 8,192 of them in a program it refuses:
/// "The sequence of 8193 jumps is too complex". So there is no test for a null pointer: what is read through one is
/// zero, and a dentry at zero is its own parent, which ends the walk as disconnected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Two passes of `WALK_ROUNDS` (1,024): together they reach the 2,047 components that a path of 4,096 bytes can have.
    Whole,
    /// One pass, in programs some of which have another name to walk.
    Half,
}

/// Appends the components of a place to the record, leaf first, and says what is to be known of it.
#[inline(always)]
pub(crate) fn put_path(record: Builder, (vfsmount, dentry): Place, depth: Depth, until: Room) {
    if vfsmount == 0 {
        // The directory that a failed open starts from was no descriptor.
        return record.flag(STATUS_DISCONNECTED);
    }
    let rounds = constant(&WALK_ROUNDS);
    if vfsmount != WHOLE
        && let Some(rest) = pass(record, until, Cursor::new(vfsmount, dentry), rounds, 0)
        && (depth == Depth::Half || pass(record, until, rest, rounds, 0).is_some())
    {
        record.flag(STATUS_TOO_LONG);
    }
    record.end(Section::Path);
    flag_covered(record);
}

/// Appends the components of a place that the verifier knows, up to the root of its mount by a few instructions each; `kept`
/// has where the others begin, if there are any.
#[inline(always)]
pub(crate) fn put_near(record: Builder, (vfsmount, mut dentry): Place, until: Room) {
    let root: u64 = load(vfsmount, constant(&VFSMOUNT_MNT_ROOT));
    let mount = vfsmount.wrapping_sub(constant(&MOUNT_MNT) as u64);
    let mut kept = Kept { root, target: (vfsmount, dentry), ..record.kept() };
    // Where a file system is mounted whole, nothing is above.
    if load::<u64>(root, constant(&DENTRY_D_PARENT)) == root {
        kept.root = 0;
    }
    for _ in 0..NEAR {
        let parent: u64 = load(dentry, constant(&DENTRY_D_PARENT));
        if dentry == root || parent == dentry || !put_name(record, until, dentry) {
            break;
        }
        record.note_mounted(mount, dentry, load(dentry, constant(&DENTRY_D_FLAGS)));
        dentry = parent;
    }
    kept.target.1 = dentry;
    if dentry == root {
        let below = layers(mount);
        if below == 0 || below == 1 && record.put_component(until, 0, 0) {
            record.note_mounted(mount, dentry, load(dentry, constant(&DENTRY_D_FLAGS)));
            kept.target.0 = WHOLE;
        }
    }
    record.keep(kept);
}

/// How many mounts are below this one, which covers their roots, down to the bottom of the task's mount namespace: none, one,
/// or something else. One it is where the real root, or a container's, was put on the first.
#[inline(always)]
fn layers(mount: u64) -> u32 {
    let (bottom, root) = task::bottom();
    if mount == bottom {
        return 0;
    }
    let parts = mount_parts(mount);
    if parts.parent == bottom && parts.mountpoint == root { 1 } else { 2 }
}

/// Appends the name of a dentry that the verifier knows.
#[inline(always)]
fn put_name(record: Builder, until: Room, dentry: u64) -> bool {
    let at = constant(&DENTRY_D_NAME);
    let (len, name): (u32, u64) = (load(dentry, at + LEN), load(dentry, at + NAME));
    if name != dentry + constant(&DENTRY_D_INLINE) as u64 {
        return record.put_component(until, name, len);
    }
    record.put_inline(until, len, |word| load(dentry, constant(&DENTRY_D_INLINE) + 8 * word))
}

/// Appends the components above the root of the mount that the path is in. A bind mount leaves them out.
#[inline(always)]
pub(crate) fn put_above(record: Builder, root: u64, until: Room) {
    let rounds = constant(&WALK_ROUNDS).min(SHORT);
    let mut dentry = root;
    let mut round = 0;
    while round < rounds {
        let parent: u64 = read(dentry, constant(&DENTRY_D_PARENT));
        if parent == dentry {
            break;
        }
        let name: [u64; 2] = read(dentry, constant(&DENTRY_D_NAME));
        if !record.put_component(until, name[1], (name[0] >> 32) as u32) {
            round = rounds;
            break;
        }
        dentry = parent;
        round += 1;
    }
    if round >= rounds {
        record.flag(STATUS_ABOVE_CUT);
    }
    record.end(Section::Above);
}

/// Appends the components of a place as the other name of a rename or link, in one pass.
#[inline(always)]
pub(crate) fn put_target(record: Builder, (vfsmount, dentry): Place) {
    put_short(record, Room::Last, (vfsmount, dentry), constant(&WALK_ROUNDS), STATUS_SHIFT);
    record.end(Section::Target);
}

/// Appends the components of the directory that a name starts from.
#[inline(always)]
pub(crate) fn put_base(record: Builder, place: Place, section: Section, until: Room) {
    let shift = if section as u16 == Section::Path as u16 { 0 } else { STATUS_SHIFT };
    put_short(record, until, place, constant(&WALK_ROUNDS).min(SHORT), shift);
    record.end(section);
}

/// Appends the components of the task's working directory.
#[inline(always)]
pub(crate) fn put_cwd(record: Builder) {
    let fs: u64 = read(task::current(), constant(&TASK_FS));
    put_base(record, path_at(Address, fs, constant(&FS_STRUCT_PWD)), Section::Cwd, Room::Last);
}

#[inline(always)]
fn put_short(record: Builder, until: Room, (vfsmount, dentry): Place, rounds: usize, shift: u32) {
    if vfsmount == 0 {
        return record.flag(STATUS_DISCONNECTED << shift);
    }
    if pass(record, until, Cursor::new(vfsmount, dentry), rounds, shift).is_some() {
        record.flag(STATUS_TOO_LONG << shift);
    }
}

/// Root dentry of a mount.
#[inline(always)]
pub(crate) fn root_of(vfsmount: u64) -> u64 {
    read(vfsmount, constant(&VFSMOUNT_MNT_ROOT))
}

/// Says whether one of the places on the way at which something is mounted, here or in another namespace, is covered
/// here. The list of a mount's children is read without its lock: one that changes meanwhile may end early.
#[inline(always)]
fn flag_covered(record: Builder) {
    let count = record.mounted() as usize;
    if count == 0 {
        return;
    }
    // The walk has gone on, and so the last place was written over.
    if count >= MOUNTED {
        return record.flag(STATUS_COVERED);
    }
    // Not a loop: its end would be the verifier's guess.
    if is_covered(record, 0) || count > 1 && is_covered(record, 1) || count > 2 && is_covered(record, 2) {
        record.flag(STATUS_COVERED);
    }
}

/// Whether one of the places remembered has a mount on it, in the mount that the walk went by. True also of a mount that has
/// more mounts on it than are looked at.
#[inline(always)]
fn is_covered(record: Builder, slot: usize) -> bool {
    let (mount, dentry) = record.place(slot);
    let head = mount + constant(&MOUNT_MNT_MOUNTS) as u64;
    let mut child: u64 = read(head, 0);
    let mut round = 0;
    while round < CHILDREN {
        let of = child.wrapping_sub(constant(&MOUNT_MNT_CHILD) as u64);
        if child == head || read::<u64>(of, constant(&MOUNT_MNT_MOUNTPOINT)) == dentry {
            break;
        }
        child = read(child, 0);
        round += 1;
    }
    child != head
}

/// Whether the task's root is another than that of its mount namespace.
#[inline(always)]
pub(crate) fn is_chrooted() -> bool {
    let (vfsmount, dentry) = if constant(&HAS_TASK_BTF) != 0 {
        path_at(Typed, load(task::typed(), constant(&TASK_FS)), constant(&FS_STRUCT_ROOT))
    } else {
        path_at(Address, read(task::current(), constant(&TASK_FS)), constant(&FS_STRUCT_ROOT))
    };
    let Cursor { mut mount, mut parts, mut dentry } = Cursor::new(vfsmount, dentry);
    let (bottom, _) = task::bottom();
    for _ in 0..ROOTS {
        if dentry != parts.root {
            return true;
        }
        if parts.parent == mount || mount == bottom {
            return false;
        }
        (mount, dentry) = (parts.parent, parts.mountpoint);
        parts = mount_parts(mount);
    }
    true
}

impl Cursor {
    #[inline(always)]
    fn new(vfsmount: u64, dentry: u64) -> Self {
        let mount = vfsmount.wrapping_sub(constant(&MOUNT_MNT) as u64);
        Self { mount, parts: mount_parts(mount), dentry }
    }
}

/// Climbs until the walk ends, or returns where it stands after so many rounds. Flags are shifted by `shift`.
#[inline(always)]
fn pass(record: Builder, until: Room, start: Cursor, rounds: usize, shift: u32) -> Option<Cursor> {
    let Cursor { mut mount, mut parts, mut dentry } = start;
    let mut round = 0;
    while round < rounds {
        record.note_mounted(mount, dentry, read(dentry, constant(&DENTRY_D_FLAGS)));
        if dentry == parts.root {
            if parts.parent == mount {
                topmost(record, mount, shift);
                return None;
            }
            if !record.put_component(until, 0, 0) {
                record.flag(STATUS_TOO_LONG << shift);
                return None;
            }
            (mount, dentry) = (parts.parent, parts.mountpoint);
            parts = mount_parts(mount);
            record.set_crossed(1);
        } else {
            // struct qstr: hash and length in one word, then the pointer (include/linux/dcache.h).
            let name: [u64; 2] = read(dentry, constant(&DENTRY_D_NAME));
            if !record.put_component(until, name[1], (name[0] >> 32) as u32) {
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
    Some(Cursor { mount, parts, dentry })
}

/// Says to which mount namespace the topmost mount belongs.
#[inline(always)]
fn topmost(record: Builder, mount: u64, shift: u32) {
    let namespace: u64 = read(mount, constant(&MOUNT_MNT_NS));
    let own = task::mount_namespace();
    if namespace == 0 {
        record.flag(STATUS_DETACHED << shift);
    } else if is_error(namespace) {
        // MNT_NS_INTERNAL (fs/namespace.c): pipes, sockets, memfds have no place in any tree.
        record.flag(STATUS_DISCONNECTED << shift);
    } else if namespace != own && own != 0 {
        record.flag(STATUS_FOREIGN_MOUNT << shift);
    }
}
