//! `pathwatch doctor`
use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;

use super::{
    Common, Quiet, block_on, complain,
    page::{BAD, BOLD, DOUBTFUL, FAINT, GOOD, PLAIN, Page, Word, word},
    start_log,
};
use crate::doctor::{self, Case, Cell, Check, Report, Verdict};

/// Cases of a kind that a short answer names.
const LISTED: usize = 3;

#[derive(Args)]
#[command(after_help = "\
Looks at what the sensor needs of this machine, then goes every way to reach a file that the sensor knows of, in a \
directory of its own that it removes, and says how each was seen. Takes a few seconds and may be run beside a sensor \
that is at work; where policies watch what it does, they raise their alerts.

Exit status: 0 if opens are seen, none wrongly, and none of the test's was lost; 77 if nothing is seen for want of a permission; 1 otherwise.

Examples:
  sudo pathwatch doctor
  sudo pathwatch doctor --all                              also what is right, one line a case
  sudo pathwatch doctor --json | jq '.cases[] | select(.answer == \"not_seen\")'
  kubectl -n pathwatch exec -t ds/pathwatch -- /pathwatch doctor --config /etc/pathwatch/config/pathwatch.yaml")]
pub(super) struct Arguments {
    /// JSON; the default where standard output is no terminal
    #[arg(long)]
    json: bool,
    /// Every case, not only those that were not seen right
    #[arg(long, conflicts_with = "json")]
    all: bool,
    /// Also write the JSON to FILE, for example to send it with a report
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    save: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = arguments.common.load()?;
    // What there is to say is in the report.
    "error".clone_into(&mut config.log.level);
    start_log(&config.log)?;
    block_on(async {
        let report = doctor::examine(&config).await;
        let mut out = std::io::stdout().lock();
        if let Some(file) = &arguments.save {
            let text = serde_json::to_vec(&report)?;
            std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let json =
            arguments.json || !(arguments.all || arguments.save.is_some() || std::io::stdout().is_terminal());
        if json {
            serde_json::to_writer(&mut out, &report)?;
            out.write_all(b"\n")?;
        } else {
            out.write_all(page(&report, arguments.all).text().as_bytes())?;
        }
        out.flush()?;
        if report.is_well() {
            return Ok(());
        }
        if json {
            complain(&anyhow::Error::msg(in_short(&report)));
        }
        Err(Quiet { not_permitted: report.not_permitted }.into())
    })
}

/// What is not well, for who has only the end of it.
fn in_short(report: &Report) -> String {
    if let Some(why) = &report.failure {
        return format!("nothing is seen: {why}");
    }
    let told = |answer, word: &str| {
        let named = report.of(answer).map(|case| format!("{} ({})", case.name, case.why));
        let named: Vec<String> = named.take(LISTED).collect();
        (!named.is_empty()).then(|| format!("{} {word}: {}", report.of(answer).count(), named.join(", ")))
    };
    let parts: Vec<String> = told(Cell::Wrong, "wrong").into_iter().chain(told(Cell::Lost, "lost")).collect();
    if parts.is_empty() { "no way to a file was seen right".to_owned() } else { parts.join("; ") }
}

fn page(report: &Report, all: bool) -> Page {
    let mut page = Page::new();
    page.line(&[
        word(BOLD, "pathwatch"),
        word(BOLD, &report.version),
        word(PLAIN, "on"),
        word(PLAIN, &report.kernel),
    ]);
    let rows: Vec<Vec<Word>> = report.checks.iter().flat_map(check).collect();
    page.section("SURROUNDINGS", &rows);
    page.section("CAPTURE", &capture(report));
    let listed = |case: &&Case| all || case.answer != Cell::Right;
    let rows: Vec<Vec<Word>> = report.cases.iter().filter(listed).map(row).collect();
    if !report.cases.is_empty() {
        page.section("WAYS TO A FILE", &rows);
        page.line(&[]);
        page.line(&summary(report));
    }
    page
}

fn check(check: &Check) -> Vec<Vec<Word>> {
    let verdict = match check.verdict {
        Verdict::Ok => word(GOOD, "ok"),
        Verdict::Lacks => word(DOUBTFUL, "lacking"),
        Verdict::Fails => word(BAD, "no"),
        Verdict::Unknown => word(FAINT, "unknown"),
    };
    let mut rows = vec![vec![word(PLAIN, &check.name), verdict, word(PLAIN, &check.found)]];
    if !check.remedy.is_empty() {
        rows.push(vec![word(PLAIN, ""), word(PLAIN, ""), word(FAINT, format!("→ {}", check.remedy))]);
    }
    rows
}

fn capture(report: &Report) -> Vec<Vec<Word>> {
    let line = |color, name: &str, text: &str| vec![word(PLAIN, name), word(color, text)];
    let Some(sight) = &report.sight else {
        return vec![line(BAD, "nothing is seen", report.failure.as_deref().unwrap_or("the reason is not known"))];
    };
    let color = if sight.instead.is_some() { DOUBTFUL } else { GOOD };
    let mut rows = vec![line(color, "mode", &sight.mode.to_string())];
    rows.extend(
        sight.instead.iter().map(|why| line(DOUBTFUL, "instead of fexit", why.lines().next().unwrap_or(why))),
    );
    if sight.instead.is_some() {
        rows.push(line(FAINT, "", "→ a kernel with BPF trampolines (as distributions build them) sees all; docs/kernels.md has what is missing until then"));
    }
    rows.extend(sight.gaps.iter().map(|gap| line(DOUBTFUL, &format!("not {}", gap.what), &gap.why)));
    let missed = [
        ("lost", report.lost, "opens and processes"),
        ("skipped", report.skipped, "runs of programs by the kernel"),
    ];
    rows.extend(
        missed
            .iter()
            .filter(|missed| missed.1 > 0)
            .map(|(name, count, of)| line(DOUBTFUL, name, &format!("{count} {of}"))),
    );
    if report.lost > 0 && report.of(Cell::Lost).next().is_some() {
        rows.push(line(
            FAINT,
            "",
            "→ this machine has opened more than could be read: try again when it has less to do, or raise capture.ring",
        ));
    }
    rows
}

fn row(case: &Case) -> Vec<Word> {
    let color = match case.answer {
        Cell::Right => GOOD,
        Cell::Marked => PLAIN,
        Cell::NotSeen | Cell::Lost => DOUBTFUL,
        Cell::Wrong => BAD,
        Cell::NotTried => FAINT,
    };
    let answer =
        if case.answer == Cell::NotTried { "not testable here".to_owned() } else { case.answer.to_string() };
    let elsewhere = case.elsewhere.as_ref().map(|there| format!(" ({there})")).unwrap_or_default();
    let details = [case.names.join(", "), case.marks.join(", "), case.why.clone()];
    let details: Vec<String> = details.into_iter().filter(|text| !text.is_empty()).collect();
    let colon = if details.is_empty() { "" } else { ": " };
    let said = format!("{}{colon}{}{elsewhere}", case.about, details.join("; "));
    vec![word(color, answer), word(PLAIN, &case.name), word(PLAIN, said)]
}

fn summary(report: &Report) -> Vec<Word> {
    let count = |answer| report.of(answer).count();
    let (right, marked, unseen) = (count(Cell::Right), count(Cell::Marked), count(Cell::NotSeen));
    let (lost, wrong, untried) = (count(Cell::Lost), count(Cell::Wrong), count(Cell::NotTried));
    let mut words = vec![
        word(BOLD, format!("{} ways:", report.cases.len())),
        word(GOOD, format!("{right} right,")),
        word(PLAIN, format!("{marked} marked as perhaps another path,")),
        word(if unseen > 0 { DOUBTFUL } else { PLAIN }, format!("{unseen} not seen,")),
        word(if wrong > 0 { BAD } else { PLAIN }, format!("{wrong} wrong,")),
    ];
    if lost > 0 {
        words.push(word(DOUBTFUL, format!("{lost} lost,")));
    }
    words.push(word(PLAIN, format!("{untried} not testable here; {:.1} s", report.seconds)));
    words
}
