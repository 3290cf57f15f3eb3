//! Pathwatch: a sensor for file opens on Kubernetes nodes. This file is the wiring; ARCHITECTURE.md is the map.
#![deny(unsafe_code)]
pub mod apiserver;
pub mod capture;
pub mod cli;
pub mod config;
pub mod controller;
pub mod doctor;
pub mod enrich;
pub mod event;
pub mod filter;
pub mod hierarchy;
pub mod http;
pub mod keys;
pub mod log;
pub mod matcher;
pub mod memory;
pub mod metrics;
pub mod notice;
pub mod observation;
pub mod policy;
pub mod procfs;
pub mod ship;
pub mod status;

use std::{
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use capture::{Capture, replay::Replay};
use config::Config;
use enrich::{Enrich, Inputs, Outputs, Targets};
use event::Enriched;
use hierarchy::Hierarchy;
use http::Served;
use jiff::Timestamp;
use keys::Known;
use metrics::Metrics;
use notice::Notices;
use policy::{Alert, Directory, InForce, Loaded, PolicySet, Readers};
use ship::{Encoder, Format, Identity, Node, Redaction, Stdout};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Alerts between the matcher and ship.
const ALERTS: usize = 4096;
/// How long after a stop the sink may still acknowledge; what it has not by then stays in the spool.
const GRACE: Duration = Duration::from_secs(5);

/// What a pipeline shares.
#[derive(Clone, Default)]
struct Common {
    metrics: Arc<Metrics>,
    notices: Notices,
    give_up: CancellationToken,
}

/// The sensor: capture → enrich → matcher → ship, until `stop`. `loaded` is what `directory` holds now.
///
/// # Errors
/// When a stage cannot start, or ends before it was asked to.
pub async fn run(
    config: Config,
    directory: Directory,
    loaded: Loaded,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (mut tasks, common) = (JoinSet::new(), Common::default());
    let Common { metrics, notices, give_up } = common.clone();
    let node = Node { cluster: config.cluster.name.clone(), name: config.node_name() };

    loaded.tell(&metrics, &notices);
    let (standings, standing) = watch::channel(loaded.standings().into());
    let (sets, policies) = watch::channel(loaded.set);
    let (resources, objects) = watch::channel(Arc::default());
    let states = (!config.has_policies_of_cluster()).then(|| Arc::from(loaded.objects));
    let (told, in_force) = watch::channel(states);
    let Watched { sight, enriched, filter, known, targets } =
        start_capture_and_enrich(&config, policies.clone(), &stop, &common, &mut tasks)?;
    let (seen_for, judged_by) = watch::channel(policies.borrow().clone());
    let tested = doctor::Running::default();
    let alerts = start_matcher(enriched, judged_by.clone(), tested.clone(), &common, &mut tasks);
    tasks.spawn(filter::follow(
        filter,
        policies,
        (known, targets),
        seen_for,
        (metrics.clone(), notices.clone()),
        stop.clone(),
    ));
    if let Some(source) = config.policies_of_cluster()? {
        tasks.spawn(policy::watch_resources(source, resources, notices.clone()));
    }
    let readers = Readers { sets, in_force: judged_by, objects: told, standings };
    tasks.spawn(policy::reload(directory, objects, readers, metrics.clone(), notices.clone(), stop.clone()));
    let (examined, self_test) = watch::channel(None);
    if config.capture.self_test {
        let told = (metrics.clone(), notices.clone());
        tasks.spawn(doctor::keep(config.clone(), sight.clone(), told, (tested, examined), stop.clone()));
    }
    let status = status::Source {
        node: node.name.clone(),
        cluster: node.cluster.clone(),
        since: Timestamp::now(),
        sight,
        target: config.ship.target(),
        metrics: metrics.clone(),
        notices: notices.clone(),
        self_test,
        policies: standing,
    };
    serve(&config, in_force, status, &stop, &mut tasks)?;
    ship::start(&config.ship, node, alerts, metrics, notices, give_up, &mut tasks)?;

    finish(tasks, Some(stop), common).await
}

/// What others may ask, over the network and at this node.
fn serve(
    config: &Config,
    policies: watch::Receiver<Option<Arc<[InForce]>>>,
    status: status::Source,
    stop: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (metrics, notices) = (status.metrics.clone(), status.notices.clone());
    let since = Instant::now();
    let served = Served { metrics, policies, tokens: config.tokens()?, since, status: Some(status) };
    let served = Arc::new(served);
    if let Some(listen) = config.http.listen {
        tasks.spawn(http::serve(listen, served.clone(), stop.clone()));
    }
    tasks.spawn(http::serve_local(config.http.socket.clone(), served, notices, stop.clone()));
    Ok(())
}

/// Recorded events through the matcher to standard output, the same for the same input anywhere.
///
/// # Errors
/// When the recording cannot be read to its end.
pub async fn replay(
    input: impl Read + Send + 'static,
    name: &str,
    policies: Arc<PolicySet>,
) -> anyhow::Result<()> {
    let (mut tasks, common) = (JoinSet::new(), Common::default());
    let node = Node { cluster: None, name: "replay".to_owned() };

    let (replay, enriched) = Replay::new(input, name, common.metrics.clone());
    common.metrics.policies.set(policies.policies.len() as u64);
    let (_sets, policies) = watch::channel(policies);
    let alerts = start_matcher(enriched, policies, doctor::Running::default(), &common, &mut tasks);
    let encoder = Encoder::new(Identity::replay(), node, Format::Ecs, &Redaction::On);
    let stdout = Stdout::replay(encoder, common.metrics.clone());

    tasks.spawn_blocking(move || replay.run());
    tasks.spawn_blocking(move || stdout.run(alerts));
    finish(tasks, None, common).await
}

/// The same to the configured sink, by way of the spool: what a SIEM makes of it can be seen without a kernel.
///
/// # Errors
/// When the recording cannot be read to its end, or a stage cannot start.
pub async fn replay_to_sink(
    input: impl Read + Send + 'static,
    name: &str,
    config: Config,
    policies: Arc<PolicySet>,
) -> anyhow::Result<()> {
    let (mut tasks, common) = (JoinSet::new(), Common::default());
    let Common { metrics, notices, give_up } = common.clone();
    let node = Node { cluster: config.cluster.name.clone(), name: config.node_name() };

    let (replay, enriched) = Replay::new(input, name, metrics.clone());
    metrics.policies.set(policies.policies.len() as u64);
    let (_sets, policies) = watch::channel(policies);
    let alerts = start_matcher(enriched, policies, doctor::Running::default(), &common, &mut tasks);
    ship::start(&config.ship, node, alerts, metrics, notices, give_up, &mut tasks)?;
    tasks.spawn_blocking(move || replay.run());
    finish(tasks, None, common).await
}

/// Every open, enriched, to `show`, until `stop` or until `show` fails.
///
/// # Errors
/// When capture cannot start, or what `show` returned.
pub async fn trace(
    config: Config,
    mut show: impl FnMut(&Enriched, bool) -> anyhow::Result<()> + Send + 'static,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (mut tasks, common) = (JoinSet::new(), Common::default());
    let (_sets, policies) = watch::channel(Arc::default());
    let Watched { mut enriched, .. } = start_capture_and_enrich(&config, policies, &stop, &common, &mut tasks)?;
    tasks.spawn_blocking(move || {
        while let Some(event) = enriched.blocking_recv() {
            show(&event, enriched.is_empty())?;
        }
        Ok(())
    });
    finish(tasks, Some(stop), common).await
}

/// Most events that [`observe`] keeps: some hundred times what the self-test makes.
const OBSERVED: usize = 20_000;

/// What was seen while something was done.
pub struct Observed<T> {
    /// How it was looked at.
    pub sight: capture::Sight,
    /// What children of this process did that the policies may want.
    pub events: Vec<Enriched>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// What came of what was done.
    pub done: T,
}

/// Does `deed` under the eyes of the first two stages, once the kernel's filter knows what `policies` may want.
///
/// # Errors
/// When capture cannot start, or a stage fails.
pub async fn observe<T>(
    config: &Config,
    policies: PolicySet,
    deed: impl Future<Output = T>,
) -> anyhow::Result<Observed<T>> {
    let (mut tasks, common, stop) = (JoinSet::new(), Common::default(), CancellationToken::new());
    let Common { metrics, notices, .. } = common.clone();
    let (_sets, policies) = watch::channel(Arc::new(policies));
    let Watched { sight, mut enriched, filter, known, targets } =
        start_capture_and_enrich(config, policies.clone(), &stop, &common, &mut tasks)?;
    let (in_force, mut judged_by) = watch::channel(Arc::default());
    let told = (metrics.clone(), notices);
    tasks.spawn(filter::follow(filter, policies.clone(), (known, targets), in_force, told, stop.clone()));
    let own = procfs::own_pid().context("/proc does not show this process")?;
    let collecting = tokio::task::spawn_blocking(move || {
        let mut events = Vec::new();
        while let Some(event) = enriched.blocking_recv() {
            // Of others there may be any number.
            if event.is_made_below(own) && events.len() < OBSERVED {
                events.push(event);
            }
        }
        events
    });
    let is_set = |set: &Arc<PolicySet>| Arc::ptr_eq(set, &policies.borrow());
    judged_by.wait_for(is_set).await.context("the filter could not be set")?;
    let done = deed.await;
    stop.cancel();
    finish(tasks, Some(stop), common).await?;
    Ok(Observed { sight, events: collecting.await?, metrics, done })
}

/// What the first two stages hand on.
struct Watched {
    sight: capture::Sight,
    enriched: mpsc::Receiver<Enriched>,
    filter: capture::Filter,
    known: watch::Receiver<Arc<Known>>,
    targets: watch::Receiver<Arc<Targets>>,
}

/// The first two stages: real opens, and who made them.
fn start_capture_and_enrich(
    config: &Config,
    policies: watch::Receiver<Arc<PolicySet>>,
    stop: &CancellationToken,
    common: &Common,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Watched> {
    let Common { metrics, notices, .. } = common.clone();
    let hierarchy = Hierarchy::find(&config.enrich.cgroups)?;
    procfs::mounted_at(&config.enrich.proc, &hierarchy);
    let (mut capture, events) = Capture::new(&config.capture, &hierarchy, metrics.clone(), notices.clone())?;
    let sight = capture.sight().clone();
    policy::tell_unseen(&policies.borrow(), sight.mode, sight.gaps.iter().filter_map(|gap| gap.operation));
    let pods = enrich::watch_pods(&config.enrich, config.node_name(), policies.clone(), notices.clone(), tasks)?;
    let inputs = Inputs { observations: events, pods };
    let filter = capture.take_filter().context("capture has no filter")?;
    let (enrich, Outputs { enriched, known, targets }) =
        Enrich::new(&config.enrich, hierarchy, inputs, policies, metrics, notices);
    tasks.spawn(capture.run(stop.clone()));
    // It blocks on /proc, and so has a thread of its own.
    let runtime = Handle::current();
    tasks.spawn_blocking(move || runtime.block_on(enrich.run()));
    Ok(Watched { sight, enriched, filter, known, targets })
}

/// The matcher as a stage. While the self-test runs, what the sensor's own children do is no alert.
fn start_matcher(
    mut events: mpsc::Receiver<Enriched>,
    policies: watch::Receiver<Arc<PolicySet>>,
    tested: doctor::Running,
    common: &Common,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> mpsc::Receiver<Alert> {
    let (alerts, receiver) = mpsc::channel(ALERTS);
    let Common { metrics, notices, .. } = common.clone();
    metrics.queues.know("matcher", &alerts);
    tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            if tested.made(&event) {
                metrics.unmatched.add(1);
                continue;
            }
            // An event is judged by one whole set, whatever happens to the policies meanwhile.
            let set = policies.borrow().clone();
            let decision = matcher::decide(&Arc::new(event), &set);
            for policy in decision.namespace_unknown {
                metrics.namespace_unknown.add(1);
                notices.lost(
                    "matcher",
                    "namespace_unknown",
                    1,
                    format!("{} could not decide", policy.full_name()),
                );
            }
            let fired = if decision.alerts.is_empty() { &metrics.unmatched } else { &metrics.matched };
            fired.add(1);
            for alert in decision.alerts {
                metrics.fired.add(1);
                metrics.hits.add(&alert.policy.full_name());
                if alerts.send(alert).await.is_err() {
                    metrics.alerts_lost.add(1);
                    return Ok(());
                }
            }
        }
        Ok(())
    });
    receiver
}

/// Waits for all stages. They end in turn once the first has: each hands on what it has and drops its sender. Without
/// `stop`, nothing ends them but the end of their input, or a failure.
async fn finish(
    mut tasks: JoinSet<anyhow::Result<()>>,
    stop: Option<CancellationToken>,
    common: Common,
) -> anyhow::Result<()> {
    let log = tokio::spawn(common.notices.clone().log());
    let lasting = stop.is_some();
    let stop = stop.unwrap_or_default();
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            ended = tasks.join_next() => {
                let Some(ended) = ended else { break };
                let ended = ended.unwrap_or_else(|why| Err(anyhow::Error::from(why).context("a stage died; please report this")));
                // A stage that ends before it should stops the others.
                if lasting || ended.is_err() {
                    stop.cancel();
                }
                outcome = outcome.and(ended);
            }
            () = grace(&stop, 1), if !common.give_up.is_cancelled() => common.give_up.cancel(),
            () = grace(&stop, 2) => {
                outcome = outcome.and(Err(anyhow::anyhow!("a stage did not end, probably because nobody reads standard output")));
                break;
            }
        }
    }
    log.abort();
    common.notices.log_once();
    common.metrics.log();
    outcome
}

/// Ends `times` [`GRACE`] after the stop.
async fn grace(stop: &CancellationToken, times: u32) {
    stop.cancelled().await;
    sleep(GRACE * times).await;
}
