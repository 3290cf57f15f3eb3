//! Which cgroup hierarchy tells containers apart: the v2 one, or on v1 and hybrid nodes that of a controller which every
//! runtime puts containers into.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// v1 controllers that the kubelet requires of a node or all runtimes use, the surest first. The kernel numbers them as
/// `<name>_cgrp_id` (include/linux/cgroup_subsys.h).
const CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "devices", "cpuset"];

/// A cgroup hierarchy, the ids of which events carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The v1 controller that it is of; None for v2.
    pub controller: Option<&'static str>,
    /// The kernel's number of it; 0 for v2.
    pub number: u32,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Hierarchy {
    /// The one to use, of those that are mounted at or below `mount`, commonly `/sys/fs/cgroup`. Without any it is the
    /// v2 hierarchy, which every kernel has, and nothing is known of the names in it.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn find(mount: &Path) -> io::Result<Self> {
        let (mounts, own) =
            (fs::read_to_string("/proc/self/mountinfo")?, fs::read_to_string("/proc/self/cgroup")?);
        Ok(Self::choose(mount, &mounts, &own))
    }

    fn choose(mount: &Path, mounts: &str, own: &str) -> Self {
        let mounted: Vec<Mount<'_>> =
            mounts.lines().filter_map(Mount::parse).filter(|found| found.point.starts_with(mount)).collect();
        let of_controller = |controller: &'static str| {
            let found = mounted.iter().find(|found| {
                found.kind == "cgroup" && found.options.split(',').any(|option| option == controller)
            })?;
            // `number:controllers:path` (cgroups(7)).
            let line = own.lines().find(|line| {
                line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller))
            })?;
            let number = line.split(':').next()?.parse().ok()?;
            Some(Self { controller: Some(controller), number, root: found.point.to_owned() })
        };
        let unified = mounted.iter().find(|found| found.kind == "cgroup2");
        CONTROLLERS.into_iter().find_map(of_controller).unwrap_or_else(|| Self {
            controller: None,
            number: 0,
            root: unified.map_or(mount, |found| found.point).to_owned(),
        })
    }

    /// The path of a process in this hierarchy, by its /proc/PID/cgroup.
    #[must_use]
    pub fn path_in<'a>(&self, table: &'a [u8]) -> Option<&'a [u8]> {
        table.split(|byte| *byte == b'\n').find_map(|line| {
            // The path may hold colons.
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let number: u32 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            (number == self.number).then_some(())?;
            fields.nth(1)
        })
    }
}

/// A line of /proc/PID/mountinfo, as far as it is of use.
struct Mount<'a> {
    point: &'a Path,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut words = after.split(' ');
        Some(Self { point: Path::new(before.split(' ').nth(4)?), kind: words.next()?, options: words.nth(1)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_v2_unless_controllers_are_mounted_apart() {
        let v1 = |name: &str| {
            format!(
                "30 29 0:20 / /sys/fs/cgroup/{name} rw shared:9 - cgroup cgroup rw,{}\n",
                name.replace('/', ",")
            )
        };
        let v2 = |at: &str| format!("31 29 0:30 / {at} rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n");
        let mount = Path::new("/sys/fs/cgroup");
        for (mounts, own, controller, number, root) in [
            (v2("/sys/fs/cgroup"), "0::/x\n", None, 0, "/sys/fs/cgroup"),
            (
                v1("cpu,cpuacct") + &v1("memory") + &v2("/sys/fs/cgroup/unified"),
                "4:memory:/a\n3:cpu,cpuacct:/\n0::/\n",
                Some("memory"),
                4,
                "/sys/fs/cgroup/memory",
            ),
            // The memory controller was turned off on the kernel's command line, or is bound to v2.
            (
                v1("cpu,cpuacct") + &v2("/sys/fs/cgroup/unified"),
                "3:cpu,cpuacct:/\n0::/\n",
                Some("cpu"),
                3,
                "/sys/fs/cgroup/cpu,cpuacct",
            ),
            // systemd's own tree alone does not make a node hybrid.
            (
                v1("name=systemd") + &v2("/sys/fs/cgroup/unified"),
                "1:name=systemd:/\n0::/\n",
                None,
                0,
                "/sys/fs/cgroup/unified",
            ),
            // Not the container's own mounts, when the node's are elsewhere.
            (String::new(), "0::/\n", None, 0, "/sys/fs/cgroup"),
        ] {
            let found = Hierarchy::choose(mount, &mounts, own);
            assert_eq!(found, Hierarchy { controller, number, root: root.into() }, "{mounts}");
        }
    }

    #[test]
    fn the_path_of_a_process_is_that_of_the_hierarchys_line() {
        let hierarchy = Hierarchy { controller: Some("memory"), number: 4, root: "/".into() };
        assert_eq!(hierarchy.path_in(b"12:pids:/p\n4:memory:/a:b\n0::/u\n"), Some(&b"/a:b"[..]));
        assert_eq!(hierarchy.path_in(b"0::/u\n"), None);
        assert_eq!(Hierarchy { number: 0, ..hierarchy }.path_in(b"4:memory:/a\n0::/u\n"), Some(&b"/u"[..]));
    }
}
