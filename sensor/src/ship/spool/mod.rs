//! Records on disk until they are acknowledged, and what must survive with them, in one commit.
//!
//! Changes gather in [`Pending`] and are written by [`Spool::commit`]. If that fails they stay there and are written by
//! the next: writing the same changes twice leaves the same behind. A number is given out once within an epoch, since
//! nobody reads a record before the commit that stores it and the next number.
mod index;
#[cfg(test)]
mod model;

use std::{
    collections::BTreeMap,
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
/// When something was last committed, in milliseconds since 1970.
const ALIVE: &str = "alive";
/// Bytes that may wait for a commit; beyond it a disk that cannot be written would fill the memory.
const PENDING_BYTES: u64 = 8 << 20;
/// Part of the file system that is left to others.
const FREE_PERCENT: u64 = 5;
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
    pending: Pending,
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
    pub(super) fn open(directory: &Path, max_bytes: u64, notices: &Notices) -> anyhow::Result<(Self, Vec<Row>)> {
        let check = |store| Self::read_state(directory.to_path_buf(), store, max_bytes);
        store::open_or_set_aside(directory, notices, check)
    }

    /// The same with another storage.
    #[cfg(test)]
    fn with_storage(opener: store::Opener, max_bytes: u64) -> Result<(Self, Vec<Row>), Error> {
        Self::read_state(PathBuf::new(), Store::open(opener)?, max_bytes)
    }

    fn read_state(directory: PathBuf, store: Store, max_bytes: u64) -> Result<(Self, Vec<Row>), Error> {
        let mut index = Index::default();
        let mut rows = Vec::new();
        let [epoch, next, alive] = store.write(|write| {
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
            let [epoch, next, alive] = [get(EPOCH)?, get(NEXT)?, get(ALIVE)?];
            let epoch = epoch.unwrap_or_else(|| Uuid::new_v4().as_u128());
            meta.insert(EPOCH, epoch)?;
            Ok([Some(epoch), next, alive])
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
            pending: Pending::default(),
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
    /// none up to `handed`, since the sink may have those.
    pub(super) fn make_room(&mut self, rank: Rank, len: usize, handed: u64) -> Room {
        let max = self.floor.map_or(self.max_bytes, |floor| floor.min(self.max_bytes));
        // A fifth is kept for what matters most.
        let limit = if rank >= index::CRITICAL { max } else { max / 5 * 4 };
        let need = index::size(len + 1);
        let mut room = Room::default();
        if self.pending.bytes + need > PENDING_BYTES {
            return room;
        }
        while self.index.bytes() + need > limit
            && let Some(number) = self.index.evict(rank, handed)
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
        self.pending.rows.insert(key, value);
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

    /// Removes one record that cannot be delivered.
    pub(super) fn remove(&mut self, number: u64) {
        self.index.remove(number);
        self.forget(number);
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
        let next = self.next;
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
            meta.insert(ALIVE, u128::try_from(now.as_millisecond()).unwrap_or(0))?;
            Ok(())
        })?;
        self.pending = Pending::default();
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
            self.floor = low.then(|| self.floor.unwrap_or(self.index.bytes()));
        }
        let size = std::fs::metadata(self.directory.join("spool.redb")).map_or(0, |file| file.len());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open_in(dir: &Path) -> anyhow::Result<Spool> {
        Spool::open(dir, 1000, &Notices::default()).map(|(spool, _)| spool)
    }

    fn numbers(spool: &Spool) -> Vec<u64> {
        spool.reader().read(0, 100).unwrap().into_iter().map(|(n, _)| n).collect()
    }

    fn commit(spool: &mut Spool) {
        spool.commit(Timestamp::UNIX_EPOCH).unwrap();
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_acknowledged_records_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open_in(dir.path()).unwrap();
        let epoch = spool.epoch();
        [b"a", b"b", b"c"].iter().for_each(|record| spool.push(3, *record));
        commit(&mut spool);
        spool.push(3, b"d");
        spool.acknowledge(2);
        commit(&mut spool);
        assert_eq!((numbers(&spool), spool.committed()), (vec![3, 4], 4));
        drop(spool);
        let mut spool = open_in(dir.path()).unwrap();
        assert_eq!(
            (numbers(&spool), spool.acknowledged(), spool.next(), spool.epoch()),
            (vec![3, 4], 2, 5, epoch)
        );
        assert_eq!(spool.reader().read(4, 9).unwrap(), [(4, b"d".to_vec())]);
        spool.acknowledge(4);
        commit(&mut spool);
        drop(spool);
        // Numbers are not used again, even when nothing is left.
        assert_eq!(open_in(dir.path()).unwrap().next(), 5);
    }

    #[test]
    fn a_full_spool_gives_up_the_lowest_and_oldest_and_keeps_a_fifth_for_what_matters() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open_in(dir.path()).unwrap();
        // With its rank and the index's own count each takes 100 bytes; 800 of 1,000 may be ordinary.
        let record = [0; 89];
        let room = |spool: &mut Spool, rank, handed| {
            let room = spool.make_room(rank, 89, handed);
            (room.gone.into_iter().map(|(number, _)| number).collect::<Vec<_>>(), room.fits)
        };
        for rank in [3, 1, 2, 1, 3, 3, 3, 3] {
            assert_eq!(room(&mut spool, rank, 0), (vec![], true));
            spool.push(rank, &record);
        }
        assert_eq!(room(&mut spool, 3, 0), (vec![2], true), "the oldest of the lowest rank");
        spool.push(3, &record);
        assert_eq!(
            room(&mut spool, 2, 4),
            (vec![], false),
            "what was handed to the sink stays, and what is higher"
        );
        assert_eq!(room(&mut spool, 2, 0), (vec![4], true));
        spool.push(2, &record);
        assert_eq!(room(&mut spool, 1, 0), (vec![], false), "nothing is lower than the lowest");
        for _ in 0..2 {
            assert_eq!(room(&mut spool, 5, 0), (vec![], true), "the reserve");
            spool.push(5, &record);
        }
        assert_eq!(room(&mut spool, SYSTEM, 0), (vec![3], true), "then lower ranks go");
        commit(&mut spool);
        assert_eq!(numbers(&spool), [1, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(spool.acknowledge(9), 6);
        assert_eq!(spool.alerts(), 3);
    }

    #[test]
    fn two_sensors_on_one_spool_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open_in(dir.path()).unwrap();
        let why = open_in(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("is in use: another pathwatch runs on it"), "{why}");
    }

    #[test]
    fn a_damaged_spool_is_moved_aside_and_said() {
        let good = tempfile::tempdir().unwrap();
        let mut spool = open_in(good.path()).unwrap();
        (0..50).for_each(|_| spool.push(3, &[7; 90]));
        commit(&mut spool);
        drop(spool);
        let whole = std::fs::read(good.path().join("spool.redb")).unwrap();
        let mut flipped = whole.clone();
        (0..flipped.len()).step_by(100).for_each(|at| flipped[at] ^= 0x55);
        let truncated = whole[..whole.len() / 3].to_vec();
        for damage in [b"not a database at all".to_vec(), flipped, truncated] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("spool.redb"), damage).unwrap();
            let notices = Notices::default();
            let (spool, _) = Spool::open(dir.path(), 1000, &notices).unwrap();
            assert_eq!(spool.next(), 1);
            assert_eq!(notices.take()[0].reason, "spool_damaged");
            let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
            assert_eq!(names.filter(|name| name.to_string_lossy().contains("damaged-")).count(), 1);
        }
    }

    #[test]
    fn rows_live_with_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open_in(dir.path()).unwrap();
        spool.set(b"a".to_vec(), Some(b"1".to_vec()));
        spool.set(b"b".to_vec(), Some(b"2".to_vec()));
        commit(&mut spool);
        spool.set(b"a".to_vec(), None);
        commit(&mut spool);
        drop(spool);
        let (spool, rows) = Spool::open(dir.path(), 1000, &Notices::default()).unwrap();
        assert_eq!(rows, [(b"b".to_vec(), b"2".to_vec())]);
        assert_eq!(spool.alive(), Some(Timestamp::UNIX_EPOCH));
    }
}
