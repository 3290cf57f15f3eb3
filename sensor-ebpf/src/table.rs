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

/// Of a directory: the names of the files right in it count.
pub const NAMES: u16 = 1 << 8;

/// What the policies in force want, before any path counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Wants {
    /// Classes of opens that are wanted at all, by outcome: success, denied, missing, other errors.
    pub wanted: [u8; 4],
    /// Classes of opens that pass whatever the path is.
    pub everything: u8,
    /// Not zero: names of files count in every directory.
    pub anywhere: u8,
    /// Explicit padding, zero.
    pub reserved: u16,
}

/// Of which paths.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Table {
    /// The keys: from the highest bit 48 of [`hash`], then [`NAMES`] of a directory, its classes, and those of a file's
    /// name in four bits each. Zero where nothing stands.
    pub names: [u64; SLOTS],
    /// What else a file system is called where others see it: device in the upper half; below it [`CLEAN`] and what that
    /// means to all that is in it.
    pub devices: [u64; DEVICES],
}

/// What is in use; user space writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct State {
    /// Changes of what is in use so far: the lowest bit says which of two it is.
    pub swaps: u64,
    /// Grows with each change, and whenever what is remembered of before is not to be valid any more, in the upper half. Zero
    /// before the first time, when nothing may be remembered.
    pub epoch: u64,
    /// The two of [`Wants`]; [`Table`]s are a map of their own.
    pub wants: [Wants; 2],
}

impl State {
    /// That of a kernel to which nobody has said anything yet.
    pub const NEW: Self = Self {
        swaps: 0,
        epoch: 0,
        wants: [Wants { wanted: [ALL; 4], everything: ALL, anywhere: 0, reserved: 0 }; 2],
    };
}

/// Of a device: it is known.
pub const CLEAN: u16 = 1 << 15;

/// Starts the hash of a name of `len` bytes.
#[inline(always)]
pub(crate) const fn start(len: u32) -> u64 {
    (len as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[inline(always)]
pub(crate) const fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
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

/// The hash of a name, as keys have it.
#[must_use]
#[inline(always)]
pub fn hash(name: &[u8]) -> u64 {
    let (mut hash, len) = (start(name.len() as u32), name.len() as u32);
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
    pub(crate) fn key(&self, hash: u64) -> u16 {
        for probe in 0..PROBES {
            let entry = self.names[(hash as usize).wrapping_add(probe) & (SLOTS - 1)];
            if entry == 0 {
                break;
            }
            if (entry ^ hash) >> 16 == 0 {
                return entry as u16;
            }
        }
        0
    }

    /// What is known of a device; None if nothing is.
    #[expect(clippy::indexing_slicing, reason = "the mask keeps it within")]
    #[inline(always)]
    pub(crate) fn device(&self, device: u32) -> Option<u16> {
        let at = slot_of(device);
        for probe in 0..PROBES {
            let entry = self.devices[at.wrapping_add(probe) & (DEVICES - 1)];
            if entry == 0 {
                break;
            }
            if (entry >> 32) as u32 == device {
                return Some(entry as u16 & !CLEAN);
            }
        }
        None
    }
}

/// The classes that a key has as the name of a file.
#[inline(always)]
pub(crate) const fn of_file(key: u16) -> u8 {
    key as u8 & ALL
}

/// What a key means to all below a directory of that name, in the form in which it is remembered: classes that pass and
/// [`NAMES`].
#[inline(always)]
pub(crate) const fn of_directory(key: u16) -> u16 {
    key & NAMES | (key >> 4) & ALL as u16
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
