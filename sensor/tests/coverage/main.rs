//! `pathwatch doctor` on the kernel that runs this: every way to reach a file that e2e/attack knows of, held to what the attack
//! itself knows of what it did; and what it says where something is missing. With `table` it makes docs/coverage.md and
//! docs/doctor.md of what several kernels have said.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what it says is its result")]
mod conserve;
mod lacking;
#[path = "../common/moved.rs"]
mod moved;
mod table;

use std::process::{Command, ExitCode};

use sensor::{
    doctor::{self, Cell, Report},
    event::CaptureMode,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        // This program is the sensor's, too: a guest has no other.
        Some(doctor::ATTACK) => {
            on_cpu(1);
            return sensor::cli::main();
        }
        Some("doctor") => return sensor::cli::main(),
        Some("storm") => conserve::storm(&arguments[1..]),
        Some("conserve") => conserve::conserve(),
        Some("locked-down") => lacking::locked_down(),
        Some("table") => table::write(&arguments[1..]),
        _ => {
            lacking::find_what_lacks();
            in_best_mode();
        }
    }
    ExitCode::SUCCESS
}

/// Keeps this process on a CPU. Where the kernel may interrupt a program (7.x), it skips another run of the same on that
/// CPU, and counts it: what the sensor itself opens must not run into the attack.
fn on_cpu(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// Prints a line a case, and fails if one is wrong.
fn in_best_mode() {
    on_cpu(0);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let saved = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("/proc/self/exe");
    // Deep directories are made faster than a guest reads of them.
    command.arg("doctor").arg("--save").arg(saved.path()).env("PATHWATCH__CAPTURE__RING", "64MiB");
    let output = command.env("PATHWATCH__SHIP__STATE_DIR", std::env::temp_dir()).output().unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    let report: Report = serde_json::from_slice(&std::fs::read(saved.path()).unwrap()).unwrap();
    for line in page.lines() {
        println!("DOCTOR\t{}\tas it is\t{line}", kernel.trim());
    }
    let sight = report.sight.as_ref().unwrap_or_else(|| panic!("{:?}", report.failure));
    // This machine's kernel refuses fexit even to root; a guest's never does.
    let required = std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_some();
    assert!(sight.mode == CaptureMode::Fexit || !required, "{:?}", sight.instead);
    println!("lost: {}, runs that the kernel skipped: {}", report.lost, report.skipped);
    // On a machine that others use, theirs may be lost; of the attack's nothing may be.
    assert!(report.lost == 0 || !required, "events were lost");
    // Where the kernel may interrupt a program (7.x), it skips runs of it, the sensor's own among them; what is wrong for that is
    // tried again, and must not stay so.
    let may_interrupt = kernel.split('.').next().unwrap().parse::<u32>().unwrap() >= 7;
    assert!(report.skipped == 0 || may_interrupt, "{} runs were skipped", report.skipped);
    let (mut ran, mut bad) = (0, 0);
    for case in &report.cases {
        let told = if case.why.is_empty() { case.names.join(" ") } else { case.why.clone() };
        let marks = case.marks.join(" ");
        println!("COVERAGE\t{}\t{}\t{}\t{}\t{told}\t{marks}", kernel.trim(), sight.mode, case.name, case.answer);
        ran += 1;
        bad += usize::from(matches!(case.answer, Cell::Wrong | Cell::Lost));
    }
    assert_eq!(ran, attack::CASES.len());
    println!("test result: {}. {} passed; {bad} failed", if bad == 0 { "ok" } else { "FAILED" }, ran - bad);
    assert_eq!(bad, 0, "wrong answers");
    assert!(output.status.success(), "{}", output.status);
}
