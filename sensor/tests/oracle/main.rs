//! The matcher against an oracle: the same language written a second time, as plainly as it can be, with globset for
//! the patterns. Random policies, random events; whoever is right, they must agree.
//!
//! `SEED=n` repeats a run, `CASES=n` sets how many decisions are compared.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it did")]
mod decision;
mod globs;
mod world;

use std::{collections::BTreeMap, env, str::FromStr, sync::Arc};

use fastrand::Rng;
use globs::{FEATURES, Pattern};
use sensor::{
    matcher,
    policy::{Patterns, PolicySet, View},
};

fn setting<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// A generator, and its seed said.
fn seeded(test: &str) -> Rng {
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{test}: SEED={seed}");
    Rng::with_seed(seed)
}

/// Prints every counter; none may be below its least.
fn report(test: &str, counters: &BTreeMap<String, (u64, u64)>) {
    for (name, (count, _)) in counters {
        println!("{test}: {name:<32} {count:>9}");
    }
    let rare: Vec<&String> =
        counters.iter().filter(|(_, (count, least))| count < least).map(|(name, _)| name).collect();
    assert!(rare.is_empty(), "{test}: too few of {rare:?}");
}

#[test]
fn patterns_match_what_globset_matches() {
    let cases: u64 = setting("CASES").unwrap_or(2_000_000);
    let mut rng = seeded("patterns");
    let (mut done, mut hits, mut refused) = (0u64, 0u64, 0u64);
    let mut features = vec![(0u64, 0u64); FEATURES.len()];
    while done < cases {
        let pattern = Pattern::random(&mut rng);
        // What can never match is refused, and a brace may hold such a branch.
        let Ok(ours) = Patterns::compile("", std::slice::from_ref(&pattern.text)) else {
            refused += 1;
            continue;
        };
        let theirs = decision::glob(&pattern.globset);
        for _ in 0..100 {
            let mut path = if rng.u8(..10) < 6 { pattern.path(&mut rng) } else { globs::random_path(&mut rng) };
            if rng.u8(..4) == 0 {
                world::mutate(&mut path, &mut rng);
            }
            if !world::is_path(&path) {
                continue;
            }
            let (here, there) = (ours.first_match(&path).is_some(), decision::glob_matches(&theirs, &path));
            let shown = String::from_utf8_lossy(&path);
            assert_eq!(here, there, "'{}' (globset '{}') on {shown}", pattern.text, pattern.globset);
            done += 1;
            hits += u64::from(here);
            for (_, (seen, hit)) in
                features.iter_mut().enumerate().filter(|(at, _)| pattern.features & 1 << at != 0)
            {
                *seen += 1;
                *hit += u64::from(here);
            }
        }
    }
    println!(
        "patterns: {done} cases, {:.1} % hits, {refused} patterns refused",
        hits as f64 / done as f64 * 100.0
    );
    let least = 10_000.min(cases / 100);
    let counters = FEATURES.iter().zip(&features).flat_map(|(name, (seen, hit))| {
        [((*name).to_owned(), (*seen, least)), (format!("{name}, matched"), (*hit, least))]
    });
    report("patterns", &counters.collect());
    assert!(hits * 10 >= done * 3, "fewer than 30 % hits");
}

/// A policy fired by another name of the path than the kernel's.
const ANOTHER_NAME: &str = "fires by another name of the path";

/// How a policy can come to fire.
const VIEWS: &[&str] =
    &["fires by path", "fires by home", "fires by requested", "fires by identity", "fires by target"];

#[test]
fn decisions_are_those_of_the_oracle() {
    let cases: u64 = setting("CASES").unwrap_or(2_000_000);
    let mut rng = seeded("decisions");
    let mut counters: BTreeMap<String, (u64, u64)> = decision::BRANCHES
        .iter()
        .chain(VIEWS)
        .chain([&ANOTHER_NAME])
        .map(|name| ((*name).to_owned(), (0, 1000.min(cases / 1000))))
        .collect();
    let (mut done, mut fired) = (0u64, 0u64);
    while done < cases {
        let world = world::World::random(&mut rng);
        let set = PolicySet::new(world.policies.iter().map(|policy| policy.compiled.clone()).collect());
        for _ in 0..100 {
            let event = Arc::new(world.event(&mut rng));
            let got = matcher::decide(&event, &set);
            let alerts: Vec<&str> = got.alerts.iter().map(|alert| alert.policy.name()).collect();
            let unknown: Vec<&str> = got.namespace_unknown.iter().map(|policy| policy.name()).collect();
            let (mut want_alerts, mut want_unknown) = (Vec::new(), Vec::new());
            for policy in &world.policies {
                let branch = decision::decide(&event, policy);
                counters.get_mut(branch).unwrap().0 += 1;
                match branch {
                    "fires" => want_alerts.push(policy.compiled.name()),
                    "namespace unknown" => want_unknown.push(policy.compiled.name()),
                    _ => {}
                }
                done += 1;
            }
            let case = || serde_json::to_string(&*event).unwrap();
            let policies = || {
                world
                    .policies
                    .iter()
                    .map(|p| serde_json::to_string(&p.compiled.policy).unwrap())
                    .collect::<Vec<_>>()
            };
            assert_eq!((&alerts, &unknown), (&want_alerts, &want_unknown), "on {}\nby {:#?}", case(), policies());
            fired += want_alerts.len() as u64;
            for alert in &got.alerts {
                counters.get_mut(&format!("fires by {}", alert.view.word())).unwrap().0 += 1;
                let policy =
                    world.policies.iter().find(|policy| policy.compiled.name() == alert.policy.name()).unwrap();
                let at = alert.policy.policy.spec.paths.iter().position(|text| *text == alert.pattern).unwrap();
                let named = decision::matches_somewhere(&event, &policy.paths[at]);
                let path = event.event.path.as_ref().filter(|_| alert.view == View::Path);
                if path.is_some_and(|path| !decision::glob_matches(&policy.paths[at], path.as_bytes())) {
                    counters.get_mut(ANOTHER_NAME).unwrap().0 += 1;
                }
                assert!(named, "the alert names '{}', which does not match, on {}", alert.pattern, case());
            }
        }
    }
    println!("decisions: {done} cases, {:.1} % fire", fired as f64 / done as f64 * 100.0);
    report("decisions", &counters);
    assert!(fired * 10 >= done * 3, "fewer than 30 % fire");
}
