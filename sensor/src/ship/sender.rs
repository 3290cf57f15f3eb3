//! The spool to the sink: sends in order, waits for acknowledgements, sends again what failed.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{kafka, lines, record::Record, spool::Reader};
use crate::{metrics::Metrics, notice::Notices};

/// Records that are read from the spool at a time.
const BATCH: usize = 512;
/// Pause before a record that failed is sent again.
const RETRY: Duration = Duration::from_secs(1);
/// Failed records at which no new ones are sent: sending more into a fault helps nobody.
const FAILED_LIMIT: usize = 1000;

/// Where records go.
pub(super) enum Sink {
    Kafka(kafka::Producer),
    File(lines::File),
}

/// What became of records that were handed to a sink.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It has it, and will not lose it.
    Delivered(u64),
    /// It does not have it, or does not know.
    Failed(u64),
}

/// The sending half of the stage.
pub(super) struct Sender {
    spool: Reader,
    sink: Sink,
    committed: watch::Receiver<u64>,
    acknowledged: watch::Sender<u64>,
    /// Next record to send for the first time.
    next: u64,
    /// Sent, and neither delivered nor failed yet.
    in_flight: BTreeSet<u64>,
    /// To be sent again; some of them are in flight already.
    failed: BTreeSet<u64>,
    /// When that happens next.
    retry_at: Instant,
    metrics: Arc<Metrics>,
    notices: Notices,
}

impl Sender {
    /// A sender of all that `spool` has beyond what is `acknowledged`.
    pub(super) fn new(
        spool: Reader,
        sink: Sink,
        committed: watch::Receiver<u64>,
        acknowledged: watch::Sender<u64>,
        metrics: Arc<Metrics>,
        notices: Notices,
    ) -> Self {
        let next = *acknowledged.borrow() + 1;
        Self {
            spool,
            sink,
            committed,
            acknowledged,
            next,
            metrics,
            notices,
            in_flight: BTreeSet::new(),
            failed: BTreeSet::new(),
            retry_at: Instant::now(),
        }
    }

    /// Works until everything that was committed is delivered and no more comes, or until it is told to give up.
    pub(super) async fn run(mut self, give_up: CancellationToken) -> anyhow::Result<()> {
        loop {
            // In this order: when it has ended, the last number is final.
            let ended = self.committed.has_changed().is_err();
            let last = *self.committed.borrow_and_update();
            let progress = self.send(last).await;
            if ended && self.next > last && self.in_flight.is_empty() && self.failed.is_empty() {
                return Ok(());
            }
            if progress {
                continue;
            }
            tokio::select! {
                // Closed: the writer has ended, and the loop sees the last number it left.
                changed = self.committed.changed(), if !ended => { changed.ok(); }
                settled = self.sink.settled() => self.settle(settled),
                () = sleep_until(self.retry_at), if !self.failed.is_empty() => self.retry(),
                () = give_up.cancelled() => {
                    let left = last.saturating_sub(*self.acknowledged.borrow());
                    tracing::info!(left, "records that the sink has not acknowledged stay in the spool");
                    return Ok(());
                }
            }
        }
    }

    /// Hands the next records up to `last` to the sink; true if there may be more to hand over at once.
    async fn send(&mut self, last: u64) -> bool {
        if self.next > last || self.failed.len() >= FAILED_LIMIT {
            return false;
        }
        let batch = match tokio::task::block_in_place(|| self.spool.read(self.next, BATCH)) {
            Ok(batch) => batch,
            Err(why) => {
                self.notices.add("ship", "spool_read", 1, format!("cannot read the spool: {why}; trying again"));
                sleep(RETRY).await;
                return true;
            }
        };
        // Numbers that are no longer there were acknowledged before a restart.
        if batch.is_empty() {
            self.next = last + 1;
        }
        for (sequence, bytes) in batch {
            if !self.send_one(sequence, &bytes) {
                return false;
            }
            self.next = sequence + 1;
        }
        let settled = self.sink.flush();
        self.settle(settled);
        self.next <= last
    }

    /// False if the sink has no room now.
    fn send_one(&mut self, sequence: u64, bytes: &[u8]) -> bool {
        let record: Record = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(why) => {
                self.metrics.alerts_lost.add(1);
                self.notices.add(
                    "ship",
                    "unreadable",
                    1,
                    format!("record {sequence} of the spool cannot be read: {why}"),
                );
                return true;
            }
        };
        let sent = match &mut self.sink {
            Sink::Kafka(producer) => producer.send(sequence, &record),
            Sink::File(file) => file.send(sequence, &record),
        };
        if sent {
            self.in_flight.insert(sequence);
        }
        sent
    }

    fn settle(&mut self, settled: Vec<Settled>) {
        for outcome in settled {
            match outcome {
                Settled::Delivered(sequence) => {
                    if self.in_flight.remove(&sequence) {
                        self.failed.remove(&sequence);
                        self.metrics.shipped.add(1);
                    }
                }
                Settled::Failed(sequence) => {
                    if self.in_flight.remove(&sequence) {
                        if self.failed.is_empty() {
                            self.retry_at = Instant::now() + RETRY;
                        }
                        self.failed.insert(sequence);
                    }
                }
            }
        }
        let oldest = [self.in_flight.first(), self.failed.first()].into_iter().flatten().min();
        let acknowledged = oldest.copied().unwrap_or(self.next) - 1;
        self.acknowledged.send_if_modified(|old| std::mem::replace(old, acknowledged) != acknowledged);
    }

    /// Sends again what failed.
    fn retry(&mut self) {
        self.retry_at = Instant::now() + RETRY;
        self.sink.renew(&self.notices);
        let again: Vec<u64> = self.failed.difference(&self.in_flight).copied().collect();
        for sequence in again {
            let record = tokio::task::block_in_place(|| self.spool.read(sequence, 1));
            let Ok([(found, bytes)]) = record.as_deref() else { continue };
            if *found != sequence || !self.send_one(sequence, bytes) {
                break;
            }
        }
        let settled = self.sink.flush();
        self.settle(settled);
    }
}

impl Sink {
    /// Waits until something is settled.
    async fn settled(&self) -> Vec<Settled> {
        match self {
            Self::Kafka(producer) => producer.settled().await,
            // A file settles in flush().
            Self::File(_) => std::future::pending().await,
        }
    }

    /// Ends a batch; what is settled by that.
    fn flush(&mut self) -> Vec<Settled> {
        match self {
            Self::Kafka(_) => Vec::new(),
            Self::File(file) => file.flush(),
        }
    }

    /// Before a retry: replaces what cannot work any more.
    fn renew(&mut self, notices: &Notices) {
        match self {
            Self::Kafka(producer) => producer.renew(),
            Self::File(file) => file.reopen(notices),
        }
    }
}
