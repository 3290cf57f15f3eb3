//! System calls as they return, on kernels that refuse fexit: the file behind the descriptor of an open, and the names
//! that other calls were passed.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{
    Call as What, Hook, Part, STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_REQUESTED_UNTRUSTED, Section,
};

use super::open::{AT_FDCWD, base, begin, file_of, flag_chroot, put_file};
use crate::{
    filter,
    kernel::{Address, FILE_F_FLAGS, TASK_THREAD_INFO, THREAD_INFO_STATUS, constant, read, read_user},
    path::{Depth, put_above, put_base, put_path, root_of},
    record::{Builder, Kept, Room, Source, Start},
    task,
};

/// Members of x86_64's `struct pt_regs` (arch/x86/include/asm/ptrace.h) that hold a system call's number and its
/// first arguments.
const ORIG_AX: usize = 120;
const NATIVE: [usize; 5] = [112, 104, 96, 56, 72]; // di, si, dx, r10, r8
const COMPAT: [usize; 5] = [40, 88, 96, 104, 112]; // bx, cx, dx, si, di

/// In `thread_info.status`: this is a 32-bit system call (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;
/// In the number of a system call of the x32 ABI, which otherwise numbers these calls as x86_64 does.
const X32: u64 = 0x4000_0000;

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

/// Where a call has its arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A name.
    Name,
    /// A directory's descriptor and a name below it.
    At,
    /// Two names.
    Pair,
    /// Two names, each below a descriptor.
    PairAt,
    /// A handle.
    Handle,
}

/// Where a call has its flags.
#[derive(Clone, Copy)]
enum Flags {
    No,
    Argument(usize),
    /// As creat(2) has them.
    Creat,
    /// In the first word of `struct open_how`. The process may have changed it since; what the open really did is in
    /// `f_flags` and `f_mode`.
    How,
}

/// What a call is, by numbers of arch/x86/entry/syscalls/syscall_32.tbl and syscall_64.tbl.
#[inline(always)]
fn known(compat: bool, number: u64) -> Option<(What, Form, Flags)> {
    Some(match (compat, if compat { number } else { number & !X32 }) {
        (true, 5) | (false, 2) => (What::Open, Form::Name, Flags::Argument(1)),
        (true, 8) | (false, 85) => (What::Open, Form::Name, Flags::Creat),
        (true, 295) | (false, 257) => (What::Open, Form::At, Flags::Argument(2)),
        (_, 437) => (What::Open, Form::At, Flags::How),
        (true, 342) | (false, 304) => (What::Open, Form::Handle, Flags::Argument(2)),
        // truncate, and of 32 bits truncate64
        (true, 92 | 193) | (false, 76) => (What::Truncate, Form::Name, Flags::No),
        // unlink, rmdir, unlinkat
        (true, 10 | 40) | (false, 87 | 84) => (What::Delete, Form::Name, Flags::No),
        (true, 301) | (false, 263) => (What::Delete, Form::At, Flags::No),
        // rename, renameat, renameat2
        (true, 38) | (false, 82) => (What::Rename, Form::Pair, Flags::No),
        (true, 302) | (false, 264) => (What::Rename, Form::PairAt, Flags::No),
        (true, 353) | (false, 316) => (What::Rename, Form::PairAt, Flags::Argument(4)),
        (true, 9) | (false, 86) => (What::Link, Form::Pair, Flags::No),
        (true, 303) | (false, 265) => (What::Link, Form::PairAt, Flags::Argument(4)),
        _ => return None,
    })
}

/// The arguments of a call that opens or names files; None for every other call.
#[inline(always)]
fn call(regs: u64) -> Option<Call> {
    let status: u32 = read(task::current(), constant(&TASK_THREAD_INFO) + constant(&THREAD_INFO_STATUS));
    let compat = status & TS_COMPAT != 0;
    let (what, form, flags) = known(compat, read(regs, ORIG_AX))?;
    let registers = if compat { COMPAT } else { NATIVE };
    let argument = |at: usize| -> u64 { read(regs, registers.get(at).copied().unwrap_or_default()) };
    let below = form == Form::At || form == Form::PairAt;
    let target = match form {
        Form::Pair => (AT_FDCWD, argument(1)),
        Form::PairAt => (argument(2) as i32, argument(3)),
        Form::Name | Form::At | Form::Handle => (0, 0),
    };
    let flags = match flags {
        Flags::No => 0,
        Flags::Argument(at) => argument(at) as u32,
        Flags::Creat => CREAT,
        Flags::How => read_user::<u64>(argument(2)) as u32,
    };
    Some(Call {
        what,
        dirfd: if below { argument(0) as i32 } else { AT_FDCWD },
        name: if form == Form::Handle { 0 } else { argument(usize::from(below)) },
        // The kernel ignores a flag that it does not know from user space; here 0x20 would be its own mark of an exec.
        flags: flags & !FMODE_EXEC,
        target,
    })
}
