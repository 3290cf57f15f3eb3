//! What controllers, the scheduler and a kubelet would write.
use k8s_openapi::{
    api::core::v1::{Namespace, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::Cluster;

/// A pod as its controller makes it and the scheduler binds it.
#[derive(Clone, Debug)]
pub(crate) struct NewPod<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    pub(crate) labels: &'a [(&'a str, &'a str)],
    pub(crate) owner_references: Vec<OwnerReference>,
    /// Names; the image of each is of the same name.
    pub(crate) containers: &'a [&'a str],
    pub(crate) init_containers: &'a [&'a str],
}

impl Default for NewPod<'_> {
    fn default() -> Self {
        Self {
            namespace: "default",
            name: "web",
            node: "n1",
            labels: &[],
            owner_references: vec![],
            containers: &["main"],
            init_containers: &[],
        }
    }
}

impl NewPod<'_> {
    /// The object, for those who create it by their own means.
    pub(crate) fn object(&self) -> Pod {
        let containers = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({"name": name, "image": image(name)})).collect()
        };
        object(json!({
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "labels": self.labels.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "ownerReferences": self.owner_references,
            },
            "spec": {
                "nodeName": self.node,
                "containers": containers(self.containers),
                "initContainers": containers(self.init_containers),
            },
        }))
    }
}

/// The reference that a controller puts into what it makes. The controller's own object need not be there: nobody
/// here collects garbage.
pub(crate) fn controlled_by(api_version: &str, kind: &str, name: &str) -> OwnerReference {
    object(json!({
        "apiVersion": api_version, "kind": kind, "name": name, "controller": true, "blockOwnerDeletion": true,
        "uid": uuid::Uuid::new_v4(),
    }))
}

/// What a kubelet says of a pod whose containers run, given by their names and ids of 64 hexadecimal digits.
pub(crate) fn running(containers: &[(&str, &str)]) -> PodStatus {
    let now = jiff::Timestamp::now();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|(name, id)| {
            json!({
                "name": name,
                "containerID": format!("containerd://{id}"),
                "image": image(name),
                // The manifest's digest; any will do.
                "imageID": format!("docker.io/library/{name}@sha256:{}", "5a".repeat(32)),
                "ready": true, "started": true, "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            })
        })
        .collect();
    object(json!({
        "phase": "Running", "startTime": now, "hostIP": "10.96.255.15", "podIP": "10.96.64.2",
        "podIPs": [{"ip": "10.96.64.2"}], "containerStatuses": statuses,
    }))
}

impl Cluster {
    pub(crate) fn create_namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
        let namespace = object::<Namespace>(json!({"metadata": {"name": name, "labels": labels}}));
        let namespaces = Api::all(self.client());
        self.run(async move { namespaces.create(&PostParams::default(), &namespace).await }).unwrap();
    }

    /// Makes a pod and returns it as the server has it, with its uid.
    pub(crate) fn create_pod(&self, pod: &NewPod<'_>) -> Pod {
        let (pods, pod) = (self.pods(pod.namespace), pod.object());
        self.run(async move { pods.create(&PostParams::default(), &pod).await }).unwrap()
    }

    /// Says what has become of a pod, as a kubelet does: what `status` leaves out stays as it is.
    pub(crate) fn patch_status(&self, namespace: &str, name: &str, status: &PodStatus) -> Pod {
        let (pods, name) = (self.pods(namespace), name.to_owned());
        let patch = Patch::Strategic(json!({"status": status}));
        self.run(async move { pods.patch_status(&name, &PatchParams::default(), &patch).await }).unwrap()
    }

    /// Deletes a pod at once, as a kubelet does when its containers are gone.
    pub(crate) fn delete_pod(&self, namespace: &str, name: &str) {
        let (pods, name) = (self.pods(namespace), name.to_owned());
        self.run(async move { pods.delete(&name, &DeleteParams::default().grace_period(0)).await }).unwrap();
    }

    /// Gives a pod one more label, or another value of one that it has.
    pub(crate) fn label_pod(&self, namespace: &str, name: &str, key: &str, value: &str) {
        let (pods, name) = (self.pods(namespace), name.to_owned());
        let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
        self.run(async move { pods.patch(&name, &PatchParams::default(), &patch).await }).unwrap();
    }

    /// The same of a namespace.
    pub(crate) fn label_namespace(&self, name: &str, key: &str, value: &str) {
        let (namespaces, name) = (Api::<Namespace>::all(self.client()), name.to_owned());
        let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
        self.run(async move { namespaces.patch(&name, &PatchParams::default(), &patch).await }).unwrap();
    }

    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }
}

fn image(container: &str) -> String {
    format!("docker.io/library/{container}:1")
}

/// An object of Kubernetes from its JSON form, the only one that its documentation knows.
pub(super) fn object<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}
