//! `pathwatch status`
use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use jiff::{SignedDuration, SpanRound, Timestamp, Unit};

use super::{
    Common, block_on,
    page::{BAD, BOLD, DOUBTFUL, FAINT, GOOD, PLAIN, Page, Word, word},
    start_log,
};
use crate::{
    doctor::Cell,
    http,
    policy::{Decided, Use},
    status::{Policy, Status},
};

/// How often a watched status is asked for.
const EVERY: Duration = Duration::from_secs(1);
/// From how long before its end on a certificate is doubtful.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Policies that are listed if not all are asked for.
const LISTED: usize = 10;

#[derive(Args)]
#[command(after_help = "\
Asks the sensor that runs on this machine, by its socket (http.socket), and so as its user.

Examples:
  sudo pathwatch status
  sudo pathwatch status --watch                 a page that follows it
  sudo pathwatch status --all                   every policy, with where each of its patterns is decided
  sudo pathwatch status --json | jq '.policies[] | select(.state != \"in_force\")'
  kubectl -n pathwatch exec -t ds/pathwatch -- /pathwatch status --config /etc/pathwatch/config/pathwatch.yaml")]
pub(super) struct Arguments {
    /// Again every second, until stopped
    #[arg(long)]
    watch: bool,
    /// JSON; the default where standard output is no terminal
    #[arg(long)]
    json: bool,
    /// Every policy and every pattern, not only what needs attention and what fired most
    #[arg(long, conflicts_with = "json")]
    all: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    start_log(&config.log)?;
    let json = arguments.json || !arguments.all && !std::io::stdout().is_terminal();
    block_on(async {
        let mut seen = false;
        loop {
            let status = match http::ask(&config.http.socket).await {
                // It may be about to start again.
                Err(why) if arguments.watch && seen => {
                    super::complain(&why);
                    tokio::time::sleep(EVERY).await;
                    continue;
                }
                answer => answer?,
            };
            seen = true;
            let mut out = std::io::stdout().lock();
            if json {
                serde_json::to_writer(&mut out, &status)?;
                out.write_all(b"\n")?;
            } else {
                let page = page(&status, arguments.all);
                // Each line takes the place of the last page's, and the rest of that is cleared: it does not flicker.
                let over = page.text().replace('\n', "\x1b[K\n");
                let text = if arguments.watch { format!("\x1b[H{over}\x1b[J") } else { page.text().to_owned() };
                out.write_all(text.as_bytes())?;
            }
            out.flush()?;
            drop(out);
            if !arguments.watch {
                return Ok(());
            }
            tokio::time::sleep(EVERY).await;
        }
    })
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  sudo pathwatch log debug --for 600            for ten minutes, then as before
  sudo pathwatch log sensor::ship=trace         one room of the sensor, until it is changed again")]
pub(super) struct LogArguments {
    /// error, warn, info, debug or trace; or some for parts: sensor::ship=debug,warn
    level: String,
    /// For so many seconds only
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 0)]
    seconds: u32,
    #[command(flatten)]
    common: Common,
}

pub(super) fn log(arguments: &LogArguments) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    crate::log::check(&arguments.level).map_err(crate::config::Error::new)?;
    block_on(async {
        let before = http::ask_to_log(&config.http.socket, &arguments.level, arguments.seconds).await?;
        super::policy::print(&format!("{} (it was {before})\n", arguments.level))
    })
}

type Rows = Vec<Vec<Word>>;

fn page(status: &Status, all: bool) -> Page {
    let mut page = Page::new();
    let of = status.cluster.as_ref().map(|cluster| format!(", cluster {cluster}")).unwrap_or_default();
    page.line(&[
        word(BOLD, "pathwatch"),
        word(BOLD, &status.version),
        word(PLAIN, format!("on {}{of}, up {}", status.node, span(status.now.duration_since(status.since)))),
    ]);
    page.section("SEEING", &seeing(status));
    let count = |state| status.policies.iter().filter(|policy| policy.standing.state == state).count();
    // The last good version of a stale one is in force.
    let stale = count(Use::Stale);
    let heading = format!(
        "POLICIES  {} in force, {stale} of them stale, {} failed, {} suspended",
        count(Use::InForce) + stale,
        count(Use::Failed),
        count(Use::Suspended),
    );
    page.section(&heading, &policies(status, all));
    page.section("OPENS", &opens(status));
    page.section("ALERTS", &alerts(status));
    page.section("DELIVERY", &delivery(status));
    page.section("LOST", &troubles(status, true));
    page.section("AMISS", &troubles(status, false));
    page
}

/// A span for a person, in its two largest units.
fn span(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let unit = match seconds {
        ..3_600 => Unit::Second,
        3_600..86_400 => Unit::Minute,
        _ => Unit::Hour,
    };
    let round = SpanRound::new().largest(Unit::Day).smallest(unit).days_are_24_hours();
    let rounded = jiff::Span::new().try_seconds(seconds).and_then(|span| span.round(round));
    rounded.map_or_else(|_| format!("{seconds}s"), |span| format!("{span:#}"))
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    format!("{} ago", span(now.duration_since(then)))
}

fn seeing(status: &Status) -> Rows {
    let line = |color, name: &str, text: String| vec![word(PLAIN, name), word(color, text)];
    let color = if status.sight.instead.is_some() { DOUBTFUL } else { GOOD };
    let mut rows = vec![line(color, "mode", status.sight.mode.to_string())];
    let instead = status.sight.instead.iter();
    rows.extend(
        instead.map(|why| line(DOUBTFUL, "instead of fexit", why.lines().next().unwrap_or(why).to_owned())),
    );
    rows.extend(status.sight.gaps.iter().map(|gap| line(DOUBTFUL, &format!("not {}", gap.what), gap.why.clone())));
    let Some(report) = &status.self_test else {
        rows.push(line(FAINT, "self-test", "none yet".to_owned()));
        return rows;
    };
    let count = |answer| report.of(answer).count();
    let (wrong, lost, unseen) = (count(Cell::Wrong), count(Cell::Lost), count(Cell::NotSeen));
    let color = if report.sight.is_none() || wrong > 0 {
        BAD
    } else if unseen + lost > 0 {
        DOUBTFUL
    } else {
        GOOD
    };
    let also = if lost > 0 { format!(" {lost} lost,") } else { String::new() };
    let told = match &report.failure {
        Some(why) => format!("nothing is seen: {why}"),
        None => format!(
            "of {} ways to a file {} right, {} marked, {unseen} not seen, {wrong} wrong,{also} {} not testable here",
            report.cases.len(),
            count(Cell::Right),
            count(Cell::Marked),
            count(Cell::NotTried),
        ),
    };
    rows.push(line(color, "self-test", told));
    rows
}

fn policies(status: &Status, all: bool) -> Rows {
    let head = ["STATE", "POLICY", "SEVERITY", "ALERTS", "DECIDED IN", "FROM"];
    let mut rows = vec![head.iter().map(|name| word(FAINT, name)).collect()];
    let needs_attention = |policy: &&Policy| {
        matches!(policy.standing.state, Use::Failed | Use::Stale) || !policy.standing.reasons.is_empty()
    };
    let mut listed: Vec<&Policy> = status.policies.iter().filter(|policy| !needs_attention(policy)).collect();
    listed.sort_by_key(|policy| std::cmp::Reverse(policy.hits));
    let fired = listed.iter().take_while(|policy| policy.hits > 0).count();
    listed.truncate(if all { listed.len() } else { fired.min(LISTED) });
    let shown = status.policies.iter().filter(needs_attention).chain(listed);
    let mut count = 0;
    for policy in shown {
        count += 1;
        rows.extend(policy_rows(policy, all));
    }
    if count < status.policies.len() {
        let more = format!("{} more (--all)", status.policies.len() - count);
        rows.push(vec![word(FAINT, ""), word(FAINT, more)]);
    }
    rows
}

fn policy_rows(policy: &Policy, all: bool) -> Rows {
    let Policy { standing, hits } = policy;
    let state = match standing.state {
        Use::Failed => word(BAD, "failed"),
        Use::Stale => word(DOUBTFUL, "stale"),
        Use::InForce => word(GOOD, "in force"),
        Use::Suspended => word(FAINT, "suspended"),
    };
    let severity = standing.severity.map_or("-".to_owned(), |severity| severity.to_string());
    let decided = standing.patterns.iter().map(|(_, decided)| *decided).max();
    let decided = decided.map_or("-".to_owned(), |decided| decided.to_string());
    let mut rows = vec![vec![
        state,
        word(PLAIN, &standing.name),
        word(PLAIN, severity),
        word(if *hits > 0 { BOLD } else { PLAIN }, hits.to_string()),
        word(PLAIN, decided),
        word(PLAIN, &standing.source),
    ]];
    rows.extend(standing.reasons.iter().map(|why| vec![word(PLAIN, ""), word(BAD, format!("→ {why}"))]));
    if all {
        let color = |decided: &Decided| if *decided == Decided::User { DOUBTFUL } else { FAINT };
        for (pattern, decided) in &standing.patterns {
            rows.push(vec![word(PLAIN, ""), word(color(decided), format!("{decided}: {pattern}"))]);
        }
    }
    rows
}

/// A number of people's liking; in colour if it is not zero.
fn number(color: &'static str, count: u64) -> Word {
    word(if count > 0 { color } else { PLAIN }, count.to_string())
}

fn opens(status: &Status) -> Rows {
    let opens = &status.opens;
    let known = opens.complete + opens.partial;
    let share = if known == 0 { 100.0 } else { 100.0 * opens.complete as f64 / known as f64 };
    let missing: Vec<String> = opens
        .missing
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(what, count)| format!("{what} {count}"))
        .collect();
    let missing = if missing.is_empty() { String::new() } else { format!("; not known: {}", missing.join(", ")) };
    vec![
        vec![word(PLAIN, "recorded"), word(PLAIN, opens.numbered.to_string())],
        vec![word(PLAIN, "some policy wanted"), word(PLAIN, opens.matched.to_string())],
        vec![word(PLAIN, "lost"), number(BAD, opens.lost + opens.undecodable)],
        vec![word(PLAIN, "lost at most, besides"), number(DOUBTFUL, opens.skipped)],
        vec![word(PLAIN, "everything known of"), word(PLAIN, format!("{share:.1} %{missing}"))],
    ]
}

fn alerts(status: &Status) -> Rows {
    let alerts = &status.alerts;
    vec![
        vec![word(PLAIN, "fired"), word(PLAIN, alerts.fired.to_string())],
        vec![word(PLAIN, "shipped"), word(PLAIN, alerts.shipped.to_string())],
        vec![word(PLAIN, "counted as repeats"), word(PLAIN, alerts.suppressed.to_string())],
        vec![word(PLAIN, "counted beyond a limit"), number(DOUBTFUL, alerts.limited)],
        vec![word(PLAIN, "waiting"), number(DOUBTFUL, alerts.waiting)],
        vec![word(PLAIN, "lost"), number(BAD, alerts.lost)],
    ]
}

fn delivery(status: &Status) -> Rows {
    let sink = &status.sink;
    let mut rows = vec![vec![
        word(PLAIN, &sink.target),
        if sink.degraded { word(BAD, "does not acknowledge") } else { word(GOOD, "well") },
    ]];
    if let Some(error) = &sink.last_error {
        let told = format!("{}: {}", ago(status.now, error.last), error.detail);
        rows.push(vec![word(PLAIN, "last error"), word(if sink.degraded { BAD } else { FAINT }, told)]);
    }
    if let Some(expires) = sink.certificate_expires {
        let left = expires.duration_since(status.now);
        let (color, told) = match left {
            left if left.is_negative() => (BAD, format!("expired {}", ago(status.now, expires))),
            left => (if left < SOON { DOUBTFUL } else { GOOD }, format!("expires in {}, {expires}", span(left))),
        };
        rows.push(vec![word(PLAIN, "Kafka certificate"), word(color, told)]);
    }
    if sink.spool_max_bytes > 0 {
        let size = bytesize::ByteSize::b;
        let told = format!("{} of {}", size(sink.spool_bytes), size(sink.spool_max_bytes));
        let color = if sink.spool_bytes * 2 > sink.spool_max_bytes { BAD } else { PLAIN };
        rows.push(vec![word(PLAIN, "spool"), word(color, told)]);
    }
    for queue in &status.queues {
        let color = if queue.length * 2 > queue.capacity { BAD } else { PLAIN };
        let told = format!("{} of {}", queue.length, queue.capacity);
        rows.push(vec![word(PLAIN, format!("queue behind {}", queue.name)), word(color, told)]);
    }
    rows
}

fn troubles(status: &Status, lost: bool) -> Rows {
    let of_kind = status.troubles.iter().filter(|trouble| trouble.lost == lost);
    let rows: Rows = of_kind
        .map(|trouble| {
            vec![
                word(if lost { BAD } else { DOUBTFUL }, &trouble.reason),
                word(PLAIN, &trouble.stage),
                word(PLAIN, trouble.count.to_string()),
                word(PLAIN, ago(status.now, trouble.last)),
                word(PLAIN, &trouble.detail),
            ]
        })
        .collect();
    if rows.is_empty() { vec![vec![word(GOOD, "nothing")]] } else { rows }
}
