//! Loads and attaches the kernel side in the best mode that this kernel allows.
use std::{
    os::{
        fd::{AsFd as _, AsRawFd as _, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
};

use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::{Array, MapData, ProgramArray},
    programs::{BtfTracePoint, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use rustix::process::{Resource, Rlimit};
use sensor_ebpf::{Hook, table};

use super::{
    Config, Error, Gap, Mode,
    btf::Types,
    filter::Filter,
    hooks::{self, Link, SPECS, Spec},
    offsets,
    opens::{self, Attached},
    selftest,
};
use crate::{
    event::{CaptureMode, Operation},
    hierarchy::Hierarchy,
    procfs,
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathwatch-ebpf"));

/// Tracepoints that tell who runs what and where, in every mode.
pub(super) const PROCESS_TRACEPOINTS: [&str; 5] =
    ["sched_process_exec", "sched_process_fork", "sched_process_exit", "cgroup_mkdir", "cgroup_rmdir"];

/// Programs that tell the filter of processes which change their cgroups.
const STRAY_PROGRAMS: [&str; 2] = ["cgroup_attach_task", "sched_process_fork"];

/// The program that sees everything in the tracepoint mode.
const SYS_EXIT: &str = "sys_exit";

/// Why that does not see all.
const NO_RETURN: &str = "no system call returns what it opens, and this kernel refuses fexit";

/// What was attached.
pub(super) struct Loaded {
    pub(super) bpf: Ebpf,
    /// Where the program is to which others hand on; to be kept as long as they are attached.
    pub(super) recorder: Option<ProgramArray<MapData>>,
    pub(super) filter: Filter,
    pub(super) mode: CaptureMode,
    /// Why it is not a better one.
    pub(super) instead: Option<String>,
    /// What is not seen in it.
    pub(super) gaps: Vec<Gap>,
    /// The program that sees opens.
    pub(super) opens: Attached,
}

/// Loads and attaches; says which mode it came to.
pub(super) fn load(config: &Config, hierarchy: &Hierarchy) -> Result<Loaded, Error> {
    permitted()?;
    // Before 5.11 maps count against this limit; later kernels ignore it, so a refusal is no error.
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(why) = rustix::process::setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!(%why, "the locked-memory limit stays");
    }
    let types = Types::of_this_kernel()?;
    let mut globals = offsets::look_up(&types)?;
    globals.extend(hooks::globals(&types));
    let interval = 1_000_000_000_u32.checked_div(config.share.rate).unwrap_or(0);
    globals.extend([("SHARE_INTERVAL", interval), ("SHARE_BURST", config.share.burst)]);
    globals.extend([("WALK_ROUNDS", config.walk_rounds), ("CGROUP_HIERARCHY", hierarchy.number)]);
    if let Some(controller) = hierarchy.controller {
        let name = format!("{controller}_cgrp_id");
        let number = types.enumerator("cgroup_subsys_id", &name);
        let number = number.ok_or(Error::MissingMember("cgroup_subsys", name))?;
        globals.push(("CGROUP_CONTROLLER", number + 1));
    }
    let own = whoami(&globals, config)?;
    globals.extend([("SELF_TGID", own.tgid), ("REPORT_SELF", (!config.skip_self).into())]);
    globals.extend([("PROC_LEVEL", own.level), ("PROC_PID_NS", own.namespace)]);
    let btf = Btf::from_sys_fs().map_err(|why| Error::Load("the kernel's BTF", why.into()))?;

    let try_fexit = || fexit(&types, &globals, config, &btf);
    let try_tracepoint = || tracepoint(&globals, config, &btf);
    let loaded = match config.mode {
        Mode::Fexit => try_fexit()?,
        Mode::Tracepoint => try_tracepoint()?,
        Mode::Auto => match try_fexit() {
            Ok(loaded) => loaded,
            Err(why) => {
                tracing::warn!("{why}; falling back to the return of system calls");
                Loaded { instead: Some(why.to_string()), ..try_tracepoint()? }
            }
        },
    };
    loaded.gaps.iter().for_each(|gap| tracing::warn!("{} is not seen on this kernel: {}", gap.what, gap.why));
    tracing::info!(mode = %loaded.mode, "capture is attached");
    Ok(loaded)
}

fn fexit(types: &Types, globals: &[(&str, u32)], config: &Config, btf: &Btf) -> Result<Loaded, Error> {
    let mut bpf = object(globals, config.ring.as_u64())?;
    let mut filter = Filter::new(&mut bpf)?;
    let recorder = Some(hooks::load_recorder(&mut bpf, types, btf)?);
    let (mut lacking, mut opens) = (Vec::<(Hook, String)>::new(), None);
    for spec in SPECS {
        // A hook is of no use with a part of its programs.
        if lacking.iter().any(|(hook, _)| *hook == spec.hook) {
            continue;
        }
        let why = match hooks::attach(spec, &mut bpf, types, btf) {
            Ok(link) if spec.hook == Hook::DoFilpOpen => {
                let returns = opens::tracing_returns();
                opens = Some(Attached { name: spec.program, link, classes: table::ALL, returns });
                continue;
            }
            Ok(_) => continue,
            Err(why) => why,
        };
        // Without opens there is no sensor; without another hook it is one that says what it does not see.
        if hooks::needed_for(spec.hook).is_none() {
            return Err(why);
        }
        lacking.push((spec.hook, why.to_string()));
    }
    let silent = silent(&bpf, &lacking)?;
    lacking.extend(silent);
    let gap = |(hook, why)| {
        hooks::needed_for(hook).map(|(what, operation)| Gap { what: what.to_owned(), operation, why })
    };
    let gaps = lacking.into_iter().filter_map(gap).collect();
    attach_tracepoints(&mut bpf, &PROCESS_TRACEPOINTS, btf)?;
    let moves = if config.watch_moves { hooks::attach_moves(&mut bpf, types, btf) } else { Ok(()) };
    match moves {
        Ok(()) => filter.remember().map_err(|why| Error::Load("FILTER_STATE", why.into()))?,
        Err(why) => tracing::warn!("the filter looks at every directory again at each open: {why}"),
    }
    match hooks::attach_strays(&mut bpf, types, btf) {
        Ok(()) => filter.watched_by(descriptors(&bpf, |name| STRAY_PROGRAMS.contains(&name))),
        Err(why) => tracing::warn!("the filter does not know whom policies speak of: {why}"),
    }
    let opens = opens.ok_or(Error::MissingProgram("do_filp_open"))?;
    Ok(Loaded { bpf, recorder, filter, mode: CaptureMode::Fexit, instead: None, gaps, opens })
}

/// The hooks of which a program is attached and does not fire, beside those that are `lacking` already.
fn silent(bpf: &Ebpf, lacking: &[(Hook, String)]) -> Result<Vec<(Hook, String)>, Error> {
    let Some(fired) = selftest::fired(bpf) else {
        let places = selftest::PLACES.join(", ");
        tracing::warn!("whether the hooks fire could not be tried: make one of {places} writable for the sensor");
        return Ok(Vec::new());
    };
    let fired = fired?;
    let mut found: Vec<(Hook, String)> = Vec::new();
    for Spec { program, hook, part, .. } in SPECS {
        if fired.has(*hook, *part) || lacking.iter().chain(&found).any(|(known, _)| known == hook) {
            continue;
        }
        if hooks::needed_for(*hook).is_none() {
            return Err(Error::Silent(program));
        }
        let why = format!("{program} is attached and never runs; please report the kernel's version");
        found.push((*hook, why));
    }
    Ok(found)
}

fn tracepoint(globals: &[(&str, u32)], config: &Config, btf: &Btf) -> Result<Loaded, Error> {
    let mut bpf = object(globals, config.ring.as_u64())?;
    let filter = Filter::new(&mut bpf)?;
    let link = attach_tracepoint(&mut bpf, SYS_EXIT, btf)?;
    attach_tracepoints(&mut bpf, &PROCESS_TRACEPOINTS, btf)?;
    // It sees all that is done to files by system calls.
    let opens = Attached { name: SYS_EXIT, link, classes: table::ALL | table::CHANGE, returns: true };
    let gap = |what: &str, operation| Gap { what: what.to_owned(), operation, why: NO_RETURN.to_owned() };
    let gaps = vec![gap("execve(2)", Some(Operation::Exec)), gap("io_uring(7)", None)];
    Ok(Loaded { bpf, recorder: None, filter, mode: CaptureMode::Tracepoint, instead: None, gaps, opens })
}

/// Descriptors of the programs of such names, open as long as those are.
fn descriptors(bpf: &Ebpf, is_one: impl Fn(&str) -> bool) -> Vec<RawFd> {
    let programs = bpf.programs().filter(|(name, _)| is_one(name));
    programs.filter_map(|(_, program)| Some(program.fd().ok()?.as_fd().as_raw_fd())).collect()
}

fn attach_tracepoints(bpf: &mut Ebpf, names: &[&'static str], btf: &Btf) -> Result<(), Error> {
    names.iter().try_for_each(|name| attach_tracepoint(bpf, name, btf).map(drop))
}

fn attach_tracepoint(bpf: &mut Ebpf, name: &'static str, btf: &Btf) -> Result<Link, Error> {
    let program: &mut BtfTracePoint = program(bpf, name)?;
    program.load(name, btf).map_err(|why| Error::Load(name, why.into()))?;
    hooks::tell_size(name, program.info());
    Ok(Link::Tracing(program.attach().map_err(|why| Error::Load(name, why.into()))?))
}

fn object(globals: &[(&str, u32)], ring: u64) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    // What is wrong, and how much was looked at: a log of every instruction is megabytes, of which the end is cut.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    loader.map_max_entries("EVENTS", u32::try_from(ring).unwrap_or(u32::MAX));
    for (name, value) in globals {
        loader.override_global(name, value, true);
    }
    loader.load(OBJECT).map_err(|why| Error::Load("the kernel object", why.into()))
}

fn program<'a, P>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let found = bpf.program_mut(name).ok_or(Error::MissingProgram(name))?;
    found.try_into().map_err(|why: aya::programs::ProgramError| Error::Load(name, why.into()))
}

/// The sensor, as the kernel side knows it.
struct Own {
    /// Process id in the initial pid namespace.
    tgid: u32,
    /// Depth of the pid namespace that /proc shows.
    level: u32,
    /// Inode of that namespace.
    namespace: u32,
}

/// Asks the kernel, unless it is plain: a process in a pid namespace of its own cannot tell from /proc what it is called
/// outside.
fn whoami(globals: &[(&str, u32)], config: &Config) -> Result<Own, Error> {
    // PROC_PID_INIT_INO of include/linux/proc_ns.h
    const INITIAL: u32 = 0xEFFF_FFFC;
    let read = |file: PathBuf, why| Error::Io(file.display().to_string(), why);
    let namespace = |file: PathBuf| match std::fs::metadata(&file) {
        Ok(found) => Ok(found.ino() as u32),
        Err(why) => Err(read(file, why)),
    };
    if namespace("/proc/self/ns/pid".into())? == INITIAL {
        return Ok(Own { tgid: std::process::id(), level: 0, namespace: INITIAL });
    }
    const NAME: &str = "whoami";
    let mut bpf = object(globals, config.ring.as_u64())?;
    let program: &mut RawTracePoint = program(&mut bpf, NAME)?;
    program.load().map_err(|why| Error::Load(NAME, why.into()))?;
    program.test_run(RawTracePointRunOptions::default()).map_err(|why| Error::Load(NAME, why.into()))?;
    let answer = bpf.map("WHOAMI").ok_or(Error::MissingProgram("WHOAMI"))?;
    let answer = Array::<_, [u32; 2]>::try_from(answer).and_then(|answer| answer.get(&0, 0));
    let [tgid, own_level] = answer.map_err(|why| Error::Load(NAME, why.into()))?;
    // The numbers of this process in the namespace that /proc shows, and in each that is in it, down to its own
    // (proc_pid_status(5)).
    let status = procfs::of("self", "status");
    let status = std::fs::read_to_string(&status).map_err(|why| read(status, why))?;
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map_or(1, |rest| rest.split_ascii_whitespace().count());
    let level = own_level.saturating_sub((numbers as u32).saturating_sub(1));
    if level == 0 {
        return Ok(Own { tgid, level, namespace: INITIAL });
    }
    // Process 1 of a /proc is in its namespace, whoever else is not.
    let namespace = namespace(procfs::of(1, "ns/pid"))?;
    tracing::warn!(
        "/proc shows a pid namespace of its own: of processes outside of it little is known. Unless this node is a container itself, mount the node's /proc and name it in enrich.proc, or give the sensor the node's pid namespace (hostPID: true, docker run --pid=host)"
    );
    Ok(Own { tgid, level, namespace })
}

/// Checks the capabilities that loading needs, so that a refusal names them instead of a system call.
fn permitted() -> Result<(), Error> {
    // include/uapi/linux/capability.h
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|why| Error::Io("/proc/self/status".to_owned(), why))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective & SYS_ADMIN != 0 || effective & BPF != 0 && effective & PERFMON != 0 {
        Ok(())
    } else {
        Err(Error::NotPermitted)
    }
}
