//! What a running sensor says of itself, while one thing after another goes wrong: is it seeing, which policy fails, what is
//! lost, is Kafka well, which certificate expires. Needs root.
use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    TOPIC,
    broker::Broker,
    running::{PATIENCE, Sensor},
    security::tls,
    shipper::Place,
};

/// More than one cgroup may have looked at at once.
const OPENS: u64 = 40_000;

/// Asks until the answer is as wanted.
fn until(place: &Place, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let output = place.command().arg("status").output().unwrap();
        // It answers a moment after it sees.
        let status =
            if output.status.success() { serde_json::from_slice(&output.stdout).unwrap() } else { Value::Null };
        if !status.is_null() && is(&status) {
            return status;
        }
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(began.elapsed() < PATIENCE, "not {what}: {why}{status:#}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The page for people, whose columns are apart by two blanks at least.
fn page(place: &Place) -> String {
    let output = place.command().args(["status", "--all"]).output().unwrap();
    let words = |line: &str| {
        line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("  ")
    };
    String::from_utf8(output.stdout).unwrap().lines().map(|line| words(line) + "\n").collect()
}

fn write_policy(place: &Place, name: &str, rest: &str) {
    let head = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\n";
    let text = format!("{head}metadata: {{name: {name}}}\nspec: {{subjects: all, {rest}}}\n");
    fs::write(place.path(&format!("policies/{name}.yaml")), text).unwrap();
}

fn expiry(certificate: &Path) -> jiff::Timestamp {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    told.trim()
        .strip_prefix("notAfter=")
        .unwrap()
        .replace(' ', "T")
        .replace("TZ", "Z")
        .parse()
        .unwrap_or_else(|why| panic!("{told}: {why}"))
}

fn policy<'a>(status: &'a Value, name: &str) -> &'a Value {
    let policies = status["policies"].as_array().unwrap();
    policies.iter().find(|policy| policy["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn what_is_over_a_limit_and_what_has_no_room_is_counted() {
    for (name, value, outcome) in [
        ("SHIP__STORM__POLICY", "{per_second: 1, burst: 1}", "limited"),
        ("SHIP__SPOOL__MAX_BYTES", "1MiB", "lost"),
    ] {
        // Nobody listens there.
        let place = Place::new("127.0.0.1:1").set("SHIP__STORM__WINDOW", "0s").set(name, value);
        let socket = place.path("status.sock").display().to_string();
        let watched = place.path("watched");
        fs::write(&watched, "").unwrap();
        write_policy(&place, "good", &format!("paths: ['{}']", watched.display()));
        let place = place.set("HTTP__SOCKET", &socket);
        let _sensor = Sensor::start(place.command().args(["run", "--policies", "policies"]));
        until(&place, "at work", |status| policy(status, "good") != &Value::Null);
        (0..2000).for_each(|_| drop(File::open(&watched).unwrap()));
        let status = until(&place, outcome, |status| status["alerts"][outcome].as_u64() > Some(0));
        println!("status: {outcome}: {}", status["alerts"]);
    }
}

#[test]
fn five_questions_are_answered_whatever_goes_wrong() {
    let mut broker = Broker::secure();
    broker.start();
    broker.create_topic(TOPIC, 1);
    let place = Place::new(&broker.tls_address()).set("SHIP__KAFKA__TLS", &tls(&broker, "ca", "super"));
    let socket = place.path("status.sock").display().to_string();
    let place = place.set("HTTP__SOCKET", &socket).set("CAPTURE__SHARE", "{rate: 1000, burst: 20000}");
    let place = place.set("CAPTURE__SELF_TEST", "true");
    let watched = place.path("watched").display().to_string();
    fs::write(&watched, "secret").unwrap();
    fs::remove_file(place.path("policies/p.yaml")).unwrap();
    write_policy(&place, "good", &format!("paths: ['{watched}']"));
    write_policy(&place, "turns-bad", "paths: [/nowhere/at/all]");
    // What the self-test does would be an alert of this, were it anybody else's doing.
    write_policy(&place, "of-the-test", "paths: ['/**/pathwatch-doctor-*/**']");

    // Nobody is there yet.
    let output = place.command().arg("status").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("no sensor runs here: "), "{told}");

    let sensor = Sensor::start(place.command().args(["run", "--policies", "policies"]));
    let status =
        until(&place, "tested", |status| !status["self_test"].is_null() && policy(status, "good") != &Value::Null);
    let cases = status["self_test"]["cases"].as_array().unwrap();
    let count = |answer: &str| cases.iter().filter(|case| case["answer"] == answer).count();
    assert!(count("wrong") == 0 && count("right") + count("marked") > 60, "{cases:#?}");
    assert_eq!(status["sink"]["degraded"], false);
    assert_eq!(status["sink"]["certificate_expires"], expiry(&broker.file("certs/super.pem")).to_string());
    assert_eq!(
        policy(&status, "good")["patterns"],
        serde_json::json!([[watched, if status["sight"]["mode"] == "fexit" { "kernel" } else { "user" }]])
    );
    // What the self-test does is no alert.
    assert_eq!(status["alerts"]["fired"], 0);

    drop(File::open(&watched).unwrap());
    let status = until(&place, "shipped", |status| status["alerts"]["shipped"] == 1);
    assert_eq!(policy(&status, "good")["hits"], 1);

    write_policy(&place, "turns-bad", "paths: [not/absolute]");
    write_policy(&place, "always-bad", "pahts: [/etc/passwd]");
    let status = until(&place, "failed", |status| policy(status, "always-bad") != &Value::Null);
    assert_eq!(policy(&status, "turns-bad")["state"], "stale");
    assert_eq!(policy(&status, "always-bad")["state"], "failed");
    assert_eq!(status["policies"][0]["name"], "always-bad", "what needs attention comes first");

    (0..OPENS).for_each(|_| drop(File::open(&watched).unwrap()));
    let limited = |status: &Value| {
        let troubles = status["troubles"].as_array().unwrap();
        let found = troubles.iter().find(|trouble| trouble["reason"] == "limited");
        found.map_or(0, |trouble| trouble["count"].as_u64().unwrap())
    };
    let seen = |status: &Value| policy(status, "good")["hits"].as_u64().unwrap();
    // Without a filter in the kernel, others' opens take from the share, too.
    let is_whole = |status: &Value| {
        limited(status) > 0 && limited(status) + seen(status) > OPENS && status["opens"]["lost"] == limited(status)
    };
    let status = until(&place, "whole", is_whole);
    println!("status: {} alerts of {OPENS} opens, {} lost beyond the share", seen(&status), limited(&status));

    broker.kill();
    drop(File::open(&watched).unwrap());
    let status = until(&place, "degraded", |status| status["sink"]["degraded"] == true);
    let error = &status["sink"]["last_error"];
    assert_eq!(error["reason"], "kafka_degraded");
    let page = page(&place);
    for answer in [
        "POLICIES  3 in force, 1 of them stale, 1 failed, 0 suspended".to_owned(),
        "failed  always-bad".to_owned(),
        "unknown field 'pahts'".to_owned(),
        "in force  good  medium  ".to_owned(),
        "limited  capture  ".to_owned(),
        "does not acknowledge".to_owned(),
        "Kafka certificate  expires in ".to_owned(),
        "self-test  of 78 ways to a file ".to_owned(),
    ] {
        assert!(page.contains(&answer), "'{answer}' is not in\n{page}");
    }
    drop(sensor);
}
