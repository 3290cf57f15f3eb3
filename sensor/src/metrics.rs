//! Counters of every stage, all from zero. Together they account for every event:
//! `captured = unmatched + matched` and `fired = shipped + lost`, once the pipeline has drained.
use std::sync::atomic::{AtomicU64, Ordering};

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

/// One process has one of these.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Events that reached user space.
    pub captured: Counter,
    /// Opens that the kernel side numbered: `numbered = captured + undecodable + opens_lost`.
    pub numbered: Counter,
    /// Opens that the kernel could not hand over, whatever the reason.
    pub opens_lost: Counter,
    /// Records of processes, not of opens, that the kernel could not hand over.
    pub processes_lost: Counter,
    /// Runs of a program that the kernel skipped because the same program was running on that CPU. Each may have been
    /// an open: an upper bound of what was lost so.
    pub skipped: Counter,
    /// Records that user space could not read; each is also counted in `captured`'s stead.
    pub undecodable: Counter,
    /// Events whose process or container is not fully known.
    pub partial: Counter,
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
    /// Alerts, one for each policy that wanted an event.
    pub fired: Counter,
    /// Alerts that the sink has acknowledged.
    pub shipped: Counter,
    /// Alerts given up, whatever the reason.
    pub alerts_lost: Counter,
}

impl Metrics {
    /// Logs all of them in one line.
    pub fn log(&self) {
        tracing::info!(
            numbered = self.numbered.get(),
            captured = self.captured.get(),
            opens_lost = self.opens_lost.get(),
            processes_lost = self.processes_lost.get(),
            skipped = self.skipped.get(),
            undecodable = self.undecodable.get(),
            partial = self.partial.get(),
            policies = self.policies.get(),
            policies_stale = self.policies_stale.get(),
            policy_errors = self.policy_errors.get(),
            namespace_unknown = self.namespace_unknown.get(),
            unmatched = self.unmatched.get(),
            matched = self.matched.get(),
            fired = self.fired.get(),
            shipped = self.shipped.get(),
            alerts_lost = self.alerts_lost.get(),
            "totals"
        );
    }
}
