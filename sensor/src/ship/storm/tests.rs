#![expect(clippy::print_stdout, reason = "seed and counts belong in the log")]
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::ship::{redact::Redaction, samples};

fn storm(config: Config) -> Storm {
    Storm::new(config, Redact::new(&Redaction::On), &[], Instant::now())
}

fn opened(spec: &Value, path: &str, more: &Value) -> Alert {
    let mut change = json!({"path": path});
    change.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    samples::alert(spec, &change)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Everything that is ready, put away.
fn closed(storm: &mut Storm) -> Vec<Folded> {
    std::iter::from_fn(|| storm.take_closed()).map(|(_, folded)| folded).collect()
}

#[test]
fn the_first_goes_out_at_once_and_repeats_become_one_summary_at_the_windows_end() {
    let (mut storm, start) = (storm(Config::default()), Instant::now());
    let by = |pid: u32| {
        opened(
            &json!({}),
            "/etc/shadow",
            &json!({"pid": pid, "process": {"pid": pid, "start_ns": 1, "executable": "/usr/bin/cat", "args": ["cat", "--token=abc"]}}),
        )
    };
    let id = Uuid::from_u128(7);
    assert_eq!(storm.admit(&by(1), || id, start), Verdict::Emit);
    for pid in 2..=40 {
        assert_eq!(storm.admit(&by(pid), || id, start + seconds(59)), Verdict::Suppressed);
    }
    storm.close_due(Some(start + seconds(59)));
    assert!(storm.take_closed().is_none());
    storm.close_due(Some(start + seconds(60)));
    let summaries = closed(&mut storm);
    let [summary] = summaries.as_slice() else { panic!("{summaries:?}") };
    assert_eq!((summary.suppressed, summary.limited, summary.first_alert), (39, 0, Some(id)));
    assert_eq!(summary.processes.len(), 16);
    assert_eq!(summary.processes[0].args, "cat --token=[redacted]");
    assert_eq!(storm.admit(&by(1), || id, start + seconds(60)), Verdict::Emit);
    // Without repeats there is nothing to tell.
    storm.close_due(None);
    assert!(storm.take_closed().is_none());
}

#[test]
fn only_the_same_by_the_same_is_a_repeat() {
    let program = |executable: &str| json!({"process": {"pid": 1, "start_ns": 1, "executable": executable}});
    let container = |id: &str| json!({"container": {"id": id, "pod_uid": null}});
    let all = [
        opened(&json!({}), "/etc/shadow", &json!({})),
        opened(&json!({"description": "another version"}), "/etc/shadow", &json!({})),
        opened(&json!({}), "/etc/shadow-", &json!({})),
        opened(
            &json!({}),
            "/etc/shadow",
            &json!({"file": {"inode": 13, "device": 1, "mode": 0o100_640, "links": 1, "created": false}}),
        ),
        opened(&json!({}), "/etc/shadow", &json!({"result": -13, "file": null})),
        opened(&json!({}), "/etc/shadow", &json!({"flags": 0o100_001})),
        opened(&json!({}), "/etc/shadow", &json!({"uid": 0})),
        opened(&json!({}), "/etc/shadow", &json!({"login_uid": 7})),
        opened(&json!({}), "/etc/shadow", &program("/usr/bin/tac")),
        opened(
            &json!({}),
            "/etc/shadow",
            &json!({"ancestors": [{"pid": 1, "start_ns": 0, "executable": "/bin/sh"}]}),
        ),
        opened(&json!({}), "/etc/shadow", &container("a")),
        opened(&json!({}), "/etc/shadow", &container("b")),
    ];
    let (mut storm, now) = (storm(Config::default()), Instant::now());
    for alert in &all {
        assert_eq!(storm.admit(alert, Uuid::nil, now), Verdict::Emit);
    }
    for alert in &all {
        assert_eq!(storm.admit(alert, Uuid::nil, now), Verdict::Suppressed);
    }
}

#[test]
fn a_policy_chooses_its_window_and_its_rate() {
    let (mut storm, now) = (storm(Config::default()), Instant::now());
    let spec = json!({"dedup": {"window": "0s"}, "rateLimit": {"perSecond": 1, "burst": 2}});
    let alert = opened(&spec, "/etc/shadow", &json!({}));
    let verdicts = |storm: &mut Storm, at| [(); 3].map(|()| storm.admit(&alert, Uuid::nil, at));
    assert_eq!(verdicts(&mut storm, now), [Verdict::Emit, Verdict::Emit, Verdict::Limited]);
    assert_eq!(verdicts(&mut storm, now + seconds(1)), [Verdict::Emit, Verdict::Limited, Verdict::Limited]);
    storm.close_due(None);
    let summaries = closed(&mut storm);
    assert_eq!((summaries.len(), summaries[0].limited, summaries[0].top[0].count), (1, 3, 3));
}

#[test]
fn a_storm_in_one_pod_hides_neither_the_next_victim_nor_what_is_critical() {
    let config = Config { node: Rate { per_second: 1, burst: 10 }, ..Config::default() };
    let (mut storm, now) = (storm(config), Instant::now());
    let of = |spec: &Value, container: &str, n: usize| {
        opened(spec, &format!("/etc/{n}"), &json!({"container": {"id": container, "pod_uid": null}}))
    };
    let noisy = json!({});
    let count =
        (0..100).filter(|n| storm.admit(&of(&noisy, "noisy", *n), Uuid::nil, now) == Verdict::Emit).count();
    assert_eq!(count, 8, "all but the reserve");
    assert_eq!(storm.admit(&of(&noisy, "victim", 0), Uuid::nil, now), Verdict::Emit);
    assert_eq!(storm.admit(&of(&noisy, "victim", 1), Uuid::nil, now), Verdict::Limited);
    let critical = json!({"severity": "critical", "description": "another policy"});
    let count =
        (0..100).filter(|n| storm.admit(&of(&critical, "noisy", *n), Uuid::nil, now) == Verdict::Emit).count();
    assert_eq!(count, 2, "the reserve");
}

#[test]
fn who_has_used_up_the_free_passes_of_one_user_has_not_used_up_anothers() {
    let config = Config { node: Rate { per_second: 1, burst: 5 }, ..Config::default() };
    let (mut storm, now) = (storm(config), Instant::now());
    let by = |n: usize, uid: u32| {
        let program = json!({"uid": uid, "process": {"pid": 1, "start_ns": 1, "executable": format!("/tmp/{n}")}});
        opened(&json!({}), &format!("/etc/{n}"), &program)
    };
    for n in 0..100 {
        storm.admit(&by(n, 1000), Uuid::nil, now);
    }
    assert_eq!(storm.admit(&by(200, 1000), Uuid::nil, now), Verdict::Limited);
    assert_eq!(storm.admit(&by(200, 0), Uuid::nil, now), Verdict::Emit);
}

#[test]
fn a_namespaces_author_cannot_drain_the_node() {
    let (mut storm, now) = (storm(Config::default()), Instant::now());
    let greedy = json!({"rateLimit": {"perSecond": 4_000_000_000_u32, "burst": 4_000_000_000_u32}});
    let of = |spec: &Value, n: usize| {
        let mut alert = opened(spec, &format!("/etc/{n}"), &json!({}));
        let mut policy = alert.policy.policy.clone();
        (policy.kind, policy.spec.subjects) = (Kind::PathPolicy, None);
        policy.metadata.namespace = Some("shop".to_owned());
        policy.metadata.name = format!("greedy-{}", n / 1000);
        let compiled = crate::policy::Compiled::new(policy, "p.yaml".to_owned(), Vec::new()).unwrap();
        alert.policy = std::sync::Arc::new(compiled);
        alert
    };
    let count = (0..10_000).filter(|n| storm.admit(&of(&greedy, *n), Uuid::nil, now) == Verdict::Emit).count();
    assert!((500..520).contains(&count), "{count} of a burst of 1,000");
    let cluster = |n: usize| opened(&json!({}), &format!("/etc/{n}"), &json!({}));
    let count = (0..50).filter(|n| storm.admit(&cluster(*n), Uuid::nil, now) == Verdict::Emit).count();
    assert_eq!(count, 50);
}

#[test]
fn new_programs_do_not_pay_only_so_often() {
    let config = Config { node: Rate { per_second: 1, burst: 5 }, ..Config::default() };
    let (mut storm, now) = (storm(config), Instant::now());
    let by = |n: usize| {
        let program = json!({"process": {"pid": 1, "start_ns": 1, "executable": format!("/tmp/{n}")}});
        opened(&json!({}), &format!("/etc/{n}"), &program)
    };
    let count = (0..1000).filter(|n| storm.admit(&by(*n), Uuid::nil, now) == Verdict::Emit).count();
    assert_eq!(count, HEARD_FREE + 4, "and those that paid, up to the reserve");
}

#[test]
fn windows_and_overflows_are_bounded_and_none_is_forgotten() {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let (mut storm, now) = (storm(Config { policy: rate, node: rate, ..Config::default() }), Instant::now());
    let of = |n: usize| opened(&json!({}), &format!("/etc/{n}"), &json!({}));
    for n in 0..WINDOWS + 10 {
        let alert = of(n);
        assert_eq!(storm.admit(&alert, Uuid::nil, now + Duration::from_millis(n as u64)), Verdict::Emit);
        assert_eq!(storm.admit(&alert, Uuid::nil, now + Duration::from_millis(n as u64)), Verdict::Suppressed);
    }
    assert_eq!((storm.windows.len(), storm.ends.len(), closed(&mut storm).len()), (WINDOWS, WINDOWS, 10));

    let rate = Rate { per_second: 1, burst: 1 };
    let mut storm = self::storm(Config { policy: rate, node: rate, ..Config::default() });
    for n in 0..(OVERFLOWS + 50) {
        let alert = opened(&json!({}), "/etc/x", &json!({"container": {"id": n.to_string(), "pod_uid": null}}));
        // The first of a container is heard; the second window of it is not.
        storm.admit(&alert, Uuid::nil, now);
        let other = opened(&json!({}), "/etc/y", &json!({"container": {"id": n.to_string(), "pod_uid": null}}));
        assert_eq!(storm.admit(&other, Uuid::nil, now), Verdict::Limited);
    }
    assert_eq!(storm.overflows.len(), OVERFLOWS + 1);
    storm.close_due(None);
    let summaries = closed(&mut storm);
    assert_eq!(summaries.iter().map(|folded| folded.limited).sum::<u64>(), OVERFLOWS as u64 + 50);
    assert!(summaries.iter().any(|folded| folded.rule.name == "others" && folded.limited == 50));
}

/// How often each thing happened in a random run.
#[derive(Debug, Default)]
struct Happened {
    emitted: u64,
    suppressed: u64,
    limited: u64,
    closed: u64,
    put_back: u64,
    crashes: u64,
    interrupted: u64,
}

/// The rows as a spool keeps them.
fn persist(storm: &mut Storm, rows: &mut BTreeMap<RowKey, Vec<u8>>) {
    for (row, value) in storm.take_dirty() {
        match value {
            Some(value) => drop(rows.insert(row, value)),
            None => drop(rows.remove(&row)),
        }
    }
}

#[test]
fn whatever_happens_every_alert_is_emitted_or_in_exactly_one_summary() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut happened = Happened::default();
    let one = |n: u8| {
        let container = json!({"container": {"id": (n / 12).to_string(), "pod_uid": null}});
        opened(&json!({}), &format!("/etc/{}", n % 12), &container)
    };
    let alerts: Vec<Alert> = (0..48).map(one).collect();
    for _ in 0..200 {
        let rate = Rate { per_second: random.u32(1..20), burst: random.u32(1..40) };
        let config = Config { policy: rate, node: Rate { burst: 60, ..rate }, ..Config::default() };
        let mut now = Instant::now();
        let (mut storm, mut rows) = (storm(config.clone()), BTreeMap::new());
        // So few that summaries must be put together, in some runs.
        storm.most_closed = if random.bool() { 3 } else { CLOSED };
        let (mut told, mut expected) = (0, 0);
        for _ in 0..300 {
            match storm.admit(&alerts[random.usize(..alerts.len())], Uuid::nil, now) {
                Verdict::Emit => happened.emitted += 1,
                Verdict::Suppressed => (happened.suppressed, expected) = (happened.suppressed + 1, expected + 1),
                Verdict::Limited => (happened.limited, expected) = (happened.limited + 1, expected + 1),
            }
            let longest = if random.u8(0..8) == 0 { 20_000 } else { 50 };
            now += Duration::from_millis(random.u64(0..longest));
            storm.close_due(Some(now));
            while let Some((row, folded)) = storm.take_closed() {
                if random.u8(0..3) > 0 {
                    storm.put_back(row, folded);
                    happened.put_back += 1;
                    break;
                }
                told += folded.suppressed + folded.limited;
                happened.closed += 1;
                happened.interrupted += u64::from(folded.interrupted);
                assert!(folded.top.len() <= 10, "seed {seed}");
                rows.remove(&row);
            }
            // The rows of a commit are all there is after a crash.
            persist(&mut storm, &mut rows);
            if random.u8(0..100) == 0 {
                let left: Vec<_> = rows.clone().into_iter().collect();
                storm = Storm::new(config.clone(), Redact::new(&Redaction::On), &left, now);
                happened.crashes += 1;
            }
        }
        storm.close_due(None);
        told += closed(&mut storm).iter().map(|folded| folded.suppressed + folded.limited).sum::<u64>();
        assert_eq!(told, expected, "seed {seed}");
    }
    println!("{happened:?}");
    let Happened { emitted, suppressed, limited, closed, put_back, crashes, interrupted } = happened;
    for count in [emitted, suppressed, limited, closed, put_back, crashes, interrupted] {
        assert!(count > 20, "something hardly happened: seed {seed}");
    }
}
