//! What capture hands to enrich: opens, and what tells who made them.
use crate::event::{Event, Name};

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
}

/// A process and when it started, which together are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// In nanoseconds since boot.
    pub start_ns: u64,
}

/// A program was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The process.
    pub process: Identity,
    /// The kernel's path of the program; without a leading slash if it has no place in the tree.
    pub path: Option<Name>,
    /// Device of its superblock, as the kernel holds it.
    pub device: u32,
    /// Its inode number.
    pub inode: u64,
}

/// A process made another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The one that was there.
    pub parent: Identity,
    /// The new one.
    pub child: Identity,
}
