//! Ways out of a cgroup, for who may write to others.
use std::path::Path;

use crate::sys::{Failed, at, must, open, opened, raw, to};

/// `CLONE_INTO_CGROUP` of include/uapi/linux/sched.h, for clone3(2).
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Has a child open `file` that was made in the cgroup of this directory and never was in another.
///
/// # Errors
/// When the kernel refuses, or the file cannot be opened.
pub fn open_by_child_in(cgroup: &Path, file: &Path) -> Result<(), Failed> {
    let cgroup = opened(libc::AT_FDCWD, cgroup, libc::O_PATH | libc::O_DIRECTORY)?;
    // `struct clone_args` of the same: flags, five that are not used, exit_signal, five more, cgroup.
    let mut arguments = [0_u64; 11];
    let [flags, _, _, _, signal, _, _, _, _, _, into] = &mut arguments;
    (*flags, *signal, *into) = (INTO_CGROUP, libc::SIGCHLD as u64, cgroup as u64);
    let child = must("clone3", libc::SYS_clone3, [at(&arguments), size_of_val(&arguments), 0, 0, 0, 0])?;
    if child == 0 {
        let status = usize::from(open(libc::AT_FDCWD, file, libc::O_RDONLY).is_err());
        raw(libc::SYS_exit_group, [status, 0, 0, 0, 0, 0]).ok();
    }
    let mut status = 0_i32;
    must("wait4", libc::SYS_wait4, [child as usize, to(&mut status), 0, 0, 0, 0])?;
    if status == 0 { Ok(()) } else { Err(Failed(format!("the child cannot open {}", file.display()))) }
}
