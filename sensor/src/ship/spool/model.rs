//! The spool against a model, on a storage that fails: unsynced writes are lost, the nth write fails, there is no space.
#![expect(clippy::print_stdout, reason = "seed and counts belong in the log")]
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use redb::{Database, StorageBackend};

use super::*;

/// What a disk holds, and how it fails next.
#[derive(Debug, Default)]
struct Disk {
    /// What survives a power cut.
    durable: Vec<u8>,
    /// What is read back meanwhile.
    current: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Writes until one fails; and whether it fails as a full disk does.
    fails_in: Option<u32>,
    full: bool,
    /// The next read fails.
    fails_to_read: bool,
    /// Tells lies: a sync does nothing. Only to see the test fail.
    lies: bool,
    failures: u64,
}

#[derive(Clone, Debug)]
struct Handle(Arc<Mutex<Disk>>);

impl Handle {
    fn disk<T>(&self, act: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        act(&mut self.0.lock().unwrap())
    }

    /// Power is cut: of what was not synced, some arrives and some does not.
    fn cut_power(&self, random: &mut fastrand::Rng) -> usize {
        let mut disk = self.0.lock().unwrap();
        let unsynced = std::mem::take(&mut disk.unsynced);
        let mut dropped = 0;
        let mut survivor = disk.durable.clone();
        for (at, bytes) in unsynced {
            if random.bool() && survivor.len() >= at + bytes.len() {
                survivor[at..at + bytes.len()].copy_from_slice(&bytes);
            } else {
                dropped += 1;
            }
        }
        disk.durable.clone_from(&survivor);
        disk.current = survivor;
        disk.fails_in = None;
        dropped
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.disk(|disk| Ok(disk.current.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk(|disk| {
            if std::mem::take(&mut disk.fails_to_read) {
                disk.failures += 1;
                return Err(io::ErrorKind::Other.into());
            }
            let at = usize::try_from(offset).unwrap();
            let bytes = disk.current.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk(|disk| {
            let len = usize::try_from(len).unwrap();
            if len > disk.current.len() && disk.full && disk.fails_in == Some(0) {
                disk.failures += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.current.resize(len, 0);
            // A file system orders its own metadata; the bytes are what may be missing.
            disk.durable.resize(len, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk(|disk| {
            if !disk.lies {
                disk.durable = disk.current.clone();
                disk.unsynced.clear();
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk(|disk| {
            match &mut disk.fails_in {
                Some(0) => {
                    disk.failures += 1;
                    let kind = if disk.full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
                    return Err(kind.into());
                }
                Some(left) => *left -= 1,
                None => {}
            }
            let at = usize::try_from(offset).unwrap();
            disk.current[at..at + data.len()].copy_from_slice(data);
            disk.unsynced.push((at, data.to_vec()));
            Ok(())
        })
    }
}

/// What must be in the spool.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    records: BTreeMap<u64, Vec<u8>>,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    next: u64,
}

#[derive(Debug, Default)]
struct Happened {
    commits: u64,
    failed_commits: u64,
    failed_reads: u64,
    power_cuts: u64,
    dropped_writes: u64,
    evictions: u64,
    refusals: u64,
    acknowledgements: u64,
    removals: u64,
}

fn open(handle: &Handle) -> (Spool, Vec<Row>) {
    let handle = handle.clone();
    let opener: store::Opener = Box::new(move || Database::builder().create_with_backend(handle.clone()));
    Spool::with_storage(opener, 20_000).unwrap()
}

fn held(spool: &Spool, rows: Vec<Row>) -> Model {
    Model {
        records: spool.reader().read(0, usize::MAX).unwrap().into_iter().collect(),
        rows: rows.into_iter().collect(),
        next: spool.next(),
    }
}

/// One run.
struct Run<'a> {
    handle: Handle,
    spool: Spool,
    random: &'a mut fastrand::Rng,
    happened: &'a mut Happened,
    /// What was committed for sure, and what a failed commit may have left behind instead.
    sure: Model,
    model: Model,
    /// The last commit failed, so what is on the disk cannot be read.
    closed: bool,
}

/// An error says where spool and model differ.
fn run(random: &mut fastrand::Rng, lies: bool, happened: &mut Happened) -> Result<(), String> {
    let handle = Handle(Arc::default());
    let (spool, _) = open(&handle);
    handle.0.lock().unwrap().lies = lies;
    let sure = Model { next: 1, ..Model::default() };
    let mut run = Run { handle, spool, random, happened, model: sure.clone(), sure, closed: false };
    for step in 0..60 {
        run.step().map_err(|why| format!("step {step}: {why}"))?;
    }
    Ok(())
}

impl Run<'_> {
    fn step(&mut self) -> Result<(), String> {
        for _ in 0..self.random.usize(0..12) {
            self.push()?;
        }
        self.change();
        self.commit();
        if self.random.u8(0..8) == 0 { self.cut_power() } else { Ok(()) }
    }

    fn push(&mut self) -> Result<(), String> {
        let (rank, len) = (self.random.u8(1..=6), self.random.usize(1..900));
        let room = self.spool.make_room(rank, len);
        self.happened.evictions += room.gone.len() as u64;
        for (number, record) in room.gone {
            let known = self.model.records.remove(&number);
            if known.as_ref() != Some(&record) && !(self.closed && record.is_empty() && known.is_some()) {
                return Err(format!("{number} was given up and is another"));
            }
        }
        if room.fits {
            let record = std::iter::repeat_with(|| self.random.u8(..)).take(len).collect::<Vec<_>>();
            self.spool.push(rank, &record);
            self.model.records.insert(self.model.next, record);
            self.model.next += 1;
        } else {
            self.happened.refusals += 1;
        }
        Ok(())
    }

    /// A row, acknowledgements, and a record without hope.
    fn change(&mut self) {
        let Self { spool, random, model, happened, .. } = self;
        let key = vec![random.u8(0..5)];
        let value = random.bool().then(|| vec![random.u8(..)]);
        match &value {
            Some(value) => drop(model.rows.insert(key.clone(), value.clone())),
            None => drop(model.rows.remove(&key)),
        }
        spool.set(key, value);
        if random.u8(0..3) == 0 {
            let waiting = spool.committed().saturating_sub(spool.acknowledged());
            let up_to = spool.acknowledged() + random.u64(0..20).min(waiting);
            spool.acknowledge(up_to);
            model.records.retain(|number, _| *number > up_to);
            happened.acknowledgements += 1;
        }
        if random.u8(0..6) == 0
            && let Some(number) = model.records.keys().next().copied()
        {
            spool.remove(number);
            model.records.remove(&number);
            happened.removals += 1;
        }
    }

    fn commit(&mut self) {
        if self.random.u8(0..8) == 0 {
            // A read of another's, which the spool must come back from as well.
            self.handle.0.lock().unwrap().fails_to_read = true;
            self.happened.failed_reads += u64::from(self.spool.reader().read(0, 1000).is_err());
            self.handle.0.lock().unwrap().fails_to_read = false;
        }
        {
            let mut disk = self.handle.0.lock().unwrap();
            disk.full = self.random.bool();
            disk.fails_in = (self.random.u8(0..4) == 0).then(|| self.random.u32(0..12));
        }
        self.closed = self.spool.commit(Timestamp::UNIX_EPOCH).is_err();
        self.handle.0.lock().unwrap().fails_in = None;
        if self.closed {
            self.happened.failed_commits += 1;
        } else {
            self.happened.commits += 1;
            self.sure = self.model.clone();
        }
    }

    fn cut_power(&mut self) -> Result<(), String> {
        self.happened.power_cuts += 1;
        drop(std::mem::replace(&mut self.spool, open(&Handle(Arc::default())).0));
        self.happened.dropped_writes += self.handle.cut_power(self.random) as u64;
        let again = std::panic::catch_unwind(|| open(&self.handle));
        let Ok((again, rows)) = again else { return Err("the spool cannot be opened any more".to_owned()) };
        self.spool = again;
        let found = held(&self.spool, rows);
        if found != self.sure && (!self.closed || found != self.model) {
            return Err("after a power cut the spool holds something else".to_owned());
        }
        (self.sure, self.model, self.closed) = (found.clone(), found, false);
        Ok(())
    }
}

#[test]
fn whatever_the_disk_does_a_commit_is_there_as_a_whole_or_comes_later() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut happened = Happened::default();
    for _ in 0..60 {
        run(&mut random, false, &mut happened).unwrap_or_else(|why| panic!("{why}: seed {seed}"));
    }
    println!("{happened:?}");
    let Happened {
        commits,
        failed_commits,
        failed_reads: _,
        power_cuts,
        dropped_writes,
        evictions,
        refusals,
        acknowledgements,
        removals,
    } = happened;
    for count in
        [commits, failed_commits, power_cuts, dropped_writes, evictions, refusals, acknowledgements, removals]
    {
        assert!(count > 20, "something hardly happened: seed {seed}");
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let mut random = fastrand::Rng::with_seed(1);
    let outcomes = (0..20).map(|_| run(&mut random, true, &mut Happened::default()));
    assert!(outcomes.filter(Result::is_err).count() > 5);
}
