//! Exceptions that would let through more than their author means.
use std::sync::LazyLock;

use super::{
    Exception, Glob,
    check::{COMPARISONS_LIMIT, comparisons},
    diagnostic::{Fault, shortened},
    glob::Component,
    spec::Spec,
};

/// Programs that do what their arguments, their input or their name tell them, so that whoever may run them may do
/// anything in their name: interpreters, shells, multi-call binaries, loaders, debuggers, archivers, editors, and what
/// copies or prints any file.
const BROAD: &[&str] = &[
    "R",
    "ash",
    "awk",
    "base32",
    "base64",
    "bash",
    "bsdtar",
    "bun",
    "busybox",
    "cat",
    "chroot",
    "chrt",
    "coreutils",
    "cp",
    "cpio",
    "csh",
    "cut",
    "dash",
    "dd",
    "deno",
    "ed",
    "elvish",
    "emacs",
    "env",
    "ex",
    "expect",
    "find",
    "fish",
    "flock",
    "gawk",
    "gdb",
    "git",
    "grep",
    "guile",
    "head",
    "hx",
    "install",
    "ionice",
    "java",
    "joe",
    "julia",
    "kak",
    "ksh",
    "less",
    "ltrace",
    "lua",
    "luajit",
    "make",
    "mawk",
    "mcedit",
    "micro",
    "mksh",
    "more",
    "mv",
    "nano",
    "ne",
    "nice",
    "node",
    "nodejs",
    "nohup",
    "nsenter",
    "nu",
    "nvim",
    "od",
    "perf",
    "perl",
    "php",
    "pico",
    "powershell",
    "pwsh",
    "pypy",
    "python",
    "rbash",
    "rsync",
    "ruby",
    "run-parts",
    "rview",
    "rvim",
    "scp",
    "sed",
    "setpriv",
    "setsid",
    "sh",
    "socat",
    "start-stop-daemon",
    "strace",
    "strings",
    "systemd-run",
    "tac",
    "tail",
    "tar",
    "taskset",
    "tclsh",
    "tcsh",
    "tee",
    "timeout",
    "toybox",
    "unshare",
    "vi",
    "view",
    "vim",
    "vimdiff",
    "watch",
    "xargs",
    "xxd",
    "yash",
    "zip",
    "zsh",
];

/// Programs that start what they are told, so that they say nothing as an ancestor.
const STARTERS: &[&str] = &[
    "conmon",
    "containerd",
    "containerd-shim-runc-v",
    "cron",
    "crond",
    "dockerd",
    "doas",
    "init",
    "kubelet",
    "login",
    "parallel",
    "runc",
    "runuser",
    "screen",
    "sshd",
    "sshd-session",
    "stdbuf",
    "su",
    "sudo",
    "systemd",
    "tini",
    "tmux",
];

/// Where programs of those names are found.
const DIRECTORIES: &[&str] = &["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];
/// Where the loader is, which runs any program that is its argument.
const LOADERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/lib64/ld-linux-x86-64.so.2",
    "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
];
/// What versions of such names look like: a wildcard may be meant for them.
const VERSIONS: &[&str] = &["", "3", "3.11"];

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
    // A sum is taken of every program that is asked for, so it must be plain which those are.
    let wild = |text: &&String| Glob::parse(text).is_ok_and(|glob| glob.literals().is_none());
    if let Some(text) = exception.executables.iter().find(wild).filter(|_| !exception.sha256.is_empty()) {
        let message = format!("a sum of '{}', which may be many programs", shortened(text));
        faults.push(Fault::error(format!("{field}.sha256"), message, "write executables without wildcards"));
    }
    faults.extend(too_wide(field, exception, paths));
    faults
}

/// An exception that swallows everything, or that whoever may run a shell can satisfy.
fn too_wide(field: &str, exception: &Exception, paths: &[Glob]) -> Option<Fault> {
    let Exception { executables, scripts, ancestors, users, images, paths: files, sha256, acknowledge_broad } =
        exception;
    // `**` is any image.
    let any_image = images.iter().any(|image| image.bytes().all(|byte| b"*/".contains(&byte)));
    let identified = !(scripts.is_empty() && sha256.is_empty()) || !images.is_empty() && !any_image;
    let programs = [("executables", executables), ("ancestors", ancestors)];
    if identified || *acknowledge_broad {
        return None;
    }
    // Of thousands by thousands nobody is told.
    let few = comparisons(paths.iter()) * files.len() <= COMPARISONS_LIMIT;
    let globs: Vec<Glob> = files.iter().filter(|_| few).filter_map(|text| Glob::parse(text).ok()).collect();
    let everything =
        few && !paths.is_empty() && paths.iter().all(|path| globs.iter().any(|file| file.covers(path)));
    let narrowed = !files.is_empty() && !everything;
    if narrowed {
        return None;
    }
    if programs.iter().all(|(_, programs)| programs.is_empty()) {
        let what = if !users.is_empty() {
            "an exception by user alone lets every program of that user through".to_owned()
        } else {
            let what = if files.is_empty() { "an exception without criteria" } else { "this exception" };
            format!("{what} swallows everything that the policy watches")
        };
        return Some(Fault::error(field, what, "name the executables that may; to watch less, use exclude"));
    }
    if !users.is_empty() {
        return None;
    }
    let told = |name: &str, text: &str| {
        names_one_of(text, BROAD).or_else(|| (name == "ancestors").then(|| names_one_of(text, STARTERS)).flatten())
    };
    let broad = |(name, texts): &(&'static str, &Vec<String>)| {
        texts.iter().enumerate().find_map(|(at, text)| Some((*name, at, text.clone(), told(name, text)?)))
    };
    let found: Vec<_> = programs.iter().filter(|(_, texts)| !texts.is_empty()).map(broad).collect();
    // Executables and ancestors narrow each other, unless both are anybody.
    if found.iter().any(Option::is_none) {
        return None;
    }
    let (name, at, text, program) = found.into_iter().flatten().next()?;
    let also = if text.ends_with(&program) { String::new() } else { format!("is also '{program}', which ") };
    let message = format!(
        "'{}' {also}does what it is told, so this exception lets through whoever can run it",
        shortened(&text)
    );
    let help = "add a second criterion such as paths, users, scripts or images, or acknowledgeBroad: true";
    Some(Fault::error(format!("{field}.{name}[{at}]"), message, help))
}

/// Whether `pattern` names a program that does what it is told, such as a shell, in any version.
#[must_use]
pub fn is_broad(pattern: &str) -> bool {
    names_one_of(pattern, BROAD).is_some()
}

/// A program called as one of `words`, in any version, that `pattern` names.
fn names_one_of(pattern: &str, words: &[&str]) -> Option<String> {
    // A pattern that cannot be parsed is another fault.
    let glob = Glob::parse(pattern).ok()?;
    for components in glob.alternatives() {
        match components.last() {
            Some(Component::Literal(name)) => {
                let name = String::from_utf8_lossy(name).into_owned();
                if is_called(&name, words) {
                    return Some(name);
                }
            }
            // A form that begins as such a name does is meant for its versions.
            Some(Component::Wild(form)) => {
                let prefix = String::from_utf8_lossy(&form.prefix).into_owned();
                let bare = prefix.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
                if words.contains(&bare) || prefix.starts_with("ld-") || prefix.starts_with("ld.") {
                    return Some(prefix);
                }
            }
            _ => {}
        }
    }
    if !pattern.contains(['*', '?', '[']) {
        return None;
    }
    let known = PLACES.iter().filter(|(word, ..)| word.is_none_or(|word| words.contains(&word)));
    known.into_iter().find(|(_, _, place)| glob.covers(place)).map(|(_, path, _)| path.clone())
}

/// Every place where a program of [`BROAD`] or [`STARTERS`] is found in some version, and the loader's, each with its
/// word: parsed once, since each pattern of each exception is held against all of them.
static PLACES: LazyLock<Vec<(Option<&str>, String, Glob)>> = LazyLock::new(|| {
    let words = BROAD.iter().chain(STARTERS).flat_map(|word| VERSIONS.iter().map(move |version| (*word, version)));
    let places = words.flat_map(|(word, version)| {
        DIRECTORIES.iter().map(move |directory| (Some(word), format!("{directory}/{word}{version}")))
    });
    let loaders = LOADERS.iter().map(|loader| (None, (*loader).to_owned()));
    loaders
        .chain(places)
        .filter_map(|(word, path)| Glob::parse(&path).ok().map(|glob| (word, path, glob)))
        .collect()
});

/// Whether a program called `name` is one of `words`: also `python3.11-dbg`, `bash-static` and `ld-linux-x86-64.so.2`.
fn is_called(name: &str, words: &[&str]) -> bool {
    let unversioned = name.split(|c: char| c.is_ascii_digit()).next().unwrap_or(name).trim_end_matches(['-', '.']);
    let stem = name.split('.').next().unwrap_or(name);
    let flavours =
        ["-gtk", "-nox", "-static", "-dbg", "-tiny"].iter().find_map(|flavour| name.strip_suffix(flavour));
    let loader = name.starts_with("ld") && name.contains(".so");
    loader || [name, unversioned, stem, flavours.unwrap_or(name)].iter().any(|name| words.contains(name))
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
            "/usr/bin/python3*",
            "/usr/bin/python3.[0-9]*",
            "/opt/*/bin/python*",
            "/usr/lib/**",
            "/lib64/ld-*",
            "/usr/bin/python3.11-dbg",
            "/bin/bash-static",
            "/usr/bin/emacs-gtk",
            "/usr/bin/perl5.36-x86_64-linux-gnu",
            "/usr/bin/head",
        ] {
            assert!(is_broad(broad), "{broad}");
        }
        for plain in ["/usr/sbin/sshd", "/usr/bin/dpkg", "/usr/bin/shadowconfig", "/usr/bin/envsubst", "/opt/x/y*"]
        {
            assert!(!is_broad(plain), "{plain}");
        }
        assert!(names_one_of("/usr/bin/sudo", STARTERS).is_some() && !is_broad("/usr/bin/sudo"));
    }
}
