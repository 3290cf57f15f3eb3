//! Who is running.
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, generated::bpf_get_current_task};
use sensor_ebpf::{Hook, RecordHeader};

use crate::kernel::{
    CGROUP_CONTROLLER, CRED_UID, CRED_USER_NS, CSS_CGROUP, CSS_SET_DFL_CGRP, CSS_SET_SUBSYS, FILE_F_INODE,
    INODE_I_INO, INODE_I_SB, MM_EXE_FILE, MNT_NAMESPACE_NS, NS_COMMON_INUM, NSPROXY_MNT_NS, PID_LEVEL,
    PID_NAMESPACE_NS, PID_NUMBERS, PROC_LEVEL, PROC_PID_NS, SUPER_BLOCK_S_DEV, TASK_CGROUPS, TASK_COMM, TASK_CRED,
    TASK_FLAGS, TASK_GROUP_LEADER, TASK_LOGINUID, TASK_MM, TASK_NSPROXY, TASK_PID, TASK_START_BOOTTIME, TASK_TGID,
    TASK_THREAD_PID, UPID_NR, UPID_NS, USER_NAMESPACE_NS, cgroup_id, constant, read,
};

/// In `task_struct.flags`: a worker of io_uring (include/linux/sched.h).
const PF_IO_WORKER: u32 = 0x10;

/// Address of the current `struct task_struct`.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Fills all of the header but the sequence number.
#[inline(always)]
pub(crate) fn describe(header: &mut RecordHeader, hook: Hook) {
    header.hook = hook as u16;
    // SAFETY: the helper has no preconditions.
    header.time_ns = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: as above.
    header.cpu = unsafe { bpf_get_smp_processor_id() };
    let task = current();
    header.cgroup_id = cgroup_of(task);
    let leader: u64 = read(task, constant(&TASK_GROUP_LEADER));
    header.start_ns = read(leader, constant(&TASK_START_BOOTTIME));
    number(header, task, leader);
    let cred: u64 = read(task, constant(&TASK_CRED));
    header.ids = read(cred, constant(&CRED_UID));
    let user_ns: u64 = read(cred, constant(&CRED_USER_NS));
    header.user_ns = inode_of_namespace(user_ns, constant(&USER_NAMESPACE_NS));
    // A kernel without auditing has no such member.
    header.login_uid = if constant(&TASK_LOGINUID) == 0 { u32::MAX } else { read(task, constant(&TASK_LOGINUID)) };
    let mm: u64 = read(task, constant(&TASK_MM));
    let exe: u64 = read(mm, constant(&MM_EXE_FILE));
    let inode: u64 = read(exe, constant(&FILE_F_INODE));
    header.exe_inode = read(inode, constant(&INODE_I_INO));
    let superblock: u64 = read(inode, constant(&INODE_I_SB));
    header.exe_device = read(superblock, constant(&SUPER_BLOCK_S_DEV));
    let nsproxy: u64 = read(task, constant(&TASK_NSPROXY));
    let mount_ns: u64 = read(nsproxy, constant(&NSPROXY_MNT_NS));
    header.mount_ns = inode_of_namespace(mount_ns, constant(&MNT_NAMESPACE_NS));
    // A worker of io_uring is a thread of its process (from 5.12 and 5.10.162 on) called iou-wrk; the process has a name.
    let flags: u32 = read(task, constant(&TASK_FLAGS));
    let named = if flags & PF_IO_WORKER != 0 { leader } else { task };
    header.comm = read(named, constant(&TASK_COMM));
}

/// Process and thread id in each numbering.
#[inline(always)]
fn number(header: &mut RecordHeader, task: u64, leader: u64) {
    header.initial_tgid = read(task, constant(&TASK_TGID));
    let pid: u64 = read(leader, constant(&TASK_THREAD_PID));
    let level: u32 = read(pid, constant(&PID_LEVEL));
    let (own, namespace) = upid(pid, level as usize);
    header.own_tgid = own;
    header.pid_ns = inode_of_namespace(namespace, constant(&PID_NAMESPACE_NS));
    if constant(&PROC_LEVEL) == 0 {
        header.tgid = header.initial_tgid;
        header.pid = read(task, constant(&TASK_PID));
    } else {
        let thread: u64 = read(task, constant(&TASK_THREAD_PID));
        header.tgid = in_proc(pid);
        header.pid = in_proc(thread);
    }
}

/// The number that the sensor's /proc shows for `pid`, a `struct pid *`; zero if it shows none.
#[inline(always)]
pub(crate) fn in_proc(pid: u64) -> u32 {
    let level: u32 = read(pid, constant(&PID_LEVEL));
    let (number, namespace) = upid(pid, constant(&PROC_LEVEL));
    let shown = level as usize >= constant(&PROC_LEVEL)
        && inode_of_namespace(namespace, constant(&PID_NAMESPACE_NS)) as usize == constant(&PROC_PID_NS);
    if shown { number } else { 0 }
}

/// Number and namespace of `pid` at a level: an element of `numbers[]`, `struct upid` (include/linux/pid.h).
#[inline(always)]
fn upid(pid: u64, level: usize) -> (u32, u64) {
    const SIZE: usize = 16;
    let at = constant(&PID_NUMBERS) + (level & 0x3f) * SIZE;
    (read(pid, at + constant(&UPID_NR)), read(pid, at + constant(&UPID_NS)))
}

#[inline(always)]
fn inode_of_namespace(namespace: u64, common: usize) -> u32 {
    read(namespace, common + constant(&NS_COMMON_INUM))
}

/// Id of the task's cgroup in the hierarchy that tells containers apart.
#[inline(always)]
fn cgroup_of(task: u64) -> u64 {
    let set: u64 = read(task, constant(&TASK_CGROUPS));
    let controller = constant(&CGROUP_CONTROLLER);
    if controller == 0 {
        return cgroup_id(read(set, constant(&CSS_SET_DFL_CGRP)));
    }
    // task_css() of include/linux/cgroup.h.
    let state: u64 = read(set, constant(&CSS_SET_SUBSYS) + (controller - 1) * size_of::<u64>());
    cgroup_id(read(state, constant(&CSS_CGROUP)))
}
