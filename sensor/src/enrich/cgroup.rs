//! Cgroups: their paths, and the containers that the paths name.
use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::event::Container;

/// Most cgroups that are remembered; a node with 250 pods has about a thousand.
const CACHE_LIMIT: usize = 10_000;
/// How long a path is believed. Ids are not used again soon, but a hybrid hierarchy can move processes.
const CACHE_TIME: Duration = Duration::from_secs(60);

/// Paths of cgroups by id.
#[derive(Default)]
pub(super) struct Cgroups {
    known: HashMap<u64, (Instant, Arc<[u8]>)>,
}

impl Cgroups {
    /// The path of cgroup `id`, remembered or else read through its member, if that is alive. None if the member
    /// has been moved since: another cgroup's path would name the wrong container.
    pub(super) fn look_up(&mut self, id: u64, member: Option<u32>, now: Instant) -> Option<Arc<[u8]>> {
        if let Some((since, path)) = self.known.get(&id)
            && now.duration_since(*since) < CACHE_TIME
        {
            return Some(path.clone());
        }
        let table = fs::read(format!("/proc/{}/cgroup", member?)).ok()?;
        let (path, unified) = path_of(&table)?;
        let path: Arc<[u8]> = path.into();
        // Ids are those of the v2 hierarchy; the path of a v1 one cannot be checked, and is not remembered.
        if unified {
            if inode_of(&path)? != id {
                return None;
            }
            if self.known.len() >= CACHE_LIMIT {
                self.known.clear();
            }
            self.known.insert(id, (now, path.clone()));
        }
        Some(path)
    }
}

/// The id of the cgroup at `path` of the v2 hierarchy: the inode of its directory (kernel's cgroup_id()).
fn inode_of(path: &[u8]) -> Option<u64> {
    let path = OsStr::from_bytes(path.strip_prefix(b"/")?);
    // On a hybrid host the v2 hierarchy is at `unified`.
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    roots.iter().find_map(|root| fs::metadata(Path::new(root).join(path)).ok()).map(|found| found.ino())
}

/// The telling path of /proc/PID/cgroup, and whether it is the v2 hierarchy's: that one, unless a v1 hierarchy
/// names a container and it does not.
fn path_of(table: &[u8]) -> Option<(&[u8], bool)> {
    // Lines are `id:controllers:path`; the path may hold colons.
    let paths = table.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |b| *b == b':');
        Some((fields.next()?, fields.nth(1)?))
    });
    let unified = paths.clone().find(|(id, _)| *id == b"0").map(|(_, path)| (path, true));
    let named =
        paths.filter(|(id, path)| *id != b"0" && container(path).is_some()).map(|(_, path)| (path, false)).next();
    match unified {
        Some((path, _)) if container(path).is_some() => unified,
        _ => named.or(unified),
    }
}

/// The container that a cgroup's path names: the innermost component that holds a full id of 64 hexadecimal digits.
pub(super) fn container(path: &[u8]) -> Option<Container> {
    let mut components = path.split(|b| *b == b'/');
    // What systemd lets users arrange as they like, names included.
    let users = |name: &[u8]| name == b"user.slice" || name.starts_with(b"user@") || name.starts_with(b"user-");
    if components.clone().any(users) {
        return None;
    }
    let id = components.by_ref().rev().find_map(container_id)?.to_owned();
    let pod_uid = components.rev().find_map(pod_uid);
    Some(Container { id, pod_uid, name: None, image: None })
}

/// Whether a /proc/PID/cgroup names a container.
pub(super) fn is_in_container(table: &[u8]) -> bool {
    path_of(table).is_some_and(|(path, _)| container(path).is_some())
}

/// `<id>`, `crio-<id>`, `cri-containerd-<id>.scope`, `docker-<id>.scope`, `…:cri-containerd:<id>` and their like.
fn container_id(component: &[u8]) -> Option<&str> {
    let name = component.strip_suffix(b".scope").unwrap_or(component);
    // cri-o's monitor of a container is not in it.
    if name.starts_with(b"crio-conmon-") {
        return None;
    }
    let (before, id) = name.split_at_checked(name.len().checked_sub(64)?)?;
    let separated = matches!(before.last(), None | Some(b'-' | b':'));
    let hex = id.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    (separated && hex).then(|| std::str::from_utf8(id).ok()).flatten()
}

/// `pod<uid>` or `kubepods-burstable-pod<uid with _>.slice`.
fn pod_uid(component: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(component).ok()?;
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.starts_with("kubepods").then(|| slice.rsplit_once("-pod"))??.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // A static pod's uid is 32 digits without dashes.
    let shape = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    shape.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "3b3bb1fa-5a12-4f0e-9d6f-4e6f6e2f8a11";

    #[test]
    fn container_and_pod_are_read_from_every_runtimes_path() {
        let under = UID.replace('-', "_");
        for (path, pod) in [
            (format!("/kubepods/burstable/pod{UID}/{ID}"), Some(UID)),
            (format!("/kubepods/pod{UID}/crio-{ID}"), Some(UID)),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some(UID),
            ),
            (format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/container"), Some(UID)),
            (format!("/system.slice/containerd.service/kubepods-pod{under}.slice:cri-containerd:{ID}"), None),
            (format!("/system.slice/docker-{ID}.scope"), None),
            (format!("/machine.slice/libpod-{ID}.scope/container"), None),
            (format!("/kubelet/kubepods/pod{UID}/{ID}/init.scope"), Some(UID)),
        ] {
            let found = container(path.as_bytes()).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((found.id.as_str(), found.pod_uid.as_deref()), (ID, pod), "{path}");
        }
    }

    #[test]
    fn only_the_path_of_that_very_cgroup_is_taken() {
        let (mut cgroups, now, pid) = (Cgroups::default(), Instant::now(), std::process::id());
        let table = fs::read("/proc/self/cgroup").unwrap();
        let (path, _) = path_of(&table).unwrap();
        let id = inode_of(path).unwrap();
        assert_eq!(cgroups.look_up(id, Some(pid), now).as_deref(), Some(path));
        // Remembered, so that a process which is gone still has one; another id is another cgroup.
        assert_eq!(cgroups.look_up(id, None, now).as_deref(), Some(path));
        assert_eq!(cgroups.look_up(id, None, now + CACHE_TIME), None);
        assert_eq!(cgroups.look_up(id + 1_000_000, Some(pid), now), None);
    }

    #[test]
    fn nothing_else_is_a_container() {
        for path in [
            "/",
            "/user.slice/user-0.slice",
            "/init.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "/crio-conmon-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope",
        ] {
            assert_eq!(container(path.as_bytes()), None, "{path}");
        }
        assert_eq!(container(format!("/x{ID}").as_bytes()), None);
        assert_eq!(container(ID.to_uppercase().as_bytes()), None);
    }

    #[test]
    fn on_a_hybrid_host_the_line_that_names_a_container_wins() {
        let table = format!("4:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n");
        assert_eq!(path_of(table.as_bytes()), Some((format!("/docker/{ID}").as_bytes(), false)));
        assert_eq!(path_of(b"4:memory:/user\n0::/user.slice/a:b\n"), Some((&b"/user.slice/a:b"[..], true)));
        assert_eq!(path_of(b"4:memory:/user\n"), None);
    }
}
