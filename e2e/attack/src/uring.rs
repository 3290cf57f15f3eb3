//! Opens by io_uring (io_uring_setup(2)): by the submitter, by a worker, by the kernel's polling thread.
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{AT_FDCWD, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup};

use crate::{
    Failed, Stage,
    sys::{Result, at, c, must, raw, to},
};

const SETUP_SQPOLL: u32 = 2;
const ENTER_GETEVENTS: usize = 1;
const ENTER_SQ_WAKEUP: usize = 2;
const SQE_ASYNC: u8 = 1 << 4;
const SQE_IO_LINK: u8 = 1 << 2;
const OP_NOP: u8 = 0;
const OP_OPENAT: u8 = 18;
const REGISTER_FILES: usize = 2;
/// Offsets of mmap(2) at which the rings and the entries are.
const OFF_SQ_RING: usize = 0;
const OFF_SQES: usize = 0x1000_0000;
const ENTRIES: usize = 4;

/// `struct io_uring_params`, as words.
type Params = [u32; 30];

/// A ring of few entries.
struct Ring {
    fd: i32,
    rings: usize,
    entries: usize,
    params: Params,
}

/// `struct io_uring_sqe`, the parts that are used.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    open_flags: u32,
    user_data: u64,
    buffer: u16,
    personality: u16,
    file_index: u32,
    rest: [u64; 2],
}

fn map(fd: i32, len: usize, offset: usize) -> Result<usize> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let arguments = [0, len, protection, (libc::MAP_SHARED | libc::MAP_POPULATE) as usize, fd as usize, offset];
    raw(libc::SYS_mmap, arguments).map(|at| at as usize).map_err(|errno| Failed(format!("mmap: errno {errno}")))
}

impl Ring {
    fn new(flags: u32) -> Result<Self> {
        let mut params: Params = [0; 30];
        params[2] = flags;
        params[4] = 1000; // sq_thread_idle, in milliseconds
        let fd = must("io_uring_setup", SYS_io_uring_setup, [ENTRIES, to(&mut params), 0, 0, 0, 0])?;
        Ok(Self { fd, rings: map(fd, 4096, OFF_SQ_RING)?, entries: map(fd, 4096, OFF_SQES)?, params })
    }

    /// A counter of the rings; its offset is word `index` of the parameters.
    fn counter(&self, index: usize) -> &AtomicU32 {
        let offset = self.params.get(index).copied().unwrap_or_default() as usize;
        // SAFETY: the kernel has mapped a page of such counters there, and keeps it as long as the process lives.
        unsafe { &*((self.rings + offset) as *const AtomicU32) }
    }

    /// Has the kernel do all of it, and waits until it has; the results come in any order.
    fn submit(&self, entries: &[Entry]) -> Result {
        // struct io_sqring_offsets begins at word 10: head, tail, mask, entries, flags, dropped, array.
        let tail = self.counter(11).load(Ordering::Acquire);
        for (n, entry) in entries.iter().enumerate() {
            let to = (self.entries as *mut Entry).wrapping_add(n);
            // SAFETY: the kernel has mapped room for so many entries there.
            unsafe { to.write(*entry) };
            let array = self.params.get(16).copied().unwrap_or_default() as usize;
            let to = ((self.rings + array) as *mut u32).wrapping_add((tail as usize + n) % ENTRIES);
            // SAFETY: as above, of their numbers.
            unsafe { to.write(n as u32) };
        }
        self.counter(11).store(tail + entries.len() as u32, Ordering::Release);
        let flags = ENTER_GETEVENTS | if self.params[2] & SETUP_SQPOLL != 0 { ENTER_SQ_WAKEUP } else { 0 };
        let count = entries.len();
        must("io_uring_enter", SYS_io_uring_enter, [self.fd as usize, count, count, flags, 0, 0])?;
        // struct io_cqring_offsets begins at word 20: head, tail, mask, entries, overflow, cqes.
        let cqes = self.params.get(25).copied().unwrap_or_default() as usize;
        for n in 0..count {
            let at = self.rings + cqes + n * 16 + 8;
            // SAFETY: the kernel has written a result there and tells so by returning.
            let result = unsafe { (at as *const i32).read_volatile() };
            if result < 0 {
                return Err(Failed(format!("io_uring: errno {}", -result)));
            }
        }
        Ok(())
    }
}

fn entry(opcode: u8, flags: u8, path: &std::ffi::CStr, file_index: u32) -> Entry {
    Entry {
        opcode,
        flags,
        priority: 0,
        fd: if opcode == OP_NOP { -1 } else { AT_FDCWD },
        offset: 0,
        address: if opcode == OP_NOP { 0 } else { path.as_ptr() as u64 },
        len: 0,
        open_flags: 0,
        user_data: 1,
        buffer: 0,
        personality: 0,
        file_index,
        rest: [0; 2],
    }
}

fn opens(stage: &Stage, setup: u32, flags: u8) -> Result {
    let (ring, name) = (Ring::new(setup)?, c(&stage.secret));
    stage.act(|| ring.submit(&[entry(OP_OPENAT, flags, &name, 0)]))
}

pub(crate) fn inline(stage: &Stage) -> Result {
    opens(stage, 0, 0)
}

pub(crate) fn by_worker(stage: &Stage) -> Result {
    opens(stage, 0, SQE_ASYNC)
}

pub(crate) fn by_poller(stage: &Stage) -> Result {
    opens(stage, SETUP_SQPOLL, 0)
}

/// Behind another request, and into a slot of the ring instead of a descriptor.
pub(crate) fn linked(stage: &Stage) -> Result {
    let (ring, name, slots) = (Ring::new(0)?, c(&stage.secret), [-1i32; 2]);
    must("io_uring_register", SYS_io_uring_register, [ring.fd as usize, REGISTER_FILES, at(&slots), 2, 0, 0])?;
    stage.act(|| ring.submit(&[entry(OP_NOP, SQE_IO_LINK, &name, 0), entry(OP_OPENAT, 0, &name, 1)]))
}
