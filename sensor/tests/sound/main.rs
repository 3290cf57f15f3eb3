//! The kernel's filter against itself switched off, on a real kernel: two captures watch the same random opens while directories
//! are renamed, mounts made and removed and policies swapped. What policies want of that which the one without a filter has seen
//! the other must have seen, too.
//!
//! `sound [OPENS]` runs in a guest (`make test-guests`); SEED=n repeats a run.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it did")]
mod eye;
#[path = "../common/mounted.rs"]
mod mounted;
#[path = "../common/moved.rs"]
mod moved;
mod place;
mod reasons;
mod replaced;
mod swaps;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use eye::Eye;
use fastrand::Rng;
use place::Place;
use rustix::fs::{Mode as Perm, OFlags};
use sensor::{
    event::{Event, Operation, flags},
    policy::{Namespace, Outcome, PolicySet, Spec, names},
};

/// Threads that open, and opens of each between two changes of the world.
const OPENERS: usize = 2;
const BATCH: usize = 50;

fn main() {
    if std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none() {
        println!("not run: this machine's opens are not the test's own; type make test-guests");
        return;
    }
    let opens: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50_000);
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("sound: SEED={seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut counts = BTreeMap::new();
    let began = std::time::Instant::now();
    let missed = compare(&mut Rng::with_seed(seed), opens, true, &mut counts);
    println!("sound: {opens} opens in {:.0?}", began.elapsed());
    assert_eq!(missed, None, "wanted, and stopped in the kernel");
    report(&counts, opens as u64);
    let found = compare(&mut Rng::with_seed(seed), opens.max(100_000), false, &mut BTreeMap::new());
    println!("sound: nobody tells of moved directories: {}", found.as_deref().unwrap_or("not found out"));
    assert!(found.is_some(), "a filter that is not sound is not found out");
    reasons::run();
    swaps::run(1000);
    assert_eq!(replaced::run(true), 0, "stopped in the kernel by what it remembered of another");
    assert_ne!(replaced::run(false), 0, "a filter that is not sound is not found out");
    println!("test result: ok. 6 passed; 0 failed");
}

/// Everything that is to happen must have.
fn report(counts: &BTreeMap<&str, u64>, opens: u64) {
    counts.iter().for_each(|(what, count)| println!("sound: {what:<24} {count:>9}"));
    for what in [
        "rename",
        "exchange",
        "tmpfs",
        "bind",
        "unmount",
        "policies",
        "wanted",
        "stopped",
        "failed, wanted",
        "failed, stopped",
    ] {
        assert!(counts.get(what).is_some_and(|count| *count > 0), "never: {what}");
    }
    let [all, wanted, stopped] = ["opens", "wanted", "stopped"].map(|what| counts[what]);
    assert!(
        all >= opens && wanted * 10 >= all && stopped * 10 >= all,
        "{wanted} wanted and {stopped} stopped of {all}"
    );
}

/// A file and how it is to be opened.
type Order = (PathBuf, OFlags);

/// The same path with what the letters of a name may have besides.
fn misspelled(rng: &mut Rng, path: &Path) -> PathBuf {
    let (directory, name) = (path.parent().unwrap().display(), path.file_name().unwrap().display());
    let between = *rng.choice(["/", "//", "/./", "/no-such/../"].iter()).unwrap();
    let after = *rng.choice(["", "", "/", "/."].iter()).unwrap();
    PathBuf::from(format!("{directory}{between}{name}{after}"))
}

/// A thread that opens what it is told to: its id, orders to it, and its word that it has.
type Opener = (u32, mpsc::Sender<Vec<Order>>, mpsc::Receiver<()>);

fn opener() -> Opener {
    let (orders, ordered) = mpsc::channel::<Vec<Order>>();
    let (done, is_done) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
        while let Ok(batch) = ordered.recv() {
            for (path, flags) in batch {
                // No file is a directory.
                let opened = rustix::fs::open(path, flags, Perm::empty());
                assert_eq!(opened.is_err(), flags.contains(OFlags::DIRECTORY));
            }
            done.send(()).unwrap();
        }
    });
    (told.recv().unwrap(), orders, is_done)
}

/// So many opens; returns the first that some policy wants and that the filter stopped. If `tells` is false nobody tells the
/// filter of directories that are moved.
fn compare(rng: &mut Rng, opens: usize, tells: bool, counts: &mut BTreeMap<&'static str, u64>) -> Option<String> {
    let mut place = Place::new();
    let (mut without, mut with) = (Eye::open(true), Eye::open(tells));
    let openers: Vec<Opener> = (0..OPENERS).map(|_| opener()).collect();
    let mut set = place.policies(rng);
    with.filter.set(&set.keys(&mounted::known())).unwrap();
    for round in 0..opens.div_ceil(OPENERS * BATCH) {
        *counts.entry(place.change(rng)).or_default() += 1;
        if round % 1000 == 999 {
            println!("sound: {} opens of {opens}", (round + 1) * OPENERS * BATCH);
        }
        if round % 20 == 19 {
            set = place.policies(rng);
            with.filter.set(&set.keys(&mounted::known())).unwrap();
            *counts.entry("policies").or_default() += 1;
        }
        let files = place.files();
        // Not only those that nobody wants.
        let is_wanted = |file: &&PathBuf| matches(&set, file.as_os_str().as_encoded_bytes(), |_| true);
        let wanted: Vec<PathBuf> = files.iter().filter(is_wanted).cloned().collect();
        for (_, orders, _) in &openers {
            let order = |_| {
                let among = if rng.u8(..4) == 0 && !wanted.is_empty() { &wanted } else { &files };
                let flags = if rng.bool() { OFlags::RDONLY } else { OFlags::WRONLY };
                let path = among[rng.usize(..among.len())].clone();
                if rng.u8(..4) == 0 { (misspelled(rng, &path), flags | OFlags::DIRECTORY) } else { (path, flags) }
            };
            orders.send((0..BATCH).map(order).collect()).unwrap();
        }
        openers.iter().for_each(|(.., is_done)| is_done.recv().unwrap());
        fs::File::open(&place.mark).unwrap();
        let (all, passed) = (without.seen(&place.mark), with.seen(&place.mark));
        for (tid, ..) in &openers {
            let of = |events: &[Event]| -> Vec<Event> {
                events.iter().filter(|event| event.tid == *tid).cloned().collect()
            };
            let all = of(&all);
            // Nothing is lost, or the comparison says nothing.
            assert_eq!(all.len(), BATCH);
            if let Some(missed) = missed(&all, &of(&passed), &set, counts) {
                return Some(missed);
            }
        }
    }
    without.close();
    with.close();
    None
}

/// The first of `all` that some policy wants and that is not among those that `passed`, in the same order.
fn missed(
    all: &[Event],
    passed: &[Event],
    set: &Arc<PolicySet>,
    counts: &mut BTreeMap<&'static str, u64>,
) -> Option<String> {
    let mut passed = passed.iter().peekable();
    for event in all {
        *counts.entry("opens").or_default() += 1;
        let is_it = |other: &&Event| {
            (other.best_path(), &other.file, other.flags) == (event.best_path(), &event.file, event.flags)
        };
        let has_passed = passed.next_if(is_it).is_some();
        let wanted = wants(set, event);
        let failed = event.result != 0;
        let kinds = [
            ("wanted", wanted),
            ("stopped", !has_passed),
            ("failed, wanted", failed && wanted),
            ("failed, stopped", failed && !has_passed),
        ];
        for (what, is_so) in kinds {
            *counts.entry(what).or_default() += u64::from(is_so);
        }
        if wanted && !has_passed {
            return Some(format!("{:?} (flags {:#o}, {})", event.best_path(), event.flags, event.result));
        }
    }
    assert!(passed.next().is_none(), "the filter has let through what nobody opened");
    None
}

/// Whether some policy wants it, by the whole language.
fn wants(set: &PolicySet, event: &Event) -> bool {
    let done = if event.flags & flags::O_ACCMODE == 0 { Operation::Read } else { Operation::Write };
    matches(set, event.best_path().unwrap().as_bytes(), |spec| {
        spec.operations.contains(&done) && spec.results.contains(&Outcome::of(event.result))
    })
}

/// Whether some policy of which this is so has a pattern for this path.
fn matches(set: &PolicySet, path: &[u8], is_so: impl Fn(&Spec) -> bool) -> bool {
    let mut matches = false;
    for name in names(path) {
        set.matches(&name, Namespace::Unknown, |policy, _| {
            matches |= is_so(&set.policies[policy as usize].policy.spec);
        });
    }
    matches
}
