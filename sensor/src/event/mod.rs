//! What the stages hand to each other: an open as captured, and the same with who did it.
mod name;
mod opener;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::{
    name::{Args, Name},
    opener::{ANCESTORS, Container, Enriched, Enrichment, Missing, Owner, Place, Pod, Program, Workload},
};

/// Flags of open(2) and of `f_mode` that the sensor asks about, as the kernel numbers them on x86_64 and arm64.
pub mod flags {
    /// Mask of the access mode (include/uapi/asm-generic/fcntl.h).
    pub const O_ACCMODE: u32 = 0o3;
    /// Write only.
    pub const O_WRONLY: u32 = 0o1;
    /// Read and write.
    pub const O_RDWR: u32 = 0o2;
    /// The file is cut to length zero.
    pub const O_TRUNC: u32 = 0o1000;
    /// The file is created if it is missing.
    pub const O_CREAT: u32 = 0o100;
    /// A reference to the file; neither read nor write.
    pub const O_PATH: u32 = 0o10_000_000;
    /// The kernel's own mark of an open that execve(2) makes (`__FMODE_EXEC`, include/linux/fs.h).
    pub const EXEC: u32 = 0x20;
    /// Of renameat2(2): both files change places (include/uapi/linux/fs.h).
    pub const RENAME_EXCHANGE: u32 = 2;
    /// An anonymous file in a directory; O_TMPFILE without O_DIRECTORY.
    pub const O_TMPFILE: u32 = 0o20_000_000;
    /// In `f_mode`: this open created the file (`FMODE_CREATED`, include/linux/fs.h).
    pub const MODE_CREATED: u32 = 0x10_0000;
}

/// How the sensor sees opens on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureMode {
    /// fexit on the function that every open passes.
    Fexit,
    /// The return of system calls, for kernels that refuse fexit.
    Tracepoint,
}

impl fmt::Display for CaptureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fexit => "fexit",
            Self::Tracepoint => "tracepoint",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Create => "create",
            Self::Truncate => "truncate",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Delete => "delete",
            Self::Exec => "exec",
            Self::List => "list",
            Self::Reference => "reference",
        })
    }
}

/// Why the path of an event is not simply the path of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathStatus {
    /// The process has another root directory than its mount namespace.
    Chroot,
    /// The mount belongs to no mount namespace: lazily unmounted, or never attached.
    Detached,
    /// The mount belongs to another mount namespace than the process.
    ForeignMount,
    /// The file hangs in no tree; what is known of its name is given without a leading slash.
    Disconnected,
    /// Another mount covers the place.
    Covered,
    /// Too many components or bytes: the path is a tail, given without a leading slash.
    TooLong,
    /// The file had no name left.
    Deleted,
    /// An anonymous file of memfd_create(2).
    Memfd,
    /// An anonymous file of O_TMPFILE.
    Tmpfile,
    /// Found through the returned descriptor, which another thread may have replaced meanwhile.
    FdRacePossible,
    /// The descriptor was replaced while the path was read, so the path may be another file's; or it was closed
    /// before, and there is only the requested name.
    FdReplaced,
    /// The requested name was longer than 4,095 bytes or not readable.
    RequestedCut,
    /// The requested name was read from the process's memory after the call.
    RequestedUntrusted,
}

impl fmt::Display for PathStatus {
    /// The word that recordings and alerts have for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What is known of an opened file beside its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Inode number.
    pub inode: u64,
    /// Device number as the kernel holds it: 12 bits major, 20 bits minor.
    pub device: u32,
    /// File type and permissions, as in stat(2).
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Whether this very open created the file.
    pub created: bool,
}

impl File {
    /// ECS's word for the type of file (`file.type`).
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.mode & 0o170_000 {
            0o040_000 => "dir",
            0o120_000 => "symlink",
            0o010_000 => "fifo",
            0o140_000 => "socket",
            0o020_000 => "char_device",
            0o060_000 => "block_device",
            _ => "file",
        }
    }
}

/// User and group ids of a process, in the initial user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub euid: Option<u32>,
    /// Effective group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egid: Option<u32>,
    /// Saved user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suid: Option<u32>,
    /// Saved group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sgid: Option<u32>,
    /// The user as whom files are opened; the effective one but for setfsuid(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fsuid: Option<u32>,
    /// The group as which files are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fsgid: Option<u32>,
}

/// One open as the kernel reported it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was reported.
    pub time: Timestamp,
    /// The boot in which `start_ns`, `cpu` and `sequence` mean something.
    pub boot_id: Uuid,
    /// How it was seen.
    pub mode: CaptureMode,
    /// The CPU that reported it.
    pub cpu: u32,
    /// The kernel side's hook that reported it, by its number.
    #[serde(default)]
    pub hook: u16,
    /// Gapless per CPU and hook, from 1; a gap is an event that the kernel could not hand over.
    pub sequence: u64,
    /// Process id as the node's /proc numbers it: what an operator there would type.
    pub pid: u32,
    /// Thread id, numbered likewise.
    pub tid: u32,
    /// Process id in the initial pid namespace, where that is another: on nodes that are containers themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_pid: Option<u32>,
    /// Process id in the process's own pid namespace, where that is another: what it takes itself for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_pid: Option<u32>,
    /// When the process started, in nanoseconds since boot.
    pub start_ns: u64,
    /// The same by the wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Id of the cgroup, in the hierarchy that tells containers apart.
    pub cgroup_id: u64,
    /// Whose rights it has.
    #[serde(flatten)]
    pub ids: Ids,
    /// The user who logged in (audit(7)), kept through su(1) and sudo(8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Inode of the process's user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ns: Option<u32>,
    /// Inode of the process's mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_ns: Option<u32>,
    /// Inode of the process's pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u32>,
    /// Device and inode of the program that the process runs, as the kernel holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<(u32, u64)>,
    /// The thread's name. The process chooses it: shown, never decided by.
    pub comm: Name,
    /// What was called.
    #[serde(default)]
    pub call: Call,
    /// Flags of open(2), see [`flags`].
    pub flags: u32,
    /// Zero, or a negative errno.
    pub result: i32,
    /// The file, if the open succeeded and it could be found.
    pub file: Option<File>,
    /// The path from the root of the process's mount namespace.
    pub path: Option<Name>,
    /// The path from the root of the file's file system: what no mount can change. Enrich makes `home` of it.
    #[serde(skip)]
    pub inner: Option<Name>,
    /// The path from where the file lives, whatever mounts lie between: in the container's own root file system, or on the
    /// host.
    pub home: Option<Name>,
    /// Other places where it lives: what the host has mounted twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_homes: Vec<Name>,
    /// The name that the process asked for, joined with the directory it starts from.
    pub requested: Option<Name>,
    /// The other name of a rename or link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// The same from the root of the file system, as `inner`.
    #[serde(skip)]
    pub target_inner: Option<Name>,
    /// The same from where that place is, as `home`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_home: Option<Name>,
    /// What to know about those paths, sorted.
    pub status: Vec<PathStatus>,
}

impl Event {
    /// What it does, as words for a person: `read, write`.
    #[must_use]
    pub fn deed(&self) -> String {
        self.operations().iter().map(Operation::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The most telling path there is: where the file is, or else what was asked for.
    #[must_use]
    pub fn best_path(&self) -> Option<&Name> {
        self.path.as_ref().or(self.requested.as_ref())
    }
}

/// What was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// Anything that opens a file.
    #[default]
    Open,
    /// truncate(2), which opens none.
    Truncate,
    /// rename(2) and its kin; the other name is [`Event::target`].
    Rename,
    /// link(2) and its kin; the new name is [`Event::target`].
    Link,
    /// unlink(2), rmdir(2).
    Delete,
}

/// What is done to a file, in the policy language's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Opened for reading.
    Read,
    /// Opened for writing.
    Write,
    /// This open made the file.
    Create,
    /// This open, or truncate(2), cut the file.
    Truncate,
    /// Given another name; either name counts.
    Rename,
    /// Given one more name; either name counts.
    Link,
    /// One of its names taken away.
    Delete,
    /// The program of an execve(2).
    Exec,
    /// A directory, to list it.
    List,
    /// A reference (O_PATH): neither read nor write.
    Reference,
}

impl Event {
    /// What is done to the file, in the order of [`Operation`]; never empty.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        match self.call {
            Call::Open => {}
            Call::Truncate => return vec![Operation::Truncate],
            // Each takes the place of the other.
            Call::Rename if self.flags & flags::RENAME_EXCHANGE != 0 => return self.target_operations(),
            Call::Rename => return vec![Operation::Rename],
            Call::Link => return vec![Operation::Link],
            Call::Delete => return vec![Operation::Delete],
        }
        if self.flags & flags::O_PATH != 0 {
            return vec![Operation::Reference];
        }
        if self.flags & flags::EXEC != 0 {
            return vec![Operation::Exec];
        }
        if self.file.as_ref().is_some_and(|file| file.kind() == "dir") {
            return vec![Operation::List];
        }
        let access = self.flags & flags::O_ACCMODE;
        // Access mode 3 asks for the right to read and write and is used for ioctl(2).
        let made = [
            (access != flags::O_WRONLY, Operation::Read),
            (access != 0, Operation::Write),
            (self.file.as_ref().is_some_and(|file| file.created), Operation::Create),
            (self.flags & flags::O_TRUNC != 0, Operation::Truncate),
        ];
        made.into_iter().filter_map(|(is, operation)| is.then_some(operation)).collect()
    }

    /// What is done to [`Event::target`]: a rename onto a file replaces what it holds, a link makes a file there.
    #[must_use]
    pub fn target_operations(&self) -> Vec<Operation> {
        match self.call {
            Call::Rename => vec![Operation::Write, Operation::Rename],
            Call::Link => vec![Operation::Create, Operation::Link],
            Call::Open | Call::Truncate | Call::Delete => vec![],
        }
    }
}
