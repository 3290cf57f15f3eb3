//! The running kernel's structures: where their members stand, and how they are read.
//!
//! Rust emits no CO-RE relocations, so the loader looks every offset up in the kernel's BTF and writes it into
//! these read-only globals before the program is verified; the verifier then knows them as constants.
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user};

/// Declares globals that the loader fills (`sensor/src/capture/offsets.rs` has the same names).
macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: u32 = 0;)*
    };
}

globals! {
    /// The sensor's own process.
    SELF_TGID,
    /// Whether what it does itself is reported, too.
    REPORT_SELF,
    /// Whether link(2)'s function is passed names of user memory: up to 5.14.
    LINK_NAMES_IN_USER,
    /// Number of arguments of `do_file_open_root`: 5.10 has one more than later kernels.
    FILE_OPEN_ROOT_ARGS,
    /// Whether bpf_get_current_task_btf() is there: from 5.11.
    HAS_TASK_BTF,
    /// Nanoseconds that a record takes of its cgroup's share, and how many records that is at once; zero for no limit.
    SHARE_INTERVAL, SHARE_BURST,
    /// Rounds of one pass of the path walk; two passes are made.
    WALK_ROUNDS,
    /// Depth of the pid namespace that the sensor's /proc shows, and its inode; the initial one has depth zero.
    PROC_LEVEL, PROC_PID_NS,
    /// The cgroup v1 controller whose hierarchy tells containers apart, counted from 1; zero for the v2 hierarchy.
    CGROUP_CONTROLLER,
    /// Number of that hierarchy; zero for v2.
    CGROUP_HIERARCHY,
    FILE_F_PATH, FILE_F_INODE, FILE_F_FLAGS, FILE_F_MODE,
    PATH_MNT, PATH_DENTRY,
    DENTRY_D_PARENT, DENTRY_D_NAME, DENTRY_D_HASH, DENTRY_D_FLAGS, DENTRY_D_INODE, DENTRY_D_INLINE, DENTRY_D_SB, DENTRY_D_RCU,
    INODE_I_INO, INODE_I_MODE, INODE_I_NLINK, INODE_I_SB, SUPER_BLOCK_S_DEV,
    MOUNT_MNT, MOUNT_MNT_PARENT, MOUNT_MNT_MOUNTPOINT, MOUNT_MNT_NS, MOUNT_MNT_MOUNTS, MOUNT_MNT_CHILD, VFSMOUNT_MNT_ROOT,
    TASK_FLAGS, TASK_PID, TASK_COMM,
    TASK_THREAD_INFO, THREAD_INFO_STATUS, TASK_FILES, TASK_FS, TASK_GROUP_LEADER, TASK_START_BOOTTIME, TASK_NSPROXY, NSPROXY_MNT_NS,
    TASK_CRED, CRED_UID, CRED_USER_NS, USER_NAMESPACE_NS, MNT_NAMESPACE_NS, MNT_NAMESPACE_EVENT, MNT_NAMESPACE_ROOT, NS_COMMON_INUM, TASK_TGID, TASK_LOGINUID,
    TASK_THREAD_PID, PID_LEVEL, PID_NUMBERS, UPID_NR, UPID_NS, PID_NAMESPACE_NS,
    TASK_SIGNAL, SIGNAL_STRUCT_LIVE, TASK_MM, MM_EXE_FILE, MM_ARG_START, MM_ARG_END,
    BINPRM_FILE, BINPRM_FILENAME, BINPRM_INTERP,
    TASK_CGROUPS, CSS_SET_SUBSYS, CSS_SET_DFL_CGRP, CSS_CGROUP, CSS_PARENT, CGROUP_SELF, CGROUP_KN, CGROUP_ROOT, CGROUP_ROOT_HIERARCHY_ID,
    KERNFS_NODE_ID, KERNFS_NODE_NAME,
    FILES_STRUCT_FDT, FDTABLE_FD, FDTABLE_MAX_FDS, FS_STRUCT_ROOT, FS_STRUCT_PWD,
    FILENAME_NAME, OPEN_FLAGS_OPEN_FLAG, OPEN_FLAGS_LOOKUP_FLAGS,
}

/// The value that the loader gave to `global`.
#[inline(always)]
pub(crate) fn constant(global: &'static u32) -> usize {
    // SAFETY: a reference is valid to read; volatile, because the loader rewrites what the compiler saw.
    unsafe { core::ptr::read_volatile(global) as usize }
}

/// Reads a `T` at `address + offset` of kernel memory; zero bytes where it cannot be read.
///
/// `T` is an integer or an array of them, for which every bit pattern is a value.
#[inline(always)]
pub(crate) fn read<T: Copy>(address: u64, offset: usize) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    let from = address.wrapping_add(offset as u64) as *const _;
    // SAFETY: the helper checks `from` itself, writes `size_of::<T>()` bytes and zeroes them on failure.
    unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from) };
    // SAFETY: the helper wrote every byte, and every bit pattern is a `T`.
    unsafe { value.assume_init() }
}

/// Loads a `T` from `address + offset`, where the verifier knows `address` as a pointer to a structure that has one there;
/// zero where it cannot be read. A dozen instructions, where a helper takes hundreds.
#[inline(always)]
pub(crate) fn load<T: Copy>(address: u64, offset: usize) -> T {
    // SAFETY: the verifier has checked that the structure has such a member, and the kernel handles the fault of a bad
    // address (BPF_PROBE_MEM). Volatile, because others write it.
    unsafe { ((address + offset as u64) as *const T).read_volatile() }
}

/// How members of a structure are read.
pub(crate) trait Memory: Copy {
    /// Whether the verifier knows what the address points to.
    const TYPED: bool;
    /// The member at `offset`.
    fn get<T: Copy>(self, address: u64, offset: usize) -> T;
}

/// By [`load`].
#[derive(Clone, Copy)]
pub(crate) struct Typed;

/// By [`read`].
#[derive(Clone, Copy)]
pub(crate) struct Address;

impl Memory for Typed {
    const TYPED: bool = true;
    #[inline(always)]
    fn get<T: Copy>(self, address: u64, offset: usize) -> T {
        load(address, offset)
    }
}

impl Memory for Address {
    const TYPED: bool = false;
    #[inline(always)]
    fn get<T: Copy>(self, address: u64, offset: usize) -> T {
        read(address, offset)
    }
}

/// As [`read`], of the current process's memory.
#[inline(always)]
pub(crate) fn read_user<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: as for `read`.
    unsafe { bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) };
    // SAFETY: as for `read`.
    unsafe { value.assume_init() }
}

/// Reads NUL-terminated text of kernel memory; what does not fit is cut. Returns how many bytes these are with the NUL; zero if it
/// cannot be read.
#[inline(always)]
pub(crate) fn read_text<const N: usize>(address: u64, to: &mut [u8; N]) -> u32 {
    // SAFETY: the helper checks the address itself and writes at most the size that it is given.
    let read = unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), N as u32, address as *const _) };
    u32::try_from(read).unwrap_or(0)
}

/// True for a pointer that stands for an errno (`IS_ERR` of include/linux/err.h).
#[inline(always)]
pub(crate) fn is_error(pointer: u64) -> bool {
    pointer > -4096i64 as u64
}

/// Whether a `struct inode *` that the verifier knows as one is a directory's.
#[inline(always)]
pub(crate) fn is_directory(inode: u64) -> bool {
    // S_IFMT and S_IFDIR of include/uapi/linux/stat.h.
    const TYPE: u16 = 0o170_000;
    const DIRECTORY: u16 = 0o040_000;
    load::<u16>(inode, constant(&INODE_I_MODE)) & TYPE == DIRECTORY
}

/// The `(mount, dentry)` of the `struct path` at `address + offset`, the mount as `struct vfsmount *`.
#[inline(always)]
pub(crate) fn path_at<M: Memory>(memory: M, address: u64, offset: usize) -> (u64, u64) {
    (memory.get(address, offset + constant(&PATH_MNT)), memory.get(address, offset + constant(&PATH_DENTRY)))
}

/// Where a `struct mount` stands, and its root.
#[derive(Clone, Copy)]
pub(crate) struct MountParts {
    /// `struct mount *` of that which it sits on; itself if there is none.
    pub(crate) parent: u64,
    /// The dentry of that which it covers.
    pub(crate) mountpoint: u64,
    /// Its root dentry.
    pub(crate) root: u64,
}

/// Of a `struct mount`, all that a walk needs: one read, as the three stand together (fs/mount.h).
#[inline(always)]
pub(crate) fn mount_parts(mount: u64) -> MountParts {
    let [at, point, root] = [
        constant(&MOUNT_MNT_PARENT),
        constant(&MOUNT_MNT_MOUNTPOINT),
        constant(&MOUNT_MNT) + constant(&VFSMOUNT_MNT_ROOT),
    ];
    if point == at + 8 && root == at + 16 {
        let [parent, mountpoint, root] = read(mount, at);
        return MountParts { parent, mountpoint, root };
    }
    MountParts { parent: read(mount, at), mountpoint: read(mount, point), root: read(mount, root) }
}

/// The id of a `struct cgroup *`: the inode of its directory.
#[inline(always)]
pub(crate) fn cgroup_id<M: Memory>(memory: M, cgroup: u64) -> u64 {
    let node: u64 = memory.get(cgroup, constant(&CGROUP_KN));
    memory.get(node, constant(&KERNFS_NODE_ID))
}
