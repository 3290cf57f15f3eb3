//! What all hooks make of an open file, and of an open that failed.
use sensor_ebpf::{Call, Hook, Loss, STATUS_CHROOT, STATUS_DELETED, STATUS_PATH_IS_BASE};

use crate::{
    kernel::{
        Address, DENTRY_D_HASH, DENTRY_D_INODE, DENTRY_D_PARENT, FDTABLE_FD, FDTABLE_MAX_FDS, FILE_F_INODE,
        FILE_F_MODE, FILE_F_PATH, FILES_STRUCT_FDT, FS_STRUCT_PWD, FS_STRUCT_ROOT, INODE_I_INO, INODE_I_MODE,
        INODE_I_NLINK, INODE_I_SB, Memory, SUPER_BLOCK_S_DEV, TASK_FILES, TASK_FS, constant, path_at, read,
    },
    maps::{count_loss, next_sequence},
    path::{Place, is_chrooted},
    record::{Builder, Start},
    task,
};

/// `AT_FDCWD` of include/uapi/linux/fcntl.h.
pub(super) const AT_FDCWD: i32 = -100;

/// Starts a record and says who caused it.
#[inline(always)]
pub(super) fn begin(hook: Hook, call: Call, flags: u32, result: i32) -> Option<Builder> {
    let Some(mut record) = Builder::new(hook) else {
        next_sequence(hook);
        count_loss(hook, Loss::Unreadable);
        return None;
    };
    task::describe(&mut record.record().header, hook);
    let fields = record.record();
    (fields.call, fields.flags, fields.result) = (call as u32, flags, result);
    Some(record)
}

/// Says whether the task has another root directory than its mount namespace.
#[inline(always)]
pub(super) fn flag_chroot(record: Builder) {
    if is_chrooted() {
        record.flag(STATUS_CHROOT);
    }
}

/// Adds what `file`, a `struct file *`, is; returns where it stands.
#[inline(always)]
pub(super) fn put_file<M: Memory>(record: &mut Builder, by: M, file: u64) -> Place {
    let place = path_at(by, file, constant(&FILE_F_PATH));
    record.record().mode = by.get(file, constant(&FILE_F_MODE));
    put_inode(record, by, by.get(file, constant(&FILE_F_INODE)), place.1);
    place
}

/// Adds what the file of `dentry` is.
#[inline(always)]
pub(super) fn put_dentry(record: &mut Builder, dentry: u64) {
    put_inode(record, Address, read(dentry, constant(&DENTRY_D_INODE)), dentry);
}

#[inline(always)]
fn put_inode<M: Memory>(record: &mut Builder, by: M, inode: u64, dentry: u64) {
    let superblock: u64 = by.get(inode, constant(&INODE_I_SB));
    let fields = record.record();
    fields.inode = by.get(inode, constant(&INODE_I_INO));
    fields.inode_mode = by.get::<u16>(inode, constant(&INODE_I_MODE)) as u32;
    fields.links = by.get(inode, constant(&INODE_I_NLINK));
    fields.device = by.get(superblock, constant(&SUPER_BLOCK_S_DEV));
    let no_links = fields.links == 0;
    // d_unlinked() of include/linux/dcache.h: `d_hash.pprev`, the second word, is NULL, and it is no root.
    let pprev: u64 = by.get(dentry, constant(&DENTRY_D_HASH) + 8);
    let parent: u64 = by.get(dentry, constant(&DENTRY_D_PARENT));
    if no_links || pprev == 0 && parent != dentry {
        record.flag(STATUS_DELETED);
    }
}

/// Where a requested name starts from: the task's root for an absolute name, else its working directory or the
/// directory behind `dirfd`.
#[inline(always)]
pub(super) fn base(record: Builder, Start { dirfd, first }: Start) -> Place {
    record.flag(STATUS_PATH_IS_BASE);
    let fs: u64 = read(task::current(), constant(&TASK_FS));
    if first == b'/' as u32 {
        path_at(Address, fs, constant(&FS_STRUCT_ROOT))
    } else if dirfd == AT_FDCWD {
        path_at(Address, fs, constant(&FS_STRUCT_PWD))
    } else {
        path_at(Address, file_of(dirfd as u32), constant(&FILE_F_PATH))
    }
}

/// The `struct file *` behind a descriptor of the current task; zero when there is none.
#[inline(always)]
pub(super) fn file_of(descriptor: u32) -> u64 {
    let files: u64 = read(task::current(), constant(&TASK_FILES));
    let table: u64 = read(files, constant(&FILES_STRUCT_FDT));
    let max: u32 = read(table, constant(&FDTABLE_MAX_FDS));
    if descriptor >= max {
        return 0;
    }
    let array: u64 = read(table, constant(&FDTABLE_FD));
    read(array, descriptor as usize * 8)
}
