//! Whose open it was: a container's own, whatever it calls itself and wherever it moves.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use sensor::event::Enriched;

use super::{
    common::pathwatch,
    containers::{Container, Containerd},
    pipeline::{Cgroup, Pipeline, alone, policies_of},
    running::{PATIENCE, Sensor, total},
};

/// Short containers, each of which opens one file.
const CONTAINERS: usize = 300;

fn pipeline(directory: &Path) -> Pipeline {
    Pipeline::start(&alone(), "node", Arc::default(), directory)
}

#[test]
fn each_of_300_short_containers_has_its_own_open_and_no_other() {
    let files: Vec<String> = (0..CONTAINERS).map(|n| format!("/pathwatch-markers/{n}")).collect();
    let containerd = Containerd::start(&files);
    let pipeline = pipeline(Path::new("/pathwatch-markers"));
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let run = || {
        let mut made = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(n) else { return made };
            let container = Container::new();
            containerd.run(&container, file);
            made.push((file.clone(), container));
        }
    };
    let made: BTreeMap<String, Container> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    println!("{CONTAINERS} containers by containerd and runc in {:.1?}", began.elapsed());
    let seen = wait_for_all(&pipeline);
    let mut complete = 0;
    for event in &seen {
        let want = &made[&event.event.path.as_ref().unwrap().to_string()];
        let container = event.container.as_ref().unwrap_or_else(|| panic!("{event:#?}"));
        assert_eq!((&container.id, container.pod_uid.as_ref()), (&want.id, Some(&want.pod_uid)));
        assert!(event.moved_from.is_none() && !event.process.from_proc, "{event:#?}");
        // There is no API server to name the pod.
        let is_complete = event.missing == [sensor::event::Missing::Pod];
        if !is_complete {
            println!("{event:#?}\n{}", pipeline.state());
        }
        complete += usize::from(is_complete);
    }
    println!("{} opens, each of its own container; all else known of {complete}", seen.len());
    assert_eq!(complete, CONTAINERS);
    assert_eq!(pipeline.finish().len(), CONTAINERS, "more opens than markers");
}

/// Waits for one open of each marker, and for no more.
fn wait_for_all(pipeline: &Pipeline) -> Vec<Arc<Enriched>> {
    let began = Instant::now();
    loop {
        let seen = pipeline.seen();
        if seen.len() >= CONTAINERS {
            assert_eq!(seen.len(), CONTAINERS, "more opens than markers");
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "{} opens; {}", seen.len(), pipeline.state());
        thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A file to open, in a directory that a pipeline watches.
fn marker() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let file = place.join("marker");
    fs::write(&file, "").unwrap();
    (directory, place, file)
}

/// A shell's command of which every part succeeds.
fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]);
    shell
}

#[test]
fn a_container_cannot_take_another_pods_name_by_making_a_cgroup_of_it() {
    let (_directory, place, file) = marker();
    let pipeline = pipeline(&place);
    let (attacker, victim) = (Container::new(), Container::new());
    let own = Cgroup::make(&attacker.cgroup());
    let above = own.0.parent().unwrap().to_owned();
    // Below itself, and, as only a privileged container can, beside itself before the victim's runtime comes.
    let root = own.0.ancestors().nth(4).unwrap();
    for look_alike in
        [own.0.join(victim.cgroup().trim_start_matches('/')), root.join(victim.cgroup().trim_start_matches('/'))]
    {
        let script =
            format!("mkdir -p {0}; echo 0 > {0}/cgroup.procs; exec cat {1}", look_alike.display(), file.display());
        let before = pipeline.of(&file).len();
        assert!(own.spawn(&mut shell(&script)).wait().unwrap().success());
        super::pipeline::wait_until("the open", || pipeline.of(&file).len() > before);
        let event = pipeline.of(&file).pop().unwrap();
        let container = event.container.as_ref().unwrap();
        assert_eq!(
            (&container.id, &container.pod_uid),
            (&attacker.id, &Some(attacker.pod_uid.clone())),
            "{event:#?}"
        );
        assert!(event.moved_from.is_none());
    }
    // The victim's own runtime, afterwards, in the directory that is already there.
    let theirs = Cgroup::make(&Container { id: Container::new().id, ..victim.clone() }.cgroup());
    let before = pipeline.of(&file).len();
    theirs.open(&file);
    super::pipeline::wait_until("the victim's open", || pipeline.of(&file).len() > before);
    let container = pipeline.of(&file).pop().unwrap().container.clone().unwrap();
    assert_eq!(container.pod_uid, Some(victim.pod_uid.clone()));
    pipeline.finish();
    for path in [theirs.0.parent().unwrap(), &above] {
        remove_below(path);
    }
}

#[test]
fn a_process_that_moves_itself_is_of_both_containers() {
    let (_directory, place, file) = marker();
    let policies = policies_of(&format!(
        "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: pods}}\nspec: {{paths: ['{}']}}\n",
        file.display()
    ));
    let pipeline = Pipeline::start(&alone(), "node", policies, &place);
    let (attacker, victim) = (Container::new(), Container::new());
    let (own, theirs) = (Cgroup::make(&attacker.cgroup()), Cgroup::make(&victim.cgroup()));
    let root = own.0.ancestors().nth(4).unwrap().to_owned();
    for (to, container) in [(&theirs.0, Some(&victim.id)), (&root, None)] {
        let script = format!("echo 0 > {}/cgroup.procs; exec cat {}", to.display(), file.display());
        let before = pipeline.of(&file).len();
        assert!(own.spawn(&mut shell(&script)).wait().unwrap().success());
        super::pipeline::wait_until("the open", || pipeline.of(&file).len() > before);
        let event = pipeline.of(&file).pop().unwrap();
        assert_eq!(event.container.as_ref().map(|container| &container.id), container, "{event:#?}");
        let from = event.moved_from.as_ref().unwrap().container.as_ref().unwrap();
        assert_eq!(from.id, attacker.id);
        // A policy of pods speaks of it still, though it is on the host by its cgroup.
        assert_eq!(sensor::matcher::decide(&event, &pipeline.policies).alerts.len(), 1);
    }
    assert!(pipeline.metrics.moved.get() >= 2, "{}", pipeline.state());
    pipeline.finish();
    for cgroup in [own, theirs] {
        remove_below(cgroup.0.parent().unwrap());
    }
}

/// Removes a cgroup and all in it.
fn remove_below(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            remove_below(&entry.path());
        }
    }
    super::pipeline::wait_until("the end of a cgroup", || fs::remove_dir(cgroup).is_ok());
}

#[test]
fn in_a_pid_namespace_of_its_own_the_sensor_tells_pids_as_its_proc_does() {
    let (_directory, place, file) = marker();
    // As a node that is a container: its first process is the sensor's shell, and /proc is its own.
    let mut node = Command::new("unshare");
    node.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(pathwatch().get_program());
    node.args(["trace", "--json"]).arg(format!("{}/**", place.display())).env_remove("LD_LIBRARY_PATH");
    let sensor = Sensor::start(&mut node);
    let container = Container::new();
    let cgroup = Cgroup::make(&container.cgroup());
    // `cat` is in that node's namespace, and in a container there; it waits for its input's end, so that it can be looked at.
    let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", sensor.child.id())).unwrap();
    let mut inside = Command::new("nsenter");
    inside.args(["--target", first.trim(), "--pid", "--mount", "cat"]).arg(&file).arg("-");
    let mut entered = cgroup.spawn(&mut inside);
    let line = sensor.lines.recv_timeout(PATIENCE).unwrap();
    let event: Enriched = serde_json::from_value(line).unwrap();
    let outer = fs::read_to_string(format!("/proc/{0}/task/{0}/children", entered.id())).unwrap();
    let outer: u32 = outer.trim().parse().unwrap();
    let status = fs::read_to_string(format!("/proc/{outer}/status")).unwrap();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    let numbers: Vec<u32> = numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
    println!("pids: {numbers:?}; told: {}, outside {:?}", event.event.pid, event.event.initial_pid);
    assert_eq!(numbers, [outer, event.event.pid]);
    assert_eq!((event.event.initial_pid, event.event.own_pid), (Some(outer), None));
    assert_eq!(event.container.as_ref().unwrap().id, container.id);
    assert_eq!(event.process.executable.as_ref().unwrap().to_string(), "/usr/bin/cat");
    drop(entered.stdin.take());
    entered.wait().unwrap();
    // The sensor knows itself: it has opened much, and told nothing of it.
    let (rest, log) = stop(sensor, first.trim());
    assert!(rest.is_empty(), "{rest:?}");
    assert!(log.contains("\"captured\""), "{log}");
    remove_below(cgroup.0.parent().unwrap());
}

/// Asks the sensor in the namespace to stop, and returns what it has told until then, and its log.
fn stop(mut sensor: Sensor, pid: &str) -> (Vec<serde_json::Value>, String) {
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    sensor.child.wait().unwrap();
    super::pipeline::wait_until("the totals", || sensor.log().contains("totals"));
    let rest = sensor.lines.try_iter().collect();
    (rest, sensor.log())
}

#[test]
fn a_namespaces_policy_that_cannot_decide_is_a_loss_and_no_silence() {
    let (_directory, _, file) = marker();
    let policies = tempfile::tempdir().unwrap();
    let text = format!(
        "apiVersion: pathwatch.dev/v1alpha1\nkind: PathPolicy\nmetadata: {{name: shop, namespace: shop}}\nspec: {{paths: [{}]}}\n",
        file.display()
    );
    fs::write(policies.path().join("p.yaml"), text).unwrap();
    let mut command = pathwatch();
    command.args(["run", "--policies"]).arg(policies.path()).env("PATHWATCH__ENRICH__KUBERNETES", "off");
    let mut sensor = Sensor::start(&mut command);
    let container = Container::new();
    let cgroup = Cgroup::make(&container.cgroup());
    cgroup.open(&file);
    sensor.wait_for_log("shop/shop could not decide");
    let (alerts, log) = sensor.stop();
    assert!(alerts.is_empty(), "{alerts:?}");
    assert!(total(&log, "namespace_unknown") > 0, "{log}");
    remove_below(cgroup.0.parent().unwrap());
}
