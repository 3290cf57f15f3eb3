//! The database below the spool: opened, opened again after an error, moved aside when it is damaged.
//!
//! What it rests on: redb commits are atomic and synced (`Durability::Immediate`, its default), so what one commit says is
//! either wholly there after a crash or not at all. After an error of the storage redb refuses every call until it is
//! opened anew; the spool keeps what it could not write and tries again.
use std::{
    fmt,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use redb::{Database, DatabaseError, Error, ReadableDatabase as _, StorageError, TableDefinition};

use crate::notice::Notices;

/// Encoded records by sequence number.
pub(super) const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
/// What the stage must remember beside them, as it likes.
pub(super) const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
/// The spool's own numbers.
pub(super) const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
/// Bytes after which a read ends.
const READ_BYTES: usize = 1 << 20;
/// Memory for pages; the sensor has little.
const CACHE_BYTES: usize = 4 << 20;

/// How the database is opened; tests put a storage in that fails.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// A database that may be away for a while.
pub(super) struct Store {
    opener: Opener,
    db: RwLock<Option<Database>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

/// True for errors that time or free space may cure.
pub(super) fn is_transient(why: &Error) -> bool {
    if let Error::Io(why) = why {
        return why.kind() != std::io::ErrorKind::InvalidData;
    }
    // What redb says of every call after the first error, until it is opened anew.
    matches!(why, Error::PreviousIo | Error::DatabaseClosed)
}

impl Store {
    /// Opens it.
    pub(super) fn open(opener: Opener) -> Result<Self, Error> {
        let db = opener()?;
        Ok(Self { opener, db: RwLock::new(Some(db)) })
    }

    /// Changes it by `change`, in one commit; opens it first if it is closed. After an error it is closed.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        {
            let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
            if db.is_none() {
                *db = Some((self.opener)()?);
            }
        }
        let outcome = {
            let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
            let begun = db.as_ref().ok_or(Error::DatabaseClosed).and_then(|db| Ok(db.begin_write()?));
            begun.and_then(|write| {
                let value = change(&write)?;
                write.commit()?;
                Ok(value)
            })
        };
        if outcome.is_err() {
            self.close();
        }
        outcome
    }

    /// Closes it after an error, so that the next write opens it anew.
    fn close(&self) {
        drop(self.db.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// At most `limit` records, and not much more than `READ_BYTES`, from number `from` on, in order. After an error it is
    /// closed until the next write.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let outcome = self.try_read(from, limit);
        if outcome.is_err() {
            self.close();
        }
        outcome
    }

    fn try_read(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let read = db.as_ref().ok_or(Error::DatabaseClosed)?.begin_read()?;
        let table = read.open_table(RECORDS)?;
        let mut bytes = 0;
        let mut records = Vec::new();
        for record in table.range(from..)?.take(limit) {
            let (number, record) = record?;
            bytes += record.value().len();
            records.push((number.value(), record.value().to_vec()));
            if bytes >= READ_BYTES {
                break;
            }
        }
        Ok(records)
    }

    /// Gives free pages back to the file system.
    pub(super) fn compact(&self) -> Result<(), String> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let outcome = db.as_mut().map_or(Ok(false), Database::compact).map(drop);
        if outcome.is_err() {
            drop(db.take());
        }
        outcome.map_err(|why| why.to_string())
    }
}

/// Opens the store in `directory`, or makes one, which is said if there `had_spool` been one. A file that is damaged is moved aside and named in a notice; `check` looks
/// at what is in it.
pub(super) fn open_or_set_aside<T>(
    directory: &Path,
    had_spool: bool,
    notices: &Notices,
    check: impl Fn(Store) -> Result<T, Error>,
) -> anyhow::Result<T> {
    let path = directory.join("spool.redb");
    let is_there = std::fs::metadata(&path).is_ok_and(|file| file.len() > 0);
    if had_spool && !is_there {
        let what = format!("the spool {} is gone, with what it held; a new epoch begins", path.display());
        notices.lost("ship", "spool_missing", 0, what);
    }
    let try_open = || {
        // On some damage redb panics where others return an error.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Store::open(opener(path.clone())).and_then(&check)
        }));
        opened.unwrap_or_else(|_| Err(Error::Corrupted("it makes the database panic".to_owned())))
    };
    let damage = match try_open() {
        Ok(checked) => return Ok(checked),
        Err(Error::DatabaseAlreadyOpen) => bail!(
            "the spool {} is in use: another pathwatch runs on it; give this one another ship.state_dir",
            path.display()
        ),
        Err(Error::Io(why)) if why.kind() != std::io::ErrorKind::InvalidData => {
            let place = path.display();
            let remedy = if why.kind() == std::io::ErrorKind::StorageFull {
                format!("no room for the spool {place}; free its disk and start again")
            } else {
                format!("cannot open the spool {place}; set ship.state_dir to a directory it may write")
            };
            return Err(why).context(remedy);
        }
        Err(why) => why,
    };
    // One is kept for whoever wants to look: a disk that goes bad makes more.
    for old in std::fs::read_dir(directory)?.flatten() {
        if old.file_name().to_string_lossy().starts_with("spool.redb.damaged-") {
            std::fs::remove_file(old.path()).ok();
        }
    }
    let aside = directory.join(format!("spool.redb.damaged-{}", Timestamp::now().as_millisecond()));
    std::fs::rename(&path, &aside)
        .with_context(|| format!("cannot move the damaged spool {} aside", path.display()))?;
    let what = format!(
        "the spool was damaged ({damage}) and is now {}; what it still held is not sent, and a new epoch begins",
        aside.display()
    );
    notices.lost("ship", "spool_damaged", 0, what);
    try_open().with_context(|| format!("cannot make the spool {}", path.display()))
}

fn opener(path: PathBuf) -> Opener {
    Box::new(move || {
        // What alerts say of processes is for nobody else on this host.
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(StorageError::Io)?;
        Database::builder().set_cache_size(CACHE_BYTES).create(&path)
    })
}
