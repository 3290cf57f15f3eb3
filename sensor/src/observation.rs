//! What capture hands to enrich: opens, and what tells who made them.
use crate::event::{Args, Event, Name};

/// Something that the kernel reported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "most are opens")]
pub enum Observation {
    /// A file was opened, or not.
    Open(Event),
    /// A process runs another program from here on.
    Exec(Exec),
    /// A process made another.
    Fork(Fork),
    /// A process ended.
    Exit(Identity),
    /// A cgroup was made.
    CgroupMade(CgroupMade),
    /// The cgroup of this id was removed.
    CgroupRemoved(u64),
    /// Opens were not reported, because a cgroup had taken its share.
    Refused(Refused),
}

/// Opens that the kernel side did not report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Id of the cgroup; None if that is not known any more.
    pub cgroup_id: Option<u64>,
    /// How many.
    pub count: u64,
}

/// A process and when it started, which together are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Process id as the node's /proc numbers it.
    pub pid: u32,
    /// In nanoseconds since boot.
    pub start_ns: u64,
}

/// A program was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The process.
    pub process: Identity,
    /// Its cgroup.
    pub cgroup_id: u64,
    /// Inode of its mount namespace.
    pub mount_ns: u32,
    /// The kernel's path of the program; without a leading slash if it has no place in the tree.
    pub path: Option<Name>,
    /// Device of its superblock, as the kernel holds it.
    pub device: u32,
    /// Its inode number.
    pub inode: u64,
    /// What was asked for, if that is a script and the program its interpreter: by its letters, symbolic links and all.
    pub script: Option<Name>,
    /// The process has another root directory than its mount namespace.
    pub chroot: bool,
    /// The working directory; without a leading slash if it is not whole.
    pub cwd: Option<Name>,
    /// The arguments.
    pub args: Args,
    /// There were more of them.
    pub args_cut: bool,
}

/// A process made another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The one that was there.
    pub parent: Identity,
    /// Its cgroup, in which the new one begins.
    pub cgroup_id: u64,
    /// Device and inode of the program that both run, as the kernel holds them.
    pub program: (u32, u64),
    /// The new one.
    pub child: Identity,
}

/// A cgroup was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMade {
    /// Its id: the inode of its directory.
    pub id: u64,
    /// Id of the cgroup that it is in.
    pub parent: u64,
    /// Its name.
    pub name: Name,
    /// The process that made it.
    pub by: Identity,
    /// The cgroup of that process.
    pub maker: u64,
}
