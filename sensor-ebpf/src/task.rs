//! Who is running.
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_smp_processor_id,
    bpf_ktime_get_boot_ns,
    generated::{bpf_get_current_comm, bpf_get_current_task},
};
use sensor_ebpf::{Hook, RecordHeader};

use crate::kernel::{
    CRED_EUID, CRED_USER_NS, FILE_F_INODE, INODE_I_INO, INODE_I_SB, MM_EXE_FILE, MNT_NAMESPACE_NS, NS_COMMON_INUM,
    NSPROXY_MNT_NS, SUPER_BLOCK_S_DEV, TASK_CRED, TASK_GROUP_LEADER, TASK_MM, TASK_NSPROXY, TASK_START_BOOTTIME,
    USER_NAMESPACE_NS, constant, read,
};

/// Address of the current `struct task_struct`.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Fills all of the header but the sequence number.
#[inline(always)]
pub(crate) fn describe(header: &mut RecordHeader, hook: Hook) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let uid_gid = bpf_get_current_uid_gid();
    header.tgid = (pid_tgid >> 32) as u32;
    header.pid = pid_tgid as u32;
    header.uid = uid_gid as u32;
    header.gid = (uid_gid >> 32) as u32;
    header.hook = hook as u16;
    // SAFETY: the helper has no preconditions.
    header.time_ns = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: as above.
    header.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: as above.
    header.cpu = unsafe { bpf_get_smp_processor_id() };
    let leader: u64 = read(current(), constant(&TASK_GROUP_LEADER));
    let cred: u64 = read(current(), constant(&TASK_CRED));
    header.euid = read(cred, constant(&CRED_EUID));
    let user_ns: u64 = read(cred, constant(&CRED_USER_NS));
    header.user_ns = read(user_ns, constant(&USER_NAMESPACE_NS) + constant(&NS_COMMON_INUM));
    let mm: u64 = read(current(), constant(&TASK_MM));
    let exe: u64 = read(mm, constant(&MM_EXE_FILE));
    let inode: u64 = read(exe, constant(&FILE_F_INODE));
    header.exe_inode = read(inode, constant(&INODE_I_INO));
    let superblock: u64 = read(inode, constant(&INODE_I_SB));
    header.exe_device = read(superblock, constant(&SUPER_BLOCK_S_DEV));
    let nsproxy: u64 = read(current(), constant(&TASK_NSPROXY));
    let mount_ns: u64 = read(nsproxy, constant(&NSPROXY_MNT_NS));
    header.mount_ns = read(mount_ns, constant(&MNT_NAMESPACE_NS) + constant(&NS_COMMON_INUM));
    header.start_ns = read(leader, constant(&TASK_START_BOOTTIME));
    // SAFETY: the helper writes at most the size that it is given.
    unsafe { bpf_get_current_comm(header.comm.as_mut_ptr().cast(), size_of_val(&header.comm) as u32) };
}
