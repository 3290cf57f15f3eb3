//! A record under construction.
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str,
};
use sensor_ebpf::{
    ARGS_LIMIT, BODY_LEN, COMPONENT_LEN, Hook, Loss, NAME_LIMIT, OpenRecord, PATH_LEN, REQUESTED_LIMIT, SECTIONS,
    STATUS_ARGS_CUT, STATUS_REQUESTED_CUT, STATUS_TOO_LONG, Section, Span,
};

use crate::{
    kernel::{read, read_user},
    maps::{self, EVENTS, count_loss, next_sequence},
};

const _: () = assert!(size_of::<OpenRecord>().is_multiple_of(size_of::<u64>()), "a record is emptied by words");

/// One record and the place where the next byte of its body goes.
///
/// The position lives in the map's value, not in a register, so that the verifier forgets what it knew of it
/// after every component; in a register it refuses the walk at 16 rounds.
#[repr(C)]
pub(crate) struct Scratch {
    record: OpenRecord,
    body: [u8; BODY_LEN],
    position: u32,
    /// Where the section that is being written began.
    began: u32,
    /// The path walk has just crossed from a mount to the one that it sits on.
    crossed: u32,
    /// How many dentries on the way have something mounted on them, here or in another namespace.
    mounted: u32,
    /// `(mount, dentry)` of them, as long as there are fewer than [`MOUNTED`].
    places: [(u64, u64); MOUNTED],
    kept: Kept,
}

/// Words of the longest name that stands in a dentry (`DNAME_INLINE_LEN` of include/linux/dcache.h: 32 to 40).
const INLINE_WORDS: usize = 5;

/// One more than the dentries with something mounted on them that are looked at: a power of two.
pub(crate) const MOUNTED: usize = 4;

/// What a hook needs again after the walk.
///
/// In registers it would have the verifier walk once for every combination of values that it can tell apart: it
/// gave up after a million instructions.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Kept {
    /// `struct file *`, of an exec its `struct linux_binprm *`; zero when there is none.
    pub(crate) file: u64,
    /// Address of the requested name.
    pub(crate) name: u64,
    /// Address of the other name.
    pub(crate) other: u64,
    /// What the call returned; negative if that is no descriptor.
    pub(crate) result: i64,
    /// Root dentry of the mount that the path is in.
    pub(crate) root: u64,
    /// Place of the other name.
    pub(crate) target: (u64, u64),
    /// Where the requested name starts from.
    pub(crate) from: Start,
    /// Where the other one does.
    pub(crate) to: Start,
}

/// Where the last component of a path may begin in the body, so that there is room for what comes after it. A constant, as
/// the verifier needs it.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Room {
    /// Another path and two names may follow.
    First = PATH_LEN as u32,
    /// The same, where the two names came before.
    AfterNames = (PATH_LEN + 2 * REQUESTED_LIMIT) as u32,
    /// A name may follow.
    Last = (BODY_LEN - COMPONENT_LEN - NAME_LIMIT - REQUESTED_LIMIT) as u32,
}

/// Where a requested name starts from.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Start {
    /// The directory's descriptor.
    pub(crate) dirfd: i32,
    /// First byte of the name: whether that counts.
    pub(crate) first: u32,
}

/// Where a requested name is read from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    Kernel(u64),
    User(u64),
}

/// Borrow of a scratch that is this run's, or this thread's from one end of a call to the other.
#[derive(Clone, Copy)]
pub(crate) struct Builder {
    scratch: *mut Scratch,
    hook: Hook,
}

impl Source {
    /// First byte of the name; zero when it cannot be read.
    #[inline(always)]
    pub(crate) fn first(self) -> u32 {
        match self {
            Self::Kernel(from) => read::<u8>(from, 0) as u32,
            Self::User(from) => read_user::<u8>(from) as u32,
        }
    }
}

/// A field of the scratch that is read and written in memory only: in a register the verifier would know too much of it.
macro_rules! in_memory {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $get(self) -> $type {
            // SAFETY: the scratch is this run's; the reference lives as long as the expression.
            let field = unsafe { &raw const (*self.scratch).$field };
            // SAFETY: points into the scratch, where any bytes are a value.
            unsafe { field.read_volatile() }
        }

        #[inline(always)]
        pub(crate) fn $set(self, value: $type) {
            // SAFETY: as above.
            let field = unsafe { &raw mut (*self.scratch).$field };
            // SAFETY: as above.
            unsafe { field.write_volatile(value) };
        }
    )*};
}

impl Builder {
    in_memory! {
        /// Where the next byte of the body goes.
        position, set_position, position: u32;
        began, set_began, began: u32;
        /// The walk has just crossed from a mount to the one that it sits on.
        crossed, set_crossed, crossed: u32;
        /// How many dentries on the way have something mounted on them.
        mounted, set_mounted, mounted: u32;
        /// What was put aside until after the walk.
        kept, keep, kept: Kept;
    }

    /// An empty record of `hook`, or None without a scratch (which the verifier must see handled).
    #[inline(always)]
    pub(crate) fn new(hook: Hook) -> Option<Self> {
        let new = Self { scratch: maps::scratch(hook)?, hook };
        new.empty();
        // SAFETY: the record is part of the scratch.
        let record = unsafe { &raw mut (*new.scratch).record }.cast::<u64>();
        // Volatile, or the compiler makes a loop over bytes of it.
        for word in 0..size_of::<OpenRecord>() / size_of::<u64>() {
            // SAFETY: within the record.
            let word = unsafe { record.add(word) };
            // SAFETY: as above; all-zero bytes are a record.
            unsafe { word.write_volatile(0) };
        }
        Some(new)
    }

    /// Takes everything out of the body again.
    #[inline(always)]
    pub(crate) fn empty(mut self) {
        self.set_position(0);
        self.set_began(0);
        self.set_mounted(0);
        self.set_crossed(0);
        let fields = self.record();
        fields.sections = [Span { start: 0, len: 0 }; SECTIONS];
        fields.status = 0;
    }

    /// An empty record for the call that this thread begins.
    #[inline(always)]
    pub(crate) fn begin_call(hook: Hook) -> Option<Self> {
        let mut new = Self { scratch: maps::begin_call(hook)?, hook };
        new.record().header.hook = hook as u16;
        Some(new)
    }

    /// The record of the call that this thread is in, if that is of this hook.
    #[inline(always)]
    pub(crate) fn of_call(hook: Hook) -> Option<Self> {
        let mut found = Self { scratch: maps::call_under_way()?, hook };
        (found.record().header.hook == hook as u16).then_some(found)
    }

    /// The fixed part, to be filled in.
    #[inline(always)]
    pub(crate) fn record(&mut self) -> &mut OpenRecord {
        // SAFETY: the scratch is this run's own, and no caller keeps two such references at a time.
        unsafe { &mut (*self.scratch).record }
    }

    /// Address of byte `position` of the body.
    #[inline(always)]
    fn body(self, position: usize) -> *mut u8 {
        // SAFETY: the body is part of the scratch.
        let body = unsafe { &raw mut (*self.scratch).body }.cast::<u8>();
        // SAFETY: every caller has checked that the position is within it.
        unsafe { body.add(position) }
    }

    /// What was appended since the last section's end is this section.
    #[inline(always)]
    pub(crate) fn end(mut self, section: Section) {
        let (start, end) = (self.began(), self.position());
        // Its number is a constant within the array, so that no check is left of this.
        if let Some(span) = self.record().sections.get_mut(section as usize) {
            *span = Span { start: start as u16, len: end.wrapping_sub(start) as u16 };
        }
        self.set_began(end);
    }

    /// Remembers the place of a dentry if `flags`, its `d_flags`, say that something may be mounted there; unless the walk
    /// came from there. Without a branch, of which the walk has none to spare.
    ///
    /// `DCACHE_MOUNTED` of include/linux/dcache.h is bit 16 of older kernels, where bit 15 says that the dentry is dead,
    /// and bit 15 of newer ones, where bit 16 marks automounts.
    #[inline(always)]
    pub(crate) fn note_mounted(self, mount: u64, dentry: u64, flags: u32) {
        let count = self.mounted();
        let slot = count as usize & (MOUNTED - 1);
        let place = self.slot(slot);
        // SAFETY: a slot of the array is this run's, as the scratch is.
        unsafe { place.write_volatile((mount, dentry)) };
        // One if either bit is set, by a carry: of a comparison the compiler would make a branch.
        let either = ((flags & 0x1_8000) + 0x1_8000) >> 17;
        self.set_mounted(count + (either & !self.crossed()));
        self.set_crossed(0);
    }

    #[inline(always)]
    fn slot(self, slot: usize) -> *mut (u64, u64) {
        // SAFETY: the array is part of the scratch.
        let places = unsafe { &raw mut (*self.scratch).places }.cast::<(u64, u64)>();
        // SAFETY: the mask keeps it within the array.
        unsafe { places.add(slot & (MOUNTED - 1)) }
    }

    /// One of the places remembered so.
    #[inline(always)]
    pub(crate) fn place(self, slot: usize) -> (u64, u64) {
        let place = self.slot(slot);
        // SAFETY: a slot of the array is this run's, as the scratch is.
        unsafe { place.read_volatile() }
    }

    /// Sets `STATUS_*` flags.
    #[inline(always)]
    pub(crate) fn flag(mut self, status: u32) {
        self.record().status |= status;
    }

    /// Appends a name that the process passed, as that section.
    #[inline(always)]
    pub(crate) fn put_requested(self, source: Source, section: Section) {
        let position = self.position() as usize;
        if position > BODY_LEN - REQUESTED_LIMIT {
            return self.flag(STATUS_REQUESTED_CUT);
        }
        let (to, size) = (self.body(position).cast(), REQUESTED_LIMIT as u32);
        let copied = match source {
            // SAFETY: `to` has room for REQUESTED_LIMIT bytes; the helper checks the source itself.
            Source::Kernel(from) => unsafe { bpf_probe_read_kernel_str(to, size, from as *const _) },
            // SAFETY: as above.
            Source::User(from) => unsafe { bpf_probe_read_user_str(to, size, from as *const _) },
        };
        // The helper counts the NUL and returns the full size when it had to cut.
        if copied <= 0 || copied >= REQUESTED_LIMIT as i64 {
            self.flag(STATUS_REQUESTED_CUT);
        }
        if copied > 1 && copied <= REQUESTED_LIMIT as i64 {
            self.set_position(position as u32 + copied as u32 - 1);
        }
        self.end(section);
    }

    /// Appends the arguments of the task: what lies from `start` to `end` of its memory.
    #[inline(always)]
    pub(crate) fn put_args(self, start: u64, end: u64) {
        let position = self.position() as usize;
        let whole = end.wrapping_sub(start);
        let len = whole.min(ARGS_LIMIT as u64) as u32;
        if position > BODY_LEN - ARGS_LIMIT {
            return self.flag(STATUS_ARGS_CUT);
        }
        let to = self.body(position).cast();
        // SAFETY: `to` has room for ARGS_LIMIT bytes; the helper checks the source itself.
        let failed = unsafe { bpf_probe_read_user(to, len, start as *const _) } != 0;
        if failed || whole > ARGS_LIMIT as u64 {
            self.flag(STATUS_ARGS_CUT);
        }
        if !failed {
            self.set_position(position as u32 + len);
        }
        self.end(Section::Args);
    }

    /// Appends a component of `len` bytes, of which `word` tells the words that they begin; false beyond the room `until`. For
    /// names that stand in a dentry: what is behind their end is written over, or not handed on.
    #[inline(always)]
    pub(crate) fn put_inline(self, until: Room, len: u32, word: impl Fn(usize) -> u64) -> bool {
        let position = self.position() as usize;
        if position > until as usize || len as usize > 8 * INLINE_WORDS {
            return false;
        }
        // The check above leaves room for a length and the longest name.
        let at = self.body(position);
        // SAFETY: two bytes of that room; without alignment, which this machine does not ask for.
        unsafe { at.cast::<u16>().write_unaligned(len as u16) };
        for nth in 0..INLINE_WORDS {
            if len as usize <= 8 * nth {
                break;
            }
            // SAFETY: as above.
            let to = unsafe { at.add(COMPONENT_LEN + 8 * nth) };
            // SAFETY: as above, eight bytes of it.
            unsafe { to.cast::<u64>().write_unaligned(word(nth)) };
        }
        self.set_position(position as u32 + COMPONENT_LEN as u32 + len);
        true
    }

    /// Appends a component of `len` bytes at kernel address `name`; false beyond the room `until` which it may begin.
    #[inline(always)]
    pub(crate) fn put_component(self, until: Room, name: u64, len: u32) -> bool {
        let position = self.position() as usize;
        if position > until as usize {
            return false;
        }
        // Without a branch, of which the walk has none to spare: 1 for a name beyond the limit, which is then cut to it.
        let over = (NAME_LIMIT as u32).wrapping_sub(len) >> 31;
        self.flag(over * STATUS_TOO_LONG);
        let len = (len | over.wrapping_neg()) & NAME_LIMIT as u32;
        // The check above leaves room for a length and the longest name.
        let at = self.body(position);
        let [low, high] = (len as u16).to_le_bytes();
        // SAFETY: two bytes of that room, written singly because the position has no alignment.
        unsafe { at.write_volatile(low) };
        // SAFETY: as above.
        let second = unsafe { at.add(1) };
        // SAFETY: as above.
        unsafe { second.write_volatile(high) };
        // SAFETY: as above.
        let to = unsafe { at.add(COMPONENT_LEN) };
        // SAFETY: the rest of that room holds NAME_LIMIT bytes, and `len` is at most that.
        unsafe { bpf_probe_read_kernel(to.cast(), len, name as *const _) };
        self.set_position(position as u32 + COMPONENT_LEN as u32 + len);
        true
    }

    /// Numbers the record and hands it to the ring; a refusal is counted.
    #[inline(always)]
    pub(crate) fn submit(mut self) {
        let body = self.position() as usize;
        // The mask tells the verifier a bound that survives the addition.
        let len = size_of::<OpenRecord>() + (body & 0x7fff);
        self.record().header.sequence = next_sequence(self.hook);
        if len > size_of::<OpenRecord>() + BODY_LEN {
            return count_loss(self.hook, Loss::Unreadable);
        }
        // SAFETY: `len` bytes from the start of the scratch are within it, and all of them were written before.
        let bytes = unsafe { core::slice::from_raw_parts(self.scratch.cast::<u8>(), len) };
        if EVENTS.output::<[u8]>(bytes, 0).is_err() {
            count_loss(self.hook, Loss::RingFull);
        }
    }
}
