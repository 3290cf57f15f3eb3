//! Processes: what they run and who made them, from the kernel's reports of exec and fork, and from /proc for those that
//! were there before.
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::trust::{self, Candidate};
use crate::{
    event::{ANCESTORS, Event, Name, Program},
    observation::{Exec, Fork, Identity},
    policy::PolicySet,
};

/// Clock ticks of /proc/PID/stat are always hundredths of a second (USER_HZ, include/asm-generic/param.h).
const TICK_NS: u64 = 10_000_000;

/// Most processes that are remembered; beyond it those that have ended are forgotten.
const CACHE_LIMIT: usize = 16_384;

/// Largest program of which a sum is taken, in bytes.
const SUM_LIMIT: u64 = 256 << 20;

/// Programs of a process and of its ancestors, the nearest first.
#[derive(Clone, Debug)]
struct Process {
    program: Arc<Program>,
    /// As they were when it was made.
    ancestors: Vec<Arc<Program>>,
}

/// Processes by pid, each with its start: the next holder of the pid is another.
#[derive(Default)]
pub(super) struct Processes {
    known: HashMap<u32, Process>,
}

impl Processes {
    /// A process made another, which runs the same program.
    pub(super) fn forked(&mut self, fork: &Fork) {
        let Some(parent) = self.find(fork.parent) else { return };
        let program = Program { pid: fork.child.pid, start_ns: fork.child.start_ns, ..(*parent.program).clone() };
        self.remember(Process { program: Arc::new(program), ancestors: parent.lineage() });
    }

    /// A process runs another program. Whether that is to be trusted is decided here, and stays so.
    pub(super) fn executed(&mut self, exec: &Exec) {
        let ancestors = self.find(exec.process).map(|process| process.ancestors).unwrap_or_default();
        let lineage: Vec<u32> =
            std::iter::once(exec.process.pid).chain(ancestors.iter().map(|program| program.pid)).collect();
        let trusted = exec.path.as_ref().is_some_and(|path| {
            let candidate = Candidate { path: path.as_bytes(), device: exec.device, inode: exec.inode };
            trust::is_trusted(&candidate, &lineage)
        });
        let Identity { pid, start_ns } = exec.process;
        let program = Program { pid, start_ns, executable: exec.path.clone(), trusted, ..Program::default() };
        self.remember(Process { program: Arc::new(program), ancestors });
    }

    /// Forgets everything: the next look reads /proc.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// The program of the process that `event` speaks of, and its ancestors'; None if nothing is known of it.
    pub(super) fn look_up(&mut self, event: &Event, policies: &PolicySet) -> Option<(Program, Vec<Program>)> {
        let mut process = self.find(Identity { pid: event.pid, start_ns: event.start_ns })?;
        let executable = process.program.executable.as_ref();
        let asked = process.program.trusted && executable.is_some_and(|path| policies.wants_sum(path.as_bytes()));
        if asked && process.program.sha256.is_none() {
            let sha256 = sum(event.pid);
            process.program = Arc::new(Program { sha256, ..(*process.program).clone() });
            self.remember(process.clone());
        }
        let program = Program { start_ns: event.start_ns, ..(*process.program).clone() };
        Some((program, process.ancestors.iter().map(|program| (**program).clone()).collect()))
    }

    /// What is remembered of a process, or what /proc says while it lives.
    fn find(&mut self, identity: Identity) -> Option<Process> {
        let same = |process: &&Process| process.program.start_ns / TICK_NS == identity.start_ns / TICK_NS;
        if let Some(process) = self.known.get(&identity.pid).filter(same) {
            return Some(process.clone());
        }
        let process = self.read(identity.pid)?;
        same(&&process).then_some(process)
    }

    /// Reads a process and its ancestors from /proc, and remembers them.
    fn read(&mut self, pid: u32) -> Option<Process> {
        let mut programs = Vec::new();
        let mut next = pid;
        while programs.len() <= ANCESTORS && next != 0 {
            let Some((parent, program)) = read(next) else { break };
            // Who started later is not the parent, but has its pid now.
            if programs.last().is_some_and(|child: &Arc<Program>| program.start_ns > child.start_ns) {
                break;
            }
            programs.push(Arc::new(program));
            next = parent;
        }
        let mut programs = programs.into_iter();
        let process = Process { program: programs.next()?, ancestors: programs.collect() };
        self.remember(process.clone());
        Some(process)
    }

    fn remember(&mut self, process: Process) {
        if self.known.len() >= CACHE_LIMIT {
            self.known.retain(|pid, _| fs::metadata(format!("/proc/{pid}")).is_ok());
            if self.known.len() >= CACHE_LIMIT {
                self.known.clear();
            }
        }
        self.known.insert(process.program.pid, process);
    }
}

impl Process {
    /// The ancestors of a child of this process.
    fn lineage(&self) -> Vec<Arc<Program>> {
        std::iter::once(&self.program).chain(&self.ancestors).take(ANCESTORS).cloned().collect()
    }
}

/// The parent of a process and what it runs.
fn read(pid: u32) -> Option<(u32, Program)> {
    let (parent, start) = parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
    let mut program = Program { pid, start_ns: start.checked_mul(TICK_NS)?, ..Program::default() };
    // Kernel threads have no program, and a zombie's is gone.
    let link = format!("/proc/{pid}/exe");
    if let (Ok(found), Ok(path)) = (fs::metadata(&link), fs::read_link(&link)) {
        let mut path = path.into_os_string().into_vec();
        let deleted = found.nlink() == 0 && path.ends_with(b" (deleted)");
        if deleted {
            path.truncate(path.len() - b" (deleted)".len());
        }
        let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
        let candidate = Candidate { path: &path, device: major << 20 | minor & 0xf_ffff, inode: found.ino() };
        program.trusted = !deleted && trust::is_trusted(&candidate, &[pid]);
        program.executable = Some(Name::from(path));
    }
    Some((parent, program))
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

    fn this() -> Identity {
        let pid = std::process::id();
        Identity { pid, start_ns: read(pid).unwrap().1.start_ns }
    }

    #[test]
    fn this_process_is_found_with_its_parent_and_a_wrong_start_is_another_process() {
        let mut processes = Processes::default();
        for _ in 0..2 {
            let process = processes.find(this()).unwrap();
            let executable = std::env::current_exe().unwrap();
            assert_eq!(
                process.program.executable.as_ref().unwrap().as_bytes(),
                executable.as_os_str().as_encoded_bytes()
            );
            assert_eq!(process.ancestors[0].pid, std::os::unix::process::parent_id());
            assert!(process.ancestors.len() <= ANCESTORS);
        }
        assert!(processes.find(Identity { start_ns: this().start_ns + TICK_NS, ..this() }).is_none());
    }

    #[test]
    fn what_a_process_was_made_by_is_remembered_when_all_have_ended() {
        // Pids that nobody has: beyond the kernel's greatest (PID_MAX_LIMIT, include/linux/threads.h).
        let identity = |n: u32| Identity { pid: (4 << 20) + n, start_ns: u64::from(n) * TICK_NS };
        let mut processes = Processes::default();
        processes.forked(&Fork { parent: this(), child: identity(1) });
        for n in 1..8 {
            let exec =
                Exec { process: identity(n), path: Some(format!("/no/{n}").as_str().into()), device: 0, inode: 1 };
            processes.executed(&exec);
            processes.forked(&Fork { parent: identity(n), child: identity(n + 1) });
        }
        let last = processes.find(identity(8)).unwrap();
        let names: Vec<String> =
            last.ancestors.iter().map(|p| p.executable.as_ref().unwrap().to_string()).collect();
        assert_eq!(
            last.program.executable.as_ref().unwrap().to_string(),
            "/no/7",
            "a child runs what its parent does"
        );
        assert_eq!(names, ["/no/7", "/no/6", "/no/5", "/no/4", "/no/3"]);
        assert!(!last.program.trusted);
        // The pid of one that ended, taken by another.
        assert!(processes.find(Identity { pid: identity(8).pid, start_ns: 99 * TICK_NS }).is_none());
    }

    #[test]
    fn the_table_stays_bounded() {
        let mut processes = Processes::default();
        for n in 0..40_000 {
            let process = Identity { pid: (4 << 20) + n, start_ns: 1 };
            processes.executed(&Exec { process, path: None, device: 0, inode: 1 });
            assert!(processes.known.len() <= CACHE_LIMIT);
        }
    }
}
