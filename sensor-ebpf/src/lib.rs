//! The wire ABI: what the kernel side writes and the user side reads, nothing else.
//!
//! A record of what was done to a file, or of an exec, is one [`OpenRecord`] and the bytes of its [`Section`]s. Paths
//! stand as components, leaf first: a little-endian `u16` length and that many bytes of name each. A length of zero
//! marks a crossing from a mount to the mount it sits on. Arguments end with a NUL each.
#![no_std]
#![cfg_attr(test, expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking"))]

pub mod cgroups;
pub mod decide;
pub mod share;
pub mod table;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest name of one component that is carried whole, in bytes. Most file systems stop at 255 (`NAME_MAX`); FUSE
/// goes to 1,024, newer kernels to `PATH_MAX - 1` (`FUSE_NAME_MAX` in fs/fuse/fuse_i.h). A longer one would be cut
/// and the path flagged too long. A mask: one less than a power of two.
pub const NAME_LIMIT: usize = 4095;
/// Longest requested name with its NUL, in bytes: `PATH_MAX` of include/uapi/linux/limits.h.
pub const REQUESTED_LIMIT: usize = 4096;
/// Most bytes of a program's arguments that are carried.
pub const ARGS_LIMIT: usize = 4096;
/// Room for a path of 4,096 bytes, in bytes: it takes most when every component is one byte long.
pub const PATH_LEN: usize = 6144;
/// Room for the body, in bytes: two paths and two names, or instead of one name the arguments. Each path may end with a
/// long component that began in its room. What goes beyond is flagged [`STATUS_TOO_LONG`]; no path takes the room of what
/// comes after it.
pub const BODY_LEN: usize = 2 * (PATH_LEN + COMPONENT_LEN + NAME_LIMIT + REQUESTED_LIMIT);
/// Length field in front of each component, in bytes.
pub const COMPONENT_LEN: usize = 2;

/// What reported something. The number is the index of the hook's own sequence and losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Hook {
    /// fexit of `do_filp_open` (`do_file_open` from 7.3).
    DoFilpOpen = 0,
    /// BTF tracepoint `sys_exit`, where the kernel refuses fexit.
    SysExit = 1,
    /// Around `do_handle_open`: open_by_handle_at(2).
    DoHandleOpen = 2,
    /// fexit of `vfs_truncate`: truncate(2) of a file that was found.
    VfsTruncate = 3,
    /// Around `do_renameat2` (`filename_renameat2` from 7.3): rename(2) and its kin.
    DoRenameat2 = 4,
    /// Around `do_linkat` (`filename_linkat` from 7.3): link(2) and its kin.
    DoLinkat = 5,
    /// Around `do_unlinkat` (`filename_unlinkat` from 7.3): unlink(2) and its kin.
    DoUnlinkat = 6,
    /// Around `do_rmdir` (`filename_rmdir` from 7.3): rmdir(2) and its kin.
    DoRmdir = 7,
    /// Around the system call itself, `__x64_sys_truncate` or `__arm64_sys_truncate`: truncate(2) that found no file.
    SysTruncate = 8,
    /// BTF tracepoint `sched_process_exec`: an [`OpenRecord`] of the program.
    SchedProcessExec = 9,
    /// BTF tracepoint `sched_process_fork`: a [`ForkRecord`].
    SchedProcessFork = 10,
    /// BTF tracepoint `sched_process_exit`: a [`RecordHeader`] alone.
    SchedProcessExit = 11,
    /// BTF tracepoint `cgroup_mkdir`: a [`CgroupRecord`].
    CgroupMkdir = 12,
    /// BTF tracepoint `cgroup_rmdir`: a [`CgroupRecord`].
    CgroupRmdir = 13,
}

/// Number of [`Hook`]s.
pub const HOOKS: usize = 14;
/// The first so many of them report what is done to files, the others processes and cgroups.
pub const OPEN_HOOKS: usize = 9;

/// The programs of a hook. One *around* a call has three: the call's beginning, the place in it where the kernel knows
/// the file, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Part {
    /// The call begins: what was asked for.
    Entry = 0,
    /// The file is found.
    Found = 1,
    /// The call ends: what came of it. All other hooks consist of this.
    Exit = 2,
}

/// Number of [`Part`]s.
pub const PARTS: usize = 3;

/// What was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Anything that opens a file.
    Open = 0,
    /// truncate(2).
    Truncate = 1,
    /// rename(2) and its kin.
    Rename = 2,
    /// link(2) and its kin.
    Link = 3,
    /// unlink(2), rmdir(2) and their kin.
    Delete = 4,
}

/// The parts of a record's body. The number is an index into [`OpenRecord::sections`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Section {
    /// Components up to the root of the mount namespace.
    Path = 0,
    /// Components above the root of the file's mount, up to that of its file system: what a bind mount leaves out.
    Above = 1,
    /// The name that the process passed.
    Requested = 2,
    /// Components of the other name of a rename or link.
    Target = 3,
    /// The other name that the process passed.
    TargetRequested = 4,
    /// Components of the working directory; exec only.
    Cwd = 5,
    /// The arguments; exec only.
    Args = 6,
}

/// Number of [`Section`]s.
pub const SECTIONS: usize = 7;

/// Where a section stands in the body, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Span {
    /// Its first byte.
    pub start: u16,
    /// How many.
    pub len: u16,
}

/// Why the kernel side had to give up a record. The number is an index into the loss counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Loss {
    /// The ring had no room: user space did not keep up.
    RingFull = 0,
    /// No record could be made.
    Unreadable = 1,
    /// There was no memory in which to keep what a call had asked for until its end. Such a record has no number.
    NoMemory = 2,
    /// Its cgroup had taken its share: see [`share`].
    Limited = 3,
}

/// Number of [`Loss`] reasons.
pub const LOSSES: usize = 4;

/// The walk stopped before the root: too deep or too long. The tail of the path is there.
pub const STATUS_TOO_LONG: u32 = 1 << 0;
/// The walk ended at a dentry that has no parent and is not the root of its mount.
pub const STATUS_DISCONNECTED: u32 = 1 << 1;
/// The topmost mount belongs to no mount namespace: lazily unmounted, or never attached.
pub const STATUS_DETACHED: u32 = 1 << 2;
/// The topmost mount belongs to another mount namespace than the process.
pub const STATUS_FOREIGN_MOUNT: u32 = 1 << 3;
/// The file had no name left at the time of the open.
pub const STATUS_DELETED: u32 = 1 << 4;
/// Found through the returned descriptor, which another thread may have replaced meanwhile.
pub const STATUS_FD_RACE_POSSIBLE: u32 = 1 << 5;
/// The descriptor *was* replaced while the path was read, or closed before: then there is only the requested name.
pub const STATUS_FD_REPLACED: u32 = 1 << 6;
/// The requested name was longer than [`REQUESTED_LIMIT`] or not readable.
pub const STATUS_REQUESTED_CUT: u32 = 1 << 7;
/// The requested name was read from user memory after the call, which the process may have changed.
pub const STATUS_REQUESTED_UNTRUSTED: u32 = 1 << 8;
/// The path is not the file's but that of the directory which the requested name starts from; so is the target.
pub const STATUS_PATH_IS_BASE: u32 = 1 << 9;
/// The task's root is not that of its mount namespace.
pub const STATUS_CHROOT: u32 = 1 << 10;
/// There were more arguments than [`ARGS_LIMIT`], or they could not be read.
pub const STATUS_ARGS_CUT: u32 = 1 << 11;
/// Another mount covers the place of the path, or so many things are mounted there that it may.
pub const STATUS_COVERED: u32 = 1 << 12;
/// Where the file lives in its file system is too deep below the root of that.
pub const STATUS_ABOVE_CUT: u32 = 1 << 13;
/// What is said of the path so is said of the working directory, or of the target, when shifted left by so many bits.
pub const STATUS_SHIFT: u32 = 16;

/// What every record begins with: which record of which program it is, and who caused it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHeader {
    /// Gapless per (cpu, hook), counted from 1; a gap is a refused record.
    pub sequence: u64,
    /// `CLOCK_BOOTTIME` at the report, in nanoseconds.
    pub time_ns: u64,
    /// `start_boottime` of the thread group's leader, in nanoseconds of the same clock.
    pub start_ns: u64,
    /// Id of the task's cgroup in the hierarchy that tells containers apart.
    pub cgroup_id: u64,
    /// A [`Hook`].
    pub hook: u16,
    /// Explicit padding, zero.
    pub reserved: [u16; 3],
    /// The CPU that ran the hook.
    pub cpu: u32,
    /// Process id as the pid namespace of the sensor's /proc numbers it; zero if it is not in there.
    pub tgid: u32,
    /// Thread id, numbered likewise.
    pub pid: u32,
    /// Process id in the initial pid namespace.
    pub initial_tgid: u32,
    /// Process id in the innermost pid namespace: what the process takes itself for.
    pub own_tgid: u32,
    /// Ids of the initial user namespace, in the order of `struct cred`: real user and group, saved, effective, and
    /// those for file systems.
    pub ids: [u32; 8],
    /// The user who logged in (audit(7)), kept through su(1) and sudo(8); all ones if nobody did.
    pub login_uid: u32,
    /// Inode of the task's pid namespace.
    pub pid_ns: u32,
    /// Inode of the task's user namespace.
    pub user_ns: u32,
    /// Inode of the task's mount namespace.
    pub mount_ns: u32,
    /// Device of the program that the task runs, as in [`OpenRecord::device`].
    pub exe_device: u32,
    /// Its inode number; zero for a kernel thread.
    pub exe_inode: u64,
    /// The thread's name, padded with NUL. The process chooses it.
    pub comm: [u8; 16],
}

/// A process made another; the header is of the first.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForkRecord {
    /// Who and when.
    pub header: RecordHeader,
    /// `start_boottime` of the new process, in nanoseconds.
    pub child_start_ns: u64,
    /// Process id of the new process, numbered as [`RecordHeader::tgid`].
    pub child: u32,
    /// The same in the initial pid namespace.
    pub initial_child: u32,
}

/// A cgroup was made or removed, in the hierarchy that [`RecordHeader::cgroup_id`] is of; the header is of who did it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CgroupRecord {
    /// Who and when.
    pub header: RecordHeader,
    /// Its id.
    pub id: u64,
    /// Id of the cgroup that it is in.
    pub parent: u64,
    /// Its name, padded with NUL. The kernel allows 255 bytes (`NAME_MAX`).
    pub name: [u8; 256],
}

/// What was done to one file, successfully or not; or one exec.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenRecord {
    /// Who and when.
    pub header: RecordHeader,
    /// Inode number; zero when the open failed.
    pub inode: u64,
    /// The superblock's device number as the kernel holds it (`dev_t`: 12 bits major, 20 bits minor).
    pub device: u32,
    /// `i_mode`: file type and permissions; zero when there is no file to tell of.
    pub inode_mode: u32,
    /// `i_nlink`.
    pub links: u32,
    /// Flags of the call; of open(2) with the kernel's own `__FMODE_EXEC` (0x20) for an exec.
    pub flags: u32,
    /// `f_mode` of the opened file; `FMODE_CREATED` (0x100000) says that this open created it.
    pub mode: u32,
    /// Zero, or the negative errno.
    pub result: i32,
    /// `STATUS_*` flags.
    pub status: u32,
    /// A [`Call`].
    pub call: u32,
    /// The body, by [`Section`].
    pub sections: [Span; SECTIONS],
    /// Explicit padding, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RecordHeader>() == 136 && align_of::<RecordHeader>() == 8);
const _: () = assert!(size_of::<ForkRecord>() == 152 && align_of::<ForkRecord>() == 8);
const _: () = assert!(size_of::<OpenRecord>() == 208 && align_of::<OpenRecord>() == 8);
const _: () = assert!(size_of::<CgroupRecord>() == 408 && align_of::<CgroupRecord>() == 8);
// A value of a per-CPU array cannot exceed PCPU_MIN_UNIT_SIZE (include/linux/percpu.h), 32 KiB.
const _: () = assert!(size_of::<OpenRecord>() + BODY_LEN + 256 <= 32 << 10);
