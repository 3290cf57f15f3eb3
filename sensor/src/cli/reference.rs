//! What this program can write of itself: the configuration with all defaults, completions for shells, pages of man(1).
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate};
use jiff::SignedDuration;
use serde_json::{Map, Value};

use super::Cli;
use crate::config::Config;

/// Widest line of a comment, in characters.
const WIDTH: usize = 100;

const HEAD: &str = "# Every setting of pathwatch.yaml with its default; printed by `pathwatch config`. A setting whose line is a comment has none.
# Each can also be set by a variable: PATHWATCH__SHIP__KAFKA__TOPIC=alerts. Secrets are in files only.
";

/// `pathwatch config`
pub(super) fn config() -> anyhow::Result<String> {
    let schema = schemars::schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default())?;
    let mut text = HEAD.to_owned();
    section(&schema, &schema, &defaults, 0, &mut text);
    Ok(text)
}

/// What a schema stands for: itself, another, or one of several of which null is none.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let one_of = schema.get("anyOf").or(schema.get("allOf")).and_then(Value::as_array);
    let inner = one_of.into_iter().flatten().find(|one| one.get("type").is_none_or(|kind| kind != "null"));
    let schema = inner.unwrap_or(schema);
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/$defs/"));
    name.and_then(|name| root.get("$defs")?.get(name)).unwrap_or(schema)
}

/// Writes the settings of a section, as comments where there is no default.
fn section(root: &Value, schema: &Value, defaults: &Value, depth: usize, text: &mut String) {
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    for (name, property) in properties {
        let (indent, inner) = ("  ".repeat(depth), resolved(root, property));
        let about = property.get("description").or(inner.get("description")).and_then(Value::as_str);
        for line in wrapped(about.unwrap_or_default(), WIDTH - 2 * depth) {
            *text += &format!("{indent}# {line}\n");
        }
        let has_settings = inner.get("properties").is_some();
        let value = defaults.get(name).unwrap_or(&Value::Null);
        if !has_settings {
            *text += &match value {
                value if value.is_null() => format!("{indent}# {name}:\n"),
                value => format!("{indent}{name}: {}\n", told(value)),
            };
        } else if value.is_null() {
            let mut inside = String::new();
            section(root, inner, &Value::Null, 1, &mut inside);
            *text += &format!("{indent}# {name}:\n");
            inside.lines().for_each(|line| *text += &format!("{indent}# {line}\n"));
        } else {
            *text += &format!("{indent}{name}:\n");
            section(root, inner, value, depth + 1, text);
        }
    }
}

/// A default as people write it.
fn told(value: &Value) -> String {
    let span = value.as_str().and_then(|text| text.parse::<SignedDuration>().ok());
    span.map_or_else(|| value.to_string(), |span| format!("{span:#}"))
}

/// Lines of words.
fn wrapped(words: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `pathwatch completions`
pub(super) fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    generate(shell, &mut Cli::command(), "pathwatch", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// `pathwatch man`: a page for the program and one for each of its commands.
pub(super) fn man(directory: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write pages to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_in_docs_is_fresh_and_is_what_it_says() {
        let text = config().unwrap();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pathwatch.yaml");
        let fresh = std::fs::read_to_string(file).unwrap_or_default() == text;
        assert!(fresh, "write `pathwatch config` to docs/pathwatch.yaml");
        let read: Config = serde_yaml::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(Config::default()).unwrap());
        let about = text.lines().filter(|line| line.trim_start().starts_with("# ")).count();
        assert!(about > 40, "settings are not explained:\n{text}");
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completions(shell);
            for command in ["doctor", "status", "audit", "suggest"] {
                assert!(text.contains(command), "{shell} does not know {command}");
            }
        }
    }
}
