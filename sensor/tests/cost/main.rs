//! What watching costs an open: instructions of one openat(2) and close(2), counted by an emulator that makes one
//! instruction one nanosecond (`e2e/cost.sh`).
//!
//! With `table OUT LOG...` it makes docs/performance.md of what guests have printed.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what it says is its result")]
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
    keys::{Keys, Known, Mounted},
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
        Some("table") => table(Path::new(&arguments[1]), &arguments[2..]),
        Some("inside") => inside(),
        _ if std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none() => {
            println!("not run: only an emulator counts instructions; type e2e/cost.sh");
        }
        _ => measure_all(),
    }
}

/// Instructions of one openat(2) and close(2).
fn cost(path: &Path) -> f64 {
    let one = || drop(rustix::fs::open(path, OFlags::RDONLY, Perm::empty()).unwrap());
    let round = || {
        let began = Instant::now();
        (0..OPENS).for_each(|_| one());
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

/// Keys of a policy that watches so many paths, beside `also`.
fn keys(paths: usize, also: &[&str]) -> Keys {
    let paths = (0..paths).map(|n| format!("/srv/app{}/conf/secret{n}.key", n % 97));
    let paths: Vec<String> = paths.chain(also.iter().map(|path| (*path).to_owned())).collect();
    let documents = paths.chunks(500).enumerate().map(|(number, paths)| {
        let policy = serde_json::json!({
            "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy",
            "metadata": {"name": format!("p{number}")},
            "spec": {"subjects": "all", "paths": paths, "results": ["success", "denied", "missing", "error"]},
        });
        format!("---\n{policy}\n")
    });
    let text: String = documents.collect();
    let loaded = Directory::read_text(text.as_bytes(), run_examples);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics.first());
    loaded.set.keys(&known())
}

/// The mounts of this namespace.
fn known() -> Known {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (major, minor) = words[2].split_once(':').unwrap();
        let device = major.parse::<u32>().unwrap() << 20 | minor.parse::<u32>().unwrap();
        Mounted { device, part: words[3].as_bytes().to_vec(), at: words[4].as_bytes().to_vec() }
    };
    let mut mounts: Vec<Mounted> = text.lines().map(of_line).collect();
    mounts.sort_unstable();
    mounts.dedup();
    Known { mounts, links: Vec::new() }
}

fn say(row: &str, cost: f64, base: f64) {
    println!("COST\t{row}\t{cost:.0}\t{:+.0}", cost - base);
}

fn measure_all() {
    for depth in DEPTHS {
        let file = at(depth, "file");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        fs::write(at(depth, "watched"), "").unwrap();
    }
    fs::create_dir_all(MOUNTED).unwrap();
    ["file", "watched"].iter().for_each(|name| fs::write(Path::new(MOUNTED).join(name), "").unwrap());
    let overlay = make_overlay();
    let base_mounted = cost(&Path::new(MOUNTED).join("file"));
    let base: Vec<f64> = DEPTHS.iter().map(|depth| cost(&at(*depth, "file"))).collect();
    for (depth, base) in DEPTHS.iter().zip(&base) {
        say(&format!("nothing, {depth} deep"), *base, *base);
    }
    let base_inside = in_overlay(&overlay);
    say("nothing, in an overlay root", base_inside, base_inside);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let config = Config { mode: Mode::Fexit, skip_self: false, ..Config::default() };
    let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
    // It is never read: what the kernel side costs is what is measured.
    let (mut capture, _observations) =
        Capture::new(&config, &hierarchy, std::sync::Arc::default(), Notices::default()).unwrap();
    say_verified();
    let mut filter = capture.take_filter().unwrap();
    for paths in [0, 10, 100, 1000, 10_000] {
        filter.set(&keys(paths, &[])).unwrap();
        for (depth, base) in DEPTHS.iter().zip(&base) {
            say(&format!("miss, {paths} paths, {depth} deep"), cost(&at(*depth, "file")), *base);
        }
        say(&format!("miss, {paths} paths, in an overlay root"), in_overlay(&overlay), base_inside);
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
    for (depth, base) in DEPTHS.iter().zip(&base) {
        say(&format!("hit, {depth} deep"), cost(&at(*depth, "watched")), *base);
    }
    let mounted = Path::new(MOUNTED);
    say("hit, 3 deep, on a mount of its own", cost(&mounted.join("watched")), base_mounted);
}

/// The id of the cgroup that this is in: the root's, in a guest with nothing in it.
fn own_cgroup() -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata("/sys/fs/cgroup").unwrap())
}

/// How many instructions the verifier has followed in each program, of the million that it follows at most.
fn say_verified() {
    for program in aya::programs::loaded_programs() {
        let program = program.unwrap();
        let followed =
            program.verified_instruction_count().map_or("not told".to_owned(), |count| count.to_string());
        let name = program.name_as_str().unwrap_or_default();
        println!("VERIFIED\t{name}\t{}\t{followed}", program.size_translated().unwrap_or_default() / 8);
    }
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

/// docs/performance.md of what guests have printed.
fn table(out: &Path, logs: &[String]) {
    let mut text = String::from(
        "# What watching costs\n\nGenerated by `e2e/cost.sh`. Instructions of one openat(2) and close(2) in a guest whose \
         emulator counts them, and how many\nare added to those without a sensor. Rows *miss* are of opens that no policy wants; \
         *deep* is the number of components.\n",
    );
    for log in logs {
        let said = fs::read_to_string(log).unwrap();
        let kernel = said.lines().find_map(|line| line.split("uname -r: ").nth(1)).unwrap();
        text.push_str(&format!("\n## {kernel}\n\n| | instructions | added |\n| --- | ---: | ---: |\n"));
        for line in said.lines().filter_map(|line| line.strip_prefix("COST\t")) {
            text.push_str(&format!("| {} |\n", line.replace('\t', " | ")));
        }
        text.push_str(
            "\nWhat the verifier has followed of each program when it was loaded; it gives up at 1,000,000 instructions. The kernel \
             cuts\nnames at 15 bytes.\n\n| program | instructions | followed |\n| --- | ---: | ---: |\n",
        );
        let mut programs: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("VERIFIED\t")).collect();
        programs.sort_unstable();
        for line in programs {
            text.push_str(&format!("| {} |\n", line.replace('\t', " | ")));
        }
    }
    fs::write(out, text).unwrap();
}
