//! Keeps the kernel's filter at the policies in force, and lets these reach the matcher once the kernel knows them: no open
//! is judged by a policy for which the kernel did not look yet.
use std::{sync::Arc, time::Duration};

use sensor_ebpf::table::Wants;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    capture::Filter,
    enrich::Targets,
    keys::Known,
    metrics::Metrics,
    notice::Notices,
    policy::{self, PolicySet},
};

/// How long the kernel may remember what a directory means. It is told of every change that matters; this bounds what
/// nobody has thought of.
const FORGET: Duration = Duration::from_secs(1);

/// Said when the kernel's table has no place for a name.
const FULL: &str = "the policies' paths have more names than the kernel's filter has places for (some 12,000 different ones fit): every \
                    open is matched in user space until there are fewer paths";

/// Hands on every set of `policies` to `in_force` after the kernel has its keys, until `stop`.
///
/// # Errors
/// None: what the kernel refuses is told, and tried again.
pub async fn follow(
    mut filter: Filter,
    mut policies: watch::Receiver<Arc<PolicySet>>,
    (mut known, mut targets): (watch::Receiver<Arc<Known>>, watch::Receiver<Arc<Targets>>),
    in_force: watch::Sender<Arc<PolicySet>>,
    (metrics, notices): (Arc<Metrics>, Notices),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(FORGET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // As long as enrichment has not looked, everything passes.
    let (mut due, mut said) = (false, None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Ok(()) = policies.changed() => due = true,
            Ok(()) = known.changed() => due = true,
            Ok(()) = targets.changed() => {}
            _ = ticks.tick() => {
                if let Err(why) = filter.forget() {
                    notices.add("capture", "filter_unset", 1, why.to_string());
                }
                filter.count_passed(&metrics);
            }
        }
        if due {
            let (set, known) = (policies.borrow_and_update().clone(), known.borrow_and_update().clone());
            // What the kernel knew of cgroups is over with this.
            said = None;
            match filter.set(&set.keys(&known)) {
                Ok(fits) => {
                    due = false;
                    if !fits {
                        notices.add("capture", "filter_full", 1, FULL.to_owned());
                    }
                    in_force.send_if_modified(|before| {
                        let changed = !Arc::ptr_eq(before, &set);
                        *before = set;
                        changed
                    });
                }
                // Tried again with the next tick; what the kernel does not look for must not seem to be in force.
                Err(why) => {
                    let detail = format!("{why}; the policies before stay in force");
                    notices.add("capture", "filter_unset", 1, detail);
                    continue;
                }
            }
        }
        let targets = targets.borrow_and_update().clone();
        let is_said = said.as_ref().is_some_and(|said| Arc::ptr_eq(said, &targets));
        // Whom policies speak of is said of those that the kernel has the keys of.
        if !due && !is_said && Arc::ptr_eq(&targets.policies, &in_force.borrow()) {
            match filter.set_cgroups(&wanted(&targets)) {
                Ok(()) => said = Some(targets),
                Err(why) => notices.add("capture", "filter_unset", 1, why.to_string()),
            }
        }
    }
}

/// What is wanted of the processes in each cgroup.
fn wanted(targets: &Targets) -> Vec<(u64, Wants)> {
    let each = targets.policies.wants_of_each();
    let wanted = targets.cgroups.iter();
    wanted.map(|(id, target)| (*id, policy::wants_of(&each, &target.policies, target.on_host))).collect()
}
