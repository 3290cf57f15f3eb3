//! Adds who opened the file: program, parent, cgroup, container.
//!
//! Must not know policies or sinks.
mod cgroup;
mod process;

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;

use self::{cgroup::Cgroups, process::Processes};
use crate::{
    event::{Enriched, Enrichment, Event, Program},
    metrics::Metrics,
};

/// Events between enrich and the matcher.
const QUEUE: usize = 4096;

/// The stage: events in, enriched events out, in order.
pub struct Enrich {
    processes: Processes,
    cgroups: Cgroups,
    metrics: Arc<Metrics>,
    events: mpsc::Receiver<Event>,
    enriched: mpsc::Sender<Enriched>,
}

impl Enrich {
    /// A stage that reads from `events`.
    pub fn new(events: mpsc::Receiver<Event>, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Enriched>) {
        let (enriched, receiver) = mpsc::channel(QUEUE);
        (
            Self { processes: Processes::default(), cgroups: Cgroups::default(), metrics, events, enriched },
            receiver,
        )
    }

    /// Works until either side is gone. Blocks on /proc; made for a thread of its own.
    pub fn run(mut self) {
        while let Some(event) = self.events.blocking_recv() {
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
        let process = self.processes.look_up(&event);
        let member = process.as_ref().map(|_| event.pid);
        let cgroup = self.cgroups.look_up(event.cgroup_id, member, Instant::now());
        let gone = (Program { pid: event.pid, start_ns: event.start_ns, executable: None }, None);
        let (program, parent) = process.unwrap_or(gone);
        let known = program.executable.is_some() && cgroup.is_some();
        Enriched {
            process: program,
            parent,
            container: cgroup.as_deref().and_then(cgroup::container),
            cgroup_path: cgroup.map(|path| path.to_vec().into()),
            enrichment: if known { Enrichment::Complete } else { Enrichment::Partial },
            event,
        }
    }
}
