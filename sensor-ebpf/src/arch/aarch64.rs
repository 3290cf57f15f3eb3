//! arm64, with programs of 32 bits.
use sensor_ebpf::Call as What;

use super::{Flags, Form, Known};
use crate::kernel::read;

/// The first argument of a system call that begins, in `struct pt_regs` (arch/arm64/include/asm/ptrace.h): `regs[0]`.
pub(crate) const FIRST: usize = 0;

/// Its members that hold a call's first arguments when it returns: `orig_x0`, since `regs[0]` has the result, and `regs[1]` to
/// `regs[4]`. They are the same for programs of 32 bits.
const ARGUMENTS: [usize; 5] = [272, 8, 16, 24, 32];
/// `syscallno`, a 32-bit number.
const NUMBER: usize = 280;

/// The saved state of the process, and that it was running 32-bit instructions (arch/arm64/include/uapi/asm/ptrace.h).
const PSTATE: usize = 264;
const MODE32: u64 = 0x10;

/// A system call that returns.
#[derive(Clone, Copy)]
pub(crate) struct SystemCall {
    registers: u64,
}

impl SystemCall {
    /// The call that has these registers, a `struct pt_regs *`.
    #[inline(always)]
    pub(crate) fn of(registers: u64) -> Self {
        Self { registers }
    }

    /// Its argument of that number, counted from zero.
    #[inline(always)]
    pub(crate) fn argument(self, at: usize) -> u64 {
        let argument: u64 = read(self.registers, ARGUMENTS.get(at).copied().unwrap_or_default());
        // A program of 32 bits has no upper half.
        if self.is_compat() { argument & 0xffff_ffff } else { argument }
    }

    #[inline(always)]
    fn is_compat(self) -> bool {
        read::<u64>(self.registers, PSTATE) & MODE32 != 0
    }

    /// What it is, by numbers of include/uapi/asm-generic/unistd.h and arch/arm/tools/syscall.tbl; None if it neither opens
    /// nor names a file.
    #[inline(always)]
    pub(crate) fn known(self) -> Option<Known> {
        let number: u32 = read(self.registers, NUMBER);
        Some(match (self.is_compat(), number) {
            (true, 5) => (What::Open, Form::Name, Flags::Argument(1)),
            (true, 8) => (What::Open, Form::Name, Flags::Creat),
            (true, 322) | (false, 56) => (What::Open, Form::At, Flags::Argument(2)),
            (_, 437) => (What::Open, Form::At, Flags::How),
            (true, 371) | (false, 265) => (What::Open, Form::Handle, Flags::Argument(2)),
            // truncate, and of 32 bits truncate64
            (true, 92 | 193) | (false, 45) => (What::Truncate, Form::Name, Flags::No),
            // unlink, rmdir, unlinkat
            (true, 10 | 40) => (What::Delete, Form::Name, Flags::No),
            (true, 328) | (false, 35) => (What::Delete, Form::At, Flags::No),
            // rename, renameat, renameat2
            (true, 38) => (What::Rename, Form::Pair, Flags::No),
            (true, 329) | (false, 38) => (What::Rename, Form::PairAt, Flags::No),
            (true, 382) | (false, 276) => (What::Rename, Form::PairAt, Flags::Argument(4)),
            (true, 9) => (What::Link, Form::Pair, Flags::No),
            (true, 330) | (false, 37) => (What::Link, Form::PairAt, Flags::Argument(4)),
            _ => return None,
        })
    }
}
