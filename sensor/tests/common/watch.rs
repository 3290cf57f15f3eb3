//! A capture that watches the test itself.
use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use sensor::{
    capture::{Capture, Config, Error, Mode},
    event::{CaptureMode, Event},
    hierarchy::Hierarchy,
    metrics::Metrics,
    notice::Notices,
    observation::Observation,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A capture that watches this very process.
pub(crate) struct Watch {
    mode: CaptureMode,
    events: mpsc::Receiver<Observation>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    metrics: Arc<Metrics>,
}

impl Watch {
    pub(crate) fn start(mode: Mode) -> Result<Self, Error> {
        // Few rounds keep the verifier's time short, which in an emulated guest is seconds.
        Self::start_deep(mode, 16)
    }

    pub(crate) fn start_deep(mode: Mode, walk_rounds: u32) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::default());
        let config = Config { mode, skip_self: false, walk_rounds, ..Config::default() };
        let (capture, events) = Capture::new(&config, &hierarchy(), metrics.clone(), Notices::default())?;
        let mode = capture.mode();
        let stop = CancellationToken::new();
        let running = tokio::spawn(capture.run(stop.clone()));
        Ok(Self { mode, events, stop, running, metrics })
    }

    /// Runs `act` in this thread and returns the events that it caused.
    pub(crate) async fn during(mut self, act: impl FnOnce()) -> Observed {
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        act();
        self.stop.cancel();
        let mut events = Vec::new();
        let mut processes = Vec::new();
        while let Some(observation) = self.events.recv().await {
            if let Observation::Open(event) = observation {
                events.push(event);
            } else {
                processes.push(observation);
            }
        }
        self.running.await.unwrap().unwrap();
        let others = events.extract_if(.., |event| event.tid != tid).collect();
        let m = &self.metrics;
        assert_eq!(m.undecodable.get(), 0);
        assert_eq!(
            m.numbered.get(),
            m.captured.get() + m.opens_lost.get(),
            "an open is neither here nor counted as lost"
        );
        Observed { mode: self.mode, events, others, processes, lost: m.opens_lost.get(), skipped: m.skipped.get() }
    }
}

/// The hierarchy of which events carry the cgroup ids.
pub(crate) fn hierarchy() -> Hierarchy {
    Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap()
}

pub(crate) struct Observed {
    pub(crate) mode: CaptureMode,
    /// This thread's.
    pub(crate) events: Vec<Event>,
    /// Everybody else's.
    pub(crate) others: Vec<Event>,
    /// What tells of processes and cgroups, of anybody.
    pub(crate) processes: Vec<Observation>,
    pub(crate) lost: u64,
    /// Runs of the program that the kernel skipped.
    pub(crate) skipped: u64,
}

impl Observed {
    /// The events whose best path is below `directory`.
    pub(crate) fn below(&self, directory: &Path) -> Vec<&Event> {
        let prefix = [directory.as_os_str().as_bytes(), b"/"].concat();
        self.events.iter().filter(|e| e.best_path().is_some_and(|p| p.as_bytes().starts_with(&prefix))).collect()
    }

    pub(crate) fn only_below(&self, directory: &Path) -> &Event {
        let found = self.below(directory);
        assert_eq!(found.len(), 1, "{:?}: {found:#?}\nof {:#?}", self.mode, self.events);
        found[0]
    }
}

/// Runs `case` once in each mode that this kernel has, in a fresh directory each.
pub(crate) fn in_each_mode(case: impl Fn(&dyn Fn() -> Watch, &Path)) {
    in_each_mode_deep(16, case);
}

pub(crate) fn in_each_mode_deep(walk_rounds: u32, case: impl Fn(&dyn Fn() -> Watch, &Path)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut ran = Vec::new();
    for mode in [Mode::Fexit, Mode::Tracepoint] {
        match Watch::start(mode) {
            Ok(probe) => drop(probe),
            // Some kernels refuse fexit even to root (EPERM); a guest's never does, and a verifier's refusal
            // (EACCES) is our own fault anywhere.
            Err(why)
                if mode == Mode::Fexit
                    && std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none()
                    && why.to_string().ends_with("(os error 1)") =>
            {
                println!("fexit is not to be had on this kernel: {}", why.to_string().lines().next().unwrap());
                continue;
            }
            Err(why) => panic!("{mode:?}: {why:?}"),
        }
        let directory = tempfile::tempdir().unwrap();
        case(&|| Watch::start_deep(mode, walk_rounds).unwrap(), &directory.path().canonicalize().unwrap());
        ran.push(mode);
    }
    println!("ran in {ran:?} on {}", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    assert!(!ran.is_empty());
}

pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(future)
}

pub(crate) fn path_of(event: &Event) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(event.path.as_ref().unwrap().as_bytes()))
}
