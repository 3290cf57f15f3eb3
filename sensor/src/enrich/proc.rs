//! What /proc tells of processes: of those that were there before the sensor, and where a report of the kernel was lost.
use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStringExt as _,
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::{
    event::{Args, Program},
    observation::Identity,
    procfs,
};

/// Clock ticks of /proc/PID/stat are always hundredths of a second (USER_HZ, include/asm-generic/param.h).
pub(super) const TICK_NS: u64 = 10_000_000;

/// Most bytes of arguments that are read, as many as the kernel side reports.
const ARGS_LIMIT: u64 = sensor_ebpf::ARGS_LIMIT as u64;

/// What /proc tells of a process.
pub(super) struct Found {
    /// Process id of its parent; 0 if it has none that can be seen from here.
    pub(super) parent: u32,
    pub(super) program: Program,
    /// Device, as stat(2) shows it, and inode of the program; None of a kernel thread.
    pub(super) file: Option<(u32, u64)>,
}

/// Pids of all processes.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir(procfs::node())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

pub(super) fn read(pid: u32) -> Option<Found> {
    let (parent, start) = parse_stat(&fs::read(procfs::of(pid, "stat")).ok()?)?;
    let start_ns = start.checked_mul(TICK_NS)?;
    let mut program = Program { pid, start_ns, from_proc: true, ..Program::default() };
    // Kernel threads have no program, and a zombie's is gone.
    let link = procfs::of(pid, "exe");
    let mut file = None;
    // What the kernel has of it already: a file system of the process's own making may never answer.
    let found = statx(CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO | StatxFlags::NLINK);
    if let (Ok(found), Ok(path)) = (found, fs::read_link(&link)) {
        let mut path = path.into_os_string().into_vec();
        if found.stx_nlink == 0 && path.ends_with(b" (deleted)") {
            path.truncate(path.len() - b" (deleted)".len());
        }
        program.executable = Some(path.into());
        file = Some((found.stx_dev_major << 20 | found.stx_dev_minor & 0xf_ffff, found.stx_ino));
        let mut args = Vec::new();
        let read = File::open(procfs::of(pid, "cmdline"))
            .and_then(|cmdline| cmdline.take(ARGS_LIMIT + 1).read_to_end(&mut args));
        program.args_cut = read.is_err() || args.len() as u64 > ARGS_LIMIT;
        args.truncate(ARGS_LIMIT as usize);
        program.args = Args::new(&args);
        program.cwd =
            fs::read_link(procfs::of(pid, "cwd")).ok().map(|path| path.into_os_string().into_vec().into());
    }
    Some(Found { parent, program, file })
}

/// Whether that very process is there.
pub(super) fn is_alive(process: Identity) -> bool {
    let stat = fs::read(procfs::of(process.pid, "stat")).ok();
    stat.and_then(|stat| parse_stat(&stat)).is_some_and(|(_, start)| start == process.start_ns / TICK_NS)
}

/// The parent of a process; 0 if it has none that can be seen from here.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    Some(parse_stat(&fs::read(procfs::of(pid, "stat")).ok()?)?.0)
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

    #[test]
    fn this_process_is_told_with_its_arguments() {
        let found = read(std::process::id()).unwrap();
        let args: Vec<_> = std::env::args_os().map(|arg| arg.into_vec().into()).collect();
        assert_eq!(found.program.args.iter().collect::<Vec<_>>(), args);
        assert_eq!(found.parent, std::os::unix::process::parent_id());
        let identity = Identity { pid: found.program.pid, start_ns: found.program.start_ns };
        assert!(is_alive(identity) && !is_alive(Identity { start_ns: identity.start_ns + TICK_NS, ..identity }));
    }
}
