//! Opens at full speed: each is received or counted as lost, to the last one. Only where nobody else opens files.
use std::{path::Path, process::Command, sync::Barrier, thread, time::Instant};

use rustix::fs::{CWD, Mode as Perm, OFlags, openat};
use sensor::{
    capture::{Capture, Config, Mode},
    hierarchy::Hierarchy,
    notice::Notices,
    observation::Observation,
};
use tokio_util::sync::CancellationToken;

use super::moved::Kept;

/// `storm DIRECTORY DEPTH THREADS OPENS`: so many opens by each thread of a file so deep, on the CPU where the sensor is not:
/// what it opens itself is not counted, but runs the same program.
pub(crate) fn storm(arguments: &[String]) {
    let number = |at: usize| -> usize { arguments[at].parse().unwrap() };
    let (depth, threads, opens) = (number(1), number(2), number(3));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = openat(CWD, &arguments[0], flags, Perm::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&directory, "d", Perm::RWXU).ok();
        directory = openat(&directory, "d", flags, Perm::empty()).unwrap();
    }
    drop(openat(&directory, "f", OFlags::CREATE | OFlags::WRONLY, Perm::RWXU).unwrap());
    let ready = Barrier::new(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                ready.wait();
                for _ in 0..opens {
                    drop(openat(&directory, "f", OFlags::RDONLY, Perm::empty()).unwrap());
                }
            });
        }
    });
}

/// What became of a storm's opens.
struct Counted {
    received: u64,
    lost: u64,
    skipped: u64,
}

impl Counted {
    fn all(&self) -> u64 {
        self.received + self.lost + self.skipped
    }
}

/// Runs a storm under the eyes of capture.
fn count(base: &Path, depth: usize, threads: usize, opens: usize) -> Counted {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
    let (metrics, notices) = (Kept::default(), Notices::default());
    let config = Config { mode: Mode::Fexit, walk_rounds: 400, ..Config::default() };
    let (capture, mut observations) = Capture::new(&config, &hierarchy, metrics.clone(), notices).unwrap();
    let stop = CancellationToken::new();
    let running = runtime.spawn(capture.run(stop.clone()));
    let reading = runtime.spawn(async move {
        let mut received = 0;
        while let Some(observation) = observations.recv().await {
            received += u64::from(matches!(observation, Observation::Open(_)));
        }
        received
    });
    let numbers = [depth, threads, opens].map(|number| number.to_string());
    let mut child = Command::new(std::env::current_exe().unwrap());
    // The child begins on the CPU of whoever makes it.
    super::on_cpu(1);
    assert!(child.arg("storm").arg(base).args(numbers).status().unwrap().success());
    super::on_cpu(0);
    stop.cancel();
    runtime.block_on(running).unwrap().unwrap();
    let received = runtime.block_on(reading).unwrap();
    Counted { received, lost: metrics.opens_lost.get(), skipped: metrics.skipped.get() }
}

/// A million opens by four threads; and an attack on the rule that a program does not interrupt itself.
pub(crate) fn conserve() {
    if std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none() {
        println!("not run: on this machine others open files, too");
        return;
    }
    super::on_cpu(0);
    for (name, depth, threads, opens) in
        [("four threads", 0, 4, 250_000), ("two threads, 350 directories deep", 350, 2, 5_000)]
    {
        let base = tempfile::tempdir().unwrap();
        // What such a program opens anyway; the directories are there from the second time on.
        count(base.path(), depth, threads, 0);
        let without = count(base.path(), depth, threads, 0);
        assert_eq!((without.lost, without.skipped), (0, 0), "lost, and skipped, before anything was done");
        let began = Instant::now();
        let with = count(base.path(), depth, threads, opens);
        let made = (threads * opens) as u64;
        let Counted { received, lost, skipped } = with;
        println!(
            "{name}: {made} opens and {} of the program's own in {:?}: {received} received, {lost} lost, {skipped} skipped",
            without.received,
            began.elapsed(),
        );
        assert_eq!(with.all(), made + without.all(), "opens are missing, or were counted twice");
        assert!(skipped > 0, "nothing was skipped: is the kernel booted with preempt=full?");
    }
    println!("test result: ok. 2 passed; 0 failed (every open is received or counted)");
}
