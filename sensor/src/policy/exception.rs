//! Exceptions that would let through more than their author means.
use super::{
    Exception, Glob,
    diagnostic::{Fault, shortened},
    glob::Component,
    spec::Spec,
};

/// Programs that do what their arguments, their input or their name tell them, so that whoever may run them may do
/// anything in their name: interpreters, shells, multi-call binaries, loaders, archivers and editors.
const BROAD: &[&str] = &[
    "ash",
    "awk",
    "bash",
    "bun",
    "busybox",
    "cat",
    "coreutils",
    "cp",
    "csh",
    "dash",
    "dd",
    "deno",
    "ed",
    "emacs",
    "env",
    "ex",
    "find",
    "fish",
    "gawk",
    "git",
    "java",
    "ksh",
    "less",
    "lua",
    "make",
    "mawk",
    "more",
    "mv",
    "nano",
    "node",
    "nodejs",
    "perl",
    "php",
    "pico",
    "powershell",
    "pwsh",
    "python",
    "rsync",
    "ruby",
    "sed",
    "sh",
    "tar",
    "tclsh",
    "tcsh",
    "tee",
    "toybox",
    "vi",
    "view",
    "vim",
    "xargs",
    "zsh",
];

/// Programs that start what they are told, so that they say nothing as an ancestor.
const STARTERS: &[&str] = &[
    "containerd-shim-runc-v",
    "cron",
    "doas",
    "init",
    "login",
    "nice",
    "nohup",
    "nsenter",
    "parallel",
    "runuser",
    "screen",
    "setsid",
    "sshd",
    "sshd-session",
    "stdbuf",
    "strace",
    "su",
    "sudo",
    "systemd",
    "timeout",
    "tini",
    "tmux",
    "unshare",
    "watch",
];

/// Where programs of those names are found.
const DIRECTORIES: &[&str] = &["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// What is wrong with the exceptions of `spec`, whose `paths` are given parsed.
pub(super) fn faults(spec: &Spec, paths: &[Glob]) -> Vec<Fault> {
    let each = spec.exceptions.iter().enumerate();
    each.flat_map(|(at, exception)| one(&format!("spec.exceptions[{at}]"), exception, paths)).collect()
}

fn one(field: &str, exception: &Exception, paths: &[Glob]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (name, texts) in [
        ("executables", &exception.executables),
        ("scripts", &exception.scripts),
        ("ancestors", &exception.ancestors),
    ] {
        for (at, text) in
            texts.iter().enumerate().filter(|(_, text)| text.starts_with("**") || text.starts_with("/**"))
        {
            let message = format!("'{}' names a program in any directory", shortened(text));
            faults.push(Fault::error(format!("{field}.{name}[{at}]"), message, "write its full path"));
        }
    }
    for (at, sum) in exception.sha256.iter().enumerate() {
        if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("'{}' is no SHA-256 sum", shortened(sum));
            faults.push(Fault::error(format!("{field}.sha256[{at}]"), message, "write its 64 hexadecimal digits"));
        }
    }
    if !exception.sha256.is_empty() && exception.executables.is_empty() {
        let help = "add executables: only their sums are taken";
        faults.push(Fault::error(format!("{field}.sha256"), "a sum without a path", help));
    }
    faults.extend(too_wide(field, exception, paths));
    faults
}

/// An exception that swallows everything, or that whoever may run a shell can satisfy.
fn too_wide(field: &str, exception: &Exception, paths: &[Glob]) -> Option<Fault> {
    let Exception { executables, scripts, ancestors, users, images, paths: files, sha256, acknowledge_broad } =
        exception;
    let identified = !(scripts.is_empty() && images.is_empty() && sha256.is_empty());
    let programs = [("executables", executables), ("ancestors", ancestors)];
    if identified || *acknowledge_broad {
        return None;
    }
    if !users.is_empty() && programs.iter().all(|(_, programs)| programs.is_empty()) {
        let message = "an exception by user alone lets every program of that user through";
        return Some(Fault::error(
            format!("{field}.users"),
            message,
            "name the executables too, or add acknowledgeBroad: true",
        ));
    }
    let covered =
        |path: &Glob| files.iter().filter_map(|text| Glob::parse(text).ok()).any(|file| file.covers(path));
    let unnamed = programs.iter().all(|(_, programs)| programs.is_empty());
    if unnamed && (files.is_empty() || paths.iter().all(covered)) {
        let what = if files.is_empty() { "an exception without criteria" } else { "this exception" };
        let help = "name the executables that may; to watch less, use exclude";
        return Some(Fault::error(field, format!("{what} swallows everything that the policy watches"), help));
    }
    // A second criterion: of the opener, or of the files if they are not all.
    let narrowed = !files.is_empty() && !paths.iter().all(covered);
    if narrowed || !users.is_empty() || !executables.is_empty() && !ancestors.is_empty() {
        return None;
    }
    let each =
        programs.iter().flat_map(|(name, texts)| texts.iter().enumerate().map(move |(at, text)| (name, at, text)));
    let starter = |text: &str| names_one_of(text, STARTERS);
    let (name, at, text) =
        each.into_iter().find(|(name, _, text)| is_broad(text) || **name == "ancestors" && starter(text))?;
    let message =
        format!("'{}' does what it is told, so this exception lets through whoever can run it", shortened(text));
    let help = "add a second criterion such as paths, users, scripts or images, or acknowledgeBroad: true";
    Some(Fault::error(format!("{field}.{name}[{at}]"), message, help))
}

/// Whether `pattern` names a program that does what it is told, such as a shell, in any version.
#[must_use]
pub fn is_broad(pattern: &str) -> bool {
    names_one_of(pattern, BROAD)
}

fn names_one_of(pattern: &str, words: &[&str]) -> bool {
    // A pattern that cannot be parsed is another fault.
    let Ok(glob) = Glob::parse(pattern) else { return false };
    let found = |word: &&str| {
        let paths = DIRECTORIES.iter().map(|directory| Glob::parse(&format!("{directory}/{word}")));
        paths.flatten().any(|path| glob.covers(&path))
    };
    let named = glob.alternatives().iter().any(|components| match components.last() {
        Some(Component::Literal(name)) => is_called(&String::from_utf8_lossy(name), words),
        _ => false,
    });
    named || words.iter().any(found)
}

/// Whether a program called `name` is one of `words`: also `python3.11`, `vim.basic` and `ld-linux-x86-64.so.2`.
fn is_called(name: &str, words: &[&str]) -> bool {
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    let stem = name.split('.').next().unwrap_or(name);
    let loader = name.starts_with("ld") && name.contains(".so");
    loader || [name, bare, stem].iter().any(|name| words.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_anything_is_broad_whatever_its_version() {
        for broad in [
            "/bin/sh",
            "/usr/bin/python3.11",
            "/usr/bin/perl5.36.0",
            "/usr/bin/vim.basic",
            "/usr/bin/p*",
            "/usr/bin/*",
            "/usr/**",
            "/lib64/ld-linux-x86-64.so.2",
            "/opt/x/busybox",
            "/usr/bin/lua5.4",
            "/usr/lib/jvm/java-17/bin/java",
            "/usr/{sbin/sshd,bin/bash}",
        ] {
            assert!(is_broad(broad), "{broad}");
        }
        for plain in ["/usr/sbin/sshd", "/usr/bin/dpkg", "/usr/bin/shadowconfig", "/usr/bin/envsubst", "/opt/x/y*"]
        {
            assert!(!is_broad(plain), "{plain}");
        }
        assert!(names_one_of("/usr/bin/sudo", STARTERS) && !is_broad("/usr/bin/sudo"));
    }
}
