//! Everything that outlives one run of a program.
use aya_ebpf::{
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use sensor_ebpf::{HOOKS, Hook, LOSSES as LOSS_REASONS, Loss};

use crate::record::Scratch;

/// Records on their way to user space. The loader sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Records given up, by `hook * LOSS_REASONS + reason`. Each program adds only to slots of its own, so that
/// another program that interrupts it on the same CPU cannot swallow an increment.
#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries((HOOKS * LOSS_REASONS) as u32, 0);

/// Last sequence number given out, by hook; one slot a program for the same reason.
#[map]
static SEQUENCES: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS as u32, 0);

// One scratch a program: programs run with preemption on, and another program may run in the middle of this
// one on the same CPU. The same program cannot: the kernel skips it (5.12 and later) or disables preemption.
#[map]
static SCRATCH_DO_FILP_OPEN: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_SYS_EXIT: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[map]
static SCRATCH_SCHED_PROCESS_EXEC: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

pub(crate) fn scratch(hook: Hook) -> Option<*mut Scratch> {
    match hook {
        Hook::DoFilpOpen => SCRATCH_DO_FILP_OPEN.get_ptr_mut(0),
        Hook::SysExit => SCRATCH_SYS_EXIT.get_ptr_mut(0),
        Hook::SchedProcessExec => SCRATCH_SCHED_PROCESS_EXEC.get_ptr_mut(0),
        // Their records are small, and stand on the stack or in the ring.
        Hook::SchedProcessFork | Hook::SchedProcessExit | Hook::CgroupMkdir | Hook::CgroupRmdir => None,
    }
}

/// Counts a record that was numbered and cannot be handed over.
pub(crate) fn count_loss(hook: Hook, reason: Loss) {
    let slot = hook as u32 * LOSS_REASONS as u32 + reason as u32;
    if let Some(count) = LOSSES.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot of this program; nobody else writes it.
        unsafe { *count += 1 };
    }
}

/// The next sequence number of `hook` on this CPU, from 1.
pub(crate) fn next_sequence(hook: Hook) -> u64 {
    let Some(last) = SEQUENCES.get_ptr_mut(hook as u32) else { return 0 };
    // SAFETY: this CPU's slot of this program; nobody else writes it.
    let last = unsafe { &mut *last };
    *last += 1;
    *last
}
