//! Whether what happens is worth a record; decided before anything is copied. `decide.rs` has the rules.
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns};
use sensor_ebpf::{
    Hook, Loss, Part,
    decide::{self, Dentries, Kernel, Mount, Opened, Remembered, Valid, passes},
    share::take,
    table::{HOST, Table, WORDS, Wants, classes},
};

use zerocopy::transmute;

use crate::{
    kernel::{
        Address, DENTRY_D_INLINE, DENTRY_D_NAME, DENTRY_D_PARENT, DENTRY_D_SB, FILE_F_INODE, FILE_F_PATH,
        HAS_TASK_BTF, INODE_I_NLINK, MNT_NAMESPACE_EVENT, MOUNT_MNT, MOUNT_MNT_NS, Memory, MountParts,
        REPORT_SELF, SELF_TGID, SHARE_BURST, SHARE_INTERVAL, SUPER_BLOCK_S_DEV, Typed, constant, is_directory,
        load, mount_parts, path_at, read, read_text,
    },
    maps::{self, count_fired, count_loss, count_passed, next_sequence},
    path::{LEN, NAME},
    task,
};

/// False for what the sensor does itself: reporting it would feed on itself. That it came by here is counted, which
/// shows that the program is not only attached but runs.
#[inline(always)]
pub(crate) fn is_foreign(hook: Hook, part: Part) -> bool {
    if (bpf_get_current_pid_tgid() >> 32) as usize != constant(&SELF_TGID) {
        return true;
    }
    count_fired(hook, part);
    constant(&REPORT_SELF) != 0
}

/// Whether the cgroup of the current task has something left of its share. If not, the record that would be made is numbered
/// and counted as lost, here and with the cgroup.
#[inline(always)]
pub(crate) fn admits(hook: Hook) -> bool {
    let interval = constant(&SHARE_INTERVAL) as u64;
    if interval == 0 {
        return true;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let cgroup = task::cgroup();
    if maps::in_share(cgroup, |full_at| take(full_at, now, interval, constant(&SHARE_BURST) as u64)) {
        return true;
    }
    maps::count_refused(cgroup);
    next_sequence(hook);
    count_loss(hook, Loss::Limited);
    false
}

/// What is asked about an open.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    swaps: u64,
    wants: Wants,
}

/// What policies want of the current task; None if that is nothing.
#[inline(always)]
pub(crate) fn ask() -> Option<Asked> {
    let swaps = maps::filter_swaps();
    let wants = wants(swaps);
    (wants.any(u8::MAX) || maps::filter_swaps() != swaps).then_some(Asked { swaps, wants })
}

/// Whether some policy may want an open of `file`, a `struct file *` that the verifier knows as one; `result` is zero or a
/// negative errno, and then `name` is where the name stands that was asked for.
#[inline(always)]
pub(crate) fn wants_open(
    Asked { swaps, wants }: Asked,
    file: u64,
    name: impl FnOnce() -> u64,
    (flags, result): (u32, i32),
) -> bool {
    let opened = || {
        let inode: u64 = load(file, constant(&FILE_F_INODE));
        let (mount, dentry) = path_at(Typed, file, constant(&FILE_F_PATH));
        let links: u32 = load(inode, constant(&INODE_I_NLINK));
        Opened { dentry, mount, links: if links > 1 && is_directory(inode) { 0 } else { links } }
    };
    let reason = passes(&Running { swaps }, wants, (classes(flags), result), opened, || Name(name()));
    if let Some(reason) = reason {
        count_passed(reason);
    }
    reason.is_some()
}

/// Whether some policy may want a call that is no open, or of which it is not known yet what it opens, by its classes.
#[inline(always)]
pub(crate) fn wants_call(classes: u8) -> bool {
    let swaps = maps::filter_swaps();
    wants(swaps).any(classes) || maps::filter_swaps() != swaps
}

/// What is wanted of the current task.
#[inline(always)]
fn wants(swaps: u64) -> Wants {
    transmute!(wants_word(swaps))
}

/// The same as one word. A function of its own, so that the verifier does not follow what comes after it once for each place
/// that a cgroup may stand in.
#[inline(never)]
fn wants_word(swaps: u64) -> u64 {
    let cgroup = task::cgroup_at_once();
    let known = cgroup.and_then(|id| maps::cgroups(swaps).wants(id));
    transmute!(known.unwrap_or_else(|| maps::filter_wants(swaps)))
}

/// A task goes from one cgroup to another. Policies judge it by both if it was in a container, and then the other may be any; one of
/// the host is where it has gone, as is what a runtime starts.
#[inline(always)]
pub(crate) fn migrates(from: u64, to: u64) {
    let is_host = |wants: Wants| wants.flags & HOST != 0;
    let swaps = maps::filter_swaps();
    let stays = from == to
        || maps::cgroups(swaps).wants(from).is_some_and(is_host)
            && !maps::is_stray(from)
            // Else it may have been read while it was written over.
            && maps::filter_swaps() == swaps;
    if !stays {
        maps::stray(to);
    }
}

/// The kernel that this runs in.
struct Running {
    swaps: u64,
}

/// Where the kernel has its copy of a name that was asked for.
struct Name(u64);

impl decide::RequestedName for Name {
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: u32) -> ([u8; N], u32) {
        let mut bytes = [0; N];
        let read = read_text(self.0 + u64::from(at), &mut bytes);
        (bytes, read)
    }
}

/// Dentries, read one way or the other.
struct By<M>(M);

impl<M: Memory> Dentries for By<M> {
    #[inline(always)]
    fn parent(&self, dentry: u64) -> u64 {
        self.0.get(dentry, constant(&DENTRY_D_PARENT))
    }

    #[inline(always)]
    fn name_len(&self, dentry: u64) -> u32 {
        self.0.get(dentry, constant(&DENTRY_D_NAME) + LEN)
    }

    /// By a helper a name is read as well wherever it stands.
    #[inline(always)]
    fn is_inline(&self, dentry: u64) -> bool {
        let name: u64 = if M::TYPED { load(dentry, constant(&DENTRY_D_NAME) + NAME) } else { 0 };
        M::TYPED && name == dentry + constant(&DENTRY_D_INLINE) as u64
    }

    #[inline(always)]
    fn inline_word(&self, dentry: u64, at: usize) -> u64 {
        self.0.get(dentry, constant(&DENTRY_D_INLINE) + 8 * at)
    }

    #[inline(always)]
    fn long_name(&self, dentry: u64) -> [u64; WORDS] {
        read(self.0.get(dentry, constant(&DENTRY_D_NAME) + NAME), 0)
    }
}

impl Kernel for Running {
    type Near = By<Typed>;
    type Far = By<Address>;

    #[inline(always)]
    fn near(&self) -> By<Typed> {
        By(Typed)
    }

    #[inline(always)]
    fn far(&self) -> By<Address> {
        By(Address)
    }

    #[inline(always)]
    fn device(&self, dentry: u64) -> u32 {
        let superblock: u64 = load(dentry, constant(&DENTRY_D_SB));
        load(superblock, constant(&SUPER_BLOCK_S_DEV))
    }

    #[inline(always)]
    fn mount(&self, vfsmount: u64) -> Mount {
        let within = constant(&MOUNT_MNT);
        let mount = vfsmount.wrapping_sub(within as u64);
        let MountParts { parent, mountpoint, root } = mount_parts(mount);
        let namespace = read(mount, constant(&MOUNT_MNT_NS));
        Mount { parent: parent + within as u64, mountpoint, namespace, root }
    }

    #[inline(always)]
    fn valid(&self) -> Option<Valid> {
        let (moves, epoch) = (maps::moves()?, maps::filter_epoch());
        // What an open finds in the table before a swap it must not remember as of the epoch after it.
        if epoch == 0 || !self.is_current() {
            return None;
        }
        let namespace = task::mount_namespace();
        let at = constant(&MNT_NAMESPACE_EVENT);
        let event = if constant(&HAS_TASK_BTF) != 0 { load(namespace, at) } else { read(namespace, at) };
        // Zero until something is mounted in it: not told from the zero of another that has stood there.
        (event != 0).then_some(Valid { epoch: epoch + moves, namespace, event })
    }

    #[inline(always)]
    fn table(&self) -> Option<&Table> {
        maps::filter_table(self.swaps)
    }

    #[inline(always)]
    fn is_current(&self) -> bool {
        maps::filter_swaps() == self.swaps
    }

    #[inline(always)]
    fn memory(&self, dentry: u64) -> Option<&Remembered> {
        maps::remembered(dentry)
    }

    #[inline(always)]
    fn deaths(&self, dentry: u64) -> u32 {
        maps::deaths(dentry)
    }
}
