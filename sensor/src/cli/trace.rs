//! `pathwatch trace`
use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;

use super::{Common, block_on, start_log, stop_on_signal, stop_with_reader};
use crate::{
    config,
    event::Enriched,
    policy::{Fault, Patterns},
    ship::{open_line, paint},
};

#[derive(Args)]
#[command(after_help = "\
Shows time, process id, command, container or cgroup, flags, result and path. Needs the same privileges as run. \
What the kernel could not hand over is counted and said at the end.

Examples:
  sudo pathwatch trace                              everything
  sudo pathwatch trace '/etc/**' '**/.ssh/**'       only these, by the policies' globs
  sudo pathwatch trace --json | jq -r .path
  sudo pathwatch trace --record opens.jsonl         also write what `pathwatch replay` reads")]
pub(super) struct Arguments {
    /// Globs of paths to show; all by default
    globs: Vec<String>,
    /// JSON lines instead of columns
    #[arg(long)]
    json: bool,
    /// Also write the opens to FILE, for `pathwatch replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    start_log(&config.log).and_then(|()| config.check_cluster())?;
    let complain = |faults: Vec<Fault>| {
        let lines: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}; {}", fault.field, fault.message, fault.help)).collect();
        config::Error::new(lines.join("\n"))
    };
    let globs = Patterns::compile("GLOB", &arguments.globs).map_err(complain)?;
    let all = arguments.globs.is_empty();
    let wanted = move |event: &Enriched| {
        all || event.event.best_path().is_some_and(|path| globs.first_match(path.as_bytes()).is_some())
    };
    let mut record = match &arguments.record {
        Some(file) => {
            let place = file.display();
            Some(BufWriter::new(
                File::create(file).with_context(|| format!("cannot write the recording {place}"))?,
            ))
        }
        None => None,
    };
    let json = arguments.json || !io::stdout().is_terminal();
    let mut out = BufWriter::new(io::stdout());
    if !json {
        let columns = format!(
            "{:<12}  {:>7}  {:<15}  {:<24}  {:<14}  {:<8}  PATH",
            "TIME", "PID", "COMMAND", "CONTAINER/CGROUP", "FLAGS", "RESULT"
        );
        writeln!(out, "{}", paint("1", &columns))?;
    }
    let show = move |event: &Enriched, idle: bool| {
        if wanted(event) {
            if json {
                serde_json::to_writer(&mut out, event).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            } else {
                writeln!(out, "{}", open_line(event))?;
            }
            if let Some(record) = &mut record {
                serde_json::to_writer(&mut *record, event).map_err(io::Error::from)?;
                record.write_all(b"\n")?;
            }
        }
        if idle {
            out.flush()?;
            record.as_mut().map_or(Ok(()), BufWriter::flush)?;
        }
        Ok(())
    };
    block_on(async {
        let stop = stop_on_signal()?;
        stop_with_reader(stop.clone());
        crate::trace(config, show, stop).await
    })
}
