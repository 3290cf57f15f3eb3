//! Recorded opens through the real binary to a sink, fed as the test goes: no kernel and no root needed.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::common::pathwatch;

/// Longest wait for anything that should happen soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A place for a sensor's state, a policy, and a configuration.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    /// What differs from the defaults, as variables say it.
    variables: Vec<(String, String)>,
}

impl Place {
    /// For a broker in plain text.
    pub(crate) fn new(brokers: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("policies")).unwrap();
        let policy = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: watched}\n\
             spec: {subjects: all, severity: medium, paths: ['/watched/**']}\n";
        std::fs::write(directory.path().join("policies/p.yaml"), policy).unwrap();
        let place = Self { directory, variables: Vec::new() };
        let state = place.path("state").display().to_string();
        let unlimited = "{per_second: 1000000, burst: 1000000}";
        place
            .set("SHIP__SINK", "kafka")
            .set("SHIP__STATE_DIR", &state)
            .set("SHIP__KAFKA__BROKERS", &format!("['{brokers}']"))
            .set("SHIP__STORM__POLICY", unlimited)
            .set("SHIP__STORM__NODE", unlimited)
            .set("NODE__NAME", "node-1")
            .set("CLUSTER__NAME", "lab")
            .set("LOG__LEVEL", "sensor=debug")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Changes a setting.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command with this configuration.
    pub(crate) fn command(&self) -> std::process::Command {
        let mut command = pathwatch();
        command.current_dir(self.directory.path());
        command.envs(self.variables.iter().map(|(name, value)| (format!("PATHWATCH__{name}"), value)));
        command
    }

    pub(crate) fn start(&self) -> Shipper {
        Shipper::start(self)
    }

    /// What the state directory holds.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }
}

/// A sensor that is fed by the test.
pub(crate) struct Shipper {
    pub(crate) child: Child,
    input: Option<ChildStdin>,
    log: Arc<Mutex<Vec<String>>>,
}

/// An open of `path`, the nth that the kernel saw.
pub(crate) fn open(n: u64, path: &str) -> Value {
    json!({
        "time": jiff::Timestamp::now().to_string(), "boot_id": "d2c1025b-5a45-44fe-8456-52608314bb86",
        "mode": "fexit", "cpu": 0, "sequence": n, "pid": 4711, "tid": 4711, "start_ns": 5_000_000_000_u64,
        "cgroup_id": 77, "uid": 1000, "gid": 1000, "comm": "cat", "flags": 0o100_000, "result": 0,
        "file": {"inode": 12, "device": 1, "mode": 0o100_640, "links": 1, "created": false},
        "path": path, "home": null, "requested": null, "status": [],
        "process": {"pid": 4711, "start_ns": 5_000_000_000_u64, "executable": "/usr/bin/cat", "args": ["cat", path, "--password=hunter2"]},
        "ancestors": [{"pid": 1, "start_ns": 0, "executable": "/sbin/init", "args": ["/sbin/init", "--token", "hunter2"]}],
        "cgroup_path": "/user.slice", "container": null, "enrichment": "complete",
    })
}

impl Shipper {
    fn start(place: &Place) -> Self {
        let mut command = place.command();
        command.args(["replay", "-", "--ship", "--policies", "policies"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (stderr, writes) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| writes.lock().unwrap().push(line))
        });
        let input = child.stdin.take();
        Self { child, input, log }
    }

    /// Opens `/watched/N` for each; returns the paths. False if nobody takes them any more.
    pub(crate) fn feed(&mut self, numbers: std::ops::Range<u64>) -> BTreeSet<String> {
        let paths = numbers.map(|n| (n, format!("/watched/{n}")));
        paths
            .map(|(n, path)| {
                self.write(&open(n, &path));
                path
            })
            .collect()
    }

    /// Feeds one open; false if the sensor is gone.
    pub(crate) fn write(&mut self, event: &Value) -> bool {
        writeln!(self.input.as_mut().unwrap(), "{event}").is_ok()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits until the log has a line with `text`.
    pub(crate) fn wait_for_log(&mut self, text: &str) {
        let began = Instant::now();
        while !self.log.lock().unwrap().iter().any(|line| line.contains(text)) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "no '{text}'; {ended:?}\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the spool has committed that many records.
    pub(crate) fn wait_for_spooled(&mut self, records: u64) {
        let began = Instant::now();
        while self.spooled() < records {
            assert!(began.elapsed() < PATIENCE, "{} of {records} are spooled\n{}", self.spooled(), self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The highest number that a commit has said to be on the disk.
    pub(crate) fn spooled(&self) -> u64 {
        spooled(&self.log())
    }

    /// Ends the input and waits until everything is delivered; returns the log.
    pub(crate) fn finish(mut self) -> String {
        drop(self.input.take());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < 2 * PATIENCE, "it does not end\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{}", self.log());
        self.log()
    }

    /// Kills it as a power cut would; returns the log.
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log()
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The highest number that a commit has said to be on the disk, by a sensor's log.
pub(crate) fn spooled(log: &str) -> u64 {
    let said = log.rsplit_once("\"spooled\":").and_then(|(_, rest)| rest.split(['}', ',']).next()?.parse().ok());
    said.unwrap_or(0)
}

/// Paths of the alerts among `records`.
pub(crate) fn paths(records: &[crate::broker::Consumed]) -> BTreeSet<String> {
    let alerts = records.iter().filter(|record| record.kind() == "alert");
    alerts.map(|record| record.document["file"]["path"].as_str().unwrap().to_owned()).collect()
}

/// Health records with this reason.
pub(crate) fn health<'a>(records: &'a [crate::broker::Consumed], reason: &str) -> Vec<&'a str> {
    let all = records.iter().filter(|record| record.document["pathwatch"]["health"]["reason"] == reason);
    all.map(|record| record.document["message"].as_str().unwrap()).collect()
}

/// A file system of its own for a directory, so that it can be full.
pub(crate) fn mount(directory: &Path, size: &str) {
    let options = std::ffi::CString::new(format!("size={size}")).unwrap();
    std::fs::create_dir_all(directory).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmp", directory, "tmpfs", flags, Some(options.as_c_str())).unwrap();
}

/// Takes it away again.
pub(crate) fn unmount(directory: &Path) {
    rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH).unwrap();
}
