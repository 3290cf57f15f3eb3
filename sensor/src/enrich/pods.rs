//! Pods of this node as the API server tells of them: one watch, and one more of namespaces while a policy needs it.
//!
//! Must not know processes or cgroups; only this file of the stage knows `kube`.
use std::{collections::HashSet, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod as FullPod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher,
};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    describe::{Described, owners},
    pod::{Change, IDS, LABELS, PodInfo, size_of_labels},
};
use crate::{
    apiserver::{SILENCE, SPREAD, Source, from_cache, refuses_streams, spread},
    event::Pod,
    notice::Notices,
    policy::PolicySet,
};

/// Most bytes of a text that is kept.
const TEXT: usize = 512;
/// Most addresses of a pod that are kept; it has one of each family.
const IPS: usize = 4;

/// The fields of a pod that are used: a fraction of it.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = FullPod)]
#[serde(rename_all = "camelCase")]
struct SlimPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    #[serde(rename = "containerID")]
    container_id: String,
    state: State,
    last_state: State,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// Tells `changes` of the pods of `node`, and of namespaces while a policy selects by their labels; ends when nobody
/// listens.
pub(super) async fn tell_changes(
    source: Source,
    node: String,
    policies: watch::Receiver<Arc<PolicySet>>,
    changes: mpsc::Sender<Change>,
    notices: Notices,
) -> anyhow::Result<()> {
    let watch = async {
        sleep(spread()).await;
        let pods = watch_pods(&source, &node, &changes, &notices);
        tokio::join!(pods, watch_namespaces(&source, policies, &changes, &notices));
    };
    tokio::select! {
        () = changes.closed() => {}
        () = watch => {}
    }
    Ok(())
}

async fn watch_pods(source: &Source, node: &str, changes: &mpsc::Sender<Change>, notices: &Notices) {
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    // Streaming costs the API server least, but it may be too old for it; lists from its cache come next.
    let (mut config, plain) = (of_node.clone().streaming_lists(), from_cache(of_node));
    let mut pauses = watcher::DefaultBackoff::default();
    loop {
        let mut stream = source.stream::<DeserializeGuard<SlimPod>>(&(), &config, notices);
        let (began, mut begun, mut listed) = (Instant::now(), 0, false);
        // Also where the watch could go on: a server that was set up anew, or from a backup, counts its versions from
        // lower numbers, and would say nothing until it has caught up with the last that we know.
        while let Some(event) = stream.next().await {
            let change = match event {
                Ok(watcher::Event::Init) => {
                    (begun, listed) = (begun + 1, false);
                    // Lists that are broken off: the watcher would begin one after the other without a pause.
                    if begun > 2 {
                        break;
                    }
                    Change::Began
                }
                Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => {
                    Change::Applied(Box::new(info(pod, notices)))
                }
                Ok(watcher::Event::Delete(pod)) => Change::Deleted(pod.uid().unwrap_or_default()),
                Ok(watcher::Event::InitDone) => {
                    (begun, listed) = (0, true);
                    Change::Listed
                }
                Err(why) if config != plain && refuses_streams(&why) => {
                    config = plain.clone();
                    tracing::info!("the API server does not stream lists; pods are listed instead");
                    break;
                }
                Err(why) => {
                    source.tell(notices, "pods", &why);
                    break;
                }
            };
            if changes.send(change).await.is_err() {
                return;
            }
        }
        // A watch that was one is begun anew, which takes a moment: only then it is known whether the server is away.
        if listed && began.elapsed() > SPREAD {
            sleep(spread()).await;
            continue;
        }
        if changes.send(Change::Silent).await.is_err() {
            return;
        }
        sleep(pauses.next().unwrap_or(SILENCE)).await;
    }
}

async fn watch_namespaces(
    source: &Source,
    mut policies: watch::Receiver<Arc<PolicySet>>,
    changes: &mpsc::Sender<Change>,
    notices: &Notices,
) {
    let config = from_cache(watcher::Config::default());
    let mut pauses = watcher::DefaultBackoff::default();
    while policies.wait_for(|set| set.wants_namespace_labels()).await.is_ok() {
        let mut stream = source.stream::<PartialObjectMeta<Namespace>>(&(), &config, notices);
        let mut all = HashSet::new();
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = async { drop(policies.wait_for(|set| !set.wants_namespace_labels()).await) } => {
                    // What is not watched any more is not known any more.
                    if changes.send(Change::Namespaces(HashSet::new())).await.is_err() {
                        return;
                    }
                    break;
                }
            };
            let change = match event {
                Some(Ok(watcher::Event::Init)) => {
                    all.clear();
                    continue;
                }
                Some(Ok(watcher::Event::Apply(found) | watcher::Event::InitApply(found))) => {
                    all.insert(found.name_any());
                    Change::Namespace(found.name_any(), Some(found.labels().clone()))
                }
                Some(Ok(watcher::Event::Delete(found))) => Change::Namespace(found.name_any(), None),
                Some(Ok(watcher::Event::InitDone)) => Change::Namespaces(std::mem::take(&mut all)),
                Some(Err(why)) => {
                    source.tell(notices, "namespaces", &why);
                    Change::NamespacesSilent
                }
                None => Change::NamespacesSilent,
            };
            let over = matches!(change, Change::NamespacesSilent);
            if changes.send(change).await.is_err() {
                return;
            }
            if over {
                break;
            }
        }
        sleep(pauses.next().unwrap_or(SILENCE)).await;
    }
    // Without policies to come there is nothing to wait for, and this is not what ends the watch of pods.
    std::future::pending().await
}

/// What the sensor needs of a pod; of one that cannot be read as a whole, what its metadata tell.
fn info(DeserializeGuard(pod): DeserializeGuard<SlimPod>, notices: &Notices) -> PodInfo {
    let SlimPod { metadata, spec, status } = pod.unwrap_or_else(|why| {
        let name = why.metadata.name.clone().unwrap_or_default();
        notices.add("enrich", "pod_unreadable", 1, format!("pod {name} cannot be read as a whole: {}", why.error));
        SlimPod { metadata: why.metadata, spec: Spec::default(), status: Status::default() }
    });
    let annotation = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name)).cloned();
    let references = metadata.owner_references.unwrap_or_default();
    let controller = references.into_iter().find(|owner| owner.controller == Some(true));
    // A mirror pod is the kubelet's own account of a static one: its cgroup has the hash of the manifest for a uid.
    let mirrors = controller.as_ref().is_some_and(|owner| owner.kind == "Node");
    let is_hash =
        |hash: &String| hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let hash = annotation("kubernetes.io/config.mirror").filter(|hash| mirrors && is_hash(hash));
    let mut labels = metadata.labels.unwrap_or_default();
    let created = metadata.creation_timestamp.map(|time| time.0.as_second());
    let controller = controller.map(|owner| (cut(owner.kind), cut(owner.name)));
    let owners = owners(controller, &labels, created);
    let statuses =
        [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
    let alone =
        spec.containers.len() == 1 && spec.init_containers.is_empty() && spec.ephemeral_containers.is_empty();
    let only = spec.containers.into_iter().next().filter(|_| alone);
    // Before it is queued: the API server keeps objects of more than a megabyte.
    let labels_cut = size_of_labels(&labels) > LABELS;
    if labels_cut {
        let detail =
            format!("{} has more than {LABELS} bytes of labels", metadata.name.as_deref().unwrap_or_default());
        notices.add("enrich", "labels_full", 1, format!("{detail}; every selector of labels selects it"));
        labels.clear();
    }
    PodInfo {
        pod: Pod {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            ips: status.pod_ips.into_iter().take(IPS).map(|address| cut(address.ip)).collect(),
            labels,
            labels_cut,
            owners,
            namespace_labels: None,
        },
        hash,
        containers: statuses.into_iter().flatten().flat_map(ids_of).take(IDS).collect(),
        only: only.map(|only| Described::new(&only.name, &cut(only.image), "")),
        ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
    }
}

/// Texts of which the API server does not limit the length; whoever may make a pod chooses them.
fn cut(mut text: String) -> String {
    let end = (0..=TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.truncate(end);
    text
}

/// The container's present id and the one before, each with what it is called.
fn ids_of(status: ContainerStatus) -> impl Iterator<Item = (String, Described)> {
    let (image, image_id) = (cut(status.image), cut(status.image_id));
    let described = Described::new(&status.name, &image, &image_id);
    let ended = [status.state.terminated, status.last_state.terminated].into_iter().flatten();
    let ids = ended.map(|ended| ended.container_id).chain([status.container_id]);
    ids.filter_map(move |id| {
        let (runtime, id) = id.split_once("://")?;
        let mut described = described.clone();
        described.runtime = Some(runtime.to_owned());
        Some((id.to_owned(), described))
    })
    .collect::<Vec<_>>()
    .into_iter()
}
