//! Programs of a few instructions: those that do nothing are a measure for those that do something, and one puts into a ring
//! what nobody can read.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya::Btf;
use aya_obj::btf::BtfKind;

/// From `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PROG_TYPE_TRACING: u32 = 26;

/// Where in a function.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum At {
    /// `BPF_TRACE_FENTRY`.
    Entry = 24,
    /// `BPF_TRACE_FEXIT`.
    Return = 25,
}

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[derive(Default)]
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// The same for BPF_RAW_TRACEPOINT_OPEN.
#[derive(Default)]
#[repr(C)]
struct Open {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

/// The same for BPF_PROG_TEST_RUN.
#[derive(Default)]
#[repr(C)]
struct Run {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

fn call<T>(command: libc::c_long, attributes: &T) -> libc::c_long {
    // SAFETY: the kernel reads as many bytes from `attributes` as are there, and what those point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    assert!(result >= 0, "bpf({command}): {}", io::Error::last_os_error());
    result
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> OwnedFd {
    let fd = call(command, attributes);
    // SAFETY: the kernel has just made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Puts eight bytes of 0xff into a ring, by a program that is run once.
pub(crate) fn put_rubbish(ring: BorrowedFd<'_>) {
    let low = |word: u64, value: u64| word | value << 32;
    let instructions: [u64; 10] = [
        low(0x7a | 0xa << 8 | 0xfff8 << 16, 0xffff_ffff), // *(u64 *)(r10 - 8) = -1
        low(0x18 | 1 << 8 | 1 << 12, ring.as_raw_fd() as u64), // r1 = the map of that descriptor
        0,
        0xbf | 2 << 8 | 0xa << 12,                   // r2 = r10
        low(0x07 | 2 << 8, u64::from(-8i32 as u32)), // r2 += -8
        low(0xb7 | 3 << 8, 8),                       // r3 = 8
        low(0xb7 | 4 << 8, 0),                       // r4 = 0
        low(0x85, 130),                              // bpf_ringbuf_output
        0xb7,                                        // r0 = 0
        0x95,                                        // exit
    ];
    let program = bpf(
        BPF_PROG_LOAD,
        &Load {
            prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            ..Load::default()
        },
    );
    let packet = [0u8; 64];
    let (prog_fd, data_in) = (program.as_raw_fd() as u32, packet.as_ptr() as u64);
    call(
        BPF_PROG_TEST_RUN,
        &Run { prog_fd, data_in, data_size_in: packet.len() as u32, repeat: 1, ..Run::default() },
    );
}

/// Attaches a program that does nothing until what is returned is dropped.
pub(crate) fn attach(function: &str, at: At) -> (OwnedFd, OwnedFd) {
    let btf = Btf::from_sys_fs().unwrap();
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let program = bpf(
        BPF_PROG_LOAD,
        &Load {
            prog_type: BPF_PROG_TYPE_TRACING,
            insn_cnt: 2,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            expected_attach_type: at as u32,
            attach_btf_id: btf.id_by_type_name_kind(function, BtfKind::Func).unwrap(),
            ..Load::default()
        },
    );
    let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &Open { prog_fd: program.as_raw_fd() as u32, ..Open::default() });
    (program, link)
}
