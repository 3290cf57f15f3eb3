//! Who speaks, and ids that are the same whenever the same thing is said.
use std::{fs, io::Write as _, path::Path};

use anyhow::Context as _;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

use crate::event::Event;

/// The sensor as a sender of records: sequence numbers are gapless for each pair of these.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Outlives restarts and spools.
    pub agent_id: Uuid,
    /// New with each new spool.
    pub epoch: Uuid,
}

impl Identity {
    /// For a run without a spool.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self { agent_id: Uuid::new_v4(), epoch: Uuid::new_v4() }
    }

    /// For a replay, which must say the same anywhere.
    #[must_use]
    pub fn replay() -> Self {
        Self { agent_id: Uuid::nil(), epoch: Uuid::nil() }
    }
}

/// The machine that alerts are about.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name of the cluster, if there is one.
    pub cluster: Option<String>,
    /// Name of the node.
    pub name: String,
}

/// The sensor's own id, kept in `directory`; made there on the first run, and whether that is this one.
///
/// # Errors
/// When the directory cannot be made or the file is neither readable nor writable.
pub(super) fn agent_id(directory: &Path) -> anyhow::Result<(Uuid, bool)> {
    let path = directory.join("agent-id");
    let remedy = || {
        format!(
            "cannot keep the sensor's identity in {}; set ship.state_dir to a directory it may write",
            path.display()
        )
    };
    fs::create_dir_all(directory).with_context(remedy)?;
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map(|id| (id, false))
            .with_context(|| format!("{} holds no UUID; remove it to draw a new one", path.display())),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            // Renamed into place: a crash leaves the whole file or none.
            let new = directory.join("agent-id.new");
            let mut file = fs::File::create(&new).with_context(remedy)?;
            writeln!(file, "{id}").and_then(|()| file.sync_all()).with_context(remedy)?;
            fs::rename(&new, &path).with_context(remedy)?;
            Ok((id, true))
        }
        Err(why) => Err(why).with_context(remedy),
    }
}

/// Id of one alert: shaped as a UUIDv7, its time the event's, the rest a hash, so that the same kernel record
/// gives the same id however often it is sent. Without a policy it is the id of the open itself.
pub(super) fn event_id(agent: Uuid, event: &Event, policy: Option<&str>) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(agent.as_bytes());
    hash.update(event.boot_id.as_bytes());
    hash.update(event.cpu.to_le_bytes());
    hash.update(event.sequence.to_le_bytes());
    hash.update([event.mode as u8]);
    hash.update(event.hook.to_le_bytes());
    // A load of the programs counts from 1 again; the time tells the loads of one boot apart.
    hash.update(event.time.as_nanosecond().to_le_bytes());
    hash.update([u8::from(policy.is_some())]);
    hash.update(policy.unwrap_or_default().as_bytes());
    uuid_of(event.time, hash)
}

/// Id of a record that is no alert: the same for the same number of the same sender.
pub(super) fn record_id(agent: Uuid, epoch: Uuid, sequence: u64, time: Timestamp) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(agent.as_bytes());
    hash.update(epoch.as_bytes());
    hash.update(sequence.to_le_bytes());
    uuid_of(time, hash)
}

/// A UUID of version 7 with the time, and a hash in place of what is random.
fn uuid_of(time: Timestamp, hash: Sha256) -> Uuid {
    let mut random = [0; 10];
    for (to, from) in random.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    let milliseconds = u64::try_from(time.as_millisecond()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid()
}

/// `process.entity_id`: the same for all alerts of one process, different for the next holder of its pid.
pub(super) fn entity_id(agent: Uuid, boot: Uuid, pid: u32, start_ns: u64) -> String {
    let mut hash = Sha256::new();
    hash.update(agent.as_bytes());
    hash.update(boot.as_bytes());
    hash.update(pid.to_le_bytes());
    // To the clock tick, which is all that /proc knows of a parent.
    hash.update((start_ns / 10_000_000).to_le_bytes());
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    Uuid::from_bytes(bytes).simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_id_is_drawn_once() {
        let dir = tempfile::tempdir().unwrap();
        let (first, is_new) = agent_id(&dir.path().join("state")).unwrap();
        assert!(is_new);
        assert_eq!(agent_id(&dir.path().join("state")).unwrap(), (first, false));
        fs::write(dir.path().join("state/agent-id"), "nonsense").unwrap();
        let why = agent_id(&dir.path().join("state")).unwrap_err().to_string();
        assert!(why.ends_with("agent-id holds no UUID; remove it to draw a new one"), "{why}");
    }
}
