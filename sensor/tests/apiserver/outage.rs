//! The API server dies and comes back.
use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use sensor::event::{Enriched, Enrichment, Missing};

use super::{
    asking,
    cluster::{Cluster, NewPod},
    container_id,
    pipeline::{Cgroup, Pipeline, policies_of, wait_until},
    uid, watching,
};

/// How long it is away; `make soak` has it be five minutes.
fn away() -> Duration {
    Duration::from_secs(std::env::var("OUTAGE_SECONDS").map_or(10, |seconds| seconds.parse().unwrap()))
}

/// A container whose files are opened now and then.
struct Running {
    cgroup: Cgroup,
    pod: Cgroup,
    opens: usize,
}

impl Running {
    fn of(uid: &str) -> Self {
        let cgroup = Cgroup::make(&format!("/kubepods/pod{uid}/{}", container_id()));
        let pod = Cgroup(cgroup.0.parent().unwrap().to_owned());
        Self { cgroup, pod, opens: 0 }
    }

    /// Opens a file that was not opened before, and returns what is said of it.
    fn open(&mut self, pipeline: &Pipeline, directory: &Path) -> std::sync::Arc<Enriched> {
        self.opens += 1;
        let marker = directory.join(format!("{}-{}", self.cgroup.0.file_name().unwrap().display(), self.opens));
        fs::write(&marker, "").unwrap();
        self.cgroup.open(&marker);
        pipeline.wait_for(&marker)
    }

    fn end(self) {
        self.cgroup.remove();
        self.pod.remove();
    }
}

fn name(event: &Enriched) -> Option<&str> {
    event.pod.as_ref().map(|pod| pod.name.as_str())
}

/// Memory of this process, which the API server and the containers are not in.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn what_is_known_stays_through_an_outage_and_what_is_new_is_known_soon_after() {
    let mut cluster = Cluster::start();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let pipeline = Pipeline::start(&asking(cluster.kubeconfig()), "n1", policies_of(&watching(&place)), &place);
    let mut old = Running::of(&uid(&cluster.create_pod(&NewPod { name: "old", ..NewPod::default() })));
    wait_until("the first contact", || name(&old.open(&pipeline, &place)) == Some("old"));

    for keep_data in [true, false] {
        let before = resident_kib();
        cluster.kill();
        let (died, mut most, mut opens) = (Instant::now(), 0, 0);
        let mut unknown = Running::of(&uuid::Uuid::new_v4().to_string());
        while died.elapsed() < away() {
            assert_eq!(name(&old.open(&pipeline, &place)), Some("old"), "what is known stays");
            let began = Instant::now();
            let event = unknown.open(&pipeline, &place);
            assert_eq!((&event.missing[..], event.enrichment), (&[Missing::Pod][..], Enrichment::Partial));
            most = most.max(began.elapsed().as_millis());
            opens += 2;
            // A pace: what the test itself remembers of these opens is memory, too.
            thread::sleep(Duration::from_millis(100));
        }
        unknown.end();
        cluster.restart(keep_data);
        let back = Instant::now();
        let mut new = Running::of(&uid(&cluster.create_pod(&NewPod { name: "new", ..NewPod::default() })));
        wait_until("a new pod", || name(&new.open(&pipeline, &place)) == Some("new"));
        let recovery = back.elapsed();
        // The kubelet runs it, whatever the API server has lost.
        assert_eq!(name(&old.open(&pipeline, &place)), Some("old"));
        new.end();
        let grown = resident_kib().saturating_sub(before);
        println!(
            "away for {:.0?}, data kept: {keep_data}; {opens} opens meanwhile, an unknown pod's at most {most} ms late; a new pod is known {recovery:.1?} after the server is ready; {grown} KiB more resident; pods remembered: {}",
            away(),
            pipeline.metrics.pods.get()
        );
        // Its back-off ends at 30 s, of which a part is chance.
        // After the first, nobody waits for a server that is known to be away.
        assert!(recovery < Duration::from_secs(60) && grown < 32 << 10 && most < 2500, "{most} ms");
        cluster.delete_pod("default", "new");
    }
    let notices = pipeline.notices.take();
    assert!(notices.iter().any(|notice| notice.reason == "api_unreachable"), "{notices:?}");
    old.end();
    pipeline.finish();
}

#[test]
fn a_sensor_starts_without_its_api_server_and_finds_it_later() {
    let mut cluster = Cluster::start();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let pod = cluster.create_pod(&NewPod::default());
    cluster.kill();
    let pipeline = Pipeline::start(&asking(cluster.kubeconfig()), "n1", policies_of(&watching(&place)), &place);
    let mut running = Running::of(&uid(&pod));
    assert_eq!(running.open(&pipeline, &place).missing, [Missing::Pod]);
    cluster.restart(true);
    wait_until("the pod", || name(&running.open(&pipeline, &place)) == Some("web"));
    running.end();
    pipeline.finish();
}
