//! Policies that change while the sensor runs.
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Compiled, Directory, InForce, Loaded, Objects, PolicySet, Standing};
use crate::{
    event::{CaptureMode, Operation},
    metrics::Metrics,
    notice::Notices,
};

/// How often the directory is looked at. A look is a stat(2) of each file, so no event of any file system is missed,
/// not even of those that tell of none.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long news of the API server are gathered: it tells of objects one by one.
const GATHER: Duration = Duration::from_millis(200);
/// Shortest time between two readings, each as long as it takes: whoever changes policies again and again must not have
/// the sensor do nothing else.
const SHARE: u32 = 4;

/// Where policies go once they are read.
pub struct Readers {
    /// To the stages: what is in force.
    pub sets: watch::Sender<Arc<PolicySet>>,
    /// From the last of them: by what opens are judged.
    pub in_force: watch::Receiver<Arc<PolicySet>>,
    /// To whoever asks: what has become of each object; None until the API server has told what there is.
    pub objects: watch::Sender<Option<Arc<[InForce]>>>,
    /// To the node's own people: what has become of each policy.
    pub standings: watch::Sender<Arc<[Standing]>>,
}

/// Looks at `directory`, and at `objects` when they change, until `stop`, and hands every new set to `readers`: a receiver
/// has the old set or the new one, never parts of both.
///
/// # Errors
/// Only if this program is broken.
pub async fn reload(
    mut directory: Directory,
    mut objects: watch::Receiver<Arc<Objects>>,
    mut readers: Readers,
    metrics: Arc<Metrics>,
    notices: Notices,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut took = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(INTERVAL) => {}
            // Without a cluster there is none that could change them.
            Ok(()) = objects.changed() => sleep(GATHER).await,
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(took * SHARE) => {}
        }
        let known = objects.borrow_and_update().clone();
        let (began, whole) = (Instant::now(), known.is_whole());
        let (back, outcome) = spawn_blocking(move || {
            directory.set_objects(known.in_order());
            let outcome = directory.poll();
            (directory, outcome)
        })
        .await?;
        directory = back;
        took = Duration::ZERO;
        match outcome {
            // That there are no objects is an answer, too.
            Ok(None) if whole && readers.objects.borrow().is_none() => {
                readers.objects.send_replace(Some(Arc::from([])));
            }
            Ok(None) => {}
            Ok(Some(loaded)) => {
                took = began.elapsed();
                loaded.tell(&metrics, &notices);
                readers.standings.send_replace(loaded.standings().into());
                readers.sets.send_replace(loaded.set.clone());
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = readers.in_force.wait_for(|set| Arc::ptr_eq(set, &loaded.set)) => {}
                }
                if whole || readers.objects.borrow().is_some() {
                    readers.objects.send_replace(Some(loaded.objects.into()));
                }
            }
            Err(why) => notices.add("policy", "unreadable", 1, format!("{why}; the policies stay as they were")),
        }
    }
}

/// Tells how many policies watch what cannot be seen here.
pub fn tell_unseen(set: &PolicySet, mode: CaptureMode, unseen: impl Iterator<Item = Operation>) {
    for operation in unseen {
        let asks = |policy: &&Arc<Compiled>| policy.policy.spec.operations.contains(&operation);
        let policies = set.policies.iter().filter(asks).count();
        if policies > 0 {
            tracing::warn!(%operation, policies, "this operation is not seen on this kernel in mode {mode}: what is done so raises no alert by these policies");
        }
    }
}

/// Most diagnostics that one reading writes to the log, and of those most of one policy: one author's must not push out
/// the others'.
const TOLD: usize = 50;
const TOLD_OF_ONE: usize = 3;

impl Loaded {
    /// Makes the state visible: in the log, in `metrics`, and as a notice if a policy is not in force as it stands.
    pub fn tell(&self, metrics: &Metrics, notices: &Notices) {
        let errors = self.errors().count();
        metrics.policies.set(self.set.policies.len() as u64);
        let names: Vec<String> = self.set.policies.iter().map(|policy| policy.full_name()).collect();
        metrics.hits.know(names.iter().map(String::as_str));
        metrics.policies_stale.set(self.stale.len() as u64);
        metrics.policy_errors.set(errors as u64);
        let mut of_one: HashMap<_, usize> = HashMap::new();
        let mut told = 0;
        for diagnostic in &self.diagnostics {
            let count = of_one.entry((&diagnostic.file, &diagnostic.policy)).or_default();
            *count += 1;
            if *count <= TOLD_OF_ONE && told < TOLD {
                tracing::warn!("{diagnostic}");
                told += 1;
            }
        }
        if self.diagnostics.len() > told {
            tracing::warn!(
                "{} more; see `pathwatch policy check`, or an object's status",
                self.diagnostics.len() - told
            );
        }
        for name in &self.stale {
            tracing::warn!(policy = name, "the last good version of this policy stays in force");
        }
        if let Some(first) = self.errors().next() {
            notices.add("policy", "policy_failed", errors as u64, first.to_string());
        }
        if self.set.policies.is_empty() {
            tracing::warn!("no policy is in force: nothing raises an alert");
        }
        tracing::info!(
            policies = self.set.policies.len(),
            stale = self.stale.len(),
            errors,
            "policies are loaded"
        );
    }
}
