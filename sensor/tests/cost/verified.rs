//! What the verifier says of each program: it tells whoever asks when loading, which aya does not. So the process that loads is
//! traced, and asks.
use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    os::unix::{fs::FileExt, process::CommandExt},
    process::{Child, Command},
    ptr,
};

/// From `linux/bpf.h`: `BPF_PROG_LOAD`, `BPF_LOG_STATS`, and members of `union bpf_attr`.
const BPF_PROG_LOAD: u64 = 5;
const BPF_LOG_STATS: u32 = 4;
const LOG_LEVEL: u64 = 24;
const PROG_NAME: u64 = 48;
/// Room for what it says, in the traced process.
const ROOM: usize = 4096;
/// By a write to this descriptor, which fails, the traced process says where it has room.
const NOWHERE: i32 = -7;

/// To be called by the process that is traced, before it loads.
pub(crate) fn make_room() {
    let room = Box::leak(Box::new([0_u8; ROOM]));
    // SAFETY: the room is as long as said; there is no such descriptor.
    unsafe { libc::write(NOWHERE, room.as_ptr().cast(), ROOM) };
}

fn ptrace(request: libc::c_uint, child: &Child, address: usize, data: *mut libc::c_void) {
    // SAFETY: the child is traced by this thread; `data` is what the request wants.
    let done = unsafe { libc::ptrace(request, child.id() as i32, address, data) };
    assert!(done >= 0, "ptrace({request}): {}", io::Error::last_os_error());
}

/// Waits for the traced process to stop; None if it has ended.
fn stopped(child: &Child) -> Option<()> {
    let mut status = 0;
    // SAFETY: `status` is where it is written to.
    let waited = unsafe { libc::waitpid(child.id() as i32, &raw mut status, 0) };
    assert_eq!(waited, child.id() as i32);
    if libc::WIFSTOPPED(status) {
        return Some(());
    }
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "what loads ended with {status:#x}");
    None
}

/// Runs the command, which loads programs, and prints of each what the verifier has followed.
pub(crate) fn say_of(mut command: Command) {
    let traced = || {
        // SAFETY: between fork and exec, a system call without pointers.
        if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: `traced` makes one system call.
    unsafe { command.pre_exec(traced) };
    #[expect(clippy::zombie_processes, reason = "`stopped` waits for it")]
    let child = command.spawn().unwrap();
    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", child.id())).unwrap();
    let (mut room, mut loading) = (0, None);
    stopped(&child).unwrap();
    // Without it, a stop at a system call is not told from one by a signal.
    ptrace(libc::PTRACE_SETOPTIONS, &child, 0, ptr::without_provenance_mut(libc::PTRACE_O_TRACESYSGOOD as usize));
    loop {
        ptrace(libc::PTRACE_SYSCALL, &child, 0, ptr::null_mut());
        if stopped(&child).is_none() {
            return;
        }
        let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
        ptrace(libc::PTRACE_GET_SYSCALL_INFO, &child, size_of_val(&info), info.as_mut_ptr().cast());
        // SAFETY: all of it may be zeros.
        let info = unsafe { info.assume_init() };
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: at the entry of a call it is this one.
            let call = unsafe { info.u.entry };
            if call.nr == libc::SYS_write as u64 && call.args[0] as i32 == NOWHERE {
                room = call.args[1];
            } else if call.nr == libc::SYS_bpf as u64 && call.args[0] == BPF_PROG_LOAD {
                loading = Some(ask(&memory, call.args[1], room));
            }
        } else if let Some(name) = loading.take() {
            let mut said = [0; ROOM];
            memory.read_exact_at(&mut said, room).unwrap();
            let said = String::from_utf8_lossy(&said);
            // What aya tries before it loads has other names.
            if let (Some(said), false) =
                (said.split("processed ").nth(1), name.is_empty() || name.starts_with("aya_"))
            {
                say(&name, said);
            }
        }
    }
}

/// Has the verifier write what it has done into the room; returns the program's name.
fn ask(memory: &File, attributes: u64, room: u64) -> String {
    assert!(room != 0, "it loads before it has made room");
    let mut name = [0; 16];
    memory.read_exact_at(&mut name, attributes + PROG_NAME).unwrap();
    memory.write_all_at(&[0; ROOM], room).unwrap();
    let log: Vec<u8> = [BPF_LOG_STATS.to_ne_bytes(), (ROOM as u32).to_ne_bytes()].concat();
    memory.write_all_at(&[log, room.to_ne_bytes().to_vec()].concat(), attributes + LOG_LEVEL).unwrap();
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

/// "N insns (limit 1000000) max_states_per_insn A total_states B peak_states C mark_read D", as kernels from 5.2 on say it.
fn say(name: &str, said: &str) {
    let number = |after: &str| {
        let rest = if after.is_empty() { said } else { said.split(after).nth(1).unwrap().trim_start() };
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().to_owned()
    };
    println!("VERIFIED\t{name}\t{}\t{}\t{}", number(""), number("total_states"), number("peak_states"));
}
