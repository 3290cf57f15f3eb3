//! What was lost, where, why and when; and the sums of everything, so that they can be shown to add up.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    record::{self, Record},
    text::cut,
};
use crate::notice::Notice;

/// Losses that are accounted apart; further ones share a row.
const ROWS: usize = 1000;
/// Ranges of numbers in one loss record.
pub(super) const RANGES: usize = 100;
/// At most one record of a kind of loss in this time.
const INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of a sentence.
const DETAIL_BYTES: usize = 1000;

/// What tells losses apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Kind {
    /// The stage that lost it.
    pub(super) stage: String,
    /// Why, in one fixed word.
    pub(super) reason: String,
    /// The policy whose alerts they were.
    pub(super) policy: Option<String>,
    /// The container.
    pub(super) container: Option<String>,
}

/// Something that is lost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Loss {
    #[serde(flatten)]
    pub(super) kind: Kind,
    /// How many; zero if nobody knows.
    pub(super) count: u64,
    /// From when to when.
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    /// Numbers of lost records, as first and last of each range. The other `count` never had one.
    pub(super) ranges: Vec<(u64, u64)>,
    /// `namespace/pod`.
    pub(super) subject: Option<String>,
    /// The latest instance, for a person.
    pub(super) detail: String,
}

impl Loss {
    /// One sentence for a person.
    pub(super) fn message(&self) -> String {
        let Kind { stage, reason, policy, .. } = &self.kind;
        let what = match (self.count, policy) {
            (0, _) => "something".to_owned(),
            (count, Some(policy)) => format!("{count} of {policy}"),
            (count, None) => count.to_string(),
        };
        let subject = self.subject.as_ref().map_or(String::new(), |subject| format!(" in {subject}"));
        format!("lost by {stage} ({reason}): {what}{subject}; {}", self.detail)
    }

    /// Losses that have a number of their own.
    pub(super) fn numbered(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| last - first + 1).sum()
    }

    fn add_number(&mut self, number: u64) {
        match self.ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            Some((first, _)) if *first == number + 1 => *first = number,
            _ => self.ranges.push((number, number)),
        }
    }
}

/// Sums over the life of a spool. `fired = shipped + waiting + suppressed + limited + lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Totals {
    /// Alerts that came from the matcher.
    pub(super) fired: u64,
    /// Alerts that the sink has acknowledged.
    pub(super) shipped: u64,
    /// Alerts that repeat another.
    pub(super) suppressed: u64,
    /// Alerts beyond a limit.
    pub(super) limited: u64,
    /// Alerts given up.
    pub(super) lost: u64,
    /// Of those, alerts that had a number: a gap in the sequence tells of them too.
    pub(super) numbered: u64,
    /// Suppressed, limited and lost without a number: how many of them some record tells of.
    pub(super) told: u64,
}

impl Totals {
    /// Alerts without a number that no record tells of yet.
    pub(super) fn untold(&self) -> u64 {
        (self.suppressed + self.limited + self.lost - self.numbered).saturating_sub(self.told)
    }
}

/// Rows of losses that no record tells of yet, and the totals.
pub(super) struct Ledger {
    pub(super) totals: Totals,
    /// As they were written last.
    written: Totals,
    losses: BTreeMap<Kind, Loss>,
    dirty: BTreeSet<Kind>,
    /// When a record of this kind was last made.
    told: HashMap<Kind, Instant>,
}

const TOTALS_ROW: &[u8] = b"totals";

fn row_key(kind: &Kind) -> Vec<u8> {
    let text = serde_json::to_vec(kind).unwrap_or_default();
    [b"l", text.as_slice()].concat()
}

impl Ledger {
    /// The account that the `rows` of the state hold.
    pub(super) fn new(rows: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let totals = rows.iter().find(|(key, _)| key == TOTALS_ROW);
        let totals = totals.and_then(|(_, row)| serde_json::from_slice(row).ok()).unwrap_or_default();
        let losses = rows.iter().filter(|(key, _)| key.first() == Some(&b'l'));
        let losses = losses.filter_map(|(_, row)| serde_json::from_slice::<Loss>(row).ok());
        Self {
            totals,
            written: totals,
            losses: losses.map(|loss| (loss.kind.clone(), loss)).collect(),
            dirty: BTreeSet::new(),
            told: HashMap::new(),
        }
    }

    fn row(&mut self, mut kind: Kind, now: Timestamp) -> &mut Loss {
        if self.losses.len() >= ROWS && !self.losses.contains_key(&kind) {
            kind = Kind { policy: None, container: None, ..kind };
        }
        self.dirty.insert(kind.clone());
        self.losses.entry(kind.clone()).or_insert_with(|| Loss {
            kind,
            count: 0,
            first: now,
            last: now,
            ranges: Vec::new(),
            subject: None,
            detail: String::new(),
        })
    }

    /// A record that the sink will never take. If it was no alert, its number is all that is missing.
    pub(super) fn lose_record(&mut self, number: u64, record: &Record, why: &str) {
        if record.kind == record::Kind::Alert {
            self.lose_alert("dead_letter", Some(number), record, why);
        } else {
            self.note("dead_record", Some(number), record, why);
        }
    }

    /// An alert is lost before it had a number, or the `record` with this number.
    pub(super) fn lose_alert(&mut self, reason: &str, number: Option<u64>, record: &Record, why: &str) {
        self.totals.lost += 1;
        self.totals.numbered += u64::from(number.is_some());
        self.note(reason, number, record, why);
    }

    fn note(&mut self, reason: &str, number: Option<u64>, record: &Record, why: &str) {
        let kind = Kind {
            stage: "ship".to_owned(),
            reason: reason.to_owned(),
            policy: Some(record.policy.clone()).filter(|policy| !policy.is_empty()),
            container: record.container.clone(),
        };
        let loss = self.row(kind, record.time);
        loss.count += 1;
        loss.first = loss.first.min(record.time);
        loss.last = loss.last.max(record.time);
        if let Some(number) = number {
            loss.add_number(number);
        }
        loss.subject.clone_from(&record.subject);
        cut(why, DETAIL_BYTES).clone_into(&mut loss.detail);
    }

    /// What this record told is told by nobody, since it is a dead letter: another tells it.
    pub(super) fn take_back(&mut self, record: &Record) {
        let document: Value = serde_json::from_str(record.data.get()).unwrap_or_default();
        let own = record::own(&document);
        let number = |pointer: &str| own.and_then(|own| own.pointer(pointer)?.as_u64()).unwrap_or(0);
        let text =
            |pointer: &str| own.and_then(|own| own.pointer(pointer)?.as_str()).unwrap_or_default().to_owned();
        let kind = Kind { stage: text("/loss/stage"), reason: text("/loss/reason"), ..Kind::default() };
        let (kind, count, numbered) = match record.kind {
            record::Kind::Summary => {
                let kind = Kind { stage: "ship".to_owned(), reason: "dead_summary".to_owned(), ..Kind::default() };
                (kind, number("/summary/suppressed") + number("/summary/limited"), 0)
            }
            record::Kind::Loss => (kind, number("/loss/count"), number("/loss/numbered")),
            record::Kind::Alert | record::Kind::Health | record::Kind::Heartbeat => return,
        };
        if is_of_alerts(&kind.stage, &kind.reason) {
            self.totals.told = self.totals.told.saturating_sub(count - numbered.min(count));
        }
        let ranges = own.and_then(|own| own.pointer("/loss/ranges")?.as_array());
        let ends = |range: &Value| Some((range.get("first")?.as_u64()?, range.get("last")?.as_u64()?));
        let policy = Some(record.policy.clone()).filter(|policy| !policy.is_empty());
        self.put_back(Loss {
            kind: Kind { policy, ..kind },
            count,
            first: record.time,
            last: record.time,
            ranges: ranges.into_iter().flatten().filter_map(ends).collect(),
            subject: record.subject.clone(),
            detail: "the record that told of it was larger than the topic takes".to_owned(),
        });
    }

    /// A stage has lost something that is no alert.
    pub(super) fn lose(&mut self, notice: &Notice, since: Option<Timestamp>, now: Timestamp) {
        let (stage, reason) = (notice.stage.to_owned(), notice.reason.to_owned());
        let container = notice.whose.as_ref().map(|whose| whose.container.clone());
        let loss = self.row(Kind { stage, reason, policy: None, container }, now);
        loss.count += notice.count;
        loss.subject = notice.whose.as_ref().and_then(|whose| whose.pod.clone());
        loss.first = loss.first.min(since.unwrap_or(now));
        loss.last = loss.last.max(now);
        cut(&notice.detail, DETAIL_BYTES).clone_into(&mut loss.detail);
    }

    /// The next loss that a record is due of; all of them if `all`.
    pub(super) fn take_due(&mut self, now: Instant, all: bool) -> Option<Loss> {
        self.told.retain(|_, at| now.saturating_duration_since(*at) < INTERVAL);
        let is_due =
            |(kind, loss): &(&Kind, &Loss)| all || loss.ranges.len() >= RANGES || !self.told.contains_key(*kind);
        let kind = self.losses.iter().find(is_due)?.0.clone();
        let mut loss = self.losses.remove(&kind)?;
        self.dirty.insert(kind.clone());
        if loss.ranges.len() > RANGES {
            // The rest is another record's.
            let rest = loss.ranges.split_off(RANGES);
            let rest = Loss { ranges: rest, count: 0, ..loss.clone() };
            let rest = Loss { count: rest.numbered(), ..rest };
            loss.count -= rest.count;
            self.losses.insert(kind, rest);
        }
        Some(loss)
    }

    /// A record tells of it now.
    pub(super) fn tell(&mut self, loss: &Loss, now: Instant) {
        self.told.insert(loss.kind.clone(), now);
        if is_of_alerts(&loss.kind.stage, &loss.kind.reason) {
            self.totals.told += loss.count - loss.numbered();
        }
    }

    /// There was no room for the record.
    pub(super) fn put_back(&mut self, loss: Loss) {
        let known = self.losses.entry(loss.kind.clone());
        self.dirty.insert(loss.kind.clone());
        known
            .and_modify(|known| {
                known.count += loss.count;
                known.ranges.extend(&loss.ranges);
                known.first = known.first.min(loss.first);
                known.last = known.last.max(loss.last);
            })
            .or_insert(loss);
    }

    /// Rows of the state that changed since the last call.
    pub(super) fn take_dirty(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut rows: Vec<_> = std::mem::take(&mut self.dirty)
            .iter()
            .map(|kind| {
                let row = self.losses.get(kind).and_then(|loss| serde_json::to_vec(loss).ok());
                (row_key(kind), row)
            })
            .collect();
        if self.totals != self.written {
            self.written = self.totals;
            rows.push((TOTALS_ROW.to_vec(), serde_json::to_vec(&self.totals).ok()));
        }
        rows
    }
}

/// Whether it is alerts that are lost, which somebody counted.
pub(super) fn is_of_alerts(stage: &str, reason: &str) -> bool {
    stage == "ship" && !matches!(reason, "spool_damaged" | "spool_missing" | "dead_record")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(policy: &str) -> Record {
        Record { policy: policy.to_owned(), ..Record::empty() }
    }

    #[test]
    fn losses_of_one_kind_are_one_row_with_their_ranges_and_survive_in_the_state() {
        let mut ledger = Ledger::new(&[]);
        for number in [4, 5, 6, 9, 8] {
            ledger.lose_alert("spool_full", Some(number), &record("p"), "why");
        }
        ledger.lose_alert("spool_full", None, &record("p"), "why");
        ledger.lose_alert("dead_letter", Some(7), &record("q"), "why");
        ledger.totals.fired = 9;
        let rows: Vec<_> = ledger.take_dirty().into_iter().filter_map(|(key, row)| Some((key, row?))).collect();
        let mut again = Ledger::new(&rows);
        assert_eq!((again.totals.fired, again.totals.lost), (9, 7));
        let start = Instant::now();
        let first = again.take_due(start, false).unwrap();
        assert_eq!((first.kind.reason.as_str(), first.count), ("dead_letter", 1));
        again.tell(&first, start);
        let second = again.take_due(start, false).unwrap();
        assert_eq!((second.count, second.numbered(), &second.ranges), (6, 5, &vec![(4, 6), (8, 9)]));
        again.tell(&second, start);
        assert_eq!((again.totals.numbered, again.totals.told, again.totals.untold()), (6, 1, 0));
        assert!(again.take_due(start, false).is_none());
        // The same again is told a minute later.
        again.lose_alert("dead_letter", Some(11), &record("q"), "why");
        assert!(again.take_due(start + INTERVAL / 2, false).is_none());
        assert!(again.take_due(start + INTERVAL, false).is_some());
    }

    #[test]
    fn ranges_beyond_a_records_limit_are_the_next_records() {
        let mut ledger = Ledger::new(&[]);
        let numbers = RANGES as u64 + 7;
        for number in 0..numbers {
            ledger.lose_alert("spool_full", Some(number * 2), &record("p"), "why");
        }
        ledger.lose_alert("spool_full", None, &record("p"), "why");
        let now = Instant::now();
        let first = ledger.take_due(now, false).unwrap();
        let second = ledger.take_due(now, true).unwrap();
        assert_eq!((first.count, first.numbered()), (RANGES as u64 + 1, RANGES as u64));
        assert_eq!((second.count, second.numbered()), (7, 7));
        assert!(ledger.take_due(now, true).is_none());
    }
}
