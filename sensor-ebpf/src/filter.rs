//! Whether what happens is worth a record; decided before anything is copied. `decide.rs` has the rules.
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task_btf};
use sensor_ebpf::{
    Hook, Part,
    decide::{Dentries, Kernel, Mount, Opened, Reason, Remembered, Valid, passes, without_path},
    table::{Table, WORDS, classes},
};

use crate::{
    kernel::{
        DENTRY_D_INLINE, DENTRY_D_NAME, DENTRY_D_PARENT, DENTRY_D_SB, FILE_F_INODE, FILE_F_PATH, HAS_TASK_BTF,
        INODE_I_NLINK, MNT_NAMESPACE_EVENT, MOUNT_MNT, MOUNT_MNT_MOUNTPOINT, MOUNT_MNT_NS, MOUNT_MNT_PARENT,
        NSPROXY_MNT_NS, PATH_DENTRY, PATH_MNT, REPORT_SELF, SELF_TGID, SUPER_BLOCK_S_DEV, TASK_NSPROXY,
        VFSMOUNT_MNT_ROOT, constant, load, read,
    },
    maps::{self, count_fired, count_passed},
    task,
};

/// False for what the sensor does itself: reporting it would feed on itself. That it came by here is counted, which
/// shows that the program is not only attached but runs.
#[inline(always)]
pub(crate) fn wanted(hook: Hook, part: Part) -> bool {
    if (bpf_get_current_pid_tgid() >> 32) as usize != constant(&SELF_TGID) {
        return true;
    }
    count_fired(hook, part);
    constant(&REPORT_SELF) != 0
}

/// Whether some policy may want an open of `file`, a `struct file *` that the verifier knows as one; `result` is zero or a
/// negative errno.
#[inline(always)]
pub(crate) fn wants_open(file: u64, flags: u32, result: i32) -> bool {
    let Some(state) = maps::filter_state() else { return true };
    let swaps = state.swaps();
    let Some(table) = maps::filter_table(swaps) else { return true };
    let reason = why(table, file, flags, result);
    // A table that is no longer in use is being written over.
    let reason = if state.swaps() == swaps { reason } else { Some(Reason::Changed) };
    if let Some(reason) = reason {
        count_passed(reason);
    }
    reason.is_some()
}

#[inline(always)]
fn why(table: &Table, file: u64, flags: u32, result: i32) -> Option<Reason> {
    let classes = classes(flags);
    if let Some(decided) = without_path(table, classes, result) {
        return decided;
    }
    let inode: u64 = load(file, constant(&FILE_F_INODE));
    let path = constant(&FILE_F_PATH);
    let opened = Opened {
        dentry: load(file, path + constant(&PATH_DENTRY)),
        mount: load(file, path + constant(&PATH_MNT)),
        links: load(inode, constant(&INODE_I_NLINK)),
    };
    passes(&Running, table, classes, opened)
}

/// The kernel that this runs in.
struct Running;

/// Dentries that the verifier knows as such: a load takes a few instructions, a helper hundreds.
struct Typed;

/// Dentries at addresses.
struct Address;

/// Where the parts of `d_name` stand in it: hash, length, address (include/linux/dcache.h).
const LEN: usize = 4;
const NAME: usize = 8;

impl Dentries for Typed {
    #[inline(always)]
    fn parent(&self, dentry: u64) -> u64 {
        load(dentry, constant(&DENTRY_D_PARENT))
    }

    #[inline(always)]
    fn name_hash(&self, dentry: u64) -> u32 {
        load(dentry, constant(&DENTRY_D_NAME))
    }

    #[inline(always)]
    fn name_len(&self, dentry: u64) -> u32 {
        load(dentry, constant(&DENTRY_D_NAME) + LEN)
    }

    #[inline(always)]
    fn is_inline(&self, dentry: u64) -> bool {
        load::<u64>(dentry, constant(&DENTRY_D_NAME) + NAME) == dentry + constant(&DENTRY_D_INLINE) as u64
    }

    #[inline(always)]
    fn inline_word(&self, dentry: u64, at: usize) -> u64 {
        load(dentry, constant(&DENTRY_D_INLINE) + 8 * at)
    }

    #[inline(always)]
    fn long_name(&self, dentry: u64) -> [u64; WORDS] {
        read(load(dentry, constant(&DENTRY_D_NAME) + NAME), 0)
    }
}

impl Dentries for Address {
    #[inline(always)]
    fn parent(&self, dentry: u64) -> u64 {
        read(dentry, constant(&DENTRY_D_PARENT))
    }

    #[inline(always)]
    fn name_hash(&self, dentry: u64) -> u32 {
        read(dentry, constant(&DENTRY_D_NAME))
    }

    #[inline(always)]
    fn name_len(&self, dentry: u64) -> u32 {
        read(dentry, constant(&DENTRY_D_NAME) + LEN)
    }

    /// Wherever it stands, the helper reads it.
    #[inline(always)]
    fn is_inline(&self, _: u64) -> bool {
        false
    }

    #[inline(always)]
    fn inline_word(&self, _: u64, _: usize) -> u64 {
        0
    }

    #[inline(always)]
    fn long_name(&self, dentry: u64) -> [u64; WORDS] {
        read(read(dentry, constant(&DENTRY_D_NAME) + NAME), 0)
    }
}

impl Kernel for Running {
    type Near = Typed;
    type Far = Address;

    #[inline(always)]
    fn near(&self) -> Typed {
        Typed
    }

    #[inline(always)]
    fn far(&self) -> Address {
        Address
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
        let parent: u64 = read(mount, constant(&MOUNT_MNT_PARENT));
        Mount {
            parent: parent + within as u64,
            mountpoint: read(mount, constant(&MOUNT_MNT_MOUNTPOINT)),
            namespace: read(mount, constant(&MOUNT_MNT_NS)),
            root: read(vfsmount, constant(&VFSMOUNT_MNT_ROOT)),
        }
    }

    #[inline(always)]
    fn valid(&self) -> Option<Valid> {
        let moves = maps::moves()?;
        let generation = maps::filter_state()?.generation()?;
        let (namespace, event) = if constant(&HAS_TASK_BTF) != 0 {
            // SAFETY: the helper takes nothing and returns the task that runs.
            let task = unsafe { bpf_get_current_task_btf() } as u64;
            let namespace: u64 = load(load(task, constant(&TASK_NSPROXY)), constant(&NSPROXY_MNT_NS));
            (namespace, load(namespace, constant(&MNT_NAMESPACE_EVENT)))
        } else {
            let namespace: u64 = read(read(task::current(), constant(&TASK_NSPROXY)), constant(&NSPROXY_MNT_NS));
            (namespace, read(namespace, constant(&MNT_NAMESPACE_EVENT)))
        };
        Some(Valid { moves, generation, namespace, event })
    }

    #[inline(always)]
    fn memory(&self, hash: u32) -> Option<&Remembered> {
        maps::remembered(hash)
    }
}
