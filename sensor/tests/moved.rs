//! Every metric is moved by some test: one that never was may be counted nowhere, and nobody would know.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it did")]
#[path = "common/moved.rs"]
mod kept;

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use sensor::metrics::{Metrics, text};

/// Labels that only tell series of a kind apart: one of them is enough. Of all others, each value must be moved.
const ALIKE: [&str; 5] = ["case", "program", "stage", "policy", "le"];

/// The name of a series, with those labels that count.
fn series(line: &str) -> &str {
    let name = line.rsplit_once(' ').map_or(line, |(name, _)| name);
    match name.split_once('{') {
        Some((short, labels)) if ALIKE.iter().any(|label| labels.starts_with(&format!("{label}=\""))) => short,
        _ => name,
    }
}

/// Series of a new sensor that none of the pages has.
fn unmoved(pages: &[String]) -> BTreeSet<String> {
    let moved: BTreeSet<&str> = pages.iter().flat_map(|page| page.lines()).map(series).collect();
    let page = text(&Arc::<Metrics>::default());
    // A family may have no series before something is there of which it speaks.
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let is_moved = |family: &&str| moved.iter().any(|name| name.starts_with(family));
    let families: Vec<String> = families.filter(|family| !is_moved(family)).map(str::to_owned).collect();
    let all = page.lines().filter(|line| !line.starts_with('#')).map(series);
    all.filter(|name| !moved.contains(name)).map(str::to_owned).chain(families).collect()
}

/// The pages that tests on this machine have left, and those that guests have printed.
fn pages() -> Vec<String> {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests");
    let read = |directory: &Path| -> Vec<String> {
        fs::read_dir(directory)
            .into_iter()
            .flatten()
            .map(|entry| String::from_utf8_lossy(&fs::read(entry.unwrap().path()).unwrap()).into_owned())
            .collect()
    };
    let printed = read(&guests)
        .into_iter()
        .map(|page| page.lines().filter_map(|line| line.strip_prefix("METRIC\t")).collect::<Vec<_>>().join("\n"));
    read(&kept::place()).into_iter().chain(printed).collect()
}

#[test]
#[ignore = "it looks at what all other tests have left, and comes last: make test"]
fn every_metric_is_moved_by_a_test() {
    let pages = pages();
    let unmoved = unmoved(&pages);
    println!("{} pages of metrics", pages.len());
    assert!(unmoved.is_empty(), "no test moves {unmoved:#?}");
}

#[test]
fn a_metric_that_nothing_moves_is_found() {
    let metrics = Arc::<Metrics>::default();
    metrics.undecodable.add(1);
    let page = text(&metrics).lines().filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n");
    let unmoved = unmoved(&[page]);
    assert!(!unmoved.contains("pathwatch_capture_undecodable_total"));
    for name in [
        "pathwatch_capture_numbered_total",
        "pathwatch_capture_passed_total{reason=\"links\"}",
        "pathwatch_coverage",
        "pathwatch_capture_program_seconds",
    ] {
        assert!(unmoved.contains(name), "{name} of {unmoved:#?}");
    }
}
