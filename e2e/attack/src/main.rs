//! `attack DIRECTORY [CASE…]`: does it, and prints a line a case: its name, its process, why it was not done, what is done
//! to the watched file, and by which of its names that is told.
#![expect(clippy::print_stdout, reason = "its output")]
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(base) = arguments.next() else {
        println!("usage: attack DIRECTORY [CASE...]; cases:");
        attack::CASES.iter().for_each(|case| println!("  {:<24} {}", case.name, case.about));
        return ExitCode::from(64);
    };
    let base = PathBuf::from(base);
    let only: Vec<String> = arguments.collect();
    for tried in attack::run(&base, &only, Path::new("/proc")) {
        let case = attack::CASES.iter().find(|case| case.name == tried.name);
        let (operation, view) = case.map_or(("", ""), |case| (case.operation, case.named_by));
        let failed = tried.failed.unwrap_or_default().replace(['\n', '\t'], " ");
        println!("{}\t{}\t{failed}\t{operation}\t{view}", tried.name, tried.pid);
    }
    ExitCode::SUCCESS
}
