//! Loads and attaches the kernel side in the best mode that this kernel allows.
use aya::{
    Btf, Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{BtfTracePoint, FExit},
};
use rustix::process::{Resource, Rlimit};

use super::{Config, Error, Mode, btf::Types, offsets};
use crate::event::CaptureMode;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathwatch-ebpf"));

/// The function that every open passes, newest name first: `do_file_open` from 7.3, the other before.
const OPEN_FUNCTIONS: [&str; 2] = ["do_file_open", "do_filp_open"];

/// Tracepoints that tell who runs what, in every mode.
const PROCESS_TRACEPOINTS: [&str; 2] = ["sched_process_exec", "sched_process_fork"];

/// Loads and attaches; says which mode it came to.
pub(super) fn load(config: &Config) -> Result<(Ebpf, CaptureMode), Error> {
    permitted()?;
    if config.skip_self {
        in_initial_pid_namespace()?;
    }
    // Before 5.11 maps count against this limit; later kernels ignore it, so a refusal is no error.
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(why) = rustix::process::setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!(%why, "the locked-memory limit stays");
    }
    let types = Types::of_this_kernel()?;
    let mut globals = offsets::look_up(&types)?;
    let own_tgid = if config.skip_self { std::process::id() } else { 0 };
    globals.extend([("SELF_TGID", own_tgid), ("WALK_ROUNDS", config.walk_rounds)]);
    let btf = Btf::from_sys_fs().map_err(|why| Error::Load("the kernel's BTF", why.into()))?;

    let try_fexit = || fexit(&types, &globals, config, &btf).map(|bpf| (bpf, CaptureMode::Fexit));
    let try_tracepoint = || tracepoint(&globals, config, &btf).map(|bpf| (bpf, CaptureMode::Tracepoint));
    let (bpf, mode) = match config.mode {
        Mode::Fexit => try_fexit()?,
        Mode::Tracepoint => try_tracepoint()?,
        Mode::Auto => match try_fexit() {
            Ok(loaded) => loaded,
            Err(why) => {
                tracing::warn!("{why}; falling back to the return of system calls");
                try_tracepoint()?
            }
        },
    };
    tracing::info!(%mode, "capture is attached");
    Ok((bpf, mode))
}

fn fexit(types: &Types, globals: &[(&str, u32)], config: &Config, btf: &Btf) -> Result<Ebpf, Error> {
    let function = OPEN_FUNCTIONS.into_iter().find(|name| types.has_function(name));
    let function = function.ok_or_else(|| Error::MissingFunction(OPEN_FUNCTIONS.join(" or ")))?;
    let mut bpf = object(globals, config)?;
    let program: &mut FExit = program(&mut bpf, "do_filp_open")?;
    program.load(function, btf).map_err(|why| Error::Load("do_filp_open", why.into()))?;
    program.attach().map_err(|why| Error::Load("do_filp_open", why.into()))?;
    attach_tracepoints(&mut bpf, &PROCESS_TRACEPOINTS, btf)?;
    Ok(bpf)
}

fn tracepoint(globals: &[(&str, u32)], config: &Config, btf: &Btf) -> Result<Ebpf, Error> {
    let mut bpf = object(globals, config)?;
    attach_tracepoints(&mut bpf, &["sys_exit"], btf)?;
    attach_tracepoints(&mut bpf, &PROCESS_TRACEPOINTS, btf)?;
    Ok(bpf)
}

fn attach_tracepoints(bpf: &mut Ebpf, names: &[&'static str], btf: &Btf) -> Result<(), Error> {
    for name in names {
        let program: &mut BtfTracePoint = program(bpf, name)?;
        program.load(name, btf).map_err(|why| Error::Load(name, why.into()))?;
        program.attach().map_err(|why| Error::Load(name, why.into()))?;
    }
    Ok(())
}

fn object(globals: &[(&str, u32)], config: &Config) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    let ring_bytes = u32::try_from(config.ring.as_u64()).unwrap_or(u32::MAX);
    loader.map_max_entries("EVENTS", ring_bytes);
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

/// The kernel side knows the sensor by its pid in the initial namespace.
fn in_initial_pid_namespace() -> Result<(), Error> {
    // PROC_PID_INIT_INO of include/linux/proc_ns.h
    const INITIAL: &str = "pid:[4026531836]";
    const OWN: &str = "/proc/self/ns/pid";
    let own = std::fs::read_link(OWN).map_err(|why| Error::Io(OWN, why))?;
    if own.as_os_str() == INITIAL { Ok(()) } else { Err(Error::PidNamespace) }
}

/// Checks the capabilities that loading needs, so that a refusal names them instead of a system call.
fn permitted() -> Result<(), Error> {
    // include/uapi/linux/capability.h
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(|why| Error::Io("/proc/self/status", why))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective & SYS_ADMIN != 0 || effective & BPF != 0 && effective & PERFMON != 0 {
        Ok(())
    } else {
        Err(Error::NotPermitted)
    }
}
