//! `pathwatch policy check`
use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{Output, json, paint, print};
use crate::{
    cli::{Common, load},
    policy::{Diagnostic, Level, Loaded, shown},
};

#[derive(Args)]
#[command(after_help = "\
Reads every *.yaml and *.yml below each DIR and runs the examples that the policies carry. Prints \
file:line:column, what is wrong and what to write instead; exit status 1 if any policy cannot be used.

Examples:
  pathwatch policy check                      ./policies
  pathwatch policy check my-policies extra.yaml
  pathwatch policy check --output json | jq '.diagnostics[].message'")]
pub(in crate::cli) struct Arguments {
    /// Directories or files of policies; by default policies.directory
    #[arg(value_name = "DIR")]
    paths: Vec<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    let default = || vec![config.policies.directory.clone()];
    let paths = if arguments.paths.is_empty() { default() } else { arguments.paths.clone() };
    let (_, loaded) = load(paths, &config)?;
    let errors = loaded.errors().count();
    let warnings = loaded.diagnostics.len() - errors;
    let examples: usize = loaded
        .policies
        .iter()
        .map(|policy| &policy.policy.spec.examples)
        .map(|examples| examples.fires.len() + examples.silent.len())
        .sum();
    let policies = loaded.policies.len();
    if arguments.output == Output::Json {
        json(&json!({
            "policies": policies, "examples": examples, "errors": errors, "warnings": warnings,
            "diagnostics": loaded.diagnostics,
        }))?;
    } else {
        let summary = format!(
            "{}, {}: {}, {}",
            count(policies, "good policy", "good policies"),
            count(examples, "example", "examples"),
            paint(if errors == 0 { "32" } else { "1;31" }, &count(errors, "error", "errors")),
            count(warnings, "warning", "warnings"),
        );
        print(&format!("{}{summary}\n", report(&loaded)))?;
    }
    match errors {
        0 if policies == 0 => anyhow::bail!("there is no policy; name a directory with *.yaml files"),
        0 => Ok(()),
        _ => anyhow::bail!("{} in the policies", count(errors, "error", "errors")),
    }
}

fn count(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// Every diagnostic on a line; for a terminal, with the line it is about.
fn report(loaded: &Loaded) -> String {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    loaded.diagnostics.iter().fold(String::new(), |mut text, diagnostic| {
        if terminal {
            text += &pictured(diagnostic);
        } else if writeln!(text, "{diagnostic}").is_err() {
            // Writing to a String cannot fail.
        }
        text
    })
}

/// Three lines and a blank one: the place and what is wrong, the line, and what to write instead.
fn pictured(diagnostic: &Diagnostic) -> String {
    let fault = &diagnostic.fault;
    let (level, code) = match fault.level {
        Level::Error => ("error", "1;31"),
        Level::Warning => ("warning", "1;33"),
    };
    let place = match diagnostic.line {
        0 => diagnostic.file.clone(),
        line => format!("{}:{line}:{}", diagnostic.file, diagnostic.column),
    };
    let head = format!("{}: {}: {}\n", paint("1", &shown(&place)), paint(code, level), shown(&fault.message));
    let line = diagnostic.source.as_deref().map(|source| {
        let caret = "^".repeat(diagnostic.text.as_deref().map_or(1, |text| text.chars().count().max(1)));
        let indent = " ".repeat(diagnostic.column.saturating_sub(1));
        format!("{:>5} | {}\n      | {indent}{}\n", diagnostic.line, shown(source), paint(code, &caret))
    });
    format!("{head}{}      = {}\n\n", line.unwrap_or_default(), shown(&fault.help))
}
