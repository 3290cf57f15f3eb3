//! What a summary tells: alerts that were counted instead of sent.
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Key;
use crate::{
    event::{Container, Name, Operation, Pod},
    policy::{Alert, Severity, Threat},
    ship::{
        redact::Redact,
        text::{cut, text},
    },
};

/// Processes that a summary names.
const PROCESSES: usize = 16;
/// Bytes of one process's arguments in a summary.
const ARGS_BYTES: usize = 256;
/// Bytes of a path in a summary.
const PATH_BYTES: usize = 1024;
/// Kinds of alerts that are counted apart while overflow is gathered.
const KINDS: usize = 20;
/// Of those, what a summary names.
const TOP: usize = 10;
/// Bytes of a path among them.
const TOP_BYTES: usize = 128;

/// Why alerts were counted instead of sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::ship) enum Cause {
    /// They repeat one that was sent.
    Repeats,
    /// They were more than the limits let through.
    Overflow,
}

/// The policy of a summary or a loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::ship) struct Rule {
    pub(in crate::ship) name: String,
    pub(in crate::ship) namespace: Option<String>,
    pub(in crate::ship) version: String,
    pub(in crate::ship) description: String,
    pub(in crate::ship) severity: Severity,
    pub(in crate::ship) tags: Vec<String>,
    pub(in crate::ship) threat: Vec<Threat>,
}

impl Rule {
    /// The name with the namespace, if it has one.
    pub(in crate::ship) fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }

    fn of(alert: &Alert) -> Self {
        let policy = &alert.policy.policy;
        Self {
            name: policy.metadata.name.clone(),
            namespace: policy.metadata.namespace.clone(),
            version: alert.policy.version.clone(),
            description: cut(&policy.spec.description, PATH_BYTES).to_owned(),
            severity: policy.spec.severity,
            tags: policy.spec.tags.clone(),
            threat: policy.spec.threat.clone(),
        }
    }
}

/// A process that did what is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::ship) struct Seen {
    pub(in crate::ship) pid: u32,
    pub(in crate::ship) uid: u32,
    pub(in crate::ship) start: Option<Timestamp>,
    pub(in crate::ship) args: String,
}

/// One kind of alert among those that were beyond a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::ship) struct Top {
    key: Key,
    pub(in crate::ship) path: String,
    pub(in crate::ship) executable: Option<String>,
    pub(in crate::ship) count: u64,
}

/// Alerts that were counted instead of sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::ship) struct Folded {
    pub(in crate::ship) cause: Cause,
    pub(in crate::ship) rule: Rule,
    /// Repeats that were not sent.
    pub(in crate::ship) suppressed: u64,
    /// Alerts beyond a limit.
    pub(in crate::ship) limited: u64,
    /// Time of the first of those, and of the last.
    pub(in crate::ship) first: Timestamp,
    pub(in crate::ship) last: Timestamp,
    /// The alert that was sent before they came.
    pub(in crate::ship) first_alert: Option<Uuid>,
    pub(in crate::ship) path: Option<String>,
    pub(in crate::ship) executable: Option<String>,
    /// The user, if it is one.
    pub(in crate::ship) uid: Option<u32>,
    pub(in crate::ship) operations: Vec<Operation>,
    pub(in crate::ship) result: i32,
    pub(in crate::ship) container: Option<Arc<Container>>,
    pub(in crate::ship) pod: Option<Arc<Pod>>,
    pub(in crate::ship) processes: Vec<Seen>,
    pub(in crate::ship) top: Vec<Top>,
    /// Alerts of kinds that are not among those.
    pub(in crate::ship) others: u64,
    /// The sensor ended before the window did.
    pub(in crate::ship) interrupted: bool,
}

/// The pod by its names: labels are in the alert, and there may be many.
fn named(pod: &Pod) -> Pod {
    Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        owners: pod.owners.clone(),
        ..Pod::default()
    }
}

fn short(name: &Name) -> String {
    let whole = text(name);
    cut(&whole, PATH_BYTES).to_owned()
}

impl Folded {
    fn new(cause: Cause, alert: &Alert) -> Self {
        let enriched = &alert.event;
        Self {
            cause,
            rule: Rule::of(alert),
            suppressed: 0,
            limited: 0,
            first: enriched.event.time,
            last: enriched.event.time,
            first_alert: None,
            path: None,
            executable: None,
            uid: None,
            operations: Vec::new(),
            result: enriched.event.result,
            container: enriched.container.clone(),
            pod: enriched.pod.as_deref().map(named).map(Arc::new),
            processes: Vec::new(),
            top: Vec::new(),
            others: 0,
            interrupted: false,
        }
    }

    /// A window behind `alert`, which is sent with the id `id`.
    pub(super) fn window(alert: &Alert, id: Uuid) -> Self {
        Self {
            first_alert: Some(id),
            path: alert.event.event.best_path().map(short),
            executable: alert.event.process.executable.as_ref().map(short),
            uid: Some(alert.event.event.ids.uid),
            operations: alert.event.event.operations(),
            ..Self::new(Cause::Repeats, alert)
        }
    }

    /// What is beyond the limits, of one policy in one container.
    pub(super) fn overflow(alert: &Alert) -> Self {
        Self::new(Cause::Overflow, alert)
    }

    /// What is beyond the limits, of any.
    pub(super) fn others(alert: &Alert) -> Self {
        let rule = Rule { name: "others".to_owned(), namespace: None, version: String::new(), ..Rule::of(alert) };
        Self { rule, container: None, pod: None, ..Self::new(Cause::Overflow, alert) }
    }

    /// One sentence for a person.
    pub(in crate::ship) fn message(&self) -> String {
        let count = self.suppressed + self.limited;
        let rule = self.rule.full_name();
        let path = self.path.as_deref().unwrap_or("files");
        let by = self.executable.as_ref().map_or(String::new(), |executable| format!(" by {executable}"));
        match self.cause {
            Cause::Repeats => format!("{count} more of {path}{by} ({rule})"),
            Cause::Overflow => format!("{count} more alerts than the limits let through ({rule})"),
        }
    }

    /// True if there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.suppressed + self.limited == 0
    }

    /// Memory that it takes, about.
    pub(super) fn weight(&self) -> usize {
        let texts = [&self.path, &self.executable].into_iter().flatten().map(String::len).sum::<usize>();
        let tags = self.rule.tags.iter().map(|tag| tag.len() + 24).sum::<usize>();
        let rule = self.rule.description.len() + tags + self.rule.threat.len() * 64;
        let top = self.top.len() * (2 * TOP_BYTES + 64);
        1024 + texts + rule + top + self.processes.iter().map(weight).sum::<usize>()
    }

    /// Nothing more comes: the most frequent kinds are named, all others are one number.
    pub(super) fn finish(&mut self) {
        self.top.sort_by_key(|top| std::cmp::Reverse(top.count));
        self.others += self.top.drain(self.top.len().min(TOP)..).map(|top| top.count).sum::<u64>();
    }

    /// It is of several policies.
    pub(super) fn forget_whose(&mut self) {
        (self.path, self.executable, self.uid, self.container, self.pod) = (None, None, None, None, None);
        (self.cause, self.first_alert, self.result) = (Cause::Overflow, None, 0);
        "others".clone_into(&mut self.rule.name);
        self.rule.namespace = None;
        self.operations.clear();
        self.processes.clear();
    }

    fn touch(&mut self, alert: &Alert) {
        let time = alert.event.event.time;
        if self.is_empty() {
            (self.first, self.last) = (time, time);
        }
        self.first = self.first.min(time);
        self.last = self.last.max(time);
    }

    /// Counts a repeat; returns by how much the weight has grown.
    pub(super) fn repeat(&mut self, alert: &Alert, redact: &Redact) -> usize {
        self.touch(alert);
        self.suppressed += 1;
        let event = &alert.event.event;
        let is_known = |seen: &Seen| seen.pid == event.pid && seen.start == event.started;
        if self.processes.len() >= PROCESSES || self.processes.iter().any(is_known) {
            return 0;
        }
        let args: Vec<String> = alert.event.process.args.iter().map(|arg| text(&arg)).collect();
        let line = redact.args(&args).0.join(" ");
        let seen = Seen {
            pid: event.pid,
            uid: event.ids.uid,
            start: event.started,
            args: cut(&line, ARGS_BYTES).to_owned(),
        };
        let grown = weight(&seen);
        self.processes.push(seen);
        grown
    }

    /// Counts one that is beyond a limit.
    pub(super) fn limit(&mut self, alert: &Alert, key: Key) {
        self.touch(alert);
        self.limited += 1;
        if let Some(top) = self.top.iter_mut().find(|top| top.key == key) {
            top.count += 1;
        } else if self.top.len() < KINDS {
            let path = alert.event.event.best_path().map(short).unwrap_or_default();
            let executable = alert.event.process.executable.as_ref().map(short);
            let shorter = |text: String| cut(&text, TOP_BYTES).to_owned();
            self.top.push(Top { key, path: shorter(path), executable: executable.map(shorter), count: 1 });
        } else {
            self.others += 1;
        }
    }

    /// Takes another's counts over.
    pub(super) fn absorb(&mut self, other: Self) {
        self.suppressed += other.suppressed;
        self.limited += other.limited;
        self.others += other.suppressed + other.limited;
        // Of several files and programs now.
        (self.path, self.executable) = (None, None);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.interrupted |= other.interrupted;
    }
}

fn weight(seen: &Seen) -> usize {
    64 + seen.args.len()
}
