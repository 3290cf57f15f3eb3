//! A storm in one cgroup costs no other its records, and what it costs itself adds up.
use std::{fs, path::Path};

use sensor::{
    capture::Share,
    observation::{Observation, Refused},
};

use crate::{
    cgroups::Cgroup,
    watch::{Watch, block, in_modes},
};

const STORM: u64 = 20_000;
const QUIET: u64 = 50;

#[test]
fn a_storm_in_one_cgroup_costs_no_other_its_records() {
    in_modes(|mode, directory| {
        let files = ["storm", "quiet"].map(|name| directory.join(name));
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        let cgroups = ["storm", "quiet"].map(Cgroup::make);
        let ids = cgroups.each_ref().map(Cgroup::id);
        let watch = Watch::sharing(mode, Share { rate: 200, burst: 100 });
        let seen = block(watch.during(|| {
            let mut storm = cgroups[0].open(&files[0], STORM, &[]);
            let mut quiet = cgroups[1].open(&files[1], QUIET, &[]);
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
            let count = |observation: &Observation| {
                let Observation::Refused(Refused { cgroup_id, count }) = observation else { return 0 };
                if *cgroup_id == id { *count } else { 0 }
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
