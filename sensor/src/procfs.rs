//! Where the node's processes are shown, and how to read it from inside a container: there /proc shows the container's own
//! processes only, and the paths of cgroups begin at the container's.
use std::{
    fmt::Display,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::hierarchy::Hierarchy;

/// Deepest cgroup in which this process is looked for.
const DEPTH: usize = 16;

struct View {
    node: PathBuf,
    /// The cgroup at which this process's cgroup namespace begins, if that is not the node's root.
    namespace: Vec<u8>,
}

/// A process has one view of the node, from its start to its end.
static VIEW: OnceLock<View> = OnceLock::new();

/// Says where the node's procfs is mounted, and which are the node's cgroups; the first to say it is heard.
pub fn mounted_at(node: &Path, hierarchy: &Hierarchy) {
    VIEW.get_or_init(|| View { node: node.to_owned(), namespace: namespace(hierarchy).unwrap_or_default() });
}

/// The mount point; `/proc` if nobody has said anything else.
#[must_use]
pub fn node() -> &'static Path {
    VIEW.get().map_or(Path::new("/proc"), |view| &view.node)
}

/// What it tells of a process under the name of `what`.
pub fn of(pid: impl Display, what: &str) -> PathBuf {
    node().join(format!("{pid}/{what}"))
}

/// The number of this process there; None if it shows none.
#[must_use]
pub fn own_pid() -> Option<u32> {
    fs::read_link(node().join("self")).ok()?.to_str()?.parse().ok()
}

/// The cgroups of a process as in /proc/PID/cgroup, with paths from the node's root; None if it is gone.
pub fn cgroups(pid: impl Display) -> Option<Vec<u8>> {
    let table = fs::read(of(pid, "cgroup")).ok()?;
    Some(match VIEW.get() {
        Some(view) if !view.namespace.is_empty() => from_the_root(&table, &view.namespace),
        _ => table,
    })
}

/// Paths in `table` begin at `namespace`, and what lies outside of it with `/..` (cgroup_namespaces(7)).
fn from_the_root(table: &[u8], namespace: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    for line in table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (number, controllers) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let mut names: Vec<&[u8]> = Vec::new();
        let path = fields.next().unwrap_or_default();
        for name in [namespace, path].into_iter().flat_map(|path| path.split(|byte| *byte == b'/')) {
            match name {
                b"" => {}
                b".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        whole.extend([number, b":", controllers, b":/", &names.join(&b'/'), b"\n"].concat());
    }
    whole
}

/// The cgroup of the node at which the cgroup namespace of this process begins. What a runtime mounts for the container
/// is that very directory, found by its inode; on v1 runtimes make no such namespace.
fn namespace(hierarchy: &Hierarchy) -> Option<Vec<u8>> {
    let own = fs::metadata("/sys/fs/cgroup").ok()?;
    let root = fs::metadata(&hierarchy.root).ok()?;
    if hierarchy.controller.is_some() || own.ino() == root.ino() || own.dev() != root.dev() {
        return None;
    }
    let mut ahead = vec![(hierarchy.root.clone(), 0)];
    while let Some((directory, depth)) = ahead.pop() {
        if fs::metadata(&directory).is_ok_and(|found| found.ino() == own.ino()) {
            let path = directory.strip_prefix(&hierarchy.root).ok()?;
            return Some([b"/", path.as_os_str().as_bytes()].concat());
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| depth < DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()));
        ahead.extend(below.map(|entry| (entry.path(), depth + 1)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_namespace_become_those_of_the_node() {
        for (table, namespace, whole) in [
            ("0::/\n", "/kubepods/pod1/a", "0::/kubepods/pod1/a\n"),
            ("0::/../../pod2/b:c\n", "/kubepods/pod1/a", "0::/kubepods/pod2/b:c\n"),
            ("0::/../../../init.scope\n", "/kubepods/pod1/a", "0::/init.scope\n"),
            // More than there is.
            ("0::/../../../..\n", "/kubepods/pod1/a", "0::/\n"),
            ("4:memory:/x\n0::/below\n", "/a", "4:memory:/a/x\n0::/a/below\n"),
        ] {
            let said = from_the_root(table.as_bytes(), namespace.as_bytes());
            assert_eq!(String::from_utf8(said).unwrap(), whole, "{table} in {namespace}");
        }
    }
}
