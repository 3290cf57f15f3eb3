//! Counters of every stage, all from zero. Together they account for every event:
//! `captured = unmatched + matched` and `fired = shipped + suppressed + limited + lost`, once the pipeline has drained.
mod exposition;
mod hits;
mod programs;
mod queues;
mod reference;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sensor_ebpf::decide::REASONS;

pub use self::{
    exposition::{CONTENT_TYPE, text},
    hits::Hits,
    programs::{Program, Programs},
    queues::{Queue, Queues},
    reference::reference,
};
use crate::{doctor::Coverage, event::Missing};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Says what the number is now.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the histograms of waiting times, in seconds.
pub const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 10.0, 60.0];

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By [`BOUNDS`], each with what took at most so long and longer than the bound before; and what took longer.
    buckets: [Counter; BOUNDS.len() + 1],
    /// All of it together, in microseconds.
    sum: Counter,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let at = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.buckets.get(at) {
            bucket.add(1);
        }
        self.sum.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// How long all of it took together.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.sum.get() as f64 / 1e6
    }

    /// The counts by [`BOUNDS`], and the last of what took longer.
    #[must_use]
    pub fn get(&self) -> Vec<u64> {
        self.buckets.iter().map(Counter::get).collect()
    }
}

/// One process has one of these.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Events that reached user space.
    pub captured: Counter,
    /// Opens that the kernel side numbered: `numbered = captured + undecodable + opens_lost`.
    pub numbered: Counter,
    /// Opens that the kernel could not hand over, whatever the reason.
    pub opens_lost: Counter,
    /// Records of processes and cgroups, not of opens, that the kernel could not hand over.
    pub processes_lost: Counter,
    /// Opens that the kernel's filter let through, by [`Reason`](sensor_ebpf::decide::Reason), up to a second ago.
    pub passed: [Counter; REASONS],
    /// What the self-test has found, for each way to a file.
    pub coverage: Coverage,
    /// What each program of the kernel side costs, if the kernel measures it.
    pub programs: Programs,
    /// How full the queues between stages are.
    pub queues: Queues,
    /// Runs of a program that the kernel skipped because the same program was running on that CPU. Each may have been
    /// an open: an upper bound of what was lost so.
    pub skipped: Counter,
    /// Records that user space could not read; each is also counted in `captured`'s stead.
    pub undecodable: Counter,
    /// Events of which everything is known: `complete + partial = captured`.
    pub complete: Counter,
    /// Events of which program, container or pod is not fully known.
    pub partial: Counter,
    /// What was not known of those, by [`Missing`]; more than one may be of one event.
    pub missing: [Counter; Missing::ALL.len()],
    /// Events whose pod is known and their container's name is not: sandboxes, and containers of which no status tells.
    pub unnamed: Counter,
    /// Events of processes that had moved themselves out of their container's cgroup.
    pub moved: Counter,
    /// Events that waited for their pod, or behind another that did.
    pub held: Counter,
    /// How long they waited.
    pub hold_seconds: Histogram,
    /// Processes that are remembered.
    pub processes: Gauge,
    /// Cgroups that are remembered.
    pub cgroups: Gauge,
    /// Pods that are remembered.
    pub pods: Gauge,
    /// Events that no policy wanted.
    pub unmatched: Counter,
    /// Events that at least one policy wanted.
    pub matched: Counter,
    /// Times that a PathPolicy could not decide on an event, since nobody knows its namespace.
    pub namespace_unknown: Counter,
    /// Policies in force.
    pub policies: Gauge,
    /// Policies of which the last good version is in force, because the present one is bad.
    pub policies_stale: Gauge,
    /// Faults for which policies are not used as they stand.
    pub policy_errors: Gauge,
    /// Alerts of each policy.
    pub hits: Hits,
    /// Alerts, one for each policy that wanted an event.
    pub fired: Counter,
    /// Alerts that the sink has acknowledged.
    pub shipped: Counter,
    /// Alerts that repeat another and were counted instead of sent.
    pub suppressed: Counter,
    /// Alerts beyond a limit, counted instead of sent.
    pub limited: Counter,
    /// Alerts given up, whatever the reason.
    pub alerts_lost: Counter,
    /// From the kernel's time of an open to the sink's acknowledgement.
    pub delivery_seconds: Histogram,
    /// Bytes of records in the spool.
    pub spool_bytes: Gauge,
    /// Bytes that they may be.
    pub spool_max_bytes: Gauge,
    /// Alerts in it that the sink has not acknowledged.
    pub spool_alerts: Gauge,
    /// 1 while the sink does not acknowledge.
    pub sink_degraded: Gauge,
    /// When the sensor's certificate for Kafka expires, in seconds since 1970; zero without one.
    pub certificate_expires: Gauge,
}

impl Metrics {
    /// The counter of what was not known.
    #[must_use]
    pub fn missing(&self, what: Missing) -> &Counter {
        let [program, cgroup, pod, namespace] = &self.missing;
        match what {
            Missing::Program => program,
            Missing::Cgroup => cgroup,
            Missing::Pod => pod,
            Missing::Namespace => namespace,
        }
    }

    /// Logs all of them in one line.
    pub fn log(&self) {
        tracing::info!(
            numbered = self.numbered.get(),
            captured = self.captured.get(),
            opens_lost = self.opens_lost.get(),
            processes_lost = self.processes_lost.get(),
            passed = ?self.passed.each_ref().map(Counter::get),
            skipped = self.skipped.get(),
            undecodable = self.undecodable.get(),
            complete = self.complete.get(),
            partial = self.partial.get(),
            missing_program = self.missing(Missing::Program).get(),
            missing_cgroup = self.missing(Missing::Cgroup).get(),
            missing_pod = self.missing(Missing::Pod).get(),
            missing_namespace = self.missing(Missing::Namespace).get(),
            unnamed = self.unnamed.get(),
            moved = self.moved.get(),
            held = self.held.get(),
            hold_seconds = ?self.hold_seconds.get(),
            processes = self.processes.get(),
            cgroups = self.cgroups.get(),
            pods = self.pods.get(),
            policies = self.policies.get(),
            policies_stale = self.policies_stale.get(),
            policy_errors = self.policy_errors.get(),
            namespace_unknown = self.namespace_unknown.get(),
            unmatched = self.unmatched.get(),
            matched = self.matched.get(),
            fired = self.fired.get(),
            shipped = self.shipped.get(),
            delivery_seconds = ?self.delivery_seconds.get(),
            suppressed = self.suppressed.get(),
            limited = self.limited.get(),
            sink_degraded = self.sink_degraded.get(),
            certificate_expires = self.certificate_expires.get(),
            alerts_lost = self.alerts_lost.get(),
            spool_bytes = self.spool_bytes.get(),
            spool_alerts = self.spool_alerts.get(),
            "totals"
        );
    }
}
