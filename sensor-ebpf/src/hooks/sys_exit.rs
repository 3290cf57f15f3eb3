//! Opens by system call, on kernels that refuse fexit: the file behind the returned descriptor.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{Hook, STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_REQUESTED_UNTRUSTED};

use super::open::{AT_FDCWD, base, begin, file_of, put_file};
use crate::{
    filter,
    kernel::{FILE_F_FLAGS, TASK_THREAD_INFO, THREAD_INFO_STATUS, constant, read, read_user},
    path::put_path,
    record::{Builder, Kept, Source},
    task,
};

/// Members of x86_64's `struct pt_regs` (arch/x86/include/asm/ptrace.h) that hold a system call's number and its
/// first arguments.
const ORIG_AX: usize = 120;
const NATIVE: [usize; 3] = [112, 104, 96]; // di, si, dx
const COMPAT: [usize; 3] = [40, 88, 96]; // bx, cx, dx

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

/// The system calls that open files.
enum Kind {
    Open,
    Creat,
    Openat,
    Openat2,
    OpenByHandleAt,
}

/// What an open-like system call was asked for.
struct Call {
    dirfd: i32,
    name: u64,
    flags: u32,
}

// match-proto: void sys_exit(struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    if filter::wanted() {
        try_sys_exit(&ctx);
    }
    0
}

#[inline(always)]
fn try_sys_exit(ctx: &BtfTracePointContext) -> Option<()> {
    let regs: u64 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let call = open_call(regs)?;
    // Zero also when another thread closed the descriptor before the call returned: the name is all there is then.
    let file = if result < 0 { 0 } else { file_of(result as u32) };
    let kept: u32 = read(file, constant(&FILE_F_FLAGS));
    let flags = if file == 0 { call.flags } else { kept | call.flags & FORGOTTEN };
    let mut record = begin(Hook::SysExit, flags, result.min(0) as i32)?;
    let place = if file == 0 {
        base(&mut record, Source::User(call.name), call.dirfd)
    } else {
        record.flag(STATUS_FD_RACE_POSSIBLE);
        put_file(&mut record, file)
    };
    record.keep(Kept { file, name: call.name, result });
    put_path(record, place);
    finish(record);
    Some(())
}

/// After the walk: says whether the descriptor is still the same, and adds the requested name where it is needed.
#[inline(always)]
fn finish(record: Builder) {
    record.end_path();
    let Kept { file, name, result } = record.kept();
    let replaced = result >= 0 && (file == 0 || file_of(result as u32) != file);
    if replaced {
        // What was read may be another file's, or of no file any more: the name that was asked for goes with it.
        record.flag(STATUS_FD_REPLACED);
    }
    if replaced || file == 0 {
        record.flag(STATUS_REQUESTED_UNTRUSTED);
        record.put_requested(Source::User(name));
    }
    record.submit();
}

/// The arguments of an open-like call; None for every other call.
#[inline(always)]
fn open_call(regs: u64) -> Option<Call> {
    let number: u64 = read(regs, ORIG_AX);
    let status: u32 = read(task::current(), constant(&TASK_THREAD_INFO) + constant(&THREAD_INFO_STATUS));
    let compat = status & TS_COMPAT != 0;
    // Numbers of arch/x86/entry/syscalls/syscall_32.tbl and syscall_64.tbl.
    let kind = match (compat, if compat { number } else { number & !X32 }) {
        (true, 5) | (false, 2) => Kind::Open,
        (true, 8) | (false, 85) => Kind::Creat,
        (true, 295) | (false, 257) => Kind::Openat,
        (_, 437) => Kind::Openat2,
        (true, 342) | (false, 304) => Kind::OpenByHandleAt,
        _ => return None,
    };
    let [first, second, third] = if compat { COMPAT } else { NATIVE };
    let (first, second, third): (u64, u64, u64) = (read(regs, first), read(regs, second), read(regs, third));
    // The kernel ignores a flag that it does not know from user space; here 0x20 would be its own mark of an exec.
    let known = |flags: u64| flags as u32 & !FMODE_EXEC;
    Some(match kind {
        Kind::Open => Call { dirfd: AT_FDCWD, name: first, flags: known(second) },
        Kind::Creat => Call { dirfd: AT_FDCWD, name: first, flags: CREAT },
        Kind::Openat => Call { dirfd: first as i32, name: second, flags: known(third) },
        // The flags are the first word of `struct open_how`. The process may have changed it since; what the open
        // really did is in `f_flags` and `f_mode`.
        Kind::Openat2 => Call { dirfd: first as i32, name: second, flags: known(read_user(third)) },
        Kind::OpenByHandleAt => Call { dirfd: AT_FDCWD, name: 0, flags: known(third) },
    })
}
