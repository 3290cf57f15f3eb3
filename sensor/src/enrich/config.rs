//! How to find out who opened a file.
use std::{path::PathBuf, time::Duration};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// How often gauges are set and the targets decided anew, if something has changed: so late the kernel filter learns that a
/// policy speaks of a pod since its labels changed.
pub(super) const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// How often what is over is looked for.
pub(super) const SWEEP: Duration = Duration::from_secs(30);

/// How to find out who opened a file.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether to ask the API server for pods: `auto` does if the sensor is a pod itself or `kubeconfig` is set.
    pub kubernetes: Kubernetes,
    /// How to reach the API server; by default as a pod does, by its service account.
    pub kubeconfig: Option<PathBuf>,
    /// How long an event of a pod that is not known yet waits for the API server to tell, at most 10s.
    #[schemars(with = "String")]
    pub hold: SignedDuration,
    /// Where the node's cgroup file systems are mounted.
    pub cgroups: PathBuf,
    /// Where the node's procfs is mounted: `/host/proc` or the like in a container without the node's pid namespace.
    pub proc: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        // A watch is rarely a second late; an alert that waits longer than two is late itself.
        Self {
            kubernetes: Kubernetes::Auto,
            kubeconfig: None,
            hold: SignedDuration::from_secs(2),
            cgroups: "/sys/fs/cgroup".into(),
            proc: "/proc".into(),
        }
    }
}

impl Config {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if !(SignedDuration::ZERO..=SignedDuration::from_secs(10)).contains(&self.hold) {
            return Err(format!("enrich.hold is {:#}; it must be from 0s to 10s", self.hold));
        }
        if self.kubernetes == Kubernetes::Off && self.kubeconfig.is_some() {
            return Err("enrich.kubeconfig is set and enrich.kubernetes is off; leave one of them out".to_owned());
        }
        Ok(())
    }

    /// Whether there is a cluster to ask.
    #[must_use]
    pub fn in_cluster(&self) -> bool {
        match self.kubernetes {
            // What the kubelet sets in every pod.
            Kubernetes::Auto => self.kubeconfig.is_some() || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            Kubernetes::On => true,
            Kubernetes::Off => false,
        }
    }
}

/// Whether to ask the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kubernetes {
    /// If there is a cluster to ask.
    Auto,
    /// A cluster that cannot be asked is an error.
    On,
    /// Events go without pods.
    Off,
}
