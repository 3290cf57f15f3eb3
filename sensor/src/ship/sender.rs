//! The spool to the sink: sends in order, waits for acknowledgements, sends again what failed.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{kafka, lines, record::Record, spool::Reader};
use crate::{metrics::Metrics, notice::Notices};

/// Records that are read from the spool at a time.
const BATCH: usize = 512;
/// Pause before a record that failed is sent again.
const RETRY: Duration = Duration::from_secs(1);

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

/// What a sink says when it is handed a record.
pub(super) enum Handed {
    /// It will be settled.
    Taken,
    /// There is no room now.
    Full,
    /// Not now, for a reason that time or a new connection may cure.
    Refused,
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
    /// To be sent again; none of them is in flight.
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
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub(super) async fn run(mut self, give_up: CancellationToken) -> anyhow::Result<()> {
        loop {
            // In this order: when it has ended, the last number is final.
            let ended = self.committed.has_changed().is_err();
            let last = *self.committed.borrow_and_update();
            let more = self.send(last)?;
            if ended && self.next > last && self.in_flight.is_empty() && self.failed.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = give_up.cancelled() => {
                    let left = last.saturating_sub(*self.acknowledged.borrow());
                    tracing::info!(left, "records that the sink has not acknowledged stay in the spool");
                    return Ok(());
                }
                () = sleep_until(self.retry_at), if !self.failed.is_empty() => self.retry()?,
                settled = self.sink.settled() => self.settle(settled),
                () = std::future::ready(()), if more => {}
                // Closed: the writer has ended, and the loop sees the last number it left.
                changed = self.committed.changed(), if !ended => { changed.ok(); }
            }
        }
    }

    /// Hands the next records up to `last` to the sink, unless some wait to be sent again: order matters more than
    /// speed then. True if there are more to hand over at once.
    fn send(&mut self, last: u64) -> anyhow::Result<bool> {
        if self.next > last || !self.failed.is_empty() {
            return Ok(false);
        }
        let batch = self.read(self.next, BATCH)?;
        // Numbers that are no longer there were acknowledged before a restart.
        if batch.is_empty() {
            self.next = last + 1;
        }
        let mut room = true;
        for (sequence, bytes) in batch {
            let handed = self.send_one(sequence, &bytes);
            if !matches!(handed, Handed::Full) {
                self.next = sequence + 1;
            }
            room = matches!(handed, Handed::Taken);
            if !room {
                break;
            }
        }
        let settled = tokio::task::block_in_place(|| self.sink.flush());
        self.settle(settled);
        Ok(room && self.next <= last)
    }

    fn read(&self, from: u64, limit: usize) -> anyhow::Result<Vec<(u64, Vec<u8>)>> {
        let batch = tokio::task::block_in_place(|| self.spool.read(from, limit));
        batch.context("cannot read the spool; start again to have it checked")
    }

    fn send_one(&mut self, sequence: u64, bytes: &[u8]) -> Handed {
        let record: Record = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(why) => {
                self.metrics.alerts_lost.add(1);
                let what = format!("record {sequence} of the spool cannot be read: {why}");
                self.notices.add("ship", "unreadable", 1, what);
                return Handed::Taken;
            }
        };
        let handed = match &mut self.sink {
            Sink::Kafka(producer) => producer.send(sequence, &record),
            Sink::File(file) => file.send(sequence, &record),
        };
        match handed {
            Handed::Taken => drop(self.in_flight.insert(sequence)),
            Handed::Refused => self.fail(sequence),
            Handed::Full => {}
        }
        handed
    }

    fn fail(&mut self, sequence: u64) {
        if self.failed.is_empty() {
            self.retry_at = Instant::now() + RETRY;
        }
        self.failed.insert(sequence);
    }

    fn settle(&mut self, settled: Vec<Settled>) {
        for outcome in settled {
            match outcome {
                Settled::Delivered(sequence) => {
                    if self.in_flight.remove(&sequence) {
                        self.metrics.shipped.add(1);
                    }
                }
                Settled::Failed(sequence) => {
                    if self.in_flight.remove(&sequence) {
                        self.fail(sequence);
                    }
                }
            }
        }
        let oldest = [self.in_flight.first(), self.failed.first()].into_iter().flatten().min();
        let acknowledged = oldest.copied().unwrap_or(self.next) - 1;
        self.acknowledged.send_if_modified(|old| std::mem::replace(old, acknowledged) != acknowledged);
    }

    /// Sends again what failed, in order, until the sink refuses.
    fn retry(&mut self) -> anyhow::Result<()> {
        self.retry_at = Instant::now() + RETRY;
        self.sink.renew(&self.notices);
        for sequence in self.failed.clone() {
            let batch = self.read(sequence, 1)?;
            // A number that is no longer there was acknowledged before a restart.
            if let Some((_, bytes)) = batch.first().filter(|(found, _)| *found == sequence)
                && !matches!(self.send_one(sequence, bytes), Handed::Taken)
            {
                break;
            }
            // In flight now; it comes back if it fails again.
            self.failed.remove(&sequence);
        }
        let settled = tokio::task::block_in_place(|| self.sink.flush());
        self.settle(settled);
        Ok(())
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
