//! truncate(2), which cuts a file and opens none.
//!
//! The function between the system call and this one is put into its callers by the compiler. So the file and what came of
//! it are told here, and a call that has not come by here when it ends has found no file.
use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use sensor_ebpf::{Call, Hook, Part, table::WRITE};

use super::{
    call::{enter, leave},
    open::{AT_FDCWD, begin, flag_chroot, put_dentry},
};
use crate::{
    arch::FIRST,
    filter,
    kernel::{Address, path_at, read},
    maps,
    path::{Depth, put_above, put_path, root_of},
    record::{Kept, Room, Source},
};

// match-proto: long vfs_truncate(const struct path *path, loff_t length)
// match-proto: int vfs_truncate(const struct path *path, loff_t length)
#[fexit(function = "vfs_truncate")]
fn vfs_truncate(ctx: FExitContext) -> i32 {
    if filter::is_foreign(Hook::VfsTruncate, Part::Exit) {
        maps::end_call();
        if filter::wants_call(WRITE) && filter::admits(Hook::VfsTruncate) {
            try_vfs_truncate(&ctx);
        }
    }
    0
}

#[inline(always)]
fn try_vfs_truncate(ctx: &FExitContext) -> Option<()> {
    let place = path_at(Address, ctx.arg(0), 0);
    let result: i32 = read(ctx.as_ptr() as u64, 2 * size_of::<u64>());
    let mut record = begin(Hook::VfsTruncate, Call::Truncate, 0, result)?;
    flag_chroot(record);
    put_dentry(&mut record, place.1);
    record.keep(Kept { root: root_of(place.0), ..Kept::default() });
    put_path(record, place, Depth::Whole, Room::Last);
    put_above(record, record.kept().root, Room::Last);
    record.submit();
    Some(())
}

// match-proto: long __x64_sys_truncate(const struct pt_regs *regs)
// match-proto: long __arm64_sys_truncate(const struct pt_regs *regs)
#[fentry(function = "__x64_sys_truncate")]
fn sys_truncate_entry(ctx: FEntryContext) -> i32 {
    let name = Source::User(read(ctx.arg(0), FIRST));
    enter(Hook::SysTruncate, Call::Truncate, 0, (Some(name), None), (AT_FDCWD, 0))
}

#[fexit(function = "__x64_sys_truncate")]
fn sys_truncate(ctx: FExitContext) -> i32 {
    leave(Hook::SysTruncate, &ctx, 1, false)
}
