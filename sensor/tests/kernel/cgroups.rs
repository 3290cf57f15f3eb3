//! What the kernel need not look at: cgroups of which no policy speaks, unless somebody may be in there who came from a container;
//! and opens, while no policy wants any.
use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use aya::util::KernelVersion;
use sensor::{
    capture::{Filter, Mode},
    event::Event,
    keys::Keys,
};
use sensor_ebpf::table::{HOST, Wants};

use crate::watch::{Watch, block, hierarchy, in_modes};

/// Not a test of its own: opens a file so many times, in a process that a test has put into a cgroup, after it has gone to
/// other cgroups itself.
#[test]
#[ignore = "run by other tests, with a file"]
fn opens() {
    let Some(file) = std::env::var_os("OPENS_FILE") else { return };
    let count = std::env::var("OPENS").unwrap().parse().unwrap();
    for cgroup in std::env::var("OPENS_IN").unwrap().split_terminator(':') {
        match cgroup.strip_prefix('+') {
            Some(child) => return attack::open_by_child_in(Path::new(child), Path::new(&file)).unwrap(),
            None => fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap(),
        }
    }
    (0..count).for_each(|_: u64| drop(File::open(&file).unwrap()));
}

/// A cgroup that is removed with this.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn make(name: &str) -> Self {
        let directory = hierarchy().root.join(format!("pathwatch-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    pub(crate) fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }

    /// A process that is put in here, as a runtime does it, then goes the `way` and opens `file`.
    pub(crate) fn open(&self, file: &Path, count: u64, way: &[String]) -> Child {
        let procs = self.0.join("cgroup.procs");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "cgroups::opens", "--ignored"])
            .env("OPENS_FILE", file)
            .env("OPENS", count.to_string())
            .env("OPENS_IN", way.join(":"));
        // SAFETY: between fork and exec it opens a file and writes to it, which are system calls.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        command.stdout(Stdio::null()).spawn().unwrap()
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

/// The id of the cgroup that this process is in.
fn own() -> u64 {
    let (hierarchy, table) = (hierarchy(), fs::read("/proc/self/cgroup").unwrap());
    let path = String::from_utf8(hierarchy.path_in(&table).unwrap().to_vec()).unwrap();
    fs::metadata(hierarchy.root.join(path.trim_start_matches('/'))).unwrap().ino()
}

/// Ways into a cgroup of which no policy speaks, and whether who came by it is to be seen there.
const WAYS: [(&str, &[&str], bool); 6] = [
    ("put there by the runtime", &["none"], false),
    ("from the host", &["host", "none"], false),
    ("from a container", &["container", "none"], true),
    ("from a container by way of the host", &["container", "host", "none"], true),
    ("from nobody knows where", &["unknown", "none"], true),
    ("made there by who is in a container", &["container", "+none"], true),
];

#[test]
fn who_comes_from_a_container_is_seen_where_no_policy_looks() {
    in_modes(|mode, directory| {
        if mode != Mode::Fexit {
            println!("{mode:?}: everything is reported in this mode");
            return;
        }
        let (watch, mut filter) = Watch::filtered(mode);
        filter.set(&Keys { wants: EVERYTHING, ..Keys::default() }).unwrap();
        let mut tried = Vec::new();
        let seen = block(watch.during(|| {
            for (number, (what, way, is_seen)) in WAYS.into_iter().enumerate() {
                for again in [false, true] {
                    let file = directory.join(format!("file{number}-{again}"));
                    fs::write(&file, "").unwrap();
                    go(way, &file, again, &mut filter);
                    tried.push((what, file, again, is_seen));
                }
            }
        }));
        for (what, file, again, is_seen) in tried {
            let path = file.to_str().unwrap().as_bytes();
            let is_it = |event: &&Event| {
                event.result == 0 && event.best_path().is_some_and(|found| found.as_bytes() == path)
            };
            let opens = seen.others.iter().filter(is_it).count();
            println!("{what}, again {again}: {opens} seen");
            assert_eq!(opens > 0, is_seen, "{what}, again {again}");
        }
    });
}

/// Everything, but of a cgroup of which something else is said.
const EVERYTHING: Wants = Wants { audience: 1, ..Wants::EVERYTHING };

/// Has somebody go that way, and open `file` there; or go twice, and what is said of the cgroup is said again in between.
fn go(way: &[&str], file: &Path, again: bool, filter: &mut Filter) {
    let cgroups: HashMap<&str, Cgroup> =
        ["host", "container", "unknown", "none"].map(|name| (name, Cgroup::make(name))).into();
    let host = Wants { flags: HOST, ..EVERYTHING };
    let wanted = [
        (own(), host),
        (cgroups["host"].id(), host),
        (cgroups["container"].id(), EVERYTHING),
        (cgroups["none"].id(), Wants::default()),
    ];
    let place = |name: &&str| match name.strip_prefix('+') {
        Some(name) => format!("+{}", cgroups[name].0.display()),
        None => cgroups[*name].0.display().to_string(),
    };
    let places: Vec<String> = way[1..].iter().map(place).collect();
    for _ in 0..=u8::from(again) {
        filter.set_cgroups(&wanted).unwrap();
        assert!(cgroups[way[0]].open(file, 1, &places).wait().unwrap().success());
    }
}

/// How many programs of these names are attached, of anybody.
fn attached(names: &[&str]) -> usize {
    let programs = aya::programs::loaded_programs().map(Result::unwrap);
    let ids: Vec<u32> = programs
        .filter(|program| program.name_as_str().is_some_and(|name| names.contains(&name)))
        .map(|program| program.id())
        .collect();
    aya::programs::loaded_links().filter(|link| ids.contains(&link.as_ref().unwrap().program_id())).count()
}

#[test]
fn what_nobody_wants_costs_nothing_and_is_seen_again_once_it_is_wanted() {
    in_modes(|mode, directory| {
        const PROGRAMS: [&str; 2] = ["do_filp_open", "sys_exit"];
        let file = directory.join("file");
        fs::write(&file, "").unwrap();
        let (watch, mut filter) = Watch::filtered(mode);
        let others = attached(&PROGRAMS) - 1;
        // An older kernel attaches such a program only once: then it stays, and its filter stops everything.
        let stays = mode == Mode::Fexit && KernelVersion::current().unwrap() < KernelVersion::new(5, 13, 0);
        let nothing = Keys::default();
        let seen = block(watch.during(|| {
            for round in 0..10 {
                filter.set(&nothing).unwrap();
                assert_eq!(attached(&PROGRAMS), others + usize::from(stays), "{mode:?}, round {round}");
                File::open(&file).unwrap();
                filter.set(&Keys { wants: EVERYTHING, ..Keys::default() }).unwrap();
                assert_eq!(attached(&PROGRAMS), others + 1, "{mode:?}, round {round}");
                File::open(&file).unwrap();
            }
        }));
        assert_eq!(seen.below(directory).len(), 10, "{mode:?}");
    });
}
