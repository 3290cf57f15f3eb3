//! Programs that do nothing, as a measure for those that do something.
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use aya::Btf;
use aya_obj::btf::BtfKind;

/// From `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
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

fn bpf<T>(command: libc::c_long, attributes: &T) -> OwnedFd {
    // SAFETY: the kernel reads as many bytes from `attributes` as are there, and what those point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    assert!(fd >= 0, "bpf({command}): {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
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
