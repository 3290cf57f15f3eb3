//! `pathwatch replay`
use std::{fs::File, io::Read, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{Deciding, block_on};

#[derive(Args)]
#[command(after_help = "\
The same recording and policies give the same bytes on any machine. Needs no privileges.

Examples:
  sudo pathwatch trace --record opens.jsonl     record until ctrl-c
  pathwatch replay opens.jsonl
  pathwatch replay opens.jsonl --ship --config pathwatch.yaml    to Kafka, as the sensor would
  pathwatch replay --policies my/policies - < opens.jsonl")]
pub(super) struct Arguments {
    /// JSON lines of `pathwatch trace --record`, or - for standard input
    file: PathBuf,
    /// Send the alerts to the configured sink, by way of the spool
    #[arg(long)]
    ship: bool,
    #[command(flatten)]
    decide: Deciding,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (config, loaded) = arguments.decide.load_all()?;
    let name = arguments.file.display().to_string();
    let input: Box<dyn Read + Send> = if name == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(&arguments.file).with_context(|| format!("cannot read the recording {name}"))?)
    };
    // No signal handlers: a replay has nothing to put in order before it ends, and the spool outlives it.
    if arguments.ship {
        return block_on(crate::replay_to_sink(input, &name, config, loaded.set));
    }
    block_on(crate::replay(input, &name, loaded.set))
}
