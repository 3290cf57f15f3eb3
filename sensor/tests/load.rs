//! The sensor under load for long: what it remembers stays flat, what it says stays right, and its memory within bounds.
//! Needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures belong in the log")]
#[path = "apiserver/cluster/mod.rs"]
mod cluster;
mod common;
#[path = "common/moved.rs"]
mod moved;
#[path = "common/pipeline.rs"]
mod pipeline;
#[path = "common/policies.rs"]
mod policies;
#[path = "common/running.rs"]
mod running;
#[path = "common/schema.rs"]
mod schema;

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cluster::{Cluster, NewPod};
use pipeline::{Cgroup, Pipeline, alone, wait_until};
use running::Sensor;
use serde_json::Value;

/// How long the load lasts.
fn seconds() -> Duration {
    Duration::from_secs(std::env::var("SOAK_SECONDS").map_or(20, |seconds| seconds.parse().unwrap()))
}

fn container_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Builds in `directory` again and again until there is a file `stop`: the compiler is a program that runs three others.
fn builds(directory: &Path) -> Command {
    let script = format!(
        "cd {0}; n=0; while ! [ -e stop ]; do n=$((n+1)); echo \"int main(void) {{ return $n; }}\" > $$.c; cc -o $$.out $$.c; ./$$.out; done; true",
        directory.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
    shell
}

/// What /proc said of a process while it was there.
struct Sample {
    parent: u32,
    container: Option<String>,
    sure: bool,
}

type Samples = HashMap<(u32, u64), Sample>;

/// Looks at all processes again and again. Only what is the same at two looks counts: one that is just being made, or ends,
/// is in the root's cgroup for a moment.
fn sample(stop: &AtomicBool) -> Samples {
    let hierarchy = sensor::hierarchy::Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
    let mut samples = Samples::new();
    while !stop.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Ok(table) = fs::read(format!("/proc/{pid}/cgroup")) else { continue };
            // One that ends has no program any more before it leaves its cgroup.
            if fs::read_link(format!("/proc/{pid}/exe")).is_err() {
                continue;
            }
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            let path = hierarchy
                .path_in(&table)
                .map(|path| String::from_utf8_lossy(path).into_owned())
                .unwrap_or_default();
            let container = path.split('/').find(|name| name.len() == 64).map(str::to_owned);
            let (key, parent) = ((pid, fields[19].parse().unwrap()), fields[1].parse().unwrap());
            match samples.get_mut(&key) {
                Some(sample) if sample.container == container => sample.sure = true,
                Some(sample) => *sample = Sample { parent, container, sure: false },
                None => drop(samples.insert(key, Sample { parent, container, sure: false })),
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    samples
}

fn live_processes() -> u64 {
    let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok())).count() as u64
}

#[test]
fn under_builds_the_tables_stay_flat_and_what_is_said_agrees_with_proc() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let pipeline = Pipeline::start(&alone(), "node", Arc::default(), &place);
    let ids = [(); 2].map(|()| container_id());
    let cgroups = ids.each_ref().map(|id| Cgroup::make(&format!("/kubepods/pod{}/{id}", uuid::Uuid::new_v4())));
    let mut children: Vec<Child> = cgroups.iter().map(|cgroup| cgroup.spawn(&mut builds(&place))).collect();
    children.push(builds(&place).spawn().unwrap());
    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let mut sizes = Vec::new();
    let samples = thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&stop));
        while began.elapsed() < seconds() {
            thread::sleep(Duration::from_secs(1));
            sizes.push((pipeline.metrics.processes.get(), live_processes(), pipeline.metrics.cgroups.get()));
        }
        fs::write(place.join("stop"), "").unwrap();
        stop.store(true, Ordering::Relaxed);
        sampler.join().unwrap()
    });
    for child in &mut children {
        child.wait().unwrap();
    }
    let above: Vec<_> = cgroups.iter().map(|cgroup| Cgroup(cgroup.0.parent().unwrap().to_owned())).collect();
    cgroups.into_iter().chain(above).for_each(Cgroup::remove);
    let most = sizes.iter().map(|(known, live, _)| known.saturating_sub(*live)).max().unwrap();
    let (first, last) = (sizes[sizes.len() / 4], sizes[sizes.len() - 1]);
    println!(
        "{:.0?} of builds: processes remembered/live/cgroups {first:?} after a quarter, {last:?} at the end; at most {most} more remembered than live",
        began.elapsed()
    );
    let metrics = pipeline.metrics.clone();
    println!(
        "opens {} (lost {}), records of processes lost {}",
        metrics.captured.get(),
        metrics.opens_lost.get(),
        metrics.processes_lost.get()
    );
    assert!(most < 200, "{sizes:?}");
    assert!(sizes.iter().all(|(_, _, cgroups)| cgroups.abs_diff(first.2) < 20), "{sizes:?}");
    compare(&pipeline.finish(), &samples, metrics.processes_lost.get());
}

/// Every event against what /proc had said of its process, where it was looked at in time.
fn compare(seen: &[Arc<sensor::event::Enriched>], samples: &Samples, lost: u64) {
    let (mut met, mut by_container, mut from_proc, mut programs) = (0, 0, 0, 0);
    for event in seen {
        // The program is that of which the kernel gave the inode.
        let executable = event.process.executable.as_ref().unwrap_or_else(|| panic!("{event:#?}"));
        let file = fs::metadata(executable.to_string());
        if let (Ok(file), Some((_, inode))) = (file, event.event.program) {
            assert_eq!(file.ino(), inode, "{event:#?}");
            programs += 1;
        }
        from_proc += usize::from(event.process.from_proc);
        let sample = samples.get(&(event.event.pid, event.event.start_ns / 10_000_000));
        let Some(sample) = sample.filter(|sample| sample.sure) else { continue };
        met += 1;
        assert_eq!(
            event.container.as_ref().map(|container| &container.id),
            sample.container.as_ref(),
            "{event:#?}"
        );
        by_container += usize::from(sample.container.is_some());
        assert_eq!(event.ancestors.first().map(|parent| parent.pid), Some(sample.parent), "{event:#?}");
    }
    println!(
        "{} events; {programs} programs by their inode, {met} processes by /proc, {by_container} of them in containers; {from_proc} read from /proc",
        seen.len()
    );
    assert!(met > 100 && by_container > 50 && met > by_container && programs > 100, "too few to compare");
    assert!(from_proc == 0 || lost > 0, "the kernel reported all: nothing needs /proc but what was there before");
}

/// What the sensor may use, in MiB.
const LIMIT: u64 = 48;

/// In MiB, of a file that says bytes.
fn mib(file: &Path) -> f64 {
    fs::read_to_string(file).unwrap().trim().parse::<f64>().unwrap() / f64::from(1 << 20)
}

/// 250 pods of two containers each, of which it has the second, processes in them, and the cgroup `own` for the sensor.
/// A test that fails takes them away too: what stays would be one more pod for the next, or a limit.
struct Pods {
    own: Cgroup,
    containers: Vec<Cgroup>,
    processes: Vec<Child>,
}

impl Pods {
    fn make(cluster: &Cluster) -> Self {
        let make = |n| {
            let name = format!("p{n}");
            let pod = cluster.create_pod(&NewPod { name: &name, labels: &[("app", "web")], ..NewPod::default() });
            let uid = pod.metadata.uid.unwrap();
            Cgroup::make(&format!("/kubepods/burstable/pod{uid}/{}", container_id()));
            Cgroup::make(&format!("/kubepods/burstable/pod{uid}/{}", container_id()))
        };
        let own = Cgroup::make("/pathwatch-memory");
        Self { own, containers: (0..250).map(make).collect(), processes: Vec::new() }
    }

    /// `count` processes more that do nothing, as many in each pod.
    fn sleep(&mut self, count: usize) {
        let pods = self.containers.iter().cycle().take(count);
        self.processes.extend(pods.map(|pod| pod.spawn(Command::new("sleep").arg("600"))));
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        self.containers.iter().for_each(|container| remove_pod(&container.0));
        wait_until("the end of the sensor's cgroup", || fs::remove_dir(&self.own.0).is_ok());
    }
}

/// The sensor with these policies, in a memory cgroup of its own; its records go to a file in `state`.
fn start_in(own: &Cgroup, binary: &OsStr, policies: &Path, cluster: &Cluster, state: &Path) -> Sensor {
    let mut command = Command::new(binary);
    command.args(["run", "--policies"]).arg(policies).env_remove("LD_LIBRARY_PATH");
    for (name, value) in [
        ("ENRICH__KUBECONFIG", cluster.kubeconfig().display().to_string()),
        ("NODE__NAME", "n1".to_owned()),
        ("CLUSTER__NAME", "test".to_owned()),
        ("SHIP__SINK", "file".to_owned()),
        ("SHIP__FILE__PATH", state.join("alerts").display().to_string()),
        ("SHIP__STATE_DIR", state.display().to_string()),
        // What is counted here is counted to the last open.
        ("CAPTURE__SELF_TEST", "false".to_owned()),
    ] {
        command.env(format!("PATHWATCH__{name}"), value);
    }
    let enter = own.0.join("cgroup.procs");
    // SAFETY: between fork and exec it opens a file and writes to it, which are system calls.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, move || fs::write(&enter, "0")) };
    Sensor::start(&mut command)
}

#[test]
fn with_250_pods_and_5000_processes_it_needs_less_than_48_mib() {
    // The memory that counts is the release's.
    let Some(binary) = std::env::var_os("PATHWATCH_RELEASE") else {
        println!("not run: PATHWATCH_RELEASE does not name a release build; make test does");
        return;
    };
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().unwrap());
    let mut pods = Pods::make(&cluster);
    // Half are there before the sensor, half come after.
    pods.sleep(2500);
    let policies = common::root().join("policies");
    let sensor = start_in(&pods.own, &binary, &policies, &cluster, state.path());
    pods.sleep(2500);
    // One open in each pod makes it look at pods, containers and programs.
    pods.containers.iter().for_each(|pod| pod.open(Path::new("/etc/shadow")));
    let alerts = || fs::read_to_string(state.path().join("alerts")).unwrap_or_default();
    let of_a_pod = |line: &&str| line.contains("\"name\":\"p");
    let began = Instant::now();
    // The machine may have something to alert of as well.
    wait_until("an alert of each pod", || {
        alerts().lines().filter(of_a_pod).count() >= 250 || began.elapsed() > Duration::from_secs(50)
    });
    let alerts = alerts();
    let (named, other): (Vec<_>, Vec<_>) = alerts.lines().partition(of_a_pod);
    // What the kernel keeps of files and of /proc it takes back for a limit; what is needed it cannot, and refuses, or kills.
    let limit = ["memory.max", "memory.limit_in_bytes"].map(|name| pods.own.0.join(name));
    let limit = limit.iter().find(|file| fs::metadata(file).is_ok()).unwrap();
    // What is to be written to a disk first it takes back a little later.
    let (began, mut limited) = (Instant::now(), Ok(()));
    wait_until("the limit, or that it is refused for good", || {
        limited = fs::write(limit, (LIMIT << 20).to_string());
        limited.is_ok() || began.elapsed() > Duration::from_secs(20)
    });
    let current = ["memory.current", "memory.usage_in_bytes"].map(|name| pods.own.0.join(name));
    let used = mib(current.iter().find(|file| fs::metadata(file).is_ok()).unwrap());
    let events = ["memory.events", "memory.oom_control"].map(|name| fs::read_to_string(pods.own.0.join(name)));
    let events = events.into_iter().find_map(Result::ok).unwrap();
    let killed = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", sensor.child.id())).unwrap();
    let resident = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    println!(
        "250 pods, {} processes, {} of 250 alerts name their pod: cgroup memory {used:.1} MiB of {LIMIT} (ring and maps included), {killed} killed, RSS {:.1} MiB, of it anonymous {:.1} MiB; at most {:.1} MiB at start",
        pods.processes.len(),
        named.len(),
        resident("VmRSS"),
        resident("RssAnon"),
        resident("VmHWM")
    );
    assert!(limited.is_ok() && killed == "0", "it needs more than {LIMIT} MiB: {limited:?}");
    assert!(named.len() == 250, "{} alerts of pods; of none: {other:#?}", named.len());
}

/// How long one pod opens a file at full speed, and how many files another opens meanwhile.
const STORM: Duration = Duration::from_secs(60);
const QUIET: usize = 1000;

const WATCHING: &str = "apiVersion: pathwatch.dev/v1alpha1
kind: ClusterPathPolicy
metadata: {name: loud}
spec: {paths: ['DIR/loud']}
---
apiVersion: pathwatch.dev/v1alpha1
kind: ClusterPathPolicy
metadata: {name: quiet}
spec: {paths: ['DIR/quiet/*'], rateLimit: {perSecond: 1000, burst: 1000}}
";

/// The files, and policies for them.
fn lay_out(place: &Path) {
    fs::create_dir_all(place.join("quiet")).unwrap();
    fs::create_dir_all(place.join("policies")).unwrap();
    fs::write(place.join("loud"), "").unwrap();
    (0..QUIET).for_each(|n| fs::write(place.join(format!("quiet/{n}")), "").unwrap());
    let text = WATCHING.replace("DIR", &place.display().to_string());
    fs::write(place.join("policies/p.yaml"), text).unwrap();
}

#[test]
fn a_storm_in_one_pod_costs_no_other_its_alerts_and_is_told_of_that_pod() {
    let Some(binary) = std::env::var_os("PATHWATCH_RELEASE") else {
        println!("not run: PATHWATCH_RELEASE does not name a release build; make test does");
        return;
    };
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().unwrap());
    let place = state.path().canonicalize().unwrap();
    lay_out(&place);
    let pods = ["loud", "quiet"].map(|name| {
        let pod = cluster.create_pod(&NewPod { name, ..NewPod::default() });
        Cgroup::make(&format!("/kubepods/burstable/pod{}/{}", pod.metadata.uid.unwrap(), container_id()))
    });
    let own = Cgroup::make("/pathwatch-storm");
    let pods = Pods { own, containers: pods.into(), processes: Vec::new() };
    let sensor = start_in(&pods.own, &binary, &place.join("policies"), &cluster, &place);
    let dir = place.display();
    let run = |pod: usize, script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        pods.containers[pod].spawn(&mut shell)
    };
    let records = || -> Vec<Value> {
        let text = fs::read_to_string(place.join("alerts")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    // The pod is known once it has had an alert.
    run(1, &format!(": < {dir}/quiet/0")).wait().unwrap();
    wait_until("the first alert", || add_up(&records(), "quiet")[0] == 1);
    // The file for the number is opened first: at the end it would be refused as well, and told.
    let script = format!(
        "exec 3> {dir}/n; n=0; while ! [ -e {dir}/stop ]; do n=$((n+1)); : < {dir}/loud; done; echo $n >&3"
    );
    let mut loud = run(0, &script);
    let began = Instant::now();
    let pause = STORM.as_secs_f64() / QUIET as f64 - 0.005;
    let script =
        format!("n=1; while [ $n -lt {QUIET} ]; do : < {dir}/quiet/$n; n=$((n+1)); sleep {pause:.3}; done");
    run(1, &script).wait().unwrap();
    wait_until("the end of the storm", || began.elapsed() >= STORM);
    fs::write(place.join("stop"), "").unwrap();
    loud.wait().unwrap();
    let opened: u64 = fs::read_to_string(place.join("n")).unwrap().trim().parse().unwrap();
    wait_until("the last alert", || add_up(&records(), "quiet")[0] >= QUIET as u64);
    sensor.stop();
    let records = records();
    let [alerts, repeats, limited, lost] = add_up(&records, "loud");
    let quiet = add_up(&records, "quiet");
    println!(
        "{opened} opens of a storm in {:.0?}: {alerts} alerts, {repeats} repeats, {limited} limited, {lost} told as lost of that pod; {} of {QUIET} alerts of the other",
        began.elapsed(),
        quiet[0]
    );
    assert_eq!(quiet, [QUIET as u64, 0, 0, 0]);
    assert_eq!(alerts + repeats + limited + lost, opened);
    assert!(lost > opened / 2, "no storm");
}

/// What records say of a pod: alerts, repeats, alerts beyond a limit, and opens that the kernel did not report.
fn add_up(records: &[Value], pod: &str) -> [u64; 4] {
    let number = |record: &Value, at: &str| record.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    let of_pod = |record: &&Value| record.pointer("/orchestrator/resource/name").is_some_and(|name| name == pod);
    records.iter().filter(of_pod).fold([0; 4], |[alerts, repeats, limited, lost], record| {
        let is_alert = record["event"]["kind"] == "alert" && record["pathwatch"]["summary"].is_null();
        [
            alerts + u64::from(is_alert),
            repeats + number(record, "/pathwatch/summary/suppressed"),
            limited + number(record, "/pathwatch/summary/limited"),
            lost + number(record, "/pathwatch/loss/count"),
        ]
    })
}

/// Removes the cgroups of a pod.
fn remove_pod(container: &Path) {
    let pod = container.parent().unwrap();
    for entry in fs::read_dir(pod).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir()) {
        Cgroup(entry.path()).remove();
    }
    Cgroup(pod.to_owned()).remove();
}
