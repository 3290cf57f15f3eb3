//! Real containers of a real containerd and runc, where a kubelet would put them. Needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures belong in the log")]
mod attribution;
#[path = "../common/mod.rs"]
mod common;
mod containers;
#[path = "../common/moved.rs"]
mod moved;
#[path = "../common/pipeline.rs"]
mod pipeline;
#[path = "../common/policies.rs"]
mod policies;
#[path = "../common/running.rs"]
mod running;
#[path = "../common/schema.rs"]
mod schema;

use std::{fs, path::PathBuf};

use containers::{Container, Containerd, mounts};

/// Files of an image, one for each container.
fn markers(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("/marker-{n}")).collect()
}

/// Where the container's cgroup is in each hierarchy.
fn directories(container: &Container) -> Vec<PathBuf> {
    mounts().iter().map(|mount| mount.join(container.cgroup().strip_prefix('/').unwrap())).collect()
}

#[test]
fn five_containers_are_in_the_cgroups_that_a_kubelet_would_name() {
    let files = markers(5);
    let containerd = Containerd::start(&files);
    for file in &files {
        let container = Container::new();
        let held = containerd.hold(&container, file);
        let table = fs::read_to_string(format!("/proc/{}/cgroup", held.pid)).unwrap();
        for line in table.lines() {
            assert_eq!(line.splitn(3, ':').nth(2), Some(&*container.cgroup()), "{table}");
        }
        for directory in directories(&container) {
            let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
            assert_eq!(members, format!("{}\n", held.pid), "{}", directory.display());
        }
        held.release();
        assert!(directories(&container).iter().all(|directory| !directory.try_exists().unwrap()));
    }
}

#[test]
fn a_container_opens_its_file_run_by_containerd_or_by_runc() {
    let files = markers(1);
    let containerd = Containerd::start(&files);
    for run in [Containerd::by_containerd, Containerd::by_runc] {
        for (file, status) in [(&*files[0], 0), ("/no-such-file", 1)] {
            let mut command = run(&containerd, &Container::new(), file);
            assert_eq!(command.status().unwrap().code(), Some(status), "{command:?}");
        }
    }
}

#[test]
fn containers_mounts_and_cgroups_go_with_their_containerd() {
    let files = markers(1);
    let containerd = Containerd::start(&files);
    let container = Container::new();
    let held = containerd.hold(&container, &files[0]);
    let directory = containerd.path().to_owned();
    assert!(!Containerd::mounts_below(&directory).is_empty());
    drop(containerd);
    assert!(fs::read(format!("/proc/{}/cmdline", held.pid)).unwrap_or_default().is_empty());
    assert_eq!(Containerd::mounts_below(&directory), Vec::<PathBuf>::new());
    for cgroup in directories(&container) {
        assert!(!cgroup.parent().unwrap().try_exists().unwrap(), "{}", cgroup.display());
    }
    assert!(!directory.try_exists().unwrap());
}
