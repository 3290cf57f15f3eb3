//! Alerts that come in storms: the first goes out at once, repeats and what is beyond the limits are counted.
//!
//! Pure but for its counts: the clock is passed in. Every alert that is not let through is in exactly one [`Folded`], and
//! every `Folded` becomes a summary; their rows are written with the commit that counts them.
mod bucket;
mod folded;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use self::bucket::Bucket;
pub use self::bucket::Rate;
pub(super) use self::folded::{Cause, Folded};
use super::redact::Redact;
use crate::policy::{Alert, Kind, Outcome, Severity};

/// Windows that are open at one time; then the one that ends first closes early.
const WINDOWS: usize = 10_000;
/// Bytes of all open windows, likewise.
const WINDOWS_BYTES: usize = 16 << 20;
/// Policies and containers that have a summary of their own for what was beyond the limits.
const OVERFLOWS: usize = 500;
/// Policies and containers of which it is remembered who was heard already.
const HEARD: usize = 10_000;
/// Programs of one container that are remembered, for one policy, for a minute.
const HEARD_PROGRAMS: usize = 64;
/// Of those, how many may pass without paying: who makes programs must not pass for ever.
const HEARD_FREE: usize = 16;
/// Summaries that wait for room; beyond it they are put together by policy.
const CLOSED: usize = 10_000;
/// Bytes of those, likewise.
const CLOSED_BYTES: usize = 8 << 20;
/// How long overflow is gathered, and how long a program counts as heard.
const MINUTE: Duration = Duration::from_secs(60);

/// How storms are kept from the topic.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long repeats of an alert are counted before their number is sent, unless the policy says; `0s` sends every one.
    #[schemars(with = "String")]
    pub window: jiff::SignedDuration,
    /// Alerts of one policy, unless it says itself.
    pub policy: Rate,
    /// Alerts of the node.
    pub node: Rate,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window: jiff::SignedDuration::from_secs(60),
            policy: Rate { per_second: 5, burst: 100 },
            node: Rate { per_second: 25, burst: 1000 },
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0..=3600).contains(&self.window.as_secs()) || self.window.is_negative() {
            return Err(format!("ship.storm.window is {:#}; it must be from 0s to 1h", self.window));
        }
        for (name, rate) in [("policy", self.policy), ("node", self.node)] {
            if rate.per_second == 0 || rate.burst == 0 {
                return Err(format!(
                    "ship.storm.{name} is {} per second and {} at once; both must be at least 1",
                    rate.per_second, rate.burst
                ));
            }
        }
        Ok(())
    }
}

/// What names a window: a hash of whole values.
type Key = [u8; 32];
/// Key of a row of the spool's state; never the same for two windows, even of one [`Key`].
pub(super) type RowKey = Vec<u8>;
/// What those begin with.
const ROW: u8 = b'w';

/// What becomes of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes out.
    Emit,
    /// It repeats another that went out.
    Suppressed,
    /// It is beyond a limit.
    Limited,
}

struct Open {
    row: RowKey,
    end: Instant,
    folded: Folded,
    /// It has changed since its row was written.
    dirty: bool,
}

/// Which programs were heard.
struct Heard {
    until: Instant,
    programs: HashSet<Key>,
    /// How many of those did not pay.
    free: usize,
}

/// All windows and limits.
pub(super) struct Storm {
    config: Config,
    redact: Redact,
    windows: HashMap<Key, Open>,
    bytes: usize,
    /// When each window ends.
    ends: BTreeSet<(Instant, Key)>,
    overflows: HashMap<Key, Open>,
    policies: HashMap<String, Bucket>,
    node: Bucket,
    heard: HashMap<Key, Heard>,
    /// Windows, and overflows, that have changed since their rows were written.
    dirty: Vec<(bool, Key)>,
    /// Rows of closed ones that are not written as they are.
    rows: HashMap<RowKey, Option<Vec<u8>>>,
    closed: VecDeque<(RowKey, Folded)>,
    closed_bytes: usize,
    /// [`CLOSED`]; tests have fewer.
    most_closed: usize,
    /// Tells the rows of this run from those of others.
    run: Uuid,
    serial: u64,
}

impl Storm {
    /// No storm; but `rows` are those of a run that ended in one, and become summaries.
    pub(super) fn new(config: Config, redact: Redact, rows: &[(Vec<u8>, Vec<u8>)], now: Instant) -> Self {
        let open = rows.iter().filter(|(key, _)| key.first() == Some(&ROW));
        let interrupted = open.filter_map(|(key, row)| {
            let mut folded: Folded = serde_json::from_slice(row).ok()?;
            folded.finish();
            Some((key.clone(), Folded { interrupted: true, ..folded }))
        });
        let closed: VecDeque<_> = interrupted.collect();
        Self {
            closed_bytes: closed.iter().map(|(_, folded)| folded.weight()).sum(),
            closed,
            most_closed: CLOSED,
            node: Bucket::full(config.node, now),
            config,
            redact,
            windows: HashMap::new(),
            bytes: 0,
            ends: BTreeSet::new(),
            overflows: HashMap::new(),
            policies: HashMap::new(),
            heard: HashMap::new(),
            dirty: Vec::new(),
            rows: HashMap::new(),
            run: Uuid::new_v4(),
            serial: 0,
        }
    }

    fn next_row(&mut self) -> RowKey {
        self.serial += 1;
        [&[ROW], self.run.as_bytes().as_slice(), &self.serial.to_be_bytes()].concat()
    }

    /// Counts the alert where it belongs, or says that it goes out; then it will have the id that `id` gives.
    pub(super) fn admit(&mut self, alert: &Alert, id: impl FnOnce() -> Uuid, now: Instant) -> Verdict {
        let window = self.window(alert);
        let key = window_key(alert);
        if !window.is_zero()
            && let Some(open) = self.windows.get_mut(&key)
        {
            if now < open.end {
                self.bytes += open.folded.repeat(alert, &self.redact);
                if !std::mem::replace(&mut open.dirty, true) {
                    self.dirty.push((true, key));
                }
                self.shrink();
                return Verdict::Suppressed;
            }
            self.close(&key);
        }
        if !self.may_pass(alert, now) {
            self.overflow(alert, key, now);
            return Verdict::Limited;
        }
        if !window.is_zero() {
            let folded = Folded::window(alert, id());
            self.bytes += folded.weight();
            let (row, end) = (self.next_row(), now + window);
            self.ends.insert((end, key));
            self.windows.insert(key, Open { row, end, folded, dirty: false });
            self.shrink();
        }
        Verdict::Emit
    }

    /// The policy's window, or the one that all have.
    fn window(&self, alert: &Alert) -> Duration {
        let own = alert.policy.policy.spec.dedup.as_ref().map(|dedup| dedup.window);
        own.unwrap_or(self.config.window).try_into().unwrap_or(Duration::ZERO)
    }

    /// Whether the limits let the alert through, which it pays for; the first of a program in a container does not pay, so
    /// that a storm in one pod does not hide the next victim.
    fn may_pass(&mut self, alert: &Alert, now: Instant) -> bool {
        let spec = &alert.policy.policy.spec;
        let own = spec.rate_limit.as_ref().map(|own| Rate { per_second: own.per_second, burst: own.burst });
        let all = self.config.policy;
        // The author of a namespace's policy can lower its rate, and not raise it over the others'.
        let tenant = alert.policy.policy.kind == Kind::PathPolicy;
        let lower =
            |own: Rate| Rate { per_second: own.per_second.min(all.per_second), burst: own.burst.min(all.burst) };
        let rate = own.map_or(all, |own| if tenant { lower(own) } else { own });
        let bucket = self.policies.entry(alert.policy.full_name()).or_insert_with(|| Bucket::full(rate, now));
        bucket.set_rate(rate);
        // A fifth of the node's tokens is kept for what matters most, and half for the cluster's policies.
        let part = if tenant { 2 } else { 5 };
        let reserve = if spec.severity == Severity::Critical { 0 } else { self.config.node.burst / part };
        if bucket.has(0, now) && self.node.has(reserve, now) {
            bucket.take();
            self.node.take();
            self.first_heard(alert, true, now);
            return true;
        }
        self.first_heard(alert, false, now)
    }

    /// True if this program was not heard of in this container, for this policy, within a minute, and may pass without
    /// paying; it is heard of now.
    fn first_heard(&mut self, alert: &Alert, pays: bool, now: Instant) -> bool {
        let key = place_key(alert);
        if !self.heard.contains_key(&key) && self.heard.len() >= HEARD {
            return false;
        }
        let new = || Heard { until: now + MINUTE, programs: HashSet::new(), free: 0 };
        let heard = self.heard.entry(key).or_insert_with(new);
        if heard.until <= now {
            *heard = new();
        }
        let executable = alert.event.process.executable.as_ref().map_or(&b""[..], |name| name.as_bytes());
        let program = hash([executable]);
        let passes = !pays && heard.free < HEARD_FREE && !heard.programs.contains(&program);
        heard.free += usize::from(passes);
        if heard.programs.len() < HEARD_PROGRAMS {
            heard.programs.insert(program);
        }
        passes
    }

    /// Counts an alert of this `kind` that is beyond a limit.
    fn overflow(&mut self, alert: &Alert, kind: Key, now: Instant) {
        let mut key = place_key(alert);
        let full = self.overflows.len() >= OVERFLOWS && !self.overflows.contains_key(&key);
        if full {
            // All others share one.
            key = [0; 32];
        }
        let row = self.next_row();
        let make = || Open {
            row,
            end: now + MINUTE,
            folded: if full { Folded::others(alert) } else { Folded::overflow(alert) },
            dirty: false,
        };
        let open = self.overflows.entry(key).or_insert_with(make);
        open.folded.limit(alert, kind);
        if !std::mem::replace(&mut open.dirty, true) {
            self.dirty.push((false, key));
        }
    }

    /// Closes windows while there are more than there may be.
    fn shrink(&mut self) {
        while (self.windows.len() > WINDOWS || self.bytes > WINDOWS_BYTES)
            && let Some((_, key)) = self.ends.first().copied()
        {
            self.close(&key);
        }
    }

    fn close(&mut self, key: &Key) {
        let Some(open) = self.windows.remove(key) else { return };
        self.ends.remove(&(open.end, *key));
        self.bytes = self.bytes.saturating_sub(open.folded.weight());
        self.finish(open);
    }

    /// What was counted becomes a summary; a window without repeats has nothing to tell.
    fn finish(&mut self, open: Open) {
        let Open { row, mut folded, dirty, .. } = open;
        if folded.is_empty() {
            return;
        }
        folded.finish();
        if self.closed.len() < self.most_closed && self.closed_bytes < CLOSED_BYTES {
            self.closed_bytes += folded.weight();
            if dirty {
                self.rows.insert(row.clone(), serde_json::to_vec(&folded).ok());
            }
            self.closed.push_back((row, folded));
            return;
        }
        // There is no room for summaries: those of one policy become one.
        self.rows.insert(row, None);
        let same = self.closed.iter_mut().find(|(_, known)| known.rule.full_name() == folded.rule.full_name());
        if let Some((known_row, known)) = same {
            known.absorb(folded);
            self.rows.insert(known_row.clone(), serde_json::to_vec(known).ok());
        } else if let Some((known_row, known)) = self.closed.back_mut() {
            known.absorb(folded);
            known.forget_whose();
            self.rows.insert(known_row.clone(), serde_json::to_vec(known).ok());
        }
    }

    /// Closes what is over at `now`; everything if there is none.
    pub(super) fn close_due(&mut self, now: Option<Instant>) {
        let is_over = |end: Instant| now.is_none_or(|now| end <= now);
        while let Some((end, key)) = self.ends.first().copied()
            && is_over(end)
        {
            self.close(&key);
        }
        let over: Vec<Key> =
            self.overflows.iter().filter(|(_, open)| is_over(open.end)).map(|(key, _)| *key).collect();
        for key in over {
            if let Some(open) = self.overflows.remove(&key) {
                self.finish(open);
            }
        }
        if let Some(now) = now {
            self.heard.retain(|_, heard| heard.until > now);
            self.policies.retain(|_, bucket| !bucket.is_full(now));
        }
    }

    /// The next summary that is ready, and the row that goes when it is stored.
    pub(super) fn take_closed(&mut self) -> Option<(RowKey, Folded)> {
        let (row, folded) = self.closed.pop_front()?;
        self.closed_bytes = self.closed_bytes.saturating_sub(folded.weight());
        self.rows.remove(&row);
        Some((row, folded))
    }

    /// There was no room for it; it comes again.
    pub(super) fn put_back(&mut self, row: RowKey, folded: Folded) {
        self.rows.insert(row.clone(), serde_json::to_vec(&folded).ok());
        self.closed_bytes += folded.weight();
        self.closed.push_front((row, folded));
    }

    /// Rows that changed since the last call, and what they are now.
    pub(super) fn take_dirty(&mut self) -> Vec<(RowKey, Option<Vec<u8>>)> {
        let mut changed: Vec<_> = std::mem::take(&mut self.rows).into_iter().collect();
        for (is_window, key) in std::mem::take(&mut self.dirty) {
            let open = if is_window { self.windows.get_mut(&key) } else { self.overflows.get_mut(&key) };
            // One that has closed since is among the rows; one that is new by that name is not dirty, or here twice.
            if let Some(open) = open.filter(|open| open.dirty) {
                open.dirty = false;
                changed.push((open.row.clone(), serde_json::to_vec(&open.folded).ok()));
            }
        }
        changed
    }
}

/// A hash of whole values: each with its length, so that no two lists of them look the same.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What makes two alerts repeats of each other.
fn window_key(alert: &Alert) -> Key {
    let enriched = &alert.event;
    let event = &enriched.event;
    let name = |name: Option<&crate::event::Name>| name.map_or_else(Vec::new, |name| name.as_bytes().to_vec());
    let file = event.file.as_ref().map_or((0, 0), |file| (file.device, file.inode));
    let operations: Vec<u8> = event.operations().iter().map(|operation| *operation as u8).collect();
    hash([
        alert.policy.full_name().as_bytes(),
        alert.policy.version.as_bytes(),
        &[Outcome::of(event.result) as u8],
        &operations,
        &file.0.to_le_bytes(),
        &file.1.to_le_bytes(),
        // An inode number alone is soon another file's.
        &name(event.best_path()),
        &name(enriched.process.executable.as_ref()),
        &name(enriched.process.script.as_ref()),
        &name(enriched.ancestors.first().and_then(|parent| parent.executable.as_ref())),
        &event.ids.uid.to_le_bytes(),
        &event.login_uid.unwrap_or(u32::MAX).to_le_bytes(),
        container_of(alert),
    ])
}

/// The policy and the container; on the host, the user, so that none uses up what is another's.
fn place_key(alert: &Alert) -> Key {
    let event = &alert.event.event;
    let user = [event.ids.uid, event.login_uid.unwrap_or(u32::MAX)].map(u32::to_le_bytes).concat();
    let user = if alert.event.container.is_some() { Vec::new() } else { user };
    hash([alert.policy.full_name().as_bytes(), container_of(alert), &user])
}

fn container_of(alert: &Alert) -> &[u8] {
    alert.event.container.as_ref().map_or(&[], |container| container.id.as_bytes())
}
