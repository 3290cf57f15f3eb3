//! Recorded events in place of a kernel: the same pipeline without root.
use std::{
    io::{BufRead as _, BufReader, Read},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;

use crate::{event::Enriched, metrics::Metrics};

/// Events between the file and the matcher.
const QUEUE: usize = 4096;
/// Longest line that is read, in bytes: an event with the longest path, escaped, takes a third of it.
const LINE_LIMIT: u64 = 256 << 10;

/// Reads JSON lines as [`Enriched`] events; recordings are made after enrichment.
pub struct Replay<R> {
    input: BufReader<R>,
    name: String,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<Enriched>,
}

impl<R: Read> Replay<R> {
    /// Replays `input`, called `name` in errors.
    pub fn new(input: R, name: &str, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Enriched>) {
        let (events, receiver) = mpsc::channel(QUEUE);
        (Self { input: BufReader::new(input), name: name.to_owned(), metrics, events }, receiver)
    }

    /// Hands on every line, in order. Blocks; made for a thread of its own.
    ///
    /// # Errors
    /// Names the file and line that is not an event; what came before it is handed on.
    pub fn run(mut self) -> anyhow::Result<()> {
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            let read = self.input.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line);
            let read = read.with_context(|| format!("cannot read {}", self.name))?;
            if read == 0 {
                break;
            }
            if read as u64 == LINE_LIMIT {
                bail!(
                    "{}:{number}: longer than {LINE_LIMIT} bytes; is this a recording of `pathwatch trace --record`?",
                    self.name
                );
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event = serde_json::from_slice(&line)
                .with_context(|| format!("{}:{number}: not an event of `pathwatch trace --record`", self.name))?;
            if self.events.blocking_send(event).is_err() {
                break;
            }
            self.metrics.captured.add(1);
        }
        Ok(())
    }
}
