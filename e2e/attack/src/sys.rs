//! System calls as they are, with errno as the error. Nothing here goes through the C library, which has its own ideas.
use std::{ffi::CString, os::unix::ffi::OsStrExt as _, path::Path};

/// Why a case could not be tried: a call failed that should not have.
#[derive(Debug)]
pub struct Failed(pub String);

pub(crate) type Result<T = ()> = std::result::Result<T, Failed>;

/// A system call by its number; the error is an errno.
pub(crate) fn raw(number: i64, arguments: [usize; 6]) -> std::result::Result<i64, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the kernel checks what it is given; every address that is passed here is of memory that its owner keeps until
    // the call has returned.
    let returned = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if returned < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(returned) }
}

/// The same, of which the case has no use if it fails.
pub(crate) fn must(what: &str, number: i64, arguments: [usize; 6]) -> Result<i32> {
    match raw(number, arguments) {
        Ok(returned) => Ok(returned as i32),
        Err(errno) => Err(Failed(format!("{what}: {}", std::io::Error::from_raw_os_error(errno)))),
    }
}

/// A path as the kernel takes it.
pub(crate) fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap_or_default()
}

/// Address of something that outlives the call.
pub(crate) fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

/// The same of something that the kernel writes to.
pub(crate) fn to<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<u8>() as usize
}

pub(crate) const CWD: usize = libc::AT_FDCWD as usize;

/// openat(2), whatever comes of it.
pub(crate) fn open(directory: i32, path: impl AsRef<Path>, flags: i32) -> std::result::Result<i32, i32> {
    let path = c(path);
    raw(libc::SYS_openat, [directory as usize, path.as_ptr() as usize, flags as usize, 0o600, 0, 0])
        .map(|fd| fd as i32)
}

/// The same, which must succeed; the descriptor stays open until the process ends.
pub(crate) fn opened(directory: i32, path: impl AsRef<Path>, flags: i32) -> Result<i32> {
    let name = path.as_ref().to_path_buf();
    open(directory, path, flags)
        .map_err(|errno| Failed(format!("open {}: {}", name.display(), std::io::Error::from_raw_os_error(errno))))
}

pub(crate) fn mount(
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    kind: &str,
    flags: u64,
    data: &str,
) -> Result {
    let (source, target, kind, data) = (c(source), c(target), c(kind), c(data));
    let arguments = [
        source.as_ptr() as usize,
        target.as_ptr() as usize,
        kind.as_ptr() as usize,
        flags as usize,
        data.as_ptr() as usize,
        0,
    ];
    must("mount", libc::SYS_mount, arguments).map(drop)
}

pub(crate) fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Result {
    mount(source, target, "none", libc::MS_BIND, "")
}

/// A mount namespace of this process's own, of which nothing reaches others.
pub(crate) fn private_mounts() -> Result {
    must("unshare", libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0, 0, 0])?;
    mount("none", "/", "none", libc::MS_REC | libc::MS_PRIVATE, "")
}

/// A call on two names.
pub(crate) fn two(number: i64, old: &Path, new: &Path, flags: usize) -> std::result::Result<i64, i32> {
    let (old, new) = (c(old), c(new));
    raw(number, [CWD, old.as_ptr() as usize, CWD, new.as_ptr() as usize, flags, 0])
}

/// A call on one name.
pub(crate) fn one(number: i64, path: &Path, flags: usize) -> std::result::Result<i64, i32> {
    let path = c(path);
    raw(number, [CWD, path.as_ptr() as usize, flags, 0, 0, 0])
}

pub(crate) fn close(fd: i32) {
    raw(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]).ok();
}

/// fork(2): zero in the child.
pub(crate) fn fork() -> Result<i32> {
    must("clone", libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0, 0])
}

/// Waits for a child's end and returns its status.
pub(crate) fn wait(child: i32) -> i32 {
    let mut status = 0i32;
    while raw(libc::SYS_wait4, [child as usize, to(&mut status), 0, 0, 0, 0]) == Err(libc::EINTR) {}
    status
}

/// Ends the process as it is.
pub(crate) fn exit(code: i32) -> ! {
    raw(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]).ok();
    loop {
        std::hint::spin_loop();
    }
}
