//! `pathwatch controller`
use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{Common, block_on, start_log, stop_on_signal};
use crate::{controller, matcher};

#[derive(Args)]
#[command(after_help = "\
The Helm chart runs it: one replica, with the rights to read policies and write their status. Policies work without it.

Example:
  pathwatch controller --namespace pathwatch --service pathwatch-sensor --token-file /var/run/secrets/pathwatch/token")]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Namespace of the sensors
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    namespace: String,
    /// Headless service of the sensors
    #[arg(long, value_name = "NAME")]
    service: String,
    /// Port on which sensors answer
    #[arg(long, value_name = "PORT", default_value_t = 9753)]
    port: u16,
    /// Token that sensors know the controller by, made for the audience `pathwatch-sensor`
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Where to answer for health and metrics
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    start_log(&config.log)?;
    let controller = controller::Config {
        kubeconfig: config.enrich.kubeconfig,
        namespace: arguments.namespace.clone(),
        service: arguments.service.clone(),
        port: arguments.port,
        token_file: arguments.token_file.clone(),
        listen: arguments.listen,
    };
    block_on(async { controller::run(controller, matcher::run_examples, stop_on_signal()?).await })
}
