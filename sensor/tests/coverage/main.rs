//! Every way to reach a file that e2e/attack knows of, on the kernel that runs this, held to what the attack itself knows
//! of what it did. With `table` it makes docs/coverage.md of what several kernels have said.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what it says is its result")]
mod conserve;
mod judge;
mod table;

use std::{path::Path, process::Command, sync::Arc};

use attack::{BEGIN, CASES, END, Tried};
use judge::{Answer, Cell};
use sensor::{
    capture::{Capture, Config, Error, Mode},
    enrich::{self, Enrich, Inputs, Outputs},
    event::{CaptureMode, Enriched},
    hierarchy::Hierarchy,
    metrics::Metrics,
    notice::Notices,
    policy::{Directory, PolicySet},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("attack") => {
            on_cpu(1);
            for Tried { name, pid, failed } in attack::run(Path::new(&arguments[1]), &arguments[2..]) {
                println!("{name}\t{pid}\t{}", failed.unwrap_or_default().replace(['\n', '\t'], " "));
            }
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
    judge::find_planted_faults();
    on_cpu(0);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (mut ran, mut bad) = (0, 0);
    let refused = |why: &Error| why.to_string().ends_with("(os error 1)");
    let (seen_as, answers) = match attacked(Mode::Fexit, &only) {
        // This machine's kernel refuses fexit even to root; a guest's never does.
        Err(why) if refused(&why) && std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none() => {
            println!("coverage: fexit is not to be had on {}: {}", kernel.trim(), first_line(&why));
            attacked(Mode::Tracepoint, &only)
        }
        answers => answers,
    }
    .unwrap_or_else(|why| {
        // Of what the verifier says, few lines tell why.
        let told = format!("{why:?}");
        let is_reason =
            |line: &&str| ["processed ", "too ", "invalid", "not allowed"].iter().any(|word| line.contains(word));
        let reasons: Vec<&str> = told.lines().filter(is_reason).take(12).collect();
        panic!("{why}\n{}", reasons.join("\n"))
    });
    for Answer { case, cell, detail } in answers {
        println!("COVERAGE\t{}\t{seen_as}\t{case}\t{cell}\t{detail}", kernel.trim());
        ran += 1;
        bad += usize::from(cell == Cell::Wrong);
    }
    assert!(ran > 0);
    println!("test result: {}. {} passed; {bad} failed", if bad == 0 { "ok" } else { "FAILED" }, ran - bad);
    assert_eq!(bad, 0, "wrong answers");
}

fn first_line(why: &Error) -> String {
    why.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Does all cases under the eyes of capture and enrich, and says what was seen of each.
fn attacked(mode: Mode, only: &[String]) -> Result<(CaptureMode, Vec<Answer>), Error> {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().canonicalize().unwrap();
    let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
    let (metrics, notices): (Arc<Metrics>, _) = (Arc::default(), Notices::default());
    // Deep directories are made faster than a guest reads of them.
    let config = Config { mode, ring: bytesize::ByteSize::mib(64), ..Config::default() };
    let (mut capture, observations) = Capture::new(&config, &hierarchy, metrics.clone(), notices.clone())?;
    let seen_as = capture.mode();
    let (_sets, policies) = watch::channel(Arc::new(policies(&base)));
    let config = enrich::Config::default();
    let mut tasks = tokio::task::JoinSet::new();
    let pods =
        enrich::watch_pods(&config, "node".to_owned(), policies.clone(), notices.clone(), &mut tasks).unwrap();
    let inputs = Inputs { observations, pods };
    let (stage, Outputs { mut enriched, known, targets }) =
        Enrich::new(&config, hierarchy, inputs, policies.clone(), metrics.clone(), notices.clone());
    let stop = CancellationToken::new();
    // The kernel lets through what the policy may want, and no more.
    let filter = capture.take_filter().unwrap();
    let (in_force, _) = watch::channel(Arc::default());
    let told = (metrics.clone(), notices);
    tokio::spawn(sensor::filter::follow(filter, policies, (known, targets), in_force.clone(), told, stop.clone()));
    tokio::spawn(capture.run(stop.clone()));
    let handle = tokio::runtime::Handle::current();
    std::thread::spawn(move || handle.block_on(stage.run()));
    let collect = std::thread::spawn(move || {
        let mut events = Vec::new();
        while let Some(event) = enriched.blocking_recv() {
            events.push(event);
        }
        events
    });
    let handle = tokio::runtime::Handle::current();
    handle.block_on(in_force.subscribe().wait_for(|set| !set.policies.is_empty())).unwrap();
    let output =
        Command::new(std::env::current_exe().unwrap()).arg("attack").arg(&base).args(only).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stop.cancel();
    let events: Vec<Enriched> = collect.join().unwrap();
    assert_eq!(metrics.opens_lost.get() + metrics.undecodable.get(), 0, "events were lost");
    println!("coverage: {} runs of programs were skipped on the sensor's CPU", metrics.skipped.get());
    let told = String::from_utf8(output.stdout).unwrap();
    Ok((seen_as, told.lines().map(|line| answer(line, &base, seen_as, &events)).collect()))
}

/// A policy that names the watched file of each case.
fn policies(base: &Path) -> PolicySet {
    let secrets = CASES.iter().filter_map(|case| case.secret(base).to_str().map(str::to_owned));
    let marks = CASES.iter().flat_map(|case| [BEGIN, END].map(|mark| format!("/{mark}{}", case.name)));
    // No pattern names what has no name yet, or one that is no text.
    let unnamed =
        ["o-tmpfile", "name-not-utf8", "name-escape"].map(|case| format!("{}/{case}/**", base.display()));
    let paths: Vec<String> = secrets.chain(marks).chain(unnamed).collect();
    let spec = serde_json::json!({
        "apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy", "metadata": {"name": "watched"},
        "spec": {"subjects": "all", "operations": ["read", "write", "create", "truncate", "rename", "link", "delete", "exec", "list", "reference"],
        "results": ["success", "denied", "missing", "error"],
        "paths": paths.iter().filter(|path| !path.contains(['\n', '\u{1b}'])).collect::<Vec<_>>()},
    });
    let loaded = Directory::read_text(spec.to_string().as_bytes(), sensor::matcher::run_examples);
    assert_eq!(loaded.set.policies.len(), 1, "{:#?}", loaded.diagnostics);
    PolicySet::new(loaded.set.policies.clone())
}

/// What was seen of the case that a line of the attack's is about.
fn answer(line: &str, base: &Path, mode: CaptureMode, events: &[Enriched]) -> Answer {
    let mut words = line.split('\t');
    let (name, pid, failed) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    if !failed.is_empty() {
        return Answer { case: case.name, cell: Cell::NotTried, detail: failed.to_owned() };
    }
    judge::judge(case, base, pid.parse().unwrap(), mode, events)
}
