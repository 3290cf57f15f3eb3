//! Alerts and opens for a person at a terminal.
use jiff::{Timestamp, tz::TimeZone};

use serde_json::Value;

use super::record;
use crate::{
    event::{Enriched, Event, Name, PathStatus, flags},
    policy::{Alert, Outcome, Severity, shown},
};

/// SGR codes, left out where `NO_COLOR` is set (no-color.org).
#[must_use]
pub fn paint(code: &str, text: &str) -> String {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return text.to_owned();
    }
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Two lines: what happened, and who did it.
pub(super) fn alert(alert: &Alert) -> String {
    let event = &alert.event.event;
    let severity = alert.policy.policy.spec.severity;
    let code = match severity {
        Severity::Critical => "1;97;41",
        Severity::High => "1;31",
        Severity::Medium => "33",
        Severity::Low => "36",
        Severity::Informational => "2",
    };
    let path = event.best_path().map_or_else(|| "(path unknown)".to_owned(), Name::to_string);
    let outcome = match Outcome::of(event.result) {
        Outcome::Success => "",
        Outcome::Denied => " denied",
        Outcome::Missing => " missing",
        Outcome::Error => " failed",
    };
    format!(
        "{}  {}  {}  {}{outcome} {}\n{:14}by {}",
        paint("2", &clock(event.time)),
        paint(code, &format!("{severity:<13}")),
        paint("1", &format!("{:<24}", alert.policy.name())),
        event.deed(),
        paint("1", &path),
        "",
        actor(&alert.event),
    )
}

/// `cat[4711] /usr/bin/cat  uid 0  container …  parent bash[12] /usr/bin/bash`.
fn actor(enriched: &Enriched) -> String {
    let event = &enriched.event;
    let mut text = format!("{}[{}]", event.comm, event.pid);
    if let Some(executable) = &enriched.process.executable {
        text += &format!(" {executable}");
    }
    text += &format!("  uid {}", event.ids.uid);
    if let Some(place) = place(enriched) {
        text += &format!("  {place}");
    }
    if let Some(parent) = enriched.ancestors.first() {
        text += &format!("  parent {}", parent.pid);
        if let Some(executable) = &parent.executable {
            text += &format!(" {executable}");
        }
    }
    text
}

/// `pod shop/web-5d4f8-x2x7z web`, or `container 0123456789ab` of which no more is known; None on the host.
fn place(enriched: &Enriched) -> Option<String> {
    let container = enriched.container.as_deref()?;
    let short = container.id.get(..12).unwrap_or(&container.id);
    let name = container.name.as_deref().unwrap_or(short);
    Some(match enriched.pod.as_deref() {
        Some(pod) => format!("pod {}/{} {name}", pod.namespace, pod.name),
        None => format!("container {name}"),
    })
}

/// A record of a topic on one line or two; None for what is not Pathwatch's, and for heartbeats unless `all`.
#[must_use]
pub fn record_line(payload: &[u8], all: bool) -> Option<String> {
    let document: Value = serde_json::from_slice(payload).ok()?;
    let at = |pointers: [&str; 2]| pointers.iter().find_map(|pointer| document.pointer(pointer)?.as_str());
    let kind = at(["/data_stream/dataset", "/metadata/event_code"])?;
    let word = kind.trim_start_matches("dev.pathwatch.").trim_start_matches("pathwatch.").trim_end_matches(".v1");
    if word == "heartbeat" && !all {
        return None;
    }
    let own = record::own(&document)?;
    let severity = own.get("severity").and_then(Value::as_str);
    let code = match (severity, word) {
        (Some("critical"), _) => "1;97;41",
        (Some("high"), _) | (None, "loss") => "1;31",
        (Some("medium"), _) | (None, "health") => "33",
        (Some("low"), _) => "36",
        _ => "2",
    };
    let time = at(["/@timestamp", ""]).and_then(|text| text.parse().ok());
    let time = time.or_else(|| Timestamp::from_millisecond(document.get("time")?.as_i64()?).ok())?;
    let node = at(["/host/name", "/device/hostname"]).unwrap_or_default();
    // What others wrote must not speak to the terminal.
    Some(format!(
        "{}  {}  {:<16}  {}",
        paint("2", &clock(time)),
        paint(code, &format!("{:<13}", shown(severity.unwrap_or(word)))),
        shown(node),
        shown(document.get("message")?.as_str()?),
    ))
}

/// One open on one line, in columns; `trace` prints it.
#[must_use]
pub fn open_line(enriched: &Enriched) -> String {
    let event = &enriched.event;
    let place = place(enriched).unwrap_or_else(|| match &enriched.cgroup_path {
        Some(path) => path.to_string(),
        None => event.cgroup_id.to_string(),
    });
    let path = event.best_path().map_or_else(|| "(path unknown)".to_owned(), Name::to_string);
    let result = if event.result == 0 { "ok".to_owned() } else { errno_name(event.result) };
    let result = format!("{result:<8}");
    let result = if event.result == 0 { paint("32", &result) } else { paint("31", &result) };
    // A race is possible on every line of the tracepoint mode, which the log has said once.
    let status = event.status.iter().filter(|status| **status != PathStatus::FdRacePossible);
    let status: Vec<String> = status.map(PathStatus::to_string).collect();
    let status = if status.is_empty() { String::new() } else { paint("2", &format!("  [{}]", status.join(","))) };
    format!(
        "{}  {:>7}  {:<15}  {place:<24}  {:<14}  {result}  {path}{status}",
        paint("2", &clock(event.time)),
        event.pid,
        event.comm.to_string(),
        flag_names(event),
    )
}

/// Time of day here, to the millisecond.
fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%H:%M:%S.%3f").to_string()
}

/// Access mode and the flags that matter to a reader.
fn flag_names(event: &Event) -> String {
    let access = match event.flags & flags::O_ACCMODE {
        0 => "rd",
        flags::O_WRONLY => "wr",
        _ => "rdwr",
    };
    let more =
        [(flags::O_PATH, "path"), (flags::EXEC, "exec"), (flags::O_CREAT, "creat"), (flags::O_TRUNC, "trunc")];
    more.iter()
        .filter(|(bit, _)| event.flags & bit != 0)
        .fold(access.to_owned(), |all, (_, name)| all + "," + name)
}

/// The errno's name where it is a usual one.
fn errno_name(result: i32) -> String {
    let known = match -result {
        1 => "EPERM",
        2 => "ENOENT",
        6 => "ENXIO",
        11 => "EAGAIN",
        13 => "EACCES",
        17 => "EEXIST",
        20 => "ENOTDIR",
        21 => "EISDIR",
        40 => "ELOOP",
        other => return format!("errno {other}"),
    };
    known.to_owned()
}
