//! What user space cannot read, and what the kernel could not hand over, is counted and told.
use std::{
    os::fd::AsFd as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aya::maps::loaded_maps;
use sensor::{
    capture::{Capture, Config, Mode, Share},
    notice::Notices,
    observation::Observation,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    bpf,
    moved::Kept,
    watch::{block, hierarchy, in_modes},
};

/// That a test starts while nothing is read.
const PROCESSES: u64 = 20;

/// A capture of which a test sees all that it says.
struct Own {
    metrics: Kept,
    notices: Notices,
    events: mpsc::Receiver<Observation>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Own {
    fn start(mode: Mode, ring: bytesize::ByteSize) -> Self {
        let (metrics, notices) = (Kept::default(), Notices::default());
        let share = Share { rate: 0, ..Share::default() };
        let config = Config { mode, ring, share, skip_self: false, walk_rounds: 16, ..Config::default() };
        let (capture, events) = Capture::new(&config, &hierarchy(), metrics.clone(), notices.clone()).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(capture.run(stop.clone()));
        Self { metrics, notices, events, stop, running }
    }

    /// Takes what there is, until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < Duration::from_secs(60), "no {what}: {:?}", self.metrics);
            let patience = Duration::from_millis(20);
            block(async { tokio::time::timeout(patience, self.events.recv()).await.ok() });
        }
    }

    /// Waits until it has told of `reason` as often as it has counted; it counts first, and tells then.
    fn until_told(&mut self, reason: &str, counted: impl Fn(&Self) -> u64) {
        let told = std::cell::Cell::new(0);
        self.until(reason, |own| {
            let notices = own.notices.take();
            let of_it = notices.iter().filter(|notice| notice.reason == reason);
            told.set(told.get() + of_it.map(|notice| notice.count).sum::<u64>());
            let counted = counted(own);
            assert!(told.get() <= counted, "{reason}: {} told of {counted}", told.get());
            told.get() == counted
        });
    }

    fn end(mut self) {
        self.stop.cancel();
        self.until("end", |own| own.running.is_finished());
        block(self.running).unwrap().unwrap();
    }
}

#[test]
fn a_record_that_nobody_can_read_is_counted_and_told() {
    in_modes(|mode, _| {
        let mut own = Own::start(mode, Config::default().ring);
        // The newest ring is this one's.
        let rings = loaded_maps().filter_map(Result::ok).filter(|map| map.name_as_str() == Some("EVENTS"));
        let ring = rings.max_by_key(aya::maps::MapInfo::id).unwrap().fd().unwrap();
        bpf::put_rubbish(ring.as_fd());
        own.until("record that cannot be read", |own| own.metrics.undecodable.get() > 0);
        assert_eq!(own.metrics.undecodable.get(), 1);
        own.until_told("undecodable", |_| 1);
        // And what comes after it is read.
        let before = own.metrics.captured.get();
        std::fs::read("/proc/self/stat").unwrap();
        own.until("open after it", |own| own.metrics.captured.get() > before);
        own.end();
    });
}

#[test]
fn what_is_lost_of_processes_is_counted_apart_from_opens() {
    in_modes(|mode, _| {
        let mut own = Own::start(mode, bytesize::ByteSize::kib(64));
        // Nobody takes anything: the queue fills, then the ring, and there is no room for what follows.
        let open = |times: u32| (0..times).for_each(|_| drop(std::fs::File::open("/proc/self/stat").unwrap()));
        let is_full = |own: &Own| {
            own.metrics.queues.each().any(|queue| queue.name == "capture" && queue.length == queue.capacity)
        };
        let began = Instant::now();
        while !is_full(&own) {
            assert!(began.elapsed() < Duration::from_secs(120), "{:?}", own.metrics.queues);
            open(100);
        }
        open(1000);
        // The kernel keeps half of the ring free of processes: each that begins, executes and ends is lost.
        for _ in 0..PROCESSES {
            let child = Command::new("/proc/self/exe").arg("--help").stdout(Stdio::null()).spawn();
            child.unwrap().wait().unwrap();
        }
        own.until("process that was lost", |own| own.metrics.processes_lost.get() >= 3 * PROCESSES);
        own.until_told("processes_lost", |own| own.metrics.processes_lost.get());
        let (processes, opens) = (own.metrics.processes_lost.get(), own.metrics.opens_lost.get());
        println!("{mode:?}: {processes} records of processes lost, and {opens} opens");
        own.end();
    });
}
