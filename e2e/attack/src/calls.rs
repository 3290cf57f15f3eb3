//! Opens that are no open(2): handles, programs, truncate(2), calls of 32 bits, descriptors that come from elsewhere.
use std::{fs, os::unix::fs::PermissionsExt as _};

use libc::{AT_FDCWD, O_RDONLY};

use crate::{
    Failed, Stage,
    names::{fails, nobody},
    sys::{self, Result, at, c, must, opened, raw, to},
};

/// A file handle with room for any (open_by_handle_at(2)).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn handle_of(stage: &Stage) -> Result<Handle> {
    let (mut handle, mut mount) = (Handle { bytes: 128, kind: 0, handle: [0; 128] }, 0i32);
    let name = c(&stage.secret);
    let arguments = [AT_FDCWD as usize, name.as_ptr() as usize, to(&mut handle), to(&mut mount), 0, 0];
    must("name_to_handle_at", libc::SYS_name_to_handle_at, arguments)?;
    Ok(handle)
}

pub(crate) fn by_handle(stage: &Stage) -> Result {
    let handle = handle_of(stage)?;
    let mount = opened(AT_FDCWD, &stage.dir, O_RDONLY)?;
    let arguments = [mount as usize, at(&handle), O_RDONLY as usize, 0, 0, 0];
    stage.act(|| must("open_by_handle_at", libc::SYS_open_by_handle_at, arguments)).map(drop)
}

pub(crate) fn by_stale_handle(stage: &Stage) -> Result {
    let handle = handle_of(stage)?;
    let mount = opened(AT_FDCWD, &stage.dir, O_RDONLY)?;
    nobody(stage)?;
    let arguments = [mount as usize, at(&handle), O_RDONLY as usize, 0, 0, 0];
    fails(stage.act(|| raw(libc::SYS_open_by_handle_at, arguments)), libc::EPERM)
}

/// What the kernel knows this machine by (elf(5)), and `exit(0)` for it.
#[cfg(target_arch = "x86_64")]
const MACHINE: (u64, &[u8]) = (62, b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05"); // mov eax, 60; xor edi, edi; syscall
#[cfg(target_arch = "aarch64")]
const MACHINE: (u64, &[u8]) = (183, b"\xa8\x0b\x80\xd2\x00\x00\x80\xd2\x01\x00\x00\xd4"); // mov x8, #93; mov x0, #0; svc #0

/// The smallest program there is: header, one segment, and its code. It opens nothing.
fn program() -> Vec<u8> {
    let (machine, code) = MACHINE;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    let mut put = |value: u64, len: usize| bytes.extend(value.to_le_bytes().iter().take(len));
    // Type, machine, version, entry, and where the segment's header is; flags, sizes and counts.
    [
        (2, 2),
        (machine, 2),
        (1, 4),
        (0x40_0078, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (64, 2),
        (0, 2),
        (0, 2),
    ]
    .into_iter()
    .for_each(|(value, len)| put(value, len));
    // The segment: all of the file, to be read and run.
    let size = 120 + code.len() as u64;
    [(1, 4), (5, 4), (0, 8), (0x40_0000, 8), (0x40_0000, 8), (size, 8), (size, 8), (4096, 8)]
        .into_iter()
        .for_each(|(value, len)| put(value, len));
    bytes.extend(code);
    bytes
}

pub(crate) fn executed(stage: &Stage) -> Result {
    let io = |why: std::io::Error| Failed(why.to_string());
    fs::write(&stage.secret, program()).map_err(io)?;
    fs::set_permissions(&stage.secret, fs::Permissions::from_mode(0o755)).map_err(io)?;
    let name = c(&stage.secret);
    let (arguments, nothing) = ([name.as_ptr(), std::ptr::null()], [std::ptr::null::<u8>()]);
    stage.act(|| {
        let child = sys::fork()?;
        if child == 0 {
            raw(libc::SYS_execve, [name.as_ptr() as usize, at(&arguments), at(&nothing), 0, 0, 0]).ok();
            sys::exit(127);
        }
        let status = sys::wait(child);
        if status == 0 { Ok(()) } else { Err(Failed(format!("the program ended with status {status:#x}"))) }
    })
}

pub(crate) fn truncated(stage: &Stage) -> Result {
    let name = c(&stage.secret);
    stage.act(|| must("truncate", libc::SYS_truncate, [name.as_ptr() as usize, 0, 0, 0, 0, 0])).map(drop)
}

pub(crate) fn truncated_missing(stage: &Stage) -> Result {
    let name = c(&stage.secret);
    fails(stage.act(|| raw(libc::SYS_truncate, [name.as_ptr() as usize, 0, 0, 0, 0, 0])), libc::ENOENT)
}

pub(crate) fn truncated_denied(stage: &Stage) -> Result {
    let name = c(&stage.secret);
    nobody(stage)?;
    fails(stage.act(|| raw(libc::SYS_truncate, [name.as_ptr() as usize, 0, 0, 0, 0, 0])), libc::EACCES)
}

/// open(2) as a 32-bit program calls it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn of_32_bits(stage: &Stage) -> Result {
    let low = 0x2000_0000usize;
    let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let flags = (kind | libc::MAP_FIXED_NOREPLACE) as usize;
    raw(libc::SYS_mmap, [low, 4096, protection as usize, flags, usize::MAX, 0])
        .map_err(|errno| Failed(format!("mmap: errno {errno}")))?;
    let name = c(&stage.secret);
    let bytes = name.as_bytes_with_nul();
    // SAFETY: the page was mapped above, is ours alone and longer than the name.
    unsafe { (low as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    let mut result = 5u32;
    stage.act(|| {
        // SAFETY: the call reads a NUL-terminated name and changes nothing of ours; rbx, which the compiler keeps for
        // itself, is put back.
        unsafe {
            std::arch::asm!(
                "push rbx", "mov ebx, {name:e}", "int 0x80", "pop rbx",
                name = in(reg) low as u32, inout("eax") result, in("ecx") 0, in("edx") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
    });
    if result as i32 == -libc::ENOSYS {
        return Err(Failed("this kernel has no system calls of 32 bits".to_owned()));
    }
    if (result as i32) < 0 { Err(Failed(format!("errno {}", -(result as i32)))) } else { Ok(()) }
}

/// Only x86_64 lets a program of 64 bits make a call of 32.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn of_32_bits(_: &Stage) -> Result {
    Err(Failed("on this machine, programs of 64 bits make no calls of 32".to_owned()))
}

/// A message with one descriptor (cmsg(3)): length, level, type, and the descriptor.
#[repr(C)]
struct Message {
    len: usize,
    level: i32,
    kind: i32,
    fd: i32,
    padding: i32,
}

fn exchange(number: i64, socket: i32, message: &mut Message) -> Result {
    let mut byte = [0u8; 1];
    let vector = [to(&mut byte), 1];
    // struct msghdr
    let mut header = [0, 0, at(&vector), 1, to(message), size_of::<Message>(), 0];
    must("a message", number, [socket as usize, to(&mut header), 0, 0, 0, 0]).map(drop)
}

pub(crate) fn send(socket: i32, fd: i32) -> Result {
    let mut message = Message { len: 20, level: libc::SOL_SOCKET, kind: libc::SCM_RIGHTS, fd, padding: 0 };
    exchange(libc::SYS_sendmsg, socket, &mut message)
}

pub(crate) fn receive(socket: i32) -> Result<i32> {
    let mut message = Message { len: 0, level: 0, kind: 0, fd: -1, padding: 0 };
    exchange(libc::SYS_recvmsg, socket, &mut message)?;
    Ok(message.fd)
}
