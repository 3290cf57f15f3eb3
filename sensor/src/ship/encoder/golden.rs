//! One record of each kind in each schema, as committed in sensor/tests/schema/good; tests/schema.rs validates them.
#![expect(clippy::print_stdout, reason = "sizes belong in the log")]
use std::{fs, path::Path};

use serde_json::json;

use super::*;
use crate::ship::{
    ledger::{Kind as LossKind, Loss},
    samples,
    storm::{Config as StormConfig, Rate, Storm, Verdict},
};

fn rich() -> Alert {
    let mut change = samples::in_pod();
    let more = json!({
        "home": "/var/lib/x/etc/shadow", "requested": "shadow", "status": ["chroot"],
        "process": {
            "pid": 4711, "start_ns": 5_000_000_000_u64, "executable": "/usr/bin/cat", "cwd": "/etc",
            "args": ["cat", "shadow", "--password=hunter2"],
        },
    });
    change.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let spec = json!({
        "description": "Password hashes were opened.", "severity": "high", "tags": ["credential-access"],
        "threat": [{"tactic": "TA0006", "technique": "T1003.008"}],
    });
    samples::alert(&spec, &change)
}

fn denied() -> Alert {
    samples::alert(&json!({}), &json!({"result": -13, "file": null, "path": null, "requested": "/etc/shadow"}))
}

/// What a storm of the alert becomes: repeats, and what was beyond the limits.
fn summaries(alert: &Alert) -> Vec<Folded> {
    let now = std::time::Instant::now();
    let config = StormConfig { policy: Rate { per_second: 1, burst: 1 }, ..StormConfig::default() };
    let mut storm = Storm::new(config, Redact::new(&Redaction::On), &[], now);
    assert_eq!(storm.admit(alert, || Uuid::from_u128(1), now), Verdict::Emit);
    assert_eq!(storm.admit(alert, || Uuid::from_u128(2), now), Verdict::Suppressed);
    let mut other = alert.clone();
    let mut event = (*other.event).clone();
    event.event.path = Some("/etc/shadow-".into());
    other.event = event.into();
    assert_eq!(storm.admit(&other, || Uuid::from_u128(3), now), Verdict::Limited);
    storm.close_due(None);
    std::iter::from_fn(|| storm.take_closed()).map(|(_, folded)| folded).collect()
}

fn loss() -> Loss {
    let time = "2026-11-22T12:00:00Z".parse().unwrap();
    Loss {
        kind: LossKind {
            stage: "ship".to_owned(),
            reason: "spool_full".to_owned(),
            policy: Some("p".to_owned()),
            container: Some("c".repeat(64)),
        },
        count: 4,
        first: time,
        last: time,
        ranges: vec![(7, 8), (11, 11)],
        subject: Some("shop/web-5d4f8-x2x7z".to_owned()),
        detail: "the spool is full".to_owned(),
    }
}

fn beat() -> Beat {
    let big = 18_000_000_000;
    let totals =
        Totals { fired: big, shipped: big, suppressed: big, limited: big, lost: big, numbered: 0, told: 7 };
    Beat { totals, waiting: 131_072, spool: (268_435_456, 268_435_456), last: false }
}

#[test]
fn records_are_what_is_committed() {
    let (rich, denied) = (rich(), denied());
    let summaries = summaries(&rich);
    let [repeats, overflow] = summaries.as_slice() else { panic!("{summaries:?}") };
    let (loss, beat) = (loss(), beat());
    let notice = Notice {
        stage: "ship",
        reason: "kafka_degraded",
        lost: false,
        count: 3,
        whose: None,
        detail: "no broker answers".to_owned(),
    };
    let said = [
        ("alert", Said::Alert(&rich)),
        ("denied", Said::Alert(&denied)),
        ("repeats", Said::Summary(repeats)),
        ("overflow", Said::Summary(overflow)),
        ("loss", Said::Loss(&loss)),
        ("health", Said::Health(&notice)),
        ("heartbeat", Said::Heartbeat(&beat)),
    ];
    let created = "2026-11-22T12:00:00.003Z".parse().unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schema/good");
    let mut stale = Vec::new();
    for (format, word) in [(Format::Ecs, "ecs"), (Format::Ocsf, "ocsf")] {
        let encoder = samples::encoder(format);
        for (name, said) in &said {
            let (_, record) = encoder.record(said, 17, created).unwrap();
            let record: Record = serde_json::from_slice(&record).unwrap();
            let document: Value = serde_json::from_str(record.data.get()).unwrap();
            let text = format!("{document:#}\n");
            assert!(!text.contains("hunter2"), "{text}");
            if word == "ecs" && *name == "heartbeat" {
                assert!(record.data.get().len() <= 700, "a heartbeat has {} bytes", record.data.get().len());
            }
            let file = directory.join(format!("{name}.{word}.json"));
            if std::env::var_os("PATHWATCH_GOLDEN").is_some() {
                fs::write(&file, &text).unwrap();
            }
            if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
                stale.push(file);
            }
        }
    }
    assert!(stale.is_empty(), "{stale:?} are not what is encoded; with PATHWATCH_GOLDEN=1 this test writes them");
}

#[test]
fn the_most_hostile_alert_fits_and_says_what_it_lost() {
    let long = |byte: &str| format!("/{}", byte.repeat(4000));
    let nasty = |tag: &str| long(&format!("\\x{tag}"));
    let program = |pid: u32| {
        json!({
            "pid": pid, "start_ns": 1, "executable": nasty("01"), "cwd": nasty("ff"), "script": nasty("02"),
            "args": std::iter::repeat_n("\\x01", 4000).collect::<Vec<_>>(),
        })
    };
    let mut change = samples::in_pod();
    let labels: serde_json::Map<String, Value> =
        (0..500).map(|n| (format!("{n}{}", "k".repeat(300)), "\u{1}".repeat(60).into())).collect();
    change["pod"]["labels"] = labels.into();
    let more = json!({
        "path": nasty("ff"), "home": nasty("01"), "requested": nasty("fe"), "cgroup_path": nasty("01"),
        "process": program(2), "ancestors": [program(1), program(3), program(4), program(5), program(6)],
    });
    change.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let alert = samples::alert(&json!({"description": "\u{1}".repeat(1000)}), &change);
    for format in [Format::Ecs, Format::Ocsf] {
        let (_, bytes) = samples::encoder(format).record(&Said::Alert(&alert), 1, Timestamp::UNIX_EPOCH).unwrap();
        let record: Record = serde_json::from_slice(&bytes).unwrap();
        let document: Value = serde_json::from_str(record.data.get()).unwrap();
        let own = crate::ship::record::own(&document).unwrap();
        println!("{format:?}: {} bytes without {}", record.data.get().len(), own["truncated"]);
        assert!(record.data.get().len() <= RECORD_LIMIT);
        assert!(own["truncated"].as_array().unwrap().contains(&json!("process.parent.args")));
    }
}
