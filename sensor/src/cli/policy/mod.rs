//! `pathwatch policy`
mod check;
mod explain;
mod reference;
mod suggest;

use std::io::{self, IsTerminal as _, Write as _};

use clap::{Subcommand, ValueEnum};

use crate::policy::Kind;

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, read once")]
pub(super) enum Command {
    /// Validate policies and run their examples
    Check(check::Arguments),
    /// Show which policies would fire on an access, and why the others would not
    Explain(explain::Arguments),
    /// Print exceptions for the alerts that were raised
    Suggest(suggest::Arguments),
    /// Print the JSON Schema of policy files, for editors
    Schema,
    /// Print every field of the language and what it means
    Reference,
}

/// Forms of a command's output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person.
    Text,
    /// One JSON document.
    Json,
}

pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Check(arguments) => check::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Suggest(arguments) => suggest::run(arguments),
        Command::Schema => json(&crate::policy::schema()),
        Command::Reference => print(&reference::page()),
    }
}

/// `pathwatch crd`
pub(super) fn print_crds() -> anyhow::Result<()> {
    for kind in Kind::ALL {
        print(&format!("---\n{}", serde_yaml::to_string(&crate::policy::crd(kind))?))?;
    }
    Ok(())
}

/// Prints a JSON document.
fn json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(document)?;
    text.push('\n');
    print(&text)
}

/// Prints `text`; a reader who has seen enough is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// `text` in colour `code`, if standard output is a terminal.
fn paint(code: &str, text: &str) -> String {
    if io::stdout().is_terminal() { crate::ship::paint(code, text) } else { text.to_owned() }
}
