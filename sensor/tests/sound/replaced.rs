//! Directories are removed, and others of the same name get their memory: what was remembered of those is not held of these.
use std::{fs, fs::File, path::Path};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    thread::{CpuSet, sched_setaffinity},
};
use sensor::{matcher::run_examples, policy::Directory};

use crate::{eye::Eye, mounted::known, place::policy};

const ROUNDS: usize = 300;

/// Makes a directory in another, and a file in it, which it opens; then removes them all.
fn come_and_go(outer: &Path) {
    let inner = outer.join("k");
    fs::create_dir_all(&inner).unwrap();
    let file = inner.join("x");
    drop(File::create(&file).unwrap());
    drop(File::open(&file).unwrap());
    fs::remove_dir_all(outer).unwrap();
    // MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h waits for RCU, and so, the second time, for what it frees.
    // SAFETY: a system call without pointers.
    (0..2).for_each(|_| assert_eq!(unsafe { libc::syscall(libc::SYS_membarrier, 1, 0, 0) }, 0));
}

/// How many watched opens are missed, if the filter is told of dentries that are freed, or is not.
pub(crate) fn run(tells: bool) -> usize {
    let base = tempfile::tempdir().unwrap().keep().canonicalize().unwrap();
    mount("tmpfs", &base, "tmpfs", MountFlags::empty(), None).unwrap();
    // What a CPU frees it gives out first.
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu).unwrap();
    let mark = base.join("mark");
    File::create(&mark).unwrap();
    let watched = base.join("watched");
    let paths = [format!("{}/**", watched.display()), mark.display().to_string()];
    let set = Directory::read_text(policy("p", &paths, (&["read"], &["success"])).as_bytes(), run_examples).set;
    let mut eye = Eye::open(tells);
    eye.filter.set(&set.keys(&known())).unwrap();
    for _ in 0..ROUNDS {
        come_and_go(&base.join("other"));
        come_and_go(&watched);
    }
    File::open(&mark).unwrap();
    let file = watched.join("k/x");
    let seen = eye.seen(&mark);
    let is_watched = |path: &[u8]| path == file.as_os_str().as_encoded_bytes();
    let opens = seen.iter().filter_map(|event| event.path.as_ref());
    let missed = ROUNDS - opens.filter(|path| is_watched(path.as_bytes())).count();
    eye.close();
    unmount(&base, UnmountFlags::DETACH).unwrap();
    println!(
        "replaced: {ROUNDS} directories, {missed} of {ROUNDS} watched opens missed{}",
        if tells { "" } else { ", nobody tells" }
    );
    missed
}
