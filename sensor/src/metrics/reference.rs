//! What each metric is, made of the metrics themselves: docs/metrics.md.
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use super::{Metrics, text};

const HEAD: &str = "# Metrics

Printed by `pathwatch metrics-reference`; a test holds this page to it. Served in the form of OpenMetrics at `/metrics` of `http.listen`. Every series
is there from the start, at zero, but for those of kernel programs, which are there once these are loaded. `policy` has the names
of at most 200 policies of files and of the cluster; those of PathPolicies are counted as `(others)`.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
";

/// One metric.
#[derive(Default)]
struct Described<'a> {
    kind: &'a str,
    help: &'a str,
    /// Names, and values unless there are many.
    labels: BTreeMap<&'a str, Vec<&'a str>>,
}

/// Most values of a label that are written out.
const VALUES: usize = 8;

/// The page.
#[must_use]
pub fn reference() -> String {
    let metrics = Arc::new(Metrics::default());
    metrics.programs.know(["do_filp_open".to_owned()].into_iter());
    let text = text(&metrics);
    let mut all: Vec<(&str, Described<'_>)> = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), help) => {
                all.push((name, Described { help: help.unwrap_or_default(), ..Described::default() }));
            }
            (Some("#"), Some("TYPE"), _, kind) => {
                all.last_mut().into_iter().for_each(|(_, metric)| metric.kind = kind.unwrap_or_default())
            }
            _ => {
                let Some((_, metric)) = all.last_mut() else { continue };
                let Some((name, value)) = label(line) else { continue };
                metric.labels.entry(name).or_default().push(value);
            }
        }
    }
    let mut page = HEAD.to_owned();
    for (name, Described { kind, help, labels }) in all {
        let total = if kind == "counter" { "_total" } else { "" };
        let labels = labels.into_iter().filter(|(name, _)| *name != "le").map(|(name, values)| {
            if values.len() > VALUES || name == "program" || name == "policy" {
                format!("`{name}`")
            } else {
                format!("`{name}`: {}", values.join(", "))
            }
        });
        let labels: Vec<String> = labels.collect();
        // Writing to a String does not fail.
        writeln!(page, "| `{name}{total}` | {kind} | {} | {} |", labels.join("; "), help.trim_end_matches('.'))
            .ok();
    }
    page
}

/// The one label of a series.
fn label(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once('{')?;
    let (label, _) = rest.rsplit_once('}')?;
    let (name, value) = label.split_once('=')?;
    Some((name, value.trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_fresh() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        assert_eq!(
            std::fs::read_to_string(file).unwrap_or_default(),
            reference(),
            "write `pathwatch metrics-reference` to docs/metrics.md"
        );
    }
}
