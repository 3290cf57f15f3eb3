//! Cgroups as they come and go: their names tell containers, and one that lived a second is not in any file any more.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{CgroupRecord, Hook, Loss};

use crate::{
    kernel::{
        Address, CGROUP_HIERARCHY, CGROUP_KN, CGROUP_ROOT, CGROUP_ROOT_HIERARCHY_ID, CGROUP_SELF, CSS_CGROUP,
        CSS_PARENT, KERNFS_NODE_NAME, cgroup_id, constant, read, read_text,
    },
    maps::{EVENTS, count_loss, next_sequence},
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
    0
}

/// The path that the tracepoint passes is cut at 1,023 bytes (`TRACE_CGROUP_PATH_LEN`, kernel/cgroup/cgroup-internal.h),
/// so name and parent are reported, and user space puts paths together.
#[inline(always)]
fn try_cgroup(cgroup: u64, hook: Hook) {
    let root: u64 = read(cgroup, constant(&CGROUP_ROOT));
    let hierarchy: u32 = read(root, constant(&CGROUP_ROOT_HIERARCHY_ID));
    if hierarchy as usize != constant(&CGROUP_HIERARCHY) {
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
