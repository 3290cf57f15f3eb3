//! Processes: what they run, who made them and in which container, from the kernel's reports of exec, fork and exit, and
//! from /proc for those that were there before.
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    container::Home,
    proc::{self, TICK_NS},
    trust::{self, Candidate, Script},
};
use crate::{
    event::{ANCESTORS, Event, Program},
    notice::Notices,
    observation::{Exec, Fork, Identity},
    policy::PolicySet,
    procfs,
};

/// Most processes that are remembered.
const LIMIT: usize = 16_384;
/// Most of them that one container may have.
const SHARE: usize = LIMIT / 4;
/// From so many on, less is kept of each new program: no working directory, and so much of its arguments.
const CROWD: usize = LIMIT / 4;
const CROWD_ARGS: usize = 512;

/// Most sums that are remembered.
const SUMS_LIMIT: usize = 1000;
/// Largest program of which a sum is taken, in bytes.
const SUM_LIMIT: u64 = 256 << 20;

/// A process, and its ancestors as they were when it was made, the nearest first.
#[derive(Clone, Debug)]
struct Process {
    own: Running,
    ancestors: Vec<Running>,
    /// The container that it was made in, or the first that it was put into.
    home: Option<Arc<Home>>,
}

/// A program as a process runs it.
#[derive(Clone, Debug)]
struct Running {
    program: Arc<Program>,
    /// Device and inode; None of a kernel thread.
    file: Option<(u32, u64)>,
    /// The device is what stat(2) shows, which on some file systems is not what the kernel reports.
    by_stat: bool,
    /// What it interprets, until that is judged.
    script: Option<Arc<Script>>,
    /// Whether it was decided that the program is trusted, or not. That is done once some exception names it: a path
    /// that nobody trusts may lie in a file system that never answers.
    judged: bool,
}

/// A process by its pid and start, to the tick: the next holder of the pid is another.
type Key = (u32, u64);

fn key(process: Identity) -> Key {
    (process.pid, process.start_ns / TICK_NS)
}

/// Who opened a file.
pub(super) struct Opener {
    pub(super) program: Arc<Program>,
    /// The nearest first.
    pub(super) ancestors: Vec<Arc<Program>>,
}

/// All processes that are known.
pub(super) struct Processes {
    known: HashMap<Key, Process>,
    /// How many are remembered of each container, by its id.
    shares: HashMap<String, usize>,
    /// Those that were not in /proc at the last sweep.
    ended: HashSet<Key>,
    /// Sums of programs, by what changes when they do.
    sums: HashMap<Stamp, Option<String>>,
    notices: Notices,
}

/// Device, inode, size and time of the last change of a file.
type Stamp = (u64, u64, u64, i64, i64);

impl Processes {
    pub(super) fn new(notices: Notices) -> Self {
        Self {
            known: HashMap::new(),
            shares: HashMap::new(),
            ended: HashSet::new(),
            sums: HashMap::new(),
            notices,
        }
    }

    /// Remembers what /proc tells of those that are there. What turns up later without a report of the kernel's is not
    /// trusted: a process can make /proc tell another program (PR_SET_MM_EXE_FILE of prctl(2)).
    pub(super) fn seed(&mut self, home_of: impl Fn(u32) -> Option<Arc<Home>>) {
        for pid in proc::pids().take(LIMIT) {
            if let Some(mut process) = self.read(pid, true) {
                process.home = home_of(pid);
                self.remember(process);
            }
        }
    }

    /// A process made another, which runs the same program in the same container.
    pub(super) fn forked(&mut self, fork: &Fork, home: Option<Arc<Home>>) {
        let Some(mut parent) = self.find(fork.parent) else { return };
        if parent.own.is_another(Some(fork.program)) {
            parent.own = Running::unknown(fork.parent, Some(fork.program));
            self.remember(parent.clone());
        }
        let program =
            Program { pid: fork.child.pid, start_ns: fork.child.start_ns, ..(*parent.own.program).clone() };
        let own = Running { program: Arc::new(program), ..parent.own.clone() };
        let home = parent.home.clone().or(home);
        self.remember(Process { own, ancestors: parent.lineage(), home });
    }

    /// A process runs another program. Whether that is to be trusted is decided here, and stays so.
    pub(super) fn executed(&mut self, exec: &Exec, home: Option<Arc<Home>>, policies: &PolicySet) {
        let before = self.find(exec.process);
        let (ancestors, before) = before.map(|process| (process.ancestors, process.home)).unwrap_or_default();
        let Identity { pid, start_ns } = exec.process;
        let room = if self.known.len() < CROWD { usize::MAX } else { CROWD_ARGS };
        let program = Program {
            pid,
            start_ns,
            executable: exec.path.clone(),
            args: exec.args.cut(room),
            args_cut: exec.args_cut || exec.args.len() > room,
            cwd: exec.cwd.clone().filter(|_| room == usize::MAX),
            ..Program::default()
        };
        let script = exec
            .script
            .clone()
            .map(|path| Arc::new(Script { path, mount_ns: exec.mount_ns.into(), certain: !exec.chroot }));
        let own = Running {
            program: Arc::new(program),
            file: Some((exec.device, exec.inode)),
            by_stat: false,
            script,
            judged: false,
        };
        let mut process = Process { own, ancestors, home: before.or(home) };
        process.judge(policies);
        self.remember(process);
    }

    /// A process has ended.
    pub(super) fn exited(&mut self, process: Identity) {
        self.forget(key(process));
    }

    fn forget(&mut self, key: Key) {
        let Some(home) = self.known.remove(&key).and_then(|process| process.home) else { return };
        if let Some(count) = self.shares.get_mut(&home.container.id) {
            *count -= 1;
            if *count == 0 {
                self.shares.remove(&home.container.id);
            }
        }
    }

    /// The container that a process was in before, which is now in `home`: `home` itself, unless it has moved.
    pub(super) fn placed(&mut self, process: Identity, home: Option<&Arc<Home>>) -> Option<Arc<Home>> {
        let process = self.known.get_mut(&key(process))?;
        if process.home.is_none()
            && let Some(home) = home
        {
            process.home = Some(home.clone());
            *self.shares.entry(home.container.id.clone()).or_default() += 1;
        }
        process.home.clone()
    }

    /// The program of the process that `event` speaks of, and its ancestors'; None if nothing is known of it.
    pub(super) fn look_up(&mut self, event: &Event, policies: &PolicySet) -> Option<Opener> {
        let identity = Identity { pid: event.pid, start_ns: event.start_ns };
        let mut process = self.find(identity)?;
        let mut changed = false;
        if process.own.is_another(event.program) {
            process.own = Running::unknown(identity, event.program);
            changed = true;
        } else {
            changed |= process.judge(policies);
        }
        let own = &process.own.program;
        let asked = own.trusted && own.executable.as_ref().is_some_and(|path| policies.wants_sum(path.as_bytes()));
        let sha256 = if asked && own.sha256.is_none() { self.sum(event.pid) } else { own.sha256.clone() };
        if own.sha256 != sha256 || own.start_ns != event.start_ns {
            let start_ns = event.start_ns;
            process.own.program = Arc::new(Program { sha256, start_ns, ..(**own).clone() });
            changed = true;
        }
        let opener = Opener {
            program: process.own.program.clone(),
            ancestors: process.ancestors.iter().map(|ancestor| ancestor.program.clone()).collect(),
        };
        if changed {
            self.remember(process);
        }
        Some(opener)
    }

    /// What is remembered of a process, or what /proc says while it lives.
    fn find(&mut self, identity: Identity) -> Option<Process> {
        if let Some(process) = self.known.get(&key(identity)) {
            return Some(process.clone());
        }
        let process = self.read(identity.pid, false)?;
        if process.key() != key(identity) {
            return None;
        }
        self.remember(process.clone());
        Some(process)
    }

    /// Reads a process and its ancestors from /proc; `early`, before anybody could have prepared for it.
    fn read(&self, pid: u32, early: bool) -> Option<Process> {
        let mut all: Vec<Running> = Vec::new();
        let (mut next, mut home) = (pid, None);
        while all.len() <= ANCESTORS && next != 0 {
            let Some(found) = proc::read(next) else { break };
            let program = found.program;
            // Who started later is not the parent, but has its pid now.
            if all.last().is_some_and(|child| program.start_ns > child.program.start_ns) {
                break;
            }
            let known = self.known.get(&(next, program.start_ns / TICK_NS));
            home = home.or_else(|| known.and_then(|known| known.home.clone()));
            let (program, file) = (Arc::new(program), found.file);
            let seen = || Running { program, file, by_stat: true, script: None, judged: !early };
            all.push(known.map_or_else(seen, |known| known.own.clone()));
            next = found.parent;
        }
        let mut all = all.into_iter();
        Some(Process { own: all.next()?, ancestors: all.collect(), home })
    }

    /// SHA-256 sum of a process's program, taken once of each version of a file.
    fn sum(&mut self, pid: u32) -> Option<String> {
        let mut file = File::open(procfs::of(pid, "exe")).ok()?;
        let found = file.metadata().ok()?;
        let stamp = (found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec());
        if let Some(sum) = self.sums.get(&stamp) {
            return sum.clone();
        }
        let mut sum = Sha256::new();
        let read = found.size() <= SUM_LIMIT && io::copy(&mut file, &mut sum).is_ok();
        let sum = read.then(|| format!("{:x}", sum.finalize()));
        if self.sums.len() >= SUMS_LIMIT {
            self.sums.clear();
        }
        self.sums.insert(stamp, sum.clone());
        sum
    }

    fn remember(&mut self, process: Process) {
        let key = process.key();
        self.forget(key);
        let own = process.home.as_ref().map(|home| &home.container.id);
        let of_own = own.and_then(|own| self.shares.get(own)).copied().unwrap_or_default();
        // Whoever forks without end shall not make the others unknown.
        if self.known.len() >= LIMIT || of_own >= SHARE {
            let whose = own.map_or("the host", |own| own);
            let detail = format!("a process of {whose} is not remembered, but looked up in /proc");
            self.notices.add("enrich", "processes_full", 1, detail);
            return;
        }
        if let Some(own) = own {
            *self.shares.entry(own.clone()).or_default() += 1;
        }
        self.known.insert(key, process);
    }

    /// Forgets processes that have ended without a report, since the kernel could not hand it over; those that the last
    /// sweep has missed, too, so that events which are on their way still find theirs.
    pub(super) fn sweep(&mut self) {
        let alive = |(pid, ticks): &Key| proc::is_alive(Identity { pid: *pid, start_ns: ticks * TICK_NS });
        let ended: HashSet<Key> = self.known.keys().filter(|key| !alive(key)).copied().collect();
        let over: Vec<Key> = ended.intersection(&self.ended).copied().collect();
        over.into_iter().for_each(|key| self.forget(key));
        self.ended = ended;
    }

    /// Whether a process is remembered.
    pub(super) fn knows(&self, process: Identity) -> bool {
        self.known.contains_key(&key(process))
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

impl Running {
    /// What a process runs of which the report was lost: what /proc tells, if it is that very file, and nobody's to trust.
    fn unknown(process: Identity, file: Option<(u32, u64)>) -> Self {
        let same = |found: &proc::Found| {
            found.program.start_ns / TICK_NS == process.start_ns / TICK_NS
                && found.file.map(|(_, inode)| inode) == file.map(|(_, inode)| inode)
        };
        let program = proc::read(process.pid).filter(same).map(|found| found.program).unwrap_or_default();
        let program = Program { pid: process.pid, start_ns: process.start_ns, ..program };
        Self { program: Arc::new(program), file, by_stat: false, script: None, judged: true }
    }

    /// Whether the process runs another program by now, of which the report was lost.
    fn is_another(&self, now: Option<(u32, u64)>) -> bool {
        let (Some(known), Some(now)) = (self.file, now) else { return false };
        known.1 != now.1 || known.0 != now.0 && !self.by_stat
    }

    /// True if it is to be decided whether it is trusted: an exception names it, or what it interprets.
    fn is_asked(&self, policies: &PolicySet) -> bool {
        let names = [self.program.executable.as_ref(), self.script.as_ref().map(|script| &script.path)];
        !self.judged
            && self.file.is_some()
            && names.into_iter().flatten().any(|path| policies.excepts(path.as_bytes()))
    }
}

impl Process {
    fn key(&self) -> Key {
        (self.own.program.pid, self.own.program.start_ns / TICK_NS)
    }

    /// The ancestors of a child of this process.
    fn lineage(&self) -> Vec<Running> {
        std::iter::once(&self.own).chain(&self.ancestors).take(ANCESTORS).cloned().collect()
    }

    /// Decides on every program that an exception names by now; true if there was one to decide on.
    fn judge(&mut self, policies: &PolicySet) -> bool {
        let mut pids = Vec::new();
        for at in 0..=self.ancestors.len() {
            let running = if at == 0 { Some(&self.own) } else { self.ancestors.get(at - 1) };
            // Nearly always decided long since, or named by no exception: that must cost nothing.
            let Some(running) = running.filter(|running| running.is_asked(policies)) else { continue };
            if pids.is_empty() {
                pids =
                    std::iter::once(&self.own).chain(&self.ancestors).map(|running| running.program.pid).collect();
            }
            let (Some((device, inode)), Some(path)) = (running.file, &running.program.executable) else {
                continue;
            };
            let lineage = pids.get(at..).unwrap_or_default();
            let trusted = trust::is_trusted(&Candidate { path: path.as_bytes(), device, inode }, lineage);
            let script = running.script.as_ref().filter(|script| trusted && script.is_trusted(lineage));
            let script = script.map(|script| script.path.clone());
            let program = Arc::new(Program { trusted, script, ..(*running.program).clone() });
            let decided = Running { program, script: None, judged: true, ..running.clone() };
            match at.checked_sub(1) {
                None => self.own = decided,
                Some(at) => {
                    self.ancestors.get_mut(at).into_iter().for_each(|ancestor| *ancestor = decided.clone())
                }
            }
        }
        !pids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Args, Container, Name};

    fn processes() -> Processes {
        Processes::new(Notices::default())
    }

    fn this() -> Identity {
        let pid = std::process::id();
        Identity { pid, start_ns: proc::read(pid).unwrap().program.start_ns }
    }

    /// Pids that nobody has: beyond the kernel's greatest (PID_MAX_LIMIT, include/linux/threads.h).
    fn identity(n: u32) -> Identity {
        Identity { pid: (4 << 20) + n, start_ns: u64::from(n) * TICK_NS }
    }

    fn exec(process: Identity, path: &str) -> Exec {
        Exec {
            process,
            cgroup_id: 1,
            mount_ns: 0,
            path: Some(path.into()),
            device: 0,
            inode: 1,
            script: None,
            chroot: false,
            cwd: Some("/".into()),
            args: Args::new(b"x\0y\0"),
            args_cut: false,
        }
    }

    /// The maker runs what [`exec`] has told.
    fn fork(parent: Identity, child: Identity) -> Fork {
        Fork { parent, cgroup_id: 1, program: (0, 1), child }
    }

    fn executable(running: &Running) -> &Name {
        running.program.executable.as_ref().unwrap()
    }

    #[test]
    fn this_process_is_found_with_its_parent_and_a_wrong_start_is_another_process() {
        let mut processes = processes();
        for _ in 0..2 {
            let process = processes.find(this()).unwrap();
            let here = std::env::current_exe().unwrap();
            assert_eq!(executable(&process.own).as_bytes(), here.as_os_str().as_encoded_bytes());
            assert_eq!(process.ancestors[0].program.pid, std::os::unix::process::parent_id());
            assert!(process.ancestors.len() <= ANCESTORS && process.own.program.from_proc);
        }
        assert!(processes.find(Identity { start_ns: this().start_ns + TICK_NS, ..this() }).is_none());
    }

    #[test]
    fn what_a_process_was_made_by_is_remembered_when_all_have_ended() {
        let mut processes = processes();
        processes.forked(&fork(this(), identity(1)), None);
        for n in 1..8 {
            processes.executed(&exec(identity(n), &format!("/no/{n}")), None, &PolicySet::default());
            processes.forked(&fork(identity(n), identity(n + 1)), None);
            processes.exited(identity(n));
        }
        let last = processes.find(identity(8)).unwrap();
        let names: Vec<String> = last.ancestors.iter().map(|p| executable(p).to_string()).collect();
        assert_eq!(executable(&last.own).to_string(), "/no/7", "a child runs what its parent does");
        assert_eq!(names, ["/no/7", "/no/6", "/no/5", "/no/4", "/no/3"]);
        assert_eq!(last.own.program.args, Args::new(b"x\0y"));
        assert!(!last.own.program.trusted && !last.own.program.from_proc);
        // The pid of one that ended, taken by another.
        assert!(processes.find(Identity { start_ns: 99 * TICK_NS, ..identity(8) }).is_none());
        // This one, which is alive and was looked up, and the last.
        assert_eq!(processes.len(), 2);
    }

    #[test]
    fn a_process_stays_with_the_container_that_it_was_made_in() {
        let mut processes = processes();
        let home = |id: &str| {
            Arc::new(Home {
                container: Arc::new(Container { id: id.into(), ..Container::default() }),
                first: false,
            })
        };
        let (own, other) = (home("own"), home("other"));
        processes.executed(&exec(identity(1), "/runtime"), None, &PolicySet::default());
        processes.forked(&fork(identity(1), identity(2)), None);
        assert_eq!(processes.placed(identity(2), None), None);
        // The runtime puts its child into the container, where it makes children of its own.
        assert_eq!(processes.placed(identity(2), Some(&own)), Some(own.clone()));
        processes.executed(&exec(identity(2), "/init"), Some(own.clone()), &PolicySet::default());
        processes.forked(&fork(identity(2), identity(3)), Some(own.clone()));
        for elsewhere in [None, Some(&other)] {
            assert_eq!(processes.placed(identity(3), elsewhere), Some(own.clone()));
        }
        processes.forked(&fork(identity(3), identity(4)), Some(other.clone()));
        assert_eq!(processes.placed(identity(4), Some(&other)), Some(own));
        assert_eq!(processes.placed(identity(1), None), None);
    }

    #[test]
    fn the_table_stays_bounded_and_those_that_are_known_stay_known() {
        let mut processes = processes();
        let long = Exec { args: Args::new(&[b'x'; 4096]), ..exec(identity(1), "/x") };
        for n in 1..40_000 {
            let exec = Exec { process: identity(n), ..long.clone() };
            processes.executed(&exec, None, &PolicySet::default());
        }
        assert_eq!(processes.len(), LIMIT);
        let kept = |n| processes.known.get(&key(identity(n))).map(|process| process.own.program.args.len());
        assert_eq!((kept(1), kept(LIMIT as u32), kept(LIMIT as u32 + 1)), (Some(4096), Some(CROWD_ARGS), None));
        processes.sweep();
        assert_eq!(processes.len(), LIMIT, "their events may be on their way");
        processes.sweep();
        assert_eq!(processes.len(), 0);
    }
}
