//! Processes of the self-test: the one that goes every way to a file, and the one in which a sensor that starts has all of it done.
use std::{
    io::Write as _,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use attack::CASES;
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::{io::AsyncReadExt as _, process::Command, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Cell, LONG_PATIENCE, PATIENCE, Report};
use crate::{
    capture::Sight,
    config::Config,
    event::Enriched,
    metrics::{Gauge, Metrics},
    notice::Notices,
    procfs,
};

/// How long after the self-test its last opens may still be on their way to the matcher.
const LINGER: Duration = Duration::from_secs(10);

/// Most that a child may say, in bytes.
const SAID: u64 = 1 << 20;

/// The command of this program that attacks.
pub const ATTACK: &str = "attack";

/// What it does: goes every way, in directories of `base`, and prints a line a case: its name, its process as `proc` has it, and why
/// it was not done.
///
/// # Errors
/// When nobody reads.
pub fn act(base: &Path, proc: &Path) -> std::io::Result<()> {
    // It does not outlive who asked for it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut out = std::io::stdout().lock();
    for attack::Tried { name, pid, failed } in attack::run(base, &[], proc) {
        writeln!(out, "{name}\t{pid}\t{}", failed.unwrap_or_default().replace(['\n', '\t'], " "))?;
    }
    out.flush()
}

/// Has a child do it, and returns its lines.
pub(super) async fn attack(base: &Path, proc: &Path) -> anyhow::Result<Vec<String>> {
    let mut command = itself();
    let said = said(command.arg(ATTACK).arg(base).arg(proc), PATIENCE).await.context("the self-test failed")?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// This program once more, without an environment.
fn itself() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env_clear();
    command
}

/// Runs a command to its end, and returns what it has said.
async fn said(command: &mut Command, patience: Duration) -> anyhow::Result<String> {
    // A group of its own, which ends as a whole if it takes too long.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut said = String::new();
    let out = child.stdout.take().context("a child without an output")?;
    let reading = async {
        out.take(SAID).read_to_string(&mut said).await?;
        child.wait().await
    };
    let Ok(ended) = timeout(patience, reading).await else {
        group.map(|group| kill_process_group(group, Signal::KILL));
        bail!("it was not done after {patience:?}");
    };
    let status = ended?;
    // A doctor that finds something says so by its status, too.
    if said.is_empty() { bail!("it ended with {status} and said nothing") } else { Ok(said) }
}

/// While the self-test runs, whose children do it: this process's number in /proc, and zero otherwise. A sensor has no other children.
#[derive(Clone, Default)]
pub struct Running(Arc<AtomicU32>);

impl Running {
    /// Whether the self-test made this event.
    #[must_use]
    pub fn made(&self, event: &Enriched) -> bool {
        let own = self.0.load(Ordering::Relaxed);
        own != 0 && event.is_made_below(own)
    }
}

/// How each way to a file was seen, as a number for each of [`CASES`].
#[derive(Debug)]
pub struct Coverage(Vec<Gauge>);

impl Default for Coverage {
    fn default() -> Self {
        Self(CASES.iter().map(|_| Gauge::default()).collect())
    }
}

impl Coverage {
    /// The name of each case, with its number: 0 not tried, 1 right, 2 marked as a path that may be another, 3 not seen, 4 wrong, 5 lost.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Gauge)> {
        CASES.iter().map(|case| case.name).zip(&self.0)
    }

    fn set(&self, report: &Report) {
        for (name, gauge) in self.each() {
            let found = report.cases.iter().find(|case| case.name == name);
            gauge.set(match found.map(|case| case.answer) {
                // Who sees nothing does not see this.
                None if report.failure.is_some() => 3,
                None | Some(Cell::NotTried) => 0,
                Some(Cell::Right) => 1,
                Some(Cell::Marked) => 2,
                Some(Cell::NotSeen) => 3,
                Some(Cell::Wrong) => 4,
                Some(Cell::Lost) => 5,
            });
        }
    }
}

/// Has the self-test done once, by a process of its own that looks as this one does, and makes known what came of it, until `stop`.
///
/// # Errors
/// None: what is in the way is told.
pub async fn keep(
    config: Config,
    sight: Sight,
    (metrics, notices): (Arc<Metrics>, Notices),
    (running, report): (Running, watch::Sender<Option<Arc<Report>>>),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    running.0.store(procfs::own_pid().unwrap_or(0), Ordering::Relaxed);
    let examined = stop.run_until_cancelled(examined(&config, &sight)).await;
    tokio::spawn(async move {
        tokio::time::sleep(LINGER).await;
        running.0.store(0, Ordering::Relaxed);
    });
    match examined {
        None => return Ok(()),
        Some(Ok(found)) => {
            metrics.coverage.set(&found);
            if let Some(told) = told(&found, &sight) {
                notices.add("capture", "coverage", 1, told);
            }
            report.send_replace(Some(Arc::new(found)));
        }
        Some(Err(why)) => {
            notices.add("capture", "self_test_failed", 1, format!("{why:#}; try `pathwatch doctor`"))
        }
    }
    stop.cancelled().await;
    Ok(())
}

async fn examined(config: &Config, sight: &Sight) -> anyhow::Result<Report> {
    let mut command = itself();
    command.args(["doctor", "--json"]);
    command.env("PATHWATCH__CAPTURE__MODE", sight.mode.to_string());
    command.env("PATHWATCH__ENRICH__PROC", &config.enrich.proc);
    command.env("PATHWATCH__ENRICH__CGROUPS", &config.enrich.cgroups);
    command.env("PATHWATCH__SHIP__STATE_DIR", &config.ship.state_dir);
    let said = said(&mut command, LONG_PATIENCE).await.context("the self-test failed")?;
    serde_json::from_str(&said).context("the self-test has said something else")
}

/// What a record tells of a report; None if all is as it should be.
fn told(report: &Report, sight: &Sight) -> Option<String> {
    if let Some(why) = &report.failure {
        return Some(format!("the self-test sees nothing: {why}"));
    }
    let names = |answer| report.of(answer).map(|case| case.name.as_str()).collect::<Vec<_>>().join(", ");
    let (unseen, lost, wrong) = (names(Cell::NotSeen), names(Cell::Lost), names(Cell::Wrong));
    let gaps = |sight: &Sight| sight.gaps.iter().map(|gap| gap.what.as_str()).collect::<Vec<_>>().join(", ");
    let other = report.sight.as_ref().map(gaps).filter(|other| *other != gaps(sight));
    let other = other.map(|other| format!("[{other}] instead of [{}]", gaps(sight))).unwrap_or_default();
    let parts = [("not seen", unseen), ("lost", lost), ("wrong", wrong), ("the test itself could not see", other)]
        .map(|(what, names)| if names.is_empty() { String::new() } else { format!("{what}: {names}") });
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty())
        .then(|| format!("of {} ways to a file, {}; see `pathwatch doctor`", report.cases.len(), parts.join("; ")))
}
