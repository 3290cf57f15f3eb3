//! The globals of `sensor-ebpf/src/kernel.rs` and the structure members that fill them.
use super::{Error, btf::Types};

/// Global, structure, and the names its member has had.
const MEMBERS: &[(&str, &str, &[&str])] = &[
    // 6.18 and later hold f_path in an unnamed union with __f_path.
    ("FILE_F_PATH", "file", &["f_path", "__f_path"]),
    ("FILE_F_INODE", "file", &["f_inode"]),
    ("FILE_F_FLAGS", "file", &["f_flags"]),
    ("FILE_F_MODE", "file", &["f_mode"]),
    ("PATH_MNT", "path", &["mnt"]),
    ("PATH_DENTRY", "path", &["dentry"]),
    ("DENTRY_D_PARENT", "dentry", &["d_parent"]),
    ("DENTRY_D_NAME", "dentry", &["d_name", "__d_name"]),
    ("DENTRY_D_HASH", "dentry", &["d_hash"]),
    ("DENTRY_D_FLAGS", "dentry", &["d_flags"]),
    ("DENTRY_D_INODE", "dentry", &["d_inode"]),
    // d_iname up to 6.13.
    ("DENTRY_D_INLINE", "dentry", &["d_shortname", "d_iname"]),
    ("DENTRY_D_SB", "dentry", &["d_sb"]),
    // In a union with others, which has no name of its own in newer kernels.
    ("DENTRY_D_RCU", "dentry", &["d_rcu", "d_u"]),
    ("INODE_I_INO", "inode", &["i_ino"]),
    ("INODE_I_MODE", "inode", &["i_mode"]),
    ("INODE_I_NLINK", "inode", &["i_nlink", "__i_nlink"]),
    ("INODE_I_SB", "inode", &["i_sb"]),
    ("SUPER_BLOCK_S_DEV", "super_block", &["s_dev"]),
    ("MOUNT_MNT", "mount", &["mnt"]),
    ("MOUNT_MNT_PARENT", "mount", &["mnt_parent"]),
    ("MOUNT_MNT_MOUNTPOINT", "mount", &["mnt_mountpoint"]),
    ("MOUNT_MNT_NS", "mount", &["mnt_ns"]),
    ("MOUNT_MNT_MOUNTS", "mount", &["mnt_mounts"]),
    ("MOUNT_MNT_CHILD", "mount", &["mnt_child"]),
    ("VFSMOUNT_MNT_ROOT", "vfsmount", &["mnt_root"]),
    ("TASK_FLAGS", "task_struct", &["flags"]),
    ("TASK_PID", "task_struct", &["pid"]),
    ("TASK_COMM", "task_struct", &["comm"]),
    ("TASK_THREAD_INFO", "task_struct", &["thread_info"]),
    // Others tell a 32-bit program by its registers.
    #[cfg(target_arch = "x86_64")]
    ("THREAD_INFO_STATUS", "thread_info", &["status"]),
    ("TASK_FILES", "task_struct", &["files"]),
    ("TASK_FS", "task_struct", &["fs"]),
    ("TASK_GROUP_LEADER", "task_struct", &["group_leader"]),
    ("TASK_START_BOOTTIME", "task_struct", &["start_boottime"]),
    ("TASK_NSPROXY", "task_struct", &["nsproxy"]),
    ("NSPROXY_MNT_NS", "nsproxy", &["mnt_ns"]),
    ("TASK_CRED", "task_struct", &["cred"]),
    ("CRED_UID", "cred", &["uid"]),
    ("CRED_USER_NS", "cred", &["user_ns"]),
    ("USER_NAMESPACE_NS", "user_namespace", &["ns"]),
    ("MNT_NAMESPACE_NS", "mnt_namespace", &["ns"]),
    ("MNT_NAMESPACE_ROOT", "mnt_namespace", &["root"]),
    ("MNT_NAMESPACE_EVENT", "mnt_namespace", &["event"]),
    ("TASK_TGID", "task_struct", &["tgid"]),
    ("TASK_THREAD_PID", "task_struct", &["thread_pid"]),
    ("TASK_SIGNAL", "task_struct", &["signal"]),
    ("TASK_CGROUPS", "task_struct", &["cgroups"]),
    ("TASK_MM", "task_struct", &["mm"]),
    ("SIGNAL_STRUCT_LIVE", "signal_struct", &["live"]),
    ("PID_LEVEL", "pid", &["level"]),
    ("PID_NUMBERS", "pid", &["numbers"]),
    ("UPID_NR", "upid", &["nr"]),
    ("UPID_NS", "upid", &["ns"]),
    ("PID_NAMESPACE_NS", "pid_namespace", &["ns"]),
    ("MM_EXE_FILE", "mm_struct", &["exe_file"]),
    ("MM_ARG_START", "mm_struct", &["arg_start"]),
    ("MM_ARG_END", "mm_struct", &["arg_end"]),
    ("BINPRM_FILE", "linux_binprm", &["file"]),
    ("BINPRM_FILENAME", "linux_binprm", &["filename"]),
    ("BINPRM_INTERP", "linux_binprm", &["interp"]),
    ("NS_COMMON_INUM", "ns_common", &["inum"]),
    ("CSS_SET_SUBSYS", "css_set", &["subsys"]),
    ("CSS_SET_DFL_CGRP", "css_set", &["dfl_cgrp"]),
    ("CSS_CGROUP", "cgroup_subsys_state", &["cgroup"]),
    ("CSS_PARENT", "cgroup_subsys_state", &["parent"]),
    ("CGROUP_SELF", "cgroup", &["self"]),
    ("CGROUP_KN", "cgroup", &["kn"]),
    ("CGROUP_ROOT", "cgroup", &["root"]),
    ("CGROUP_ROOT_HIERARCHY_ID", "cgroup_root", &["hierarchy_id"]),
    ("KERNFS_NODE_ID", "kernfs_node", &["id"]),
    ("KERNFS_NODE_NAME", "kernfs_node", &["name"]),
    ("FILES_STRUCT_FDT", "files_struct", &["fdt"]),
    ("FDTABLE_FD", "fdtable", &["fd"]),
    ("FDTABLE_MAX_FDS", "fdtable", &["max_fds"]),
    ("FS_STRUCT_ROOT", "fs_struct", &["root"]),
    ("FS_STRUCT_PWD", "fs_struct", &["pwd"]),
    ("FILENAME_NAME", "filename", &["name"]),
    ("OPEN_FLAGS_OPEN_FLAG", "open_flags", &["open_flag"]),
    ("OPEN_FLAGS_LOOKUP_FLAGS", "open_flags", &["lookup_flags"]),
];

/// Likewise; what such a member tells is unknown on kernels that lack it.
const OPTIONAL: &[(&str, &str, &[&str])] = &[("TASK_LOGINUID", "task_struct", &["loginuid"])];

/// The value of every global, for this kernel.
pub(super) fn look_up(types: &Types) -> Result<Vec<(&'static str, u32)>, Error> {
    let needed = MEMBERS.iter().map(|(global, structure, members)| {
        let offset = types.offset(structure, members);
        Ok((*global, offset.ok_or_else(|| Error::MissingMember(structure, members.join(" or ")))?))
    });
    let optional = OPTIONAL
        .iter()
        .filter_map(|(global, structure, members)| Some(Ok((*global, types.offset(structure, members)?))));
    needed.chain(optional).collect()
}
