//! What the names of cgroups say of containers and pods.
use std::sync::Arc;

use crate::event::Container;

/// Deepest nesting that is looked at; systemd and kubelet together make some six levels.
pub(super) const DEPTH: usize = 64;

/// Namespaces of containerd that `ctr` and its kin put directly below the root, with containers of any name in them.
const CTR_NAMESPACES: [&str; 3] = ["default", "k8s.io", "moby"];
/// Longest name of such a container (containerd's `identifiers` package).
const CTR_LIMIT: usize = 76;

/// A container as its cgroup tells: who it is, before anybody has told its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// Id, runtime and uid of the pod.
    pub(super) container: Arc<Container>,
    /// It was the first in its pod: with most runtimes the sandbox, which no status tells of.
    pub(super) first: bool,
}

/// The container that a cgroup is, by the names from the node's root down to it; None if it is none.
///
/// The outermost name that tells a container counts. What lies below it was made by the container, or by something in
/// it, and may have any name: another pod's too.
pub(super) fn container<'a>(path: impl Iterator<Item = &'a [u8]>) -> Option<Container> {
    let (mut pods, mut pod, mut top) = (false, None, None);
    for (depth, name) in path.enumerate() {
        // What systemd lets users arrange as they like, names included.
        if name == b"user.slice" {
            return None;
        }
        let text = std::str::from_utf8(name).ok()?;
        pods |= text.contains("kubepods");
        if let Some((id, runtime)) = id_and_runtime(text) {
            let in_name = || text.split(':').next().and_then(pod_uid);
            let runtime = runtime.or_else(|| (top == Some("docker") && depth == 1).then_some("docker"));
            let pod_uid = if pods { pod.or_else(in_name) } else { None };
            return Some(Container {
                id: id.into(),
                pod_uid,
                runtime: runtime.map(Into::into),
                ..Container::default()
            });
        }
        if depth == 1 && top.is_some_and(|top| CTR_NAMESPACES.contains(&top)) && is_ctr_id(text) {
            return Some(Container {
                id: text.into(),
                runtime: Some("containerd".into()),
                ..Container::default()
            });
        }
        // Only the cgroup that a container is directly in is its pod.
        pod = pod_uid(text);
        if depth == 0 {
            top = Some(text);
        }
    }
    None
}

/// `<id>`, `crio-<id>`, `cri-containerd-<id>.scope`, `docker-<id>.scope`, `…:cri-containerd:<id>` and their like: the full
/// id of 64 hexadecimal digits, never a part of it, and what the name says of the runtime.
fn id_and_runtime(name: &str) -> Option<(&str, Option<&'static str>)> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (before, id) = name.split_at_checked(name.len().checked_sub(64)?)?;
    let hex = id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let separated = matches!(before.as_bytes().last(), None | Some(b'-' | b':'));
    // The monitor of a container (conmon) is not in it.
    if !hex || !separated || before.ends_with("conmon-") {
        return None;
    }
    let word = before.trim_end_matches(['-', ':']).rsplit(':').next().unwrap_or_default();
    let runtime = match word {
        "cri-containerd" | "nerdctl" => Some("containerd"),
        "crio" => Some("cri-o"),
        "docker" => Some("docker"),
        "libpod" => Some("podman"),
        _ => None,
    };
    Some((id, runtime))
}

/// `pod<uid>` or `kubepods-burstable-pod<uid with _>.slice`, below another slice's name or not.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.contains("kubepods").then(|| slice.rsplit_once("-pod"))??.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // A static pod's is the hash of its manifest: 32 digits without dashes.
    let shape = matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    shape.then_some(uid)
}

fn is_ctr_id(name: &str) -> bool {
    name.len() <= CTR_LIMIT && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Where the innermost kubelet of the path has its cgroups; None if the path is not in one of its containers.
pub(super) fn base_of(path: &[u8]) -> Option<&[u8]> {
    let starts: Vec<usize> =
        path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).collect();
    let name =
        |at: usize| path.get(at + 1..).unwrap_or_default().split(|byte| *byte == b'/').next().unwrap_or_default();
    let of_kubelet = |at: &usize| name(*at).windows(8).any(|part| part == b"kubepods");
    let first = |(n, at): &(usize, &usize)| {
        of_kubelet(at) && !n.checked_sub(1).and_then(|n| starts.get(n)).is_some_and(of_kubelet)
    };
    let (_, at) = starts.iter().enumerate().rfind(first)?;
    let (base, rest) = path.split_at_checked(*at)?;
    container(rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty())).map(|_| base)
}

/// Whether a /proc/PID/cgroup names a container.
pub(super) fn is_in_container(table: &[u8]) -> bool {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.splitn(3, |byte| *byte == b':').nth(2))
        .any(|path| container(path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "3b3bb1fa-5a12-4f0e-9d6f-4e6f6e2f8a11";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn of(path: &str) -> Option<(String, Option<String>, Option<String>)> {
        let names = path.split('/').filter(|name| !name.is_empty()).map(str::as_bytes);
        container(names).map(|found| (found.id, found.pod_uid, found.runtime))
    }

    #[test]
    fn container_and_pod_are_read_from_every_runtimes_path() {
        let under = UID.replace('-', "_");
        for (path, pod, runtime) in [
            (format!("/kubepods/burstable/pod{UID}/{ID}"), Some(UID), None),
            (format!("/kubepods/pod{UID}/crio-{ID}"), Some(UID), Some("cri-o")),
            (format!("/kubepods/besteffort/pod{HASH}/{ID}"), Some(HASH), None),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some(UID),
                Some("containerd"),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/container"),
                Some(UID),
                Some("cri-o"),
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}"
                ),
                Some(UID),
                Some("containerd"),
            ),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some(UID),
                Some("containerd"),
            ),
            (format!("/kubelet/kubepods/pod{UID}/{ID}/init.scope"), Some(UID), None),
            (format!("/custom/root/kubepods/pod{UID}/{ID}"), Some(UID), None),
            (format!("/docker/{ID}"), None, Some("docker")),
            (format!("/system.slice/docker-{ID}.scope"), None, Some("docker")),
            (format!("/system.slice/nerdctl-{ID}.scope"), None, Some("containerd")),
            (format!("/machine.slice/libpod-{ID}.scope/container"), None, Some("podman")),
        ] {
            assert_eq!(of(&path), Some((ID.into(), pod.map(Into::into), runtime.map(Into::into))), "{path}");
        }
        assert_eq!(of("/default/redis"), Some(("redis".into(), None, Some("containerd".into()))));
    }

    #[test]
    fn the_outermost_container_counts_whatever_names_it_makes_below() {
        for path in [
            format!("/kubepods/pod{UID}/{ID}/kubepods/podaaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa/{OTHER}"),
            format!("/kubepods/pod{UID}/{ID}/docker/{OTHER}"),
            format!("/kubepods/pod{UID}/{ID}/user.slice/x"),
            format!("/kubepods/pod{UID}/{ID}/crio-conmon-{OTHER}.scope"),
        ] {
            assert_eq!(of(&path).map(|(id, pod, _)| (id, pod)), Some((ID.into(), Some(UID.into()))), "{path}");
        }
        // Nobody but the kubelet makes what lies between `kubepods` and a container; elsewhere the name says nothing.
        assert_eq!(of(&format!("/system.slice/pod{UID}/{ID}")).unwrap().1, None);
        assert_eq!(of(&format!("/kubepods/pod{UID}/between/{ID}")).unwrap().1, None);
    }

    #[test]
    fn nothing_else_is_a_container() {
        for path in [
            "/".to_owned(),
            "/user.slice/user-0.slice".into(),
            "/init.scope".into(),
            format!("/user.slice/user-1000.slice/user@1000.service/app.slice/{ID}"),
            format!("/user.slice/user-1000.slice/libpod-{ID}.scope"),
            format!("/crio-conmon-{ID}.scope"),
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/x{ID}"),
            format!("/{}", ID.to_uppercase()),
            format!("/kubepods/pod{UID}"),
            format!("/{}", &ID[1..]),
            "/default/with space".into(),
            "/default".into(),
            "/system.slice/redis.service".into(),
        ] {
            assert_eq!(of(&path), None, "{path}");
        }
    }

    #[test]
    fn a_node_that_is_a_container_begins_where_its_kubelet_does() {
        let pod = format!("kubepods/burstable/pod{UID}/{}", ID);
        for (own, base) in [
            (format!("/{pod}"), Some("")),
            (format!("/docker/{}/kubelet/{pod}", OTHER), Some("/docker/fedc")),
            (format!("/docker/{}", OTHER), None),
            ("/system.slice/pathwatch.service".to_owned(), None),
            ("/kubepods/burstable".to_owned(), None),
        ] {
            let found = base_of(own.as_bytes());
            assert_eq!(found.is_some(), base.is_some(), "{own}");
            assert!(found.is_none_or(|found| found.starts_with(base.unwrap().as_bytes())), "{own}");
        }
        let own = format!("/docker/{}/kubelet/{pod}", OTHER);
        assert_eq!(base_of(own.as_bytes()), Some(format!("/docker/{}/kubelet", OTHER).as_bytes()));
    }
}
