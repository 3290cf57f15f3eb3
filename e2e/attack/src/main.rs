//! `attack DIRECTORY [CASE…]`: does it, and prints a line a case: its name, its process, the file, and why it was not done.
#![expect(clippy::print_stdout, reason = "its output")]
use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(base) = arguments.next() else {
        println!("usage: attack DIRECTORY [CASE...]; cases:");
        attack::CASES.iter().for_each(|case| println!("  {:<24} {}", case.name, case.about));
        return ExitCode::from(64);
    };
    let base = PathBuf::from(base);
    let only: Vec<String> = arguments.collect();
    for tried in attack::run(&base, &only) {
        println!("{}\t{}\t{}", tried.name, tried.pid, tried.failed.unwrap_or_default());
    }
    ExitCode::SUCCESS
}
