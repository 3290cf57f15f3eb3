//! What the kernel's filter goes by: names that a path must have on its way so that some policy may want it.
//!
//! `policy/` makes them of patterns, `enrich/` adds what it knows of mounts and links, `capture/` hands them to the kernel.
use sensor_ebpf::table::Wants;

/// The keys of all policies in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// What is wanted before any path counts.
    pub wants: Wants,
    /// Names and what they mean.
    pub names: Vec<(Vec<u8>, Key)>,
    /// File systems by their devices, and what it means to be on them; opens on others are wanted until they are known.
    pub devices: Vec<(u32, Key)>,
}

/// What a name means. Classes are those of [`sensor_ebpf::table::classes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// Classes of opens of files of that name.
    pub file: u8,
    /// Classes of opens of whatever is below a directory of that name.
    pub below: u8,
    /// Names of files right in a directory of that name count.
    pub names: bool,
    /// Which policies say so, as [`Wants::audience`] has them.
    pub audience: u16,
}

impl Key {
    /// What either means.
    pub fn add(&mut self, other: Self) {
        self.file |= other.file;
        self.below |= other.below;
        self.names |= other.names;
        self.audience |= other.audience;
    }
}

impl Keys {
    /// Those through which everything goes.
    #[must_use]
    pub fn everything() -> Self {
        Self { wants: Wants::EVERYTHING, ..Self::default() }
    }
}

/// A place where a part of a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mounted {
    /// The file system, by the kernel's number of its device.
    pub device: u32,
    /// The part: a path in the file system.
    pub part: Vec<u8>,
    /// Where it is mounted.
    pub at: Vec<u8>,
}

/// What is known of the node's files beside their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Mounts of the host and of containers, each once, sorted.
    pub mounts: Vec<Mounted>,
    /// Paths that literal paths of policies lead to, each once, sorted.
    pub links: Vec<Vec<u8>>,
}
