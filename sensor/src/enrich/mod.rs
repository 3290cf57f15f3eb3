//! Adds who opened the file: program, ancestors, user, cgroup, container; and what policies call the file.
//!
//! Must not know sinks, nor what policies decide.
mod cgroup;
mod process;
mod roots;
mod trust;

use std::{sync::Arc, time::Instant};

use tokio::sync::{mpsc, watch};

use self::{cgroup::Cgroups, process::Processes, roots::Roots};
use crate::{
    event::{Enriched, Enrichment, Event, Owner, Program},
    metrics::Metrics,
    notice::Notices,
    observation::Observation,
    policy::PolicySet,
};

/// Inode of the initial user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u32 = 0xEFFF_FFFD;

/// Events between enrich and the matcher.
const QUEUE: usize = 4096;

/// The stage: events in, enriched events out, in order.
pub struct Enrich {
    processes: Processes,
    cgroups: Cgroups,
    roots: Roots,
    policies: watch::Receiver<Arc<PolicySet>>,
    metrics: Arc<Metrics>,
    observations: mpsc::Receiver<Observation>,
    enriched: mpsc::Sender<Enriched>,
}

impl Enrich {
    /// A stage that reads from `observations`; of the policies it needs the names that they have for files and programs.
    pub fn new(
        observations: mpsc::Receiver<Observation>,
        policies: watch::Receiver<Arc<PolicySet>>,
        metrics: Arc<Metrics>,
        notices: Notices,
    ) -> (Self, mpsc::Receiver<Enriched>) {
        let (enriched, receiver) = mpsc::channel(QUEUE);
        let (processes, cgroups) = (Processes::default(), Cgroups::default());
        let roots = Roots::new(notices);
        (Self { processes, cgroups, roots, policies, metrics, observations, enriched }, receiver)
    }

    /// Works until either side is gone. Blocks on /proc; made for a thread of its own.
    pub fn run(mut self) {
        // Those that are there before any report; the kernel reports already, so none is missed in between.
        self.processes.seed();
        while let Some(observation) = self.observations.blocking_recv() {
            let event = match observation {
                Observation::Open(event) => event,
                Observation::Exec(exec) => {
                    let policies = self.policies.borrow().clone();
                    self.processes.executed(&exec, &policies);
                    continue;
                }
                Observation::Fork(fork) => {
                    self.processes.forked(&fork);
                    continue;
                }
            };
            let enriched = self.enrich(event);
            if enriched.enrichment == Enrichment::Partial {
                self.metrics.partial.add(1);
            }
            if self.enriched.blocking_send(enriched).is_err() {
                break;
            }
        }
    }

    fn enrich(&mut self, event: Event) -> Enriched {
        let (policies, now) = (self.policies.borrow().clone(), Instant::now());
        let process = self.processes.look_up(&event, &policies);
        let gone = (Program { pid: event.pid, start_ns: event.start_ns, ..Program::default() }, Vec::new());
        let (program, ancestors) = process.unwrap_or(gone);
        let cgroup = self.cgroups.look_up(event.cgroup_id, Some(event.pid), now);
        let known_as = match (&event.path, event.mount_ns) {
            (Some(path), Some(namespace)) => {
                let lineage = std::iter::once(event.pid).chain(ancestors.iter().map(|program| program.pid));
                self.roots.names(namespace.into(), lineage, path.as_bytes(), &policies, now)
            }
            _ => Vec::new(),
        };
        let known = program.executable.is_some() && cgroup.is_some();
        let container = cgroup.as_deref().and_then(cgroup::container);
        Enriched {
            process: program,
            ancestors,
            // In a user namespace anybody can be any user.
            user: event.euid.filter(|_| event.user_ns == Some(INITIAL_USER_NAMESPACE)),
            // What the host opens is its own; of a container's files it is not known yet.
            owner: (cgroup.is_some() && container.is_none()).then_some(Owner::Own),
            container,
            pod: None,
            known_as,
            cgroup_path: cgroup.map(|path| path.to_vec().into()),
            enrichment: if known { Enrichment::Complete } else { Enrichment::Partial },
            event,
        }
    }
}
