//! Opens by system call, on kernels that refuse fexit: the file behind the returned descriptor.
use aya_ebpf::{helpers::generated::bpf_probe_read_user, macros::btf_tracepoint, programs::BtfTracePointContext};
use sensor_ebpf::{Hook, Loss, STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_REQUESTED_UNTRUSTED};

use super::open::{begin, file_of, put_file, put_requested};
use crate::{
    filter,
    kernel::{FILE_F_FLAGS, constant, read},
    maps::count_loss,
    path::put_path,
    record::Source,
};

/// Members of x86_64's `struct pt_regs` (arch/x86/include/asm/ptrace.h) that hold a system call's arguments.
const DI: usize = 112;
const SI: usize = 104;
const DX: usize = 96;
const ORIG_AX: usize = 120;

/// Flags of open(2) that `f_flags` forgets after the open: O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC.
const FORGOTTEN: u32 = 0o1700;
/// What creat(2) stands for: O_CREAT | O_WRONLY | O_TRUNC.
const CREAT: u32 = 0o1101;
/// `AT_FDCWD`, for calls that take no directory.
const CWD: i32 = -100;

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
    let file = if result < 0 { 0 } else { file_of(result as u32) };
    if result >= 0 && file == 0 {
        // Another thread closed the descriptor before the call returned.
        count_loss(Hook::SysExit, Loss::Unreadable);
        return None;
    }
    let kept: u32 = read(file, constant(&FILE_F_FLAGS));
    let flags = if file == 0 { call.flags } else { kept | call.flags & FORGOTTEN };
    let mut record = begin(Hook::SysExit, flags, result.min(0) as i32)?;
    let place = if file == 0 {
        record.flag(STATUS_REQUESTED_UNTRUSTED);
        put_requested(record, Source::User(call.name), call.dirfd)
    } else {
        record.flag(STATUS_FD_RACE_POSSIBLE);
        put_file(&mut record, file)
    };
    put_path(record, place);
    if file != 0 && file_of(result as u32) != file {
        record.flag(STATUS_FD_REPLACED);
    }
    record.submit();
    Some(())
}

/// The arguments of an open-like call; None for every other call.
#[inline(always)]
fn open_call(regs: u64) -> Option<Call> {
    let number: u64 = read(regs, ORIG_AX);
    // Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
    match number {
        // open(name, flags)
        2 => Some(Call { dirfd: CWD, name: read(regs, DI), flags: read(regs, SI) }),
        // creat(name)
        85 => Some(Call { dirfd: CWD, name: read(regs, DI), flags: CREAT }),
        // openat(dirfd, name, flags)
        257 => Some(Call { dirfd: read(regs, DI), name: read(regs, SI), flags: read(regs, DX) }),
        // openat2(dirfd, name, struct open_how *)
        437 => Some(Call { dirfd: read(regs, DI), name: read(regs, SI), flags: user_word(read(regs, DX)) }),
        // open_by_handle_at(mount_fd, handle, flags)
        304 => Some(Call { dirfd: CWD, name: 0, flags: read(regs, DX) }),
        _ => None,
    }
}

/// First word of `struct open_how`, its flags. The process may have changed it since; what the open really did
/// is in `f_flags` and `f_mode`.
#[inline(always)]
fn user_word(address: u64) -> u32 {
    let mut word = 0u32;
    // SAFETY: the helper checks the address and writes four bytes.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 4, address as *const _) };
    word
}
