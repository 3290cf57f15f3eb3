//! `pathwatch audit`
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Reading, block_on};
use crate::{
    policy::shown,
    ship::{
        Begin, KafkaConfig, Reader,
        audit::{Account, Audit},
        is_compacted, paint,
    },
};

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_millis(200);
/// Longest line of a file.
const LINE_BYTES: u64 = 1 << 20;

#[derive(Args)]
#[command(after_help = "\
Reads the whole topic and proves, for every node and epoch, that each number is there or named by a loss record, and \
that the alerts that fired are those that are there, were suppressed, limited or lost. Duplicates are counted; what \
retention removed is said. Exit status 1 if something is unexplained.

Examples:
  pathwatch audit --config pathwatch.yaml
  pathwatch audit --config pathwatch.yaml --topic alerts --json | jq '.[].unexplained'
  pathwatch audit alerts.jsonl                    JSON lines, of the file sink or of another consumer
  pathwatch audit --rotated alerts.jsonl.1 alerts.jsonl    the oldest first; those before were removed")]
pub(super) struct Arguments {
    /// JSON lines to read instead of a topic
    files: Vec<PathBuf>,
    /// The files are the youngest of a rotated set: what is older is no fault
    #[arg(long, requires = "files")]
    rotated: bool,
    #[command(flatten)]
    reading: Reading,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (kafka, topic) = arguments.reading.load()?;
    let mut audit = Audit::default();
    if arguments.files.is_empty() {
        for topic in [Some(&topic), kafka.system_topic.as_ref()].into_iter().flatten() {
            read_topic(&kafka, topic, &mut audit)?;
        }
    }
    for file in &arguments.files {
        read_file(file, arguments.rotated, &mut audit)?;
    }
    let foreign = audit.foreign();
    let accounts = audit.accounts();
    let mut out = io::stdout().lock();
    if arguments.reading.json() {
        serde_json::to_writer_pretty(&mut out, &accounts)?;
        writeln!(out)?;
    } else {
        table(&mut out, &accounts, foreign)?;
    }
    let faults: usize = accounts.iter().map(|account| account.unexplained.len()).sum();
    match (accounts.is_empty(), faults) {
        (true, _) => bail!("there is no record of Pathwatch"),
        (_, 0) => Ok(()),
        (_, faults) => bail!("{faults} unexplained; see above"),
    }
}

/// Reads all of a topic.
fn read_topic(kafka: &KafkaConfig, topic: &str, audit: &mut Audit) -> anyhow::Result<()> {
    kafka.check().map_err(crate::config::Error::new)?;
    let mut reader = Reader::open(kafka, topic, Begin::Beginning)?;
    block_on(async {
        if is_compacted(kafka, topic).await? {
            bail!("the topic {topic} is compacted: Kafka removes records of it, so nothing can be proved");
        }
        Ok(())
    })?;
    let total = reader.total();
    let mut progress = Progress::new(topic, total);
    while let Some(consumed) = reader.next_of_all()? {
        let place = reader.is_cut(consumed.partition).then(|| format!("{topic}-{}", consumed.partition));
        audit.add(&consumed.payload, place.as_deref());
        progress.step();
    }
    progress.end();
    Ok(())
}

fn read_file(path: &Path, rotated: bool, audit: &mut Audit) -> anyhow::Result<()> {
    let place = path.display();
    let mut input = BufReader::new(File::open(path).with_context(|| format!("cannot read {place}"))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = io::Read::take(&mut input, LINE_BYTES);
        if limited.read_until(b'\n', &mut line).with_context(|| format!("cannot read {place}"))? == 0 {
            return Ok(());
        }
        audit.add(&line, rotated.then_some("files"));
    }
}

/// A bar on a terminal.
struct Progress<'a> {
    topic: &'a str,
    total: u64,
    done: u64,
    shown: Option<Instant>,
}

impl<'a> Progress<'a> {
    fn new(topic: &'a str, total: u64) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { topic, total, done: 0, shown: is_terminal.then(Instant::now) }
    }

    fn step(&mut self) {
        self.done += 1;
        if let Some(shown) = &mut self.shown
            && shown.elapsed() >= PROGRESS
        {
            *shown = Instant::now();
            let percent = self.done * 100 / self.total.max(1);
            let width = usize::try_from(percent.min(100) / 4).unwrap_or(0);
            // Nobody may be left to look at it.
            write!(
                io::stderr(),
                "\r{} [{:<25}] {percent:>3} %  {} records",
                self.topic,
                "#".repeat(width),
                self.done
            )
            .ok();
        }
    }

    fn end(&self) {
        if self.shown.is_some() {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

fn table(out: &mut impl io::Write, accounts: &[Account], foreign: u64) -> io::Result<()> {
    let head = format!(
        "{:<24}  {:<8}  {:>10}  {:>10}  {:>10}  {:>8}  {:>10}  {:>8}  RESULT",
        "NODE", "EPOCH", "NUMBERS", "FIRED", "ALERTS", "LOST", "COUNTED", "TWICE"
    );
    writeln!(out, "{}", paint("1", &head))?;
    for account in accounts {
        let fired = account.fired.map_or_else(|| "-".to_owned(), |fired| fired.to_string());
        let result =
            if account.unexplained.is_empty() { paint("32", "whole") } else { paint("1;31", "NOT WHOLE") };
        writeln!(
            out,
            "{:<24}  {:<8}  {:>10}  {fired:>10}  {:>10}  {:>8}  {:>10}  {:>8}  {result}",
            shown(&account.node),
            shown(account.epoch.get(..8).unwrap_or(&account.epoch)),
            account.last,
            account.alerts,
            account.lost,
            account.counted,
            account.duplicates,
        )?;
        if account.cut > 0 {
            writeln!(out, "    retention has removed the numbers up to {}; sums cannot be checked", account.cut)?;
        }
        for (what, count) in &account.other_losses {
            let count = if *count == 0 { "unknown".to_owned() } else { count.to_string() };
            writeln!(out, "    lost before an alert: {count} ({})", shown(what))?;
        }
        for fault in &account.unexplained {
            writeln!(out, "    {}", paint("31", fault))?;
        }
    }
    if foreign > 0 {
        writeln!(out, "{foreign} records are not Pathwatch's")?;
    }
    Ok(())
}
