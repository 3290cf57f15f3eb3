//! Calls that give a file another name, take one away, or open it by its handle.
//!
//! Three programs watch each: at its beginning what was asked for is the kernel's own copy (of a link only from 5.15 on),
//! and at its end that is freed; where the kernel asks its security modules, the file is found and still has its old name; only the end tells what came
//! of it. What they learn is kept by thread meanwhile. The kernel's own doings, and those of file servers in it, do not
//! begin with such a call.
use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use sensor_ebpf::{
    Call, Hook, Part, STATUS_REQUESTED_UNTRUSTED, Section,
    table::{ALL, CHANGE, WRITE},
};

use super::open::{AT_FDCWD, base, flag_chroot, put_dentry, put_file};
use crate::{
    filter,
    kernel::{
        Address, FILE_OPEN_ROOT_ARGS, FILENAME_NAME, LINK_NAMES_IN_USER, PATH_MNT, constant, is_error, read,
    },
    maps,
    path::{Depth, Place, put_above, put_base, put_path, put_target, root_of},
    record::{Builder, Kept, Room, Source, Start},
    task,
};

// match-proto: int do_renameat2(int olddfd, struct filename *from, int newdfd, struct filename *to, unsigned int flags)
// match-proto: int filename_renameat2(int olddfd, struct filename *from, int newdfd, struct filename *to, unsigned int flags)
#[fentry(function = "do_renameat2")]
fn do_renameat2_entry(ctx: FEntryContext) -> i32 {
    let (from, to): (u64, u64) = (ctx.arg(1), ctx.arg(3));
    let names = (Some(kernel_name(from)), Some(kernel_name(to)));
    enter(Hook::DoRenameat2, Call::Rename, ctx.arg(4), names, (ctx.arg(0), ctx.arg(2)))
}

// match-proto: int security_path_rename(const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry, unsigned int flags)
#[fentry(function = "security_path_rename")]
fn security_path_rename(ctx: FEntryContext) -> i32 {
    let (directory, dentry, other, new): (u64, u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    let place = (read(directory, constant(&PATH_MNT)), dentry);
    found(Hook::DoRenameat2, place, Some((read(other, constant(&PATH_MNT)), new)))
}

#[fexit(function = "do_renameat2")]
fn do_renameat2(ctx: FExitContext) -> i32 {
    leave(Hook::DoRenameat2, &ctx, 5, true)
}

// match-proto: int do_linkat(int olddfd, struct filename *old, int newdfd, struct filename *new, int flags)
// match-proto: int filename_linkat(int olddfd, struct filename *old, int newdfd, struct filename *new, int flags)
// match-proto: int do_linkat(int olddfd, const char *oldname, int newdfd, const char *newname, int flags)
#[fentry(function = "do_linkat")]
fn do_linkat_entry(ctx: FEntryContext) -> i32 {
    let (old, new): (u64, u64) = (ctx.arg(1), ctx.arg(3));
    let names = if constant(&LINK_NAMES_IN_USER) != 0 {
        (Some(Source::User(old)), Some(Source::User(new)))
    } else {
        (Some(kernel_name(old)), Some(kernel_name(new)))
    };
    enter(Hook::DoLinkat, Call::Link, ctx.arg(4), names, (ctx.arg(0), ctx.arg(2)))
}

// match-proto: int security_path_link(struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry)
#[fentry(function = "security_path_link")]
fn security_path_link(ctx: FEntryContext) -> i32 {
    let (dentry, directory, new): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // Both names are in one mount, or the call has failed before (-EXDEV).
    let vfsmount = read(directory, constant(&PATH_MNT));
    found(Hook::DoLinkat, (vfsmount, dentry), Some((vfsmount, new)))
}

#[fexit(function = "do_linkat")]
fn do_linkat(ctx: FExitContext) -> i32 {
    leave(Hook::DoLinkat, &ctx, 5, true)
}

// match-proto: int do_unlinkat(int dfd, struct filename *name)
// match-proto: int filename_unlinkat(int dfd, struct filename *name)
// match-proto: long do_unlinkat(int dfd, struct filename *name)
#[fentry(function = "do_unlinkat")]
fn do_unlinkat_entry(ctx: FEntryContext) -> i32 {
    enter(Hook::DoUnlinkat, Call::Delete, 0, (Some(kernel_name(ctx.arg(1))), None), (ctx.arg(0), 0))
}

// match-proto: int security_path_unlink(const struct path *dir, struct dentry *dentry)
#[fentry(function = "security_path_unlink")]
fn security_path_unlink(ctx: FEntryContext) -> i32 {
    let (directory, dentry): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    found(Hook::DoUnlinkat, (read(directory, constant(&PATH_MNT)), dentry), None)
}

#[fexit(function = "do_unlinkat")]
fn do_unlinkat(ctx: FExitContext) -> i32 {
    leave(Hook::DoUnlinkat, &ctx, 2, false)
}

// match-proto: int do_rmdir(int dfd, struct filename *name)
// match-proto: int filename_rmdir(int dfd, struct filename *name)
// match-proto: long do_rmdir(int dfd, struct filename *name)
#[fentry(function = "do_rmdir")]
fn do_rmdir_entry(ctx: FEntryContext) -> i32 {
    enter(Hook::DoRmdir, Call::Delete, 0, (Some(kernel_name(ctx.arg(1))), None), (ctx.arg(0), 0))
}

// match-proto: int security_path_rmdir(const struct path *dir, struct dentry *dentry)
#[fentry(function = "security_path_rmdir")]
fn security_path_rmdir(ctx: FEntryContext) -> i32 {
    let (directory, dentry): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    found(Hook::DoRmdir, (read(directory, constant(&PATH_MNT)), dentry), None)
}

#[fexit(function = "do_rmdir")]
fn do_rmdir(ctx: FExitContext) -> i32 {
    leave(Hook::DoRmdir, &ctx, 2, false)
}

// match-proto: long do_handle_open(int mountdirfd, struct file_handle *ufh, int open_flag)
#[fentry(function = "do_handle_open")]
fn do_handle_open_entry(ctx: FEntryContext) -> i32 {
    enter(Hook::DoHandleOpen, Call::Open, ctx.arg(2), (None, None), (AT_FDCWD, 0))
}

// match-proto: struct file *do_file_open_root(const struct path *root, const char *name, const struct open_flags *op)
// match-proto: struct file *do_file_open_root(struct dentry *dentry, struct vfsmount *mnt, const char *name, const struct open_flags *op)
#[fexit(function = "do_file_open_root")]
fn do_file_open_root(ctx: FExitContext) -> i32 {
    let returned = constant(&FILE_OPEN_ROOT_ARGS) * size_of::<u64>();
    let file: u64 = read(ctx.as_ptr() as u64, returned);
    if filter::is_foreign(Hook::DoHandleOpen, Part::Found)
        && !is_error(file)
        && let Some(mut record) = Builder::of_call(Hook::DoHandleOpen)
    {
        record.empty();
        let place = put_file(&mut record, Address, file);
        put_place(record, place, None);
    }
    0
}

#[fexit(function = "do_handle_open")]
fn do_handle_open(ctx: FExitContext) -> i32 {
    leave(Hook::DoHandleOpen, &ctx, 3, false)
}

/// The kernel's own copy of a name: a `struct filename *`.
#[inline(always)]
fn kernel_name(filename: u64) -> Source {
    Source::Kernel(read(filename, constant(&FILENAME_NAME)))
}

/// The call begins: keeps what it asks for.
#[inline(always)]
pub(super) fn enter(
    hook: Hook,
    call: Call,
    flags: u32,
    names: (Option<Source>, Option<Source>),
    dirfds: (i32, i32),
) -> i32 {
    if !filter::is_foreign(hook, Part::Entry) {
        return 0;
    }
    let classes = match call {
        Call::Rename | Call::Link | Call::Delete => CHANGE,
        Call::Truncate => WRITE,
        // By a handle, in which way is not known yet.
        Call::Open => ALL,
    };
    if !filter::wants_call(classes) {
        // What a call before has left must not be taken for this one's.
        maps::end_call();
        return 0;
    }
    let Some(mut record) = Builder::begin_call(hook) else { return 0 };
    let fields = record.record();
    (fields.call, fields.flags) = (call as u32, flags);
    let (from, to) = names;
    let kept = Kept {
        from: Start { dirfd: dirfds.0, first: put_name(record, from, Section::Requested) },
        to: Start { dirfd: dirfds.1, first: put_name(record, to, Section::TargetRequested) },
        ..Kept::default()
    };
    record.keep(kept);
    0
}

/// Appends a name, if there is one; returns its first byte.
#[inline(always)]
fn put_name(record: Builder, name: Option<Source>, section: Section) -> u32 {
    // A handle has no name.
    let Some(name) = name else { return 0 };
    if let Source::User(_) = name {
        record.flag(STATUS_REQUESTED_UNTRUSTED);
    }
    record.put_requested(name, section);
    name.first()
}

/// The call has found its file, and for its other name a place; what was asked for is the same by other letters. A call that
/// the kernel tries again finds it again.
#[inline(always)]
fn found(hook: Hook, place: Place, target: Option<Place>) -> i32 {
    if filter::is_foreign(hook, Part::Found)
        && let Some(mut record) = Builder::of_call(hook)
    {
        record.empty();
        put_dentry(&mut record, place.1);
        put_place(record, place, target);
    }
    0
}

#[inline(always)]
fn put_place(record: Builder, place: Place, target: Option<Place>) {
    flag_chroot(record);
    record.keep(Kept { root: root_of(place.0), target: target.unwrap_or_default(), ..record.kept() });
    put_path(record, place, Depth::Half, Room::First);
    put_above(record, record.kept().root, Room::First);
    if target.is_some() {
        put_target(record, record.kept().target);
    }
}

/// The call ends with what it returns after so many arguments: hands its record over. Of one that has found no file, what
/// was asked for is told, and the directories that it starts from.
#[inline(always)]
pub(super) fn leave(hook: Hook, ctx: &FExitContext, args: usize, pair: bool) -> i32 {
    if !filter::is_foreign(hook, Part::Exit) {
        return 0;
    }
    let Some(mut record) = Builder::of_call(hook) else { return 0 };
    if !filter::admits(hook) {
        maps::end_call();
        return 0;
    }
    let returned: i32 = read(ctx.as_ptr() as u64, args * size_of::<u64>());
    let fields = record.record();
    fields.result = returned.min(0);
    task::describe(&mut record.record().header, hook);
    if record.kept().root == 0 {
        flag_chroot(record);
        let Kept { from, .. } = record.kept();
        put_base(record, base(record, from), Section::Path, Room::AfterNames);
        if pair {
            let Kept { to, .. } = record.kept();
            put_base(record, base(record, to), Section::Target, Room::Last);
        }
    }
    record.submit();
    maps::end_call();
    0
}
