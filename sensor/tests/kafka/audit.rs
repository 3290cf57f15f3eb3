//! The commands that read a topic, and redaction: what is secret is nowhere.
use std::{fs, process::Output};

use serde_json::Value;

use crate::{
    TOPIC,
    broker::Broker,
    shipper::{Place, open, paths},
};

fn run(place: &Place, arguments: &[&str]) -> Output {
    place.command().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_topic_is_proved_whole_over_its_partitions_and_tail_shows_it() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 3);
    let place = Place::new(&broker.address()).set("SHIP__KAFKA__KEY", "none").set("SHIP__HEARTBEAT", "1s");
    let mut shipper = place.start();
    shipper.feed(0..100);
    shipper.feed(0..100);
    let log = shipper.finish();
    let records = broker.consume(TOPIC);
    assert_eq!(paths(&records).len(), 100);
    let keys = records.iter().map(|record| record.key.is_empty());
    assert!(keys.clone().all(|empty| empty) && keys.count() > 100, "no keys: any partition");

    let out = run(&place, &["audit"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let accounts: Value = serde_json::from_slice(&out.stdout).unwrap();
    let account = &accounts[0];
    assert_eq!((account["node"].as_str(), account["alerts"].as_u64()), (Some("node-1"), Some(100)));
    assert_eq!((account["fired"].as_u64(), account["accounted"].as_u64()), (Some(200), Some(200)));
    assert_eq!(account["counted"], 100);

    let out = run(&place, &["tail", "--from-beginning", "--json"]);
    assert_eq!(text(&out.stdout).lines().count(), records.len());

    for secret_free in [log, text(&out.stdout), text(&fs::read(place.state().join("spool.redb")).unwrap())] {
        assert!(!secret_free.contains("hunter2"));
    }
    let alert = records.iter().find(|record| record.kind() == "alert").unwrap();
    assert_eq!(alert.document["pathwatch"]["redacted"], true);
    assert_eq!(alert.document["process"]["args"][2], "--password=[redacted]");
    assert_eq!(alert.document["process"]["parent"]["args"][2], "[redacted]");
}

#[test]
fn what_is_not_whole_is_named_and_fails() {
    let place = Place::new("127.0.0.1:1").set("SHIP__SINK", "file");
    let file = place.path("alerts.jsonl");
    let place = place.set("SHIP__FILE__PATH", &file.display().to_string());
    let mut shipper = place.start();
    shipper.feed(0..50);
    shipper.finish();
    let name = file.to_str().unwrap();
    assert!(run(&place, &["audit", name]).status.success());
    let whole = fs::read_to_string(&file).unwrap();
    // The first is taken out, one in the middle, and the last but one; without the last, the heartbeat, sums are unknown.
    for gone in [0, 20, whole.lines().count() - 2] {
        let left: Vec<&str> =
            whole.lines().enumerate().filter(|(at, _)| *at != gone).map(|(_, line)| line).collect();
        fs::write(&file, left.join("\n") + "\n").unwrap();
        let out = run(&place, &["audit", name]);
        assert_eq!(out.status.code(), Some(1));
        let wanted = format!("missing: {}", gone + 1);
        assert!(text(&out.stdout).contains(&wanted), "{}", text(&out.stdout));
        assert!(text(&out.stderr).contains("unexplained"), "{}", text(&out.stderr));
    }
    fs::write(&file, "{}\n").unwrap();
    let out = run(&place, &["audit", name]);
    assert!(text(&out.stderr).contains("there is no record of Pathwatch"));
}

#[test]
fn a_topic_that_cannot_be_proved_is_refused_with_the_reason() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic_with("compacted", 1, &[("cleanup.policy", "compact")]);
    let place = Place::new(&broker.address());
    for (arguments, wanted) in [
        (&["audit", "--topic", "compacted"][..], "is compacted"),
        (&["audit", "--topic", "nowhere"], "there is no topic nowhere"),
        (&["tail", "--topic", "nowhere"], "there is no topic nowhere"),
    ] {
        let out = run(&place, arguments);
        assert_eq!(out.status.code(), Some(1));
        assert!(text(&out.stderr).contains(wanted), "{}", text(&out.stderr));
    }
    let place = Place::new("127.0.0.1:1");
    let out = run(&place, &["audit"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("127.0.0.1:1"), "{}", text(&out.stderr));
}

#[test]
fn losses_health_and_heartbeats_may_have_a_topic_of_their_own_and_ocsf_is_proved_likewise() {
    let mut broker = Broker::new();
    broker.start();
    broker.create_topic(TOPIC, 1);
    broker.create_topic("system", 1);
    let place = Place::new(&broker.address())
        .set("SHIP__KAFKA__SYSTEM_TOPIC", "system")
        .set("SHIP__FORMAT", "ocsf")
        .set("SHIP__HEARTBEAT", "1s");
    let mut shipper = place.start();
    shipper.feed(0..20);
    shipper.feed(0..20);
    shipper.write(&open(1, "/watched/0"));
    shipper.finish();
    let (alerts, system) = (broker.consume(TOPIC), broker.consume("system"));
    assert!(alerts.iter().all(|record| matches!(record.kind(), "alert" | "summary")));
    assert!(alerts.iter().any(|record| record.kind() == "summary"));
    assert!(system.iter().all(|record| matches!(record.kind(), "loss" | "health" | "heartbeat")));
    assert!(alerts.iter().all(|record| record.document["class_uid"] == 2004));
    let out = run(&place, &["audit"]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    let accounts: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(accounts[0]["fired"], 41);
}
