//! Who is running.
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_task_btf, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns,
    generated::bpf_get_current_task,
};
use sensor_ebpf::{Hook, RecordHeader};

use crate::kernel::{
    Address, CGROUP_CONTROLLER, CRED_UID, CRED_USER_NS, CSS_CGROUP, CSS_SET_DFL_CGRP, CSS_SET_SUBSYS,
    FILE_F_INODE, HAS_TASK_BTF, INODE_I_INO, INODE_I_SB, MM_EXE_FILE, MNT_NAMESPACE_NS, MNT_NAMESPACE_ROOT,
    MOUNT_MNT, Memory, NS_COMMON_INUM, NSPROXY_MNT_NS, PID_LEVEL, PID_NAMESPACE_NS, PID_NUMBERS, PROC_LEVEL,
    PROC_PID_NS, SUPER_BLOCK_S_DEV, TASK_CGROUPS, TASK_COMM, TASK_CRED, TASK_FLAGS, TASK_GROUP_LEADER,
    TASK_LOGINUID, TASK_MM, TASK_NSPROXY, TASK_PID, TASK_START_BOOTTIME, TASK_TGID, TASK_THREAD_PID, Typed,
    UPID_NR, UPID_NS, USER_NAMESPACE_NS, VFSMOUNT_MNT_ROOT, cgroup_id, constant, load, read,
};

/// In `task_struct.flags`: a worker of io_uring (include/linux/sched.h).
const PF_IO_WORKER: u32 = 0x10;

/// Address of the current `struct task_struct`.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// The same as the verifier knows it, which only kernels of [`HAS_TASK_BTF`] have.
#[inline(always)]
pub(crate) fn typed() -> u64 {
    // SAFETY: the helper takes nothing and returns the task that runs.
    unsafe { bpf_get_current_task_btf() as u64 }
}

/// The current task's mount namespace, a `struct mnt_namespace *`.
#[inline(always)]
pub(crate) fn mount_namespace() -> u64 {
    if constant(&HAS_TASK_BTF) != 0 {
        load(load(typed(), constant(&TASK_NSPROXY)), constant(&NSPROXY_MNT_NS))
    } else {
        read(read(current(), constant(&TASK_NSPROXY)), constant(&NSPROXY_MNT_NS))
    }
}

/// The mount at the bottom of its tree, a `struct mount *`, and the root dentry of that.
#[inline(always)]
pub(crate) fn bottom() -> (u64, u64) {
    let root = constant(&MOUNT_MNT) + constant(&VFSMOUNT_MNT_ROOT);
    if constant(&HAS_TASK_BTF) != 0 {
        let bottom = load(mount_namespace(), constant(&MNT_NAMESPACE_ROOT));
        (bottom, load(bottom, root))
    } else {
        let bottom = read(mount_namespace(), constant(&MNT_NAMESPACE_ROOT));
        (bottom, read(bottom, root))
    }
}

/// Fills all of the header but the sequence number.
#[inline(always)]
pub(crate) fn describe(header: &mut RecordHeader, hook: Hook) {
    header.hook = hook as u16;
    // SAFETY: the helper has no preconditions.
    header.time_ns = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: as above.
    header.cpu = unsafe { bpf_get_smp_processor_id() };
    if constant(&HAS_TASK_BTF) != 0 {
        describe_task(header, Typed, typed());
    } else {
        describe_task(header, Address, current());
    }
}

#[inline(always)]
fn describe_task<M: Memory>(header: &mut RecordHeader, by: M, task: u64) {
    header.cgroup_id = cgroup_of(by, task);
    let leader: u64 = by.get(task, constant(&TASK_GROUP_LEADER));
    header.start_ns = by.get(leader, constant(&TASK_START_BOOTTIME));
    number(header, by, task, leader);
    put_credentials(header, by, task);
    put_program(header, by, task);
    header.mount_ns = inode_of_namespace(by, mount_namespace(), constant(&MNT_NAMESPACE_NS));
    // A worker of io_uring is a thread of its process (from 5.12 and 5.10.162 on) called iou-wrk; the process has a name.
    let flags: u32 = by.get(task, constant(&TASK_FLAGS));
    put_comm(header, by, if flags & PF_IO_WORKER != 0 { leader } else { task });
}

#[inline(always)]
fn put_credentials<M: Memory>(header: &mut RecordHeader, by: M, task: u64) {
    let cred: u64 = by.get(task, constant(&TASK_CRED));
    if M::TYPED {
        // Each is a structure of its own to the verifier.
        let ids = header.ids.iter_mut().enumerate();
        ids.for_each(|(at, id)| *id = by.get(cred, constant(&CRED_UID) + at * size_of::<u32>()));
    } else {
        header.ids = by.get(cred, constant(&CRED_UID));
    }
    let user_ns: u64 = by.get(cred, constant(&CRED_USER_NS));
    header.user_ns = inode_of_namespace(by, user_ns, constant(&USER_NAMESPACE_NS));
    // A kernel without auditing has no such member.
    header.login_uid =
        if constant(&TASK_LOGINUID) == 0 { u32::MAX } else { by.get(task, constant(&TASK_LOGINUID)) };
}

/// Threads of the kernel have no memory, and memory no program at its end.
#[inline(always)]
fn put_program<M: Memory>(header: &mut RecordHeader, by: M, task: u64) {
    let mm: u64 = by.get(task, constant(&TASK_MM));
    let exe: u64 = if mm == 0 { 0 } else { by.get(mm, constant(&MM_EXE_FILE)) };
    if exe == 0 {
        return;
    }
    let inode: u64 = by.get(exe, constant(&FILE_F_INODE));
    header.exe_inode = by.get(inode, constant(&INODE_I_INO));
    let superblock: u64 = by.get(inode, constant(&INODE_I_SB));
    header.exe_device = by.get(superblock, constant(&SUPER_BLOCK_S_DEV));
}

#[inline(always)]
fn put_comm<M: Memory>(header: &mut RecordHeader, by: M, task: u64) {
    for (word, to) in header.comm.chunks_exact_mut(8).enumerate() {
        let name: u64 = by.get(task, constant(&TASK_COMM) + 8 * word);
        to.copy_from_slice(&name.to_ne_bytes());
    }
}

/// Process and thread id in each numbering.
#[inline(always)]
fn number<M: Memory>(header: &mut RecordHeader, by: M, task: u64, leader: u64) {
    header.initial_tgid = by.get(task, constant(&TASK_TGID));
    let pid: u64 = by.get(leader, constant(&TASK_THREAD_PID));
    let level: u32 = by.get(pid, constant(&PID_LEVEL));
    if level == 0 {
        let numbers = constant(&PID_NUMBERS);
        header.own_tgid = by.get(pid, numbers + constant(&UPID_NR));
        let namespace = by.get(pid, numbers + constant(&UPID_NS));
        header.pid_ns = inode_of_namespace(by, namespace, constant(&PID_NAMESPACE_NS));
    } else {
        let (own, namespace) = upid(pid, level as usize);
        header.own_tgid = own;
        header.pid_ns = inode_of_namespace(Address, namespace, constant(&PID_NAMESPACE_NS));
    }
    if constant(&PROC_LEVEL) == 0 {
        header.tgid = header.initial_tgid;
        header.pid = by.get(task, constant(&TASK_PID));
    } else {
        let thread: u64 = by.get(task, constant(&TASK_THREAD_PID));
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
        && inode_of_namespace(Address, namespace, constant(&PID_NAMESPACE_NS)) as usize == constant(&PROC_PID_NS);
    if shown { number } else { 0 }
}

/// Number and namespace of `pid` at a level: an element of `numbers[]`, `struct upid` (include/linux/pid.h).
#[inline(always)]
fn upid(pid: u64, level: usize) -> (u32, u64) {
    const SIZE: usize = 16;
    let at = constant(&PID_NUMBERS) + (level & 0x3f) * SIZE;
    if constant(&UPID_NR) == 0 && constant(&UPID_NS) == 8 {
        let [number, namespace]: [u64; 2] = read(pid, at);
        return (number as u32, namespace);
    }
    (read(pid, at + constant(&UPID_NR)), read(pid, at + constant(&UPID_NS)))
}

#[inline(always)]
fn inode_of_namespace<M: Memory>(by: M, namespace: u64, common: usize) -> u32 {
    by.get(namespace, common + constant(&NS_COMMON_INUM))
}

/// Id of the current task's cgroup in the hierarchy that tells containers apart.
#[inline(always)]
pub(crate) fn cgroup() -> u64 {
    if constant(&HAS_TASK_BTF) != 0 { cgroup_of(Typed, typed()) } else { cgroup_of(Address, current()) }
}

/// The same where that takes a dozen instructions.
#[inline(always)]
pub(crate) fn cgroup_at_once() -> Option<u64> {
    if constant(&HAS_TASK_BTF) != 0 {
        Some(cgroup_of(Typed, typed()))
    } else if constant(&CGROUP_CONTROLLER) == 0 {
        // SAFETY: the helper has no preconditions.
        Some(unsafe { bpf_get_current_cgroup_id() })
    } else {
        None
    }
}

/// That of a task.
#[inline(always)]
pub(crate) fn cgroup_of<M: Memory>(by: M, task: u64) -> u64 {
    let set: u64 = by.get(task, constant(&TASK_CGROUPS));
    let controller = constant(&CGROUP_CONTROLLER);
    if controller == 0 {
        return cgroup_id(by, by.get(set, constant(&CSS_SET_DFL_CGRP)));
    }
    // task_css() of include/linux/cgroup.h.
    let state: u64 = by.get(set, constant(&CSS_SET_SUBSYS) + (controller - 1) * size_of::<u64>());
    cgroup_id(by, by.get(state, constant(&CSS_CGROUP)))
}
