//! Policies are changed under a storm of opens: what both sets watch is never missed.
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use sensor::{matcher::run_examples, observation::Observation, policy::Directory};
use sensor_ebpf::table::Wants;
use tokio::runtime::Handle;

use crate::{eye::Eye, mounted::known, place::policy};

/// Opens that may be on their way at a time, so that none is lost.
const ON_THEIR_WAY: u64 = 10_000;

/// So many changes of the policies.
pub(crate) fn run(changes: usize) {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().canonicalize().unwrap();
    let [watched, other] = ["watched", "other"].map(|name| base.join(name));
    [&watched, &other].into_iter().for_each(|file| fs::write(file, "").unwrap());
    let mut eye = Eye::open(true);
    let Eye { filter, events, .. } = &mut eye;
    let keys = [1, 2].map(|number| {
        let more = (0..number * 100).map(|n| format!("/srv/{number}/{n}/secret"));
        let paths: Vec<String> = more.chain([watched.display().to_string()]).collect();
        let text = policy("p", &paths, (&["read"], &["success"]));
        Directory::read_text(text.as_bytes(), run_examples).set.keys(&known())
    });
    filter.set(&keys[0]).unwrap();
    let cgroup = fs::metadata("/sys/fs/cgroup").unwrap().ino();
    let (over, opened, seen, others) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let is_over = || over.load(Ordering::SeqCst);
    let handle = Handle::current();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over() {
                if opened.load(Ordering::SeqCst) - seen.load(Ordering::SeqCst) > ON_THEIR_WAY {
                    thread::yield_now();
                    continue;
                }
                opened.fetch_add(1, Ordering::SeqCst);
                File::open(&watched).unwrap();
                File::open(&other).unwrap();
            }
        });
        scope.spawn(|| {
            while !is_over() || seen.load(Ordering::SeqCst) < opened.load(Ordering::SeqCst) {
                let next = handle.block_on(async {
                    tokio::time::timeout(std::time::Duration::from_secs(10), events.recv()).await
                });
                // After ten seconds without any nothing comes any more.
                let Ok(Some(next)) = next else { break };
                let Observation::Open(event) = next else { continue };
                let path = event.path.as_ref().map_or(&b""[..], |path| path.as_bytes());
                if path == watched.as_os_str().as_encoded_bytes() {
                    seen.fetch_add(1, Ordering::SeqCst);
                } else if path == other.as_os_str().as_encoded_bytes() {
                    others.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        for change in 0..changes {
            let keys = &keys[change % 2];
            filter.set(keys).unwrap();
            // As when enrichment has decided whom they speak of.
            filter.set_cgroups(&[(cgroup, Wants { audience: 1, ..keys.wants })]).unwrap();
        }
        over.store(true, Ordering::SeqCst);
    });
    let [opened, seen, others] = [opened, seen, others].map(AtomicU64::into_inner);
    println!(
        "swaps: {changes} changes, {opened} opens of what both sets watch, {seen} seen; {others} seen of as many that neither does"
    );
    assert!(opened > changes as u64, "no storm");
    assert_eq!(seen, opened);
    assert!(others < opened, "nothing was filtered");
    eye.close();
}
