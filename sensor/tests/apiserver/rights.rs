//! The API server refuses: no rights, an expired token. And what it may hold: pods at their largest, static ones, many.
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use sensor::event::{Enrichment, Missing};
use serde_json::json;

use super::{
    asking,
    cluster::{Cluster, NewPod, controlled_by, running},
    container_id,
    pipeline::{Cgroup, Pipeline, policies_of, wait_until},
    uid, watching,
};

/// Opens a new file in the container, and returns what is said of it.
fn open(pipeline: &Pipeline, cgroup: &Cgroup, place: &Path) -> std::sync::Arc<sensor::event::Enriched> {
    let marker = place.join(uuid::Uuid::new_v4().to_string());
    fs::write(&marker, "").unwrap();
    cgroup.open(&marker);
    pipeline.wait_for(&marker)
}

fn reasons(pipeline: &Pipeline) -> Vec<(&'static str, String)> {
    pipeline.notices.take().into_iter().map(|notice| (notice.reason, notice.detail)).collect()
}

fn remove(cgroup: Cgroup) {
    let above = Cgroup(cgroup.0.parent().unwrap().to_owned());
    cgroup.remove();
    above.remove();
}

#[test]
fn without_rights_it_says_so_and_goes_on_and_with_them_it_names_pods() {
    let cluster = Cluster::start();
    cluster.create_service_account("sensor");
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let token = place.join("token");
    fs::write(&token, cluster.token("sensor", 3600)).unwrap();
    let config = asking(cluster.kubeconfig_for_token_file(&token));
    let pipeline = Pipeline::start(&config, "n1", policies_of(&watching(&place)), &place);
    let cgroup =
        Cgroup::make(&format!("/kubepods/pod{}/{}", uid(&cluster.create_pod(&NewPod::default())), container_id()));
    let mut said = Vec::new();
    wait_until("the refusal", || {
        said = reasons(&pipeline);
        said.iter().any(|(reason, _)| *reason == "api_refused")
    });
    println!("{said:?}");
    assert!(said.iter().any(|(_, detail)| detail.contains("allow the service account to list and watch pods")));
    let began = Instant::now();
    let event = open(&pipeline, &cgroup, &place);
    assert_eq!((&event.missing[..], event.enrichment), (&[Missing::Pod][..], Enrichment::Partial));
    println!("an event without rights took {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1), "there is nothing to wait for");
    cluster.grant("sensor", &["pods", "namespaces"]);
    wait_until("the pod's name", || open(&pipeline, &cgroup, &place).pod.is_some());
    remove(cgroup);
    pipeline.finish();
}

#[test]
fn a_namespace_whose_labels_nobody_may_tell_is_said_to_be_missing() {
    let cluster = Cluster::start();
    cluster.create_service_account("sensor");
    cluster.grant("sensor", &["pods"]);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let token = place.join("token");
    fs::write(&token, cluster.token("sensor", 3600)).unwrap();
    let of_a_team = watching(&place).replace("spec: {", "spec: {namespaceSelector: {matchLabels: {team: red}}, ");
    let config = asking(cluster.kubeconfig_for_token_file(&token));
    let pipeline = Pipeline::start(&config, "n1", policies_of(&of_a_team), &place);
    let pod = uid(&cluster.create_pod(&NewPod::default()));
    let cgroup = Cgroup::make(&format!("/kubepods/pod{pod}/{}", container_id()));
    wait_until("the pod's name", || open(&pipeline, &cgroup, &place).pod.is_some());
    let event = open(&pipeline, &cgroup, &place);
    assert_eq!((&event.missing[..], event.enrichment), (&[Missing::Namespace][..], Enrichment::Partial));
    cluster.revoke("sensor");
    cluster.grant("sensor", &["pods", "namespaces"]);
    wait_until("the namespace", || open(&pipeline, &cgroup, &place).missing.is_empty());
    remove(cgroup);
    pipeline.finish();
}

#[test]
fn a_token_that_is_no_longer_good_is_replaced_by_the_file_as_it_is_then() {
    let mut cluster = Cluster::start();
    cluster.create_service_account("sensor");
    cluster.grant("sensor", &["pods", "namespaces"]);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let token = place.join("token");
    fs::write(&token, cluster.token_bound_to("sensor", "old")).unwrap();
    let config = asking(cluster.kubeconfig_for_token_file(&token));
    let pipeline = Pipeline::start(&config, "n1", policies_of(&watching(&place)), &place);
    let cgroup =
        Cgroup::make(&format!("/kubepods/pod{}/{}", uid(&cluster.create_pod(&NewPod::default())), container_id()));
    wait_until("the pod's name", || open(&pipeline, &cgroup, &place).pod.is_some());
    remove(cgroup);
    cluster.delete_secret("old");
    // A restart ends the watch, and the server's memory of the token.
    cluster.restart(true);
    wait_until("the refusal", || reasons(&pipeline).iter().any(|(_, detail)| detail.contains("token")));
    fs::write(&token, cluster.token_bound_to("sensor", "new")).unwrap();
    let replaced = Instant::now();
    let pod = cluster.create_pod(&NewPod { name: "next", ..NewPod::default() });
    let cgroup = Cgroup::make(&format!("/kubepods/pod{}/{}", uid(&pod), container_id()));
    wait_until("the next pod's name", || open(&pipeline, &cgroup, &place).pod.is_some());
    println!("a pod is named {:.1?} after the token was replaced", replaced.elapsed());
    remove(cgroup);
    pipeline.finish();
}

#[test]
fn pods_at_their_largest_static_ones_and_500_on_the_node_are_named() {
    let cluster = Cluster::start();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let pipeline = Pipeline::start(&asking(cluster.kubeconfig()), "n1", policies_of(&watching(&place)), &place);
    for n in 0..500 {
        cluster.create_pod(&NewPod { name: &format!("p{n}"), ..NewPod::default() });
    }
    // Values of 63 bytes, which is the most, and 256 KiB of annotations, which are. More labels than are kept.
    let labels: std::collections::BTreeMap<_, _> =
        (0..1000).map(|n| (format!("{n}.example.com/{}", "k".repeat(63)), "v".repeat(63))).collect();
    let mut large = NewPod { name: "large", ..NewPod::default() }.object();
    large.metadata.labels = Some(labels);
    large.metadata.annotations = Some([("a".to_owned(), "x".repeat((256 << 10) - 1))].into());
    let large = create(&cluster, large);
    let mut mirror = NewPod {
        name: "static-n1",
        owner_references: vec![controlled_by("v1", "Node", "n1")],
        ..NewPod::default()
    }
    .object();
    let hash = uuid::Uuid::new_v4().simple().to_string();
    mirror.metadata.annotations = Some([("kubernetes.io/config.mirror".to_owned(), hash.clone())].into());
    create(&cluster, mirror);
    // Not a mirror: its owner is no node. It claims a static pod's uid all the same.
    let mut liar = NewPod { name: "liar", ..NewPod::default() }.object();
    liar.metadata.annotations = Some([("kubernetes.io/config.mirror".to_owned(), hash.clone())].into());
    create(&cluster, liar);
    // A mirror by its looks, which whoever may make pods can give it; it claims the uid of another pod.
    let owner_references = vec![controlled_by("v1", "Node", "n1")];
    let mut thief = NewPod { name: "thief", owner_references, ..NewPod::default() }.object();
    thief.metadata.annotations = Some([("kubernetes.io/config.mirror".to_owned(), uid(&large))].into());
    create(&cluster, thief);
    let named = |uid: &str| {
        let cgroup = Cgroup::make(&format!("/kubepods/pod{uid}/{}", container_id()));
        let event = open(&pipeline, &cgroup, &place);
        remove(cgroup);
        event.pod.as_ref().map(|pod| (pod.name.clone(), pod.labels_cut, pod.owners.len()))
    };
    wait_until("all pods", || pipeline.metrics.pods.get() == 504);
    assert_eq!(named(&uid(&large)), Some(("large".into(), true, 0)));
    assert_eq!(named(&hash), Some(("static-n1".into(), false, 1)));
    let said = reasons(&pipeline);
    assert!(said.iter().any(|(reason, _)| *reason == "labels_full"), "{said:?}");
    pipeline.finish();
}

#[test]
fn init_and_restarted_containers_have_their_own_names() {
    let cluster = Cluster::start();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let pipeline = Pipeline::start(&asking(cluster.kubeconfig()), "n1", policies_of(&watching(&place)), &place);
    let new = NewPod { containers: &["main", "side"], init_containers: &["prepare"], ..NewPod::default() };
    let pod = uid(&cluster.create_pod(&new));
    let [sandbox, init, first, again, side, debug] = [(); 6].map(|()| container_id());
    let cgroups = [&sandbox, &init, &first, &again, &side, &debug]
        .map(|id| Cgroup::make(&format!("/kubepods/pod{pod}/{id}")));
    let mut status = json!(running(&[("main", &again), ("side", &side)]));
    status["containerStatuses"][0]["lastState"] =
        json!({"terminated": {"exitCode": 1, "containerID": format!("containerd://{first}")}});
    let more = |name: &str, id: &str| {
        json!([{
            "name": name, "containerID": format!("cri-o://{id}"), "image": "registry.example:5000/tools", "imageID": "",
            "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "containerID": format!("cri-o://{id}")}},
        }])
    };
    status["initContainerStatuses"] = more("prepare", &init);
    status["ephemeralContainerStatuses"] = more("debugger", &debug);
    cluster.patch_status("default", "web", &serde_json::from_value(status).unwrap());
    let name = |cgroup: &Cgroup| {
        let event = open(&pipeline, cgroup, &place);
        let container = event.container.clone().unwrap();
        assert!(event.pod.is_some(), "{event:?}");
        container.name.clone()
    };
    wait_until("the status", || name(&cgroups[1]).is_some());
    let names: Vec<_> = cgroups.iter().map(name).collect();
    let want = [None, Some("prepare"), Some("main"), Some("main"), Some("side"), Some("debugger")];
    assert_eq!(names, want.map(|name| name.map(str::to_owned)));
    let event = open(&pipeline, &cgroups[3], &place);
    let container = event.container.as_ref().unwrap();
    let digest = format!("sha256:{}", "5a".repeat(32));
    assert_eq!(
        (
            container.runtime.as_deref(),
            container.image.as_deref(),
            container.image_tag.as_deref(),
            &container.image_digest
        ),
        (Some("containerd"), Some("docker.io/library/main"), Some("1"), &Some(digest))
    );
    let debugger = open(&pipeline, &cgroups[5], &place).container.clone().unwrap();
    assert_eq!((debugger.image.as_deref(), &debugger.image_tag), (Some("registry.example:5000/tools"), &None));
    let above = Cgroup(cgroups[0].0.parent().unwrap().to_owned());
    cgroups.into_iter().for_each(Cgroup::remove);
    above.remove();
    pipeline.finish();
}

fn create(cluster: &Cluster, pod: Pod) -> Pod {
    let pods = cluster.pods("default");
    cluster.run(async move { pods.create(&PostParams::default(), &pod).await }).unwrap()
}
