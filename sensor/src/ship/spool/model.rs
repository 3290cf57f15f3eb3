//! The spool against a model, on a storage that fails: unsynced writes are lost, the nth write fails, there is no space.
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

/// One run; an error says where spool and model differ.
fn run(random: &mut fastrand::Rng, lies: bool, happened: &mut Happened) -> Result<(), String> {
    let handle = Handle(Arc::default());
    let (mut spool, _) = open(&handle);
    handle.0.lock().unwrap().lies = lies;
    // What was committed for sure, and what a failed commit may have left behind instead.
    let mut sure = Model { next: 1, ..Model::default() };
    let mut model = sure.clone();
    let mut closed = false;
    for step in 0..60 {
        for _ in 0..random.usize(0..12) {
            let (rank, len) = (random.u8(1..=6), random.usize(1..900));
            let room = spool.make_room(rank, len, 0);
            happened.evictions += room.gone.len() as u64;
            for (number, record) in room.gone {
                let known = model.records.remove(&number);
                // While the disk fails, what is on it cannot be read.
                if known.as_ref() != Some(&record) && !(closed && record.is_empty() && known.is_some()) {
                    return Err(format!("step {step}: {number} was given up and is another"));
                }
            }
            if room.fits {
                let record = std::iter::repeat_with(|| random.u8(..)).take(len).collect::<Vec<_>>();
                model.records.insert(model.next, record.clone());
                model.next += 1;
                spool.push(rank, &record);
            } else {
                happened.refusals += 1;
            }
        }
        let key = vec![random.u8(0..5)];
        let value = random.bool().then(|| vec![random.u8(..)]);
        match &value {
            Some(value) => drop(model.rows.insert(key.clone(), value.clone())),
            None => drop(model.rows.remove(&key)),
        }
        spool.set(key, value);
        if random.u8(0..3) == 0 {
            let up_to = spool.acknowledged()
                + random.u64(0..20).min(spool.committed().saturating_sub(spool.acknowledged()));
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
        {
            let mut disk = handle.0.lock().unwrap();
            let fails = random.u8(0..4) == 0;
            disk.full = random.bool();
            disk.fails_in = fails.then(|| random.u32(0..12));
        }
        let committed = spool.commit(Timestamp::UNIX_EPOCH).is_ok();
        handle.0.lock().unwrap().fails_in = None;
        closed = !committed;
        if committed {
            happened.commits += 1;
            sure = model.clone();
        } else {
            happened.failed_commits += 1;
        }
        if random.u8(0..8) == 0 {
            happened.power_cuts += 1;
            drop(std::mem::replace(&mut spool, open(&Handle(Arc::default())).0));
            happened.dropped_writes += handle.cut_power(random) as u64;
            let (again, rows) = std::panic::catch_unwind(|| open(&handle))
                .map_err(|_| format!("step {step}: the spool cannot be opened any more"))?;
            spool = again;
            let found = held(&spool, rows);
            if found != sure && (committed || found != model) {
                return Err(format!("step {step}: after a power cut the spool holds something else"));
            }
            (sure, model, closed) = (found.clone(), found, false);
        }
    }
    Ok(())
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
