//! The spool to the sink: sends in order, waits for acknowledgements, sends again what failed.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{book::Dead, kafka, lines, record::Record, spool, store};
use crate::{metrics::Metrics, notice::Notices};

/// Records that are read from the spool at a time.
const BATCH: usize = 512;
/// First pause before records that failed are sent again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How often the sink and the oldest record on its way are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Times the stall after which the connection is made anew.
const RENEW: u32 = 5;

/// Records as the spool has them, by number.
type Batch = Vec<(u64, Vec<u8>)>;

/// Where records go.
pub(super) enum Sink {
    Kafka(Box<kafka::Producer>),
    File(lines::File),
}

/// What became of a record that was handed to a sink.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) number: u64,
    /// Which producer says so.
    pub(super) generation: u32,
    /// None if the sink has it and will not lose it.
    pub(super) fault: Option<Fault>,
}

/// Why a sink does not have a record, or does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It, or another that it was sent with, is larger than may be.
    TooLarge,
    /// Anything that time or a new connection may cure.
    Later,
}

/// What a sink says when it is handed a record.
pub(super) enum Handed {
    /// It will be settled.
    Taken,
    /// There is no room now.
    Full,
    /// Not now, for a reason that time or a new connection may cure.
    Refused,
    /// Never.
    TooLarge,
}

/// How far the sender is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The sink has everything up to here.
    pub(super) acknowledged: u64,
    /// It may have everything up to here.
    pub(super) handed: u64,
}

/// A record on its way.
struct Flight {
    /// Which producer it went to.
    generation: u32,
    sent: Instant,
    /// When what it tells of happened.
    time: Timestamp,
}

/// The sending half of the stage.
pub(super) struct Sender {
    spool: spool::Reader,
    sink: Sink,
    stall: Duration,
    committed: watch::Receiver<u64>,
    progress: watch::Sender<Progress>,
    dead: mpsc::Sender<Dead>,
    metrics: Arc<Metrics>,
    notices: Notices,
    /// Next record to send for the first time.
    next: u64,
    /// Sent, and neither delivered nor failed yet.
    in_flight: BTreeMap<u64, Flight>,
    /// To be sent again; none of them is in flight.
    failed: BTreeSet<u64>,
    /// When that happens next.
    retry_at: Instant,
    pause: Duration,
    /// When the sink last said anything.
    reported: Instant,
    /// Some record was too large: they go one by one until all that failed are through, and the one that fails alone is it.
    isolate: bool,
    /// The one that goes alone now.
    alone: Option<u64>,
    /// Records for which there is no hope, on their way to the books.
    buried: Vec<Dead>,
}

/// What a sender works with.
pub(super) struct Parts {
    pub(super) spool: spool::Reader,
    pub(super) sink: Sink,
    pub(super) stall: Duration,
    pub(super) committed: watch::Receiver<u64>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) dead: mpsc::Sender<Dead>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) notices: Notices,
}

impl Sender {
    /// A sender of all that `spool` has beyond what is acknowledged.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { spool, sink, stall, committed, progress, dead, metrics, notices } = parts;
        let next = progress.borrow().acknowledged + 1;
        Self {
            next,
            spool,
            sink,
            stall,
            committed,
            progress,
            dead,
            metrics,
            notices,
            in_flight: BTreeMap::new(),
            failed: BTreeSet::new(),
            retry_at: Instant::now(),
            pause: FIRST_PAUSE,
            reported: Instant::now(),
            isolate: false,
            alone: None,
            buried: Vec::new(),
        }
    }

    /// Works until everything that was committed is delivered and no more comes, or until it is told to give up.
    ///
    /// # Errors
    /// When the spool is damaged.
    pub(super) async fn run(mut self, give_up: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In this order: when it has ended, the last number is final.
            let ended = self.committed.has_changed().is_err();
            let last = *self.committed.borrow_and_update();
            let more = self.send(last)?;
            self.publish().await;
            if ended && self.next > last && self.in_flight.is_empty() && self.failed.is_empty() {
                return Ok(());
            }
            // One that goes alone waits for those before it.
            let may_retry = !self.failed.is_empty() && (!self.isolate || self.in_flight.is_empty());
            tokio::select! {
                biased;
                () = give_up.cancelled() => {
                    let left = last.saturating_sub(self.progress.borrow().acknowledged);
                    tracing::info!(left, "records that the sink has not acknowledged stay in the spool");
                    return Ok(());
                }
                () = sleep_until(self.retry_at), if may_retry => self.retry()?,
                settled = self.sink.settled() => self.settle(settled)?,
                () = std::future::ready(()), if more => {}
                // Closed: the writer has ended, and the loop sees the last number it left.
                changed = self.committed.changed(), if !ended => { changed.ok(); }
                _ = ticks.tick() => self.look(),
            }
        }
    }

    /// Says how far it is; what is buried goes first, so that nothing counts as acknowledged that is not accounted for.
    async fn publish(&mut self) {
        for dead in std::mem::take(&mut self.buried) {
            // The writer has ended only if the sensor fails, and then all stays as it is on the disk.
            self.dead.send(dead).await.ok();
        }
        let oldest = [self.in_flight.keys().next(), self.failed.first()].into_iter().flatten().min();
        let acknowledged = oldest.copied().unwrap_or(self.next) - 1;
        let now = Progress { acknowledged, handed: self.next - 1 };
        self.progress.send_if_modified(|old| std::mem::replace(old, now) != now);
    }

    /// Hands the next records up to `last` to the sink, unless some wait to be sent again, or one must go alone: order
    /// matters more than speed then. True if there are more to hand over at once.
    fn send(&mut self, last: u64) -> anyhow::Result<bool> {
        if self.next > last || !self.failed.is_empty() || self.isolate {
            return Ok(false);
        }
        let Some(batch) = self.read(self.next, BATCH)? else { return Ok(false) };
        // Numbers that are no longer there were acknowledged before a restart, or given up.
        if batch.is_empty() {
            self.next = last + 1;
        }
        let mut room = true;
        for (number, bytes) in batch {
            let handed = self.send_one(number, &bytes);
            if !matches!(handed, Handed::Full) {
                self.next = number + 1;
            }
            room = matches!(handed, Handed::Taken | Handed::TooLarge);
            if !room {
                break;
            }
        }
        let settled = tokio::task::block_in_place(|| self.sink.flush());
        self.settle(settled)?;
        Ok(room && self.next <= last)
    }

    /// Reads from the spool; None while its disk fails.
    fn read(&self, from: u64, limit: usize) -> anyhow::Result<Option<Batch>> {
        match tokio::task::block_in_place(|| self.spool.read(from, limit)) {
            Ok(batch) => Ok(Some(batch)),
            // The next tick tries again.
            Err(why) if store::is_transient(&why) => Ok(None),
            Err(why) => Err(why).context("cannot read the spool; start again to have it set aside"),
        }
    }

    fn send_one(&mut self, number: u64, bytes: &[u8]) -> Handed {
        let record: Record = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(why) => {
                self.bury(number, bytes.to_vec(), format!("it cannot be read: {why}"));
                return Handed::TooLarge;
            }
        };
        let (handed, generation) = match &mut self.sink {
            Sink::Kafka(producer) => (producer.send(number, &record), producer.generation()),
            Sink::File(file) => (file.send(number, &record), 0),
        };
        match handed {
            Handed::Taken => {
                let flight = Flight { generation, sent: Instant::now(), time: record.time };
                self.in_flight.insert(number, flight);
            }
            Handed::Refused => self.fail(number),
            Handed::TooLarge => {
                let why = format!(
                    "its {} bytes are more than the client sends (message.max.bytes)",
                    record.data.get().len()
                );
                self.bury(number, bytes.to_vec(), why);
            }
            Handed::Full => {}
        }
        handed
    }

    fn bury(&mut self, number: u64, record: Vec<u8>, why: String) {
        self.failed.remove(&number);
        self.buried.push(Dead { number, record, why });
    }

    fn fail(&mut self, number: u64) {
        if self.failed.is_empty() {
            self.retry_at = Instant::now() + self.pause;
        }
        self.failed.insert(number);
    }

    fn settle(&mut self, settled: Vec<Settled>) -> anyhow::Result<()> {
        if !settled.is_empty() {
            self.reported = Instant::now();
        }
        for Settled { number, generation, fault } in settled {
            let current = self.in_flight.get(&number).is_some_and(|flight| flight.generation == generation);
            match fault {
                None => {
                    // Whichever producer brought it there.
                    if let Some(flight) = self.in_flight.remove(&number) {
                        let took = Timestamp::now().duration_since(flight.time);
                        self.metrics.delivery_seconds.observe(Duration::try_from(took).unwrap_or_default());
                    }
                    self.failed.remove(&number);
                    self.pause = FIRST_PAUSE;
                }
                // A producer that was replaced fails with what was sent again since.
                Some(_) if !current => {}
                Some(fault) => {
                    self.in_flight.remove(&number);
                    if fault == Fault::TooLarge && self.alone == Some(number) {
                        self.bury_from_spool(number)?;
                    } else {
                        self.fail(number);
                        if fault == Fault::Later && self.isolate {
                            self.retry_at = Instant::now() + self.pause;
                            self.pause = (self.pause * 2).min(LAST_PAUSE);
                        }
                        if fault == Fault::TooLarge {
                            (self.isolate, self.retry_at) = (true, Instant::now());
                            let what = "a batch is larger than the topic takes, so records go one by one; if there are many of these, set batch.size in ship.kafka.properties to the topic's max.message.bytes";
                            self.notices.add("ship", "kafka_batch_too_large", 1, what);
                        }
                    }
                }
            }
        }
        if self.failed.is_empty() && self.in_flight.is_empty() {
            (self.isolate, self.alone) = (false, None);
        }
        Ok(())
    }

    /// The record failed alone: it is larger than the topic takes.
    fn bury_from_spool(&mut self, number: u64) -> anyhow::Result<()> {
        let read = self.read(number, 1)?.and_then(|mut batch| batch.pop()).filter(|(found, _)| *found == number);
        match read {
            Some((_, record)) => {
                let why = format!("its {} bytes are more than the topic takes (max.message.bytes)", record.len());
                self.bury(number, record, why);
            }
            None => self.fail(number),
        }
        Ok(())
    }

    /// Sends again what failed, in order, until the sink refuses; one by one if some record is too large.
    fn retry(&mut self) -> anyhow::Result<()> {
        self.retry_at = Instant::now() + self.pause;
        if !self.isolate {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
        self.sink.heal(&self.notices);
        for number in self.failed.clone() {
            let Some(batch) = self.read(number, 1)? else { break };
            // A number that is no longer there was given up meanwhile.
            if let Some((_, bytes)) = batch.first().filter(|(found, _)| *found == number)
                && matches!(self.send_one(number, bytes), Handed::Full | Handed::Refused)
            {
                break;
            }
            // In flight now, or buried; it comes back if it fails again.
            self.failed.remove(&number);
            if self.isolate {
                self.alone = Some(number);
                self.retry_at = Instant::now();
                break;
            }
        }
        let settled = tokio::task::block_in_place(|| self.sink.flush());
        self.settle(settled)
    }

    /// Looks whether the sink is alive, and whether its files are the same.
    fn look(&mut self) {
        let Sink::Kafka(producer) = &mut self.sink else { return };
        let current = self.in_flight.values().filter(|flight| flight.generation == producer.generation());
        let oldest = current.map(|flight| flight.sent.elapsed()).max().unwrap_or_default();
        // A slow link is none that hangs.
        let age = oldest.min(self.reported.elapsed());
        // A producer that was replaced has said what became of its records, or never will.
        let limit = self.stall * (RENEW + 1);
        let forgotten =
            |flight: &Flight| flight.generation != producer.generation() && flight.sent.elapsed() > limit;
        let forgotten: Vec<u64> =
            self.in_flight.iter().filter(|(_, flight)| forgotten(flight)).map(|(number, _)| *number).collect();
        for number in forgotten {
            self.in_flight.remove(&number);
            if self.failed.is_empty() {
                self.retry_at = Instant::now();
            }
            self.failed.insert(number);
        }
        tokio::task::block_in_place(|| {
            if age > self.stall * RENEW {
                producer.replace(&format!("no answer for {} s", age.as_secs()), Duration::ZERO);
            } else if age > self.stall {
                producer.stalled(age);
            }
            producer.look();
        });
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
    fn heal(&mut self, notices: &Notices) {
        match self {
            Self::Kafka(producer) => producer.heal(),
            Self::File(file) => file.reopen(notices),
        }
    }
}
