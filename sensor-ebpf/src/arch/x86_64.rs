//! x86_64, with programs of 32 bits and of the x32 ABI.
use sensor_ebpf::Call as What;

use super::{Flags, Form, Known};
use crate::{
    kernel::{TASK_THREAD_INFO, THREAD_INFO_STATUS, constant, read},
    task,
};

/// The first argument of a system call that begins, in `struct pt_regs` (arch/x86/include/asm/ptrace.h): `di`.
pub(crate) const FIRST: usize = 112;

/// Its members that hold a system call's number and its first arguments when it returns.
const ORIG_AX: usize = 120;
const NATIVE: [usize; 5] = [FIRST, 104, 96, 56, 72]; // di, si, dx, r10, r8
const COMPAT: [usize; 5] = [40, 88, 96, 104, 112]; // bx, cx, dx, si, di

/// In `thread_info.status`: this is a 32-bit system call (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;
/// In the number of a system call of the x32 ABI, which otherwise numbers these calls as x86_64 does.
const X32: u64 = 0x4000_0000;

/// A system call that returns.
#[derive(Clone, Copy)]
pub(crate) struct SystemCall {
    registers: u64,
    is_compat: bool,
}

impl SystemCall {
    /// The call that has these registers, a `struct pt_regs *`.
    #[inline(always)]
    pub(crate) fn of(registers: u64) -> Self {
        let status: u32 = read(task::current(), constant(&TASK_THREAD_INFO) + constant(&THREAD_INFO_STATUS));
        Self { registers, is_compat: status & TS_COMPAT != 0 }
    }

    /// Its argument of that number, counted from zero.
    #[inline(always)]
    pub(crate) fn argument(self, at: usize) -> u64 {
        let members = if self.is_compat { COMPAT } else { NATIVE };
        read(self.registers, members.get(at).copied().unwrap_or_default())
    }

    /// What it is, by numbers of arch/x86/entry/syscalls/syscall_32.tbl and syscall_64.tbl; None if it neither opens nor
    /// names a file.
    #[inline(always)]
    pub(crate) fn known(self) -> Option<Known> {
        let (compat, number): (bool, u64) = (self.is_compat, read(self.registers, ORIG_AX));
        Some(match (compat, if compat { number } else { number & !X32 }) {
            (true, 5) | (false, 2) => (What::Open, Form::Name, Flags::Argument(1)),
            (true, 8) | (false, 85) => (What::Open, Form::Name, Flags::Creat),
            (true, 295) | (false, 257) => (What::Open, Form::At, Flags::Argument(2)),
            (_, 437) => (What::Open, Form::At, Flags::How),
            (true, 342) | (false, 304) => (What::Open, Form::Handle, Flags::Argument(2)),
            // truncate, and of 32 bits truncate64
            (true, 92 | 193) | (false, 76) => (What::Truncate, Form::Name, Flags::No),
            // unlink, rmdir, unlinkat
            (true, 10 | 40) | (false, 87 | 84) => (What::Delete, Form::Name, Flags::No),
            (true, 301) | (false, 263) => (What::Delete, Form::At, Flags::No),
            // rename, renameat, renameat2
            (true, 38) | (false, 82) => (What::Rename, Form::Pair, Flags::No),
            (true, 302) | (false, 264) => (What::Rename, Form::PairAt, Flags::No),
            (true, 353) | (false, 316) => (What::Rename, Form::PairAt, Flags::Argument(4)),
            (true, 9) | (false, 86) => (What::Link, Form::Pair, Flags::No),
            (true, 303) | (false, 265) => (What::Link, Form::PairAt, Flags::Argument(4)),
            _ => return None,
        })
    }
}
