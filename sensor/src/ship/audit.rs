//! Proves from the records alone that a topic is whole, or names what is missing.
//!
//! Of each sender, that is of each agent and epoch, every number up to the last must be there or be named by a loss record;
//! and the last heartbeat's count of alerts that fired must be the sum of those that are there and those that summaries and
//! loss records tell of.
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::ledger::is_of_alerts;

/// What a record is, for the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Alert,
    Summary,
    Loss,
    Health,
    Heartbeat,
}

/// Everything that was read, by sender.
#[derive(Debug, Default)]
pub struct Audit {
    senders: BTreeMap<(String, String), Sender>,
    foreign: u64,
}

#[derive(Debug, Default)]
struct Sender {
    node: String,
    /// Number, a hash of the id, kind; as they came.
    records: Vec<(u64, u64, Kind)>,
    /// Numbers that loss records name, first to last, and whether they were alerts.
    lost: Vec<(u64, u64, bool)>,
    /// Alerts without a number that a summary or loss record tells of, and the number of that record.
    told: BTreeMap<u64, u64>,
    heartbeat: Option<Heartbeat>,
    /// The first number in each partition whose beginning retention has removed.
    beginnings: BTreeMap<String, u64>,
    /// Losses that are no alerts, by stage and reason; zero if it is not known how much.
    other: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Heartbeat {
    sequence: u64,
    fired: u64,
    untold: u64,
}

/// The account of one sender.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The node's name.
    pub node: String,
    /// `agent.id`.
    pub agent: String,
    /// `agent.ephemeral_id`.
    pub epoch: String,
    /// Distinct records.
    pub records: u64,
    /// Alerts among them.
    pub alerts: u64,
    /// Records that are there more than once, with the same id.
    pub duplicates: u64,
    /// The lowest and the highest number.
    pub first: u64,
    /// The highest number.
    pub last: u64,
    /// Numbers before the first, which retention has removed.
    pub cut: u64,
    /// Alerts that were counted instead of sent, or lost before they had a number.
    pub counted: u64,
    /// Alerts with a number that loss records say are lost, and that are not there.
    pub lost: u64,
    /// Losses that are no alerts, by stage and reason; zero if it is not known how many.
    pub other_losses: BTreeMap<String, u64>,
    /// Alerts that fired up to the last heartbeat; none if there is no heartbeat, or if retention has removed something.
    pub fired: Option<u64>,
    /// The sum of what is there, told of or yet to be told of, up to the last heartbeat.
    pub accounted: Option<u64>,
    /// What nothing explains, or proves: ranges of numbers, ids that differ, sums that do not add up.
    pub unexplained: Vec<String>,
}

/// What a record says of itself, whatever its schema.
struct View<'a> {
    agent: &'a str,
    epoch: &'a str,
    node: &'a str,
    id: &'a str,
    sequence: u64,
    kind: Kind,
    own: &'a Value,
}

fn view(document: &Value) -> Option<View<'_>> {
    let at = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    if document.get("class_uid").is_some() {
        let kind = match at("/metadata/event_code")? {
            "dev.pathwatch.alert.v1" => Kind::Alert,
            "dev.pathwatch.summary.v1" => Kind::Summary,
            "dev.pathwatch.loss.v1" => Kind::Loss,
            "dev.pathwatch.health.v1" => Kind::Health,
            "dev.pathwatch.heartbeat.v1" => Kind::Heartbeat,
            _ => return None,
        };
        return Some(View {
            agent: at("/device/agent_list/0/uid")?,
            epoch: at("/device/agent_list/0/uid_alt")?,
            node: at("/device/hostname")?,
            id: at("/metadata/uid")?,
            sequence: document.pointer("/metadata/sequence")?.as_u64()?,
            kind,
            own: document.pointer("/unmapped/pathwatch")?,
        });
    }
    let own = document.get("pathwatch")?;
    let kind = match at("/data_stream/dataset")? {
        "pathwatch.alert" if own.get("summary").is_some() => Kind::Summary,
        "pathwatch.alert" => Kind::Alert,
        "pathwatch.loss" => Kind::Loss,
        "pathwatch.health" => Kind::Health,
        "pathwatch.heartbeat" => Kind::Heartbeat,
        _ => return None,
    };
    Some(View {
        agent: at("/agent/id")?,
        epoch: at("/agent/ephemeral_id")?,
        node: at("/host/name")?,
        id: at("/event/id")?,
        sequence: document.pointer("/event/sequence")?.as_u64()?,
        kind,
        own,
    })
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Audit {
    /// Takes a record in. `place` is the partition or file that it is from, if retention has removed records at the
    /// beginning of that.
    pub fn add(&mut self, payload: &[u8], place: Option<&str>) {
        let document: Value = serde_json::from_slice(payload).unwrap_or(Value::Null);
        let Some(view) = view(&document) else {
            self.foreign += 1;
            return;
        };
        let sender = self.senders.entry((view.agent.to_owned(), view.epoch.to_owned())).or_default();
        view.node.clone_into(&mut sender.node);
        sender.records.push((view.sequence, hash(view.id), view.kind));
        if let Some(place) = place
            && !sender.beginnings.contains_key(place)
        {
            sender.beginnings.insert(place.to_owned(), view.sequence);
        }
        match view.kind {
            Kind::Alert | Kind::Health => {}
            Kind::Summary => {
                let count = number(view.own, "/summary/suppressed") + number(view.own, "/summary/limited");
                sender.told.insert(view.sequence, count);
            }
            Kind::Loss => sender.add_loss(view.sequence, view.own),
            Kind::Heartbeat => {
                if sender.heartbeat.is_none_or(|known| known.sequence < view.sequence) {
                    sender.heartbeat = Some(Heartbeat {
                        sequence: view.sequence,
                        fired: number(view.own, "/heartbeat/fired"),
                        untold: number(view.own, "/heartbeat/untold"),
                    });
                }
            }
        }
    }

    /// Records that are not the sensor's.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// The account of each sender.
    #[must_use]
    pub fn accounts(self) -> Vec<Account> {
        let account = |((agent, epoch), sender): ((String, String), Sender)| sender.account(agent, epoch);
        self.senders.into_iter().map(account).collect()
    }
}

impl Sender {
    fn add_loss(&mut self, sequence: u64, own: &Value) {
        let text = |pointer: &str| own.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (stage, reason) = (text("/loss/stage"), text("/loss/reason"));
        let of_alerts = is_of_alerts(stage, reason);
        let (count, numbered) = (number(own, "/loss/count"), number(own, "/loss/numbered"));
        if of_alerts {
            self.told.insert(sequence, count.saturating_sub(numbered));
        } else {
            *self.other.entry(format!("{stage}/{reason}")).or_default() += count;
        }
        let ranges = own.pointer("/loss/ranges").and_then(Value::as_array);
        for range in ranges.into_iter().flatten() {
            self.lost.push((number(range, "/first"), number(range, "/last"), of_alerts));
        }
    }

    fn account(mut self, agent: String, epoch: String) -> Account {
        self.records.sort_unstable();
        let all = self.records.len();
        self.records.dedup();
        let mut unexplained = Vec::new();
        let twice = self.records.array_windows().filter(|[one, other]| one.0 == other.0);
        unexplained.extend(twice.map(|[one, _]| format!("number {} has two ids", one.0)));
        self.lost.sort_unstable();
        let first = self.records.first().map_or(0, |record| record.0);
        let last = self.records.last().map_or(0, |record| record.0);
        // What is older than the oldest that a cut partition has may have been there.
        let cut = self.beginnings.values().max().map_or(0, |first| first.saturating_sub(1));
        let up_to = self.heartbeat.map_or(0, |heartbeat| heartbeat.sequence);
        let (mut lost, mut lost_up_to) = (0, 0);
        for Gap { first, last, lost_alerts } in self.gaps(cut + 1) {
            match lost_alerts {
                Some(true) => {
                    lost += last - first + 1;
                    lost_up_to += (last.min(up_to) + 1).saturating_sub(first);
                }
                Some(false) => {}
                None if first == last => unexplained.push(format!("missing: {first}")),
                None => unexplained.push(format!("missing: {first}-{last}")),
            }
        }
        let alerts = self.records.iter().filter(|(.., kind)| *kind == Kind::Alert);
        let (alerts, alerts_up_to) =
            (alerts.clone().count() as u64, alerts.filter(|(number, ..)| *number <= up_to).count() as u64);
        let heartbeat = self.heartbeat.filter(|_| cut == 0);
        let told: u64 = self.told.range(..=up_to).map(|(_, count)| count).sum();
        let accounted = heartbeat.map(|beat| alerts_up_to + lost_up_to + told + beat.untold);
        if let (Some(beat), Some(accounted)) = (heartbeat, accounted)
            && beat.fired != accounted
        {
            unexplained.push(format!(
                "{} alerts fired up to number {up_to}, and {accounted} are accounted for",
                beat.fired
            ));
        }
        if self.heartbeat.is_none() && cut == 0 {
            unexplained.push("there is no heartbeat, so neither sums nor the end can be proved".to_owned());
        }
        Account {
            node: self.node,
            agent,
            epoch,
            records: self.records.len() as u64,
            alerts,
            duplicates: (all - self.records.len()) as u64,
            first,
            last,
            cut,
            counted: self.told.values().sum(),
            lost,
            other_losses: self.other,
            fired: heartbeat.map(|beat| beat.fired),
            accounted,
            unexplained,
        }
    }

    /// The numbers from `first` on that are not there, each piece as loss records name it or do not.
    fn gaps(&self, first: u64) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let mut at = first;
        for (number, ..) in &self.records {
            while at < *number {
                let before = self.lost.partition_point(|(first, ..)| *first <= at);
                let (named, later) = self.lost.split_at_checked(before).unwrap_or_default();
                let covering = named.iter().rev().find(|(_, last, _)| *last >= at);
                let end = match covering {
                    Some((_, last, _)) => *last,
                    None => later.first().map_or(u64::MAX, |(first, ..)| first - 1),
                };
                let last = end.min(number - 1);
                gaps.push(Gap { first: at, last, lost_alerts: covering.map(|(.., of_alerts)| *of_alerts) });
                at = last + 1;
            }
            at = at.max(number.saturating_add(1));
        }
        gaps
    }
}

/// Numbers that are not there, without a hole between them.
struct Gap {
    first: u64,
    last: u64,
    /// Whether loss records name them, and if so whether as alerts.
    lost_alerts: Option<bool>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(sequence: u64, dataset: &str, own: &Value) -> Vec<u8> {
        json!({
            "agent": {"id": "a", "ephemeral_id": "e"}, "host": {"name": "n"},
            "event": {"id": format!("id-{sequence}"), "sequence": sequence},
            "data_stream": {"dataset": format!("pathwatch.{dataset}")}, "pathwatch": own,
        })
        .to_string()
        .into_bytes()
    }

    /// Three alerts, of which 2 was given up; seven repeats; one lost without a number; a heartbeat; one alert more.
    fn stream() -> Vec<Vec<u8>> {
        vec![
            record(1, "alert", &json!({})),
            record(3, "alert", &json!({})),
            record(4, "alert", &json!({"summary": {"suppressed": 5, "limited": 2}})),
            record(5, "loss", &json!({"loss": {"stage": "capture", "reason": "ring_full", "count": 9}})),
            record(
                6,
                "loss",
                &json!({"loss": {"stage": "ship", "reason": "spool_full", "count": 2, "numbered": 1, "ranges": [{"first": 2, "last": 2}]}}),
            ),
            record(7, "heartbeat", &json!({"heartbeat": {"fired": 14, "untold": 3}})),
            record(8, "alert", &json!({})),
        ]
    }

    fn account(records: &[Vec<u8>], is_cut: bool) -> Account {
        let mut audit = Audit::default();
        records.iter().for_each(|record| audit.add(record, is_cut.then_some("0")));
        audit.accounts().remove(0)
    }

    #[test]
    fn a_whole_stream_adds_up_whatever_its_order_and_repetitions() {
        let mut records = stream();
        records.push(records[0].clone());
        records.reverse();
        let account = account(&records, false);
        assert_eq!(account.unexplained, Vec::<String>::new());
        assert_eq!((account.records, account.alerts, account.duplicates), (7, 3, 1));
        assert_eq!((account.counted, account.lost), (8, 1));
        assert_eq!((account.fired, account.accounted), (Some(14), Some(14)));
        assert_eq!(account.other_losses["capture/ring_full"], 9);
    }

    #[test]
    fn every_record_that_is_taken_away_is_missed_or_was_the_last() {
        for gone in 0..stream().len() - 1 {
            let mut records = stream();
            records.remove(gone);
            assert!(!account(&records, false).unexplained.is_empty(), "number {gone} is not missed");
        }
        let mut records = stream();
        records.drain(2..4);
        assert_eq!(account(&records, false).unexplained[0], "missing: 4-5");
        // Whoever may write to the topic must not keep the auditor busy.
        records.push(record(u64::MAX, "alert", &json!({})));
        records.push(record(0, "alert", &json!({})));
        assert_eq!(account(&records, false).unexplained[1], format!("missing: 9-{}", u64::MAX - 1));
    }

    #[test]
    fn what_retention_removed_is_said_and_no_fault() {
        let records = stream().split_off(2);
        let account = account(&records, true);
        assert_eq!((account.cut, account.fired, account.unexplained.len()), (3, None, 0));
        // Of two partitions one is cut: what is newer than its oldest must be there, and what is older may be.
        let mut audit = Audit::default();
        for (at, record) in stream().iter().enumerate().filter(|(at, _)| *at != 1) {
            audit.add(record, (at > 2).then_some("1"));
        }
        let account = audit.accounts().remove(0);
        assert_eq!((account.cut, account.unexplained.len()), (4, 0));
        let mut audit = Audit::default();
        for (at, record) in stream().iter().enumerate().filter(|(at, _)| *at != 4) {
            audit.add(record, (at < 2).then_some("1"));
        }
        let unexplained = audit.accounts().remove(0).unexplained;
        assert_eq!(unexplained.get(..2).unwrap(), ["missing: 2", "missing: 6"]);
    }

    #[test]
    fn two_ids_of_one_number_are_a_fault() {
        let mut records = stream();
        let other = String::from_utf8(records[0].clone()).unwrap().replace("id-1", "id-x");
        records.push(other.into_bytes());
        assert_eq!(account(&records, false).unexplained[0], "number 1 has two ids");
    }
}
