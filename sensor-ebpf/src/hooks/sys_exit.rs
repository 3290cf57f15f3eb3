//! System calls as they return, on kernels that refuse fexit: the file behind the descriptor of an open, and the names
//! that other calls were passed.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{
    Call as What, Hook, Part, STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_REQUESTED_UNTRUSTED, Section,
};

use super::open::{AT_FDCWD, base, begin, file_of, flag_chroot, put_file};
use crate::{
    arch::{Flags, Form, SystemCall},
    filter,
    kernel::{Address, FILE_F_FLAGS, constant, read, read_user},
    path::{Depth, put_above, put_base, put_path, root_of},
    record::{Builder, Kept, Room, Source, Start},
};

/// Flags of open(2) that `f_flags` forgets after the open: O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC.
const FORGOTTEN: u32 = 0o1700;
/// `__FMODE_EXEC` of include/linux/fs.h.
const FMODE_EXEC: u32 = 0x20;
/// What creat(2) stands for: O_CREAT | O_WRONLY | O_TRUNC.
const CREAT: u32 = 0o1101;

/// What a system call was asked for.
#[derive(Clone, Copy)]
struct Call {
    what: What,
    dirfd: i32,
    name: u64,
    flags: u32,
    /// Directory and address of the other name of a rename or link.
    target: (i32, u64),
}

// match-proto: void sys_exit(struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    if filter::is_foreign(Hook::SysExit, Part::Exit) {
        try_sys_exit(&ctx);
    }
    0
}

#[inline(always)]
fn try_sys_exit(ctx: &BtfTracePointContext) -> Option<()> {
    let regs: u64 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let call = call(regs)?;
    if !filter::admits(Hook::SysExit) {
        return None;
    }
    let opened = call.what as u32 == What::Open as u32 && result >= 0;
    // Zero also when another thread closed the descriptor before the call returned: the name is all there is then.
    let file = if opened { file_of(result as u32) } else { 0 };
    let kept: u32 = read(file, constant(&FILE_F_FLAGS));
    let flags = if file == 0 { call.flags } else { kept | call.flags & FORGOTTEN };
    let mut record = begin(Hook::SysExit, call.what, flags, result.min(0) as i32)?;
    flag_chroot(record);
    let from = Start { dirfd: call.dirfd, first: Source::User(call.name).first() };
    let place = if file == 0 {
        base(record, from)
    } else {
        record.flag(STATUS_FD_RACE_POSSIBLE);
        put_file(&mut record, Address, file)
    };
    let (dirfd, name) = call.target;
    let to = Start { dirfd, first: Source::User(name).first() };
    let root = root_of(place.0);
    let result = if opened { result } else { -1 };
    record.keep(Kept { file, name: call.name, other: name, result, root, from, to, ..Kept::default() });
    // Of a file there is its path; else there are names to come.
    if file != 0 {
        put_path(record, place, Depth::Whole, Room::Last);
    } else {
        put_base(record, place, Section::Path, Room::First);
    }
    finish(record);
    Some(())
}

/// After the walk: says whether the descriptor is still the same, and adds the names where they are needed.
#[inline(always)]
fn finish(record: Builder) {
    let Kept { file, name, other, result, root, to, .. } = record.kept();
    if file != 0 {
        put_above(record, root, Room::Last);
    }
    let replaced = result >= 0 && (file == 0 || file_of(result as u32) != file);
    if replaced {
        // What was read may be another file's, or of no file any more: the name that was asked for goes with it.
        record.flag(STATUS_FD_REPLACED);
    }
    // A handle has no name.
    if name != 0 && (replaced || file == 0) {
        record.flag(STATUS_REQUESTED_UNTRUSTED);
        record.put_requested(Source::User(name), Section::Requested);
    }
    if other != 0 {
        put_base(record, base(record, to), Section::Target, Room::Last);
        record.put_requested(Source::User(other), Section::TargetRequested);
    }
    record.submit();
}

/// The arguments of a call that opens or names files; None for every other call.
#[inline(always)]
fn call(registers: u64) -> Option<Call> {
    let call = SystemCall::of(registers);
    let (what, form, flags) = call.known()?;
    let below = form == Form::At || form == Form::PairAt;
    let target = match form {
        Form::Pair => (AT_FDCWD, call.argument(1)),
        Form::PairAt => (call.argument(2) as i32, call.argument(3)),
        Form::Name | Form::At | Form::Handle => (0, 0),
    };
    let flags = match flags {
        Flags::No => 0,
        Flags::Argument(at) => call.argument(at) as u32,
        Flags::Creat => CREAT,
        Flags::How => read_user::<u64>(call.argument(2)) as u32,
    };
    Some(Call {
        what,
        dirfd: if below { call.argument(0) as i32 } else { AT_FDCWD },
        name: if form == Form::Handle { 0 } else { call.argument(usize::from(below)) },
        // The kernel ignores a flag that it does not know from user space; here 0x20 would be its own mark of an exec.
        flags: flags & !FMODE_EXEC,
        target,
    })
}
