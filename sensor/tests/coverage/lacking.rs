//! What doctor says where something is missing: a capability, the kernel's type information, or what lockdown forbids.
use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use rustix::thread::{CapabilitySet, set_no_new_privs};

/// A case: what to take away, what the page must have, and the exit status.
struct Lack {
    name: &'static str,
    take: fn(&mut Command),
    says: &'static [&'static str],
    code: i32,
    /// It looks at all ways to a file, which takes a guest long.
    whole: bool,
}

const LACKS: [Lack; 4] = [
    Lack {
        name: "without CAP_BPF and CAP_PERFMON",
        take: |command| without(command, &[CapabilitySet::BPF, CapabilitySet::PERFMON, CapabilitySet::SYS_ADMIN]),
        says: &[
            "CAP_BPF  no  not held",
            "→ to load programs: run as root; in the chart it comes with securityProfile",
            "nothing is seen  not permitted to load eBPF programs",
        ],
        code: 77,
        whole: false,
    },
    Lack {
        name: "without CAP_SYS_PTRACE",
        take: |command| without(command, &[CapabilitySet::SYS_PTRACE]),
        says: &["CAP_SYS_PTRACE  lacking  not held", "→ without it programs of other users stay unnamed"],
        code: 0,
        whole: true,
    },
    Lack {
        name: "without type information",
        take: without_types,
        says: &[
            "type information  no  /sys/kernel/btf/vmlinux: No such file or directory",
            "→ use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            "nothing is seen  this kernel has no type information",
        ],
        code: 1,
        whole: false,
    },
    // Of what is lost nothing is known; that is no wrong answer, and not well.
    Lack {
        name: "with a ring of one page",
        take: |command| {
            command.env("PATHWATCH__CAPTURE__RING", "4KiB");
        },
        says: &[
            "opens and processes",
            "→ this machine has opened more than could be read: try again when it has less to do, or raise capture.ring",
            "a path of 8,000 bytes: no event, while some",
            "not seen, 0 wrong, ",
        ],
        code: 1,
        whole: true,
    },
];

/// Takes capabilities from the child, for good.
fn without(command: &mut Command, taken: &'static [CapabilitySet]) {
    let take = move || {
        let mut sets = rustix::thread::capabilities(None)?;
        for capability in taken {
            // From the bounding set, since exec gives root all that is in it (capabilities(7)).
            rustix::thread::remove_capability_from_bounding_set(*capability)?;
            sets.effective.remove(*capability);
            sets.permitted.remove(*capability);
            sets.inheritable.remove(*capability);
        }
        rustix::thread::set_capabilities(None, sets)?;
        set_no_new_privs(true)?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(take) };
}

/// Covers the type information, for the child only.
fn without_types(command: &mut Command) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let cover = || {
        // SAFETY: nothing of this process relies on which mount namespace it is in.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("none", "/sys/kernel/btf", "tmpfs", MountFlags::empty(), None)?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(cover) };
}

fn examined(take: fn(&mut Command)) -> Output {
    let mut command = Command::new("/proc/self/exe");
    command.args(["doctor", "--save", "/dev/null"]).env("PATHWATCH__SHIP__STATE_DIR", std::env::temp_dir());
    take(&mut command);
    command.output().unwrap()
}

/// Holds a page to what it must say, and prints it.
fn hold(name: &str, output: &Output, says: &[&str], code: i32) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let page = String::from_utf8_lossy(&output.stdout);
    for line in page.lines() {
        println!("DOCTOR\t{}\t{name}\t{line}", kernel.trim());
    }
    // However wide the columns are.
    let plain: Vec<String> = page
        .lines()
        .map(|line| {
            line.split("  ").filter(|word| !word.trim().is_empty()).map(str::trim).collect::<Vec<_>>().join("  ")
        })
        .collect();
    for text in says {
        assert!(plain.iter().any(|line| line.contains(text)), "{name}: '{text}' is not in\n{}", plain.join("\n"));
    }
    assert_eq!(output.status.code(), Some(code), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn find_what_lacks() {
    let has_time = std::env::var_os("PATHWATCH_REQUIRE_FEXIT").is_none();
    let lacks = LACKS.iter().filter(|lack| has_time || !lack.whole);
    let mut passed = 0;
    for lack in lacks {
        hold(lack.name, &examined(lack.take), lack.says, lack.code);
        passed += 1;
    }
    println!("test result: ok. {passed} passed; 0 failed (what doctor says where something is missing)");
}

/// In a guest that was booted with lockdown=confidentiality.
pub(crate) fn locked_down() {
    let says = [
        "lockdown  no  confidentiality",
        "→ boot without lockdown=confidentiality, which forbids to read kernel memory; lockdown=integrity allows it",
        "nothing is seen  the kernel refuses to load",
    ];
    hold("with lockdown", &examined(|_| {}), &says, 77);
    println!("test result: ok. 1 passed; 0 failed (doctor under lockdown)");
}
