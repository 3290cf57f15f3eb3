//! What delivery costs: recorded opens through the real binary into a real broker beside it, both on this machine.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and prints"
)]
#[path = "../tests/broker/mod.rs"]
mod broker;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/schema.rs"]
mod schema;
#[path = "../tests/kafka/shipper.rs"]
mod shipper;

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use broker::Broker;
use shipper::{Place, open};

const TOPIC: &str = "pathwatch-alerts";
/// The goals of the design, in events a second.
const GOALS: [(&str, u64, u64, f64); 2] =
    [("all distinct", 100_000, 100_000, 25_000.0), ("99 % repeats", 400_000, 4_000, 100_000.0)];
/// Memory with a full spool, in MiB.
const MEMORY: u64 = 80;

fn main() {
    let mut broker = Broker::new();
    broker.start();
    println!(
        "{:<14}  {:>9}  {:>8}  {:>12}  {:>12}  {:>8}",
        "CASE", "EVENTS/S", "GOAL", "SENSOR CPU", "BROKER CPU", "RECORDS"
    );
    for (name, events, distinct, goal) in GOALS {
        throughput(&broker, name, events, distinct, goal);
    }
    latency(&broker);
    memory();
}

/// A recording of `events` opens of `distinct` files.
fn recording(path: &Path, events: u64, distinct: u64) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    for n in 0..events {
        writeln!(out, "{}", open(n, &format!("/watched/directory/{}", n % distinct))).unwrap();
    }
}

/// CPU seconds of a process and of what it waited for, by the kernel's clock ticks.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

fn throughput(broker: &Broker, name: &str, events: u64, distinct: u64, goal: f64) {
    let topic = format!("bench-{distinct}");
    broker.create_topic(&topic, 1);
    let place = Place::new(&broker.address()).set("SHIP__KAFKA__TOPIC", &topic).set("LOG__LEVEL", "sensor=info");
    recording(&place.path("opens.jsonl"), events, distinct);
    let before = cpu(broker.pid());
    let began = Instant::now();
    let mut command = place.command();
    command.args(["replay", "opens.jsonl", "--ship", "--policies", "policies"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut sensor = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        sensor = cpu(child.id());
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = began.elapsed().as_secs_f64();
    assert!(status.success());
    let records = broker.consume(&topic);
    let alerts = records.iter().filter(|record| record.kind() == "alert").count() as u64;
    assert_eq!(alerts, distinct);
    let rate = events as f64 / took;
    println!(
        "{name:<14}  {rate:>9.0}  {goal:>8.0}  {sensor:>10.2} s  {:>10.2} s  {:>8}{}",
        cpu(broker.pid()) - before,
        records.len(),
        if rate < goal { "  MISSED" } else { "" }
    );
}

/// From the time of an open to the broker's own time of it, one at a time.
fn latency(broker: &Broker) {
    broker.create_topic_with(TOPIC, 1, &[("message.timestamp.type", "LogAppendTime")]);
    let place = Place::new(&broker.address());
    let mut shipper = place.start();
    shipper.feed(0..1);
    broker.consume_until(TOPIC, |records| !records.is_empty());
    for n in 1..=200 {
        shipper.feed(n..n + 1);
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = shipper.finish();
    let mut took: Vec<i64> = broker
        .times(TOPIC)
        .into_iter()
        .map(|(appended, document)| {
            let time: jiff::Timestamp = document["@timestamp"].as_str().unwrap().parse().unwrap();
            (appended - time.as_millisecond(), document)
        })
        .filter(|(_, document)| document["event"]["kind"] == "alert")
        .skip(1)
        .map(|(took, _)| took)
        .collect();
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "latency when idle, to the broker's append: p50 {} ms, p99 {} ms, worst {} ms; goal p99 100 ms",
        at(50),
        at(99),
        at(100)
    );
    let totals = log.lines().find(|line| line.contains("\"totals\"")).unwrap();
    let histogram = totals.split("delivery_seconds\":\"").nth(1).unwrap().split('"').next().unwrap();
    println!("to the delivery report, alerts and heartbeats by {:?} s: {histogram}", sensor::metrics::BOUNDS);
}

/// A full spool in a cgroup that has no more memory than the goal, page cache included.
fn memory() {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let (directory, limit, peak) = if v1.is_dir() {
        (v1.join("pathwatch-bench"), "memory.limit_in_bytes", "memory.max_usage_in_bytes")
    } else {
        (Path::new("/sys/fs/cgroup/pathwatch-bench").to_path_buf(), "memory.max", "memory.peak")
    };
    if fs::create_dir_all(&directory)
        .and_then(|()| fs::write(directory.join(limit), format!("{}", MEMORY << 20)))
        .is_err()
    {
        println!("memory: not measured, since no cgroup can be made here (it needs root)");
        return;
    }
    let place = Place::new("127.0.0.1:1").set("LOG__LEVEL", "sensor=info");
    recording(&place.path("opens.jsonl"), 150_000, 150_000);
    let procs = directory.join("cgroup.procs");
    let mut command = place.command();
    command.args(["replay", "opens.jsonl", "--ship", "--policies", "policies"]);
    let mut child =
        command.stdout(Stdio::null()).stderr(File::create(place.path("log")).unwrap()).spawn().unwrap();
    fs::write(&procs, child.id().to_string()).unwrap();
    let log = || fs::read_to_string(place.path("log")).unwrap();
    let began = Instant::now();
    while !log().contains("spool_full") {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none() && began.elapsed() < Duration::from_secs(120), "{ended:?}: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap().trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let size = fs::metadata(place.state().join("spool.redb")).unwrap().len() >> 20;
    println!(
        "memory with a full spool ({size} MiB on disk), limit {MEMORY} MiB: lives; peak with page cache {} bytes; {}; {}",
        read(peak),
        line("VmHWM"),
        line("RssAnon")
    );
    end(&mut child);
    fs::remove_dir(&directory).unwrap();
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}
