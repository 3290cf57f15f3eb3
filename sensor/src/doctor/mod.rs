//! What this kernel and these privileges allow, and what is seen with them: a child process goes every way to a file that
//! `attack` knows of, and what capture and enrichment make of it is held to the right answers.
//!
//! Must not know the matcher or sinks.
mod checks;
mod child;
mod elsewhere;
mod judge;

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use attack::{BEGIN, CASES, END};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use self::judge::Seen;
pub use self::{
    checks::{Check, Verdict},
    child::{ATTACK, Coverage, Running, act, keep},
    judge::{Answer, Cell},
};
use crate::{
    Observed, capture,
    config::Config,
    enrich,
    event::CaptureMode,
    metrics::Metrics,
    observe,
    policy::{Directory, PolicySet},
};

/// How long the child may take that attacks, and one that does all. On ordinary machines it is a second, and three; in an emulator
/// that has more to do, minutes.
const PATIENCE: Duration = Duration::from_secs(300);
const LONG_PATIENCE: Duration = Duration::from_secs(600);

/// How often all is done at most: a busy machine loses events, and a kernel that may interrupt a program (7.x) skips runs of it;
/// another time they lose others.
const ATTEMPTS: u32 = 3;

/// Marks of every event of the tracepoint mode: they say nothing of one.
const EVERYWHERE: [&str; 2] = ["fd_race_possible", "requested_untrusted"];

/// How its directories are called, and from which age on one is nobody's any more.
const PREFIX: &str = "pathwatch-doctor-";
const LEFT: Duration = Duration::from_secs(3600);

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of the sensor.
    pub version: String,
    /// As uname(2) has it, with the machine.
    pub kernel: String,
    /// What the sensor needs of its surroundings.
    pub checks: Vec<Check>,
    /// How it looks; None if it sees nothing.
    pub sight: Option<capture::Sight>,
    /// Why it sees nothing.
    pub failure: Option<String>,
    /// That is for want of a permission.
    pub not_permitted: bool,
    /// Every way to reach a file; empty if nothing is seen.
    pub cases: Vec<Case>,
    /// Opens and processes, of anybody, that were lost the last time that it was tried.
    pub lost: u64,
    /// Runs of programs that the kernel skipped meanwhile, on behalf of any process.
    pub skipped: u64,
    /// How long it took.
    pub seconds: f64,
}

/// One way to reach a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// What is done.
    pub about: String,
    /// How it was seen.
    pub answer: Cell,
    /// The views by which the watched file was told (`path`, `home`, `identity`, …).
    pub names: Vec<String>,
    /// What is said of its path, but for what is said of every path in that mode.
    pub marks: Vec<String>,
    /// What is wrong, or why it was not seen or not tried.
    pub why: String,
    /// Of a case that was not tried: what the guest of the kernel that is most like this one has answered.
    pub elsewhere: Option<String>,
}

impl Report {
    /// Cases that were answered so.
    pub fn of(&self, answer: Cell) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |case| case.answer == answer)
    }

    /// Whether it sees what a kernel lets be seen: something rightly, and nothing wrongly, nor may it have missed something.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let has = |answer| self.of(answer).next().is_some();
        has(Cell::Right) && !has(Cell::Wrong) && !has(Cell::Lost)
    }
}

/// Looks at the surroundings, and tries everything.
pub async fn examine(config: &Config) -> Report {
    let began = Instant::now();
    let checks = checks::all(config);
    let uname = rustix::system::uname();
    let kernel = format!("{} {}", uname.release().to_string_lossy(), uname.machine().to_string_lossy());
    let tried = attempted(config).await;
    let refused =
        |why: &anyhow::Error| why.downcast_ref::<capture::Error>().is_some_and(capture::Error::is_not_permitted);
    let forbidden = checks.iter().any(|check| check.verdict == Verdict::Fails && check.is_permission);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
        checks,
        sight: None,
        failure: None,
        not_permitted: false,
        cases: Vec::new(),
        lost: 0,
        skipped: 0,
        seconds: 0.0,
    };
    match tried {
        Ok(Observed { sight, metrics, done, .. }) => {
            (report.lost, report.skipped) = missed(&metrics);
            report.cases = CASES.iter().map(|known| case(known, &done, &sight)).collect();
            report.sight = Some(sight);
        }
        Err(why) => {
            report.not_permitted = refused(&why) || forbidden;
            // What the verifier has looked at is for the log of a debug level.
            let told = format!("{why:#}");
            let first = told.lines().next().unwrap_or_default();
            report.failure = Some(first.split(". Verifier output").next().unwrap_or(first).to_owned());
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    report
}

/// What was lost, and runs that were skipped. Who is a child of the test is known by records of processes. A record that is there
/// and cannot be read is a fault.
fn missed(metrics: &Metrics) -> (u64, u64) {
    (metrics.opens_lost.get() + metrics.processes_lost.get(), metrics.skipped.get())
}

/// Goes every way, and does so again while something may be as it is for what was lost.
async fn attempted(config: &Config) -> anyhow::Result<Observed<Vec<Answer>>> {
    let mut all = attacked(config).await?;
    for _ in 1..ATTEMPTS {
        let is_good = |answer: &Answer| !matches!(answer.cell, Cell::Lost | Cell::Wrong);
        if all.done.iter().all(is_good) || missed(&all.metrics) == (0, 0) {
            break;
        }
        let again = attacked(config).await?;
        all = Observed { done: best(all.done, &again.done), ..again };
    }
    Ok(all)
}

/// The better of two answers to each case, and the first of two that are as good. What is wrong is no better for being lost another
/// time.
fn best(before: Vec<Answer>, again: &[Answer]) -> Vec<Answer> {
    let worth = |answer: &Answer| match answer.cell {
        Cell::Right | Cell::Marked | Cell::NotSeen | Cell::NotTried => 2,
        Cell::Wrong => 1,
        Cell::Lost => 0,
    };
    let better = |before: Answer| {
        let again = again.iter().find(|again| again.case.name == before.case.name);
        again.filter(|again| worth(again) > worth(&before)).cloned().unwrap_or(before)
    };
    before.into_iter().map(better).collect()
}

/// What is said of a case.
fn case(known: &'static attack::Case, answers: &[Answer], sight: &capture::Sight) -> Case {
    let silent = || Answer::without(known, Cell::NotTried, "the test said nothing of it".to_owned());
    let answer = answers.iter().find(|answer| answer.case.name == known.name).cloned().unwrap_or_else(silent);
    let is_of_all = |mark: &&String| sight.mode == CaptureMode::Tracepoint && EVERYWHERE.contains(&mark.as_str());
    let release = rustix::system::uname();
    let elsewhere = || elsewhere::answered(&release.release().to_string_lossy(), sight.mode, answer.case.name);
    Case {
        name: answer.case.name.to_owned(),
        about: answer.case.about.to_owned(),
        answer: answer.cell,
        names: answer.names.iter().map(|name| (*name).to_owned()).collect(),
        marks: answer.marks.iter().filter(|mark| !is_of_all(mark)).cloned().collect(),
        why: answer.why.clone(),
        elsewhere: if answer.cell == Cell::NotTried { elsewhere() } else { None },
    }
}

/// Goes every way under the eyes of capture and enrichment, and says what was seen of each; an error if there is no place to do it,
/// capture cannot start, or the child fails.
async fn attacked(config: &Config) -> anyhow::Result<Observed<Vec<Answer>>> {
    let base = place(config)?;
    let directory = base.path().canonicalize().context("cannot find the directory of the self-test again")?;
    let mut config = config.clone();
    config.enrich.kubernetes = enrich::Kubernetes::Off;
    config.enrich.kubeconfig = None;
    // In tracepoint mode others of this cgroup take from its share, too; a test that lasts seconds is no storm.
    config.capture.share.rate = 0;
    let policies = policies(&directory)?;
    let deed = child::attack(&directory, &config.enrich.proc);
    let Observed { sight, events, metrics, done } = observe(&config, policies, deed).await?;
    let seen = Seen { mode: sight.mode, events: &events, lossy: missed(&metrics) != (0, 0) };
    let answers = done?.iter().map(|line| answer(line, &directory, &seen)).collect::<anyhow::Result<_>>()?;
    Ok(Observed { sight, events, metrics, done: answers })
}

/// A directory that the child may use, in the first place that there is.
fn place(config: &Config) -> anyhow::Result<TempDir> {
    let own = config.ship.state_dir.clone();
    let places: Vec<PathBuf> = [own].into_iter().chain(capture::PLACES.map(PathBuf::from)).collect();
    places.iter().for_each(|place| clear(place));
    let make = |place: &PathBuf| {
        let only_own = std::fs::Permissions::from_mode(0o755);
        tempfile::Builder::new().prefix(PREFIX).permissions(only_own).tempdir_in(place).ok()
    };
    let found = places.iter().find_map(make);
    found.with_context(|| {
        let names: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        format!("the self-test has no place to write to: make one of {} writable", names.join(", "))
    })
}

/// Removes what a test has left behind that was killed.
fn clear(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let Ok(found) = entry.metadata() else { continue };
        let is_own = found.uid() == rustix::process::geteuid().as_raw();
        let age = found.modified().ok().and_then(|time| time.elapsed().ok());
        if is_one && is_own && age.is_some_and(|age| age > LEFT) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// A policy that names the watched file of each case.
fn policies(base: &Path) -> anyhow::Result<PolicySet> {
    let secrets = CASES.iter().filter_map(|case| case.secret(base).to_str().map(str::to_owned));
    let marks = CASES.iter().flat_map(|case| [BEGIN, END].map(|mark| format!("/{mark}{}", case.name)));
    // No pattern names what has no name yet, or one that is no text.
    let unnamed =
        ["o-tmpfile", "name-not-utf8", "name-escape"].map(|case| format!("{}/{case}/**", base.display()));
    let paths: Vec<String> = secrets.chain(marks).chain(unnamed).collect();
    let spec = serde_json::json!({
        "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy", "metadata": {"name": "self-test"},
        "spec": {"subjects": "all", "operations": ["read", "write", "create", "truncate", "rename", "link", "delete", "exec", "list", "reference"],
        "results": ["success", "denied", "missing", "error"],
        "paths": paths.iter().filter(|path| !path.contains(['\n', '\u{1b}'])).collect::<Vec<_>>()},
    });
    let loaded = Directory::read_text(spec.to_string().as_bytes(), |_| Vec::new());
    if loaded.set.policies.len() != 1 {
        bail!("the self-test's policy is wrong, please report this: {:?}", loaded.diagnostics);
    }
    Ok(PolicySet::new(loaded.set.policies.clone()))
}

/// What was seen of the case that a line of the child's is about.
fn answer(line: &str, base: &Path, seen: &Seen<'_>) -> anyhow::Result<Answer> {
    let mut words = line.split('\t');
    let (name, pid, failed) = (words.next(), words.next(), words.next().unwrap_or_default());
    let case = CASES.iter().find(|case| Some(case.name) == name);
    let pid = pid.and_then(|pid| pid.parse().ok());
    let (Some(case), Some(pid)) = (case, pid) else { bail!("the child has said '{line}'") };
    if !failed.is_empty() {
        return Ok(Answer::without(case, Cell::NotTried, failed.to_owned()));
    }
    Ok(judge::judge(case, base, pid, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_answers_the_better_is_kept_and_nothing_wrong_is_excused_by_loss() {
        let answers = |cells: [Cell; 5]| -> Vec<Answer> {
            CASES.iter().zip(cells).map(|(case, cell)| Answer::without(case, cell, String::new())).collect()
        };
        let before = answers([Cell::Lost, Cell::Wrong, Cell::Wrong, Cell::Right, Cell::Lost]);
        let again = answers([Cell::Wrong, Cell::Lost, Cell::Marked, Cell::Lost, Cell::Lost]);
        let kept: Vec<Cell> = best(before, &again[1..]).iter().map(|answer| answer.cell).collect();
        // What the second has not tried stands as it was.
        assert_eq!(kept, [Cell::Lost, Cell::Wrong, Cell::Marked, Cell::Right, Cell::Lost]);
    }
}
