//! Programs from /proc: what a process runs at the time of asking, which is after the open.
use std::{fs, os::unix::ffi::OsStringExt as _};

use crate::event::{Name, Program};

/// Clock ticks of /proc/PID/stat are always hundredths of a second (USER_HZ, include/asm-generic/param.h).
const TICK_NS: u64 = 10_000_000;

/// The program of process `pid` that started at `start_ns`, and its parent's; None if that process is gone.
pub(super) fn of(pid: u32, start_ns: u64) -> Option<(Program, Option<Program>)> {
    let (program, parent) = read(pid)?;
    // The same pid with another start is another process.
    if program.start_ns / TICK_NS != start_ns / TICK_NS {
        return None;
    }
    let program = Program { start_ns, ..program };
    let parent = if parent == 0 { None } else { read(parent).map(|(program, _)| program) };
    Some((program, parent))
}

/// A program and its parent's pid.
fn read(pid: u32) -> Option<(Program, u32)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let (parent, start) = parse_stat(&stat)?;
    // Kernel threads have no executable, and a zombie's is gone.
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let executable = executable.map(|path| Name::from(path.into_os_string().into_vec()));
    Some((Program { pid, start_ns: start.checked_mul(TICK_NS)?, executable }, parent))
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
    fn this_process_is_found_with_its_parent_and_a_wrong_start_is_another_process() {
        let pid = std::process::id();
        let (own, _) = read(pid).unwrap();
        let (program, parent) = of(pid, own.start_ns).unwrap();
        let executable = std::env::current_exe().unwrap();
        assert_eq!(program.executable.unwrap().as_bytes(), executable.as_os_str().as_encoded_bytes());
        assert_eq!(parent.unwrap().pid, std::os::unix::process::parent_id());
        assert_eq!(of(pid, own.start_ns + TICK_NS), None);
    }
}
