//! System calls as they return, on kernels that refuse fexit: the file behind the descriptor of an open, and the names
//! that other calls were passed.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{
    Call as What, Hook, Part, STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_REQUESTED_UNTRUSTED, Section,
};

use super::open::{AT_FDCWD, base, begin, file_of, flag_chroot, put_file};
use crate::{
    filter,
    kernel::{FILE_F_FLAGS, TASK_THREAD_INFO, THREAD_INFO_STATUS, constant, read, read_user},
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
    if filter::wanted(Hook::SysExit, Part::Exit) {
        try_sys_exit(&ctx);
    }
    0
}

#[inline(always)]
fn try_sys_exit(ctx: &BtfTracePointContext) -> Option<()> {
    let regs: u64 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let call = call(regs)?;
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
        put_file(&mut record, file)
    };
    let (dirfd, name) = call.target;
    let to = Start { dirfd, first: Source::User(name).first() };
    let root = root_of(place.0);
    let result = if opened { result } else { -1 };
    record.keep(Kept { file, name: call.name, other: name, result, root, from, to, ..Kept::default() });
    // Of a file there is its path; else there are names to come.
    if record.kept().file != 0 {
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
fn call(regs: u64) -> Option<Call> {
    let number: u64 = read(regs, ORIG_AX);
    let status: u32 = read(task::current(), constant(&TASK_THREAD_INFO) + constant(&THREAD_INFO_STATUS));
    let compat = status & TS_COMPAT != 0;
    let registers = if compat { COMPAT } else { NATIVE };
    let argument = |at: usize| -> u64 { read(regs, registers[at]) };
    // The kernel ignores a flag that it does not know from user space; here 0x20 would be its own mark of an exec.
    let known = |flags: u64| flags as u32 & !FMODE_EXEC;
    let plain = |what, dirfd: u64, name: u64, flags: u32| {
        Some(Call { what, dirfd: dirfd as i32, name, flags, target: (0, 0) })
    };
    let two = |what, dirfd: u64, name: u64, other: u64, target: u64, flags: u64| {
        Some(Call { what, dirfd: dirfd as i32, name, flags: flags as u32, target: (other as i32, target) })
    };
    const CWD: u64 = AT_FDCWD as u64;
    // Numbers of arch/x86/entry/syscalls/syscall_32.tbl and syscall_64.tbl.
    match (compat, if compat { number } else { number & !X32 }) {
        // open, creat, openat, openat2, open_by_handle_at
        (true, 5) | (false, 2) => plain(What::Open, CWD, argument(0), known(argument(1))),
        (true, 8) | (false, 85) => plain(What::Open, CWD, argument(0), CREAT),
        (true, 295) | (false, 257) => plain(What::Open, argument(0), argument(1), known(argument(2))),
        // The flags are the first word of `struct open_how`. The process may have changed it since; what the open
        // really did is in `f_flags` and `f_mode`.
        (_, 437) => plain(What::Open, argument(0), argument(1), known(read_user(argument(2)))),
        (true, 342) | (false, 304) => plain(What::Open, CWD, 0, known(argument(2))),
        // truncate, and of 32 bits truncate64
        (true, 92 | 193) | (false, 76) => plain(What::Truncate, CWD, argument(0), 0),
        // unlink, rmdir, unlinkat
        (true, 10 | 40) | (false, 87 | 84) => plain(What::Delete, CWD, argument(0), 0),
        (true, 301) | (false, 263) => plain(What::Delete, argument(0), argument(1), 0),
        // rename, renameat, renameat2
        (true, 38) | (false, 82) => two(What::Rename, CWD, argument(0), CWD, argument(1), 0),
        (true, 302) | (false, 264) => two(What::Rename, argument(0), argument(1), argument(2), argument(3), 0),
        (true, 353) | (false, 316) => {
            two(What::Rename, argument(0), argument(1), argument(2), argument(3), argument(4))
        }
        // link, linkat
        (true, 9) | (false, 86) => two(What::Link, CWD, argument(0), CWD, argument(1), 0),
        (true, 303) | (false, 265) => {
            two(What::Link, argument(0), argument(1), argument(2), argument(3), argument(4))
        }
        _ => None,
    }
}
