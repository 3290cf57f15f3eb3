//! Records on disk until they are acknowledged.
//!
//! What it rests on: redb commits are atomic and synced (`Durability::Immediate`, its default), so a record is
//! either wholly there after a crash or not at all; sequence numbers are given out by the commit that stores
//! them, so none is ever used twice within an epoch.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition};
use uuid::Uuid;

use crate::notice::Notices;

/// Encoded records by sequence number.
const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
/// What else must survive: see [`EPOCH`] and [`NEXT`].
const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
/// The epoch, drawn when the spool is made.
const EPOCH: &str = "epoch";
/// The next sequence number.
const NEXT: &str = "next";
/// Bytes after which a read ends.
const READ_BYTES: usize = 4 << 20;
/// Memory for pages; the sensor has little.
const CACHE_BYTES: usize = 8 << 20;

/// The one writer of a spool.
pub(super) struct Spool {
    path: PathBuf,
    db: Arc<Database>,
    epoch: Uuid,
    /// Next sequence number.
    next: u64,
    /// Oldest record that may still be there.
    first: u64,
    /// Bytes of the records that are there.
    bytes: u64,
    max_bytes: u64,
}

/// Reads what was committed.
#[derive(Clone)]
pub(super) struct Reader(Arc<Database>);

impl Spool {
    /// Opens the spool in `directory`, or makes one. A file that is damaged is moved aside and named in a notice.
    pub(super) fn open(directory: &Path, max_bytes: u64, notices: &Notices) -> anyhow::Result<Self> {
        let path = directory.join("spool.redb");
        let damage = match Self::try_open(&path, max_bytes) {
            Ok(spool) => return Ok(spool),
            Err(redb::Error::DatabaseAlreadyOpen) => bail!(
                "the spool {} is in use: another pathwatch runs on it; give this one another ship.state_dir",
                path.display()
            ),
            Err(redb::Error::Io(why)) if why.kind() != std::io::ErrorKind::InvalidData => {
                let remedy = format!(
                    "cannot open the spool {}; set ship.state_dir to a directory it may write",
                    path.display()
                );
                return Err(why).context(remedy);
            }
            Err(why) => why,
        };
        let aside = directory.join(format!("spool.redb.damaged-{}", Timestamp::now().as_second()));
        fs::rename(&path, &aside)
            .with_context(|| format!("cannot move the damaged spool {} aside", path.display()))?;
        let what = format!("the spool was damaged ({damage}) and is now {}; a new epoch begins", aside.display());
        notices.add("ship", "spool_damaged", 1, what);
        Self::try_open(&path, max_bytes).with_context(|| format!("cannot make the spool {}", path.display()))
    }

    fn try_open(path: &Path, max_bytes: u64) -> Result<Self, redb::Error> {
        // On some damage redb panics where others return an error.
        let opened = std::panic::catch_unwind(|| {
            let db = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
            Self::read_state(path.to_path_buf(), db, max_bytes)
        });
        opened.unwrap_or_else(|_| Err(redb::Error::Corrupted("it makes the database panic".to_owned())))
    }

    fn read_state(path: PathBuf, db: Database, max_bytes: u64) -> Result<Self, redb::Error> {
        let write = db.begin_write()?;
        let (epoch, next, first, bytes);
        {
            let mut meta = write.open_table(META)?;
            let records = write.open_table(RECORDS)?;
            let stored = meta.get(EPOCH)?.map(|epoch| Uuid::from_u128(epoch.value()));
            epoch = if let Some(epoch) = stored {
                epoch
            } else {
                let epoch = Uuid::new_v4();
                meta.insert(EPOCH, epoch.as_u128())?;
                epoch
            };
            next = meta.get(NEXT)?.map_or(1, |next| u64::try_from(next.value()).unwrap_or(u64::MAX));
            first = records.first()?.map_or(next, |(sequence, _)| sequence.value());
            bytes = records.stats()?.stored_bytes();
        }
        write.commit()?;
        Ok(Self { path, db: Arc::new(db), epoch, next, first, bytes, max_bytes })
    }

    /// The epoch: sequence numbers are gapless within it.
    pub(super) fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// The number that the next record will have.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The newest record's number; zero if there never was one.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// The oldest record that may still be there.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// True if `more` bytes fit.
    pub(super) fn has_room(&self, more: u64) -> bool {
        self.bytes + more <= self.max_bytes
    }

    /// A reader of what was and will be committed.
    pub(super) fn reader(&self) -> Reader {
        Reader(self.db.clone())
    }

    /// Stores `records`, numbered from [`Self::next`], and deletes all up to `acknowledged`, in one commit.
    /// On an error nothing has changed.
    pub(super) fn commit(&mut self, records: &[Vec<u8>], acknowledged: u64) -> Result<(), redb::Error> {
        let write = self.db.begin_write()?;
        let mut next = self.next;
        let mut bytes = self.bytes;
        {
            let mut table = write.open_table(RECORDS)?;
            if acknowledged >= self.first {
                for gone in table.extract_from_if(..=acknowledged, |_, _| true)? {
                    bytes = bytes.saturating_sub(gone?.1.value().len() as u64 + 8);
                }
            }
            for record in records {
                table.insert(next, record.as_slice())?;
                bytes += record.len() as u64 + 8;
                next += 1;
            }
            write.open_table(META)?.insert(NEXT, u128::from(next))?;
        }
        write.commit()?;
        self.first = self.first.max(acknowledged + 1);
        (self.next, self.bytes) = (next, bytes);
        Ok(())
    }

    /// Where it is, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Reader {
    /// At most `limit` records, and not much more than `READ_BYTES`, from number `from` on, in order.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
        let read = self.0.begin_read()?;
        let table = read.open_table(RECORDS)?;
        let mut bytes = 0;
        let records = table.range(from..)?.take(limit).take_while(|record| {
            let room = bytes < READ_BYTES;
            bytes += record.as_ref().map_or(0, |(_, record)| record.value().len());
            room
        });
        records
            .map(|record| record.map(|(n, bytes)| (n.value(), bytes.value().to_vec())).map_err(redb::Error::from))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_in(dir: &Path) -> anyhow::Result<Spool> {
        Spool::open(dir, 1000, &Notices::default())
    }

    fn numbers(spool: &Spool) -> Vec<u64> {
        spool.reader().read(0, 100).unwrap().into_iter().map(|(n, _)| n).collect()
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_acknowledged_records_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open_in(dir.path()).unwrap();
        let epoch = spool.epoch();
        spool.commit(&[b"a".to_vec(), b"b".to_vec(), b"c".to_vec()], 0).unwrap();
        spool.commit(&[b"d".to_vec()], 2).unwrap();
        assert_eq!((numbers(&spool), spool.last()), (vec![3, 4], 4));
        drop(spool);
        let mut spool = open_in(dir.path()).unwrap();
        assert_eq!((numbers(&spool), spool.first(), spool.next(), spool.epoch()), (vec![3, 4], 3, 5, epoch));
        assert_eq!(spool.reader().read(4, 9).unwrap(), [(4, b"d".to_vec())]);
        spool.commit(&[], 4).unwrap();
        drop(spool);
        // Numbers are not used again, even when nothing is left.
        assert_eq!(open_in(dir.path()).unwrap().next(), 5);
    }

    #[test]
    fn room_is_what_unacknowledged_records_leave() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open_in(dir.path()).unwrap();
        spool.commit(&[vec![0; 900]], 0).unwrap();
        assert!(!spool.has_room(100));
        drop(spool);
        let mut spool = open_in(dir.path()).unwrap();
        assert!(!spool.has_room(100));
        spool.commit(&[], 1).unwrap();
        assert!(spool.has_room(900));
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
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("spool.redb"), b"not a database at all").unwrap();
        let notices = Notices::default();
        let spool = Spool::open(dir.path(), 1000, &notices).unwrap();
        assert_eq!(spool.next(), 1);
        assert_eq!(notices.take()[0].reason, "spool_damaged");
        let left = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("damaged-"))
            .count();
        assert_eq!(left, 1);
    }
}
