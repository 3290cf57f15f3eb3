//! A part of the file system that changes at random, and policies for it.
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use fastrand::Rng;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
};
use sensor::{
    matcher::run_examples,
    policy::{Directory, PolicySet},
};

const DIRECTORIES: [&str; 6] = ["etc", "app", "conf", "secrets", "a", "b"];
const FILES: [&str; 5] = ["shadow", "token", "x.pem", "data", "log"];
/// Directories, at most; and mounts.
const MOST: usize = 60;
const MOUNTS: usize = 6;

pub(crate) struct Place {
    base: PathBuf,
    /// A file that all policies watch, and nobody but the test opens.
    pub(crate) mark: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let base = tempfile::tempdir().unwrap().keep().canonicalize().unwrap();
        mount("tmpfs", &base, "tmpfs", MountFlags::empty(), None).unwrap();
        let mut place = Self { mark: base.join("mark"), base };
        fs::write(&place.mark, "").unwrap();
        let mut rng = Rng::with_seed(1);
        (0..MOST / 2).for_each(|_| place.make(&mut rng));
        place
    }

    /// A directory more, with a file.
    fn make(&mut self, rng: &mut Rng) {
        let directory = self.directory(rng).join(rng.choice(DIRECTORIES).unwrap());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(rng.choice(FILES).unwrap()), "").unwrap();
    }

    fn directory(&self, rng: &mut Rng) -> PathBuf {
        let mut all = self.walk().0;
        all.swap_remove(rng.usize(..all.len()))
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.walk().1
    }

    /// All directories but very deep ones, and their files.
    fn walk(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (mut directories, mut files) = (vec![self.base.clone()], Vec::new());
        let mut next = 0;
        while let Some(directory) = directories.get(next).cloned() {
            next += 1;
            for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if !entry.file_type().unwrap().is_dir() {
                    files.extend((path != self.mark).then_some(path));
                } else if path.components().count() < 12 && directories.len() < 4 * MOST {
                    directories.push(path);
                }
            }
        }
        (directories, files)
    }

    /// Something changes; says what.
    pub(crate) fn change(&mut self, rng: &mut Rng) -> &'static str {
        let (one, other) = (self.directory(rng), self.directory(rng));
        match rng.u8(..20) {
            0 if self.mounts().len() < MOUNTS && one != self.base => {
                mount("tmpfs", &one, "tmpfs", MountFlags::empty(), None).unwrap();
                fs::write(one.join(rng.choice(FILES).unwrap()), "").unwrap();
                "tmpfs"
            }
            // One that lies in the other would show itself.
            1 | 2 if self.mounts().len() < MOUNTS && one != self.base && !one.starts_with(&other) => {
                mount_bind(&other, &one).unwrap();
                "bind"
            }
            3 | 4 => {
                let mounts = self.mounts();
                // One with others below it cannot be.
                let is_gone = |mount: &&PathBuf| unmount(*mount, UnmountFlags::empty()).is_ok();
                if mounts.iter().rev().any(|mount| is_gone(&mount)) { "unmount" } else { "nothing" }
            }
            5 if self.walk().0.len() < MOST => {
                self.make(rng);
                "directory"
            }
            6 | 7 => self.rename(rng, RenameFlags::EXCHANGE, "exchange"),
            _ => self.rename(rng, RenameFlags::NOREPLACE, "rename"),
        }
    }

    /// Renames what can be. Into itself, across mounts or onto what is there it cannot; and what holds a mount keeps its place, or
    /// that could not be taken away again by its path.
    fn rename(&self, rng: &mut Rng, flags: RenameFlags, what: &'static str) -> &'static str {
        let holds = |path: &Path| self.mounts().iter().any(|mount| mount.starts_with(path)) || path == self.base;
        for _ in 0..20 {
            let (from, mut to) = (self.directory(rng), self.directory(rng));
            if flags == RenameFlags::NOREPLACE {
                to.push(rng.choice(DIRECTORIES).unwrap());
            }
            if !holds(&from) && !holds(&to) && renameat_with(CWD, from, CWD, to, flags).is_ok() {
                return what;
            }
        }
        "refused"
    }

    /// Where something is mounted, the last one last.
    fn mounts(&self) -> Vec<PathBuf> {
        let mounts =
            crate::mounted::known().mounts.into_iter().map(|mount| PathBuf::from(OsString::from_vec(mount.at)));
        mounts.filter(|at| at.starts_with(&self.base) && *at != self.base).collect()
    }

    /// A pattern of names that are there.
    fn pattern(&self, rng: &mut Rng) -> String {
        let base = self.base.display();
        let [one, two] = [(); 2].map(|()| rng.choice(DIRECTORIES).unwrap());
        let file = rng.choice(FILES).unwrap();
        match rng.u8(..7) {
            0 => format!("**/{one}/{file}"),
            1 => format!("**/{one}/{two}/**"),
            2 => format!("{base}/{one}/{file}"),
            3 => format!("{base}/{one}/{two}/{file}"),
            4 => format!("{base}/{one}/**"),
            5 => format!("{base}/*/{two}/*"),
            _ => format!("{base}/**/{two}/{file}"),
        }
    }

    /// Policies that compile, and watch the mark.
    pub(crate) fn policies(&self, rng: &mut Rng) -> Arc<PolicySet> {
        const OPERATIONS: [&[&str]; 3] = [&["read"], &["write"], &["read", "write"]];
        const RESULTS: [&[&str]; 3] = [&["success"], &["success", "missing"], &["missing"]];
        let marks = policy("marks", &[self.mark.display().to_string()], (&["read"], RESULTS[0]));
        let text = (0..rng.usize(1..5)).fold(marks, |text, number| {
            let paths: Vec<String> = (0..rng.usize(1..4)).map(|_| self.pattern(rng)).collect();
            let done = (rng.choice(OPERATIONS).unwrap(), rng.choice(RESULTS).unwrap());
            text + &policy(&format!("p{number}"), &paths, done)
        });
        Directory::read_text(text.as_bytes(), run_examples).set
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // With all that is mounted in it.
        unmount(&self.base, UnmountFlags::DETACH).unwrap();
        fs::remove_dir(&self.base).unwrap();
    }
}

/// A policy's document.
pub(crate) fn policy(name: &str, paths: &[String], (operations, results): (&[&str], &[&str])) -> String {
    let policy = serde_json::json!({
        "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy", "metadata": {"name": name},
        "spec": {"subjects": "all", "paths": paths, "operations": operations, "results": results},
    });
    format!("---\n{policy}\n")
}
