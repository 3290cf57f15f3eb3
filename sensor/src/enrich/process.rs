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
    event::{ANCESTORS, Event, Program},
    observation::{Exec, Fork, Identity},
    policy::PolicySet,
};

/// Clock ticks of /proc/PID/stat are always hundredths of a second (USER_HZ, include/asm-generic/param.h).
const TICK_NS: u64 = 10_000_000;

/// Most processes that are remembered; beyond it those that have ended are forgotten.
const CACHE_LIMIT: usize = 16_384;

/// Most sums that are remembered.
const SUMS_LIMIT: usize = 1000;
/// Largest program of which a sum is taken, in bytes.
const SUM_LIMIT: u64 = 256 << 20;

/// A process, and its ancestors as they were when it was made, the nearest first.
#[derive(Clone, Debug)]
struct Process {
    own: Running,
    ancestors: Vec<Running>,
}

/// A program as a process runs it.
#[derive(Clone, Debug)]
struct Running {
    program: Arc<Program>,
    /// Device and inode; None of a kernel thread.
    file: Option<(u32, u64)>,
    /// The device is what stat(2) shows, which on some file systems is not what the kernel reports.
    by_stat: bool,
    /// Whether it was decided that the program is trusted, or not. That is done once some exception names it: a path
    /// that nobody trusts may lie in a file system that never answers.
    judged: bool,
}

/// Processes by pid, each with its start: the next holder of the pid is another.
#[derive(Default)]
pub(super) struct Processes {
    known: HashMap<u32, Process>,
    /// Sums of programs, by what changes when they do.
    sums: HashMap<Stamp, Option<String>>,
}

/// Device, inode, size and time of the last change of a file.
type Stamp = (u64, u64, u64, i64, i64);

impl Processes {
    /// Remembers what /proc tells of those that are there. What turns up later without a report of the kernel's is not
    /// trusted: a process can make /proc tell another program (PR_SET_MM_EXE_FILE of prctl(2)).
    pub(super) fn seed(&mut self) {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids: Vec<u32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        for pid in pids.into_iter().take(CACHE_LIMIT) {
            if let Some(process) = self.read(pid, true) {
                self.remember(process);
            }
        }
    }

    /// A process made another, which runs the same program.
    pub(super) fn forked(&mut self, fork: &Fork) {
        let Some(parent) = self.find(fork.parent) else { return };
        let program =
            Program { pid: fork.child.pid, start_ns: fork.child.start_ns, ..(*parent.own.program).clone() };
        let own = Running { program: Arc::new(program), ..parent.own.clone() };
        self.remember(Process { own, ancestors: parent.lineage() });
    }

    /// A process runs another program. Whether that is to be trusted is decided here, and stays so.
    pub(super) fn executed(&mut self, exec: &Exec, policies: &PolicySet) {
        let ancestors = self.find(exec.process).map(|process| process.ancestors).unwrap_or_default();
        let Identity { pid, start_ns } = exec.process;
        let program = Program { pid, start_ns, executable: exec.path.clone(), ..Program::default() };
        let own = Running {
            program: Arc::new(program),
            file: Some((exec.device, exec.inode)),
            by_stat: false,
            judged: false,
        };
        let mut process = Process { own, ancestors };
        process.judge(policies);
        self.remember(process);
    }

    /// The program of the process that `event` speaks of, and its ancestors'; None if nothing is known of it.
    pub(super) fn look_up(&mut self, event: &Event, policies: &PolicySet) -> Option<(Program, Vec<Program>)> {
        let mut process = self.find(Identity { pid: event.pid, start_ns: event.start_ns })?;
        if process.own.is_another(event) {
            // The report of an exec was lost: what it runs now is nobody's to trust.
            let (_, program) = read(event.pid).map(|(parent, program, _)| (parent, program)).unwrap_or_default();
            let program = Program { pid: event.pid, start_ns: event.start_ns, ..program };
            process.own =
                Running { program: Arc::new(program), file: event.program, by_stat: false, judged: true };
            self.remember(process.clone());
        } else if process.judge(policies) {
            self.remember(process.clone());
        }
        let own = &process.own.program;
        let asked = own.trusted && own.executable.as_ref().is_some_and(|path| policies.wants_sum(path.as_bytes()));
        if asked && own.sha256.is_none() {
            let sha256 = self.sum(event.pid);
            process.own.program = Arc::new(Program { sha256, ..(*process.own.program).clone() });
            self.remember(process.clone());
        }
        let program = Program { start_ns: event.start_ns, ..(*process.own.program).clone() };
        Some((program, process.ancestors.iter().map(|ancestor| (*ancestor.program).clone()).collect()))
    }

    /// What is remembered of a process, or what /proc says while it lives.
    fn find(&mut self, identity: Identity) -> Option<Process> {
        let same = |process: &&Process| process.own.program.start_ns / TICK_NS == identity.start_ns / TICK_NS;
        if let Some(process) = self.known.get(&identity.pid).filter(same) {
            return Some(process.clone());
        }
        let process = self.read(identity.pid, false)?;
        if !same(&&process) {
            return None;
        }
        self.remember(process.clone());
        Some(process)
    }

    /// Reads a process and its ancestors from /proc; `early`, before anybody could have prepared for it.
    fn read(&self, pid: u32, early: bool) -> Option<Process> {
        let mut all: Vec<Running> = Vec::new();
        let mut next = pid;
        while all.len() <= ANCESTORS && next != 0 {
            let Some((parent, program, file)) = read(next) else { break };
            // Who started later is not the parent, but has its pid now.
            if all.last().is_some_and(|child| program.start_ns > child.program.start_ns) {
                break;
            }
            let known = self
                .known
                .get(&next)
                .filter(|known| known.own.program.start_ns / TICK_NS == program.start_ns / TICK_NS);
            let new = || Running { program: Arc::new(program.clone()), file, by_stat: true, judged: !early };
            all.push(known.map_or_else(new, |known| known.own.clone()));
            next = parent;
        }
        let mut all = all.into_iter();
        Some(Process { own: all.next()?, ancestors: all.collect() })
    }

    /// SHA-256 sum of a process's program, taken once of each version of a file.
    fn sum(&mut self, pid: u32) -> Option<String> {
        let mut file = File::open(format!("/proc/{pid}/exe")).ok()?;
        let found = file.metadata().ok()?;
        let stamp = (found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec());
        if let Some(sum) = self.sums.get(&stamp) {
            return sum.clone();
        }
        let mut sum = Sha256::new();
        let read = (found.size() <= SUM_LIMIT).then(|| io::copy(&mut file, &mut sum));
        let sum = matches!(read, Some(Ok(_))).then(|| format!("{:x}", sum.finalize()));
        if self.sums.len() >= SUMS_LIMIT {
            self.sums.clear();
        }
        self.sums.insert(stamp, sum.clone());
        sum
    }

    fn remember(&mut self, process: Process) {
        if self.known.len() >= CACHE_LIMIT {
            self.known.retain(|pid, _| fs::metadata(format!("/proc/{pid}")).is_ok());
            if self.known.len() >= CACHE_LIMIT {
                self.known.clear();
            }
        }
        self.known.insert(process.own.program.pid, process);
    }
}

impl Running {
    /// Whether the process runs another program by now, of which the report was lost.
    fn is_another(&self, event: &Event) -> bool {
        let (Some(known), Some(now)) = (self.file, event.program) else { return false };
        known.1 != now.1 || known.0 != now.0 && !self.by_stat
    }
}

impl Process {
    /// The ancestors of a child of this process.
    fn lineage(&self) -> Vec<Running> {
        std::iter::once(&self.own).chain(&self.ancestors).take(ANCESTORS).cloned().collect()
    }

    /// Decides on every program that an exception names by now; true if there was one to decide on.
    fn judge(&mut self, policies: &PolicySet) -> bool {
        let (mut any, mut pids) = (false, Vec::new());
        for at in 0..=self.ancestors.len() {
            let running = if at == 0 { Some(&self.own) } else { self.ancestors.get(at - 1) };
            // Nearly always decided long since, or named by no exception: that must cost nothing.
            let Some(Running { program, file: Some((device, inode)), judged: false, .. }) = running else {
                continue;
            };
            let Some(path) = program.executable.clone().filter(|path| policies.excepts(path.as_bytes())) else {
                continue;
            };
            if pids.is_empty() {
                pids =
                    std::iter::once(&self.own).chain(&self.ancestors).map(|running| running.program.pid).collect();
            }
            let candidate = Candidate { path: path.as_bytes(), device: *device, inode: *inode };
            let trusted = trust::is_trusted(&candidate, pids.get(at..).unwrap_or_default());
            let program = Arc::new(Program { trusted, ..(**program).clone() });
            let running = if at == 0 { Some(&mut self.own) } else { self.ancestors.get_mut(at - 1) };
            running
                .into_iter()
                .for_each(|running| (running.program, running.judged, any) = (program.clone(), true, true));
        }
        any
    }
}

/// The parent of a process, what it runs, and which file that is.
type Read = (u32, Program, Option<(u32, u64)>);

/// What /proc tells of a process.
fn read(pid: u32) -> Option<Read> {
    let (parent, start) = parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
    let mut program = Program { pid, start_ns: start.checked_mul(TICK_NS)?, ..Program::default() };
    // Kernel threads have no program, and a zombie's is gone.
    let link = format!("/proc/{pid}/exe");
    let mut file = None;
    if let (Ok(found), Ok(path)) = (fs::metadata(&link), fs::read_link(&link)) {
        let mut path = path.into_os_string().into_vec();
        if found.nlink() == 0 && path.ends_with(b" (deleted)") {
            path.truncate(path.len() - b" (deleted)".len());
        }
        program.executable = Some(path.into());
        let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
        file = Some((major << 20 | minor & 0xf_ffff, found.ino()));
    }
    Some((parent, program, file))
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
                process.own.program.executable.as_ref().unwrap().as_bytes(),
                executable.as_os_str().as_encoded_bytes()
            );
            assert_eq!(process.ancestors[0].program.pid, std::os::unix::process::parent_id());
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
            processes.executed(&exec, &PolicySet::default());
            processes.forked(&Fork { parent: identity(n), child: identity(n + 1) });
        }
        let last = processes.find(identity(8)).unwrap();
        let names: Vec<String> =
            last.ancestors.iter().map(|p| p.program.executable.as_ref().unwrap().to_string()).collect();
        assert_eq!(
            last.own.program.executable.as_ref().unwrap().to_string(),
            "/no/7",
            "a child runs what its parent does"
        );
        assert_eq!(names, ["/no/7", "/no/6", "/no/5", "/no/4", "/no/3"]);
        assert!(!last.own.program.trusted);
        // The pid of one that ended, taken by another.
        assert!(processes.find(Identity { pid: identity(8).pid, start_ns: 99 * TICK_NS }).is_none());
    }

    #[test]
    fn the_table_stays_bounded() {
        let mut processes = Processes::default();
        for n in 0..40_000 {
            let process = Identity { pid: (4 << 20) + n, start_ns: 1 };
            processes.executed(&Exec { process, path: None, device: 0, inode: 1 }, &PolicySet::default());
            assert!(processes.known.len() <= CACHE_LIMIT);
        }
    }
}
