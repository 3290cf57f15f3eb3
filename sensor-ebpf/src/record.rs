//! A record under construction.
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str,
};
use sensor_ebpf::{
    ARGS_LIMIT, BODY_LEN, COMPONENT_LEN, Hook, Loss, NAME_LIMIT, OpenRecord, REQUESTED_LIMIT, STATUS_ARGS_CUT,
    STATUS_REQUESTED_CUT, STATUS_TOO_LONG,
};

use crate::kernel::{read, read_user};
use crate::maps::{EVENTS, count_loss, next_sequence};

/// One record and the place where the next byte of its body goes.
///
/// The position lives in the map's value, not in a register, so that the verifier forgets what it knew of it
/// after every component; in a register it refuses the walk at 16 rounds.
#[repr(C)]
pub(crate) struct Scratch {
    record: OpenRecord,
    body: [u8; BODY_LEN],
    position: u32,
    kept: Kept,
}

/// What a hook needs again after the walk.
///
/// In registers it would have the verifier walk once for every combination of values that it can tell apart: it
/// gave up after a million instructions.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Kept {
    /// `struct file *`; zero when there is none.
    pub(crate) file: u64,
    /// Address of the requested name.
    pub(crate) name: u64,
    /// What the call returned.
    pub(crate) result: i64,
}

/// Where a requested name is read from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    Kernel(u64),
    User(u64),
}

/// Borrow of this CPU's scratch of one program, by its parts.
#[derive(Clone, Copy)]
pub(crate) struct Builder {
    scratch: *mut Scratch,
    record: *mut OpenRecord,
    body: *mut [u8; BODY_LEN],
    position: *mut u32,
    kept: *mut Kept,
    hook: Hook,
}

impl Source {
    /// First byte of the name; zero when it cannot be read.
    #[inline(always)]
    pub(crate) fn first(self) -> u8 {
        match self {
            Self::Kernel(from) => read(from, 0),
            Self::User(from) => read_user(from),
        }
    }
}

impl Builder {
    /// An empty record of `hook`, or None without a scratch (which the verifier must see handled).
    #[inline(always)]
    pub(crate) fn new(hook: Hook) -> Option<Self> {
        let scratch = crate::maps::scratch(hook)?;
        // SAFETY: the map's value is a Scratch, and this program's alone on this CPU while it runs.
        let Scratch { record, body, position, kept } = unsafe { &mut *scratch };
        let new = Self { scratch, record, body, position, kept, hook };
        new.set_position(0);
        // SAFETY: `record` points into the scratch; all-zero bytes are a record.
        unsafe { core::ptr::write_bytes(new.record, 0, 1) };
        Some(new)
    }

    /// The fixed part, to be filled in.
    #[inline(always)]
    pub(crate) fn record(&mut self) -> &mut OpenRecord {
        // SAFETY: the scratch is this program's own on this CPU, and no caller keeps two such references at a time.
        unsafe { &mut *self.record }
    }

    /// Where the next byte of the body goes.
    #[inline(always)]
    pub(crate) fn position(self) -> usize {
        // SAFETY: points into the scratch; volatile, so that the compiler does not keep it in a register.
        unsafe { self.position.read_volatile() as usize }
    }

    #[inline(always)]
    fn set_position(self, position: usize) {
        // SAFETY: as for `position`.
        unsafe { self.position.write_volatile(position as u32) };
    }

    /// Sets `STATUS_*` flags.
    #[inline(always)]
    pub(crate) fn flag(mut self, status: u32) {
        self.record().status |= status;
    }

    /// Puts `kept` aside until after the walk.
    #[inline(always)]
    pub(crate) fn keep(self, kept: Kept) {
        // SAFETY: points into the scratch.
        unsafe { self.kept.write_volatile(kept) };
    }

    /// What was put aside.
    #[inline(always)]
    pub(crate) fn kept(self) -> Kept {
        // SAFETY: points into the scratch, where any bytes are a Kept.
        unsafe { self.kept.read_volatile() }
    }

    /// Ends the path and appends the name that the process passed.
    #[inline(always)]
    pub(crate) fn put_requested(mut self, source: Source) {
        let position = self.end_path();
        if position > BODY_LEN - REQUESTED_LIMIT {
            return self.flag(STATUS_REQUESTED_CUT);
        }
        // SAFETY: the check above leaves room for the longest name.
        let to = unsafe { self.body.cast::<u8>().add(position) }.cast();
        let size = REQUESTED_LIMIT as u32;
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
            self.record().requested_len = copied as u32 - 1;
            self.set_position(position + copied as usize - 1);
        }
    }

    /// What was appended so far is the path; returns where it ends.
    #[inline(always)]
    pub(crate) fn end_path(mut self) -> usize {
        let position = self.position();
        self.record().path_len = position as u32;
        position
    }

    /// Appends the arguments of the task: what lies from `start` to `end` of its memory.
    #[inline(always)]
    pub(crate) fn put_args(mut self, start: u64, end: u64) {
        let position = self.position();
        let whole = end.wrapping_sub(start);
        let len = whole.min(ARGS_LIMIT as u64) as u32;
        if position > BODY_LEN - ARGS_LIMIT {
            return self.flag(STATUS_ARGS_CUT);
        }
        // SAFETY: the check above leaves room for the most bytes that are copied.
        let to = unsafe { self.body.cast::<u8>().add(position) }.cast();
        // SAFETY: `to` has room for ARGS_LIMIT bytes; the helper checks the source itself.
        let failed = unsafe { bpf_probe_read_user(to, len, start as *const _) } != 0;
        if failed || whole > ARGS_LIMIT as u64 {
            self.flag(STATUS_ARGS_CUT);
        }
        if !failed {
            self.record().args_len = len;
            self.set_position(position + len as usize);
        }
    }

    /// Appends a component of `len` bytes at kernel address `name`; false when the body is full.
    #[inline(always)]
    pub(crate) fn put_component(self, name: u64, len: u32) -> bool {
        let position = self.position();
        if position > BODY_LEN - COMPONENT_LEN - NAME_LIMIT {
            return false;
        }
        // Without a branch, of which the walk has none to spare: 1 for a name beyond the limit, which is then cut to it.
        let over = (NAME_LIMIT as u32).wrapping_sub(len) >> 31;
        self.flag(over * STATUS_TOO_LONG);
        let len = (len | over.wrapping_neg()) & NAME_LIMIT as u32;
        // SAFETY: the check above leaves room for a length and the longest name.
        let at = unsafe { self.body.cast::<u8>().add(position) };
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
        self.set_position(position + COMPONENT_LEN + len as usize);
        true
    }

    /// Numbers the record and hands it to the ring; a refusal is counted.
    #[inline(always)]
    pub(crate) fn submit(mut self) {
        let body = self.position();
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
