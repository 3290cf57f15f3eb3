//! Programs from /proc: what a process runs at the time of asking, which is after the open.
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
};

use sha2::{Digest as _, Sha256};

use super::trust;
use crate::{
    event::{ANCESTORS, Event, Program},
    policy::PolicySet,
};

/// Clock ticks of /proc/PID/stat are always hundredths of a second (USER_HZ, include/asm-generic/param.h).
const TICK_NS: u64 = 10_000_000;

/// Most processes that are remembered.
const CACHE_LIMIT: usize = 10_000;

/// Largest program of which a sum is taken, in bytes.
const SUM_LIMIT: u64 = 256 << 20;

/// What is remembered of a process, so that enriching an event costs no open: two sensors on one node would otherwise
/// feed each other for ever.
#[derive(Clone)]
struct Known {
    /// Inode of /proc/PID, which the next holder of the pid does not have.
    inode: u64,
    parent: u32,
    /// Device and inode of the program: another one was executed since if they differ.
    identity: Option<(u64, u64)>,
    program: Program,
}

/// Processes by pid.
#[derive(Default)]
pub(super) struct Processes {
    known: HashMap<u32, Known>,
}

impl Processes {
    /// The program of the process that `event` speaks of, and its ancestors'; None if that process is gone.
    pub(super) fn look_up(&mut self, event: &Event, policies: &PolicySet) -> Option<(Program, Vec<Program>)> {
        let known = self.program(event.pid, Some(event.tid))?;
        // The same pid with another start is another process.
        if known.program.start_ns / TICK_NS != event.start_ns / TICK_NS {
            return None;
        }
        let mut program = Program { start_ns: event.start_ns, ..known.program.clone() };
        let asked =
            program.trusted && program.executable.as_ref().is_some_and(|path| policies.wants_sum(path.as_bytes()));
        if asked && program.sha256.is_none() {
            program.sha256 = sum(event.pid);
            if let Some(known) = self.known.get_mut(&event.pid) {
                known.program.sha256.clone_from(&program.sha256);
            }
        }
        Some((program, self.ancestors(&known)))
    }

    fn ancestors(&mut self, child: &Known) -> Vec<Program> {
        let (mut ancestors, mut child) = (Vec::new(), child.clone());
        while ancestors.len() < ANCESTORS && child.parent != 0 {
            // Who started later is not the parent, but has its pid now.
            let parent = self
                .program(child.parent, None)
                .filter(|parent| parent.program.start_ns <= child.program.start_ns);
            let Some(parent) = parent else { break };
            ancestors.push(parent.program.clone());
            child = parent;
        }
        ancestors
    }

    /// What process `pid` runs, remembered or read anew; `tid` is a thread of it that lives, for when the first does not.
    fn program(&mut self, pid: u32, tid: Option<u32>) -> Option<Known> {
        let inode = fs::metadata(format!("/proc/{pid}")).ok()?.ino();
        let thread = |tid| format!("/proc/{pid}/task/{tid}/exe");
        let links = std::iter::once(format!("/proc/{pid}/exe")).chain(tid.map(thread));
        let found = links.into_iter().find_map(|link| Some((fs::metadata(&link).ok()?, link)));
        let identity = found.as_ref().map(|(found, _)| (found.dev(), found.ino()));
        if let Some(known) =
            self.known.get(&pid).filter(|known| known.inode == inode && known.identity == identity)
        {
            return Some(known.clone());
        }
        let (parent, start) = parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
        let mut program = Program { pid, start_ns: start.checked_mul(TICK_NS)?, ..Program::default() };
        // Kernel threads have no program, and a zombie's is gone.
        if let Some((found, link)) = found
            && let Ok(path) = fs::read_link(link)
        {
            let mut path = path.into_os_string().into_vec();
            let deleted = found.nlink() == 0 && path.ends_with(b" (deleted)");
            if deleted {
                path.truncate(path.len() - b" (deleted)".len());
            }
            program.trusted = !deleted && trust::is_trusted(pid, &path);
            program.executable = Some(path.into());
        }
        let known = Known { inode, parent, identity, program };
        if self.known.len() >= CACHE_LIMIT {
            self.known.clear();
        }
        self.known.insert(pid, known.clone());
        Some(known)
    }
}

/// SHA-256 sum of a process's program.
fn sum(pid: u32) -> Option<String> {
    let mut file = File::open(format!("/proc/{pid}/exe")).ok()?;
    if file.metadata().ok()?.len() > SUM_LIMIT {
        return None;
    }
    let mut sum = Sha256::new();
    io::copy(&mut file, &mut sum).ok()?;
    Some(format!("{:x}", sum.finalize()))
}

/// The parent of a process; 0 if it has none that can be seen from here.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    Some(parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?.0)
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
        let start_ns = processes.program(pid, None).unwrap().program.start_ns;
        // Read, and then remembered.
        for _ in 0..2 {
            let (program, ancestors) = processes.look_up(&event(pid, start_ns), &PolicySet::default()).unwrap();
            let executable = std::env::current_exe().unwrap();
            assert_eq!(program.executable.unwrap().as_bytes(), executable.as_os_str().as_encoded_bytes());
            assert_eq!(ancestors[0].pid, std::os::unix::process::parent_id());
            assert!(ancestors.len() <= ANCESTORS);
        }
        assert_eq!(processes.look_up(&event(pid, start_ns + TICK_NS), &PolicySet::default()), None);
    }

    #[test]
    fn a_remembered_pid_with_another_inode_is_read_anew() {
        let (pid, mut processes) = (std::process::id(), Processes::default());
        let wrong = Known { inode: 1, parent: 99_999, identity: None, program: Program::default() };
        processes.known.insert(pid, wrong);
        assert_eq!(processes.program(pid, None).unwrap().parent, std::os::unix::process::parent_id());
    }
}
