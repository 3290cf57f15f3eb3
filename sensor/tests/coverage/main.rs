//! Every way to reach a file that e2e/attack knows of, on the kernel that runs this, held to what the attack itself knows
//! of what it did. With `table` it makes docs/coverage.md of what several kernels have said.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what it says is its result")]
mod conserve;
mod table;

use std::path::Path;

use sensor::{
    Observed,
    capture::{Error, Mode},
    config::Config,
    doctor::{self, Answer, Cell},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(doctor::ATTACK) => {
            on_cpu(1);
            doctor::act(Path::new(&arguments[1]), Path::new(&arguments[2]), &arguments[3..]).unwrap();
        }
        Some("storm") => conserve::storm(&arguments[1..]),
        Some("conserve") => conserve::conserve(),
        Some("table") => table::write(&arguments[1..]),
        _ => in_best_mode(&arguments),
    }
}

/// Keeps this process on a CPU. Where the kernel may interrupt a program (7.x), it skips another run of the same on that
/// CPU, and counts it: what the sensor itself opens must not run into the attack.
fn on_cpu(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// Prints a line a case, and fails if one is wrong. `only` some cases.
fn in_best_mode(only: &[String]) {
    let only: Vec<String> = only.iter().filter(|name| !name.starts_with('-')).cloned().collect();
    on_cpu(0);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut ran, mut bad) = (0, 0);
    let attacked = |mode| {
        let mut config = Config::default();
        // Deep directories are made faster than a guest reads of them.
        (config.capture.mode, config.capture.ring) = (mode, bytesize::ByteSize::mib(64));
        config.ship.state_dir = std::env::temp_dir();
        runtime.block_on(doctor::attacked(&config, &only))
    };
    let refused = |why: &anyhow::Error| why.downcast_ref().is_some_and(Error::is_not_permitted);
    let seen = match attacked(Mode::Fexit) {
        // This machine's kernel refuses fexit even to root; a guest's never does.
        Err(why) if refused(&why) && std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none() => {
            println!("coverage: fexit is not to be had on {}: {}", kernel.trim(), first_line(&why));
            attacked(Mode::Tracepoint)
        }
        seen => seen,
    };
    let Observed { sight, metrics, done, .. } = seen.unwrap_or_else(|why| {
        // Of what the verifier says, few lines tell why.
        let told = format!("{why:?}");
        let is_reason =
            |line: &&str| ["processed ", "too ", "invalid", "not allowed"].iter().any(|word| line.contains(word));
        let reasons: Vec<&str> = told.lines().filter(is_reason).take(12).collect();
        panic!("{why}\n{}", reasons.join("\n"))
    });
    assert_eq!(metrics.opens_lost.get() + metrics.undecodable.get(), 0, "events were lost");
    println!("coverage: {} runs of programs were skipped on the sensor's CPU", metrics.skipped.get());
    let seen_as = sight.mode;
    for Answer { case, cell, detail } in done {
        println!("COVERAGE\t{}\t{seen_as}\t{}\t{cell}\t{detail}", kernel.trim(), case.name);
        ran += 1;
        bad += usize::from(cell == Cell::Wrong);
    }
    assert!(ran > 0);
    println!("test result: {}. {} passed; {bad} failed", if bad == 0 { "ok" } else { "FAILED" }, ran - bad);
    assert_eq!(bad, 0, "wrong answers");
}

fn first_line(why: &anyhow::Error) -> String {
    why.to_string().lines().next().unwrap_or_default().to_owned()
}
