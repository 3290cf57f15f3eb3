//! The invariants of ARCHITECTURE.md as checks on the source. Each check is shown to find a planted defect.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Files of the checkout by their path from its root.
type Tree = BTreeMap<String, String>;

const STAGES: [&str; 4] = ["capture", "enrich", "matcher", "ship"];

fn tree() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut tree = Tree::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name == "target" || name == ".git" {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                tree.insert(name, text);
            }
        }
    }
    tree
}

fn rust(tree: &Tree) -> impl Iterator<Item = (&String, &String)> {
    tree.iter().filter(|(name, _)| name.ends_with(".rs") && *name != "sensor/tests/tidy.rs")
}

/// Lines of `text` that are no comment, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// A line in `name` that contains one of `words` is a fault.
fn without(name: &str, text: &str, words: &[&str], why: &str) -> Vec<String> {
    let hits = code(text).filter(|(_, line)| words.iter().any(|word| line.contains(word)));
    hits.map(|(n, line)| format!("{name}:{n}: {why}: {}", line.trim())).collect()
}

fn arrows_point_one_way(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, text) in rust(tree) {
        let Some(room) = name.strip_prefix("sensor/src/") else { continue };
        let mut forbid = |words: &[&str], why: &str| faults.extend(without(name, text, words, why));
        if !room.starts_with("capture/") {
            forbid(&["aya::", "use aya"], "only capture/ imports aya");
        }
        if !room.starts_with("ship/kafka/") {
            forbid(&["rdkafka"], "only ship/kafka/ imports rdkafka");
        }
        let speaks_to_the_server = ["apiserver.rs", "enrich/pods.rs", "policy/resources.rs"].contains(&room);
        if !(speaks_to_the_server || room.starts_with("controller/")) {
            forbid(
                &["kube::", "use kube"],
                "only apiserver.rs, enrich/pods.rs, policy/resources.rs and controller/ import kube",
            );
        }
        let own = room.split('/').next().unwrap();
        if STAGES.contains(&own) || own == "policy" {
            for other in STAGES.iter().filter(|stage| **stage != own) {
                let words = [format!("crate::{other}"), format!("    {other}::"), format!("{{{other}::")];
                forbid(&words.each_ref().map(String::as_str), "stages do not import each other");
            }
        }
        if own == "matcher" {
            let words = [
                "async ",
                ".await",
                "std::fs",
                "std::io",
                "std::net",
                "std::time",
                "Instant",
                "SystemTime",
                "::now()",
                "tokio",
            ];
            forbid(&words, "matcher/ has no async, no I/O and no clock");
        }
    }
    faults
}

fn only_lib_names_all_stages(tree: &Tree) -> Vec<String> {
    let all =
        |text: &str| STAGES.iter().all(|stage| code(text).any(|(_, line)| line.contains(&format!("{stage}::"))));
    let found: Vec<&String> =
        rust(tree).filter(|(n, t)| n.starts_with("sensor/src/") && all(t)).map(|(n, _)| n).collect();
    if found == ["sensor/src/lib.rs"] {
        vec![]
    } else {
        vec![format!("only lib.rs names all four stages, not {found:?}")]
    }
}

fn unsafe_stays_in_its_place(tree: &Tree) -> Vec<String> {
    let places = ["sensor/src/capture/mod.rs", "sensor/src/capture/selftest.rs", "sensor/src/memory.rs"];
    let free = |name: &str| name.starts_with("sensor/src/") && !places.contains(&name);
    let word = "unsafe {";
    rust(tree)
        .filter(|(n, _)| free(n))
        .flat_map(|(n, t)| {
            without(
                n,
                t,
                &[word],
                "unsafe is for capture/mod.rs, capture/selftest.rs, memory.rs and the kernel side",
            )
        })
        .collect()
}

fn nothing_needs_perf_events_or_grows_without_bound(tree: &Tree) -> Vec<String> {
    let perf = ["perf_event_open", "KProbe", "UProbe", "PerfEvent", " TracePoint,", "{TracePoint", "::TracePoint"];
    let unbounded = ["unbounded_channel", "unbounded("];
    let product = rust(tree).filter(|(name, _)| name.contains("/src/"));
    product
        .flat_map(|(n, t)| {
            let mut faults = without(n, t, &perf, "perf_event_open needs SYS_ADMIN on Debian and Ubuntu");
            faults.extend(without(n, t, &unbounded, "every queue has a bound"));
            faults.extend(without(n, t, &["std::sync::mpsc"], "stages speak over tokio's bounded channels"));
            faults
        })
        .collect()
}

fn files_are_short(tree: &Tree) -> Vec<String> {
    let lines: BTreeMap<&String, usize> = rust(tree).map(|(name, text)| (name, text.lines().count())).collect();
    let mut faults: Vec<String> = lines
        .iter()
        .filter(|(_, n)| **n > 500)
        .map(|(name, n)| format!("{name} has {n} lines; at most 500"))
        .collect();
    let mut sorted: Vec<usize> = lines.into_values().collect();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    if median > 200 {
        faults.push(format!("the median file has {median} lines; at most 200"));
    }
    faults
}

fn both_sides_have_the_same_globals(tree: &Tree) -> Vec<String> {
    let kernel = &tree["sensor-ebpf/src/kernel.rs"];
    let declared = kernel.split("globals! {").nth(1).unwrap().split("\n}").next().unwrap();
    let declared =
        code(declared).flat_map(|(_, line)| line.split(',')).map(str::trim).filter(|word| !word.is_empty());
    let declared: BTreeSet<&str> = declared.collect();
    let files = ["offsets", "load", "hooks"].map(|name| &tree[&format!("sensor/src/capture/{name}.rs")]);
    let filled: BTreeSet<&str> = files
        .into_iter()
        .flat_map(|text| text.lines())
        .flat_map(|line| line.split('(').skip(1))
        .filter_map(|after| after.strip_prefix('"')?.split_once('"').map(|(name, _)| name))
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        .filter(|name| !["EVENTS", "FILTER_STATE", "OUT_DIR", "RECORDER", "WHOAMI"].contains(name))
        .collect();
    declared.symmetric_difference(&filled).map(|name| format!("global {name} is not on both sides")).collect()
}

fn the_map_is_true(tree: &Tree) -> Vec<String> {
    let map = &tree["ARCHITECTURE.md"];
    let sources = rust(tree).map(|(name, _)| name.as_str()).filter(|name| name.contains("/src/"));
    let missing = sources.filter(|name| {
        let room = name.split("/src/").nth(1).unwrap();
        !map.contains(&format!("`{room}`")) && !map.contains(&format!("`{}`", room.trim_end_matches("mod.rs")))
    });
    let mut faults: Vec<String> = missing.map(|name| format!("ARCHITECTURE.md's code map lacks {name}")).collect();
    for (file, constant) in [
        ("capture/mod.rs", "QUEUE"),
        ("capture/replay.rs", "QUEUE"),
        ("enrich/mod.rs", "QUEUE"),
        ("lib.rs", "ALERTS"),
    ] {
        let text = &tree[&format!("sensor/src/{file}")];
        let value =
            text.lines().find_map(|line| line.strip_prefix(&format!("const {constant}: usize = "))).unwrap();
        if !map.contains(value.trim_end_matches(';')) {
            faults.push(format!("{file}'s {constant} is {value} but ARCHITECTURE.md does not say so"));
        }
    }
    faults
}

fn every_hook_says_what_it_relies_on(tree: &Tree) -> Vec<String> {
    let loader = &tree["sensor/src/capture/hooks.rs"];
    let mut faults = Vec::new();
    for (name, text) in rust(tree).filter(|(name, _)| name.starts_with("sensor-ebpf/src/hooks/")) {
        let relied: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("// match-proto: ")).collect();
        let attributes = ["#[fentry", "#[fexit", "#[btf_tracepoint"];
        for (n, line) in
            text.lines().enumerate().filter(|(_, line)| attributes.iter().any(|a| line.starts_with(a)))
        {
            let function = line.split('"').nth(1).unwrap();
            if !relied.iter().any(|prototype| prototype.contains(&format!("{function}("))) {
                faults.push(format!("{name}:{}: no match-proto comment of {function}", n + 1));
            }
        }
        // The loader goes by the same prototypes; tracepoints have none there.
        let attached = relied.iter().filter(|prototype| !prototype.starts_with("void "));
        let unknown = attached.filter(|prototype| !loader.contains(**prototype));
        faults.extend(unknown.map(|prototype| format!("{name}: the loader does not know {prototype}")));
    }
    faults
}

fn every_policy_explains_itself(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, text) in tree.iter().filter(|(name, _)| name.starts_with("policies/") && name.ends_with(".yaml")) {
        let parts: Vec<&str> = name.trim_end_matches(".yaml").split('/').collect();
        let mut ask = |what: String| {
            if !text.contains(&what) {
                faults.push(format!("{name} lacks '{what}'"));
            }
        };
        ask(format!("\n  name: {}\n", parts[2]));
        ask(format!("\n  tags: [{}]\n", parts[1]));
        ask("\n  description: ".to_owned());
        ask("technique: T".to_owned());
    }
    faults
}

fn ci_has_only_the_makefiles_doors(tree: &Tree) -> Vec<String> {
    let commands =
        tree[".ci/run"].lines().map(str::trim).filter(|line| line.contains("cargo ") || line.contains("e2e/"));
    commands
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!(".ci/run goes past the Makefile: {line}"))
        .collect()
}

/// The version of `Cargo.toml` is the only one.
fn there_is_one_version(tree: &Tree) -> Vec<String> {
    let version =
        tree["Cargo.toml"].lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"')).unwrap();
    let more_than_one = |text: &str| text.lines().filter(|line| line.starts_with("version: ")).count() > 1;
    let places = [
        ("charts/pathwatch/Chart.yaml", format!("\nversion: {version}\nappVersion: {version}\n")),
        ("Dockerfile", format!("\nARG VERSION={version}\n")),
        ("CHANGELOG.md", format!("\n## {version}")),
    ];
    let wrong =
        places.iter().filter(|(file, text)| !tree[*file].contains(text.as_str()) || more_than_one(&tree[*file]));
    wrong.map(|(file, _)| format!("{file} is not of version {version}")).collect()
}

/// Each file that the guide to a new kind of event leads to has its example in it.
fn the_guide_is_true(tree: &Tree) -> Vec<String> {
    let guide = tree["CONTRIBUTING.md"].rsplit("## How to add an event kind").next().unwrap();
    let guide = guide.split("\n## ").next().unwrap();
    let steps = guide.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let files: Vec<&str> = steps.map(|step| step.split('`').nth(1).unwrap()).collect();
    let is_step = |file: &&str| tree.get(*file).is_some_and(|text| text.to_lowercase().contains("truncat"));
    let mut faults: Vec<String> = files
        .iter()
        .filter(|file| !is_step(file))
        .map(|file| format!("CONTRIBUTING.md: {file} knows no truncation"))
        .collect();
    if files.len() < 9 {
        faults.push(format!("CONTRIBUTING.md's guide has {} steps", files.len()));
    }
    faults
}

type Check = fn(&Tree) -> Vec<String>;

/// Each check, and a file whose new text it must object to.
const CHECKS: &[(Check, &str, &str)] = &[
    (arrows_point_one_way, "sensor/src/enrich/mod.rs", "use crate::ship::Encoder;"),
    (arrows_point_one_way, "sensor/src/enrich/mod.rs", "use aya::Ebpf;"),
    (arrows_point_one_way, "sensor/src/policy/mod.rs", "use crate::{\n    capture::Config,\n};"),
    (arrows_point_one_way, "sensor/src/matcher/mod.rs", "let now = Instant::now();"),
    (arrows_point_one_way, "sensor/src/ship/writer.rs", "use rdkafka::Message;"),
    (arrows_point_one_way, "sensor/src/event/mod.rs", "use kube::Api;"),
    (only_lib_names_all_stages, "sensor/src/cli/run.rs", "capture::a(); enrich::b(); matcher::c(); ship::d();"),
    (unsafe_stays_in_its_place, "sensor/src/event/mod.rs", "let x = unsafe { y() };"),
    (
        nothing_needs_perf_events_or_grows_without_bound,
        "sensor/src/capture/load.rs",
        "use aya::programs::{KProbe};",
    ),
    (
        nothing_needs_perf_events_or_grows_without_bound,
        "sensor/src/lib.rs",
        "let (a, b) = mpsc::unbounded_channel();",
    ),
    (both_sides_have_the_same_globals, "sensor/src/capture/load.rs", "(\"NO_SUCH_GLOBAL\", 1)"),
    (the_map_is_true, "sensor/src/new_room.rs", ""),
    (every_hook_says_what_it_relies_on, "sensor-ebpf/src/hooks/sys_exit.rs", "\n#[fexit(function = \"x\")]"),
    (every_policy_explains_itself, "policies/persistence/bad.yaml", "spec: {}"),
    (ci_has_only_the_makefiles_doors, ".ci/run", "cargo test"),
    (there_is_one_version, "charts/pathwatch/Chart.yaml", "version: 999"),
    (the_guide_is_true, "CONTRIBUTING.md", "\n## How to add an event kind\n1. `no/such/file.rs`"),
];

#[test]
fn the_house_is_tidy() {
    let tree = tree();
    assert!(rust(&tree).count() > 40, "the source was not found");
    let checks: BTreeSet<usize> = CHECKS.iter().map(|(check, ..)| *check as usize).collect();
    let mut faults = files_are_short(&tree);
    let mut ran = BTreeSet::new();
    for (check, ..) in CHECKS {
        if ran.insert(*check as usize) {
            faults.extend(check(&tree));
        }
    }
    assert_eq!(ran, checks);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_check_finds_its_planted_defect() {
    let clean = tree();
    for (check, file, defect) in CHECKS {
        let mut planted = clean.clone();
        planted.entry((*file).to_owned()).or_default().push_str(&format!("\n{defect}\n"));
        assert!(check(&planted).len() > check(&clean).len(), "the defect '{defect}' in {file} was not found");
    }
    let mut planted = clean.clone();
    planted.insert("sensor/src/long.rs".to_owned(), "x\n".repeat(501));
    assert!(files_are_short(&planted).len() > files_are_short(&clean).len());
}
