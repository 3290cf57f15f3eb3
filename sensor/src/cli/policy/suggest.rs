//! `pathwatch policy suggest`
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead as _, BufReader, Read},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::print;
use crate::{
    event::Operation,
    policy::{is_broad, shown},
};

/// Longest line that is read, in bytes; a record of the sensor has at most a quarter of it.
const LINE_LIMIT: u64 = 1 << 20;
/// Most groups of alerts that are told apart.
const GROUPS_LIMIT: usize = 10_000;
/// Most paths that a comment names.
const PATHS_SHOWN: usize = 3;

#[derive(Args)]
#[command(after_help = "\
Groups alerts by policy, program and image and prints an exception for each group, in the form of the configuration; \
the lists below `exceptions` can also go into the policies themselves. A program that does what it is told, such as a \
shell, gets no exception. One that others than root or the image can change may get one that never holds: whether it is \
so is looked at once an exception names it.

Examples:
  pathwatch run > alerts.jsonl                          a day of ordinary work, then
  pathwatch policy suggest --from alerts.jsonl
  kcat -C -b kafka:9092 -t pathwatch-alerts -e | pathwatch policy suggest --from -")]
pub(in crate::cli) struct Arguments {
    /// Alerts as JSON lines, or - for standard input
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

/// What a suggestion needs of an alert.
#[derive(Deserialize)]
struct Record {
    rule: Rule,
    file: Option<Value>,
    #[serde(default)]
    process: Value,
    container: Option<Value>,
    pathwatch: Own,
}

#[derive(Deserialize)]
struct Rule {
    name: String,
}

#[derive(Deserialize)]
struct Own {
    #[serde(default)]
    operation: Vec<Operation>,
}

/// Alerts that one exception would silence: of this program in this image.
type Group = (Option<String>, Option<String>);

#[derive(Default)]
struct Seen {
    alerts: u64,
    operations: BTreeSet<Operation>,
    paths: BTreeSet<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name = arguments.from.display().to_string();
    let input: Box<dyn Read> = if name == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(&arguments.from).with_context(|| format!("cannot read the alerts in {name}"))?)
    };
    let policies = read(input, &name)?;
    if policies.is_empty() {
        return print("# No alerts: nothing to suggest.\n");
    }
    print(&suggestions(&policies))
}

fn read(input: impl Read, name: &str) -> anyhow::Result<BTreeMap<String, BTreeMap<Group, Seen>>> {
    let (mut input, mut line) = (BufReader::new(input), Vec::new());
    let mut policies: BTreeMap<String, BTreeMap<Group, Seen>> = BTreeMap::new();
    for number in 1u64.. {
        line.clear();
        if input.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_slice(&line).with_context(|| format!("{name}:{number}: not JSON"))?;
        // The topic also holds records of health and loss.
        if value.pointer("/event/kind").and_then(Value::as_str) != Some("alert") {
            continue;
        }
        let record: Record = serde_json::from_value(value)
            .with_context(|| format!("{name}:{number}: not an alert of Pathwatch"))?;
        let text = |value: &Option<Value>, field: &str| Some(value.as_ref()?.pointer(field)?.as_str()?.to_owned());
        let executable = text(&Some(record.process), "/executable");
        let group = (executable, text(&record.container, "/image/name"));
        let groups = policies.entry(record.rule.name).or_default();
        if groups.len() >= GROUPS_LIMIT && !groups.contains_key(&group) {
            bail!(
                "{name}:{number}: more than {GROUPS_LIMIT} programs raise alerts of one policy; mend the policy first"
            );
        }
        let seen = groups.entry(group).or_default();
        seen.alerts += 1;
        seen.operations.extend(record.pathwatch.operation);
        if seen.paths.len() <= PATHS_SHOWN {
            seen.paths.extend(text(&record.file, "/path"));
        }
    }
    Ok(policies)
}

/// What holds of every exception by program.
const TRUST: &str =
    "# An exception holds for a program while nobody but root, or the image, can have put it there.\n";

fn suggestions(policies: &BTreeMap<String, BTreeMap<Group, Seen>>) -> String {
    let mut text = TRUST.to_owned() + "policies:\n  overrides:\n";
    for (policy, groups) in policies {
        let (mut entries, mut refused) = (String::new(), String::new());
        for (group, seen) in groups {
            match entry(group) {
                Ok(entry) => entries += &format!("      # {}\n{entry}", summary(group, seen)),
                Err(why) => refused += &format!("    # {}: {}: {why}\n", shown(policy), summary(group, seen)),
            }
        }
        text += &refused;
        if !entries.is_empty() {
            text += &format!(
                "    {}:\n      exceptions:\n{}",
                quoted(policy),
                entries.replace("\n      ", "\n        ").replacen("      ", "        ", 1)
            );
        }
    }
    text
}

/// One exception, or why there is none.
fn entry((executable, image): &Group) -> Result<String, &'static str> {
    let Some(executable) = executable else { return Err("no exception, since the program is unknown") };
    if is_broad(executable) {
        return Err(
            "no exception, since whoever can run it could pass for it; name a script, a user or paths by hand",
        );
    }
    let image = image.as_ref().map(|image| format!("        images: [{}]\n", quoted(&escaped(image))));
    Ok(format!("      - executables: [{}]\n{}", quoted(&escaped(executable)), image.unwrap_or_default()))
}

fn summary((executable, image): &Group, seen: &Seen) -> String {
    let mut paths: Vec<String> = seen.paths.iter().take(PATHS_SHOWN).map(|path| shown(path)).collect();
    if seen.paths.len() > PATHS_SHOWN {
        paths.push("…".to_owned());
    }
    let operations: Vec<String> = seen.operations.iter().map(Operation::to_string).collect();
    let place = image.as_ref().map(|image| format!(" in {}", shown(image))).unwrap_or_default();
    let program = shown(executable.as_deref().unwrap_or("an unknown program"));
    let alerts = if seen.alerts == 1 { "alert" } else { "alerts" };
    format!("{} {alerts}: {program}{place}, {} {}", seen.alerts, operations.join(", "), paths.join(", "))
}

/// A path as a pattern that matches it alone.
fn escaped(path: &str) -> String {
    path.chars().fold(String::new(), |mut all, c| {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
            all.push('\\');
        }
        all.push(c);
        all
    })
}

/// Text as one YAML scalar on one line: JSON is YAML.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        return text.to_owned();
    }
    serde_json::to_string(text).unwrap_or_default()
}
