//! What watching costs an open: instructions of one openat(2) and close(2), counted by an emulator that makes one
//! instruction one nanosecond (`e2e/cost.sh`).
//!
//! With `report OUT LOG...` it makes docs/performance.md of what guests have printed, with `verify` it only says what the
//! verifier does.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what it says is its result")]
#[path = "../common/bpf.rs"]
mod bpf;
#[path = "../common/mounted.rs"]
mod mounted;
mod peers;
mod report;
mod verified;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use rustix::{
    fs::{Mode as Perm, OFlags},
    mount::{MountFlags, MountPropagationFlags},
};
use sensor::{
    capture::{Capture, Config, Filter, Mode},
    hierarchy::Hierarchy,
    keys::Keys,
    matcher::run_examples,
    notice::Notices,
    policy::Directory,
};
use sensor_ebpf::table::Wants;

/// Opens of one measurement, and how many of those there are: the smallest is taken.
const OPENS: u32 = 500;
const ROUNDS: usize = 7;
/// Where things are, and how deep below it.
const BASE: &str = "/var/cost";
/// The same on a mount of its own, as volumes are.
const MOUNTED: &str = "/tmp/cost";
const DEPTHS: [usize; 3] = [3, 8, 12];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("report") => report::write(Path::new(&arguments[1]), &arguments[2..]),
        Some("inside") => inside(),
        Some("all-in") => {
            let processes: Vec<u32> = arguments[2..].iter().map(|id| id.parse().unwrap()).collect();
            println!("{}", peers::all_in(Path::new(&arguments[1]), &processes));
        }
        Some("load") => {
            verified::make_room();
            drop(in_runtime(load));
        }
        Some("verify") => verify(),
        _ if std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none() => {
            println!("not run: only an emulator counts instructions; type e2e/cost.sh");
        }
        _ => measure_all(),
    }
}

/// By openat(2), as the C library does it: opensnoop does not look at open(2) where debugfs is not mounted.
fn open_one(path: &Path) {
    drop(rustix::fs::openat(rustix::fs::CWD, path, OFlags::RDONLY, Perm::empty()).unwrap());
}

/// One that fails.
fn miss_one(path: &Path) {
    rustix::fs::openat(rustix::fs::CWD, path, OFlags::RDONLY, Perm::empty()).unwrap_err();
}

/// Instructions of one openat(2) and close(2).
fn cost(path: &Path) -> f64 {
    cost_of(|| open_one(path))
}

fn cost_of(open: impl Fn()) -> f64 {
    let round = || {
        let began = Instant::now();
        (0..OPENS).for_each(|_| open());
        began.elapsed().as_nanos() as f64 / f64::from(OPENS)
    };
    // What is done for the first time is no measure.
    round();
    (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min)
}

/// `BASE/1/2/.../name`, so that the file is the `depth`th component.
fn at(depth: usize, name: &str) -> PathBuf {
    let mut path = PathBuf::from(BASE);
    (0..depth - 3).for_each(|level| path.push(format!("d{level}")));
    path.join(name)
}

/// One of the many that are watched.
fn watched_path(number: usize) -> String {
    format!("/srv/app{}/conf/secret{number}.key", number % 97)
}

/// Policies that watch so many paths, beside `also`.
fn policies(paths: usize, also: &[&str]) -> String {
    let paths: Vec<String> =
        (0..paths).map(watched_path).chain(also.iter().map(|path| (*path).to_owned())).collect();
    let documents = paths.chunks(500).enumerate().map(|(number, paths)| {
        let policy = serde_json::json!({
            "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy",
            "metadata": {"name": format!("p{number}")},
            "spec": {"subjects": "all", "paths": paths, "results": ["success", "denied", "missing", "error"]},
        });
        format!("---\n{policy}\n")
    });
    documents.collect()
}

/// The keys of those.
fn keys(paths: usize, also: &[&str]) -> Keys {
    let loaded = Directory::read_text(policies(paths, also).as_bytes(), run_examples);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics.first());
    loaded.set.keys(&mounted::known())
}

fn say(row: &str, cost: f64, base: f64) {
    println!("COST\t{row}\t{cost:.0}\t{:+.0}", cost - base);
}

/// Loads and attaches everything; what it sees is never read.
fn load() -> (Capture, impl Sized) {
    let config = Config { mode: Mode::Fexit, skip_self: false, ..Config::default() };
    let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
    Capture::new(&config, &hierarchy, std::sync::Arc::default(), Notices::default()).unwrap()
}

/// What the verifier says of the programs.
fn verify() {
    let mut loading = Command::new(std::env::current_exe().unwrap());
    loading.arg("load");
    verified::say_of(loading);
}

fn measure_all() {
    verify();
    for depth in DEPTHS {
        let file = at(depth, "file");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        ["watched", "passed"].iter().for_each(|name| fs::write(at(depth, name), "").unwrap());
    }
    fs::create_dir_all(MOUNTED).unwrap();
    ["file", "watched"].iter().for_each(|name| fs::write(Path::new(MOUNTED).join(name), "").unwrap());
    let overlay = make_overlay();
    let base: Vec<f64> = DEPTHS.iter().map(|depth| cost(&at(*depth, "file"))).collect();
    for (depth, base) in DEPTHS.iter().zip(&base) {
        say(&format!("nothing, {depth} deep"), *base, *base);
    }
    let base_inside = in_overlay(&overlay);
    say("nothing, in an overlay root", base_inside, base_inside);
    for (row, function, place) in [
        ("an empty program at the entry of security_file_open", "security_file_open", bpf::At::Entry),
        ("an empty program at the return of do_filp_open", "do_filp_open", bpf::At::Return),
    ] {
        let _attached = bpf::attach(function, place);
        say(&format!("{row}, 3 deep"), cost(&at(3, "file")), base[0]);
        say(&format!("{row}, in an overlay root"), in_overlay(&overlay), base_inside);
    }
    in_runtime(|| measure_pathwatch(&base, base_inside, &overlay));
    peers::measure_all();
}

fn in_runtime<T>(what: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    what()
}

/// Costs of the kernel side, with these of opens without it.
fn measure_pathwatch(base: &[f64], base_inside: f64, overlay: &Path) {
    let base_mounted = cost(&Path::new(MOUNTED).join("file"));
    let missing = || cost_of(|| miss_one(&at(3, "no-such-file")));
    let base_missing = missing();
    let (mut capture, _observations) = load();
    let mut filter = capture.take_filter().unwrap();
    for paths in [0, 10, 100, 1000, 10_000] {
        filter.set(&keys(paths, &[])).unwrap();
        for (depth, base) in DEPTHS.iter().zip(base) {
            say(&format!("miss, {paths} paths, {depth} deep"), cost(&at(*depth, "file")), *base);
        }
        say(&format!("miss, {paths} paths, in an overlay root"), in_overlay(overlay), base_inside);
    }
    for (also, row) in [(&[][..], "by names of files"), (&["/srv/x/**"], "by the name of a directory, too")] {
        filter.set(&keys(1000, also)).unwrap();
        say(&format!("failed, 1000 paths and failures wanted {row}, 3 deep"), missing(), base_missing);
    }
    filter.set(&keys(1000, &[])).unwrap();
    for (row, wants) in [
        ("miss, 1000 paths, a cgroup of which all policies speak", Wants { audience: 1, ..keys(1000, &[]).wants }),
        ("miss, 1000 paths, a cgroup of which none speaks", Wants::default()),
    ] {
        filter.set_cgroups(&[(own_cgroup(), wants)]).unwrap();
        say(row, cost(&at(3, "file")), base[0]);
    }
    filter.set_cgroups(&[]).unwrap();
    first_after_a_change(&mut filter, base[0]);
    filter.set(&keys(1000, &["/**/watched"])).unwrap();
    say("miss, a name in any directory", cost(&at(8, "file")), base[1]);
    for (depth, base) in DEPTHS.iter().zip(base) {
        say(&format!("hit, {depth} deep"), cost(&at(*depth, "watched")), *base);
    }
    let mounted = Path::new(MOUNTED);
    say("hit, 3 deep, on a mount of its own", cost(&mounted.join("watched")), base_mounted);
}

/// The id of the cgroup that this is in: the root's, in a guest with nothing in it.
fn own_cgroup() -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata("/sys/fs/cgroup").unwrap())
}

/// The first open in a directory after another was moved, of which all that is remembered is over.
fn first_after_a_change(filter: &mut Filter, base: f64) {
    filter.set(&keys(1000, &[])).unwrap();
    fs::create_dir_all("/tmp/moved/a").unwrap();
    let file = at(3, "file");
    let mut least = f64::MAX;
    for _ in 0..ROUNDS * 10 {
        fs::rename("/tmp/moved/a", "/tmp/moved/b").unwrap();
        fs::rename("/tmp/moved/b", "/tmp/moved/a").unwrap();
        let began = Instant::now();
        drop(rustix::fs::open(&file, OFlags::RDONLY, Perm::empty()).unwrap());
        least = least.min(began.elapsed().as_nanos() as f64);
    }
    say("miss, the first after a directory was moved", least, base);
}

/// An overlay of what is needed to measure in it.
fn make_overlay() -> PathBuf {
    let root = PathBuf::from("/tmp/overlay");
    for name in ["lower/tmp/cost", "lower/proc", "lower/old", "upper", "work", "root"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("lower/tmp/cost/file"), "").unwrap();
    fs::copy(std::env::current_exe().unwrap(), root.join("lower/cost")).unwrap();
    let layers = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", root.display());
    let layers = std::ffi::CString::new(layers.as_bytes()).unwrap();
    rustix::mount::mount("overlay", root.join("root"), "overlay", MountFlags::empty(), Some(layers.as_c_str()))
        .unwrap();
    root.join("root")
}

/// The same in a mount namespace of which the overlay is the root, as containers have it.
fn in_overlay(root: &Path) -> f64 {
    let output = Command::new(std::env::current_exe().unwrap()).arg("inside").arg(root).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.trim().parse().unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

fn inside() {
    let root = PathBuf::from(std::env::args_os().nth(2).unwrap());
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    std::env::set_current_dir(&root).unwrap();
    rustix::process::pivot_root(".", "old").unwrap();
    std::env::set_current_dir("/").unwrap();
    rustix::mount::unmount("/old", rustix::mount::UnmountFlags::DETACH).unwrap();
    println!("{}", cost(Path::new("/tmp/cost/file")));
}
