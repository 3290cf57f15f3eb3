//! What a broker can do to a producer, and a disk to a spool, one test each; by the real broker, or by librdkafka's mock where
//! a real one cannot be made to.
use std::{
    fs,
    time::{Duration, Instant},
};

use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use serde_json::json;

use crate::{
    TOPIC,
    broker::{Broker, Consumed},
    running::total,
    shipper::{Place, health, mount, open, paths, unmount},
};

/// Waits until `n` distinct alerts are in the topic.
fn arrived(broker: &Broker, n: usize) -> Vec<Consumed> {
    broker.consume_until(TOPIC, |records| paths(records).len() >= n)
}

/// A name that no compression makes shorter.
fn long_name(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.alphanumeric()).take(bytes).collect()
}

#[test]
fn a_broker_that_hangs_is_noticed_then_left_and_gets_everything_when_it_is_back() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 1);
    let place = Place::new(&broker.address()).set("SHIP__KAFKA__STALL", "1s");
    let mut shipper = place.start();
    shipper.feed(0..10);
    arrived(&broker, 10);
    broker.hang();
    // More than librdkafka takes at a time: the rest waits in the spool.
    shipper.feed(10..12_000);
    shipper.wait_for_log("no answer for");
    shipper.wait_for_log("the Kafka producer is replaced");
    broker.go_on();
    let log = shipper.finish();
    let records = broker.consume(TOPIC);
    assert_eq!(paths(&records).len(), 12_000);
    assert_eq!(total(&log, "alerts_lost"), 0);
    assert!(health(&records, "kafka_degraded").iter().any(|message| message.contains("min.insync.replicas")));
    assert!(!health(&records, "kafka_producer_replaced").is_empty());
}

#[test]
fn a_topic_that_is_deleted_and_made_anew_gets_what_comes_then() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 2);
    let place = Place::new(&broker.address()).set(
        "SHIP__KAFKA__PROPERTIES",
        "{topic.metadata.propagation.max.ms: '500', topic.metadata.refresh.interval.ms: '1000'}",
    );
    let mut shipper = place.start();
    shipper.feed(0..10);
    arrived(&broker, 10);
    broker.delete_topic(TOPIC);
    shipper.feed(10..20);
    shipper.wait_for_log("make the topic");
    broker.create_topic(TOPIC, 1);
    broker.consume_until(TOPIC, |records| !health(records, "kafka_recovered").is_empty());
    shipper.finish();
    assert_eq!(paths(&broker.consume(TOPIC)).len(), 10);
}

#[test]
fn of_a_batch_that_is_too_large_for_the_topic_only_the_record_that_is_it_becomes_a_dead_letter() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic_with(TOPIC, 1, &[("max.message.bytes", "6000")]);
    let place = Place::new(&broker.address()).set("SHIP__KAFKA__COMPRESSION", "none");
    let mut shipper = place.start();
    shipper.feed(0..50);
    shipper.write(&open(50, &format!("/watched/{}", long_name(4000))));
    shipper.feed(51..100);
    let log = shipper.finish();
    let records = broker.consume(TOPIC);
    assert_eq!((paths(&records).len(), total(&log, "alerts_lost")), (99, 1));
    dead_letter_is_told(&place, &records);
}

#[test]
fn a_record_that_is_too_large_for_the_client_becomes_a_dead_letter_and_its_neighbours_do_not() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 1);
    let place = Place::new(&broker.address()).set("SHIP__KAFKA__PROPERTIES", "{message.max.bytes: '6000'}");
    let mut shipper = place.start();
    shipper.feed(0..20);
    shipper.write(&open(20, &format!("/watched/{}", long_name(4000))));
    shipper.feed(21..40);
    shipper.finish();
    let records = broker.consume(TOPIC);
    assert_eq!(paths(&records).len(), 39);
    dead_letter_is_told(&place, &records);
}

/// The one record that is lost is kept, told of, and its number is the only one that is missing.
fn dead_letter_is_told(place: &Place, records: &[Consumed]) {
    let kept = fs::read_to_string(place.state().join("dead-letters.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 1);
    let loss = records.iter().find(|record| record.document["pathwatch"]["loss"]["reason"] == "dead_letter");
    let own = &loss.unwrap().document["pathwatch"]["loss"];
    assert_eq!((own["count"].as_u64(), own["numbered"].as_u64()), (Some(1), Some(1)));
    let dead: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(own["first_sequence"], dead["event"]["sequence"]);
    assert!(!health(records, "dead_letter").is_empty());
    assert!(place.command().arg("audit").status().unwrap().success());
}

#[test]
fn a_broker_whose_disk_is_full_gets_everything_when_it_has_room_again() {
    let data = tempfile::tempdir().unwrap();
    mount(data.path(), "24m");
    let mut broker = Broker::with_data(data.path());
    broker.start();
    broker.create_topic_with(TOPIC, 1, &[("segment.bytes", "1048576")]);
    let place =
        Place::new(&broker.address()).set("SHIP__KAFKA__COMPRESSION", "none").set("SHIP__KAFKA__STALL", "2s");
    let mut shipper = place.start();
    shipper.feed(0..100);
    arrived(&broker, 100);
    // What is left of the disk goes to somebody else.
    fs::write(data.path().join("filler"), vec![1; 64 << 20]).unwrap_err();
    shipper.feed(100..2000);
    let began = Instant::now();
    while !broker.has_ended() {
        assert!(began.elapsed() < Duration::from_secs(60), "the broker lives on without a disk");
        std::thread::sleep(Duration::from_millis(50));
    }
    shipper.wait_for_log("Kafka is degraded");
    fs::remove_file(data.path().join("filler")).unwrap();
    broker.kill();
    broker.start();
    shipper.finish();
    let records = broker.consume(TOPIC);
    unmount(data.path());
    assert_eq!(paths(&records).len(), 2000);
}

/// A sensor at a broker that answers to produce requests as it is told; returns its log when all is delivered.
fn at_mock(errors: &[RDKafkaRespErr]) -> String {
    let mock = MockCluster::<'_, DefaultProducerContext>::new(1).unwrap();
    mock.create_topic(TOPIC, 1, 1).unwrap();
    let place = Place::new(&mock.bootstrap_servers()).set("SHIP__KAFKA__STALL", "1s");
    let mut shipper = place.start();
    shipper.feed(0..10);
    shipper.wait_for_spooled(10);
    mock.request_errors(RDKafkaApiKey::Produce, errors);
    shipper.feed(10..20);
    let log = shipper.finish();
    assert_eq!((total(&log, "shipped"), total(&log, "alerts_lost")), (20, 0), "{log}");
    log
}

#[test]
fn what_librdkafka_retries_itself_is_no_trouble() {
    use RDKafkaRespErr as Error;
    let log = at_mock(&[
        Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    ]);
    assert!(!log.contains("Kafka is degraded"), "{log}");
}

#[test]
fn too_few_replicas_in_sync_are_noticed_and_waited_for() {
    // A single real broker takes min.insync.replicas for what it has.
    let log = at_mock(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 12]);
    assert!(log.contains("no answer for"), "{log}");
}

#[test]
fn a_quota_that_is_exceeded_is_waited_for() {
    let log = at_mock(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED]);
    assert!(log.contains("Kafka is degraded") && log.contains("Kafka acknowledges again"), "{log}");
}

#[test]
fn an_error_from_which_a_producer_does_not_come_back_costs_the_producer_and_no_alert() {
    let log = at_mock(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    assert!(log.contains("a fatal error of the producer"), "{log}");
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_no_more_than_is_told() {
    let place = Place::new("127.0.0.1:1").set("SHIP__SINK", "file");
    let file = place.path("alerts.jsonl");
    let place = place.set("SHIP__FILE__PATH", &file.display().to_string()).set("SHIP__SPOOL__MAX_BYTES", "1MiB");
    let state = place.state();
    mount(&state, "16m");
    let mut shipper = place.start();
    shipper.feed(0..100);
    shipper.wait_for_spooled(100);
    // The sink does not take anything meanwhile: the spool must hold it.
    let aside = place.path("aside.jsonl");
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    fs::write(state.join("filler"), vec![1; 64 << 20]).unwrap_err();
    shipper.feed(100..8000);
    shipper.wait_for_log("cannot write the spool");
    fs::remove_file(state.join("filler")).unwrap();
    shipper.wait_for_log("the spool can be written again");
    fs::remove_dir(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    let log = shipper.finish();
    unmount(&state);
    let (fired, shipped, lost) = (total(&log, "fired"), total(&log, "shipped"), total(&log, "alerts_lost"));
    println!("{fired} fired, {shipped} shipped, {lost} lost");
    assert_eq!((fired, shipped + lost), (8000, 8000));
    assert!(lost > 0, "8,000 alerts do not fit into 1 MiB");
    let audit = place.command().args(["audit", file.to_str().unwrap()]).output().unwrap();
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    let account: serde_json::Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!(account[0]["fired"], json!(8000));
}

#[test]
fn a_second_sensor_on_the_same_spool_is_refused() {
    let place = Place::new("127.0.0.1:1");
    let mut first = place.start();
    first.feed(0..1);
    first.wait_for_spooled(1);
    let mut command = place.command();
    command.args(["replay", "/dev/null", "--ship", "--policies", "policies"]);
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && said.contains("another pathwatch runs on it"), "{said}");
}
