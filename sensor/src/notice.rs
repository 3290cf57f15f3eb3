//! What every stage has to say about its own health and losses.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::log;

/// Where lines of the log that are notices come from.
pub const TARGET: &str = module_path!();

/// One kind of trouble, however often it was met since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The stage that speaks.
    pub stage: &'static str,
    /// Why, in one fixed word.
    pub reason: &'static str,
    /// Something is gone, and not only in danger.
    pub lost: bool,
    /// How often, or how many records.
    pub count: u64,
    /// The container that it is about, and `namespace/pod`.
    pub whose: Option<Whose>,
    /// The latest instance, for a person.
    pub detail: String,
}

/// Whom a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whose {
    /// The container's id.
    pub container: String,
    /// `namespace/pod`, once it is known.
    pub pod: Option<String>,
}

/// Containers that are told apart in notices of one stage and reason; of more there is one notice.
const APART: usize = 100;

/// How often a notice that repeats is logged.
const REPEAT: Duration = Duration::from_secs(10);

impl Notice {
    fn log(&self) {
        let Self { stage, reason, count, detail, .. } = self;
        tracing::warn!(stage, reason, count, "{detail}");
    }
}

/// One kind of trouble since the process began, for whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// As in a [`Notice`].
    pub stage: String,
    /// As in a [`Notice`].
    pub reason: String,
    /// As in a [`Notice`].
    pub lost: bool,
    /// How often, or how many records.
    pub count: u64,
    /// When last.
    pub last: Timestamp,
    /// What was said then.
    pub detail: String,
}

/// Who reads notices.
#[derive(Clone, Copy)]
enum Reader {
    Log,
    Ship,
}

type Coalesced = BTreeMap<(&'static str, &'static str, Option<Whose>), Notice>;

/// The place where stages leave notices, coalesced by stage, reason and container: once for the log and once for the records.
///
/// The first two are fixed words of this program and of containers there are [`APART`] each, so it is bounded by construction, never blocks and never drops one:
/// the design had a bounded channel here, which would have to do one of the two.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<Shelves>>);

#[derive(Default)]
struct Shelves {
    readers: [Coalesced; 2],
    /// By stage and reason.
    kept: BTreeMap<(&'static str, &'static str), Trouble>,
}

impl Notices {
    /// Adds `count` to the notices of this stage and reason.
    pub fn add(&self, stage: &'static str, reason: &'static str, count: u64, detail: impl Into<String>) {
        self.tell(Notice { stage, reason, lost: false, count, whose: None, detail: detail.into() });
    }

    /// The same of something that is lost; of how much, if that is known, and zero otherwise.
    pub fn lost(&self, stage: &'static str, reason: &'static str, count: u64, detail: impl Into<String>) {
        self.lost_of(None, stage, reason, count, detail);
    }

    /// The same of what was one container's.
    pub fn lost_of(
        &self,
        whose: Option<Whose>,
        stage: &'static str,
        reason: &'static str,
        count: u64,
        detail: impl Into<String>,
    ) {
        self.tell(Notice { stage, reason, lost: true, count, whose, detail: detail.into() });
    }

    /// The same of what a record tells of in another way.
    pub fn log_only(&self, stage: &'static str, reason: &'static str, count: u64, detail: impl Into<String>) {
        self.tell_readers(&Notice { stage, reason, lost: true, count, whose: None, detail: detail.into() }, 1);
    }

    fn tell(&self, notice: Notice) {
        self.tell_readers(&notice, 2);
    }

    fn tell_readers(&self, notice: &Notice, how_many: usize) {
        let Shelves { readers, kept } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Notice { stage, reason, lost, count, detail, .. } = notice;
        let told = kept.entry((stage, reason)).or_insert_with(|| Trouble {
            stage: (*stage).to_owned(),
            reason: (*reason).to_owned(),
            lost: *lost,
            count: 0,
            last: Timestamp::UNIX_EPOCH,
            detail: String::new(),
        });
        told.count += count;
        told.last = Timestamp::now();
        told.detail.clone_from(detail);
        for notices in readers.iter_mut().take(how_many) {
            let of_kind =
                notices.keys().filter(|(stage, reason, _)| (stage, reason) == (&notice.stage, &notice.reason));
            let apart = of_kind.count() < APART;
            let whose = notice.whose.clone().filter(|_| apart);
            let known = notices.entry((notice.stage, notice.reason, whose.clone()));
            let known = known.or_insert_with(|| Notice { count: 0, whose, ..notice.clone() });
            known.count += notice.count;
            known.detail.clone_from(&notice.detail);
        }
    }

    /// Takes all notices for the log, sorted by stage and reason.
    #[must_use]
    pub fn take(&self) -> Vec<Notice> {
        self.take_for(Reader::Log)
    }

    /// Takes all notices for the records.
    #[must_use]
    pub fn take_to_ship(&self) -> Vec<Notice> {
        self.take_for(Reader::Ship)
    }

    /// All kinds of trouble since the process began, sorted by stage and reason.
    #[must_use]
    pub fn kept(&self) -> Vec<Trouble> {
        let shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.kept.values().cloned().collect()
    }

    fn take_for(&self, reader: Reader) -> Vec<Notice> {
        let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [log, ship] = &mut shelves.readers;
        let notices = match reader {
            Reader::Log => log,
            Reader::Ship => ship,
        };
        std::mem::take(notices).into_values().collect()
    }

    /// Logs notices until it is dropped: the first of a stage and reason within a second, those that repeat it each ten.
    pub async fn log(self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut logged: BTreeMap<(&'static str, &'static str), Instant> = BTreeMap::new();
        loop {
            ticks.tick().await;
            log::tell_left_out();
            logged.retain(|_, at| at.elapsed() < REPEAT);
            let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let [log, _] = &mut shelves.readers;
            let due: Vec<_> =
                log.extract_if(.., |(stage, reason, _), _| !logged.contains_key(&(*stage, *reason))).collect();
            drop(shelves);
            for ((stage, reason, _), notice) in due {
                logged.insert((stage, reason), Instant::now());
                notice.log();
            }
        }
    }

    /// Logs what there is now.
    pub fn log_once(&self) {
        self.take().iter().for_each(Notice::log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_of_one_kind_become_one_with_their_sum() {
        let notices = Notices::default();
        notices.lost("capture", "ring_full", 2, "first");
        notices.lost("capture", "ring_full", 3, "second");
        notices.add("ship", "degraded", 1, "other");
        let taken = notices.take();
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].count, taken[0].detail.as_str(), taken[0].lost), (5, "second", true));
        assert!(notices.take().is_empty());
        assert_eq!(notices.take_to_ship(), taken);
        notices.lost("capture", "ring_full", 4, "third");
        let kept = notices.kept();
        assert_eq!(kept.len(), 2);
        assert_eq!((kept[0].count, kept[0].detail.as_str(), kept[0].lost), (9, "third", true));
    }
}
