//! What the metrics of sensors under test have come to. `sensor/tests/moved.rs` fails for one that no test has moved.
#![allow(
    dead_code,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "each test takes from here what it needs, and a guest prints"
)]
use std::{
    fs,
    io::{Read as _, Write as _},
    ops::Deref,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sensor::metrics::{self, Metrics};

/// Metrics in this process, whose last values are kept.
#[derive(Debug, Default)]
pub(crate) struct Kept(Arc<Metrics>);

impl Deref for Kept {
    type Target = Arc<Metrics>;

    fn deref(&self) -> &Arc<Metrics> {
        &self.0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            keep(&metrics::text(&self.0));
        }
    }
}

/// Where pages are kept; a guest has none, and prints them.
pub(crate) fn place() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("moved")
}

/// A number that no other call in this process returns.
pub(crate) fn next() -> u32 {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

/// Keeps of a page the series that are not zero.
fn keep(page: &str) {
    let is_moved = |line: &&str| !line.starts_with('#') && !line.ends_with(" 0") && !line.ends_with(" 0.0");
    let moved: Vec<&str> = page.lines().filter(is_moved).collect();
    if fs::metadata(env!("CARGO_TARGET_TMPDIR")).is_err() {
        moved.iter().for_each(|line| println!("METRIC\t{line}"));
        return;
    }
    fs::create_dir_all(place()).unwrap();
    let program = std::env::current_exe().unwrap();
    let program = program.file_name().unwrap().to_string_lossy().into_owned();
    fs::write(place().join(format!("{program}-{}-{}", std::process::id(), next())), moved.join("\n")).unwrap();
}

/// Keeps the metrics of the sensor that listens at `socket`, if one does.
pub(crate) fn keep_of(socket: &Path) {
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    // A sensor that hangs is not to hang the test.
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience)).unwrap();
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: sensor\r\nConnection: close\r\n\r\n");
    if asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() {
        keep(answer.split_once("\r\n\r\n").map_or("", |(_, page)| page));
    }
}
