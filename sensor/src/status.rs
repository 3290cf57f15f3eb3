//! What a running sensor says of itself to those who may look at this node: whether it sees, what policies have become, what
//! is lost, and whether alerts arrive.
use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    capture::Sight,
    doctor::Report,
    event::{CaptureMode, Missing},
    metrics::{Metrics, Queue},
    notice::{Notices, Trouble},
    policy::{Decided, Standing},
};

/// A sensor at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The cluster's.
    pub cluster: Option<String>,
    /// When it began.
    pub since: Timestamp,
    /// When this was said.
    pub now: Timestamp,
    /// How it looks.
    pub sight: Sight,
    /// What the self-test found; None until it has ended, and if there is none.
    pub self_test: Option<Arc<Report>>,
    /// Every policy, those first that need attention, and how often each has fired.
    pub policies: Vec<Policy>,
    /// Opens since the sensor began.
    pub opens: Opens,
    /// Alerts since then.
    pub alerts: Alerts,
    /// Queues between stages.
    pub queues: Vec<Queue>,
    /// Where alerts go.
    pub sink: Sink,
    /// Everything that was amiss since the sensor began.
    pub troubles: Vec<Trouble>,
}

/// A policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// What has become of it.
    #[serde(flatten)]
    pub standing: Standing,
    /// Alerts since the sensor began.
    pub hits: u64,
}

/// Counts of opens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opens {
    /// Numbered by the kernel side: `numbered = captured + undecodable + lost`.
    pub numbered: u64,
    /// Reached user space.
    pub captured: u64,
    /// Could not be read.
    pub undecodable: u64,
    /// Could not be handed over.
    pub lost: u64,
    /// Runs of programs that the kernel skipped: at most so many more are lost.
    pub skipped: u64,
    /// Some policy wanted them.
    pub matched: u64,
    /// Everything is known of who made them.
    pub complete: u64,
    /// Not everything is.
    pub partial: u64,
    /// What is not, and of how many.
    pub missing: BTreeMap<String, u64>,
}

/// Counts of alerts: `fired = shipped + waiting + suppressed + limited + lost`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Alerts {
    /// All.
    pub fired: u64,
    /// Acknowledged by the sink.
    pub shipped: u64,
    /// Counted as repeats of another.
    pub suppressed: u64,
    /// Counted since they were too many.
    pub limited: u64,
    /// Given up.
    pub lost: u64,
    /// In the spool, those of earlier runs included.
    pub waiting: u64,
}

/// Where alerts go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sink {
    /// `stdout`, `file` or `kafka`, with its address.
    pub target: String,
    /// It does not acknowledge.
    pub degraded: bool,
    /// What it said last, if that was a fault.
    pub last_error: Option<Trouble>,
    /// When the sensor's certificate expires.
    pub certificate_expires: Option<Timestamp>,
    /// Bytes in the spool.
    pub spool_bytes: u64,
    /// Bytes that they may be; zero without a spool.
    pub spool_max_bytes: u64,
}

/// Notices of the sink that tell of a fault.
const FAULTS: [&str; 2] = ["kafka_degraded", "file_degraded"];

/// Where a status comes from.
pub struct Source {
    /// The node's name.
    pub node: String,
    /// The cluster's.
    pub cluster: Option<String>,
    /// When the sensor began.
    pub since: Timestamp,
    /// How it looks.
    pub sight: Sight,
    /// Where alerts go.
    pub target: String,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What was amiss.
    pub notices: Notices,
    /// The self-test.
    pub self_test: watch::Receiver<Option<Arc<Report>>>,
    /// Policies.
    pub policies: watch::Receiver<Arc<[Standing]>>,
}

impl Source {
    /// The sensor as it is now.
    #[must_use]
    pub fn now(&self) -> Status {
        let troubles = self.notices.kept();
        let hits = self.metrics.hits.each();
        let with_hits = |standing: &Standing| {
            let mut standing = standing.clone();
            if self.sight.mode == CaptureMode::Tracepoint {
                // There is no filter in the kernel.
                standing.patterns.iter_mut().for_each(|(_, decided)| *decided = Decided::User);
            }
            Policy { hits: hits.get(&standing.name).copied().unwrap_or(0), standing }
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            since: self.since,
            now: Timestamp::now(),
            sight: self.sight.clone(),
            self_test: self.self_test.borrow().clone(),
            policies: self.policies.borrow().iter().map(with_hits).collect(),
            opens: self.opens(),
            alerts: self.alerts(),
            queues: self.metrics.queues.each().collect(),
            sink: self.sink(&troubles),
            troubles,
        }
    }

    fn opens(&self) -> Opens {
        let metrics = &self.metrics;
        let missing = Missing::ALL.iter().map(|what| (what.word().to_owned(), metrics.missing(*what).get()));
        Opens {
            numbered: metrics.numbered.get(),
            captured: metrics.captured.get(),
            undecodable: metrics.undecodable.get(),
            lost: metrics.opens_lost.get(),
            skipped: metrics.skipped.get(),
            matched: metrics.matched.get(),
            complete: metrics.complete.get(),
            partial: metrics.partial.get(),
            missing: missing.collect(),
        }
    }

    fn alerts(&self) -> Alerts {
        let metrics = &self.metrics;
        Alerts {
            fired: metrics.fired.get(),
            shipped: metrics.shipped.get(),
            suppressed: metrics.suppressed.get(),
            limited: metrics.limited.get(),
            lost: metrics.alerts_lost.get(),
            waiting: metrics.spool_alerts.get(),
        }
    }

    fn sink(&self, troubles: &[Trouble]) -> Sink {
        let metrics = &self.metrics;
        let faults = troubles.iter().filter(|trouble| FAULTS.contains(&trouble.reason.as_str()));
        let expires = i64::try_from(metrics.certificate_expires.get()).unwrap_or(0);
        Sink {
            target: self.target.clone(),
            degraded: metrics.sink_degraded.get() != 0,
            last_error: faults.max_by_key(|trouble| trouble.last).cloned(),
            certificate_expires: Timestamp::from_second(expires).ok().filter(|_| expires > 0),
            spool_bytes: metrics.spool_bytes.get(),
            spool_max_bytes: metrics.spool_max_bytes.get(),
        }
    }
}
