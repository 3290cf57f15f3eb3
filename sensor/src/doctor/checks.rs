//! What the sensor needs of its surroundings, and what to do about each thing that it does not find.
use std::fs;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::elsewhere::{self, Version};
use crate::{config::Config, hierarchy::Hierarchy};

/// One thing that the sensor needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if there is nothing to be done.
    pub remedy: String,
    /// Somebody would have to permit it.
    pub is_permission: bool,
}

/// What is thought of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Without it less is seen, or less is known of what is.
    Lacks,
    /// Without it nothing is seen.
    Fails,
    /// It cannot be told from here.
    Unknown,
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const DAC_READ_SEARCH: u32 = 2;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// How to give a capability.
const GIVE: &str = "run as root; in the chart it comes with securityProfile";

fn check(name: &str, verdict: Verdict, found: impl Into<String>, remedy: &str) -> Check {
    let remedy = if verdict == Verdict::Ok { String::new() } else { remedy.to_owned() };
    Check { name: name.to_owned(), verdict, found: found.into(), remedy, is_permission: false }
}

fn permission(name: &str, verdict: Verdict, found: impl Into<String>, remedy: &str) -> Check {
    Check { is_permission: true, ..check(name, verdict, found, remedy) }
}

/// All of them, those first without which nothing is seen.
pub(super) fn all(config: &Config) -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = Own::parse(&status);
    let mut checks = vec![kernel(), types()];
    checks.extend(capabilities(&own));
    checks.extend([lockdown(), memlock(&own), seccomp(&own), modules()]);
    checks.extend([processes(config, &own), cgroups(config), statistics()]);
    checks
}

/// What /proc/self/status says of this process.
struct Own {
    capabilities: u64,
    filtered: bool,
}

impl Own {
    fn parse(status: &str) -> Self {
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let capabilities = field("CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        Self { capabilities, filtered: field("Seccomp") == Some("2") }
    }

    /// Who may administer the system may also do what was once part of it (capabilities(7)).
    fn has(&self, capability: u32) -> bool {
        let also = if matches!(capability, BPF | PERFMON) { 1 << SYS_ADMIN } else { 0 };
        self.capabilities & (1 << capability | also) != 0
    }
}

/// Major and minor number of the running kernel.
fn version() -> Option<Version> {
    elsewhere::version(&rustix::system::uname().release().to_string_lossy())
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let verdict = match version() {
        Some(version) if version < (5, 10) => Verdict::Fails,
        Some(_) => Verdict::Ok,
        None => Verdict::Unknown,
    };
    check("kernel", verdict, release, "use a kernel of 5.10 or later")
}

fn types() -> Check {
    const FILE: &str = "/sys/kernel/btf/vmlinux";
    let remedy = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as all current distributions' are; in a container, /sys must be mounted";
    match fs::metadata(FILE) {
        Ok(found) => check("type information", Verdict::Ok, format!("{FILE}, {} KiB", found.len() >> 10), ""),
        Err(why) => check("type information", Verdict::Fails, format!("{FILE}: {why}"), remedy),
    }
}

fn capabilities(own: &Own) -> Vec<Check> {
    let old = version().is_some_and(|version| version < (5, 11));
    let needed = [
        (BPF, "CAP_BPF", Verdict::Fails, "to load programs"),
        (PERFMON, "CAP_PERFMON", Verdict::Fails, "to trace"),
        (SYS_PTRACE, "CAP_SYS_PTRACE", Verdict::Lacks, "without it programs of other users stay unnamed"),
        (
            DAC_READ_SEARCH,
            "CAP_DAC_READ_SEARCH",
            Verdict::Lacks,
            "without it files of other users are not looked at",
        ),
    ];
    let one = |(number, name, lack, why): (u32, &str, Verdict, &str)| {
        let verdict = if own.has(number) { Verdict::Ok } else { lack };
        permission(name, verdict, if own.has(number) { "held" } else { "not held" }, &format!("{why}: {GIVE}"))
    };
    let mut checks: Vec<Check> = needed.into_iter().map(one).collect();
    if old {
        checks.push(one((
            SYS_RESOURCE,
            "CAP_SYS_RESOURCE",
            Verdict::Lacks,
            "before 5.11 it raises the limit on locked memory",
        )));
    }
    checks
}

/// kernel_lockdown(7).
fn lockdown() -> Check {
    const FILE: &str = "/sys/kernel/security/lockdown";
    let remedy =
        "boot without lockdown=confidentiality, which forbids to read kernel memory; lockdown=integrity allows it";
    let chosen = fs::read_to_string(FILE).ok().and_then(|line| {
        let (_, rest) = line.split_once('[')?;
        rest.split_once(']').map(|(word, _)| word.to_owned())
    });
    // In a container there is no securityfs.
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let asked = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("lockdown=")).map(str::to_owned);
    match chosen.or(asked) {
        Some(mode) if mode == "confidentiality" => permission("lockdown", Verdict::Fails, mode, remedy),
        Some(mode) => permission("lockdown", Verdict::Ok, mode, ""),
        // Secure boot and the kernel's own configuration may ask for it, too.
        None => permission("lockdown", Verdict::Unknown, format!("{FILE} cannot be read"), "look on the node"),
    }
}

/// Before 5.11 maps count against this limit; later kernels have the memory cgroup for it.
fn memlock(own: &Own) -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    let told = limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    let old = version().is_some_and(|version| version < (5, 11));
    let enough = !old || own.has(SYS_RESOURCE) || limit.is_none_or(|bytes| bytes >= 64 << 20);
    let verdict = if enough { Verdict::Ok } else { Verdict::Fails };
    let told = if old { told } else { format!("{told}; of no matter from 5.11 on") };
    permission(
        "locked memory",
        verdict,
        told,
        "raise the limit (ulimit -l unlimited), or give CAP_SYS_RESOURCE: securityProfile: compat",
    )
}

fn seccomp(own: &Own) -> Check {
    let (verdict, found) =
        if own.filtered { (Verdict::Unknown, "system calls are filtered") } else { (Verdict::Ok, "no filter") };
    permission(
        "seccomp",
        verdict,
        found,
        "if loading is refused: the runtime's profile must allow bpf(2) to those who hold CAP_BPF, or name another in seccompProfile",
    )
}

/// Security modules. Nothing that the sensor does needs one of its own.
fn modules() -> Check {
    let Ok(list) = fs::read_to_string("/sys/kernel/security/lsm") else {
        return check(
            "security modules",
            Verdict::Unknown,
            "/sys/kernel/security/lsm cannot be read",
            "nothing is to be done: the sensor needs none of them",
        );
    };
    let bpf = if list.split(',').any(|name| name.trim() == "bpf") { "with" } else { "without" };
    check("security modules", Verdict::Ok, format!("{}; {bpf} BPF LSM, which is not needed", list.trim()), "")
}

/// Said of a process that no security module confines.
const UNCONFINED: &str = "no security profile";

/// Whether other processes may be looked at: AppArmor and Yama have a say beside the capability.
fn processes(config: &Config, own: &Own) -> Check {
    let first = config.enrich.proc.join("1");
    let profile = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"].into_iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        Some(text.trim_end_matches(['\n', '\0']).to_owned()).filter(|text| !text.is_empty())
    });
    let profile = profile.filter(|name| name != "unconfined");
    let profile = profile.map_or(UNCONFINED.to_owned(), |name| format!("profile {name}"));
    let place = first.display();
    if fs::symlink_metadata(&first).is_err() {
        let remedy = "mount the node's /proc and name it in enrich.proc";
        return check("processes", Verdict::Fails, format!("{place} is not there"), remedy);
    }
    match fs::read_link(first.join("exe")) {
        Ok(_) => permission("processes", Verdict::Ok, format!("{place} can be looked at; {profile}"), ""),
        Err(why) => {
            let remedy = if own.has(SYS_PTRACE) && profile == UNCONFINED {
                "something else than this process's rights denies it, such as a sandbox around this machine: that program stays unnamed"
            } else if own.has(SYS_PTRACE) {
                "AppArmor or another security module denies ptrace: appArmorProfile: Unconfined in the chart, apparmor=unconfined for a container"
            } else {
                "give CAP_SYS_PTRACE: programs of other users stay unnamed without it"
            };
            permission("processes", Verdict::Lacks, format!("{place}/exe: {why}; {profile}"), remedy)
        }
    }
}

fn cgroups(config: &Config) -> Check {
    let place = config.enrich.cgroups.display().to_string();
    let remedy = "mount the node's cgroups and name them in enrich.cgroups: without them no pod is known";
    match Hierarchy::find(&config.enrich.cgroups) {
        Ok(found) if fs::read_dir(&found.root).is_ok_and(|mut all| all.next().is_some()) => {
            let kind = found.controller.map_or("v2".to_owned(), |controller| format!("v1, {controller}"));
            check("cgroups", Verdict::Ok, format!("{} ({kind})", found.root.display()), "")
        }
        Ok(_) => check("cgroups", Verdict::Lacks, format!("{place} is empty"), remedy),
        Err(why) => check("cgroups", Verdict::Lacks, format!("{place}: {why}"), remedy),
    }
}

/// The kernel's own measure of what programs cost.
fn statistics() -> Check {
    let on = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() != "0");
    let told = if on {
        "on: pathwatch_capture_program_seconds_total counts"
    } else {
        "off: programs' time is not measured (kernel.bpf_stats_enabled=1 turns it on, for some 100 ns a run)"
    };
    check("BPF statistics", Verdict::Ok, told, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_administer_may_also_trace() {
        let own =
            |hex: &str, seccomp: &str| Own::parse(&format!("Name:\tx\nCapEff:\t{hex}\nSeccomp:\t{seccomp}\n"));
        let all = own("000001ffffffffff", "0");
        assert!(
            [DAC_READ_SEARCH, SYS_PTRACE, PERFMON, BPF].into_iter().all(|number| all.has(number)) && !all.filtered
        );
        let administrator = own("0000000000200000", "2");
        assert!(administrator.has(BPF) && administrator.has(PERFMON) && administrator.filtered);
        assert!(!administrator.has(SYS_PTRACE));
        let none = own("0000000000000000", "2");
        assert!(
            !none.has(BPF)
                && capabilities(&none)
                    .iter()
                    .all(|check| check.verdict != Verdict::Ok && !check.remedy.is_empty())
        );
    }
}
