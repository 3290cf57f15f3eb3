//! Whether what was seen of a case is what the attack knows of it.
use std::{fmt, os::unix::ffi::OsStrExt as _, path::Path};

use attack::{BEGIN, Case, END};
use serde::{Deserialize, Serialize};

use crate::event::{CaptureMode, Enriched, Name, PathStatus};

/// What is made of a case on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// One event, with the right path, process, operation and outcome.
    Right,
    /// The same, with the path marked as one that may be another.
    Marked,
    /// No event.
    NotSeen,
    /// No event, while some were lost: perhaps this one.
    Lost,
    /// Anything else.
    Wrong,
    /// This kernel or machine has no such thing, or does not allow it.
    NotTried,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Right => "right",
            Self::Marked => "marked",
            Self::NotSeen => "not seen",
            Self::Lost => "lost",
            Self::Wrong => "WRONG",
            Self::NotTried => "not tried",
        })
    }
}

/// What is said of a case.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which.
    pub case: &'static Case,
    /// How it was seen.
    pub cell: Cell,
    /// The views by which the file that is watched was told.
    pub names: Vec<&'static str>,
    /// What is said of its path.
    pub marks: Vec<String>,
    /// What is wrong, or why it was not seen or not tried.
    pub why: String,
}

impl Answer {
    /// One without an event.
    pub(super) fn without(case: &'static Case, cell: Cell, why: String) -> Self {
        Self { case, cell, names: Vec::new(), marks: Vec::new(), why }
    }
}

/// Marks that say that the path may be another; the others say something of the file or of the process.
fn is_doubt(status: PathStatus, mode: CaptureMode) -> bool {
    match status {
        PathStatus::Detached
        | PathStatus::ForeignMount
        | PathStatus::Disconnected
        | PathStatus::TooLong
        | PathStatus::FdReplaced
        | PathStatus::RequestedCut => true,
        // On every event that is found through a descriptor, or through the process's memory.
        PathStatus::FdRacePossible | PathStatus::RequestedUntrusted => mode != CaptureMode::Tracepoint,
        PathStatus::Chroot
        | PathStatus::Covered
        | PathStatus::Deleted
        | PathStatus::Memfd
        | PathStatus::Tmpfile => false,
    }
}

/// What there is to judge by.
pub(super) struct Seen<'a> {
    pub mode: CaptureMode,
    pub events: &'a [Enriched],
    /// Whether events were lost meanwhile, of anybody.
    pub lossy: bool,
}

/// What was seen of a case that process `pid` did. What system calls do not show is not seen, for the reason that the case
/// has, unless they show some path of it. What is missing while events were lost may be one of those.
pub(super) fn judge(case: &'static Case, base: &Path, pid: u32, seen: &Seen<'_>) -> Answer {
    let answer = |cell, why| Answer::without(case, cell, why);
    let missing = |what: &str| match seen.lossy {
        false => answer(Cell::Wrong, what.to_owned()),
        true => answer(Cell::Lost, format!("{what}, while some of this machine's were lost")),
    };
    let Some(events) = between_marks(case, pid, seen.events) else {
        return missing("its beginning or its end was not seen");
    };
    let judged = judge_seen(case, base, &events);
    let shows_nothing =
        seen.mode == CaptureMode::Tracepoint && events.iter().all(|event| event.event.path.is_none());
    match judged.cell {
        Cell::NotSeen | Cell::Wrong if shows_nothing && !case.untraced.is_empty() => {
            answer(Cell::NotSeen, case.untraced.to_owned())
        }
        Cell::NotSeen => missing("no event"),
        Cell::Right | Cell::Marked | Cell::Lost | Cell::Wrong | Cell::NotTried => judged,
    }
}

/// What the process of a case, and its children, did between the opens that mark where it begins and ends.
fn between_marks<'a>(case: &Case, pid: u32, events: &'a [Enriched]) -> Option<Vec<&'a Enriched>> {
    let of_case =
        |event: &&Enriched| event.event.pid == pid || event.ancestors.iter().any(|ancestor| ancestor.pid == pid);
    let mut own: Vec<&Enriched> = events.iter().filter(of_case).collect();
    own.sort_by_key(|event| event.event.time);
    let at = |mark| {
        let name = format!("/{mark}{}", case.name);
        own.iter()
            .position(|event| is_named(event.event.requested.as_ref(), |path| path.ends_with(name.as_bytes())))
    };
    let (begin, end) = (at(BEGIN)?, at(END)?);
    Some(own.get(begin + 1..end).unwrap_or_default().to_vec())
}

fn judge_seen(case: &'static Case, base: &Path, seen: &[&Enriched]) -> Answer {
    let answer = |cell, why| Answer::without(case, cell, why);
    match seen {
        [] => answer(Cell::NotSeen, String::new()),
        [event] => match wrong(case, base, event) {
            Some(why) => answer(Cell::Wrong, why),
            None => {
                let doubts = event.event.status.iter().any(|status| is_doubt(*status, event.event.mode));
                let cell = if doubts { Cell::Marked } else { Cell::Right };
                let marks = event.event.status.iter().map(PathStatus::to_string).collect();
                Answer { case, cell, names: named_by(case, base, event), marks, why: String::new() }
            }
        },
        more => answer(Cell::Wrong, format!("{} events: {}", more.len(), tell(more))),
    }
}

fn tell(events: &[&Enriched]) -> String {
    let one = |event: &&Enriched| {
        let e = &event.event;
        format!(
            "{} {:?} of {:?}/{:?} by {} = {} {:?}",
            e.deed(),
            e.call,
            e.path,
            e.requested,
            e.comm,
            e.result,
            e.status
        )
    };
    events.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn is_named(name: Option<&Name>, is: impl Fn(&[u8]) -> bool) -> bool {
    name.is_some_and(|name| is(name.as_bytes()))
}

/// The views that name the file that is watched.
fn named_by(case: &Case, base: &Path, event: &Enriched) -> Vec<&'static str> {
    let secret = case.secret(base);
    let is_it = |name: Option<&Name>| is_named(name, |path| path == secret.as_os_str().as_bytes());
    let e = &event.event;
    let views = [
        ("path", is_it(e.path.as_ref())),
        ("home", is_it(e.home.as_ref())),
        ("requested", is_it(e.requested.as_ref())),
        ("target", is_it(e.target.as_ref())),
        ("target_home", is_it(e.target_home.as_ref())),
        ("identity", event.known_as.iter().any(|name| is_it(Some(name)))),
    ];
    views.into_iter().filter(|(_, is)| *is).map(|(view, _)| view).collect()
}

/// Why an event is not the right answer.
fn wrong(case: &Case, base: &Path, event: &Enriched) -> Option<String> {
    let e = &event.event;
    let fault = |what: &str, got: String| Some(format!("{what}: {got}"));
    let deed = e.deed().replace(',', "");
    if deed != case.operation {
        return fault("operation", deed);
    }
    if e.result != case.result {
        return fault("result", e.result.to_string());
    }
    let said = |status: &&PathStatus| {
        !is_doubt(**status, e.mode)
            && !matches!(status, PathStatus::FdRacePossible | PathStatus::RequestedUntrusted)
    };
    let marks: Vec<String> = e.status.iter().filter(said).map(PathStatus::to_string).collect();
    if e.path.is_some() && marks != case.marks {
        return fault("marks", marks.join(" "));
    }
    let unknown = e.status.iter().find(|status| {
        let word = status.to_string();
        is_doubt(**status, e.mode) && !case.doubts.contains(&word.as_str())
    });
    if let Some(status) = unknown {
        return fault("mark", status.to_string());
    }
    let traced = e.mode == CaptureMode::Tracepoint;
    // Of what system calls say of names, the letters are all there is.
    let by_letters = traced && e.path.is_none();
    let doubtful = e.status.iter().any(|status| is_doubt(*status, e.mode));
    if !by_letters
        && !case.path.is_empty()
        && !doubtful
        && !is_named(e.path.as_ref(), |path| fits(case, base, path))
    {
        return fault("path", format!("{:?} {:?}", e.path, e.status));
    }
    let names = named_by(case, base, event);
    let named = case.named_by.is_empty() || !names.is_empty() && (by_letters || names.contains(&case.named_by));
    if !named {
        let others = (&e.path, &e.home, &e.requested, &e.target, &e.target_home, &event.known_as);
        return fault("names", format!("{names:?} of {others:?} {:?}", e.status));
    }
    None
}

/// Whether a path is what the case says.
fn fits(case: &Case, base: &Path, path: &[u8]) -> bool {
    let (dir, secret) = (case.dir(base), case.secret(base));
    let m256 = "/m".repeat(256);
    let parts = [
        ("{m256}", m256.as_str()),
        ("{d40}", &"/d".repeat(40)),
        ("{w32}", &format!("/{}", "d".repeat(250)).repeat(32)),
    ];
    if case.path == "{secret}" {
        return path == secret.as_os_str().as_bytes();
    }
    let mut want = case.path.replace("{dir}", &dir.to_string_lossy());
    for (part, text) in parts {
        want = want.replace(part, text);
    }
    if let Some(tail) = want.strip_prefix("{tail}") {
        return path.ends_with(tail.as_bytes());
    }
    match want.strip_suffix('#') {
        Some(before) => path
            .strip_prefix(format!("{before}#").as_bytes())
            .is_some_and(|rest| rest.iter().all(u8::is_ascii_digit)),
        None => path == want.as_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use attack::CASES;

    use super::*;

    #[test]
    fn the_judge_finds_every_fault_that_is_planted_in_a_right_answer() {
        let base = Path::new("/base");
        let case = CASES.iter().find(|case| case.name == "open").unwrap();
        let event = |name: &str, path: bool, time: &str| -> Enriched {
            let document = serde_json::json!({
                "time": time, "boot_id": "00000000-0000-0000-0000-000000000000", "mode": "fexit", "cpu": 0, "sequence": 1,
                "pid": 7, "tid": 7, "start_ns": 0, "cgroup_id": 1, "uid": 0, "gid": 0, "comm": "x", "flags": 0,
                "result": if path { 0 } else { -2 }, "file": null, "path": if path { Some(name) } else { None }, "home": null,
                "requested": if path { None } else { Some(name) }, "status": [],
                "process": {"pid": 7, "start_ns": 0, "executable": null, "args": []}, "ancestors": [], "cgroup_path": null,
                "container": null, "enrichment": "complete",
            });
            serde_json::from_value(document).unwrap()
        };
        let begin = event("/@begin-open", false, "2026-01-01T00:00:01Z");
        let end = event("/@end-open", false, "2026-01-01T00:00:03Z");
        let right = event("/base/open/secret", true, "2026-01-01T00:00:02Z");
        fn seen(mode: CaptureMode, lossy: bool, events: &[Enriched]) -> Seen<'_> {
            Seen { mode, events, lossy }
        }
        let cell = |events: &[Enriched]| judge(case, base, 7, &seen(CaptureMode::Fexit, false, events)).cell;
        assert_eq!(cell(&[begin.clone(), right.clone(), end.clone()]), Cell::Right);
        assert_eq!(cell(&[begin.clone(), end.clone()]), Cell::Wrong);
        assert_eq!(cell(&[begin.clone(), right.clone(), right.clone(), end.clone()]), Cell::Wrong);
        assert_eq!(cell(&[begin.clone(), right.clone()]), Cell::Wrong);
        let planted: [fn(&mut Enriched); 6] = [
            |event| event.event.path = Some("/elsewhere".into()),
            |event| event.event.result = -13,
            |event| event.event.flags = 1,
            |event| event.event.status = vec![PathStatus::Covered],
            |event| event.event.path = None,
            |event| event.event.status = vec![PathStatus::FdRacePossible],
        ];
        for plant in planted {
            let mut bent = right.clone();
            plant(&mut bent);
            assert_eq!(cell(&[begin.clone(), bent, end.clone()]), Cell::Wrong);
        }
        // What is missing may have been lost; what is there and wrong is wrong all the same.
        let lossy = |events: &[Enriched]| judge(case, base, 7, &seen(CaptureMode::Fexit, true, events)).cell;
        assert_eq!(lossy(&[begin.clone(), end.clone()]), Cell::Lost);
        assert_eq!(lossy(&[begin.clone(), right.clone()]), Cell::Lost);
        assert_eq!(
            lossy(&[begin.clone(), event("/elsewhere", true, "2026-01-01T00:00:02Z"), end.clone()]),
            Cell::Wrong
        );
        let mut other = right.clone();
        other.event.pid = 8;
        assert_eq!(cell(&[begin, other, end]), Cell::Wrong);
        // What no system call returns is not seen, but no other path for it.
        let hidden = CASES.iter().find(|case| case.name == "io-uring").unwrap();
        let [begin, end] =
            ["/@begin-io-uring", "/@end-io-uring"].map(|name| event(name, false, "2026-01-01T00:00:01Z"));
        let traced =
            |events: &[Enriched]| judge(hidden, base, 7, &seen(CaptureMode::Tracepoint, false, events)).cell;
        assert_eq!(traced(&[begin.clone(), end.clone()]), Cell::NotSeen);
        assert_eq!(traced(&[begin.clone(), event("/base/other", true, "2026-01-01T00:00:01Z"), end]), Cell::Wrong);
        assert_eq!(traced(&[begin]), Cell::Wrong);
    }
}
