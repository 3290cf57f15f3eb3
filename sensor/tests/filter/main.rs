//! The kernel's filter held to the language: whatever some policy wants passes, for random policies, files, mounts and
//! views, while all of them change. The deciding code is the kernel's own (`sensor_ebpf::decide`).
//!
//! `SEED=n` repeats a run, `CASES=n` sets how many opens are judged.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it did")]
mod world;

use std::{collections::BTreeMap, env, str::FromStr, sync::Arc};

use fastrand::Rng;
use sensor::{
    capture::table,
    event::Operation,
    keys::Known,
    matcher::run_examples,
    policy::{Directory, Namespace, Outcome, PolicySet, names, wants_of},
};
use sensor_ebpf::{
    decide::{Opened, Reason, passes, without_path},
    table::{Wants, classes},
};
use world::{Fault, NAMES, World};

fn setting<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// A pattern of names that files have.
fn pattern(rng: &mut Rng) -> String {
    let mut pattern = String::from(if rng.u8(..4) == 0 { "**" } else { "" });
    for _ in 0..rng.usize(1..4) {
        let component = match rng.u8(..12) {
            0 => "*".to_owned(),
            1 => "**".to_owned(),
            2 => "id_*".to_owned(),
            3 => "*.pem".to_owned(),
            4 => format!("{{{},{}}}", rng.choice(NAMES).unwrap(), rng.choice(NAMES).unwrap()),
            _ => (*rng.choice(NAMES).unwrap()).to_owned(),
        };
        pattern = format!("{pattern}/{component}");
    }
    pattern
}

/// Policies that compile.
fn policies(rng: &mut Rng) -> Arc<PolicySet> {
    const OPERATIONS: [&[&str]; 5] =
        [&["read"], &["write"], &["read", "list"], &["exec"], &["read", "write", "reference"]];
    let mut text = String::new();
    for number in 0..rng.usize(1..5) {
        let paths: Vec<String> = (0..rng.usize(1..5)).map(|_| pattern(rng)).collect();
        let policy = serde_json::json!({
            "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy",
            "metadata": {"name": format!("p{number}")},
            "spec": {
                "subjects": "all", "podSelector": {"matchLabels": {"app": format!("p{}", number % 3)}}, "paths": paths, "operations": rng.choice(OPERATIONS).unwrap(),
                "results": [rng.choice(["success", "denied"]).unwrap(), "success"],
            },
        });
        text.push_str(&format!("---\n{policy}\n"));
    }
    // What can never match, or matches everything, is refused: the others are in force.
    Directory::read_text(text.as_bytes(), run_examples).set
}

/// The operations of an open of these flags, as events have them.
fn operations(flags: u32, is_directory: bool) -> Vec<Operation> {
    match flags {
        0o10_000_000 => vec![Operation::Reference],
        0x20 => vec![Operation::Exec],
        _ if is_directory => vec![Operation::List],
        0o1 => vec![Operation::Write],
        0o2 => vec![Operation::Read, Operation::Write],
        _ => vec![Operation::Read],
    }
}

/// What enrichment knows of mounts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Knows {
    /// All that there is now, so that policies see every place of a file.
    Now,
    /// What there was at first: then they see the opener's path.
    Once,
}

/// Whether some policy of those that are `speaking` wants it, by the whole language: the path that the opener has for it, and
/// every home.
fn wants(
    (set, speaking): (&PolicySet, &[u32]),
    world: &World,
    (mount, dentry): (usize, usize),
    done: &[Operation],
    (result, knows): (i32, Knows),
) -> bool {
    let mut wanted = false;
    let homes = if knows == Knows::Now { world.homes(dentry) } else { Vec::new() };
    for name in std::iter::once(&world.path(mount, dentry)).chain(&homes).flat_map(|path| names(path)) {
        set.matches(&name, Namespace::Unknown, |policy, _| {
            let spec = &set.policies[policy as usize].policy.spec;
            wanted |= speaking.contains(&policy)
                && spec.results.contains(&Outcome::of(result))
                && spec.operations.iter().any(|operation| done.contains(operation));
        });
    }
    wanted
}

/// Some world, the policies in it, and what the kernel has of both.
struct Scene {
    world: World,
    set: Arc<PolicySet>,
    known: Known,
    wants: Wants,
    knows: Knows,
    /// Mount and dentry of the last open.
    last: (usize, usize),
}

impl Scene {
    fn new(rng: &mut Rng, knows: Knows, fault: Fault) -> Self {
        let world = World::random(rng, fault);
        let known = world.known();
        let mut scene = Self { world, set: policies(rng), known, wants: Wants::default(), knows, last: (0, 0) };
        scene.swap();
        scene
    }

    /// Something changes, or not; says what.
    fn change(&mut self, rng: &mut Rng) -> Option<&'static str> {
        let what = match rng.u8(..20) {
            0 => {
                self.set = policies(rng);
                "policies"
            }
            1 | 2 => {
                self.world.rename(rng, self.last.1);
                "rename"
            }
            3 => {
                self.world.mount(rng);
                "mount"
            }
            4 => {
                self.world.move_mount(rng, self.last.0);
                "mount moved"
            }
            _ => return None,
        };
        self.swap();
        Some(what)
    }

    fn swap(&mut self) {
        if self.knows == Knows::Now {
            self.known = self.world.known();
        }
        let (wants, words) = table(&self.set.keys(&self.known));
        if (wants, &words) != (self.wants, &self.world.words) {
            (self.wants, self.world.words) = (wants, words);
            self.world.swapped();
        }
    }

    /// Opens something: why it passes, and whether some policy wants it; then also what it is.
    fn open(&mut self, rng: &mut Rng) -> (Option<Reason>, &'static str, Option<String>) {
        // What was just opened is what is remembered.
        if rng.u8(..4) == 0 {
            self.last = self.world.file(rng);
        }
        let (world, (mount, dentry)) = (&self.world, self.last);
        let is_directory = world.is_directory(dentry);
        // Nobody opens a directory to write.
        let flags = if is_directory { &[0, 0o10_000_000][..] } else { &[0, 0, 0o1, 0o2, 0x20, 0o10_000_000] };
        let flags = *rng.choice(flags).unwrap();
        let result = if rng.u8(..10) == 0 { -13 } else { 0 };
        let file = Opened { dentry: World::address(dentry), mount: World::address(mount), links: 1 };
        // Of a cgroup that nobody knows everything is wanted, of others what the policies want that speak of it.
        let all = 0..self.set.policies.len() as u32;
        let known = rng.bool();
        let speaking: Vec<u32> = all.filter(|_| !known || rng.bool()).collect();
        let mut asked =
            if known { wants_of(&self.set.wants_of_each(), &speaking, rng.bool()) } else { self.wants };
        if self.world.fault == Fault::Audience {
            asked.audience &= asked.audience.wrapping_sub(1);
        }
        let passed = without_path(asked, classes(flags), result)
            .unwrap_or_else(|| passes(&world, asked, classes(flags), file));
        let operations = operations(flags, is_directory);
        let wanted = wants((&self.set, &speaking), world, self.last, &operations, (result, self.knows));
        let who = if known { "cgroup: known" } else { "cgroup: unknown" };
        (passed, who, wanted.then(|| self.told(flags)))
    }

    fn told(&self, flags: u32) -> String {
        let (mount, dentry) = self.last;
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let homes: Vec<String> = self.world.homes(dentry).iter().map(|home| text(home)).collect();
        let path = text(&self.world.path(mount, dentry));
        format!("{path} = {homes:?} (flags {flags:#o}) under {:?}", patterns(&self.set))
    }
}

/// Runs `cases` opens, with what goes wrong; returns the first that some policy wants and that does not pass.
fn run(
    rng: &mut Rng,
    cases: u64,
    (knows, fault): (Knows, Fault),
    counts: &mut BTreeMap<String, u64>,
) -> Option<String> {
    let mut count = |what: String| *counts.entry(what).or_default() += 1;
    for _ in 0..cases / 300 {
        let mut scene = Scene::new(rng, knows, fault);
        for _ in 0..300 {
            if let Some(what) = scene.change(rng) {
                count(what.to_owned());
            }
            let (passed, who, wanted) = scene.open(rng);
            count(format!("{who}, {}", if wanted.is_some() { "wanted" } else { "not wanted" }));
            count(passed.map_or("stopped".to_owned(), |reason| format!("passed: {reason:?}")));
            if let Some(what) = wanted {
                count("wanted".to_owned());
                if passed.is_none() {
                    return Some(what);
                }
            }
        }
    }
    None
}

fn patterns(set: &PolicySet) -> Vec<&Vec<String>> {
    set.policies.iter().map(|policy| &policy.policy.spec.paths).collect()
}

fn seeded(test: &str) -> Rng {
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{test}: SEED={seed}");
    Rng::with_seed(seed)
}

#[test]
fn what_some_policy_wants_passes() {
    let cases = setting("CASES").unwrap_or(1_000_000);
    let mut counts = BTreeMap::new();
    let mut rng = seeded("filter");
    let missed = run(&mut rng, cases / 2, (Knows::Now, Fault::None), &mut counts)
        .or_else(|| run(&mut rng, cases / 2, (Knows::Once, Fault::None), &mut counts));
    for (what, count) in &counts {
        println!("filter: {what:<24} {count:>9}");
    }
    assert_eq!(missed, None, "wanted, and stopped");
    let all =
        ["policies", "rename", "mount", "mount moved", "wanted", "stopped", "passed: Name", "passed: Directory"];
    let also = ["passed: Everything", "passed: Failed", "cgroup: known, wanted", "cgroup: unknown, wanted"];
    for what in all.into_iter().chain(also) {
        assert!(counts.get(what).is_some_and(|count| *count >= cases / 1000), "too few: {what}");
    }
}

#[test]
fn a_filter_that_is_not_sound_is_found_out() {
    // What shows it is rare: from this seed it comes soon.
    let mut rng = Rng::with_seed(setting("SEED").unwrap_or(3));
    for (knows, fault) in [
        (Knows::Once, Fault::Moves),
        (Knows::Once, Fault::Mounts),
        (Knows::Now, Fault::Swaps),
        (Knows::Now, Fault::Homes),
        (Knows::Now, Fault::Audience),
    ] {
        let missed = run(&mut rng, 5_000_000, (knows, fault), &mut BTreeMap::new());
        println!("{fault:?}: {}", missed.as_deref().unwrap_or("not found"));
        assert!(missed.is_some(), "{fault:?} is not found out");
    }
}
