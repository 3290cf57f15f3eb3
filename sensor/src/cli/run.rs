//! `pathwatch run`
use std::path::PathBuf;

use clap::Args;

use super::{Common, block_on, load_policies, start_log, stop_on_signal, stop_with_reader};
use crate::ship::SinkKind;

#[derive(Args)]
#[command(after_help = "\
Without a configuration: policies from ./policies, alerts on standard output, readable on a terminal and JSON
lines when piped; no Kafka and no cluster needed. Needs root, or CAP_BPF and CAP_PERFMON (and CAP_SYS_PTRACE
and CAP_DAC_READ_SEARCH to name the programs of other users).

Examples:
  sudo pathwatch run
  sudo pathwatch run --policies /etc/pathwatch/policies | jq .file.path
  sudo PATHWATCH__SHIP__SINK=kafka PATHWATCH__SHIP__KAFKA__BROKERS=[kafka:9092] pathwatch run")]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Directory of policies; overrides policies.directory
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    start_log(&config.log)?;
    let policies = load_policies(arguments.policies.as_ref().unwrap_or(&config.policies.directory))?;
    block_on(async {
        let stop = stop_on_signal()?;
        if config.ship.sink == SinkKind::Stdout {
            stop_with_reader(stop.clone());
        }
        crate::run(config, policies, stop).await
    })
}
