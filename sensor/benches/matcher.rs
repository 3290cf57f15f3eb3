//! What one event costs the matcher, by the number of patterns: `make bench`.
//!
//! A tenth each of directories, names, extensions and forms within a component, the rest single files, in policies of
//! ten; paths of six components as most opens have.
#![expect(clippy::unwrap_used, reason = "a bench stops by panicking")]
use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sensor::{
    event::{Enriched, Name},
    matcher,
    policy::{Compiled, Example, PolicySet},
};

fn pattern(n: usize) -> String {
    match n % 10 {
        0 => format!("/srv/app{n}/secrets/**"),
        1 => format!("**/token-{n}"),
        2 => format!("**/*.key{n}"),
        3 => format!("/home/*/.config/app{n}/cred*"),
        4 => format!("/var/lib/app{n}/*/db-[0-9]*.sqlite"),
        _ => format!("/etc/app{n}/conf.d/secret"),
    }
}

fn set(patterns: usize) -> PolicySet {
    let policies = (0..patterns / 10).map(|policy| {
        let paths: Vec<String> = (0..10).map(|n| pattern(policy * 10 + n)).collect();
        let document = serde_json::json!({
            "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy",
            "metadata": {"name": format!("p{policy}")}, "spec": {"subjects": "all", "paths": paths},
        });
        Arc::new(Compiled::new(serde_json::from_value(document).unwrap(), String::new(), vec![]).unwrap())
    });
    PolicySet::new(policies.collect())
}

fn open(path: &str) -> Arc<Enriched> {
    let mut event = matcher::event_of(&Example { open: Some(path.to_owned()), ..Example::default() }, false, None);
    event.event.requested = None;
    event.event.path = Some(Name::from(path));
    Arc::new(event)
}

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for patterns in [10, 1000, 10_000] {
        let set = set(patterns);
        let last = patterns - 10;
        for (name, path, fires) in [
            ("miss", "/opt/build/target/debug/deps/libserde.rlib".to_owned(), 0),
            ("miss in an aliased directory", "/usr/lib/x86_64-linux-gnu/security/pam.so".to_owned(), 0),
            ("hit by path", format!("/etc/app{}/conf.d/secret", last + 5), 1),
            ("hit by name", format!("/data/a/b/c/d/token-{}", last + 1), 1),
            ("hit by directory", format!("/srv/app{last}/secrets/a/b/c"), 1),
            ("hit by form", format!("/var/lib/app{}/x/db-7.sqlite", last + 4), 1),
        ] {
            let event = open(&path);
            assert_eq!(matcher::decide(&event, &set).alerts.len(), fires, "{name}");
            group.bench_with_input(BenchmarkId::new(name, patterns), &event, |b, event| {
                b.iter(|| matcher::decide(black_box(event), &set).alerts.len());
            });
        }
    }
    group.finish();
}

fn load(c: &mut Criterion) {
    c.bench_function("compile 10000 patterns", |b| b.iter(|| set(black_box(10_000)).policies.len()));
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(std::time::Duration::from_millis(500)).measurement_time(std::time::Duration::from_secs(2));
    targets = decide, load
}
criterion_main!(benches);
