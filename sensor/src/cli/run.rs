//! `pathwatch run`
use clap::Args;

use super::{Deciding, block_on, stop_on_signal, stop_with_reader};
use crate::ship::SinkKind;

#[derive(Args)]
#[command(after_help = "\
Without a configuration: policies from ./policies, alerts on standard output, readable on a terminal and JSON \
lines when piped; no Kafka and no cluster needed. Needs root, or CAP_BPF and CAP_PERFMON (and CAP_SYS_PTRACE \
and CAP_DAC_READ_SEARCH to name the programs of other users).

Examples:
  sudo pathwatch run
  sudo pathwatch run --policies /etc/pathwatch/policies | jq .file.path
  sudo PATHWATCH__SHIP__SINK=kafka PATHWATCH__SHIP__KAFKA__BROKERS=[kafka:9092] pathwatch run")]
pub(super) struct Arguments {
    #[command(flatten)]
    decide: Deciding,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (config, directory, loaded) = arguments.decide.load()?;
    config.check_cluster()?;
    block_on(async {
        let stop = stop_on_signal()?;
        if config.ship.sink == SinkKind::Stdout {
            stop_with_reader(stop.clone());
        }
        crate::run(config, directory, loaded, stop).await
    })
}
