//! A file by way of mounts, roots and namespaces.
use std::fs;

use libc::{AT_FDCWD, O_CREAT, O_DIRECTORY, O_PATH, O_RDONLY, O_RDWR, O_WRONLY};

use crate::{
    Failed, Stage,
    names::reads,
    sys::{self, Result, bind, c, mount, must, opened, private_mounts},
};

fn chroot(stage: &Stage) -> Result {
    let dir = c(&stage.dir);
    must("chroot", libc::SYS_chroot, [dir.as_ptr() as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn chrooted(stage: &Stage) -> Result {
    chroot(stage)?;
    reads(stage, AT_FDCWD, "/secret")
}

pub(crate) fn kept_across_chroot(stage: &Stage) -> Result {
    let directory = opened(AT_FDCWD, &stage.dir, O_PATH | O_DIRECTORY)?;
    let jail = c(stage.mkdir("jail")?);
    must("chroot", libc::SYS_chroot, [jail.as_ptr() as usize, 0, 0, 0, 0, 0])?;
    reads(stage, directory, "secret")
}

pub(crate) fn bound(stage: &Stage) -> Result {
    let place = stage.mkdir("bind")?;
    private_mounts()?;
    bind(&stage.dir, &place)?;
    reads(stage, AT_FDCWD, place.join("secret"))
}

pub(crate) fn bound_file(stage: &Stage) -> Result {
    let place = stage.path("bind");
    fs::write(&place, "").map_err(|why| Failed(why.to_string()))?;
    private_mounts()?;
    bind(&stage.secret, &place)?;
    reads(stage, AT_FDCWD, place)
}

pub(crate) fn bound_root(stage: &Stage) -> Result {
    let place = stage.mkdir("all")?;
    private_mounts()?;
    mount("/", &place, "none", libc::MS_BIND | libc::MS_REC, "")?;
    reads(stage, AT_FDCWD, format!("{}{}", place.display(), stage.secret.display()))
}

pub(crate) fn in_user_namespace(stage: &Stage) -> Result {
    let place = stage.mkdir("bind")?;
    let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize;
    must("unshare", libc::SYS_unshare, [flags, 0, 0, 0, 0, 0])?;
    bind(&stage.dir, &place)?;
    reads(stage, AT_FDCWD, place.join("secret"))
}

pub(crate) fn pivoted(stage: &Stage) -> Result {
    let old = stage.mkdir("old")?;
    private_mounts()?;
    bind(&stage.dir, &stage.dir)?;
    let (root, old) = (c(&stage.dir), c(old));
    must("pivot_root", libc::SYS_pivot_root, [root.as_ptr() as usize, old.as_ptr() as usize, 0, 0, 0, 0])?;
    reads(stage, AT_FDCWD, "/secret")
}

pub(crate) fn cloned_tree(stage: &Stage) -> Result {
    let dir = c(&stage.dir);
    let flags = (libc::OPEN_TREE_CLONE as i32 | libc::O_CLOEXEC) as usize;
    let tree = must("open_tree", libc::SYS_open_tree, [AT_FDCWD as usize, dir.as_ptr() as usize, flags, 0, 0, 0])?;
    reads(stage, tree, "secret")
}

/// Mounts something, keeps a descriptor of it, and takes it away again.
fn taken_away(stage: &Stage, fresh: bool) -> Result {
    let place = stage.mkdir("tree")?;
    private_mounts()?;
    if fresh {
        mount("tmp", &place, "tmpfs", 0, "")?;
        opened(AT_FDCWD, place.join("secret"), O_CREAT | O_WRONLY)?;
    } else {
        bind(&stage.dir, &place)?;
    }
    let directory = opened(AT_FDCWD, &place, O_PATH | O_DIRECTORY)?;
    let place = c(place);
    must("umount2", libc::SYS_umount2, [place.as_ptr() as usize, libc::MNT_DETACH as usize, 0, 0, 0, 0])?;
    reads(stage, directory, "secret")
}

pub(crate) fn unmounted(stage: &Stage) -> Result {
    taken_away(stage, true)
}

pub(crate) fn unmounted_bind(stage: &Stage) -> Result {
    taken_away(stage, false)
}

pub(crate) fn covered(stage: &Stage) -> Result {
    private_mounts()?;
    let directory = opened(AT_FDCWD, &stage.dir, O_PATH | O_DIRECTORY)?;
    mount("tmp", &stage.dir, "tmpfs", 0, "")?;
    reads(stage, directory, "secret")
}

/// Something is mounted on the directory, but in another namespace: nothing is covered here.
pub(crate) fn covered_elsewhere(stage: &Stage) -> Result {
    let mut pair = [0i32; 2];
    must("pipe", libc::SYS_pipe2, [sys::to(&mut pair), 0, 0, 0, 0, 0])?;
    let [wait, tell] = pair;
    let child = sys::fork()?;
    if child == 0 {
        let mounted = private_mounts().and_then(|()| mount("tmp", &stage.dir, "tmpfs", 0, ""));
        sys::raw(libc::SYS_write, [tell as usize, sys::at(b"x"), 1, 0, 0, 0]).ok();
        sys::raw(libc::SYS_ppoll, [0; 6]).ok();
        sys::exit(i32::from(mounted.is_err()));
    }
    let mut byte = [0u8; 1];
    must("read", libc::SYS_read, [wait as usize, sys::to(&mut byte), 1, 0, 0, 0])?;
    let seen = reads(stage, AT_FDCWD, &stage.secret);
    must("kill", libc::SYS_kill, [child as usize, libc::SIGKILL as usize, 0, 0, 0, 0])?;
    sys::wait(child);
    seen
}

/// Enters a namespace of another process, in which the file has another place.
pub(crate) fn entered(stage: &Stage) -> Result {
    let place = stage.mkdir("bind")?;
    let own = opened(AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY)?;
    private_mounts()?;
    bind(&stage.dir, &place)?;
    let other = opened(AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY)?;
    for namespace in [own, other] {
        must("setns", libc::SYS_setns, [namespace as usize, libc::CLONE_NEWNS as usize, 0, 0, 0, 0])?;
    }
    reads(stage, AT_FDCWD, place.join("secret"))
}

/// Keeps a descriptor of a directory in a namespace that it leaves again.
pub(crate) fn foreign(stage: &Stage) -> Result {
    let place = stage.mkdir("bind")?;
    let own = opened(AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY)?;
    private_mounts()?;
    bind(&stage.dir, &place)?;
    let directory = opened(AT_FDCWD, &place, O_PATH | O_DIRECTORY)?;
    // It lives as long as somebody holds it.
    opened(AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY)?;
    must("setns", libc::SYS_setns, [own as usize, libc::CLONE_NEWNS as usize, 0, 0, 0, 0])?;
    reads(stage, directory, "secret")
}

pub(crate) fn mounts_256(stage: &Stage) -> Result {
    private_mounts()?;
    let mut place = stage.path("m");
    for _ in 0..256 {
        fs::create_dir(&place).map_err(|why| Failed(why.to_string()))?;
        mount("tmp", &place, "tmpfs", 0, "")?;
        place.push("m");
    }
    place.set_file_name("secret");
    opened(AT_FDCWD, &place, O_CREAT | O_WRONLY)?;
    reads(stage, AT_FDCWD, place)
}

/// An overlay with the case's directory as its lower layer, at `merged`.
fn overlay(stage: &Stage) -> Result<std::path::PathBuf> {
    let merged = stage.mkdir("merged")?;
    let lower = stage.mkdir("lower")?;
    fs::write(lower.join("secret"), "x").map_err(|why| Failed(why.to_string()))?;
    private_mounts()?;
    // A layer of its own: a file system may refuse to be the upper one.
    let upper = stage.mkdir("layers")?;
    mount("tmp", &upper, "tmpfs", 0, "")?;
    for name in ["upper", "work"] {
        stage.mkdir(&format!("layers/{name}"))?;
    }
    let data = format!("lowerdir={},upperdir={}/upper,workdir={1}/work", lower.display(), upper.display());
    mount("overlay", &merged, "overlay", 0, &data)?;
    Ok(merged)
}

pub(crate) fn overlay_read(stage: &Stage) -> Result {
    reads(stage, AT_FDCWD, overlay(stage)?.join("secret"))
}

pub(crate) fn overlay_write(stage: &Stage) -> Result {
    let file = overlay(stage)?.join("secret");
    stage.act(|| opened(AT_FDCWD, file, O_RDWR)).map(drop)
}

pub(crate) fn overlay_twice(stage: &Stage) -> Result {
    let below = overlay(stage)?;
    let merged = stage.mkdir("twice")?;
    let empty = stage.mkdir("empty")?;
    let data = format!("lowerdir={}:{}", below.display(), empty.display());
    mount("overlay", &merged, "overlay", 0, &data)?;
    reads(stage, AT_FDCWD, merged.join("secret"))
}
