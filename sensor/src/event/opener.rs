//! Who opened a file: program, container, pod.
use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Args, Event, Name};

/// A running program, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Process id as the node's /proc numbers it.
    pub pid: u32,
    /// When it started, in nanoseconds since boot, to the clock tick.
    pub start_ns: u64,
    /// The kernel's path of the running program.
    pub executable: Option<Name>,
    /// What it was called with.
    #[serde(default, skip_serializing_if = "Args::is_empty")]
    pub args: Args,
    /// There were more arguments than these.
    #[serde(default, skip_serializing_if = "is_false")]
    pub args_cut: bool,
    /// The working directory in which it was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Name>,
    /// The above was read from /proc and not reported by the kernel at the exec: the process may have changed it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub from_proc: bool,
    /// Whether nobody but root, or the image, can have put that program at that path.
    #[serde(default)]
    pub trusted: bool,
    /// The file that was executed through its `#!` line, if the program is its interpreter; only if nobody but root, or
    /// the image, can have put that file there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Name>,
    /// SHA-256 of the executable in hexadecimal digits, where some policy asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The container of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The runtime's full id.
    pub id: String,
    /// Uid of the pod, if the kubelet made the cgroup; of a static pod, the hash of its manifest.
    pub pod_uid: Option<String>,
    /// What runs it: `containerd`, `cri-o`, `docker`; as far as the cgroup or the pod's status tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Its name in the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its image, fully qualified, without tag and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image's tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tag: Option<String>,
    /// The image's digest, as `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
}

/// The pod of a process, as the API server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its uid at the API server.
    #[serde(default)]
    pub uid: String,
    /// Its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It has more labels than these, so that none may be taken for missing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub labels_cut: bool,
    /// Who made it, and who made that: `ReplicaSet web-5d4f8`, `Deployment web`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<Workload>,
    /// Labels of its namespace, once they are known; only asked for if some policy selects by them.
    pub namespace_labels: Option<BTreeMap<String, String>>,
}

/// An object that makes pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// As `Deployment`.
    pub kind: String,
    /// Its name, in the pod's namespace; a node's for static pods.
    pub name: String,
}

/// Where a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its container; none on the host.
    pub container: Option<Arc<Container>>,
    /// The pod that the container belongs to, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<Pod>>,
}

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The opener's: of its container and that container's pod, or the host's if the host opened it.
    Own,
    /// The host's, opened from a container.
    Host,
}

/// Whether everything that should be known of the opener is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enrichment {
    /// Everything is known.
    Complete,
    /// [`Enriched::missing`] is not.
    Partial,
}

/// What is not known of an opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// Its program: the process was gone before /proc could be asked, and the kernel's report was lost.
    Program,
    /// Its cgroup, and so whether it is in a container.
    Cgroup,
    /// Its pod: the API server has not told of it, in the time that an event is held.
    Pod,
    /// Labels of its namespace, by which some policy selects.
    Namespace,
}

impl Missing {
    /// All of them, in the order of the enumeration.
    pub const ALL: [Self; 4] = [Self::Program, Self::Cgroup, Self::Pod, Self::Namespace];

    /// The word for it in records and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Cgroup => "cgroup",
            Self::Pod => "pod",
            Self::Namespace => "namespace",
        }
    }
}

/// How many generations of ancestors an event carries.
pub const ANCESTORS: usize = 5;

/// An event with who did it; what recordings hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enriched {
    /// The open.
    #[serde(flatten)]
    pub event: Event,
    /// The program that opened the file.
    pub process: Arc<Program>,
    /// Its parent, that one's parent and so on, at most [`ANCESTORS`].
    pub ancestors: Vec<Arc<Program>>,
    /// Effective user id, of a process in the initial user namespace; in another anybody can be any user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Path of the cgroup below the root of the hierarchy.
    pub cgroup_path: Option<Name>,
    /// The container that the cgroup belongs to; none on the host.
    pub container: Option<Arc<Container>>,
    /// The pod that the container belongs to, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<Pod>>,
    /// Where the process was before, if it has moved itself to another container's cgroup or out of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<Box<Place>>,
    /// Whose file it is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Paths of policies that lead to this file by other names: through symbolic links, or by a hard link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known_as: Vec<Name>,
    /// The same of where the other name of a rename or link is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_known_as: Vec<Name>,
    /// Whether the above is all there is to know.
    pub enrichment: Enrichment,
    /// What of it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

impl Enriched {
    /// Whether the process comes from that one, within [`ANCESTORS`] generations.
    #[must_use]
    pub fn is_made_below(&self, pid: u32) -> bool {
        self.ancestors.iter().any(|ancestor| ancestor.pid == pid)
    }

    /// Where the process is, and where it was before.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let now = Place { container: self.container.clone(), pod: self.pod.clone() };
        std::iter::once(now).chain(self.moved_from.as_deref().cloned())
    }
}
