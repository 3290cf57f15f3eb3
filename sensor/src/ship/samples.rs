//! Alerts for the stage's own tests.
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    encoder::{Encoder, Format},
    identity::{Identity, Node},
    redact::Redaction,
};
use crate::{
    event::Enriched,
    policy::{Alert, Compiled, View},
};

/// An alert of a policy with this `spec`, on an open that differs from an ordinary one by `change`.
pub(super) fn alert(spec: &Value, change: &Value) -> Alert {
    let mut policy = json!({
        "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy",
        "metadata": {"name": "p"}, "spec": {"paths": ["/etc/shadow"], "subjects": "all"},
    });
    let fields = spec.as_object().unwrap().clone();
    policy["spec"].as_object_mut().unwrap().extend(fields);
    let policy = serde_json::from_value(policy).unwrap();
    let policy = Compiled::new(policy, "p.yaml".to_owned(), Vec::new()).unwrap();
    Alert {
        event: Arc::new(event(change)),
        policy: Arc::new(policy),
        pattern: "/etc/shadow".to_owned(),
        view: View::Path,
    }
}

/// An open in the form of a recording.
pub(super) fn event(change: &Value) -> Enriched {
    let mut event = json!({
        "time": "2026-11-22T12:00:00.000000001Z", "boot_id": "d2c1025b-5a45-44fe-8456-52608314bb86",
        "mode": "fexit", "cpu": 0, "sequence": 9, "pid": 4711, "tid": 4712, "own_pid": 7, "start_ns": 5_000_000_000_u64,
        "started": "2026-11-22T11:59:55Z", "login_uid": 1000,
        "cgroup_id": 77, "uid": 1000, "gid": 1000, "euid": 1000, "egid": 1000, "comm": "cat", "flags": 0o2_100_000, "result": 0,
        "file": {"inode": 12, "device": (254 << 20) + 1, "mode": 0o100_640, "links": 1, "created": false},
        "path": "/etc/shadow", "home": null, "requested": null, "status": [],
        "process": {"pid": 4711, "start_ns": 5_000_000_000_u64, "executable": "/usr/bin/cat", "args": ["cat", "shadow"], "cwd": "/etc"},
        "ancestors": [{"pid": 1, "start_ns": 0, "executable": "/sbin/init", "args": ["/sbin/init"]}],
        "cgroup_path": "/user.slice", "container": null, "enrichment": "complete",
    });
    event.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    serde_json::from_value(event).unwrap()
}

/// What makes the open one of a pod.
pub(super) fn in_pod() -> Value {
    let uid = "0d3f7c1e-2b1a-4a5e-9c3d-7f6a5b4c3d2e";
    json!({
        "container": {
            "id": "c".repeat(64), "pod_uid": uid, "runtime": "containerd", "name": "web",
            "image": "docker.io/library/nginx", "image_tag": "1.29", "image_digest": format!("sha256:{}", "a".repeat(64)),
        },
        "pod": {
            "namespace": "shop", "name": "web-5d4f8-x2x7z", "uid": uid, "ips": ["10.1.2.3"],
            "labels": {"app": "web", "app.kubernetes.io/name": "web", "team": "shop"},
            "owners": [{"kind": "ReplicaSet", "name": "web-5d4f8"}, {"kind": "Deployment", "name": "web"}],
            "namespace_labels": null,
        },
    })
}

/// An encoder whose records are the same on any machine.
pub(super) fn encoder(format: Format) -> Encoder {
    let identity = Identity { agent_id: Uuid::from_u128(0xa), epoch: Uuid::from_u128(0xe) };
    let node = Node { cluster: Some("lab".to_owned()), name: "node-1".to_owned() };
    Encoder::new(identity, node, format, &Redaction::On)
}
