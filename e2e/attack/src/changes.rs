//! Files that get another name, or lose one.
use std::{fs, path::Path};

use libc::{AT_FDCWD, SYS_linkat, SYS_renameat2, SYS_unlinkat};

use crate::{
    Failed, Stage,
    names::{fails, nobody},
    sys::{Result, bind, must, one, private_mounts, two},
};

const RENAME_EXCHANGE: usize = 2;

fn other(stage: &Stage) -> Result<std::path::PathBuf> {
    let path = stage.path("other");
    fs::write(&path, "other").map_err(|why| Failed(why.to_string()))?;
    Ok(path)
}

fn done(what: &str, returned: std::result::Result<i64, i32>) -> Result {
    returned.map(drop).map_err(|errno| Failed(format!("{what}: errno {errno}")))
}

fn renames(stage: &Stage, old: &Path, new: &Path, flags: usize) -> Result {
    done("rename", stage.act(|| two(SYS_renameat2, old, new, flags)))
}

pub(crate) fn onto(stage: &Stage) -> Result {
    renames(stage, &other(stage)?, &stage.secret, 0)
}

pub(crate) fn away(stage: &Stage) -> Result {
    renames(stage, &stage.secret, &stage.path("other"), 0)
}

pub(crate) fn exchanged(stage: &Stage) -> Result {
    renames(stage, &other(stage)?, &stage.secret, RENAME_EXCHANGE)
}

pub(crate) fn onto_by_bind(stage: &Stage) -> Result {
    other(stage)?;
    let place = stage.mkdir("bind")?;
    private_mounts()?;
    bind(&stage.dir, &place)?;
    renames(stage, &place.join("other"), &place.join("secret"), 0)
}

pub(crate) fn directory_of_it(stage: &Stage) -> Result {
    let dir = stage.mkdir("d")?;
    renames(stage, &dir, &stage.secret, 0)
}

pub(crate) fn onto_denied(stage: &Stage) -> Result {
    let other = other(stage)?;
    nobody(stage)?;
    fails(stage.act(|| two(SYS_renameat2, &other, &stage.secret, 0)), libc::EACCES)
}

pub(crate) fn away_missing(stage: &Stage) -> Result {
    fails(stage.act(|| two(SYS_renameat2, &stage.secret, &stage.path("other"), 0)), libc::ENOENT)
}

pub(crate) fn linked(stage: &Stage) -> Result {
    done("link", stage.act(|| two(SYS_linkat, &stage.secret, &stage.path("other"), 0)))
}

pub(crate) fn linked_to(stage: &Stage) -> Result {
    let other = other(stage)?;
    done("link", stage.act(|| two(SYS_linkat, &other, &stage.secret, 0)))
}

pub(crate) fn removed(stage: &Stage) -> Result {
    done("unlink", stage.act(|| one(SYS_unlinkat, &stage.secret, 0)))
}

pub(crate) fn removed_denied(stage: &Stage) -> Result {
    nobody(stage)?;
    fails(stage.act(|| one(SYS_unlinkat, &stage.secret, 0)), libc::EACCES)
}

pub(crate) fn removed_directory(stage: &Stage) -> Result {
    fs::create_dir(&stage.secret).map_err(|why| Failed(why.to_string()))?;
    done("rmdir", stage.act(|| rmdir(&stage.secret)))
}

#[cfg(target_arch = "x86_64")]
fn rmdir(path: &Path) -> std::result::Result<i64, i32> {
    let name = crate::sys::c(path);
    crate::sys::raw(libc::SYS_rmdir, [name.as_ptr() as usize, 0, 0, 0, 0, 0])
}

/// Elsewhere it is a flag of unlinkat(2).
#[cfg(not(target_arch = "x86_64"))]
fn rmdir(path: &Path) -> std::result::Result<i64, i32> {
    one(SYS_unlinkat, path, libc::AT_REMOVEDIR as usize)
}

/// What editors and `sed -i` do, by a relative name.
pub(crate) fn replaced(stage: &Stage) -> Result {
    other(stage)?;
    std::env::set_current_dir(&stage.dir).map_err(|why| Failed(why.to_string()))?;
    let (old, new) = (crate::sys::c("other"), crate::sys::c("secret"));
    let arguments = [AT_FDCWD as usize, old.as_ptr() as usize, AT_FDCWD as usize, new.as_ptr() as usize, 0, 0];
    stage.act(|| must("renameat", libc::SYS_renameat, arguments)).map(drop)
}

/// From a place so deep that its path leaves no room for another.
pub(crate) fn onto_from_the_deep(stage: &Stage) -> Result {
    let deep = crate::names::nest(stage, 80, 250)?;
    must("fchdir", libc::SYS_fchdir, [deep as usize, 0, 0, 0, 0, 0])?;
    let (old, new) = (crate::sys::c("secret"), crate::sys::c(&stage.secret));
    let arguments = [AT_FDCWD as usize, old.as_ptr() as usize, AT_FDCWD as usize, new.as_ptr() as usize, 0, 0];
    stage.act(|| must("renameat", libc::SYS_renameat, arguments)).map(drop)
}

/// Its directory gets another name, and it with it.
pub(crate) fn directory_around(stage: &Stage) -> Result {
    renames(stage, &stage.dir, &stage.dir.with_extension("moved"), 0)
}
