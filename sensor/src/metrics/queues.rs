//! How full the queues between stages are.
use std::{fmt, sync::OnceLock};

use tokio::sync::mpsc::Sender;

/// The queues, by the stage that fills them.
const QUEUES: [&str; 3] = ["capture", "enrich", "matcher"];

type Length = Box<dyn Fn() -> usize + Send + Sync>;

/// The queues of a process, each once its stage has begun.
#[derive(Default)]
pub struct Queues([OnceLock<(usize, Length)>; QUEUES.len()]);

/// A queue at one moment.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Queue {
    /// The stage that fills it.
    pub name: String,
    /// What is in it.
    pub length: u64,
    /// What it may hold; zero before its stage has begun.
    pub capacity: u64,
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.each()).finish()
    }
}

impl Queues {
    /// Says which queue a stage of [`QUEUES`] fills; it is not kept open. The first to say it is heard.
    pub fn know<T: Send + 'static>(&self, stage: &str, queue: &Sender<T>) {
        let weak = queue.downgrade();
        let length = move || weak.upgrade().map_or(0, |queue| queue.max_capacity() - queue.capacity());
        let place = QUEUES.iter().position(|name| *name == stage).and_then(|at| self.0.get(at));
        if let Some(place) = place {
            place.get_or_init(|| (queue.max_capacity(), Box::new(length)));
        }
    }

    /// All of them as they are now.
    pub fn each(&self) -> impl Iterator<Item = Queue> {
        QUEUES.iter().zip(&self.0).map(|(name, queue)| {
            let (capacity, length) = queue.get().map_or((0, 0), |(capacity, length)| (*capacity, length()));
            Queue { name: (*name).to_owned(), length: length as u64, capacity: capacity as u64 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_as_long_as_what_nobody_has_taken_and_ends_with_its_stage() {
        let queues = Queues::default();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        queues.know("enrich", &sender);
        sender.try_send(1).unwrap();
        let lengths = || queues.each().map(|queue| (queue.length, queue.capacity)).collect::<Vec<_>>();
        assert_eq!(lengths(), [(0, 0), (1, 4), (0, 0)]);
        drop(sender);
        assert_eq!(receiver.try_recv(), Ok(1));
        assert!(receiver.try_recv().is_err_and(|why| why == tokio::sync::mpsc::error::TryRecvError::Disconnected));
        assert_eq!(lengths(), [(0, 0), (0, 4), (0, 0)]);
    }
}
