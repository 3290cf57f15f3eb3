//! Who the sensor is: it may live in a pid namespace in which it does not learn its own number in the initial one.
use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};

use crate::{
    kernel::{PID_LEVEL, TASK_GROUP_LEADER, TASK_THREAD_PID, constant, read},
    task,
};

/// Process id in the initial pid namespace, and the depth of the namespace that it lives in.
#[map]
static WHOAMI: Array<[u32; 2]> = Array::with_max_entries(1, 0);

/// Attached to nothing: the loader runs it, once, in its own process.
#[raw_tracepoint]
fn whoami(_: RawTracePointContext) -> i32 {
    let leader: u64 = read(task::current(), constant(&TASK_GROUP_LEADER));
    let pid: u64 = read(leader, constant(&TASK_THREAD_PID));
    let tgid = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
    WHOAMI.set(0, [tgid, read(pid, constant(&PID_LEVEL))], 0).is_ok().into()
}
