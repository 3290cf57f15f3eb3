//! Cgroups as they come and go: their names tell containers, and one that lived a second is not in any file any more.
use aya_ebpf::{
    macros::{btf_tracepoint, fentry},
    programs::{BtfTracePointContext, FEntryContext},
};
use sensor_ebpf::{CgroupRecord, Hook, Loss};

use crate::{
    filter,
    kernel::{
        Address, CGROUP_HIERARCHY, CGROUP_KN, CGROUP_ROOT, CGROUP_ROOT_HIERARCHY_ID, CGROUP_SELF, CSS_CGROUP,
        CSS_PARENT, KERNFS_NODE_NAME, cgroup_id, constant, read, read_text,
    },
    maps::{self, EVENTS, count_loss, next_sequence},
    task,
};

// match-proto: void cgroup_mkdir(struct cgroup *cgrp, const char *path)
#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    try_cgroup(ctx.arg(0), Hook::CgroupMkdir);
    0
}

// match-proto: void cgroup_rmdir(struct cgroup *cgrp, const char *path)
#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    try_cgroup(ctx.arg(0), Hook::CgroupRmdir);
    // Each hierarchy numbers its own.
    if is_ours(ctx.arg(0)) {
        maps::forget_stray(cgroup_id(Address, ctx.arg(0)));
    }
    0
}

// Before they go: nothing that they open there is judged by that place alone. The kernel has one such move at a time (cgroup_mutex),
// and no run of this program is skipped.
// match-proto: int cgroup_attach_task(struct cgroup *dst_cgrp, struct task_struct *leader, bool threadgroup)
#[fentry(function = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: FEntryContext) -> i32 {
    let to: u64 = ctx.arg(0);
    if is_ours(to) {
        filter::migrates(task::cgroup_of(Address, ctx.arg(1)), cgroup_id(Address, to));
    }
    0
}

/// Whether a cgroup is in the hierarchy that tells containers apart.
#[inline(always)]
fn is_ours(cgroup: u64) -> bool {
    let root: u64 = read(cgroup, constant(&CGROUP_ROOT));
    let hierarchy: u32 = read(root, constant(&CGROUP_ROOT_HIERARCHY_ID));
    hierarchy as usize == constant(&CGROUP_HIERARCHY)
}

/// The path that the tracepoint passes is cut at 1,023 bytes (`TRACE_CGROUP_PATH_LEN`, kernel/cgroup/cgroup-internal.h),
/// so name and parent are reported, and user space puts paths together.
#[inline(always)]
fn try_cgroup(cgroup: u64, hook: Hook) {
    if !is_ours(cgroup) {
        return;
    }
    let sequence = next_sequence(hook);
    let Some(mut entry) = EVENTS.reserve::<CgroupRecord>(0) else {
        return count_loss(hook, Loss::RingFull);
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the ring gave room for one record; all-zero bytes are one.
    unsafe { core::ptr::write_bytes(record, 0, 1) };
    // SAFETY: as above, and the room is this run's alone until it is submitted.
    let record = unsafe { &mut *record };
    task::describe(&mut record.header, hook);
    record.header.sequence = sequence;
    record.id = cgroup_id(Address, cgroup);
    let above: u64 = read(cgroup, constant(&CGROUP_SELF) + constant(&CSS_PARENT));
    record.parent = cgroup_id(Address, read(above, constant(&CSS_CGROUP)));
    let node: u64 = read(cgroup, constant(&CGROUP_KN));
    read_text(read(node, constant(&KERNFS_NODE_NAME)), &mut record.name);
    entry.submit(0);
}
