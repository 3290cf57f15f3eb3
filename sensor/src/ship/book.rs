//! The stage's books: every alert that fired is shipped, waits, or is counted as suppressed, limited or lost, and each
//! commit of the spool holds all of that at once.
//!
//! No async and no queues; [`super::writer`] drives it.
use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytesize::ByteSize;
use jiff::Timestamp;

use super::{
    encoder::{Beat, Encoder, Said},
    ledger::Ledger,
    lines::{self, FileConfig},
    record::{Kind, Record},
    spool::{Row, SYSTEM, Spool},
    store,
    storm::{self, Storm, Verdict},
};
use crate::{
    metrics::Metrics,
    notice::{Notice, Notices},
    policy::Alert,
};

/// At most one health record of a kind in this time.
const HEALTH: Duration = Duration::from_secs(60);
/// An idle spool is written that often, so that the next run knows how long nobody looked.
const ALIVE: Duration = Duration::from_secs(10);
/// By how much the wall clock may differ from the monotonic one before somebody is told.
const CLOCK_STEP: Duration = Duration::from_secs(5);
/// Health notices that end others.
const CLEARS: [(&str, &str); 4] = [
    ("kafka_recovered", "kafka_degraded"),
    ("kafka_degraded", "kafka_recovered"),
    ("spool_writable", "spool_failed"),
    ("spool_failed", "spool_writable"),
];
/// Part of the spool from which on it is said that it fills.
const FILLS_PERCENT: u64 = 60;

/// A record that the sink will never take.
#[derive(Debug)]
pub(super) struct Dead {
    pub(super) number: u64,
    pub(super) record: Vec<u8>,
    pub(super) why: String,
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) at: Instant,
    pub(super) time: Timestamp,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { at: Instant::now(), time: Timestamp::now() }
    }
}

/// What the book works with.
pub(super) struct Parts {
    pub(super) encoder: Encoder,
    pub(super) spool: Spool,
    pub(super) rows: Vec<Row>,
    pub(super) storm: storm::Config,
    pub(super) heartbeat: Duration,
    pub(super) dead_letters: FileConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) notices: Notices,
}

/// The stage's books.
pub(super) struct Book {
    encoder: Encoder,
    spool: Spool,
    storm: Storm,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    notices: Notices,
    heartbeat: Duration,
    next_beat: Instant,
    /// Health notices by kind: when one was last told, and what came since.
    health: HashMap<(&'static str, &'static str), (Instant, Option<Notice>)>,
    dead_letters: FileConfig,
    committed_at: Instant,
    /// The last commit failed.
    failing: bool,
    /// The spool is said to fill.
    fills: bool,
    /// The last look at both clocks.
    clock: Now,
}

/// Where dead letters of a spool in `directory` go.
pub(super) fn dead_letters(directory: &Path) -> FileConfig {
    FileConfig { path: directory.join("dead-letters.jsonl"), max_bytes: ByteSize::mib(16), keep: 1 }
}

impl Book {
    /// Opens the books; what the run before left in them is told first.
    pub(super) fn new(parts: Parts, now: Now) -> Self {
        let Parts { encoder, spool, rows, storm, heartbeat, dead_letters, metrics, notices } = parts;
        let storm = Storm::new(storm, encoder.redact.clone(), &rows, now.at);
        let mut ledger = Ledger::new(&rows);
        if let Some(alive) = spool.alive() {
            let detail = "no sensor ran on this node; what was opened meanwhile is not known".to_owned();
            let down =
                Notice { stage: "sensor", reason: "sensor_down", lost: true, count: 0, whose: None, detail };
            ledger.lose(&down, Some(alive.min(now.time)), now.time);
        }
        // Nodes that start together do not speak together.
        let phase = encoder.identity.agent_id.as_u128() % heartbeat.as_millis().max(1);
        let phase = Duration::from_millis(u64::try_from(phase).unwrap_or(0));
        Self {
            encoder,
            spool,
            storm,
            ledger,
            metrics,
            notices,
            heartbeat,
            next_beat: now.at + phase,
            health: HashMap::new(),
            dead_letters,
            committed_at: now.at,
            failing: false,
            fills: false,
            clock: now,
        }
    }

    /// The newest number that is on the disk.
    pub(super) fn committed(&self) -> u64 {
        self.spool.committed()
    }

    /// Bytes that wait for a commit.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.spool.pending_bytes()
    }

    /// Whether the last commit failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    /// Takes an alert in: into the spool, or into a count.
    pub(super) fn take(&mut self, alert: &Alert, now: Now) {
        self.ledger.totals.fired += 1;
        match self.storm.admit(alert, || self.encoder.alert_id(alert), now.at) {
            Verdict::Suppressed => {
                self.ledger.totals.suppressed += 1;
                self.metrics.suppressed.add(1);
            }
            Verdict::Limited => {
                self.ledger.totals.limited += 1;
                self.metrics.limited.add(1);
            }
            Verdict::Emit => self.emit(alert, now),
        }
    }

    fn emit(&mut self, alert: &Alert, now: Now) {
        let said = Said::Alert(alert);
        match self.encoder.record(&said, self.spool.next(), now.time) {
            Ok((rank, record)) => {
                if !self.put(rank, &record) {
                    let why = "the spool is full; is the sink reachable, and ship.spool.max_bytes large enough?";
                    self.lose(self.full(), None, &record, why);
                }
            }
            Err(why) => {
                let record = Record { policy: alert.policy.full_name(), ..Record::empty() };
                self.ledger.lose_alert("unencodable", None, &record, &why.to_string());
                self.metrics.alerts_lost.add(1);
            }
        }
    }

    fn full(&self) -> &'static str {
        if self.failing { "spool_unwritable" } else { "spool_full" }
    }

    /// Puts a record into the spool if there is room; what is given up for it is lost, and counted.
    fn put(&mut self, rank: u8, record: &[u8]) -> bool {
        let room = self.spool.make_room(rank, record.len());
        for (number, gone) in room.gone {
            self.lose(
                self.full(),
                Some(number),
                &gone,
                "the spool is full, and others mattered more or were newer",
            );
        }
        if room.fits {
            self.spool.push(rank, record);
        }
        room.fits
    }

    fn lose(&mut self, reason: &'static str, number: Option<u64>, record: &[u8], why: &str) {
        let record = serde_json::from_slice(record).unwrap_or_else(|_| Record::empty());
        self.ledger.lose_alert(reason, number, &record, why);
        self.metrics.alerts_lost.add(1);
        // The ledger tells of it in a record; this is for the log.
        self.notices.log_only("ship", reason, 1, format!("an alert of {} is lost: {why}", record.policy));
    }

    /// The sink has everything up to `acknowledged`, and may have what is up to `handed`.
    pub(super) fn acknowledge(&mut self, acknowledged: u64, handed: u64) {
        let alerts = self.spool.acknowledge(acknowledged);
        self.ledger.totals.shipped += alerts;
        self.metrics.shipped.add(alerts);
        self.spool.hand(handed);
    }

    /// The sink will never take this record: it goes to a file, and is lost to whoever reads the topic.
    pub(super) fn bury(&mut self, dead: &Dead) {
        if !self.spool.remove(dead.number) {
            // It was given up meanwhile, and counted then.
            return;
        }
        let parsed: Result<Record, _> = serde_json::from_slice(&dead.record);
        let kept = parsed.as_ref().ok().map(|record| {
            let mut file = lines::File::open(&self.dead_letters)?;
            file.send(dead.number, record);
            let broken = file.flush().iter().any(|settled| settled.fault.is_some());
            anyhow::ensure!(!broken, "it cannot be written");
            anyhow::Ok(())
        });
        let place = self.dead_letters.path.display();
        let kept = match kept {
            Some(Ok(())) => format!("it is in {place}"),
            Some(Err(why)) => format!("and it cannot be kept in {place}: {why:#}"),
            None => "and nobody can read it".to_owned(),
        };
        let record = parsed.unwrap_or_else(|_| Record::empty());
        if record.kind == Kind::Alert {
            self.metrics.alerts_lost.add(1);
        }
        self.ledger.lose_record(dead.number, &record, &dead.why);
        self.ledger.take_back(&record);
        self.notices.add(
            "ship",
            "dead_letter",
            1,
            format!("record {} cannot be sent: {}; {kept}", dead.number, dead.why),
        );
    }

    /// Says what is due: losses, health, summaries, heartbeats; all that there is if the sensor stops.
    pub(super) fn tell(&mut self, now: Now, stops: bool) {
        self.look_at_clock(now);
        self.spool.look_at_disk(&self.notices);
        self.look_at_fill();
        for notice in self.notices.take_to_ship() {
            if notice.lost {
                self.ledger.lose(&notice, None, now.time);
            } else {
                self.note_health(notice, now);
            }
        }
        self.tell_health(now, stops);
        self.tell_losses(now, stops);
        self.storm.close_due((!stops).then_some(now.at));
        while let Some((row, folded)) = self.storm.take_closed() {
            if !self.say(&Said::Summary(&folded), now) {
                self.storm.put_back(row, folded);
                break;
            }
            self.ledger.totals.told += folded.suppressed + folded.limited;
            self.spool.set(row, None);
        }
        if stops || now.at >= self.next_beat {
            self.next_beat = now.at + self.heartbeat;
            let beat = Beat {
                totals: self.ledger.totals,
                waiting: self.spool.alerts(),
                spool: self.spool.fill(),
                last: stops,
            };
            self.say(&Said::Heartbeat(&beat), now);
        }
    }

    fn tell_losses(&mut self, now: Now, stops: bool) {
        while let Some(loss) = self.ledger.take_due(now.at, stops) {
            if !self.say(&Said::Loss(&loss), now) {
                self.ledger.put_back(loss);
                break;
            }
            self.ledger.tell(&loss, now.at);
        }
    }

    fn note_health(&mut self, notice: Notice, now: Now) {
        // What is over is not told of any more.
        let over = CLEARS.iter().find(|(by, _)| *by == notice.reason).map(|(_, over)| *over);
        if let Some((_, waiting)) = over.and_then(|over| self.health.get_mut(&(notice.stage, over))) {
            *waiting = None;
        }
        match self.health.entry((notice.stage, notice.reason)) {
            Entry::Occupied(mut known) => {
                let count = known.get().1.as_ref().map_or(0, |known| known.count);
                known.get_mut().1 = Some(Notice { count: count + notice.count, ..notice });
            }
            Entry::Vacant(new) => drop(new.insert((now.at, Some(notice)))),
        }
    }

    fn tell_health(&mut self, now: Now, stops: bool) {
        let mut due = Vec::new();
        for (at, waiting) in self.health.values_mut() {
            if *at <= now.at || stops {
                due.extend(waiting.take());
            }
        }
        for notice in due {
            let kind = (notice.stage, notice.reason);
            let told = self.say(&Said::Health(&notice), now);
            let known = self.health.entry(kind).or_insert((now.at, None));
            *known = if told { (now.at + HEALTH, None) } else { (now.at, Some(notice)) };
        }
    }

    /// Puts a record of the sensor's own into the spool.
    fn say(&mut self, said: &Said<'_>, now: Now) -> bool {
        match self.encoder.record(said, self.spool.next(), now.time) {
            Ok((_, record)) => self.put(SYSTEM, &record),
            Err(why) => {
                // It holds numbers and texts only; there is no reason why it should fail.
                tracing::error!("a record of the sensor cannot be encoded: {why}");
                true
            }
        }
    }

    /// The wall clock must go as fast as the monotonic one.
    fn look_at_clock(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.clock, now);
        if let Some(step) = clock_step(before, now) {
            self.notices.add("sensor", "clock_jumped", 1, format!("the wall clock jumped by {step} seconds"));
        }
    }

    fn look_at_fill(&mut self) {
        let (bytes, max) = self.spool.fill();
        let fills = bytes > max / 100 * FILLS_PERCENT || self.fills && bytes > max / 2;
        if fills && !self.fills {
            let (bytes, max) = (ByteSize(bytes), ByteSize(max));
            let what =
                format!("{bytes} of {max} wait in the spool; beyond that, alerts of low severity are given up");
            self.notices.add("ship", "spool_fills", 1, what);
        }
        self.fills = fills;
    }

    /// Writes what has changed since the last commit; if the disk refuses, everything stays for the next.
    ///
    /// # Errors
    /// When the spool is damaged: the next start sets it aside.
    pub(super) fn commit(&mut self, now: Now) -> anyhow::Result<()> {
        let rows = self.storm.take_dirty().into_iter().chain(self.ledger.take_dirty());
        for (key, value) in rows {
            self.spool.set(key, value);
        }
        let recent = now.at.saturating_duration_since(self.committed_at) < ALIVE;
        if !self.spool.is_dirty() && recent {
            return Ok(());
        }
        match self.spool.commit(now.time) {
            Ok(()) => {
                self.committed_at = now.at;
                let (bytes, max) = self.spool.fill();
                self.metrics.spool_bytes.set(bytes);
                self.metrics.spool_max_bytes.set(max);
                self.metrics.spool_alerts.set(self.spool.alerts());
                if std::mem::take(&mut self.failing) {
                    self.notices.add("ship", "spool_writable", 1, "the spool can be written again");
                }
                tracing::debug!(spooled = self.spool.committed(), "committed");
                Ok(())
            }
            Err(why) if store::is_transient(&why) => {
                self.failing = true;
                let what = format!(
                    "cannot write the spool: {why}; alerts wait in memory, and are lost beyond 8 MiB of them"
                );
                self.notices.add("ship", "spool_failed", 1, what);
                Ok(())
            }
            Err(why) => Err(why).context("the spool is damaged; start again to have it set aside"),
        }
    }
}

/// Seconds by which the wall clock has gone ahead of the monotonic one, if that is more than clocks differ.
fn clock_step(before: Now, now: Now) -> Option<i64> {
    let passed = now.at.saturating_duration_since(before.at);
    let wall = now.time.duration_since(before.time);
    let step = wall - jiff::SignedDuration::try_from(passed).unwrap_or_default();
    (step.unsigned_abs() > CLOCK_STEP).then(|| step.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_is_told_and_one_that_drifts_is_not() {
        let before = Now::read();
        let after = |seconds: u64, wall: i64| Now {
            at: before.at + Duration::from_secs(seconds),
            time: before.time + jiff::SignedDuration::from_secs(wall),
        };
        assert_eq!(clock_step(before, after(1, 1)), None);
        assert_eq!(clock_step(before, after(60, 57)), None);
        assert_eq!(clock_step(before, after(1, -3599)), Some(-3600));
        assert_eq!(clock_step(before, after(1, 3601)), Some(3600));
    }
}
