//! The main job on this machine: a real process opens a real file, and the sensor says so. Needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures belong in the log")]
mod common;
#[path = "common/moved.rs"]
mod moved;
#[path = "common/running.rs"]
mod running;
#[path = "common/schema.rs"]
mod schema;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{pathwatch, root};
use running::{PATIENCE, Sensor, total};
use sensor::hierarchy::Hierarchy;

#[test]
fn cat_of_the_shadow_file_is_one_alert_within_a_second() {
    let sensor = Sensor::start(pathwatch().arg("run").current_dir(root()));
    let began = Instant::now();
    let mut cat = Command::new("cat").arg("/etc/shadow").stdout(Stdio::null()).spawn().unwrap();
    let alert = sensor.lines.recv_timeout(PATIENCE).unwrap();
    let took = began.elapsed();
    println!("alert after {took:?}");
    assert!(took < Duration::from_secs(1));
    assert_eq!(alert["file"]["path"], "/etc/shadow");
    assert_eq!(alert["process"]["pid"], cat.id());
    assert_eq!(alert["process"]["name"], "cat");
    assert_eq!(alert["rule"]["name"], "shadow-read");
    assert_eq!(alert["event"]["sequence"], 1);
    assert_eq!(alert["host"]["name"], rustix::system::uname().nodename().to_str().unwrap());
    cat.wait().unwrap();
    let (more, log) = sensor.stop();
    // Others on this machine may have touched what is watched, this cat only once.
    assert!(more.iter().all(|other| other["process"]["pid"] != alert["process"]["pid"]), "{more:#?}");
    assert_eq!((total(&log, "fired"), total(&log, "opens_lost")), (total(&log, "shipped"), 0));
    assert_eq!(total(&log, "captured"), total(&log, "matched") + total(&log, "unmatched"));
}

#[test]
fn of_an_opener_whose_cgroup_is_not_to_be_had_the_alert_says_so() {
    // A part of the hierarchy, in which this process is not.
    let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
    let part = hierarchy.root.join(format!("pathwatch-test-{}", std::process::id()));
    fs::create_dir(&part).unwrap();
    let mut command = pathwatch();
    let sensor = Sensor::start(command.arg("run").current_dir(root()).env("PATHWATCH__ENRICH__CGROUPS", &part));
    drop(File::open("/etc/shadow").unwrap());
    let own = |alert: &serde_json::Value| alert["process"]["pid"] == std::process::id();
    let alert = std::iter::repeat_with(|| sensor.lines.recv_timeout(PATIENCE).unwrap()).find(own).unwrap();
    assert_eq!(alert["pathwatch"]["missing"], serde_json::json!(["cgroup"]));
    assert_eq!(alert["pathwatch"]["enrichment"], "partial");
    let (_, log) = sensor.stop();
    assert!(total(&log, "missing_cgroup") > 0, "{log}");
    fs::remove_dir(&part).unwrap();
}

#[test]
fn trace_shows_each_of_ten_thousand_opens_once_with_pid_command_and_whole_path() {
    const OPENS: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    // Every tenth path is 3,000 bytes long: twelve directories with long names, and the rest in the file's.
    let mut deep = dir.clone();
    while deep.as_os_str().len() < 2750 {
        deep.push("d".repeat(220));
    }
    fs::create_dir_all(&deep).unwrap();
    let paths: Vec<_> = (0..OPENS)
        .map(|n| {
            if n % 10 != 0 {
                return dir.join(format!("f{n}"));
            }
            let room = 3000 - deep.as_os_str().len() - 1;
            deep.join(format!("{n:0>room$}"))
        })
        .collect();
    paths.iter().for_each(|path| drop(File::create(path).unwrap()));

    let glob = format!("{}/**", dir.display());
    let sensor = Sensor::start(pathwatch().args(["trace", "--json", &glob]));
    // A process of its own: the sensor under test must tell it from this one.
    let opener = std::thread::Builder::new().name("opener".to_owned()).spawn({
        let paths = paths.clone();
        move || paths.iter().for_each(|path| drop(File::open(path).unwrap()))
    });
    opener.unwrap().join().unwrap();
    let (events, log) = sensor.stop();

    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &events {
        assert_eq!(event["pid"], std::process::id());
        assert_eq!(event["comm"], "opener");
        *seen.entry(event["path"].as_str().unwrap()).or_default() += 1;
    }
    println!("{} events, {} lost", events.len(), total(&log, "opens_lost"));
    assert_eq!(total(&log, "opens_lost"), 0);
    let expected: BTreeMap<&str, usize> = paths.iter().map(|path| (path.to_str().unwrap(), 1)).collect();
    assert_eq!(expected.keys().filter(|path| path.len() == 3000).count(), OPENS / 10);
    assert!(
        seen == expected,
        "{:?}",
        seen.keys().collect::<BTreeSet<_>>().symmetric_difference(&expected.keys().collect()).next()
    );
}

#[test]
fn a_recording_of_trace_is_what_replay_reads() {
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("opens.jsonl");
    let sensor = Sensor::start(pathwatch().args(["trace", "--json", "/etc/shadow", "--record"]).arg(&recording));
    drop(File::open("/etc/shadow").unwrap());
    sensor.lines.recv_timeout(PATIENCE).unwrap();
    sensor.stop();
    let out = pathwatch().arg("replay").arg(&recording).current_dir(root()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let alert: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&alert["file"]["path"], &alert["process"]["pid"]),
        (&"/etc/shadow".into(), &std::process::id().into())
    );
    let executable = std::env::current_exe().unwrap();
    assert_eq!(alert["process"]["executable"], executable.to_str().unwrap());
    assert_eq!(alert["pathwatch"]["enrichment"], "complete");
}

#[test]
fn a_running_sensor_takes_new_policies_and_keeps_good_ones_when_they_break() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().canonicalize().unwrap();
    fs::create_dir(at.join("policies")).unwrap();
    for name in ["one", "two"] {
        fs::write(at.join(name), "").unwrap();
    }
    let file = at.join("policies/p.yaml");
    let policy = |watched: &str| {
        format!(
            "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: p}}\nspec: {{subjects: all, paths: [{}/{watched}]}}\n",
            at.display()
        )
    };
    // As an editor saves: written aside and renamed.
    let save = |text: &str| {
        fs::write(at.join("new"), text).unwrap();
        fs::rename(at.join("new"), &file).unwrap();
    };
    save(&policy("one"));
    let mut sensor = Sensor::start(pathwatch().args(["run", "--policies", "policies"]).current_dir(&at));
    let alerted = |sensor: &Sensor, name: &str| {
        drop(File::open(at.join(name)).unwrap());
        let alert = sensor.lines.recv_timeout(PATIENCE).unwrap();
        assert_eq!(alert["file"]["name"], name);
        alert["pathwatch"]["policy"]["version"].clone()
    };
    let version = alerted(&sensor, "one");
    save("spec: [");
    sensor.wait_for_log("the last good version of this policy stays in force");
    assert_eq!(alerted(&sensor, "one"), version);
    save(&policy("two"));
    let began = Instant::now();
    while sensor.lines.try_recv().is_err() {
        assert!(began.elapsed() < PATIENCE);
        drop(File::open(at.join("two")).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (rest, log) = sensor.stop();
    assert!(
        rest.iter()
            .all(|alert| alert["file"]["name"] == "two" && alert["pathwatch"]["policy"]["version"] != version)
    );
    assert_eq!((total(&log, "policies"), total(&log, "policies_stale"), total(&log, "policy_errors")), (1, 0, 0));
}

#[test]
fn a_kernel_without_type_information_is_1_with_what_it_needs() {
    // In a mount namespace of its own, where nothing of this machine's is changed.
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" run";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", hide, env!("CARGO_BIN_EXE_pathwatch")]).current_dir(root());
    let out = command.output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    let want = "pathwatch: this kernel has no type information at /sys/kernel/btf/vmlinux: Pathwatch needs a kernel of 5.10 or later built with CONFIG_DEBUG_INFO_BTF=y, as all current distributions' are";
    assert_eq!(said.lines().last(), Some(want));
}

/// What a sensor serves at `path`.
fn served(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: sensor\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A setting of this machine's kernel, as it was before when it is dropped.
struct Setting(&'static str, String);

impl Setting {
    fn set(file: &'static str, value: &str) -> Self {
        let before = fs::read_to_string(file).unwrap();
        fs::write(file, value).unwrap();
        Self(file, before)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).unwrap();
    }
}

#[test]
fn what_programs_cost_is_measured_where_the_kernel_does() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = pathwatch();
    command.arg("run").current_dir(root()).env("PATHWATCH__HTTP__LISTEN", format!("127.0.0.1:{port}"));
    let mut sensor = Sensor::start(&mut command);
    sensor.wait_for_log("metrics and health are served");
    let seconds = || -> f64 {
        let page = served(port, "/metrics").unwrap();
        let lines = page.lines().filter(|line| line.starts_with("pathwatch_capture_program_seconds_total{"));
        let values: Vec<f64> = lines.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
        assert!(values.len() > 3, "{page}");
        values.iter().sum()
    };
    let measured = Setting::set("/proc/sys/kernel/bpf_stats_enabled", "1");
    let began = Instant::now();
    while seconds() == 0.0 {
        assert!(began.elapsed() < PATIENCE, "no program has cost anything");
        drop(File::open("/etc/hostname"));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("programs have run for {} s", seconds());
    drop(measured);
    sensor.stop();
}

#[test]
fn a_reader_that_leaves_ends_the_sensor_in_peace() {
    for command in [&["run", "--policies", "policies"][..], &["trace", "--json", "/no/such/file"]] {
        let sensor =
            pathwatch().args(command).current_dir(root()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut sensor = sensor.unwrap();
        drop(sensor.stdout.take());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = sensor.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "{command:?} did not notice");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}");
    }
}
