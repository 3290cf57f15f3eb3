//! Pods that come and go as fast as the API server takes them.
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sensor::{
    event::{Enriched, Enrichment},
    matcher,
    metrics::BOUNDS,
};

use super::{
    asking,
    cluster::{Cluster, NewPod, controlled_by, running},
    container_id,
    pipeline::{Cgroup, Pipeline, policies_of, wait_until},
    uid, watching,
};

/// Containers, each in a pod of its own.
const CONTAINERS: usize = 2000;
/// Pods that are made at a time.
const WORKERS: usize = 4;

/// What is true of one container.
struct Truth {
    marker: PathBuf,
    namespace: &'static str,
    name: String,
    uid: String,
    id: String,
    tier: &'static str,
    /// It is the only one of its pod.
    alone: bool,
    cgroup: u64,
}

/// What starts containers: a shell, of which a copy is made faster than of this program.
struct Runtime {
    shell: Child,
    answers: BufReader<ChildStdout>,
}

impl Runtime {
    fn start() -> Self {
        let mut shell = Command::new("sh");
        // Cargo's path of libraries would have the dynamic linker look in 20 directories.
        shell.env_remove("LD_LIBRARY_PATH").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let answers = BufReader::new(shell.stdout.take().unwrap());
        Self { shell, answers }
    }

    /// Opens `file` by a process that begins in `cgroup`.
    fn open(&mut self, cgroup: &Cgroup, file: &Path) {
        let (procs, file) = (cgroup.0.join("cgroup.procs"), file.display());
        let line = format!("( echo 0 > {}; exec cat {file} ); echo\n", procs.display());
        self.shell.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        self.answers.read_line(&mut String::new()).unwrap();
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().unwrap();
    }
}

/// One pod's life: created, its container made and one file opened; half a second to three later the kubelet's word of
/// it, or by then it is deleted.
fn live(
    cluster: &Cluster,
    runtime: &mut Runtime,
    directory: &Path,
    n: usize,
    later: &Mutex<Vec<(Instant, Later)>>,
) -> Truth {
    let (namespace, tier) = (["shop", "bank"][n % 2], ["front", "back"][n / 2 % 2]);
    let (name, alone) = (format!("web-5d4f8-{n}"), n % 4 != 3);
    let labels = [("tier", tier), ("pod-template-hash", "5d4f8"), ("n", &n.to_string())];
    let containers = if alone { &["main"][..] } else { &["main", "side"] };
    let owner_references = vec![controlled_by("apps/v1", "ReplicaSet", "web-5d4f8")];
    let new =
        NewPod { namespace, name: &name, labels: &labels, owner_references, containers, ..NewPod::default() };
    let (uid, id) = (uid(&cluster.create_pod(&new)), container_id());
    let pod = format!("/kubepods/burstable/pod{uid}");
    // Most runtimes make the sandbox first.
    let sandbox = Cgroup::make(&format!("{pod}/{}", container_id()));
    let container = Cgroup::make(&format!("{pod}/{id}"));
    let cgroup = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&container.0).unwrap());
    let marker = directory.join(format!("m{n}"));
    fs::write(&marker, "").unwrap();
    runtime.open(&container, &marker);
    let parent = Cgroup(container.0.parent().unwrap().to_owned());
    for gone in [container, sandbox, parent] {
        gone.remove();
    }
    let status = || Later::Status(namespace, name.clone(), id.clone());
    let what = if fastrand::bool() { status() } else { Later::Delete(namespace, name.clone()) };
    let due = Instant::now() + Duration::from_millis(fastrand::u64(500..3000));
    later.lock().unwrap().push((due, what));
    Truth { marker, namespace, name, uid, id, tier, alone, cgroup }
}

/// What happens to a pod afterwards, by namespace and name; the status with the container's id.
enum Later {
    Status(&'static str, String, String),
    Delete(&'static str, String),
}

/// Does what is due until all is done; returns how often what was done.
fn do_later(cluster: &Cluster, later: &Mutex<Vec<(Instant, Later)>>, left: &AtomicUsize) -> [usize; 2] {
    let mut done = [0; 2];
    while left.load(Ordering::Relaxed) > 0 || !later.lock().unwrap().is_empty() {
        let mut queue = later.lock().unwrap();
        let due = queue.iter().position(|(due, _)| *due <= Instant::now()).map(|at| queue.swap_remove(at).1);
        drop(queue);
        match due {
            Some(Later::Status(namespace, name, id)) => {
                cluster.patch_status(namespace, &name, &running(&[("main", &id)]));
                done[0] += 1;
            }
            Some(Later::Delete(namespace, name)) => {
                cluster.delete_pod(namespace, &name);
                done[1] += 1;
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
    done
}

const POLICIES: &str = "
---
apiVersion: pathwatch.dev/v1alpha1
kind: ClusterPathPolicy
metadata: {name: front}
spec: {paths: ['DIR/**'], podSelector: {matchLabels: {tier: front}}}
---
apiVersion: pathwatch.dev/v1alpha1
kind: ClusterPathPolicy
metadata: {name: by-team}
spec: {paths: ['DIR/**'], namespaceSelector: {matchLabels: {team: payments}}}
---
apiVersion: pathwatch.dev/v1alpha1
kind: PathPolicy
metadata: {name: own, namespace: shop}
spec: {paths: ['DIR/**']}
";

#[test]
fn every_one_of_2000_short_pods_is_named_right_or_marked() {
    let cluster = Cluster::start();
    cluster.create_namespace("shop", &[("team", "retail")]);
    cluster.create_namespace("bank", &[("team", "payments")]);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let policies = policies_of(&(watching(&place) + &POLICIES.replace("DIR", &place.display().to_string())));
    let pipeline = Pipeline::start(&asking(cluster.kubeconfig()), "n1", policies, &place);
    // The watch begins within two seconds; a node's sensor is there before most of its pods.
    first_contact(&cluster, &pipeline, &place);

    let (later, left, next) = (Mutex::default(), AtomicUsize::new(WORKERS), AtomicUsize::new(0));
    let began = Instant::now();
    let (truths, done) = thread::scope(|scope| {
        let work = || {
            let (mut truths, mut runtime) = (Vec::new(), Runtime::start());
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= CONTAINERS {
                    break;
                }
                truths.push(live(&cluster, &mut runtime, &place, n, &later));
            }
            left.fetch_sub(1, Ordering::Relaxed);
            truths
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let afterwards = scope.spawn(|| do_later(&cluster, &later, &left));
        let truths: Vec<Truth> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        (truths, afterwards.join().unwrap())
    });
    println!("{CONTAINERS} containers in {:.1?}; {} patched, {} deleted", began.elapsed(), done[0], done[1]);
    assert!(done.iter().all(|count| *count >= CONTAINERS / 3), "{done:?}");
    let of_containers = || pipeline.seen().iter().filter(|event| name_of(event).starts_with('m')).count();
    wait_until(&format!("all events, of which there are {}: {}", of_containers(), pipeline.state()), || {
        of_containers() >= CONTAINERS
    });
    let targets = pipeline.targets.borrow().clone();
    check(&truths, &pipeline);
    // The cgroups are gone; nothing is decided of any.
    assert!(truths.iter().all(|truth| !targets.cgroups.contains_key(&truth.cgroup)));
    pipeline.finish();
}

/// The name of the file.
fn name_of(event: &Enriched) -> String {
    event.event.best_path().unwrap().to_string().rsplit('/').next().unwrap().to_owned()
}

fn first_contact(cluster: &Cluster, pipeline: &Pipeline, directory: &Path) {
    let pod = cluster.create_pod(&NewPod { name: "first", ..NewPod::default() });
    let cgroup = Cgroup::make(&format!("/kubepods/pod{}/{}", uid(&pod), container_id()));
    let marker = directory.join("first");
    fs::write(&marker, "").unwrap();
    wait_until("the first contact", || {
        cgroup.open(&marker);
        pipeline.of(&marker).last().is_some_and(|event| event.enrichment == Enrichment::Complete)
    });
    let above = Cgroup(cgroup.0.parent().unwrap().to_owned());
    cgroup.remove();
    above.remove();
}

fn check(truths: &[Truth], pipeline: &Pipeline) {
    let seen = pipeline.seen();
    let by_path: BTreeMap<String, Vec<_>> =
        seen.iter().fold(BTreeMap::new(), |mut all: BTreeMap<_, Vec<_>>, event| {
            all.entry(event.event.best_path().unwrap().to_string()).or_default().push(event.clone());
            all
        });
    let (mut complete, mut named, mut of_one, mut ages) = (0, 0, 0, Vec::new());
    for truth in truths {
        let events = &by_path[&truth.marker.display().to_string()];
        assert_eq!(events.len(), 1, "{events:#?}");
        let event = &events[0];
        assert_right(truth, event);
        ages.push(event.event.time.duration_since(event.event.started.unwrap()).as_secs_f64() * 1000.0);
        let whole = event.pod.as_ref().is_some_and(|pod| !pod.labels.is_empty() && pod.owners.len() == 2);
        assert_eq!(whole, event.enrichment == Enrichment::Complete, "what is not whole is marked: {event:#?}");
        complete += usize::from(whole);
        named += usize::from(event.container.as_ref().unwrap().name.is_some());
        of_one += usize::from(truth.alone);
        assert_judged(truth, event, pipeline);
    }
    ages.sort_by(f64::total_cmp);
    let at = |share: f64| ages[((ages.len() - 1) as f64 * share) as usize];
    println!(
        "the open came after the process's start by: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!("complete: {complete} of {} ({:.2} %)", truths.len(), complete as f64 * 100.0 / truths.len() as f64);
    println!("container's name and image: {named}, of {of_one} that are alone in their pod");
    let metrics = &pipeline.metrics;
    println!("held: {}, by seconds {BOUNDS:?}: {:?}", metrics.held.get(), metrics.hold_seconds.get());
    println!(
        "opens lost {}, records of processes and cgroups lost {}",
        metrics.opens_lost.get(),
        metrics.processes_lost.get()
    );
    assert!(complete * 1000 >= truths.len() * 999, "{complete}");
    assert!(named * 1000 >= of_one * 999, "{named}");
    assert!(metrics.held.get() > 0, "nothing had to wait: the test is too gentle");
}

/// Nothing that is said of the opener is wrong.
fn assert_right(truth: &Truth, event: &Enriched) {
    let container = event.container.as_ref().unwrap_or_else(|| panic!("no container: {event:#?}"));
    assert_eq!((&container.id, container.pod_uid.as_ref()), (&truth.id, Some(&truth.uid)));
    if let Some(name) = &container.name {
        assert_eq!((name.as_str(), container.image.as_deref()), ("main", Some("docker.io/library/main")));
    }
    assert_eq!(event.process.executable.as_ref().unwrap().to_string(), "/usr/bin/cat");
    assert!(!event.process.from_proc && event.moved_from.is_none());
    let Some(pod) = &event.pod else { return };
    assert_eq!((pod.namespace.as_str(), &pod.name, &pod.uid), (truth.namespace, &truth.name, &truth.uid));
    assert_eq!(pod.labels["tier"], truth.tier);
    let owners: Vec<_> = pod.owners.iter().map(|owner| format!("{} {}", owner.kind, owner.name)).collect();
    assert_eq!(owners, ["ReplicaSet web-5d4f8", "Deployment web"]);
}

/// The policies that speak of the pod fire, and no others.
fn assert_judged(truth: &Truth, event: &std::sync::Arc<Enriched>, pipeline: &Pipeline) {
    if event.enrichment == Enrichment::Partial {
        return;
    }
    let decision = matcher::decide(event, &pipeline.policies);
    let mut fired: Vec<_> = decision.alerts.iter().map(|alert| alert.policy.name().to_owned()).collect();
    fired.sort();
    let mut want = vec!["all"];
    want.extend((truth.namespace == "bank").then_some("by-team"));
    want.extend((truth.tier == "front").then_some("front"));
    want.extend((truth.namespace == "shop").then_some("own"));
    assert_eq!(fired, want, "{truth}", truth = truth.name);
}

#[test]
fn whom_policies_speak_of_is_decided_by_cgroup_and_kept_current() {
    let cluster = Cluster::start();
    cluster.create_namespace("shop", &[("team", "retail")]);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let text = watching(&place) + &POLICIES.replace("DIR", &place.display().to_string());
    let mut pipeline = Pipeline::start(&asking(cluster.kubeconfig()), "n1", policies_of(&text), &place);
    let new = NewPod { namespace: "shop", name: "web", labels: &[("tier", "back")], ..NewPod::default() };
    let pod = cluster.create_pod(&new);
    let cgroup = Cgroup::make(&format!("/kubepods/pod{}/{}", uid(&pod), container_id()));
    let nested =
        Cgroup::make(&format!("/kubepods/pod{}/{}/nested", uid(&pod), cgroup.0.file_name().unwrap().display()));
    let ids =
        [&cgroup, &nested].map(|cgroup| std::os::unix::fs::MetadataExt::ino(&fs::metadata(&cgroup.0).unwrap()));
    let speaking = |pipeline: &Pipeline, id: u64| {
        let targets = pipeline.targets.borrow().clone();
        let list = targets.cgroups.get(&id)?.policies.clone();
        let name = |at: &u32| targets.policies.policies[*at as usize].name().to_owned();
        let mut names: Vec<_> = list.iter().map(name).collect();
        names.sort();
        Some(names)
    };
    let is = |pipeline: &Pipeline, want: &[&str]| {
        ids.iter().all(|id| speaking(pipeline, *id).is_some_and(|is| is == want))
    };
    // Another namespace's labels leave `by-team` out, the pod's own `front`.
    wait_until("the pod's policies", || is(&pipeline, &["all", "own"]));
    // Its labels change.
    cluster.label_pod("shop", "web", "tier", "front");
    wait_until("the label's policies", || is(&pipeline, &["all", "front", "own"]));
    cluster.label_namespace("shop", "team", "payments");
    wait_until("the namespace's policies", || is(&pipeline, &["all", "by-team", "front", "own"]));
    // The policies do.
    pipeline.set_policies(policies_of(&watching(&place)));
    wait_until("the new policies", || is(&pipeline, &["all"]));
    // The matcher agrees with the last word, and a cgroup that is gone is not spoken of.
    let marker = place.join("m");
    fs::write(&marker, "").unwrap();
    let mut child = nested.spawn(Command::new("cat").arg(&marker));
    child.wait().unwrap();
    let decision = matcher::decide(&pipeline.wait_for(&marker), &pipeline.policies);
    let targets = pipeline.targets.borrow().clone();
    let speaks = |id: u64| targets.cgroups.get(&id).is_some_and(|target| target.policies.contains(&0));
    assert!(decision.alerts.len() == 1 && speaks(ids[1]));
    let above = Cgroup(cgroup.0.parent().unwrap().to_owned());
    for gone in [nested, cgroup, above] {
        gone.remove();
    }
    wait_until("the end of the cgroups", || {
        let targets = pipeline.targets.borrow().clone();
        !ids.iter().any(|id| targets.cgroups.contains_key(id))
    });
    pipeline.finish();
}
