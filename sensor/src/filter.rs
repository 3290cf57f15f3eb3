//! Keeps the kernel's filter at the policies in force, and lets these reach the matcher once the kernel knows them: no open
//! is judged by a policy for which the kernel did not look yet.
use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{capture::Filter, keys::Known, metrics::Metrics, notice::Notices, policy::PolicySet};

/// How long the kernel may remember what a directory means. It is told of every change that matters; this bounds what
/// nobody has thought of.
const FORGET: Duration = Duration::from_secs(1);

/// Hands on every set of `policies` to `in_force` after the kernel has its keys, until `stop`.
///
/// # Errors
/// None: what the kernel refuses is told, and tried again.
pub async fn follow(
    mut filter: Filter,
    mut policies: watch::Receiver<Arc<PolicySet>>,
    mut known: watch::Receiver<Arc<Known>>,
    in_force: watch::Sender<Arc<PolicySet>>,
    (metrics, notices): (Arc<Metrics>, Notices),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(FORGET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // As long as enrichment has not looked, everything passes.
    let mut due = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Ok(()) = policies.changed() => due = true,
            Ok(()) = known.changed() => due = true,
            _ = ticks.tick() => {
                if let Err(why) = filter.forget() {
                    notices.add("capture", "filter_unset", 1, why.to_string());
                }
                for (counter, passed) in metrics.passed.iter().zip(filter.passed()) {
                    counter.add(passed.saturating_sub(counter.get()));
                }
            }
        }
        if !due {
            continue;
        }
        let (set, known) = (policies.borrow_and_update().clone(), known.borrow_and_update().clone());
        match filter.set(&set.keys(&known)) {
            Ok(()) => {
                due = false;
                in_force.send_if_modified(|before| {
                    let changed = !Arc::ptr_eq(before, &set);
                    *before = set;
                    changed
                });
            }
            // Tried again with the next tick; what the kernel does not look for must not seem to be in force.
            Err(why) => {
                notices.add("capture", "filter_unset", 1, format!("{why}; the policies before stay in force"));
            }
        }
    }
}
