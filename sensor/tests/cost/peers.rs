//! What others cost an open, those that Debian packages and Pathwatch's own release: with all that their user side does of it,
//! until it has nothing to do any more. All of them write what they find to where it costs least.
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{BASE, at, open_one, watched_path};

/// Where `e2e/cost.sh` puts the release.
const RELEASE: &str = "/pathwatch";
/// Opens of one measurement: so many that what a peer does by the clock is little of it, and so few that none of them loses any;
/// and how many measurements there are: the smallest is taken.
const OPENS: u32 = 2000;
const ROUNDS: usize = 5;
/// What a peer may do while it is idle, for each of the opens.
const IDLE: u64 = 100;
/// How long what is waited for may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "timed out: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Nanoseconds that the threads of a process have run, as the scheduler counts them.
fn ran(process: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
    tasks.map(of_task).filter_map(|text| text.split(' ').next().and_then(|ran| ran.parse::<u64>().ok())).sum()
}

/// The same of several, once they have nothing to do.
fn ran_all(processes: &[u32]) -> u64 {
    let sum = || processes.iter().map(|process| ran(*process)).sum::<u64>();
    let mut before = sum();
    wait_until("peers are idle", || {
        // Longer than any of them lets what it has found lie.
        thread::sleep(Duration::from_millis(150));
        let now = sum();
        let idle = now - before < u64::from(OPENS) * IDLE;
        before = now;
        idle
    });
    before
}

/// Instructions of one openat(2) and close(2), and what processes do because of it.
pub(crate) fn all_in(path: &Path, processes: &[u32]) -> f64 {
    let own = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    let round = || {
        let (others, began) = (ran_all(processes), own());
        (0..OPENS).for_each(|_| open_one(path));
        let took = own() - began;
        (took + ran_all(processes) - others) as f64 / f64::from(OPENS)
    };
    round();
    (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min)
}

/// The same by a process of its own: the kernel audits none that was there before it began to.
fn measure(path: &Path, processes: &[u32]) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("all-in").arg(path).args(processes.iter().map(u32::to_string));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.trim().parse().unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// A peer that runs; it is ended when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Peer {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

/// Runs a command, which must succeed.
fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn unwatched() -> PathBuf {
    at(3, "file")
}

fn watched() -> PathBuf {
    at(3, "watched")
}

/// Prints what each peer costs.
pub(crate) fn measure_all() {
    let base = measure(&unwatched(), &[]);
    let say = |row: &str, path: &Path, processes: &[u32]| {
        let cost = measure(path, processes);
        println!("PEER\t{row}\t{cost:.0}\t{:+.0}", cost - base);
    };
    println!("PEER\tnothing\t{base:.0}\t+0");
    pathwatch(&say);
    opensnoop(&say);
    fatrace(&say);
    auditd(&say);
}

fn pathwatch(say: &dyn Fn(&str, &Path, &[u32])) {
    fs::create_dir_all("/tmp/policies").unwrap();
    // Another file of the name is watched elsewhere: what happens up to the decision that nobody wants this one.
    let policy = crate::policies(1000, &["/var/cost/watched", "/nowhere/passed"]);
    fs::write("/tmp/policies/p.yaml", policy).unwrap();
    // Folding repeats into summaries, as it is installed; then each alert told, as on a terminal.
    let sinks =
        [[("SINK", "file"), ("FILE__PATH", "/tmp/alerts"), ("STATE_DIR", "/tmp")], [("SINK", "stdout"); 3]];
    let rows = [
        vec![
            ("unwatched", unwatched()),
            ("unwatched, but of a watched name: up to the decision", at(3, "passed")),
            ("watched, repeats of an alert", watched()),
        ],
        vec![("watched, each an alert", watched())],
    ];
    for (sink, rows) in sinks.iter().zip(rows) {
        let log = fs::File::create("/tmp/pathwatch.log").unwrap();
        let mut command = Command::new(RELEASE);
        command.args(["run", "--policies", "/tmp/policies"]).stdout(Stdio::null()).stderr(log);
        // It costs once, at the start.
        command.env("PATHWATCH__CAPTURE__SELF_TEST", "false");
        command.envs(sink.map(|(name, value)| (format!("PATHWATCH__SHIP__{name}"), value)));
        let peer = Peer::start(&mut command);
        let log = || fs::read_to_string("/tmp/pathwatch.log").unwrap_or_default();
        wait_until("pathwatch is attached", || log().contains("capture is attached"));
        for (row, path) in rows {
            say(&format!("pathwatch, 1000 paths, {row}"), &path, &[peer.0.id()]);
        }
    }
}

fn opensnoop(say: &dyn Fn(&str, &Path, &[u32])) {
    for (row, arguments) in [
        ("opensnoop, another user's (in the kernel)", &["-u", "54321"][..]),
        ("opensnoop, another program's (in user space)", &["-n", "nobody"]),
        ("opensnoop, told", &[]),
    ] {
        // The kernel frees programs some time after they are let go.
        wait_until("the programs of others are gone", || aya::programs::loaded_programs().count() == 0);
        let mut command = Command::new("/usr/sbin/opensnoop");
        // Else it looks for the time zone at every line, and tells of that.
        let peer = Peer::start(command.args(arguments).env("TZ", "UTC0").stdout(Stdio::null()));
        wait_until("opensnoop has its programs", || aya::programs::loaded_programs().count() >= 2);
        say(row, &unwatched(), &[peer.0.id()]);
    }
}

fn fatrace(say: &dyn Fn(&str, &Path, &[u32])) {
    for (row, on) in [("fatrace, another mount", "/tmp"), ("fatrace, this mount", BASE)] {
        let mut command = Command::new("/usr/sbin/fatrace");
        let peer = Peer::start(command.args(["-f", "O", "-c"]).current_dir(on).stdout(Stdio::null()));
        let marks = || {
            let files = fs::read_dir(format!("/proc/{}/fdinfo", peer.0.id())).unwrap().flatten();
            files.filter_map(|file| fs::read_to_string(file.path()).ok()).any(|text| text.contains(" mask:"))
        };
        wait_until("fatrace has marked its mount", marks);
        say(row, &unwatched(), &[peer.0.id()]);
    }
}

fn auditd(say: &dyn Fn(&str, &Path, &[u32])) {
    ["/var/log/audit", "/run", "/var/run"].iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    let peer = Peer::start(Command::new("/sbin/auditd").arg("-n").stdout(Stdio::null()));
    let status = || {
        let mut text = String::new();
        let mut asked = Command::new("/sbin/auditctl").arg("-s").stdout(Stdio::piped()).spawn().unwrap();
        asked.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        asked.wait().unwrap();
        text
    };
    wait_until("auditd is the kernel's", || status().contains(&format!("pid {}", peer.0.id())));
    run("/sbin/auditctl -e 1");
    // As Debian's rules have it.
    run("/sbin/auditctl -b 8192");
    let kernel = kernel_thread("kauditd");
    let processes = [peer.0.id(), kernel];
    for watches in [0, 1, 100, 1000] {
        let rules = (0..watches).map(watched_path).map(|path| format!("-w {path} -p rwa\n"));
        let rules: String = ["-D\n".to_owned()].into_iter().chain(rules).collect();
        (0..watches).for_each(|n| fs::create_dir_all(Path::new(&watched_path(n)).parent().unwrap()).unwrap());
        fs::write("/tmp/rules", rules).unwrap();
        run("/sbin/auditctl -R /tmp/rules");
        say(&format!("auditd, {watches} watches, unwatched"), &unwatched(), &processes);
    }
    run(&format!("/sbin/auditctl -w {} -p rwa", watched().display()));
    say("auditd, 1001 watches, watched", &watched(), &processes);
}

/// The id of a thread of the kernel.
fn kernel_thread(name: &str) -> u32 {
    let mut ids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |id: &u32| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.trim() == name);
    ids.find(is_it).unwrap()
}
