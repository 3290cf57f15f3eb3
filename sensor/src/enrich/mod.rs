//! Adds who opened the file: program, ancestors, user, cgroup, container, pod; and what policies call the file.
//!
//! Must not know sinks, nor what policies decide.
mod cgroup;
mod config;
mod container;
mod describe;
mod files;
mod hold;
mod mounts;
mod pod;
mod pods;
mod proc;
mod process;
mod roots;
mod targets;
mod trust;

use std::{collections::HashSet, sync::Arc, time::Instant};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, sleep_until},
};

use self::{
    cgroup::{Cgroups, Lookup},
    config::{HOUSEKEEPING, SWEEP},
    container::Home,
    files::{Called, Files, Opener},
    hold::{Hold, Homes, Waiting},
    pod::{Change, Pods},
    process::Processes,
    targets::Selection,
};
pub use self::{
    config::{Config, Kubernetes},
    targets::{Target, Targets},
};
use crate::{
    apiserver::Source,
    event::{Enriched, Enrichment, Event, Missing, Owner, Program},
    hierarchy::Hierarchy,
    keys::Known,
    metrics::Metrics,
    notice::{Notices, Whose},
    observation::{Identity, Observation, Refused},
    policy::{Namespace, PolicySet, names},
};

/// Inode of the initial user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u32 = 0xEFFF_FFFD;

/// Events between enrich and the matcher.
const QUEUE: usize = 4096;
/// Observations that are taken at a time.
const BATCH: usize = 256;
/// What the API server has told and is not taken in yet. When it is full, the watch waits.
const CHANGES: usize = 256;

/// The stage: events in, enriched events out, in the order of each process.
pub struct Enrich {
    processes: Processes,
    cgroups: Cgroups,
    pods: Pods,
    hold: Hold,
    selection: Selection,
    files: Files,
    policies: watch::Receiver<Arc<PolicySet>>,
    metrics: Arc<Metrics>,
    notices: Notices,
    observations: mpsc::Receiver<Observation>,
    changes: mpsc::Receiver<Change>,
    enriched: mpsc::Sender<Enriched>,
    known: watch::Sender<Arc<Known>>,
    /// Something has changed that [`Selection`] depends on.
    stale: bool,
}

/// What the API server tells.
pub struct Changes(mpsc::Receiver<Change>);

/// Asks the API server for the pods of `node`, if the node is in a cluster: a task that ends when nobody listens any more.
///
/// # Errors
/// When there should be a cluster to ask, and it cannot be known which.
pub fn watch_pods(
    config: &Config,
    node: String,
    policies: watch::Receiver<Arc<PolicySet>>,
    notices: Notices,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Changes> {
    let (changes, receiver) = mpsc::channel(CHANGES);
    if config.in_cluster() {
        let source = Source::new("enrich", config.kubeconfig.clone())?;
        tasks.spawn(pods::tell_changes(source, node, policies, changes, notices));
    }
    Ok(Changes(receiver))
}

/// What the stage reads.
pub struct Inputs {
    /// What the kernel reports.
    pub observations: mpsc::Receiver<Observation>,
    /// What the API server tells.
    pub pods: Changes,
}

/// What the stage hands on.
pub struct Outputs {
    /// Events with who did it.
    pub enriched: mpsc::Receiver<Enriched>,
    /// Which policies speak of which cgroup.
    pub targets: watch::Receiver<Arc<Targets>>,
    /// What is known of the node's files beside their paths.
    pub known: watch::Receiver<Arc<Known>>,
}

impl Enrich {
    /// A stage that reads `inputs`; of the policies it needs the names that they have for files and programs, and whom
    /// they speak of.
    pub fn new(
        config: &Config,
        hierarchy: Hierarchy,
        inputs: Inputs,
        policies: watch::Receiver<Arc<PolicySet>>,
        metrics: Arc<Metrics>,
        notices: Notices,
    ) -> (Self, Outputs) {
        let Inputs { observations, pods: Changes(changes) } = inputs;
        let (enriched, receiver) = mpsc::channel(QUEUE);
        metrics.queues.know("enrich", &enriched);
        let (selection, targets) = Selection::new();
        let (known, of_files) = watch::channel(Arc::default());
        let stage = Self {
            processes: Processes::new(notices.clone()),
            cgroups: Cgroups::new(hierarchy, notices.clone()),
            pods: Pods::new(config.in_cluster(), notices.clone()),
            hold: Hold::new(config.hold.unsigned_abs()),
            selection,
            files: Files::new(notices.clone()),
            policies,
            metrics,
            notices,
            observations,
            changes,
            enriched,
            known,
            stale: true,
        };
        (stage, Outputs { enriched: receiver, targets, known: of_files })
    }

    /// Works until either side is gone. Blocks on /proc; made for a thread of its own.
    pub async fn run(mut self) -> anyhow::Result<()> {
        // Those that are there before any report; the kernel reports already, so none is missed in between.
        self.cgroups.walk();
        self.processes.seed(|pid| self.cgroups.home_of(pid));
        let mut ticks = tokio::time::interval(HOUSEKEEPING);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut batch, mut changes, mut swept) = (Vec::with_capacity(BATCH), Vec::new(), Instant::now());
        loop {
            let overdue = self.hold.deadline();
            let ready = tokio::select! {
                biased;
                1.. = self.changes.recv_many(&mut changes, CHANGES) => self.changed(&mut changes),
                () = until(overdue), if overdue.is_some() => self.hold.overdue(Instant::now()),
                _ = ticks.tick() => {
                    self.keep_house(&mut swept);
                    Vec::new()
                }
                // Last: under load there are always some.
                read = self.observations.recv_many(&mut batch, BATCH) => {
                    if read == 0 {
                        break;
                    }
                    self.observe_all(&mut batch).await;
                    Vec::new()
                }
            };
            if !self.send_all(ready).await || self.enriched.is_closed() {
                return Ok(());
            }
        }
        let rest = self.hold.all();
        self.send_all(rest).await;
        Ok(())
    }

    /// Takes in what was observed; stops if nobody listens any more.
    async fn observe_all(&mut self, batch: &mut Vec<Observation>) {
        for observation in batch.drain(..) {
            let Observation::Open(event) = observation else {
                self.observe(observation);
                continue;
            };
            let (enriched, homes) = self.enrich(event);
            let listened = if self.must_wait(&enriched) {
                self.metrics.held.add(1);
                let overflow = self.hold.push(enriched, homes, Instant::now());
                self.send_all(overflow).await
            } else {
                self.send(enriched).await
            };
            if !listened {
                return;
            }
        }
    }

    /// Takes in what tells of processes and cgroups.
    fn observe(&mut self, observation: Observation) {
        match observation {
            Observation::Open(_) => {}
            Observation::Exec(exec) => {
                let home = home_of(self.cgroups.look_up(exec.cgroup_id, Some(exec.process.pid)));
                let policies = self.policies.borrow().clone();
                self.processes.executed(&exec, home, &policies);
                self.files.entered(exec.mount_ns.into(), exec.process.pid, &policies, Instant::now());
            }
            Observation::Fork(fork) => {
                let home = home_of(self.cgroups.look_up(fork.cgroup_id, Some(fork.parent.pid)));
                self.processes.forked(&fork, home);
            }
            Observation::Exit(process) => self.processes.exited(process),
            Observation::CgroupMade(made) => {
                // A process that has left its container is still of it.
                let found = self.cgroups.look_up(made.maker, Some(made.by.pid));
                let known = !matches!(found, Lookup::Unknown);
                let now = home_of(found);
                let maker = self.processes.placed(made.by, now.as_ref()).or(now);
                // Of a maker that nobody knows, it may be anything: it is known once somebody is met in it.
                if maker.is_some() || known {
                    self.cgroups.made(&made, maker);
                    self.stale = true;
                }
            }
            Observation::Refused(refused) => self.tell_refused(refused),
            Observation::CgroupRemoved(id) => {
                self.cgroups.removed(id, Instant::now());
                self.stale = true;
            }
        }
    }

    /// Says whose opens were not reported.
    fn tell_refused(&mut self, Refused { cgroup_id, count }: Refused) {
        let home = cgroup_id.and_then(|id| home_of(self.cgroups.look_up(id, None)));
        let place = home.map(|home| self.pods.place(&home, &self.policies.borrow()).0).unwrap_or_default();
        let pod = place.pod.map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let whose = place.container.map(|container| Whose { container: container.id.clone(), pod: pod.clone() });
        let path =
            cgroup_id.and_then(|id| self.cgroups.path(id)).map_or("unknown".to_owned(), |path| path.to_string());
        let who = pod.map_or_else(|| format!("cgroup {path}"), |pod| format!("pod {pod}"));
        let detail = format!("{count} opens by {who} were not reported: it has taken its share (capture.share)");
        self.notices.lost_of(whose, "capture", "limited", count, detail);
    }

    /// What is known of the opener by now, and its containers.
    fn enrich(&mut self, mut event: Event) -> (Enriched, Homes) {
        let (policies, now) = (self.policies.borrow().clone(), Instant::now());
        let identity = Identity { pid: event.pid, start_ns: event.start_ns };
        let opener = self.processes.look_up(&event, &policies);
        let (program, ancestors) = opener.map(|opener| (opener.program, opener.ancestors)).unwrap_or_else(|| {
            let gone = Program { pid: event.pid, start_ns: event.start_ns, ..Program::default() };
            (Arc::new(gone), Vec::new())
        });
        let found = self.cgroups.look_up(event.cgroup_id, Some(event.pid));
        let cgroup_path = self.cgroups.path(event.cgroup_id);
        let (known, certain) = (!matches!(found, Lookup::Unknown), self.cgroups.is_certain(event.cgroup_id));
        let here = home_of(found);
        let before = self.processes.placed(identity, here.as_ref());
        // Of a cgroup that nobody knows, what the process was made in says more than nothing.
        let home = if known { here } else { before.clone() };
        let moved =
            before.filter(|before| home.as_ref().is_none_or(|home| home.container.id != before.container.id));
        let homes = Homes { now: home, before: moved };
        let lineage: Vec<u32> =
            std::iter::once(event.pid).chain(ancestors.iter().map(|program| program.pid)).collect();
        let container = homes.now.as_ref().map(|home| home.container.as_ref());
        let opener = Opener { container, lineage: &lineage, policies: &policies, now };
        let Called { owner, known_as, target_known_as } = self.files.describe(&mut event, &opener);
        // Of one that there was no room for it is not known where it was before.
        let known = program.executable.is_some() && self.processes.knows(identity);
        let missing = [(!known).then_some(Missing::Program), (!certain).then_some(Missing::Cgroup)];
        let mut enriched = Enriched {
            process: program,
            ancestors,
            // In a user namespace anybody can be any user.
            user: event.ids.euid.filter(|_| event.user_ns == Some(INITIAL_USER_NAMESPACE)),
            // What the host opens is its own.
            owner: owner.or((certain && homes.now.is_none()).then_some(Owner::Own)),
            container: None,
            pod: None,
            moved_from: None,
            known_as,
            target_known_as,
            cgroup_path,
            enrichment: Enrichment::Complete,
            missing: missing.into_iter().flatten().collect(),
            event,
        };
        self.name(&mut enriched, &homes);
        (enriched, homes)
    }

    /// Adds containers and pods, as far as they are known by now.
    fn name(&mut self, enriched: &mut Enriched, homes: &Homes) {
        let policies = self.policies.borrow().clone();
        enriched.missing.retain(|missing| !matches!(missing, Missing::Pod | Missing::Namespace));
        let mut place = |home: &Arc<Home>| {
            let (place, missing) = self.pods.place(home, &policies);
            enriched.missing.extend(missing);
            place
        };
        let now = homes.now.as_ref().map(&mut place).unwrap_or_default();
        enriched.moved_from = homes.before.as_ref().map(|before| Box::new(place(before)));
        (enriched.container, enriched.pod) = (now.container, now.pod);
        enriched.missing.dedup();
        let complete = enriched.missing.is_empty();
        enriched.enrichment = if complete { Enrichment::Complete } else { Enrichment::Partial };
    }

    /// Whether the event waits: for a pod that the API server may still tell of, if some policy may want the event; or
    /// behind another of its process.
    fn must_wait(&self, enriched: &Enriched) -> bool {
        let event = &enriched.event;
        self.hold.has(event.pid, event.start_ns)
            || enriched.missing.iter().any(|missing| self.pods.may_tell(*missing))
                && is_watched(enriched, &self.policies.borrow())
    }

    /// Takes in what the API server tells; returns events that have waited for it.
    fn changed(&mut self, changes: &mut Vec<Change>) -> Vec<Waiting> {
        let now = Instant::now();
        changes.drain(..).for_each(|change| self.pods.change(change, now));
        self.stale = true;
        let policies = self.policies.borrow().clone();
        let Self { pods, hold, .. } = self;
        // What is missing is not waited for if nobody knows when the API server will be back.
        hold.release(|home| pods.place(home, &policies).1.is_none_or(|missing| !pods.may_tell(missing)))
    }

    /// Hands on events that have waited, with what is known by now; false if nobody listens any more.
    async fn send_all(&mut self, ready: Vec<Waiting>) -> bool {
        let now = Instant::now();
        for waiting in ready {
            self.metrics.hold_seconds.observe(waiting.age(now));
            let Waiting { mut event, homes, .. } = waiting;
            self.name(&mut event, &homes);
            if !self.send(event).await {
                return false;
            }
        }
        true
    }

    async fn send(&self, enriched: Enriched) -> bool {
        let metrics = &self.metrics;
        match enriched.enrichment {
            Enrichment::Complete => metrics.complete.add(1),
            Enrichment::Partial => metrics.partial.add(1),
        }
        for missing in &enriched.missing {
            metrics.missing(*missing).add(1);
        }
        if enriched.moved_from.is_some() {
            metrics.moved.add(1);
        }
        if enriched.pod.is_some() && enriched.container.as_ref().is_some_and(|container| container.name.is_none())
        {
            metrics.unnamed.add(1);
        }
        self.enriched.send(enriched).await.is_ok()
    }

    /// Forgets what is over, and decides anew whom policies speak of.
    fn keep_house(&mut self, swept: &mut Instant) {
        let now = Instant::now();
        if std::mem::take(&mut self.stale) || self.policies.has_changed().unwrap_or(false) {
            let policies = self.policies.borrow_and_update().clone();
            let Self { pods, cgroups, selection, .. } = self;
            selection.refresh(cgroups.with_homes(), &policies, |home| pods.place(home, &policies).0);
        }
        let policies = self.policies.borrow().clone();
        if let Some(known) = self.files.known(&policies, now) {
            self.known.send_if_modified(|before| {
                let changed = **before != known;
                if changed {
                    *before = Arc::new(known);
                }
                changed
            });
        }
        if now.duration_since(*swept) >= SWEEP {
            *swept = now;
            self.processes.sweep();
            self.cgroups.sweep(now);
            if self.pods.is_empty_in_contact()
                && self
                    .cgroups
                    .with_homes()
                    .filter_map(|(_, home)| home)
                    .any(|home| home.container.pod_uid.is_some())
            {
                let detail = "the API server knows no pod of this node, which runs some: is node.name its name in the cluster?";
                self.notices.add("enrich", "no_pods", 1, detail);
            }
            self.cgroups.expire(now);
            self.stale = true;
            let alive = self.cgroups.with_homes().filter_map(|(_, home)| home?.container.pod_uid.as_deref());
            self.pods.expire(now, &alive.collect::<HashSet<_>>());
        }
        self.metrics.processes.set(self.processes.len() as u64);
        self.metrics.cgroups.set(self.cgroups.len() as u64);
        self.metrics.pods.set(self.pods.len() as u64);
    }
}

fn home_of(found: Lookup) -> Option<Arc<Home>> {
    match found {
        Lookup::In(home) => Some(home),
        Lookup::Host | Lookup::Unknown => None,
    }
}

/// Whether some pattern of some policy may match the event's file. Without policies somebody looks at everything.
fn is_watched(enriched: &Enriched, policies: &PolicySet) -> bool {
    let event = &enriched.event;
    let views = [&event.path, &event.home, &event.requested, &event.target, &event.target_home];
    let is_hit = |name: &[u8]| {
        let mut hit = false;
        policies.matches(name, Namespace::Unknown, |_, _| hit = true);
        hit
    };
    policies.policies.is_empty()
        || !enriched.known_as.is_empty()
        || !enriched.target_known_as.is_empty()
        || views
            .into_iter()
            .flatten()
            .chain(&event.more_homes)
            .any(|view| names(view.as_bytes()).iter().any(|name| is_hit(name)))
}

async fn until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        sleep_until(deadline.into()).await;
    }
}
