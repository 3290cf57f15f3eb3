//! Who runs what: programs as they are executed, and who made whom.
//!
//! Exceptions depend on both, and /proc tells neither of a process that has ended.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{ForkRecord, Hook, Loss};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::open::{begin, put_file};
use crate::{
    filter,
    kernel::{BINPRM_FILE, TASK_START_BOOTTIME, TASK_TGID, constant, read},
    maps::{EVENTS, count_loss, next_sequence},
    path::put_path,
    task,
};

// match-proto: void sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    if filter::wanted() {
        try_sched_process_exec(&ctx);
    }
    0
}

#[inline(always)]
fn try_sched_process_exec(ctx: &BtfTracePointContext) -> Option<()> {
    let bprm: u64 = ctx.arg(2);
    let mut record = begin(Hook::SchedProcessExec, 0, 0)?;
    // What runs from here on; of a script, its interpreter.
    let place = put_file(&mut record, read(bprm, constant(&BINPRM_FILE)));
    put_path(record, place);
    record.end_path();
    record.submit();
    Some(())
}

// match-proto: void sched_process_fork(struct task_struct *parent, struct task_struct *child)
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    if filter::wanted() {
        try_sched_process_fork(&ctx);
    }
    0
}

#[inline(always)]
fn try_sched_process_fork(ctx: &BtfTracePointContext) {
    let child: u64 = ctx.arg(1);
    let mut record = ForkRecord::new_zeroed();
    task::describe(&mut record.header, Hook::SchedProcessFork);
    record.child = read(child, constant(&TASK_TGID));
    // A thread is no new process.
    if record.child == record.header.tgid {
        return;
    }
    record.child_start_ns = read(child, constant(&TASK_START_BOOTTIME));
    record.header.sequence = next_sequence(Hook::SchedProcessFork);
    if EVENTS.output::<[u8]>(record.as_bytes(), 0).is_err() {
        count_loss(Hook::SchedProcessFork, Loss::RingFull);
    }
}
