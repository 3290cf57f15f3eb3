//! What every stage has to say about its own health and losses.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// One kind of trouble, however often it was met since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The stage that speaks.
    pub stage: &'static str,
    /// Why, in one fixed word.
    pub reason: &'static str,
    /// How often, or how many records.
    pub count: u64,
    /// The latest instance, for a person.
    pub detail: String,
}

/// The place where stages leave notices, coalesced by stage and reason.
///
/// Both are fixed words of this program, so it is bounded by construction, never blocks and never drops one:
/// the design had a bounded channel here, which would have to do one of the two.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<BTreeMap<(&'static str, &'static str), Notice>>>);

impl Notices {
    /// Adds `count` to the notices of this stage and reason.
    pub fn add(&self, stage: &'static str, reason: &'static str, count: u64, detail: impl Into<String>) {
        let mut notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let notice = notices.entry((stage, reason)).or_insert_with(|| Notice {
            stage,
            reason,
            count: 0,
            detail: String::new(),
        });
        notice.count += count;
        notice.detail = detail.into();
    }

    /// Takes all notices, sorted by stage and reason.
    #[must_use]
    pub fn take(&self) -> Vec<Notice> {
        let mut notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *notices).into_values().collect()
    }

    /// Logs notices, at most once a second per stage and reason, until it is dropped.
    pub async fn log(self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            self.log_once();
        }
    }

    /// Logs what there is now.
    pub fn log_once(&self) {
        for Notice { stage, reason, count, detail } in self.take() {
            tracing::warn!(stage, reason, count, "{detail}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_of_one_kind_become_one_with_their_sum() {
        let notices = Notices::default();
        notices.add("capture", "ring_full", 2, "first");
        notices.add("capture", "ring_full", 3, "second");
        notices.add("ship", "degraded", 1, "other");
        let taken = notices.take();
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].count, taken[0].detail.as_str()), (5, "second"));
        assert!(notices.take().is_empty());
    }
}
