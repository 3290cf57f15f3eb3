//! What differs between machines: where a system call that returns has its number and arguments, and how calls are numbered.
#[cfg(bpf_target_arch = "aarch64")]
mod aarch64;
#[cfg(not(bpf_target_arch = "aarch64"))]
mod x86_64;

use sensor_ebpf::Call as What;

#[cfg(bpf_target_arch = "aarch64")]
pub(crate) use self::aarch64::{FIRST, SystemCall};
#[cfg(not(bpf_target_arch = "aarch64"))]
pub(crate) use self::x86_64::{FIRST, SystemCall};

/// What a call is for, and where it has its names and flags.
pub(crate) type Known = (What, Form, Flags);

/// Where a call has its names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
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
pub(crate) enum Flags {
    No,
    Argument(usize),
    /// As creat(2) has them.
    Creat,
    /// In the first word of `struct open_how`. The process may have changed it since; what the open really did is in
    /// `f_flags` and `f_mode`.
    How,
}
