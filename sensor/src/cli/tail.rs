//! `pathwatch tail`
use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;

use super::{Reading, block_on, stop_on_signal, stop_with_reader};
use crate::ship::{Begin, Reader, record_line};

/// How often it is looked whether to stop.
const POLL: Duration = Duration::from_millis(200);

#[derive(Args)]
#[command(after_help = "\
Shows the records of a topic as they come: alerts, summaries, losses, health; heartbeats with --all.

Examples:
  pathwatch tail --config pathwatch.yaml
  pathwatch tail --config pathwatch.yaml --from-beginning --all
  pathwatch tail --config pathwatch.yaml --json | jq .file.path")]
pub(super) struct Arguments {
    /// Begin with the oldest record that is kept, and end with the newest there is
    #[arg(long)]
    from_beginning: bool,
    /// Heartbeats, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    reading: Reading,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (kafka, topic) = arguments.reading.load()?;
    kafka.check().map_err(crate::config::Error::new)?;
    let begin = if arguments.from_beginning { Begin::Beginning } else { Begin::End };
    let mut reader = Reader::open(&kafka, &topic, begin)?;
    let json = arguments.reading.json();
    block_on(async {
        let stop = stop_on_signal()?;
        stop_with_reader(stop.clone());
        tokio::task::block_in_place(|| {
            while !stop.is_cancelled() {
                let next = if arguments.from_beginning { reader.next_of_all()? } else { reader.poll(POLL)? };
                match next {
                    Some(consumed) if show(&consumed.payload, json, arguments.all)? => {}
                    Some(_) => return Ok(()),
                    None if arguments.from_beginning => return Ok(()),
                    None => {}
                }
            }
            Ok(())
        })
    })
}

/// Prints a record; false if nobody reads any more.
fn show(payload: &[u8], json: bool, all: bool) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    let wrote = if json {
        out.write_all(payload).and_then(|()| out.write_all(b"\n"))
    } else {
        match record_line(payload, all) {
            Some(line) => writeln!(out, "{line}"),
            None => Ok(()),
        }
    };
    match wrote.and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(why) => Err(why.into()),
    }
}
