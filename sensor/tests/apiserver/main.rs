//! What the sensor knows of pods comes from a real API server: while pods come and go, through its death, and whatever it
//! answers. Needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures belong in the log")]
mod churn;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod faults;
#[path = "../common/moved.rs"]
mod moved;
mod outage;
#[path = "../common/pipeline.rs"]
mod pipeline;
#[path = "../common/policies.rs"]
mod policies;
mod rights;

use std::path::{Path, PathBuf};

use sensor::enrich;

/// How enrich is told to ask the cluster.
fn asking(kubeconfig: PathBuf) -> enrich::Config {
    enrich::Config { kubeconfig: Some(kubeconfig), ..enrich::Config::default() }
}

/// A policy that watches everything below a directory, so that events of it are worth waiting for.
fn watching(directory: &Path) -> String {
    format!(
        "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: all}}\nspec: {{paths: ['{}/**']}}\n",
        directory.display()
    )
}

/// 64 hexadecimal digits that nobody else has.
fn container_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// The uid of a pod that was created.
fn uid(pod: &k8s_openapi::api::core::v1::Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}
