//! The command line.
mod audit;
mod controller;
mod doctor;
mod page;
mod policy;
mod reference;
mod replay;
mod run;
mod status;
mod tail;
mod trace;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use rustix::event::{PollFd, PollFlags};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    capture,
    config::{self, Config},
    log, matcher, memory,
    policy::{Directory, Errors, Loaded, shown},
    ship::KafkaConfig,
};

/// Bad usage or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// Not permitted (`EX_NOPERM` of sysexits.h).
const NOT_PERMITTED: u8 = 77;

#[derive(Parser)]
#[command(
    name = "pathwatch",
    version,
    about = "Watches file opens by policy, from the kernel to Kafka.",
    after_help = "\
Exit status: 0 success, 1 failure, 64 bad usage or configuration, 77 not permitted.

Examples:
  sudo pathwatch run                          policies from ./policies, alerts here
  sudo pathwatch doctor                       what is seen here, and what is not?
  sudo pathwatch status                       how is the sensor that runs here?
  sudo pathwatch trace '/etc/**'              every open below /etc as it happens
  sudo pathwatch trace --record opens.jsonl   record opens, to try policies on them
  pathwatch replay opens.jsonl                which alerts would they have raised?
  pathwatch audit --config pathwatch.yaml     is the topic whole?
  pathwatch policy check my-policies          is anything wrong with them?
  pathwatch policy explain /etc/shadow        which of them would fire, and why not the others?"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the sensor
    Run(run::Arguments),
    /// Ask the sensor that runs here: does it see, what is lost, do alerts arrive
    Status(status::Arguments),
    /// Say what is seen on this machine, what is not, and what to do about it
    Doctor(doctor::Arguments),
    /// Show every open as it happens
    Trace(trace::Arguments),
    /// Run recorded opens through the policies and print the alerts
    Replay(replay::Arguments),
    /// Prove that a topic is whole, or name what is missing
    Audit(audit::Arguments),
    /// Show the records of a topic as they come
    Tail(tail::Arguments),
    /// Write into policy objects what the sensors have made of them
    Controller(controller::Arguments),
    /// Print the custom resources of policies
    Crd,
    /// Change how much the sensor that runs here writes to its log
    Log(status::LogArguments),
    /// Print what each metric is
    MetricsReference,
    /// Print every setting with its default and what it is for
    Config,
    /// Print completions for a shell
    #[command(after_help = "Example: pathwatch completions bash >/etc/bash_completion.d/pathwatch")]
    Completions { shell: clap_complete::Shell },
    /// Write pages for man(1)
    #[command(after_help = "Example: pathwatch man /usr/local/share/man/man1")]
    Man { directory: PathBuf },
    /// What doctor has a child do: go ways to a file
    #[command(name = crate::doctor::ATTACK, hide = true)]
    Attack { directory: PathBuf, proc: PathBuf },
    /// Check, explain and tune policies
    #[command(subcommand)]
    Policy(policy::Command),
}

/// Options that more than one command has.
#[derive(Args)]
struct Common {
    /// Configuration file; without one, defaults and PATHWATCH__SECTION__FIELD variables
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Common {
    fn load(&self) -> Result<Config, config::Error> {
        // A value that is no text becomes one with U+FFFD, which no setting accepts in silence.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
        Config::load(self.config.as_deref(), variables)
    }
}

/// Options of the commands that read a topic.
#[derive(Args)]
struct Reading {
    /// Topic; by default ship.kafka.topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// JSON; the default where standard output is no terminal
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

impl Reading {
    /// Reads the configuration and starts the log; returns the settings of Kafka, and the topic.
    fn load(&self) -> Result<(KafkaConfig, String), config::Error> {
        let config = self.common.load()?;
        start_log(&config.log)?;
        let kafka = config.ship.kafka;
        let topic = self.topic.clone().unwrap_or_else(|| kafka.topic.clone());
        Ok((kafka, topic))
    }

    fn json(&self) -> bool {
        self.json || !std::io::stdout().is_terminal()
    }
}

/// Options of the commands that decide by policy.
#[derive(Args)]
struct Deciding {
    #[command(flatten)]
    common: Common,
    /// Directory of policies; overrides policies.directory
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
}

impl Deciding {
    /// Reads the configuration, starts the log and loads the policies.
    ///
    /// # Errors
    /// If the configuration is wrong, or if there is no policy to work with.
    fn load(&self) -> anyhow::Result<(Config, Directory, Loaded)> {
        let config = self.common.load()?;
        start_log(&config.log)?;
        let path = self.policies.as_ref().unwrap_or(&config.policies.directory).clone();
        let (directory, loaded) = load(vec![path.clone()], &config)?;
        if loaded.policies.is_empty() && !config.has_policies_of_cluster() {
            return Err(match lines(&loaded) {
                None => Errors(format!(
                    "no policy in {}: it has no *.yaml file with one; name another with --policies DIR",
                    path.display()
                )),
                Some(errors) => errors,
            }
            .into());
        }
        Ok((config, directory, loaded))
    }

    /// The same for commands that a person waits for: any bad policy is an error.
    ///
    /// # Errors
    /// As [`Self::load`], and if any policy is bad.
    fn load_all(&self) -> anyhow::Result<(Config, Loaded)> {
        let (config, _, loaded) = self.load()?;
        match lines(&loaded) {
            Some(errors) => Err(errors.into()),
            None => Ok((config, loaded)),
        }
    }
}

/// The policies at and below `paths`, as the configuration changes them.
fn load(paths: Vec<PathBuf>, config: &Config) -> Result<(Directory, Loaded), Errors> {
    let mut directory = Directory::new(paths, config.policies.overrides.clone(), matcher::run_examples);
    let library = &config.policies.library;
    if let Some(place) = library.directory.clone() {
        directory = directory.with_library(place, library.severity);
    }
    let loaded = directory.poll()?;
    // The first look finds everything new, if there is anything.
    Ok((directory, loaded.unwrap_or_default()))
}

/// The errors of `loaded`, a line each; None if there are none.
fn lines(loaded: &Loaded) -> Option<Errors> {
    let lines: Vec<String> = loaded.errors().map(ToString::to_string).collect();
    (!lines.is_empty()).then(|| Errors(lines.join("\n")))
}

/// Parses the arguments, does what they say, and tells how it went.
#[must_use]
pub fn main() -> ExitCode {
    memory::share_arenas();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            let code = if usage.use_stderr() { USAGE } else { 0 };
            // Standard error is gone: there is nobody left to tell.
            usage.print().ok();
            return code.into();
        }
    };
    let outcome = match &cli.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Trace(arguments) => trace::run(arguments),
        Command::Replay(arguments) => replay::run(arguments),
        Command::Audit(arguments) => audit::run(arguments),
        Command::Tail(arguments) => tail::run(arguments),
        Command::Controller(arguments) => controller::run(arguments),
        Command::Crd => policy::print_crds(),
        Command::Log(arguments) => status::log(arguments),
        Command::MetricsReference => policy::print(&crate::metrics::reference()),
        Command::Config => reference::config().and_then(|text| policy::print(&text)),
        Command::Completions { shell } => policy::print(&reference::completions(*shell)),
        Command::Man { directory } => reference::man(directory),
        Command::Attack { directory, proc } => crate::doctor::act(directory, proc).map_err(anyhow::Error::from),
        Command::Policy(command) => policy::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough.
        Err(why) if is_over(&why) => ExitCode::SUCCESS,
        Err(why) => {
            if !why.is::<Quiet>() {
                complain(&why);
            }
            exit_code(&why).into()
        }
    }
}

fn is_over(why: &anyhow::Error) -> bool {
    why.downcast_ref::<std::io::Error>().is_some_and(|why| why.kind() == std::io::ErrorKind::BrokenPipe)
        || why
            .downcast_ref::<serde_json::Error>()
            .is_some_and(|why| why.io_error_kind() == Some(std::io::ErrorKind::BrokenPipe))
}

/// A failure of which standard output has told everything.
#[derive(Debug, thiserror::Error)]
#[error("see above")]
struct Quiet {
    not_permitted: bool,
}

#[expect(clippy::print_stderr, reason = "the one place where errors reach a person")]
fn complain(why: &anyhow::Error) {
    for line in format!("{why:#}").lines() {
        // Names of files and fields are their authors' choice.
        eprintln!("pathwatch: {}", shown(line));
    }
}

fn exit_code(why: &anyhow::Error) -> u8 {
    if why.is::<config::Error>() || why.is::<Errors>() {
        USAGE
    } else if let Some(found) = why.downcast_ref::<Quiet>() {
        if found.not_permitted { NOT_PERMITTED } else { 1 }
    } else if why.downcast_ref().is_some_and(capture::Error::is_not_permitted)
        || why
            .downcast_ref()
            .is_some_and(|why: &std::io::Error| why.kind() == std::io::ErrorKind::PermissionDenied)
    {
        NOT_PERMITTED
    } else {
        1
    }
}

/// Runs `future` to its end.
fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // Two threads carry all stages: a sensor leaves the node's processors to its pods.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(future);
    // A thread that is stuck in a write must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// A token that the first SIGINT or SIGTERM cancels; the second ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let asked = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if asked.is_cancelled() {
                std::process::exit(1);
            }
            asked.cancel();
        }
    });
    Ok(stop)
}

/// Cancels `stop` when the reader of standard output goes away: `pathwatch run | head -1` must end with head, not
/// with the alert after.
fn stop_with_reader(stop: CancellationToken) {
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        // Asked for nothing, poll(2) waits for an error or a hang-up, which a file never has.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => stop.cancel(),
            Err(why) => tracing::debug!(%why, "cannot wait for the reader of standard output"),
        }
    });
}

/// Begins the log; that it cannot is the configuration's fault.
fn start_log(config: &log::Config) -> Result<(), config::Error> {
    log::start(config).map_err(config::Error::new)
}
