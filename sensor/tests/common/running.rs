//! A sensor under test: the real binary as a child process.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{moved, schema};

/// Longest wait for anything that should happen at once; a busy machine is slow, a broken sensor is for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running sensor, its output read as it comes. Killed when dropped.
pub(crate) struct Sensor {
    pub(crate) child: Child,
    pub(crate) lines: mpsc::Receiver<Value>,
    log: Arc<Mutex<Vec<String>>>,
    socket: PathBuf,
}

/// Where the sensor of a command listens; a place of its own, unless the command has one.
fn socket_of(command: &mut Command) -> PathBuf {
    const SOCKET: &str = "PATHWATCH__HTTP__SOCKET";
    let known = command.get_envs().find_map(|(name, value)| if name == SOCKET { value } else { None });
    let known = known.map(PathBuf::from);
    known.unwrap_or_else(|| {
        let name = format!("pathwatch-test-{}-{}.sock", std::process::id(), moved::next());
        let socket = std::env::temp_dir().join(name);
        command.env(SOCKET, &socket);
        socket
    })
}

impl Sensor {
    /// Starts it and waits until it sees opens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let socket = socket_of(command);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let command_is_run = command.get_args().any(|argument| argument == "run");
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.unwrap();
                let document = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line}"));
                // `trace` prints opens, which are no records.
                if command_is_run {
                    schema::check(&document);
                }
                sender.send(document).ok();
            }
        });
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let writes = log.clone();
        thread::spawn(move || stderr.lines().for_each(|line| writes.lock().unwrap().push(line.unwrap())));
        let mut sensor = Self { child, lines, log, socket };
        sensor.wait_for_log("capture is attached");
        sensor
    }

    /// Waits until the log has a line with `text`.
    pub(crate) fn wait_for_log(&mut self, text: &str) -> String {
        let began = Instant::now();
        loop {
            let found = self.log.lock().unwrap().iter().find(|line| line.contains(text)).cloned();
            if let Some(line) = found {
                return line;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "no '{text}' in the log; {ended:?}\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has logged its last word, which comes after its end.
    pub(crate) fn wait_for_end_of_log(&mut self) -> String {
        self.child.wait().unwrap();
        let began = Instant::now();
        while !self.log().lines().last().is_some_and(|line| line.starts_with("pathwatch: ")) {
            assert!(began.elapsed() < PATIENCE, "{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        self.log()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Asks it to stop, waits until it has, and returns the lines that were not read yet.
    pub(crate) fn stop(mut self) -> (Vec<Value>, String) {
        moved::keep_of(&self.socket);
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
        let rest = self.lines.iter().collect();
        let log = self.log();
        (rest, log)
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        moved::keep_of(&self.socket);
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One counter of the totals that a sensor logs at its end.
pub(crate) fn total(log: &str, name: &str) -> u64 {
    let line =
        log.lines().find(|line| line.contains("\"totals\"")).unwrap_or_else(|| panic!("no totals in {log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    line["fields"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {line}"))
}
