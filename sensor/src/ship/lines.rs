//! Alerts as lines: on standard output, or in files that are rotated.
use std::{
    fs,
    io::{self, BufWriter, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use bytesize::ByteSize;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    encoder::{Encoder, RECORD_LIMIT},
    pretty,
    record::Record,
    sender::{Fault, Handed, Settled},
};
use crate::{metrics::Metrics, notice::Notices, policy::Alert};

/// Standard output: nothing to wait for, so it needs no spool.
pub struct Stdout {
    encoder: Encoder,
    metrics: Arc<Metrics>,
    /// Makes `event.created` the event's own time, so that a replay says the same each time.
    replay: bool,
}

impl Stdout {
    /// For alerts as they happen.
    #[must_use]
    pub fn new(encoder: Encoder, metrics: Arc<Metrics>) -> Self {
        Self { encoder, metrics, replay: false }
    }

    /// For recorded ones.
    #[must_use]
    pub fn replay(encoder: Encoder, metrics: Arc<Metrics>) -> Self {
        Self { encoder, metrics, replay: true }
    }

    /// Prints alerts until they end: for a person on a terminal, JSON lines otherwise. Blocks.
    ///
    /// # Errors
    /// When standard output is gone; that its reader has closed it is no error.
    pub fn run(self, mut alerts: mpsc::Receiver<Alert>) -> anyhow::Result<()> {
        let terminal = io::stdout().is_terminal();
        let mut out = BufWriter::new(io::stdout().lock());
        let mut sequence = 0;
        while let Some(alert) = alerts.blocking_recv() {
            sequence += 1;
            let mut write = || {
                if terminal {
                    writeln!(out, "{}", pretty::alert(&alert))?;
                } else {
                    let created = if self.replay { alert.event.event.time } else { Timestamp::now() };
                    serde_json::to_writer(&mut out, &self.encoder.document(&alert, sequence, created))?;
                    out.write_all(b"\n")?;
                }
                if alerts.is_empty() { out.flush() } else { Ok(()) }
            };
            match write() {
                Ok(()) => self.metrics.shipped.add(1),
                Err(why) if why.kind() == io::ErrorKind::BrokenPipe => {
                    // The reader has left; what is still on its way to it is lost.
                    alerts.close();
                    let mut left = 1;
                    while alerts.try_recv().is_ok() {
                        left += 1;
                    }
                    self.metrics.alerts_lost.add(left);
                    return Ok(());
                }
                Err(why) => return Err(why).context("cannot write to standard output"),
            }
        }
        Ok(())
    }
}

/// Settings of `sink: file`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// The file that is written to; `.1` is the one before it, and so on.
    pub path: PathBuf,
    /// Size at which a new file is begun.
    #[schemars(with = "String")]
    pub max_bytes: ByteSize,
    /// Old files that are kept.
    pub keep: u32,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), max_bytes: ByteSize::mib(100), keep: 5 }
    }
}

impl FileConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.path.as_os_str().is_empty() {
            return Err("ship.file.path is missing; name the file that alerts go to".to_owned());
        }
        if self.max_bytes < ByteSize::kib(4) {
            return Err(format!("ship.file.max_bytes is {}; it must be at least 4KiB", self.max_bytes));
        }
        if !(1..=1000).contains(&self.keep) {
            return Err(format!("ship.file.keep is {}; it must be from 1 to 1000", self.keep));
        }
        Ok(())
    }
}

/// JSON lines in a file; a record is settled once it is on the disk.
pub(super) struct File {
    config: FileConfig,
    out: BufWriter<fs::File>,
    size: u64,
    /// Size up to which the file is whole lines on the disk.
    synced: u64,
    written: Vec<u64>,
    /// What went wrong since the last flush; until reopened nothing is written.
    broken: Option<String>,
}

impl File {
    pub(super) fn open(config: &FileConfig) -> anyhow::Result<Self> {
        let (out, size) = append_to(config).with_context(|| {
            format!("cannot write to {}; set ship.file.path to a file it may write", config.path.display())
        })?;
        Ok(Self { config: config.clone(), out, size, synced: size, written: Vec::new(), broken: None })
    }

    /// Takes a record; it is settled by [`Self::flush`].
    pub(super) fn send(&mut self, sequence: u64, record: &Record) -> Handed {
        self.written.push(sequence);
        if self.broken.is_none()
            && let Err(why) = self.write(record.data.get().as_bytes())
        {
            self.broken = Some(why.to_string());
        }
        Handed::Taken
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size >= self.config.max_bytes.as_u64() {
            self.rotate()?;
        }
        self.out.write_all(line)?;
        self.out.write_all(b"\n")?;
        self.size += line.len() as u64 + 1;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_data()?;
        let name = |n: u32| {
            let mut name = self.config.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.config.keep).rev() {
            match fs::rename(name(n), name(n + 1)) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                _ => {}
            }
        }
        fs::rename(&self.config.path, name(1))?;
        (self.out, self.size) = append_to(&self.config)?;
        self.synced = self.size;
        Ok(())
    }

    /// Brings everything to the disk and says what is there.
    pub(super) fn flush(&mut self) -> Vec<Settled> {
        let written = std::mem::take(&mut self.written);
        if self.broken.is_none() && !written.is_empty() {
            let synced = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
            let synced = synced.and_then(|()| self.is_there());
            self.broken = synced.err().map(|why| why.to_string());
            self.synced = if self.broken.is_none() { self.size } else { self.synced };
        }
        let fault = self.broken.as_ref().map(|_| Fault::Later);
        written.into_iter().map(|number| Settled { number, generation: 0, fault }).collect()
    }

    /// What is in a file that somebody has removed is nowhere.
    fn is_there(&self) -> io::Result<()> {
        let links = std::os::unix::fs::MetadataExt::nlink(&self.out.get_ref().metadata()?);
        if links == 0 { Err(io::Error::other("somebody has removed it")) } else { Ok(()) }
    }

    /// Begins anew after a failure.
    pub(super) fn reopen(&mut self, notices: &Notices) {
        let Some(why) = self.broken.take() else { return };
        notices.add(
            "ship",
            "file_degraded",
            1,
            format!("cannot write {}: {why}; alerts wait in the spool", self.config.path.display()),
        );
        // What the old buffer still holds will be sent again: it must neither be written now nor leave half a line.
        match append_to(&self.config).and_then(|(out, size)| {
            // After a rotation the file may be a new one.
            let size = size.min(self.synced);
            out.get_ref().set_len(size).map(|()| (out, size))
        }) {
            Ok((out, size)) => {
                drop(std::mem::replace(&mut self.out, out).into_parts());
                self.size = size;
                self.synced = size;
            }
            Err(why) => self.broken = Some(why.to_string()),
        }
    }
}

/// Opens the file at the end of its last whole line: what follows it was never acknowledged.
fn append_to(config: &FileConfig) -> io::Result<(BufWriter<fs::File>, u64)> {
    match fs::metadata(&config.path) {
        // Opening a pipe would wait for its reader.
        Ok(found) if !found.is_file() => return Err(io::Error::other("it is not a regular file")),
        _ => {}
    }
    let mut file = fs::File::options().read(true).append(true).create(true).open(&config.path)?;
    let size = file.metadata()?.len();
    let tail = size.min(RECORD_LIMIT as u64 + 1);
    let mut end = vec![0; usize::try_from(tail).unwrap_or(0)];
    file.seek(SeekFrom::Start(size - tail))?;
    file.read_exact(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let torn = end.get(whole..).unwrap_or_default();
    if !torn.is_empty() && !["{\"@timestamp\"", "{\"action"].iter().any(|ours| torn.starts_with(ours.as_bytes())) {
        return Err(io::Error::other("its last line has no end and is none of ours; it is left as it is"));
    }
    let size = size - torn.len() as u64;
    file.set_len(size)?;
    Ok((BufWriter::new(file), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_that_a_crash_left_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let config = FileConfig { path: dir.path().join("a"), ..FileConfig::default() };
        let torn = "{\"@timestamp\":\"20";
        for (before, after) in [("", ""), ("{}\n", "{}\n"), (&format!("{{}}\n{torn}"), "{}\n"), (torn, "")] {
            fs::write(&config.path, before).unwrap();
            append_to(&config).unwrap();
            assert_eq!(fs::read_to_string(&config.path).unwrap(), after);
        }
    }

    #[test]
    fn what_others_wrote_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let config = FileConfig { path: dir.path().join("a"), ..FileConfig::default() };
        fs::write(&config.path, "{\"important\": 1}").unwrap();
        let why = append_to(&config).map(|_| ()).unwrap_err().to_string();
        assert_eq!(why, "its last line has no end and is none of ours; it is left as it is");
        assert_eq!(fs::read_to_string(&config.path).unwrap(), "{\"important\": 1}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let why =
            File::open(&FileConfig { path: "/dev/null".into(), ..FileConfig::default() }).map(|_| ()).unwrap_err();
        assert_eq!(
            format!("{why:#}"),
            "cannot write to /dev/null; set ship.file.path to a file it may write: it is not a regular file"
        );
    }
}
