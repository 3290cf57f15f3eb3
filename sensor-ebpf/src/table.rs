//! The keys of the filter as the kernel has them: user space writes them, `decide.rs` goes by them.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Places in [`Table::names`].
pub const SLOTS: usize = 1 << 16;
/// How many places from its own a name may stand.
pub const PROBES: usize = 8;
/// Places in [`Table::devices`].
pub const DEVICES: usize = 1 << 13;
/// How many bytes of a name count, as words; of a longer one its length does, too.
pub const WORDS: usize = 5;

/// Opened for reading, or to list a directory.
pub const READ: u8 = 1;
/// Opened for writing, made or cut.
pub const WRITE: u8 = 2;
/// The program of an execve(2).
pub const EXEC: u8 = 4;
/// A reference (O_PATH).
pub const REFERENCE: u8 = 8;
/// Every class of opens.
pub const ALL: u8 = 15;
/// Renamed, linked or deleted: no class of opens, and not held against paths.
pub const CHANGE: u8 = 16;

/// Of a directory: the names of the files right in it count.
pub const NAMES: u32 = 1 << 8;
/// Where a key, and what it means, has its audience: policies as [`Wants::audience`] has them.
pub const AUDIENCE: u32 = 16;
/// All of them.
pub const EVERYBODY: u16 = u16::MAX;

/// In [`Wants::flags`]: names of files count in every directory.
pub const ANYWHERE: u8 = 1;
/// In [`Wants::flags`]: processes of the host, surely in no container.
pub const HOST: u8 = 2;

/// In [`Wants::flags`], for each place of [`Wants::wanted`]: opens that end so are wanted by names of directories, which a name
/// that was asked for need not have. Those that succeed have their directories.
pub const UNNAMED: [u8; 4] = [0, 4, 8, 16];

/// What the policies in force want of some processes, before any path counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Wants {
    /// Classes that are wanted at all, by outcome: success, denied, missing, other errors.
    pub wanted: [u8; 4],
    /// Classes of opens that pass whatever the path is.
    pub everything: u8,
    /// [`ANYWHERE`], [`HOST`] and [`UNNAMED`].
    pub flags: u8,
    /// Which policies these are. There are more policies than bits, so some share one.
    pub audience: u16,
}

impl Wants {
    /// Everything, of everybody.
    pub const EVERYTHING: Self =
        Self { wanted: [ALL | CHANGE; 4], everything: ALL, flags: 0, audience: EVERYBODY };

    /// Whether any of these classes is wanted, however it ends.
    #[inline(always)]
    #[must_use]
    pub const fn any(self, classes: u8) -> bool {
        u32::from_ne_bytes(self.wanted) & u32::from_ne_bytes([classes; 4]) != 0
    }

    /// Whether what a name means speaks of these classes, and of these policies.
    #[inline(always)]
    pub(crate) const fn include(self, meaning: u32, classes: u8) -> bool {
        meaning as u8 & classes & ALL != 0 && meaning >> AUDIENCE & self.audience as u32 != 0
    }
}

/// Of which paths.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Table {
    /// What [`hash`] begins with, so that nobody who names files or writes policies can tell which names stand in each other's way.
    pub seed: u64,
    /// The keys: from the highest bit 32 of [`hash`], then the audience, [`NAMES`] of a directory, its classes, and those of
    /// a file's name in four bits each. Zero where nothing stands.
    pub names: [u64; SLOTS],
    /// What else a file system is called where others see it: device in the upper half; below it the audience, [`KNOWN`] and
    /// what that means to all that is in it.
    pub devices: [u64; DEVICES],
}

/// What is in use; user space writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct State {
    /// Grows by [`SWAP`] with each change of what is in use. Below that, the lowest bit says which [`Table`] and [`Wants`] it
    /// is, and the next which [`Cgroups`](crate::cgroups::Cgroups).
    pub swaps: u64,
    /// Grows with each change, and whenever what is remembered of before is not to be valid any more, in the upper half. Zero
    /// before the first time, when nothing may be remembered.
    pub epoch: u64,
    /// The two of [`Wants`]; [`Table`]s are a map of their own.
    pub wants: [Wants; 2],
}

impl State {
    /// That of a kernel to which nobody has said anything yet.
    pub const NEW: Self = Self { swaps: 0, epoch: 0, wants: [Wants::EVERYTHING; 2] };

    /// The one of the two [`Wants`] that is in use.
    #[must_use]
    pub const fn in_use(&self) -> Wants {
        let [even, odd] = self.wants;
        if self.swaps & TABLE == 0 { even } else { odd }
    }
}

/// One change of [`State::swaps`].
pub const SWAP: u64 = 4;
/// The bit of it that says which table is in use.
pub const TABLE: u64 = 1;
/// The bit of it that says which cgroups are.
pub const CGROUPS: u64 = 2;

/// Of a device: it is known. Also keeps what stands for it from being zero.
pub const KNOWN: u32 = 1 << 15;

/// Starts the hash of a name of `len` bytes.
#[inline(always)]
pub(crate) const fn start(seed: u64, len: u32) -> u64 {
    (len as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed
}

#[inline(always)]
pub(crate) const fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

/// One of [`SLOTS`] places for a number: where a name of this hash is looked for in [`Table::names`] first, or where dentries are
/// counted. All bits of the number have a say in it, so that the last bytes of a name do.
#[inline(always)]
#[must_use]
pub const fn place_of(number: u64) -> usize {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

/// Where a device is looked for in [`Table::devices`] first.
#[inline(always)]
#[must_use]
pub const fn slot_of(device: u32) -> usize {
    (device.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

/// The part of word `at` that belongs to a name of `len` bytes.
#[inline(always)]
pub(crate) const fn masked(word: u64, len: u32, at: usize) -> u64 {
    let left = len - 8 * at as u32;
    if left >= 8 { word } else { word & ((1 << (8 * left)) - 1) }
}

/// The hash of a name, as keys have it in a table of this seed.
#[must_use]
#[inline(always)]
pub fn hash(seed: u64, name: &[u8]) -> u64 {
    let len = name.len() as u32;
    let mut hash = start(seed, len);
    for (at, chunk) in name.chunks(8).take(WORDS).enumerate() {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        hash = mix(hash, masked(u64::from_le_bytes(word), len, at));
    }
    hash
}

impl Table {
    /// What stands at the name of this hash: zero if nothing does.
    #[expect(clippy::indexing_slicing, reason = "the mask keeps it within")]
    #[inline(always)]
    pub(crate) fn key(&self, hash: u64) -> u32 {
        for probe in 0..PROBES {
            let entry = self.names[place_of(hash).wrapping_add(probe) & (SLOTS - 1)];
            if entry == 0 {
                break;
            }
            if (entry ^ hash) >> 32 == 0 {
                return entry as u32;
            }
        }
        0
    }

    /// What is known of a device; None if nothing is.
    #[expect(clippy::indexing_slicing, reason = "the mask keeps it within")]
    #[inline(always)]
    pub(crate) fn device(&self, device: u32) -> Option<u32> {
        let at = slot_of(device);
        for probe in 0..PROBES {
            let entry = self.devices[at.wrapping_add(probe) & (DEVICES - 1)];
            if entry == 0 {
                break;
            }
            if (entry >> 32) as u32 == device {
                return Some(entry as u32 & !KNOWN);
            }
        }
        None
    }
}

/// Where a meaning has its audience.
const OF_AUDIENCE: u32 = (EVERYBODY as u32) << AUDIENCE;

/// What a key means as the name of a file: classes that pass.
#[inline(always)]
pub(crate) const fn of_file(key: u32) -> u32 {
    key & (OF_AUDIENCE | ALL as u32)
}

/// What it means to all below a directory of that name: classes that pass and [`NAMES`]. That the audience may be only that of
/// files of the name is not worth a branch, which the verifier would follow at every directory.
#[inline(always)]
pub(crate) const fn of_directory(key: u32) -> u32 {
    key & (OF_AUDIENCE | NAMES) | (key >> 4) & ALL as u32
}

/// Classes of an open by its flags as open(2) has them, with the kernel's mark of an exec.
#[inline(always)]
#[must_use]
pub const fn classes(flags: u32) -> u8 {
    // include/uapi/asm-generic/fcntl.h, and __FMODE_EXEC of include/linux/fs.h
    const ACCMODE: u32 = 3;
    const WRITES: u32 = 0o1 | 0o2 | 0o100 | 0o1000;
    const PATH: u32 = 0o10_000_000;
    const BY_EXEC: u32 = 0x20;
    if flags & PATH != 0 {
        return REFERENCE;
    }
    if flags & BY_EXEC != 0 {
        return EXEC;
    }
    let writes = if flags & WRITES != 0 { WRITE } else { 0 };
    if flags & ACCMODE == 1 { writes } else { writes | READ }
}
