//! A file by its names, its descriptors, and as another kind of file.
use std::{fs, os::unix::fs::symlink, path::Path};

use libc::{AT_FDCWD, O_CREAT, O_DIRECTORY, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_TMPFILE, O_TRUNC, O_WRONLY};

use crate::{
    Failed, Stage,
    sys::{self, CWD, Result, at, c, must, open, opened, raw, to},
};

/// Opens it, which must succeed.
pub(crate) fn reads(stage: &Stage, directory: i32, path: impl AsRef<Path>) -> Result {
    stage.act(|| opened(directory, path, O_RDONLY)).map(drop)
}

fn io<T>(done: std::io::Result<T>) -> Result<T> {
    done.map_err(|why| Failed(why.to_string()))
}

pub(crate) fn plain(stage: &Stage) -> Result {
    reads(stage, AT_FDCWD, &stage.secret)
}

pub(crate) fn symlinked(stage: &Stage) -> Result {
    io(symlink(&stage.secret, stage.path("link")))?;
    reads(stage, AT_FDCWD, stage.path("link"))
}

pub(crate) fn dotdot(stage: &Stage) -> Result {
    let inner = stage.mkdir("a/b")?;
    io(symlink(&inner, stage.path("link")))?;
    reads(stage, AT_FDCWD, stage.path("link/../../secret"))
}

pub(crate) fn relative(stage: &Stage) -> Result {
    io(std::env::set_current_dir(stage.mkdir("a")?))?;
    reads(stage, AT_FDCWD, "../secret")
}

pub(crate) fn dirfd(stage: &Stage) -> Result {
    let directory = opened(AT_FDCWD, &stage.dir, O_PATH | O_DIRECTORY)?;
    reads(stage, directory, "secret")
}

pub(crate) fn proc_root(stage: &Stage) -> Result {
    reads(stage, AT_FDCWD, format!("/proc/self/root{}", stage.secret.display()))
}

pub(crate) fn proc_cwd(stage: &Stage) -> Result {
    io(std::env::set_current_dir(&stage.dir))?;
    reads(stage, AT_FDCWD, "/proc/self/cwd/secret")
}

pub(crate) fn hard_link(stage: &Stage) -> Result {
    io(fs::hard_link(&stage.secret, stage.path("other")))?;
    reads(stage, AT_FDCWD, stage.path("other"))
}

pub(crate) fn hard_link_left(stage: &Stage) -> Result {
    io(fs::hard_link(&stage.secret, stage.path("other")))?;
    let other = stage.path("other");
    // The name goes, by a call that the sensor must not take for the file's end.
    io(fs::rename(&stage.secret, stage.path("away")))?;
    reads(stage, AT_FDCWD, other)
}

pub(crate) fn in_root(stage: &Stage) -> Result {
    let directory = opened(AT_FDCWD, &stage.dir, O_PATH | O_DIRECTORY)?;
    // struct open_how: flags, mode, resolve; RESOLVE_IN_ROOT
    let (how, name) = ([0u64, 0, 0x10], c("/secret"));
    let call =
        || must("openat2", libc::SYS_openat2, [directory as usize, name.as_ptr() as usize, at(&how), 24, 0, 0]);
    stage.act(call).map(drop)
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn creat(stage: &Stage) -> Result {
    let name = c(&stage.secret);
    stage.act(|| must("creat", libc::SYS_creat, [name.as_ptr() as usize, 0o600, 0, 0, 0, 0])).map(drop)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn creat(_: &Stage) -> Result {
    Err(Failed("this machine has no creat(2)".to_owned()))
}

pub(crate) fn create(stage: &Stage) -> Result {
    stage.act(|| opened(AT_FDCWD, &stage.secret, O_CREAT | O_WRONLY)).map(drop)
}

pub(crate) fn cut(stage: &Stage) -> Result {
    stage.act(|| opened(AT_FDCWD, &stage.secret, O_WRONLY | O_TRUNC)).map(drop)
}

pub(crate) fn write(stage: &Stage) -> Result {
    stage.act(|| opened(AT_FDCWD, &stage.secret, O_RDWR)).map(drop)
}

pub(crate) fn tmpfile(stage: &Stage) -> Result {
    stage.act(|| opened(AT_FDCWD, &stage.dir, O_TMPFILE | O_RDWR)).map(drop)
}

pub(crate) fn reference(stage: &Stage) -> Result {
    stage.act(|| opened(AT_FDCWD, &stage.secret, O_PATH)).map(drop)
}

pub(crate) fn reopened(stage: &Stage) -> Result {
    let reference = opened(AT_FDCWD, &stage.secret, O_PATH)?;
    reads(stage, AT_FDCWD, format!("/proc/self/fd/{reference}"))
}

pub(crate) fn map_files(stage: &Stage) -> Result {
    let file = opened(AT_FDCWD, &stage.secret, O_RDONLY)?;
    let mapped = [0, 4096, libc::PROT_READ as usize, libc::MAP_PRIVATE as usize, file as usize, 0];
    let start = raw(libc::SYS_mmap, mapped).map_err(|errno| Failed(format!("mmap: errno {errno}")))? as usize;
    reads(stage, AT_FDCWD, format!("/proc/self/map_files/{start:x}-{:x}", start + 4096))
}

pub(crate) fn directory(stage: &Stage) -> Result {
    io(fs::create_dir(&stage.secret))?;
    stage.act(|| opened(AT_FDCWD, &stage.secret, O_RDONLY | O_DIRECTORY)).map(drop)
}

pub(crate) fn fifo(stage: &Stage) -> Result {
    let name = c(&stage.secret);
    let kind = (libc::S_IFIFO | 0o600) as usize;
    must("mknodat", libc::SYS_mknodat, [CWD, name.as_ptr() as usize, kind, 0, 0, 0])?;
    stage.act(|| opened(AT_FDCWD, &stage.secret, O_RDONLY | O_NONBLOCK)).map(drop)
}

pub(crate) fn deleted(stage: &Stage) -> Result {
    let file = opened(AT_FDCWD, &stage.secret, O_RDONLY)?;
    io(fs::remove_file(&stage.secret))?;
    reads(stage, AT_FDCWD, format!("/proc/self/fd/{file}"))
}

pub(crate) fn memfd(stage: &Stage) -> Result {
    let name = c("secret");
    let file = must("memfd_create", libc::SYS_memfd_create, [name.as_ptr() as usize, 0, 0, 0, 0, 0])?;
    reads(stage, AT_FDCWD, format!("/proc/self/fd/{file}"))
}

/// Passes a directory from another process, which is then gone, through a socket.
pub(crate) fn passed(stage: &Stage) -> Result {
    let mut pair = [0i32; 2];
    let kind = libc::SOCK_DGRAM as usize;
    must("socketpair", libc::SYS_socketpair, [libc::AF_UNIX as usize, kind, 0, to(&mut pair), 0, 0])?;
    let child = sys::fork()?;
    if child == 0 {
        let sent =
            opened(AT_FDCWD, &stage.dir, O_PATH | O_DIRECTORY).and_then(|fd| crate::calls::send(pair[0], fd));
        sys::exit(i32::from(sent.is_err()));
    }
    let directory = crate::calls::receive(pair[1])?;
    sys::wait(child);
    reads(stage, directory, "secret")
}

/// Directories in directories until the path has that many components; returns the last.
pub(crate) fn nest(stage: &Stage, depth: usize, width: usize) -> Result<i32> {
    let name = "d".repeat(width);
    let mut directory = opened(AT_FDCWD, &stage.dir, O_PATH | O_DIRECTORY)?;
    for _ in 0..depth {
        let path = c(&name);
        must("mkdirat", libc::SYS_mkdirat, [directory as usize, path.as_ptr() as usize, 0o700, 0, 0, 0])?;
        let next = opened(directory, &name, O_PATH | O_DIRECTORY)?;
        sys::close(directory);
        directory = next;
    }
    opened(directory, "secret", O_CREAT | O_WRONLY).map(sys::close)?;
    Ok(directory)
}

pub(crate) fn components_40(stage: &Stage) -> Result {
    reads(stage, nest(stage, 40, 1)?, "secret")
}

pub(crate) fn components_5000(stage: &Stage) -> Result {
    reads(stage, nest(stage, 5000, 1)?, "secret")
}

pub(crate) fn bytes_8000(stage: &Stage) -> Result {
    reads(stage, nest(stage, 32, 250)?, "secret")
}

pub(crate) fn missing(stage: &Stage) -> Result {
    fails(stage.act(|| open(AT_FDCWD, &stage.secret, O_RDONLY)), libc::ENOENT)
}

pub(crate) fn not_a_directory(stage: &Stage) -> Result {
    let file = stage.path("secret");
    io(fs::write(stage.path("secret-file"), ""))?;
    io(symlink("secret-file", &file))?;
    fails(stage.act(|| open(AT_FDCWD, &stage.secret, O_RDONLY | O_DIRECTORY)), libc::ENOTDIR)
}

pub(crate) fn too_many_links(stage: &Stage) -> Result {
    io(symlink("secret", &stage.secret))?;
    fails(stage.act(|| open(AT_FDCWD, &stage.secret, O_RDONLY)), libc::ELOOP)
}

/// Becomes nobody, who may look and not touch.
pub(crate) fn nobody(stage: &Stage) -> Result {
    for directory in [Some(stage.dir.as_path()), stage.dir.parent()].into_iter().flatten() {
        let name = c(directory);
        must("fchmodat", libc::SYS_fchmodat, [CWD, name.as_ptr() as usize, 0o755, 0, 0, 0])?;
    }
    must("setresuid", libc::SYS_setresuid, [65534, 65534, 65534, 0, 0, 0]).map(drop)
}

pub(crate) fn denied(stage: &Stage) -> Result {
    let name = c(&stage.secret);
    must("fchmodat", libc::SYS_fchmodat, [CWD, name.as_ptr() as usize, 0o600, 0, 0, 0])?;
    nobody(stage)?;
    fails(stage.act(|| open(AT_FDCWD, &stage.secret, O_RDONLY)), libc::EACCES)
}

/// It must fail, and so.
pub(crate) fn fails<T>(returned: std::result::Result<T, i32>, errno: i32) -> Result {
    match returned {
        Err(got) if got == errno => Ok(()),
        Err(got) => Err(Failed(format!("errno {got} instead of {errno}"))),
        Ok(_) => Err(Failed(format!("it succeeded; wanted errno {errno}"))),
    }
}
