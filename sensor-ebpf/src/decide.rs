//! The filter's decision: whether an open may be one that some policy wants. Kernel side and tests run this very code.
//!
//! It knows names, not paths. From each pattern user space takes a name that every path has which the pattern matches: that
//! of the file, or that of a directory above it. An open passes if a name on its way is such a key; whether the whole
//! path matches, user space decides. So it may let through what nobody wants, and never the reverse.
//!
//! What a directory means for the files in it is remembered by directory and mount, and holds as long as no directory has
//! been moved, the mount namespace has not changed and the keys are the same.
use core::cell::Cell;

use crate::table::{
    ANYWHERE, NAMES, Table, UNNAMED, WORDS, Wants, hash, masked, mix, of_directory, of_file, start,
};

/// Most directories above a file, up to the root of its file system, that are looked at; of a deeper one every open passes.
pub const DEPTH: usize = 24;
/// The same above the place where a file system is mounted.
pub const MOUNT_DEPTH: usize = 10;
/// Most mounts that lie on each other.
pub const MOUNTS: usize = 4;

/// Why an open passes. The number is an index into counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Its kind is wanted whatever the path is.
    Everything = 0,
    /// The file's name is a key.
    Name = 1,
    /// The name of a directory above is one.
    Directory = 2,
    /// The file has more than one name.
    Links = 3,
    /// It failed in a way that is wanted, and the name that was asked for may be.
    Failed = 4,
    /// Too deep, on too many mounts, or in a file system that user space does not know yet.
    Unknown = 5,
    /// The keys, or what is wanted of cgroups, changed meanwhile.
    Changed = 6,
}

/// Number of [`Reason`]s.
pub const REASONS: usize = 7;

impl Reason {
    /// The word for each, in the order of the enumeration.
    pub const WORDS: [&str; REASONS] =
        ["everything", "name", "directory", "links", "failed", "unknown", "changed"];
}

/// What must be the same for that what is remembered of a directory still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Valid {
    /// [`State::epoch`](crate::table::State::epoch) and the moves of directories so far; never zero. Either only grows.
    pub epoch: u64,
    /// The opener's mount namespace.
    pub namespace: u64,
    /// What the kernel changes with every mount in it (`struct mnt_namespace.event`).
    pub event: u64,
}

/// What is remembered of a directory, as a mount shows it.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Remembered {
    /// `struct dentry *`.
    pub dentry: Cell<u64>,
    /// `struct vfsmount *`.
    pub mount: Cell<u64>,
    /// [`Valid::epoch`]; zero where nothing is remembered.
    pub epoch: Cell<u64>,
    /// [`Valid::namespace`].
    pub namespace: Cell<u64>,
    /// [`Valid::event`].
    pub event: Cell<u64>,
    /// [`Kernel::deaths`]: as long as it is the same, it is the same directory.
    pub deaths: Cell<u32>,
    /// What it means to the files in it.
    pub meaning: Cell<u32>,
}

/// The file of an open.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// `struct dentry *`.
    pub dentry: u64,
    /// `struct vfsmount *`.
    pub mount: u64,
    /// `i_nlink`; of a directory zero, which has one name: its other links are `.` and the `..` of those in it.
    pub links: u32,
}

/// How dentries are read.
pub trait Dentries {
    /// `d_parent`; of a root it is itself.
    fn parent(&self, dentry: u64) -> u64;
    /// `d_name.len`.
    fn name_len(&self, dentry: u64) -> u32;
    /// Whether the name stands in the dentry itself.
    fn is_inline(&self, dentry: u64) -> bool;
    /// Word `at` of such a name; what stands behind its end is anything.
    fn inline_word(&self, dentry: u64, at: usize) -> u64;
    /// The first words of a name that stands elsewhere.
    fn long_name(&self, dentry: u64) -> [u64; WORDS];
}

/// How the kernel is read, and what is remembered of it.
pub trait Kernel {
    /// Dentries that are reached from the file.
    type Near: Dentries;
    /// Any others.
    type Far: Dentries;
    /// Reads dentries that are reached by typed pointers from the file.
    fn near(&self) -> Self::Near;
    /// Reads any other, by the helper.
    fn far(&self) -> Self::Far;
    /// `s_dev` of the file system that the file's dentry is in.
    fn device(&self, dentry: u64) -> u32;
    /// Where a mount stands; `mount` is its `struct vfsmount *`.
    fn mount(&self, mount: u64) -> Mount;
    /// What holds now; None while a directory is being moved, and where that is not known.
    fn valid(&self) -> Option<Valid>;
    /// The keys that were in use when it was asked what policies want.
    fn table(&self) -> Option<&Table>;
    /// Whether these, and what policies want, are still in use.
    fn is_current(&self) -> bool;
    /// Where a directory is remembered, by its dentry.
    fn memory(&self, dentry: u64) -> Option<&Remembered>;
    /// How many dentries have been freed whose [`place_of`](crate::table::place_of) is that of this one: it was none of them if the number is the same.
    fn deaths(&self, dentry: u64) -> u32;
}

/// The name that an open was asked for, as the kernel has copied it.
pub trait RequestedName {
    /// `N` bytes from `at` on, up to a zero or with one as the last, and how many these are with the zero; none if it cannot be read.
    fn bytes<const N: usize>(&self, at: u32) -> ([u8; N], u32);
}

/// Where a mount stands.
#[derive(Clone, Copy, Debug)]
pub struct Mount {
    /// `struct vfsmount *` of the mount that it sits on; itself if there is none.
    pub parent: u64,
    /// The dentry of that which it covers.
    pub mountpoint: u64,
    /// Its namespace.
    pub namespace: u64,
    /// Its root dentry.
    pub root: u64,
}

#[inline(always)]
fn hash_of<D: Dentries>(dentries: &D, table: &Table, dentry: u64) -> u64 {
    let len = dentries.name_len(dentry);
    let mut hash = start(table.seed, len);
    if dentries.is_inline(dentry) {
        for at in 0..WORDS {
            if len as usize <= 8 * at {
                break;
            }
            hash = mix(hash, masked(dentries.inline_word(dentry, at), len, at));
        }
        return hash;
    }
    for (at, word) in dentries.long_name(dentry).into_iter().enumerate() {
        if len as usize <= 8 * at {
            break;
        }
        hash = mix(hash, masked(word, len, at));
    }
    hash
}

/// In what a directory means: not known, so that every open passes.
const UNKNOWN: u32 = 1 << 9;

/// Which of [`Table::wanted`] is about this result, zero or a negative errno.
#[inline(always)]
const fn outcome(result: i32) -> usize {
    match result {
        0 => 0,
        // EPERM, EACCES
        -1 | -13 => 1,
        // ENOENT, ENOTDIR
        -2 | -20 => 2,
        _ => 3,
    }
}

/// Why an open passes, if it does: of these classes, with this result (zero or a negative errno), where policies want this. Of
/// one that has failed there is no file, and the name that was `asked` for.
#[inline(always)]
pub fn passes<K: Kernel, A: RequestedName>(
    kernel: &K,
    wants: Wants,
    (classes, result): (u8, i32),
    file: impl FnOnce() -> Opened,
    asked: impl FnOnce() -> A,
) -> Option<Reason> {
    let reason = match without_path(wants, classes, result) {
        Some(decided) => decided,
        None if result != 0 => by_asked(kernel, wants, classes, &asked()),
        None => by_path(kernel, wants, classes, file()),
    };
    // A table that is no longer in use is being written over.
    if kernel.is_current() { reason } else { Some(Reason::Changed) }
}

/// Whether an open of these classes that ended so needs no look at the path: None if it does.
#[expect(clippy::indexing_slicing, reason = "the mask keeps it within")]
#[inline(always)]
fn without_path(wants: Wants, classes: u8, result: i32) -> Option<Option<Reason>> {
    if wants.wanted[outcome(result) & 3] & classes == 0 {
        return Some(None);
    }
    if wants.everything & classes != 0 {
        return Some(Some(Reason::Everything));
    }
    if wants.flags & UNNAMED[outcome(result) & 3] != 0 { Some(Some(Reason::Failed)) } else { None }
}

/// Why an open of these classes that failed passes, if it does: a pattern that has the name of a file matches no path that ends
/// otherwise, and by the letters of what was asked for, the path ends as that does.
#[inline(always)]
fn by_asked<K: Kernel, A: RequestedName>(kernel: &K, wants: Wants, classes: u8, asked: &A) -> Option<Reason> {
    let Some(table) = kernel.table() else { return Some(Reason::Unknown) };
    match hash_of_last(asked, table.seed) {
        0 => Some(Reason::Failed),
        hash => wants.include(of_file(table.key(hash)), classes).then_some(Reason::Failed),
    }
}

/// Most rounds in which the end of a name that was asked for is looked for, and how many of its last bytes are looked at.
const ROUNDS: usize = 8;
const END: usize = 64;

/// [`hash`] of the last component of a name that was asked for. Zero where it says nothing of how the path ends: it is empty, `.`
/// or begins with `..`; and where it is too long to tell.
#[inline(never)]
fn hash_of_last<A: RequestedName>(asked: &A, seed: u64) -> u64 {
    let len = length(asked);
    let size = size_of_last(asked, len);
    if size == 0 { 0 } else { hash_of_part(asked, len - size, size, seed) }
}

/// How long the name is, as far as it is looked at; zero if it cannot be read.
#[inline(always)]
fn length<A: RequestedName>(asked: &A) -> u32 {
    let mut len = 0;
    for _ in 0..ROUNDS {
        let (_, read) = asked.bytes::<END>(len);
        if read == 0 {
            return 0;
        }
        len += read - 1;
        if (read as usize) < END {
            break;
        }
    }
    len
}

/// How long the last component is of a name of `len` bytes; zero if it is empty, or that cannot be told.
#[inline(always)]
fn size_of_last<A: RequestedName>(asked: &A, len: u32) -> u32 {
    // One byte less than fits: a read that is full was cut.
    let tail = len.saturating_sub(END as u32 - 2);
    let (bytes, read) = asked.bytes::<END>(tail);
    // It goes on after the last round, or is another now.
    if read != len - tail + 1 {
        return 0;
    }
    let size = len - tail - after_last_slash(zerocopy::transmute!(bytes));
    if tail != 0 && size == len - tail { 0 } else { size }
}

/// [`hash`] of `size` bytes from `at` on; zero if they are `.` or begin with `..`.
#[inline(always)]
fn hash_of_part<A: RequestedName>(asked: &A, at: u32, size: u32, seed: u64) -> u64 {
    const BYTES: usize = 8 * (WORDS + 1);
    let (bytes, read) = asked.bytes::<BYTES>(at);
    if read as usize != BYTES && read != size + 1 {
        return 0;
    }
    let words: [u64; WORDS + 1] = zerocopy::transmute!(bytes);
    let [first, ..] = words;
    let first = u64::from_le(first);
    if first as u8 == b'.' && (size == 1 || (first >> 8) as u8 == b'.') {
        return 0;
    }
    let mut hash = start(seed, size);
    for (at, word) in words.iter().enumerate().take(WORDS) {
        if size as usize <= 8 * at {
            break;
        }
        hash = mix(hash, masked(u64::from_le(*word), size, at));
    }
    hash
}

/// Where in these bytes it goes on after the last slash; zero if there is none. Without a loop over bytes, which the verifier would
/// follow once for every length.
#[inline(always)]
fn after_last_slash([a, b, c, d, e, f, g, h]: [u64; END / 8]) -> u32 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let after = |so_far: u32, word: u64, begin: u32| {
        let other = word ^ u64::from_ne_bytes([b'/'; 8]);
        // The highest bit of each byte that is a slash, and no other bit.
        let slashes = u64::from_le(!(((other & LOW) + LOW) | other | LOW));
        if slashes == 0 { so_far } else { begin + 8 - slashes.leading_zeros() / 8 }
    };
    let first = after(after(after(after(0, a, 0), b, 8), c, 16), d, 24);
    after(after(after(after(first, e, 32), f, 40), g, 48), h, 56)
}

/// Why an open of these classes passes, if it does, by the file's names.
#[inline(always)]
fn by_path<K: Kernel>(kernel: &K, wants: Wants, classes: u8, file: Opened) -> Option<Reason> {
    if file.links > 1 {
        return Some(Reason::Links);
    }
    let near = kernel.near();
    let directory = near.parent(file.dentry);
    // It lives as long as the file is open.
    let deaths = kernel.deaths(directory);
    let meaning = match (kernel.valid(), kernel.memory(directory)) {
        // The root of a file system is not in a directory.
        (Some(valid), Some(known)) if directory != file.dentry => {
            if known.dentry.get() == directory
                && known.deaths.get() == deaths
                && known.mount.get() == file.mount
                && known.epoch.get() == valid.epoch
                && known.namespace.get() == valid.namespace
                && known.event.get() == valid.event
            {
                known.meaning.get()
            } else {
                known.epoch.set(0);
                known.dentry.set(directory);
                known.mount.set(file.mount);
                known.deaths.set(deaths);
                known.namespace.set(valid.namespace);
                known.event.set(valid.event);
                learn(kernel, file, known, valid.epoch)
            }
        }
        _ => look(kernel, file).0,
    };
    if meaning & UNKNOWN != 0 {
        return Some(Reason::Unknown);
    }
    if wants.include(meaning, classes) {
        return Some(Reason::Directory);
    }
    if meaning & NAMES == 0 && wants.flags & ANYWHERE == 0 {
        return None;
    }
    let Some(table) = kernel.table() else { return Some(Reason::Unknown) };
    wants.include(of_file(table.key(hash_of(&near, table, file.dentry))), classes).then_some(Reason::Name)
}

/// Looks at the names above the file, and remembers what they mean if that is so for all files in the directory.
#[inline(always)]
fn learn<K: Kernel>(kernel: &K, file: Opened, known: &Remembered, epoch: u64) -> u32 {
    let (meaning, namespace) = look(kernel, file);
    let still = kernel.valid().is_some_and(|valid| {
        valid.epoch == epoch && valid.namespace == known.namespace.get() && valid.event == known.event.get()
    });
    // Only of what is mounted in the opener's own namespace it is told when that changes.
    if still && meaning & UNKNOWN == 0 && namespace == known.namespace.get() {
        known.meaning.set(meaning);
        known.epoch.set(epoch);
    }
    meaning
}

/// What the names above the file mean to it, and the namespace in which this is so for all files in its directory: zero if
/// it is not.
#[inline(never)]
fn look<K: Kernel>(kernel: &K, file: Opened) -> (u32, u64) {
    let Some(table) = kernel.table() else { return (UNKNOWN, 0) };
    let near = kernel.near();
    let mut meaning = above::<_, DEPTH>(&near, table, near.parent(file.dentry));
    meaning |= table.device(kernel.device(file.dentry)).unwrap_or(UNKNOWN);
    let far = kernel.far();
    let (mut mount, mut dentry, mut is_file) = (file.mount, file.dentry, true);
    let mut here = kernel.mount(mount);
    // What is right in the root of a mount may be right below `/`.
    if near.parent(dentry) == here.root {
        meaning |= table.key(hash(table.seed, b"/")) & NAMES;
    }
    // What is the root of its mount is not called by the directory that it is in.
    let namespace = if dentry == here.root { 0 } else { here.namespace };
    for _ in 0..MOUNTS {
        if here.parent == mount {
            return (meaning, namespace);
        }
        // A file may be mounted on a file: then it is called as that is.
        is_file = is_file && dentry == here.root;
        if is_file {
            meaning |= of_file(table.key(hash_of(&far, table, here.mountpoint)));
        }
        meaning |= above::<_, MOUNT_DEPTH>(&far, table, here.mountpoint);
        (dentry, mount) = (here.mountpoint, here.parent);
        here = kernel.mount(mount);
    }
    (UNKNOWN, 0)
}

/// What a directory's name, and those of all above it in its file system, mean to the files in it.
#[inline(never)]
fn above<D: Dentries, const LEVELS: usize>(dentries: &D, table: &Table, directory: u64) -> u32 {
    let mut meaning = 0;
    let mut dentry = directory;
    for level in 0..LEVELS {
        let parent = dentries.parent(dentry);
        if parent == 0 {
            // It cannot be read.
            return UNKNOWN;
        }
        if parent == dentry {
            return meaning;
        }
        let key = of_directory(table.key(hash_of(dentries, table, dentry)));
        // In which directory a file is right in matters to its own name only.
        meaning |= if level == 0 { key } else { key & !NAMES };
        // What kubelet calls a generation of a volume is not part of the path by which its files are known.
        if level == 0 && is_hidden_twice(dentries, dentry) {
            meaning |= NAMES;
        }
        dentry = parent;
    }
    UNKNOWN
}

/// Whether a name begins with two dots, and goes on.
#[inline(always)]
fn is_hidden_twice<D: Dentries>(dentries: &D, dentry: u64) -> bool {
    if dentries.name_len(dentry) <= 2 {
        return false;
    }
    let first =
        if dentries.is_inline(dentry) { dentries.inline_word(dentry, 0) } else { dentries.long_name(dentry)[0] };
    first as u16 == u16::from_le_bytes(*b"..")
}
