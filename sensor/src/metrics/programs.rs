//! What the kernel's programs cost, as the kernel measures it where `kernel.bpf_stats_enabled` is set.
use std::sync::OnceLock;

use super::Gauge;

/// A program of the kernel side.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Nanoseconds that it ran, all CPUs together (`run_time_ns` of proc_pid_fdinfo(5)).
    pub nanoseconds: Gauge,
    /// How often.
    pub runs: Gauge,
}

/// All programs, once they are attached.
#[derive(Debug, Default)]
pub struct Programs(OnceLock<Vec<Program>>);

impl Programs {
    /// Says which there are; the first to say it is heard.
    pub fn know(&self, names: impl Iterator<Item = String>) {
        let program = |name| Program { name, nanoseconds: Gauge::default(), runs: Gauge::default() };
        self.0.get_or_init(|| names.map(program).collect());
    }

    /// Each of them.
    pub fn each(&self) -> impl Iterator<Item = &Program> {
        self.0.get().into_iter().flatten()
    }
}
