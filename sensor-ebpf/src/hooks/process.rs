//! Who runs what: programs as they are executed, who made whom, and who has ended.
//!
//! Exceptions depend on it, and /proc tells nothing of a process that has ended.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{Call, ForkRecord, Hook, Loss, Part, RecordHeader, Section};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::open::{begin, flag_chroot, put_file};
use crate::{
    filter,
    kernel::{
        Address, BINPRM_FILE, BINPRM_FILENAME, BINPRM_INTERP, MM_ARG_END, MM_ARG_START, PROC_LEVEL,
        SIGNAL_STRUCT_LIVE, TASK_GROUP_LEADER, TASK_MM, TASK_SIGNAL, TASK_START_BOOTTIME, TASK_TGID,
        TASK_THREAD_PID, constant, read,
    },
    maps::{self, EVENTS, count_loss, next_sequence},
    path::{Depth, put_cwd, put_path},
    record::{Builder, Kept, Room, Source},
    task,
};

// match-proto: void sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    if filter::is_foreign(Hook::SchedProcessExec, Part::Exit) && maps::has_room(Hook::SchedProcessExec) {
        try_sched_process_exec(&ctx);
    }
    0
}

#[inline(always)]
fn try_sched_process_exec(ctx: &BtfTracePointContext) -> Option<()> {
    let bprm: u64 = ctx.arg(2);
    let mut record = begin(Hook::SchedProcessExec, Call::Open, 0, 0)?;
    // What runs from here on; of a script, its interpreter.
    let place = put_file(&mut record, Address, read(bprm, constant(&BINPRM_FILE)));
    flag_chroot(record);
    record.keep(Kept { file: bprm, ..Kept::default() });
    put_path(record, place, Depth::Whole, Room::First);
    add_details(record);
    record.submit();
    Some(())
}

/// After the walk: of a script its name, and the working directory and the arguments, before the program can change them.
#[inline(always)]
fn add_details(record: Builder) {
    let bprm = record.kept().file;
    // An interpreter was put in the place of what was asked for (bprm_change_interp(), fs/exec.c).
    let filename: u64 = read(bprm, constant(&BINPRM_FILENAME));
    if filename != read::<u64>(bprm, constant(&BINPRM_INTERP)) {
        record.put_requested(Source::Kernel(filename), Section::Requested);
    }
    put_cwd(record);
    let mm: u64 = read(task::current(), constant(&TASK_MM));
    record.put_args(read(mm, constant(&MM_ARG_START)), read(mm, constant(&MM_ARG_END)));
}

// match-proto: void sched_process_fork(struct task_struct *parent, struct task_struct *child)
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // A child may be made in another cgroup (CLONE_INTO_CGROUP); it does not run yet.
    filter::migrates(task::cgroup(), task::cgroup_of(Address, ctx.arg(1)));
    if filter::is_foreign(Hook::SchedProcessFork, Part::Exit) {
        try_sched_process_fork(&ctx);
    }
    0
}

#[inline(always)]
fn try_sched_process_fork(ctx: &BtfTracePointContext) {
    let child: u64 = ctx.arg(1);
    let mut record = ForkRecord::new_zeroed();
    record.initial_child = read(child, constant(&TASK_TGID));
    task::describe(&mut record.header, Hook::SchedProcessFork);
    // A thread is no new process.
    if record.initial_child == record.header.initial_tgid {
        return;
    }
    if !maps::has_room(Hook::SchedProcessFork) {
        return;
    }
    record.child = record.initial_child;
    if constant(&PROC_LEVEL) != 0 {
        let leader: u64 = read(child, constant(&TASK_GROUP_LEADER));
        record.child = task::in_proc(read(leader, constant(&TASK_THREAD_PID)));
    }
    record.child_start_ns = read(child, constant(&TASK_START_BOOTTIME));
    record.header.sequence = next_sequence(Hook::SchedProcessFork);
    if EVENTS.output::<[u8]>(record.as_bytes(), 0).is_err() {
        count_loss(Hook::SchedProcessFork, Loss::RingFull);
    }
}

// match-proto: void sched_process_exit(struct task_struct *p)
// match-proto: void sched_process_exit(struct task_struct *p, bool group_dead)
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(_: BtfTracePointContext) -> i32 {
    // If the kernel skipped the program at its end.
    maps::end_call();
    let signal: u64 = read(task::current(), constant(&TASK_SIGNAL));
    // Each thread comes by here, after it was taken off this number (do_exit(), kernel/exit.c).
    let live: u32 = read(signal, constant(&SIGNAL_STRUCT_LIVE));
    if live == 0 && maps::has_room(Hook::SchedProcessExit) {
        let mut header = RecordHeader::new_zeroed();
        task::describe(&mut header, Hook::SchedProcessExit);
        header.sequence = next_sequence(Hook::SchedProcessExit);
        if EVENTS.output::<[u8]>(header.as_bytes(), 0).is_err() {
            count_loss(Hook::SchedProcessExit, Loss::RingFull);
        }
    }
    0
}
