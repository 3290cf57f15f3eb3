//! Events that wait for what the API server has yet to say of their pod.
//!
//! Each waits for itself: others pass it, unless they are of the same process, whose events stay in order. Nothing is
//! dropped here; what has waited long enough, or finds no room, goes on as it is.
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::container::Home;
use crate::event::Enriched;

/// Most events that wait.
const LIMIT: usize = 4096;
/// Most of them of one container.
const CONTAINER_LIMIT: usize = 64;

/// A process by its pid and start.
type Process = (u32, u64);

/// The containers of an event's process.
#[derive(Clone, Default)]
pub(super) struct Homes {
    /// The one that it is in.
    pub(super) now: Option<Arc<Home>>,
    /// The one that it has moved itself out of.
    pub(super) before: Option<Arc<Home>>,
}

impl Homes {
    /// All of them.
    fn iter(&self) -> impl Iterator<Item = &Arc<Home>> {
        self.now.iter().chain(&self.before)
    }
}

/// An event, and the containers of which the pods are waited for; none if it only waits behind another.
pub(super) struct Waiting {
    pub(super) event: Enriched,
    pub(super) homes: Homes,
    since: Instant,
}

impl Waiting {
    fn process(&self) -> Process {
        (self.event.event.pid, self.event.event.start_ns)
    }

    /// How long it has waited.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }
}

/// Events in the order in which they came, which is that of their deadlines.
pub(super) struct Hold {
    longest: Duration,
    queue: VecDeque<Waiting>,
    processes: HashMap<Process, usize>,
    containers: HashMap<String, usize>,
}

impl Hold {
    /// Events wait at most so long.
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, queue: VecDeque::new(), processes: HashMap::new(), containers: HashMap::new() }
    }

    /// Whether an event of that process waits: the next must stay behind it.
    pub(super) fn has(&self, pid: u32, start_ns: u64) -> bool {
        self.processes.contains_key(&(pid, start_ns))
    }

    /// Lets the event wait; if there is no room, returns what has to go on at once: the events of its process, in order.
    pub(super) fn push(&mut self, event: Enriched, homes: Homes, now: Instant) -> Vec<Waiting> {
        let waiting = Waiting { event, homes, since: now };
        let process = waiting.process();
        let of_container = |home: &Arc<Home>| self.containers.get(&home.container.id).copied().unwrap_or_default();
        let full =
            self.queue.len() >= LIMIT || waiting.homes.iter().any(|home| of_container(home) >= CONTAINER_LIMIT);
        *self.processes.entry(process).or_default() += 1;
        for home in waiting.homes.iter() {
            *self.containers.entry(home.container.id.clone()).or_default() += 1;
        }
        self.queue.push_back(waiting);
        if full { self.take(|waiting| waiting.process() == process) } else { Vec::new() }
    }

    /// Takes those that need not wait any longer, because `known` says so of their container. An event behind one of its
    /// process that still waits stays.
    pub(super) fn release(&mut self, mut known: impl FnMut(&Home) -> bool) -> Vec<Waiting> {
        let mut blocked = HashSet::new();
        self.take(|waiting| {
            let ready = waiting.homes.iter().all(|home| known(home)) && !blocked.contains(&waiting.process());
            if !ready {
                blocked.insert(waiting.process());
            }
            ready
        })
    }

    /// Takes those that have waited long enough.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Waiting> {
        let longest = self.longest;
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        self.take(|waiting| waiting.age(now) >= longest)
    }

    /// Takes all.
    pub(super) fn all(&mut self) -> Vec<Waiting> {
        self.take(|_| true)
    }

    /// When the first has waited long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.queue.front().map(|waiting| waiting.since + self.longest)
    }

    fn take(&mut self, mut which: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let (taken, left) = self.queue.drain(..).partition::<Vec<_>, _>(|waiting| which(waiting));
        self.queue = left.into();
        for waiting in &taken {
            less(&mut self.processes, &waiting.process());
            for home in waiting.homes.iter() {
                less(&mut self.containers, &home.container.id);
            }
        }
        taken
    }
}

/// Counts one down, and forgets it at zero.
fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Container;

    fn home(id: &str) -> Homes {
        let container = Arc::new(Container { id: id.into(), ..Container::default() });
        Homes { now: Some(Arc::new(Home { container, first: false })), before: None }
    }

    /// An event of process `pid`, the `n`th of all.
    fn event(pid: u32, n: u64) -> Enriched {
        let event = serde_json::json!({
            "time": "2026-11-24T00:00:00Z", "boot_id": uuid::Uuid::nil(), "mode": "fexit", "cpu": 0, "sequence": n,
            "pid": pid, "tid": pid, "start_ns": 0, "cgroup_id": 1, "uid": 0, "gid": 0, "comm": "x", "flags": 0, "result": 0,
            "file": null, "path": "/x", "home": null, "requested": null, "status": [],
            "process": {"pid": pid, "start_ns": 0, "executable": null}, "ancestors": [], "cgroup_path": null,
            "container": null, "enrichment": "partial",
        });
        serde_json::from_value(event).unwrap()
    }

    fn numbers(waiting: &[Waiting]) -> Vec<u64> {
        waiting.iter().map(|waiting| waiting.event.event.sequence).collect()
    }

    #[test]
    fn an_event_waits_for_its_own_pod_and_its_process_stays_in_order() {
        let (mut hold, now) = (Hold::new(Duration::from_secs(2)), Instant::now());
        for (pid, n, container) in [(1, 1, Some("a")), (2, 2, Some("b")), (1, 3, None), (2, 4, Some("a"))] {
            assert!(!hold.has(pid, 9));
            assert!(hold.push(event(pid, n), container.map(home).unwrap_or_default(), now).is_empty());
            assert!(hold.has(pid, 0));
        }
        // Of process 2 the second is ready, and the first is not.
        assert_eq!(numbers(&hold.release(|home| home.container.id == "a")), [1, 3]);
        assert!(hold.release(|home| home.container.id == "a").is_empty());
        assert_eq!(numbers(&hold.release(|_| true)), [2, 4]);
        assert!(!hold.has(1, 0) && !hold.has(2, 0) && hold.deadline().is_none() && hold.containers.is_empty());
    }

    #[test]
    fn nothing_waits_longer_than_it_may() {
        let (mut hold, now) = (Hold::new(Duration::from_secs(2)), Instant::now());
        hold.push(event(1, 1), home("a"), now);
        hold.push(event(2, 2), home("b"), now + Duration::from_millis(500));
        assert_eq!(hold.deadline(), Some(now + Duration::from_secs(2)));
        assert!(hold.overdue(now + Duration::from_millis(1999)).is_empty());
        assert_eq!(numbers(&hold.overdue(now + Duration::from_secs(2))), [1]);
        assert_eq!(numbers(&hold.overdue(now + Duration::from_secs(9))), [2]);
    }

    #[test]
    fn what_finds_no_room_goes_on_at_once_with_those_of_its_process_before_it() {
        let (mut hold, now) = (Hold::new(Duration::from_secs(2)), Instant::now());
        hold.push(event(7, 0), home("a"), now);
        for n in 1..CONTAINER_LIMIT as u64 {
            assert!(hold.push(event(1, n), home("a"), now).is_empty());
        }
        assert_eq!(numbers(&hold.push(event(7, 99), home("a"), now)), [0, 99]);
        // There is room again, and other containers have their own.
        assert!(hold.push(event(8, 100), home("a"), now).is_empty());
        for n in 0..2 * LIMIT as u64 {
            hold.push(event(9 + n as u32, n), home(&n.to_string()), now);
            assert!(hold.queue.len() <= LIMIT);
        }
        assert_eq!(hold.all().len(), LIMIT);
        assert!(hold.processes.is_empty() && hold.containers.is_empty());
    }
}
