//! The cgroups that containers' runs leave behind: runc removes a container's own, but not those above it, which on a
//! node are the kubelet's.
use std::{collections::BTreeSet, fs, io::ErrorKind, path::PathBuf, sync::Mutex};

use rustix::process::Pid;

/// Where this machine has its hierarchies, v1 and v2.
pub(crate) fn mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    table.lines().filter(cgroup).map(|line| PathBuf::from(line.split(' ').nth(4).unwrap())).collect()
}

/// Directories that did not exist before.
#[derive(Debug, Default)]
pub(super) struct Cgroups(Mutex<BTreeSet<PathBuf>>);

impl Cgroups {
    /// Remembers what of `path` is about to be made.
    pub(super) fn note(&self, path: &str) {
        let mut made = self.0.lock().unwrap();
        for mount in mounts() {
            let mut directory = mount;
            for name in path.split('/').filter(|name| !name.is_empty()) {
                directory.push(name);
                if !directory.try_exists().unwrap() {
                    made.insert(directory.clone());
                }
            }
        }
    }

    /// The processes in them.
    pub(super) fn members(&self) -> Vec<Pid> {
        let made = self.0.lock().unwrap();
        let lists = made.iter().filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok());
        lists
            .flat_map(|list| {
                list.lines().filter_map(|pid| Pid::from_raw(pid.parse().unwrap())).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Removes them, the innermost first; false if one is still in use. One that has got others inside since is
    /// theirs.
    pub(super) fn remove(&self) -> bool {
        let mut made = self.0.lock().unwrap();
        let mut kept = BTreeSet::new();
        for directory in made.iter().rev() {
            let gone = match fs::remove_dir(directory) {
                Ok(()) => true,
                Err(why) if why.kind() == ErrorKind::NotFound => true,
                // The kernel says busy for cgroups inside, and for members that are on their way out.
                Err(_) => {
                    let inside = || fs::read_dir(directory).unwrap().flatten().any(|entry| entry.path().is_dir());
                    !kept.iter().any(|other: &PathBuf| other.starts_with(directory)) && inside()
                }
            };
            if !gone {
                kept.insert(directory.clone());
            }
        }
        *made = kept;
        made.is_empty()
    }
}
