//! A storm in one cgroup costs no other its records, and what it costs itself adds up.
use std::{
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use sensor::{
    capture::Share,
    observation::{Observation, Refused},
};

use crate::watch::{Watch, block, hierarchy, in_modes};

const STORM: u64 = 20_000;
const QUIET: u64 = 50;

/// Not a test of its own: opens a file so many times, in a process that a test has put into a cgroup.
#[test]
#[ignore = "run by a_storm_in_one_cgroup_costs_no_other_its_records, with a file"]
fn opens() {
    let Some(file) = std::env::var_os("OPENS_FILE") else { return };
    let count = std::env::var("OPENS").unwrap().parse().unwrap();
    (0..count).for_each(|_: u64| drop(File::open(&file).unwrap()));
}

/// A cgroup that is removed with this.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Self {
        let directory = hierarchy().root.join(format!("pathwatch-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }

    fn open(&self, file: &Path, count: u64) -> Child {
        let procs = self.0.join("cgroup.procs");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "share::opens", "--ignored"])
            .env("OPENS_FILE", file)
            .env("OPENS", count.to_string());
        // SAFETY: between fork and exec it opens a file and writes to it, which are system calls.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel may need a moment after the last process.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn a_storm_in_one_cgroup_costs_no_other_its_records() {
    in_modes(|mode, directory| {
        let files = ["storm", "quiet"].map(|name| directory.join(name));
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        let cgroups = ["storm", "quiet"].map(Cgroup::make);
        let ids = cgroups.each_ref().map(Cgroup::id);
        let watch = Watch::sharing(mode, Share { rate: 200, burst: 100 });
        let seen = block(watch.during(|| {
            let mut storm = cgroups[0].open(&files[0], STORM);
            let mut quiet = cgroups[1].open(&files[1], QUIET);
            assert!(storm.wait().unwrap().success() && quiet.wait().unwrap().success());
        }));
        let of = |file: &Path| {
            let path = file.to_str().unwrap().as_bytes();
            seen.others
                .iter()
                .filter(|event| event.best_path().is_some_and(|found| found.as_bytes() == path))
                .count() as u64
        };
        let told = |id| {
            let count = |observation: &Observation| match observation {
                Observation::Refused(Refused { cgroup_id, count }) if *cgroup_id == id => *count,
                _ => 0,
            };
            seen.processes.iter().map(count).sum::<u64>()
        };
        let [storm, quiet] = files.each_ref().map(|file| of(file));
        let [refused, nobodys] = [told(Some(ids[0])), told(None)];
        println!(
            "{mode:?}: of {STORM} opens {storm} received and {refused} refused; of {QUIET} beside them {quiet}; lost in all {}",
            seen.lost
        );
        assert_eq!((quiet, told(Some(ids[1])), nobodys), (QUIET, 0, 0));
        // The process has opened a few things more on its way.
        assert!((STORM..STORM + 100).contains(&(storm + refused)), "{storm} + {refused}");
        assert!(refused > STORM / 2, "no storm");
    });
}
