//! Programs from /proc: what a process runs at the time of asking, which is after the open.
use std::{
    collections::HashMap,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
};

use crate::event::{Event, Name, Program};

/// Clock ticks of /proc/PID/stat are always hundredths of a second (USER_HZ, include/asm-generic/param.h).
const TICK_NS: u64 = 10_000_000;

/// Most processes that are remembered.
const CACHE_LIMIT: usize = 10_000;

/// What does not change in a process's life. Remembered so that enriching an event costs no open: two sensors on
/// one node would otherwise feed each other for ever.
#[derive(Clone, Copy)]
struct Known {
    /// Inode of /proc/PID, which the next holder of the pid does not have.
    inode: u64,
    parent: u32,
    start_ns: u64,
}

/// Processes by pid.
#[derive(Default)]
pub(super) struct Processes {
    known: HashMap<u32, Known>,
}

impl Processes {
    /// The program of the process that `event` speaks of, and its parent's; None if that process is gone.
    pub(super) fn look_up(&mut self, event: &Event) -> Option<(Program, Option<Program>)> {
        let (known, mut program) = self.program(event.pid)?;
        // The same pid with another start is another process.
        if known.start_ns / TICK_NS != event.start_ns / TICK_NS {
            return None;
        }
        program.start_ns = event.start_ns;
        // The first thread may have ended before the others, and takes the process's link with it.
        let of_thread = || executable(&format!("/proc/{}/task/{}/exe", event.pid, event.tid));
        program.executable = program.executable.or_else(of_thread);
        let parent = if known.parent == 0 { None } else { self.program(known.parent).map(|(_, program)| program) };
        Some((program, parent))
    }

    fn program(&mut self, pid: u32) -> Option<(Known, Program)> {
        let inode = fs::metadata(format!("/proc/{pid}")).ok()?.ino();
        let known = match self.known.get(&pid) {
            Some(known) if known.inode == inode => *known,
            _ => {
                let (parent, start) = parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
                let known = Known { inode, parent, start_ns: start.checked_mul(TICK_NS)? };
                if self.known.len() >= CACHE_LIMIT {
                    self.known.clear();
                }
                self.known.insert(pid, known);
                known
            }
        };
        let executable = executable(&format!("/proc/{pid}/exe"));
        Some((known, Program { pid, start_ns: known.start_ns, executable }))
    }
}

/// The program behind a link of /proc; kernel threads have none, and a zombie's is gone.
fn executable(link: &str) -> Option<Name> {
    fs::read_link(link).ok().map(|path| path.into_os_string().into_vec().into())
}

/// Parent pid and start time in ticks. The name in parentheses may hold anything, also `)`.
fn parse_stat(stat: &[u8]) -> Option<(u32, u64)> {
    let after_name = stat.get(stat.iter().rposition(|byte| *byte == b')')? + 1..)?;
    let mut fields = std::str::from_utf8(after_name).ok()?.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = b"7 (a) R 1 (x) S 42 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1234 0";
        assert_eq!(parse_stat(stat), Some((42, 1234)));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert_eq!(parse_stat(b"7 (a) S 42"), None);
    }

    fn event(pid: u32, start_ns: u64) -> Event {
        let json = serde_json::json!({
            "time": "2026-11-22T12:00:00Z", "boot_id": uuid::Uuid::nil(), "mode": "fexit", "cpu": 0, "sequence": 1,
            "pid": pid, "tid": pid, "start_ns": start_ns, "cgroup_id": 1, "uid": 0, "gid": 0, "comm": "", "flags": 0,
            "result": 0, "file": null, "path": null, "home": null, "requested": null, "status": [],
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn this_process_is_found_with_its_parent_and_a_wrong_start_is_another_process() {
        let (pid, mut processes) = (std::process::id(), Processes::default());
        let start_ns = processes.program(pid).unwrap().0.start_ns;
        // Read, and then remembered.
        for _ in 0..2 {
            let (program, parent) = processes.look_up(&event(pid, start_ns)).unwrap();
            let executable = std::env::current_exe().unwrap();
            assert_eq!(program.executable.unwrap().as_bytes(), executable.as_os_str().as_encoded_bytes());
            assert_eq!(parent.unwrap().pid, std::os::unix::process::parent_id());
        }
        assert_eq!(processes.look_up(&event(pid, start_ns + TICK_NS)), None);
    }

    #[test]
    fn a_remembered_pid_with_another_inode_is_read_anew() {
        let (pid, mut processes) = (std::process::id(), Processes::default());
        let wrong = Known { inode: 1, parent: 99_999, start_ns: 1 };
        processes.known.insert(pid, wrong);
        assert_eq!(processes.program(pid).unwrap().0.parent, std::os::unix::process::parent_id());
    }
}
