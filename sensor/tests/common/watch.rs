//! A capture that watches the test itself.
use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sensor::{
    capture::{Capture, Config, Error, Filter, Mode, Share},
    event::{CaptureMode, Event, Name},
    hierarchy::Hierarchy,
    notice::Notices,
    observation::Observation,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::moved::Kept;

/// A capture that watches this very process.
pub(crate) struct Watch {
    mode: CaptureMode,
    events: mpsc::Receiver<Observation>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    metrics: Kept,
    /// Where it goes back to when it has been used.
    shelf: Option<&'static Shelf>,
}

/// Loading takes an emulated guest seconds, so most tests use one capture of each mode, one after the other.
type Shelf = Mutex<Option<Watch>>;
static FEXIT: Shelf = Mutex::new(None);
static TRACEPOINT: Shelf = Mutex::new(None);

impl Watch {
    /// The capture that all tests of the mode share.
    pub(crate) fn shared(mode: Mode) -> Result<Self, Error> {
        let shelf = if mode == Mode::Fexit { &FEXIT } else { &TRACEPOINT };
        if let Some(kept) = shelf.lock().unwrap().take() {
            return Ok(kept);
        }
        // Few rounds keep the verifier's time short.
        Ok(Self { shelf: Some(shelf), ..Self::start(mode, 16)? })
    }

    /// One of its own, which accounts for all that was lost.
    pub(crate) fn start(mode: Mode, walk_rounds: u32) -> Result<Self, Error> {
        Self::configured(Config { mode, skip_self: false, walk_rounds, ..Config::default() })
    }

    /// One of its own, in which each cgroup has this share.
    pub(crate) fn sharing(mode: Mode, share: Share) -> Self {
        Self::configured(Config { mode, skip_self: false, walk_rounds: 16, share, ..Config::default() }).unwrap()
    }

    /// One of its own, with its filter.
    pub(crate) fn filtered(mode: Mode) -> (Self, Filter) {
        let mut filter = None;
        let config = Config { mode, skip_self: false, walk_rounds: 16, ..Config::default() };
        let watch = Self::made(config, |capture| filter = capture.take_filter()).unwrap();
        (watch, filter.unwrap())
    }

    fn configured(config: Config) -> Result<Self, Error> {
        Self::made(config, |_| {})
    }

    fn made(config: Config, with: impl FnOnce(&mut Capture)) -> Result<Self, Error> {
        let metrics = Kept::default();
        let (mut capture, events) = Capture::new(&config, &hierarchy(), metrics.clone(), Notices::default())?;
        with(&mut capture);
        let mode = capture.sight().mode;
        let stop = CancellationToken::new();
        let running = tokio::spawn(capture.run(stop.clone()));
        Ok(Self { mode, events, stop, running, metrics, shelf: None })
    }

    /// Runs `act` in this thread and returns the events that it caused.
    pub(crate) async fn during(mut self, act: impl FnOnce()) -> Observed {
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let Some(shelf) = self.shelf else {
            act();
            return self.finish(tid).await;
        };
        self.until_mark().await;
        act();
        let seen = self.until_mark().await;
        let observed = Observed::new(self.mode, tid, seen, 0, 0);
        *shelf.lock().unwrap() = Some(self);
        observed
    }

    async fn finish(mut self, tid: u32) -> Observed {
        self.stop.cancel();
        let mut seen = Vec::new();
        while let Some(observation) = self.events.recv().await {
            seen.push(observation);
        }
        self.running.await.unwrap().unwrap();
        let m = &self.metrics;
        assert_eq!(m.undecodable.get(), 0);
        assert_eq!(
            m.numbered.get(),
            m.captured.get() + m.opens_lost.get(),
            "an open is neither here nor counted as lost"
        );
        Observed::new(self.mode, tid, seen, m.opens_lost.get(), m.skipped.get())
    }

    /// All that comes before an open of this moment: the ring keeps the order.
    async fn until_mark(&mut self) -> Vec<Observation> {
        static MARKS: AtomicU64 = AtomicU64::new(0);
        let mut seen = Vec::new();
        for _ in 0..20 {
            let mark = format!("/no-such-file-{}", MARKS.fetch_add(1, Ordering::Relaxed));
            fs::File::open(&mark).unwrap_err();
            let is_mark =
                |name: &Option<Name>| name.as_ref().is_some_and(|name| name.as_bytes() == mark.as_bytes());
            // What was left unread may have filled the ring, and then the mark is lost: a new one is set.
            let patience = tokio::time::Instant::now() + Duration::from_secs(3);
            while let Ok(next) = tokio::time::timeout_at(patience, self.events.recv()).await {
                let next = next.unwrap();
                if matches!(&next, Observation::Open(event) if is_mark(&event.requested)) {
                    return seen;
                }
                seen.push(next);
            }
        }
        panic!("of twenty opens none was seen");
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
    fn new(mode: CaptureMode, tid: u32, seen: Vec<Observation>, lost: u64, skipped: u64) -> Self {
        let (mut events, mut processes) = (Vec::new(), Vec::new());
        for observation in seen {
            if let Observation::Open(event) = observation {
                events.push(event);
            } else {
                processes.push(observation);
            }
        }
        let others = events.extract_if(.., |event| event.tid != tid).collect();
        Self { mode, events, others, processes, lost, skipped }
    }

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
    in_modes(|mode, directory| case(&|| Watch::shared(mode).unwrap(), directory));
}

/// The same with a capture for each use, of so many rounds.
pub(crate) fn in_each_mode_alone(walk_rounds: u32, case: impl Fn(&dyn Fn() -> Watch, &Path)) {
    in_modes(|mode, directory| case(&|| Watch::start(mode, walk_rounds).unwrap(), directory));
}

/// Runs `case` once with each mode, in a fresh directory each.
pub(crate) fn in_modes(case: impl Fn(Mode, &Path)) {
    let _entered = runtime().enter();
    for mode in modes() {
        let directory = tempfile::tempdir().unwrap();
        case(*mode, &directory.path().canonicalize().unwrap());
    }
    println!("ran in {:?} on {}", modes(), fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
}

/// The modes that this kernel has.
fn modes() -> &'static [Mode] {
    static MODES: OnceLock<Vec<Mode>> = OnceLock::new();
    MODES.get_or_init(|| {
        let mut modes = vec![Mode::Tracepoint];
        match Watch::shared(Mode::Fexit) {
            Ok(probe) => {
                *FEXIT.lock().unwrap() = Some(probe);
                modes.insert(0, Mode::Fexit);
            }
            // Some kernels refuse fexit even to root (EPERM), and arm64 has none before 6.4 (ENOTSUPP); a verifier's refusal (EACCES)
            // is our own fault anywhere.
            Err(why)
                if std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none()
                    && ["(os error 1)", "(os error 524)"].iter().any(|end| why.to_string().ends_with(end)) =>
            {
                println!("fexit is not to be had on this kernel: {}", why.to_string().lines().next().unwrap());
            }
            Err(why) => panic!("{why:?}"),
        }
        modes
    })
}

/// Captures that tests share outlive each of them.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(future)
}

pub(crate) fn path_of(event: &Event) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(event.path.as_ref().unwrap().as_bytes()))
}
