//! Capture and enrich in the test's own process: real opens of its children, and all that is known of them.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use sensor::{
    capture::{self, Capture},
    enrich::{self, Enrich, Inputs, Kubernetes, Outputs, Targets},
    event::Enriched,
    hierarchy::Hierarchy,
    notice::Notices,
    policy::PolicySet,
};
use tokio::{runtime::Runtime, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{moved::Kept, policies};

/// Longest wait for anything that should happen at once; a busy machine is slow, a broken sensor is for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The two stages at work.
pub(crate) struct Pipeline {
    pub(crate) metrics: Kept,
    pub(crate) notices: Notices,
    pub(crate) targets: watch::Receiver<Arc<Targets>>,
    pub(crate) policies: Arc<PolicySet>,
    sets: watch::Sender<Arc<PolicySet>>,
    seen: Arc<Mutex<Vec<Arc<Enriched>>>>,
    stop: CancellationToken,
    runtime: Runtime,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// How enrich is told to work without a cluster.
pub(crate) fn alone() -> enrich::Config {
    enrich::Config { kubernetes: Kubernetes::Off, ..enrich::Config::default() }
}

/// The policies of a text in YAML.
pub(crate) fn policies_of(text: &str) -> Arc<PolicySet> {
    let directory = policies::directory_of(&[("p.yaml", text.as_bytes())]);
    let loaded = policies::open(directory.path()).poll().unwrap().unwrap();
    assert!(loaded.errors().next().is_none(), "{:?}", policies::said(&loaded, directory.path()));
    loaded.set
}

impl Pipeline {
    /// Keeps events whose path lies below `directory`.
    pub(crate) fn start(config: &enrich::Config, node: &str, policies: Arc<PolicySet>, directory: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let entered = runtime.enter();
        let (metrics, notices, mut tasks) = (Kept::default(), Notices::default(), JoinSet::new());
        let (sets, receiver) = watch::channel(policies.clone());
        let hierarchy = Hierarchy::find(&config.cgroups).unwrap();
        let capture_config = capture::Config { walk_rounds: 64, ..capture::Config::default() };
        let (capture, observations) =
            Capture::new(&capture_config, &hierarchy, metrics.clone(), notices.clone()).unwrap();
        let pods = enrich::watch_pods(config, node.to_owned(), receiver.clone(), notices.clone(), &mut tasks);
        let inputs = Inputs { observations, pods: pods.unwrap() };
        let (enrich, Outputs { mut enriched, targets, .. }) =
            Enrich::new(config, hierarchy, inputs, receiver, metrics.clone(), notices.clone());
        let stop = CancellationToken::new();
        tasks.spawn(capture.run(stop.clone()));
        let handle = runtime.handle().clone();
        tasks.spawn_blocking(move || handle.block_on(enrich.run()));
        let seen: Arc<Mutex<Vec<Arc<Enriched>>>> = Arc::default();
        let (keeps, prefix) = (seen.clone(), [directory.as_os_str().as_bytes(), b"/"].concat());
        tasks.spawn(async move {
            while let Some(event) = enriched.recv().await {
                let path = event.event.best_path();
                if path.is_some_and(|path| path.as_bytes().starts_with(&prefix)) {
                    keeps.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(event));
                }
            }
            Ok(())
        });
        drop(entered);
        Self { metrics, notices, targets, policies, sets, seen, stop, runtime, tasks }
    }

    /// Changes the policies under way.
    pub(crate) fn set_policies(&mut self, policies: Arc<PolicySet>) {
        self.policies = policies.clone();
        self.sets.send_replace(policies);
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Vec<Arc<Enriched>> {
        self.seen.lock().unwrap().clone()
    }

    /// What was seen of one file.
    pub(crate) fn of(&self, file: &Path) -> Vec<Arc<Enriched>> {
        let name = file.as_os_str().as_bytes();
        let all = self.seen();
        all.into_iter()
            .filter(|event| event.event.best_path().is_some_and(|path| path.as_bytes() == name))
            .collect()
    }

    /// Waits until the file was opened, and returns the first event of it.
    pub(crate) fn wait_for(&self, file: &Path) -> Arc<Enriched> {
        wait_until(&file.display().to_string(), || !self.of(file).is_empty());
        self.of(file)[0].clone()
    }

    /// Counters and notices, for the message of a test that fails.
    pub(crate) fn state(&self) -> String {
        format!("{:?}\n{:?}", self.metrics, self.notices.take())
    }

    /// Stops both stages, and returns what they have seen.
    pub(crate) fn finish(self) -> Vec<Arc<Enriched>> {
        let Self { stop, runtime, mut tasks, seen, .. } = self;
        stop.cancel();
        runtime.block_on(async {
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap().unwrap();
            }
        });
        seen.lock().unwrap().clone()
    }
}

/// Looks again and again until `done`.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A cgroup, and the directory of it.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    /// Makes the cgroup at `path` of the hierarchy that events carry the ids of, with those above it that are missing.
    pub(crate) fn make(path: &str) -> Self {
        let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
        let directory = hierarchy.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    /// Runs `command` in it, as a runtime does: the process enters before it executes anything.
    pub(crate) fn spawn(&self, command: &mut Command) -> Child {
        let procs = self.0.join("cgroup.procs");
        let enter = move || fs::write(&procs, "0");
        // SAFETY: between fork and exec it opens a file and writes to it, which are system calls.
        unsafe { command.pre_exec(enter) };
        // Cargo's path of libraries would have the dynamic linker look in 20 directories.
        command.env_remove("LD_LIBRARY_PATH");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Opens `file` in it, by `cat`.
    pub(crate) fn open(&self, file: &Path) {
        let mut child = self.spawn(Command::new("cat").arg(file));
        child.wait().unwrap();
    }

    /// Removes it; the kernel may need a moment after the last process.
    pub(crate) fn remove(self) {
        wait_until("the end of a cgroup", || fs::remove_dir(&self.0).is_ok());
    }
}
