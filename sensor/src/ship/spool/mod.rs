//! Records on disk until they are acknowledged, and what must survive with them, in one commit.
//!
//! Changes gather in [`Pending`] and are written by [`Spool::commit`]. If that fails they stay there and are written by
//! the next: writing the same changes twice leaves the same behind. A number is given out once within an epoch, since
//! nobody reads a record before the commit that stores it and the next number.
mod index;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use redb::{Error, ReadableTable as _};
use uuid::Uuid;

use self::index::Index;
pub(super) use self::index::{Rank, SYSTEM};
use super::store::{self, META, RECORDS, STATE, Store};
use crate::notice::Notices;

/// The epoch, drawn when the spool is made.
const EPOCH: &str = "epoch";
/// The next sequence number.
const NEXT: &str = "next";
/// Up to which number the sink may have records.
const HANDED: &str = "handed";
/// When something was last committed, in milliseconds since 1970.
const ALIVE: &str = "alive";
/// Bytes that may wait for a commit; beyond it a disk that cannot be written would fill the memory.
const PENDING_BYTES: u64 = 8 << 20;
/// Part of the file system that is left to others.
const FREE_PERCENT: u64 = 5;
/// What it may hold all the same: an empty spool must still be a way to the sink.
const FLOOR_BYTES: u64 = 8 << 20;
/// An empty spool whose file is larger gives the room back.
const COMPACT_BYTES: u64 = 64 << 20;

/// A row of the state: its key and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// The one writer of a spool.
pub(super) struct Spool {
    directory: PathBuf,
    store: Arc<Store>,
    epoch: Uuid,
    /// Next sequence number.
    next: u64,
    /// Newest number that a commit has stored.
    committed: u64,
    /// Everything up to this number is removed.
    acknowledged: u64,
    /// When the run before this one last wrote.
    alive: Option<Timestamp>,
    index: Index,
    /// Keys of the rows that are on the disk.
    rows: HashSet<Vec<u8>>,
    pending: Pending,
    /// The sink may have everything up to this number.
    handed: u64,
    max_bytes: u64,
    /// Bytes beyond which it does not grow now, since the disk is nearly full.
    floor: Option<u64>,
}

/// What the next commit changes.
#[derive(Default)]
struct Pending {
    records: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
    acknowledged: u64,
    removed: Vec<u64>,
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// Reads what was committed.
#[derive(Clone)]
pub(super) struct Reader(Arc<Store>);

/// What was given up for a new record.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Numbers and records that are gone.
    pub(super) gone: Vec<(u64, Vec<u8>)>,
    /// Whether that was enough.
    pub(super) fits: bool,
}

impl Spool {
    /// Opens the spool in `directory`, or makes one, with the rows of its state. A damaged file is moved aside and named
    /// in a notice.
    pub(super) fn open(
        directory: &Path,
        max_bytes: u64,
        had_spool: bool,
        notices: &Notices,
    ) -> anyhow::Result<(Self, Vec<Row>)> {
        let check = |store| Self::read_state(directory.to_path_buf(), store, max_bytes);
        store::open_or_set_aside(directory, had_spool, notices, check)
    }

    /// The same with another storage.
    #[cfg(test)]
    fn with_storage(opener: store::Opener, max_bytes: u64) -> Result<(Self, Vec<Row>), Error> {
        Self::read_state(PathBuf::new(), Store::open(opener)?, max_bytes)
    }

    fn read_state(directory: PathBuf, store: Store, max_bytes: u64) -> Result<(Self, Vec<Row>), Error> {
        let mut index = Index::default();
        let mut rows = Vec::new();
        let [epoch, next, alive, handed] = store.write(|write| {
            let mut meta = write.open_table(META)?;
            for record in write.open_table(RECORDS)?.iter()? {
                let (number, record) = record?;
                index.add(rank_of(record.value()), number.value(), record.value().len());
            }
            for row in write.open_table(STATE)?.iter()? {
                let (key, value) = row?;
                rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            let get = |name| Ok::<_, Error>(meta.get(name)?.map(|value| value.value()));
            let [epoch, next, alive, handed] = [get(EPOCH)?, get(NEXT)?, get(ALIVE)?, get(HANDED)?];
            let epoch = epoch.unwrap_or_else(|| Uuid::new_v4().as_u128());
            meta.insert(EPOCH, epoch)?;
            Ok([Some(epoch), next, alive, handed])
        })?;
        let next = next.map_or(1, |next| u64::try_from(next).unwrap_or(u64::MAX));
        let spool = Self {
            directory,
            store: Arc::new(store),
            epoch: Uuid::from_u128(epoch.unwrap_or_default()),
            next,
            committed: next - 1,
            acknowledged: index.first().map_or(next - 1, |first| first - 1),
            alive: alive.and_then(|ms| Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()),
            index,
            rows: rows.iter().map(|(key, _)| key.clone()).collect(),
            pending: Pending::default(),
            handed: u64::try_from(handed.unwrap_or(0)).unwrap_or(u64::MAX),
            max_bytes,
            floor: None,
        };
        Ok((spool, rows))
    }

    /// The epoch: sequence numbers are gapless within it.
    pub(super) fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// When the run before this one was last alive; None in a new spool.
    pub(super) fn alive(&self) -> Option<Timestamp> {
        self.alive
    }

    /// The number that the next record will have.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The newest record that a commit has stored; zero if there never was one.
    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    /// Everything up to this number was acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Alerts that wait.
    pub(super) fn alerts(&self) -> u64 {
        self.index.alerts()
    }

    /// Bytes that records take, of those that they may.
    pub(super) fn fill(&self) -> (u64, u64) {
        (self.index.bytes(), self.max_bytes)
    }

    /// True while something waits for a commit.
    pub(super) fn is_dirty(&self) -> bool {
        let Pending { records, acknowledged, removed, rows, .. } = &self.pending;
        !records.is_empty() || *acknowledged > 0 || !removed.is_empty() || !rows.is_empty()
    }

    /// Bytes that wait for a commit.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.pending.bytes
    }

    /// A reader of what was and will be committed.
    pub(super) fn reader(&self) -> Reader {
        Reader(self.store.clone())
    }

    /// Makes room for `len` bytes of `rank` by giving up alerts of lower or the same rank, the lowest and oldest first, but
    /// none that the sink is known to have been handed.
    pub(super) fn make_room(&mut self, rank: Rank, len: usize) -> Room {
        // A fifth is kept for what matters most.
        let (ordinary, floor) = (self.max_bytes / 5 * 4, self.floor.unwrap_or(u64::MAX));
        let limit = if rank >= index::CRITICAL {
            self.max_bytes.min(floor.saturating_add(floor / 4))
        } else {
            ordinary.min(floor)
        };
        let need = index::size(len + 1);
        let mut room = Room::default();
        // Nothing is given up in vain.
        let kept = self.index.bytes() - self.index.bytes_up_to(rank);
        if self.pending.bytes + need > PENDING_BYTES || kept + need > limit {
            return room;
        }
        while self.index.bytes() + need > limit
            && let Some(number) = self.index.evict(rank, self.handed)
        {
            room.gone.push((number, self.record(number).unwrap_or_default()));
            self.forget(number);
        }
        room.fits = self.index.bytes() + need <= limit;
        room
    }

    /// Takes a record in as number [`Self::next`].
    pub(super) fn push(&mut self, rank: Rank, json: &[u8]) {
        let mut record = Vec::with_capacity(json.len() + 1);
        record.push(rank);
        record.extend_from_slice(json);
        self.index.add(rank, self.next, record.len());
        self.pending.bytes += index::size(record.len());
        self.pending.records.insert(self.next, record);
        self.next += 1;
    }

    /// Sets a row of the state, or removes it.
    pub(super) fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        if value.is_none() && !self.rows.contains(&key) {
            // It never was on the disk, and while that fails such rows come and go.
            self.pending.rows.remove(&key);
        } else {
            self.pending.rows.insert(key, value);
        }
    }

    /// Removes everything up to `number`; returns how many of that were alerts.
    pub(super) fn acknowledge(&mut self, number: u64) -> u64 {
        if number <= self.acknowledged {
            return 0;
        }
        self.acknowledged = number;
        self.pending.acknowledged = number;
        self.index.acknowledge(number)
    }

    /// Removes one record that cannot be delivered; false if it is no longer there.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let found = self.index.remove(number);
        if found {
            self.forget(number);
        }
        found
    }

    /// The sink may have everything up to `number`.
    pub(super) fn hand(&mut self, number: u64) {
        self.handed = self.handed.max(number);
    }

    fn forget(&mut self, number: u64) {
        match self.pending.records.remove(&number) {
            Some(record) => self.pending.bytes -= index::size(record.len()),
            None => self.pending.removed.push(number),
        }
    }

    /// The record of this number, whether it is committed or not.
    fn record(&self, number: u64) -> Option<Vec<u8>> {
        if let Some(record) = self.pending.records.get(&number) {
            return record.get(1..).map(<[u8]>::to_vec);
        }
        let found = self.reader().read(number, 1).ok()?.pop();
        found.filter(|(at, _)| *at == number).map(|(_, record)| record)
    }

    /// Writes what has gathered, synced, with the time `now`. On an error all of it stays for the next commit.
    pub(super) fn commit(&mut self, now: Timestamp) -> Result<(), Error> {
        let pending = &self.pending;
        let (next, handed) = (self.next, self.handed);
        self.store.write(|write| {
            let mut records = write.open_table(RECORDS)?;
            if pending.acknowledged > 0 {
                for gone in records.extract_from_if(..=pending.acknowledged, |_, _| true)? {
                    gone?;
                }
            }
            for number in &pending.removed {
                records.remove(number)?;
            }
            for (number, record) in &pending.records {
                records.insert(number, record.as_slice())?;
            }
            let mut state = write.open_table(STATE)?;
            for (key, value) in &pending.rows {
                match value {
                    Some(value) => drop(state.insert(key.as_slice(), value.as_slice())?),
                    None => drop(state.remove(key.as_slice())?),
                }
            }
            let mut meta = write.open_table(META)?;
            meta.insert(NEXT, u128::from(next))?;
            meta.insert(HANDED, u128::from(handed))?;
            meta.insert(ALIVE, u128::try_from(now.as_millisecond()).unwrap_or(0))?;
            Ok(())
        })?;
        for (key, value) in std::mem::take(&mut self.pending).rows {
            match value {
                Some(_) => drop(self.rows.insert(key)),
                None => drop(self.rows.remove(&key)),
            }
        }
        self.committed = self.next - 1;
        Ok(())
    }

    /// Looks at the disk: how much it may still grow, and whether an empty file can give its room back.
    pub(super) fn look_at_disk(&mut self, notices: &Notices) {
        if let Ok(disk) = rustix::fs::statvfs(&self.directory) {
            let low = disk.f_bavail < disk.f_blocks / 100 * FREE_PERCENT;
            if low && self.floor.is_none() {
                let place = self.directory.display();
                let what =
                    format!("less than {FREE_PERCENT} % of the disk of {place} is free; the spool does not grow");
                notices.add("ship", "disk_low", 1, what);
            }
            self.floor = low.then(|| self.floor.unwrap_or(self.index.bytes().max(FLOOR_BYTES)));
        }
        let path = self.directory.join("spool.redb");
        let file = std::fs::metadata(&path);
        if file.as_ref().is_err_and(|why| why.kind() == std::io::ErrorKind::NotFound) {
            let what =
                format!("somebody has removed {}; what it holds is lost if the sensor ends", path.display());
            notices.add("ship", "spool_removed", 1, what);
        }
        let size = file.map_or(0, |file| file.len());
        if self.index.is_empty()
            && !self.is_dirty()
            && size > COMPACT_BYTES
            && let Err(why) = self.store.compact()
        {
            tracing::debug!("the spool cannot be made smaller: {why}");
        }
    }
}

impl Reader {
    /// At most `limit` records, and not much more than 1 MiB, from number `from` on, in order.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let mut records = self.0.read(from, limit)?;
        // The first byte is the rank.
        records.iter_mut().for_each(|(_, record)| drop(record.drain(..record.len().min(1))));
        Ok(records)
    }
}

/// The rank that stands in front of a record.
fn rank_of(record: &[u8]) -> Rank {
    record.first().copied().unwrap_or(0).min(SYSTEM)
}
