//! From the kernel to [`Event`]: loads the programs, reads the ring, counts what the kernel had to give up.
//!
//! Must not know policies, pods or sinks. Only this folder imports `aya`.
mod btf;
mod decode;
mod error;
mod filter;
mod hooks;
mod load;
mod names;
mod offsets;
mod opens;
pub mod replay;
mod selftest;
mod shares;

use std::{
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray, ProgramArray, RingBuf};
use bytesize::ByteSize;
use jiff::{SignedDuration, Timestamp};
use rustix::time::ClockId;
use sensor_ebpf::{HOOKS, LOSSES, Loss, OPEN_HOOKS};
use serde::{Deserialize, Serialize};
use tokio::{io::unix::AsyncFd, sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::shares::Shares;
use self::{
    decode::Decoder,
    load::Loaded,
    opens::{Opens, Programs},
};
pub use self::{
    error::Error,
    filter::{Filter, swap, table},
    selftest::PLACES,
};
use crate::{
    event::{CaptureMode, Operation},
    hierarchy::Hierarchy,
    memory,
    metrics::Metrics,
    notice::Notices,
    observation::{Observation, Refused},
};

/// Events between capture and enrich. When it is full, the ring fills, and then the kernel counts.
const QUEUE: usize = 8192;

/// How often the kernel's counters are read.
const ACCOUNT: Duration = Duration::from_secs(1);

/// Reasons of `sensor_ebpf::Loss`, in its order, as notices and metrics name them.
const LOSS_REASONS: [&str; LOSSES] = ["ring_full", "unreadable", "no_memory", "limited"];

/// How to look for opens.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `auto` tries fexit and falls back to tracepoint; the others insist.
    pub mode: Mode,
    /// Size of the ring between kernel and sensor; a power of two of at least one page.
    #[schemars(with = "String")]
    pub ring: ByteSize,
    /// Leave out the sensor's own opens. Tests turn it off to watch themselves.
    #[serde(skip)]
    pub skip_self: bool,
    /// How many records one cgroup may cause: a storm in one pod must not blind the node to the others.
    pub share: Share,
    /// Have a child process try at the start what is seen on this kernel.
    pub self_test: bool,
    /// Rounds of each of the two passes of the path walk: how many components and mounts a path may have, halved.
    /// Tests take fewer, because the verifier's time grows with them.
    #[serde(skip)]
    pub walk_rounds: u32,
    /// Tell the filter of directories that are moved. A test turns it off to show that it would find out.
    #[serde(skip)]
    pub watch_moves: bool,
}

impl Default for Config {
    fn default() -> Self {
        // 8 MiB hold some 25,000 ordinary records: half a second of a busy node.
        // Two passes of 1,024 reach the 2,047 components that 4,096 bytes can hold; the verifiers of 5.10 to 7.3
        // accept it.
        Self {
            mode: Mode::Auto,
            ring: ByteSize::mib(8),
            share: Share::default(),
            skip_self: true,
            self_test: true,
            walk_rounds: 1024,
            watch_moves: true,
        }
    }
}

/// What one cgroup may take of the node's attention; what goes beyond is counted, and told as a loss of that pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    /// Records a second; 0 for no limit.
    pub rate: u32,
    /// How many may come at once.
    pub burst: u32,
}

impl Default for Share {
    fn default() -> Self {
        // More than ordinary work does with watched files; a burst leaves room in the ring for others.
        Self { rate: 2_000, burst: 20_000 }
    }
}

impl Config {
    /// Refuses sizes that the kernel would refuse.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let (rate, burst) = (self.share.rate, self.share.burst);
        if rate > 1_000_000 || rate > 0 && !(1..=1_000_000).contains(&burst) {
            return Err(format!(
                "capture.share is {rate} records a second and {burst} at once; it must be 1 to 1000000 of both, such as 2000 and 20000, or a rate of 0 for no limit"
            ));
        }
        let bytes = self.ring.as_u64();
        if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) {
            return Ok(());
        }
        Err(format!("capture.ring is {}; it must be a power of two from 4KiB to 1GiB, such as 8MiB", self.ring))
    }
}

/// Which of the kernel's offers to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The best that loads.
    Auto,
    /// fexit or nothing.
    Fexit,
    /// The return of system calls.
    Tracepoint,
}

/// How a sensor looks at a kernel, and what it cannot see there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sight {
    /// By what.
    pub mode: CaptureMode,
    /// Why not by something better.
    pub instead: Option<String>,
    /// What is not seen, beside what its mode cannot know of a path.
    pub gaps: Vec<Gap>,
}

/// Something that can be done to files without being seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// How it is done, such as a system call.
    pub what: String,
    /// What policies call it, if that is all there is to see of it.
    pub operation: Option<Operation>,
    /// The reason.
    pub why: String,
}

/// Attached programs, and the reader of the ring that they fill.
pub struct Capture {
    programs: Programs,
    recorder: Option<ProgramArray<MapData>>,
    sight: Sight,
    filter: Option<Filter>,
    reader: Reader,
}

struct Reader {
    attached: Vec<Attached>,
    ring: AsyncFd<RingBuf<MapData>>,
    losses: PerCpuArray<MapData, u64>,
    sequences: PerCpuArray<MapData, u64>,
    shares: Shares,
    /// What could not be handed on yet.
    refused: Vec<Refused>,
    decoder: Decoder,
    seen: Seen,
    metrics: Arc<Metrics>,
    notices: Notices,
    events: mpsc::Sender<Observation>,
}

/// A program of the kernel side.
struct Attached {
    name: String,
    /// Open as long as the program is.
    descriptor: RawFd,
    /// It reports what is done to files.
    reports_opens: bool,
}

/// What was already accounted for.
struct Seen {
    lost: [u64; HOOKS * LOSSES],
    numbered: [u64; HOOKS],
    skipped: u64,
    processes_skipped: u64,
}

impl Capture {
    /// Loads and attaches the programs. Opens are recorded from here on, and read once it runs; their cgroup ids are those
    /// of `hierarchy`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(
        config: &Config,
        hierarchy: &Hierarchy,
        metrics: Arc<Metrics>,
        notices: Notices,
    ) -> Result<(Self, mpsc::Receiver<Observation>), Error> {
        let Loaded { bpf: mut programs, recorder, mut filter, mode, instead, gaps, opens } =
            load::load(config, hierarchy)?;
        memory::give_back();
        let shares = Shares::new(&mut programs)?;
        let mut map = |name| programs.take_map(name).ok_or(Error::MissingProgram(name));
        let ring = RingBuf::try_from(map("EVENTS")?).map_err(|why| Error::Load("EVENTS", why.into()))?;
        let mut counters = |name| PerCpuArray::try_from(map(name)?).map_err(|why| Error::Load(name, why.into()));
        let (losses, sequences) = (counters("LOSSES")?, counters("SEQUENCES")?);
        // SAFETY: the ring owns its descriptor and returns the same one until it is dropped, with this AsyncFd.
        #[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor of somebody else's type")]
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|why| Error::Load("EVENTS", why.into()))?;
        let attached = programs.programs().filter_map(|(name, program)| {
            let descriptor = program.fd().ok()?.as_fd().as_raw_fd();
            let reports_opens = !load::PROCESS_TRACEPOINTS.contains(&name);
            Some(Attached { name: name.to_owned(), descriptor, reports_opens })
        });
        let attached: Vec<Attached> = attached.collect();
        let decoder = Decoder { boot_id: boot_id()?, mode, boot_time: boot_time() };
        let (events, receiver) = mpsc::channel(QUEUE);
        metrics.queues.know("capture", &events);
        metrics.programs.know(attached.iter().map(|program: &Attached| program.name.clone()));
        let seen = Seen { lost: [0; HOOKS * LOSSES], numbered: [0; HOOKS], skipped: 0, processes_skipped: 0 };
        let reader = Reader {
            attached,
            ring,
            losses,
            sequences,
            shares,
            refused: Vec::new(),
            decoder,
            seen,
            metrics,
            notices,
            events,
        };
        let programs = Programs::new(programs);
        filter.attaches(Opens::new(programs.clone(), opens));
        let sight = Sight { mode, instead, gaps };
        Ok((Self { programs, recorder, sight, filter: Some(filter), reader }, receiver))
    }

    /// The kernel's filter, through which everything passes as long as nobody sets it; None the second time.
    pub fn take_filter(&mut self) -> Option<Filter> {
        self.filter.take()
    }

    /// How it looks, and what it cannot see.
    #[must_use]
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// Hands events on until `stop` is cancelled; then detaches, hands on what the ring still holds, and accounts
    /// for what was lost. Dropping its sender at the end stops the stages behind it in turn.
    ///
    /// # Errors
    /// When the ring cannot be waited for.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { programs, recorder, mut reader, .. } = self;
        let mut ticks = tokio::time::interval(ACCOUNT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                ready = reader.ring.readable_mut() => {
                    ready.context("waiting for the ring buffer")?.clear_ready();
                    if !reader.drain(&stop).await {
                        break;
                    }
                }
                _ = ticks.tick() => reader.count_losses(),
            }
        }
        reader.count_losses();
        reader.attached.clear();
        programs.end();
        // Only now: while they are attached they hand on to it.
        drop(recorder);
        // Nothing is added any more, so this drain ends with the ring and needs no second stop.
        reader.drain(&CancellationToken::new()).await;
        reader.count_losses();
        let rest: u64 = reader.refused.iter().map(|refused| refused.count).sum();
        if rest > 0 {
            reader.notices.lost(
                "capture",
                "limited",
                rest,
                "at the end nobody asked any more whose opens they were",
            );
        }
        Ok(())
    }
}

impl Reader {
    /// Hands on all that the ring holds; false if it was stopped in the middle or nobody listens any more.
    async fn drain(&mut self, stop: &CancellationToken) -> bool {
        let mut accounted = Instant::now();
        self.decoder.boot_time = boot_time();
        loop {
            // Under overload the ring is never empty, and that is when losses must be told.
            if accounted.elapsed() >= ACCOUNT {
                self.decoder.boot_time = boot_time();
                self.count_losses();
                accounted = Instant::now();
            }
            // Room first: an event taken from the ring can no longer be given back.
            let room = tokio::select! {
                room = self.events.reserve() => room,
                () = stop.cancelled() => return false,
            };
            let Ok(room) = room else { return false };
            let Some(item) = self.ring.get_mut().next() else { return !self.events.is_closed() };
            if let Some(observation) = self.decoder.decode(&item) {
                if matches!(observation, Observation::Open(_)) {
                    self.metrics.captured.add(1);
                }
                room.send(observation);
            } else {
                self.metrics.undecodable.add(1);
                self.notices.lost("capture", "undecodable", 1, "a record of the kernel side could not be read");
            }
        }
    }

    /// Turns the kernel's counters into notices and metrics.
    fn count_losses(&mut self) {
        let (mut opens, mut processes) = (0, 0);
        for (program, told) in self.attached.iter().zip(self.metrics.programs.each()) {
            let Some(runs) = Runs::of(program.descriptor) else { continue };
            *(if program.reports_opens { &mut opens } else { &mut processes }) += runs.skipped;
            told.nanoseconds.set(runs.nanoseconds);
            told.runs.set(runs.count);
        }
        let new = opens.saturating_sub(self.seen.skipped);
        if new > 0 {
            self.seen.skipped = opens;
            self.metrics.skipped.add(new);
            let detail = format!("the kernel skipped {new} runs of a program, each perhaps an open");
            self.notices.lost("capture", "recursion", new, detail);
        }
        let new = processes.saturating_sub(self.seen.processes_skipped);
        if new > 0 {
            self.seen.processes_skipped = processes;
            lost_processes(&self.metrics, &self.notices, new);
        }
        if let Err(why) = self.try_count_losses() {
            self.notices.add("capture", "counters_unreadable", 1, why.to_string());
        }
    }

    fn try_count_losses(&mut self) -> Result<(), aya::maps::MapError> {
        let mut limited = 0;
        for (slot, seen) in self.seen.lost.iter_mut().enumerate() {
            let new = growth(&self.losses, slot, seen)?;
            if new > 0 && slot / LOSSES >= OPEN_HOOKS {
                lost_processes(&self.metrics, &self.notices, new);
            } else if let (1.., Some(reason)) = (new, LOSS_REASONS.get(slot % LOSSES)) {
                self.metrics.opens_lost.add(new);
                if slot % LOSSES == Loss::NoMemory as usize {
                    // It had no number yet.
                    self.metrics.numbered.add(new);
                }
                if slot % LOSSES == Loss::Limited as usize {
                    limited += new;
                    continue;
                }
                self.notices.lost("capture", reason, new, format!("{new} opens were not reported by the kernel"));
            }
        }
        for (slot, seen) in self.seen.numbered.iter_mut().enumerate() {
            let new = growth(&self.sequences, slot, seen)?;
            if slot < OPEN_HOOKS {
                self.metrics.numbered.add(new);
            }
        }
        self.refused.extend(self.shares.look(limited)?);
        // Enrichment knows whose they are; if it has no room now, it is told later.
        while let (Some(refused), Ok(room)) = (self.refused.last(), self.events.try_reserve()) {
            room.send(Observation::Refused(*refused));
            self.refused.pop();
        }
        Ok(())
    }
}

fn lost_processes(metrics: &Metrics, notices: &Notices, new: u64) {
    metrics.processes_lost.add(new);
    let detail = format!("{new} records of processes and cgroups were lost; of those less is known");
    notices.lost("capture", "processes_lost", new, detail);
}

/// The prototype of a function of this kernel as C writes it; None if it has none of that name.
///
/// # Errors
/// When the kernel does not describe itself.
pub fn prototype(function: &str) -> Result<Option<String>, Error> {
    Ok(btf::Types::of_this_kernel()?.prototype(function))
}

/// What the kernel has counted of a program (bpf_prog_show_fdinfo() in kernel/bpf/syscall.c).
#[derive(Default)]
struct Runs {
    /// How often it was skipped, from 5.12 on.
    skipped: u64,
    /// Zero unless `kernel.bpf_stats_enabled` is set, as is the next.
    nanoseconds: u64,
    count: u64,
}

impl Runs {
    fn of(program: RawFd) -> Option<Self> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{program}")).ok()?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Some(Self {
            skipped: field("recursion_misses:").unwrap_or(0),
            nanoseconds: field("run_time_ns:").unwrap_or(0),
            count: field("run_cnt:").unwrap_or(0),
        })
    }
}

/// How much the sum of a counter over all CPUs has grown since it was `seen`.
fn growth(counters: &PerCpuArray<MapData, u64>, slot: usize, seen: &mut u64) -> Result<u64, aya::maps::MapError> {
    let total = counters.get(&(slot as u32), 0)?.iter().sum::<u64>();
    let new = total.saturating_sub(*seen);
    *seen = total;
    Ok(new)
}

/// The id of this boot, which the kernel draws at random.
fn boot_id() -> Result<Uuid, Error> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(FILE).map_err(|why| Error::Io(FILE.to_owned(), why))?;
    Ok(text.trim().parse().unwrap_or_default())
}

/// The wall clock's time at which `CLOCK_BOOTTIME` was zero.
fn boot_time() -> Timestamp {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let up = rustix::time::clock_gettime(ClockId::Boottime);
    let elapsed =
        SignedDuration::new(now.tv_sec, now.tv_nsec as i32) - SignedDuration::new(up.tv_sec, up.tv_nsec as i32);
    Timestamp::from_duration(elapsed).unwrap_or(Timestamp::UNIX_EPOCH)
}
