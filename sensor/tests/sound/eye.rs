//! A capture with its filter.
use std::path::Path;

use sensor::{
    capture::{Capture, Config, Filter, Mode},
    event::Event,
    hierarchy::Hierarchy,
    notice::Notices,
    observation::Observation,
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::moved::Kept;

pub(crate) struct Eye {
    pub(crate) filter: Filter,
    pub(crate) events: mpsc::Receiver<Observation>,
    pub(crate) metrics: Kept,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Eye {
    /// One through which everything passes; that nobody tells of moved directories unless it `tells`.
    pub(crate) fn open(tells: bool) -> Self {
        let config = Config {
            mode: Mode::Fexit,
            self_test: false,
            skip_self: false,
            walk_rounds: 64,
            watch_moves: tells,
            ring: bytesize::ByteSize::mib(64),
            share: sensor::capture::Share { rate: 0, ..Default::default() },
        };
        let metrics = Kept::default();
        let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
        let (mut capture, events) =
            Capture::new(&config, &hierarchy, metrics.clone(), Notices::default()).unwrap();
        let (filter, stop) = (capture.take_filter().unwrap(), CancellationToken::new());
        let running = tokio::spawn(capture.run(stop.clone()));
        Self { filter, events, metrics, stop, running }
    }

    /// All opens that it has seen up to the next of the mark.
    pub(crate) fn seen(&mut self, mark: &Path) -> Vec<Event> {
        let mut seen = Vec::new();
        loop {
            let Observation::Open(event) = Handle::current().block_on(self.events.recv()).unwrap() else {
                continue;
            };
            if event.path.as_ref().is_some_and(|path| path.as_bytes() == mark.as_os_str().as_encoded_bytes()) {
                return seen;
            }
            seen.push(event);
        }
    }

    /// Ends it; nothing may have been lost.
    pub(crate) fn close(mut self) {
        self.filter.count_passed(&self.metrics);
        self.stop.cancel();
        while Handle::current().block_on(self.events.recv()).is_some() {}
        Handle::current().block_on(self.running).unwrap().unwrap();
        let lost = [&self.metrics.opens_lost, &self.metrics.undecodable, &self.metrics.skipped];
        assert_eq!(lost.map(|counter| counter.get()), [0; 3], "lost, undecodable, skipped");
    }
}
