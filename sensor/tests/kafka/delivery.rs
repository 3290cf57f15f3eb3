//! From real opens on this machine to records in a real broker, through the death of either. Needs root.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    TOPIC,
    broker::{Broker, Consumed},
    common::pathwatch,
    running::{PATIENCE, Sensor, total},
    schema,
    shipper::{paths, spooled},
};

/// No limit that a test could meet.
const UNLIMITED: &str =
    "{policy: {per_second: 1000000, burst: 1000000}, node: {per_second: 1000000, burst: 1000000}}";

/// A node with a watched directory of its own, and a place for the sensor's state.
struct Site {
    directory: tempfile::TempDir,
    watched: PathBuf,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let watched = directory.path().canonicalize().unwrap().join("watched");
        fs::create_dir(&watched).unwrap();
        fs::create_dir(directory.path().join("policies")).unwrap();
        let policy = format!(
            "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {{name: watched}}\nspec: {{subjects: all, operations: [read], paths: ['{}/**']}}\n",
            watched.display()
        );
        fs::write(directory.path().join("policies/p.yaml"), policy).unwrap();
        Self { directory, watched }
    }

    fn sensor(&self, broker: &Broker) -> Command {
        let mut command = pathwatch();
        command
            .arg("run")
            .current_dir(self.directory.path())
            .env("PATHWATCH__SHIP__SINK", "kafka")
            .env("PATHWATCH__SHIP__STATE_DIR", self.directory.path().join("state"))
            .env("PATHWATCH__SHIP__KAFKA__BROKERS", format!("[{}]", broker.address()))
            .env("PATHWATCH__SHIP__STORM", UNLIMITED)
            .env("PATHWATCH__LOG__LEVEL", "sensor=debug")
            .env("PATHWATCH__NODE__NAME", "node-1")
            .env("PATHWATCH__CLUSTER__NAME", "lab");
        command
    }

    /// Makes the files `range` and opens each once; returns their paths.
    fn open(&self, range: std::ops::Range<usize>) -> BTreeSet<String> {
        range
            .map(|n| {
                let path = self.watched.join(format!("f{n}"));
                fs::write(&path, "").unwrap();
                drop(File::open(&path).unwrap());
                path.to_str().unwrap().to_owned()
            })
            .collect()
    }
}

/// Waits until the spool has committed that many records.
fn wait_for_spooled(sensor: &Sensor, records: u64) {
    let began = Instant::now();
    while spooled(&sensor.log()) < records {
        assert!(began.elapsed() < PATIENCE, "{}", sensor.log());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sequence numbers must be 1..=n for each sender; returns how many records were there twice.
fn assert_gapless(records: &[Consumed]) -> usize {
    let mut numbers: BTreeMap<(String, String), BTreeMap<u64, BTreeSet<String>>> = BTreeMap::new();
    for record in records {
        let agent = &record.document["agent"];
        let sender = (agent["id"].to_string(), agent["ephemeral_id"].to_string());
        let event = &record.document["event"];
        let ids = numbers.entry(sender).or_default().entry(event["sequence"].as_u64().unwrap()).or_default();
        ids.insert(event["id"].to_string());
    }
    let mut distinct = 0;
    for (sender, sequence) in &numbers {
        assert!(
            sequence.keys().copied().eq(1..=sequence.len() as u64),
            "{sender:?} has gaps: {:?}",
            sequence.keys()
        );
        assert!(sequence.values().all(|ids| ids.len() == 1), "a record that was sent twice has two ids");
        distinct += sequence.len();
    }
    records.len() - distinct
}

#[test]
fn real_opens_arrive_in_a_real_broker_with_headers_key_and_gapless_sequence() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 3);
    let site = Site::new();
    let sensor = Sensor::start(&mut site.sensor(&broker));
    let opened = site.open(0..1000);
    broker.consume_until(TOPIC, |records| paths(records).len() >= 1000);
    let (_, log) = sensor.stop();
    let records = broker.consume(TOPIC);

    assert_eq!(paths(&records), opened);
    assert_eq!(assert_gapless(&records), 0);
    assert_eq!(records.last().unwrap().kind(), "heartbeat");
    assert_eq!((total(&log, "fired"), total(&log, "shipped"), total(&log, "alerts_lost")), (1000, 1000, 0));
    // In the order in which they happened, since they share a key.
    assert!(records.iter().map(|r| r.document["event"]["sequence"].as_u64().unwrap()).is_sorted());
    for record in records.iter().filter(|record| record.kind() == "alert") {
        assert_eq!(record.key, "node-1");
        assert_eq!(record.header("ce_partitionkey"), "node-1");
        assert_eq!(record.header("ce_specversion"), "1.0");
        assert_eq!(record.header("ce_dataschema"), "https://github.com/elastic/ecs/tree/v9.4.0");
        assert_eq!(record.header("ce_source"), "/clusters/lab/nodes/node-1");
        assert_eq!(record.header("content-type"), "application/json");
        assert_eq!(json!(record.header("ce_id")), record.document["event"]["id"]);
        assert_eq!(json!(record.header("ce_time")), record.document["@timestamp"]);
        assert_eq!(record.document["process"]["pid"], std::process::id());
        assert_eq!(record.document["host"]["name"], "node-1");
        assert_eq!(record.document["orchestrator"]["cluster"]["name"], "lab");
    }
}

#[test]
fn a_sensor_killed_while_the_broker_is_down_delivers_every_spooled_alert_when_both_are_back() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 1);
    let site = Site::new();

    // Both up: the first alerts are delivered and acknowledged.
    let mut sensor = Sensor::start(&mut site.sensor(&broker));
    let mut opened = site.open(0..200);
    broker.consume_until(TOPIC, |records| paths(records).len() >= 200);

    // The broker dies, alerts go on, and then the sensor dies too, without a chance to say goodbye.
    broker.kill();
    opened.extend(site.open(200..700));
    wait_for_spooled(&sensor, 700);
    sensor.wait_for_log("Kafka is degraded");
    sensor.child.kill().unwrap();
    drop(sensor);

    // The sensor is back before the broker: it starts degraded and keeps spooling.
    let mut sensor = Sensor::start(&mut site.sensor(&broker));
    opened.extend(site.open(700..900));
    wait_for_spooled(&sensor, 900);
    broker.start();
    let began = Instant::now();
    let records = broker.consume_until(TOPIC, |records| paths(records).len() >= 900);
    println!("all alerts {:?} after the broker's return", began.elapsed());
    sensor.wait_for_log("Kafka acknowledges again");
    sensor.stop();

    assert_eq!(paths(&records), opened);
    let twice = assert_gapless(&records);
    println!("{} records, {twice} of them repeated", records.len());
    let epochs: BTreeSet<_> = records.iter().map(|r| r.document["agent"]["ephemeral_id"].to_string()).collect();
    assert_eq!(epochs.len(), 1, "the spool survived, so the epoch did");
}

#[test]
fn an_unreachable_broker_is_no_error_and_a_stopped_sensor_leaves_its_alerts_in_the_spool() {
    let mut broker = Broker::new();
    let site = Site::new();
    let mut sensor = Sensor::start(&mut site.sensor(&broker));
    let opened = site.open(0..50);
    sensor.wait_for_log("Kafka is degraded");
    wait_for_spooled(&sensor, 50);
    let began = Instant::now();
    let (_, log) = sensor.stop();
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!((total(&log, "fired"), total(&log, "shipped"), total(&log, "alerts_lost")), (50, 0, 0));

    broker.start();
    broker.create_topic(TOPIC, 1);
    let sensor = Sensor::start(&mut site.sensor(&broker));
    let records = broker.consume_until(TOPIC, |records| paths(records).len() >= 50);
    sensor.stop();
    assert_eq!(paths(&records), opened);
    assert_eq!(assert_gapless(&records), 0);
}

#[test]
fn a_topic_that_appears_late_gets_every_alert() {
    let mut broker = Broker::new();
    broker.start();
    let site = Site::new();
    let mut command = site.sensor(&broker);
    // librdkafka believes for 30 s that a missing topic is only late; here it gives up sooner, again and again.
    command.env("PATHWATCH__SHIP__KAFKA__PROPERTIES", "{topic.metadata.propagation.max.ms: '500'}");
    let mut sensor = Sensor::start(&mut command);
    let mut opened = site.open(0..50);
    sensor.wait_for_log("Kafka is degraded");
    opened.extend(site.open(50..100));
    wait_for_spooled(&sensor, 100);
    broker.create_topic(TOPIC, 1);
    let records = broker.consume_until(TOPIC, |records| paths(records).len() >= 100);
    sensor.wait_for_log("Kafka acknowledges again");
    let (_, log) = sensor.stop();
    assert_eq!(paths(&records), opened);
    println!("{} records, {} of them repeated", records.len(), assert_gapless(&records));
    assert_eq!((total(&log, "shipped"), total(&log, "alerts_lost")), (100, 0));
}

#[test]
fn a_file_sink_rotates_and_holds_every_alert() {
    let site = Site::new();
    let file = site.directory.path().join("alerts.jsonl");
    let mut command = pathwatch();
    command
        .arg("run")
        .current_dir(site.directory.path())
        .env("PATHWATCH__SHIP__SINK", "file")
        .env("PATHWATCH__SHIP__STORM", UNLIMITED)
        .env("PATHWATCH__SHIP__STATE_DIR", site.directory.path().join("state"))
        .env("PATHWATCH__SHIP__FILE__PATH", &file)
        .env("PATHWATCH__SHIP__FILE__MAX_BYTES", "100KiB")
        .env("PATHWATCH__SHIP__FILE__KEEP", "50");
    let sensor = Sensor::start(&mut command);
    let opened = site.open(0..500);
    let (_, log) = sensor.stop();
    assert_eq!((total(&log, "fired"), total(&log, "shipped")), (500, 500));

    let name = |n: usize| if n == 0 { file.clone() } else { format!("{}.{n}", file.display()).into() };
    let files: Vec<PathBuf> = (0..).map(name).take_while(|path| path.is_file()).collect();
    println!("{} files", files.len());
    assert!(files.len() > 3);
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() < 110 << 10));
    let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let documents: Vec<serde_json::Value> =
        files.iter().rev().flat_map(|file| lines(file)).map(|line| serde_json::from_str(&line).unwrap()).collect();
    documents.iter().for_each(schema::check);
    let last = documents.len() as u64;
    assert!(documents.iter().map(|d| d["event"]["sequence"].as_u64().unwrap()).eq(1..=last));
    let alerts = documents.iter().filter(|document| document["data_stream"]["dataset"] == "pathwatch.alert");
    assert_eq!(alerts.map(|d| d["file"]["path"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), opened);
}
