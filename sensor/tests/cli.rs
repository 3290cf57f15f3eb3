//! Bad input of every kind: one line that names the thing and the remedy, and the exit code that design promises.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use common::{pathwatch, root};

/// Runs `command` and returns its exit code and what it said last on standard error.
fn fails(command: &mut Command) -> (i32, String) {
    let out = command.output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.stdout.is_empty(), "errors are not for standard output");
    (out.status.code().unwrap(), said.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n"))
}

/// `pathwatch run` in a directory with `files`.
fn run_with(files: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), text).unwrap();
    }
    fails(pathwatch().arg("run").args(arguments).current_dir(dir.path()))
}

#[test]
fn bad_usage_is_64_with_the_usage() {
    let (code, said) = fails(pathwatch().arg("rnu"));
    assert_eq!(code, 64);
    assert!(
        said.contains("unrecognized subcommand 'rnu'") && said.contains("Usage: pathwatch <COMMAND>"),
        "{said}"
    );
    assert_eq!(fails(pathwatch().args(["trace", "etc"])), (64, "pathwatch: GLOB[0]: 'etc' begins with neither / nor **/; write '/etc' for one place or '**/etc' for any directory".to_owned()));
}

#[test]
fn help_and_version_are_no_failure() {
    for argument in ["--help", "--version"] {
        let out = pathwatch().arg(argument).output().unwrap();
        assert!(out.status.success() && !out.stdout.is_empty() && out.stderr.is_empty());
    }
}

#[test]
fn an_unknown_configuration_key_is_64_with_its_place() {
    let (code, said) = run_with(&[("c.yaml", "ship: {snik: kafka}\n")], &["--config", "c.yaml"]);
    assert_eq!(
        (code, said.as_str()),
        (
            64,
            "pathwatch: c.yaml: ship: unknown field `snik`, expected one of `sink`, `state_dir`, `format`, `redact`, `heartbeat`, `spool`, `storm`, `file`, `kafka` at line 1 column 8"
        )
    );
    let (code, said) = run_with(&[], &["--config", "missing.yaml"]);
    assert_eq!(
        (code, said.as_str()),
        (64, "pathwatch: cannot read the configuration missing.yaml: No such file or directory (os error 2)")
    );
}

#[test]
fn a_bad_policy_is_64_with_its_place() {
    let (code, said) = run_with(&[("policies/a.yaml", "kind: [\n")], &[]);
    assert_eq!(code, 64);
    assert!(said.starts_with("pathwatch: policies/a.yaml:2:1: not YAML: "), "{said}");
    let glob = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: a}\nspec: {paths: ['/a/[']}\n";
    let (code, said) = run_with(&[("policies/a.yaml", glob)], &[]);
    assert_eq!(
        (code, said.as_str()),
        (
            64,
            "pathwatch: policies/a.yaml:4:16: '/a/[' opens a [ that it never closes; write '\\[' for a plain one"
        )
    );
}

#[test]
fn an_unreadable_policy_directory_is_64() {
    let (code, said) = run_with(&[], &[]);
    assert_eq!(
        (code, said.as_str()),
        (
            64,
            "pathwatch: cannot read the policies in policies: No such file or directory (os error 2); name another with --policies DIR or policies.directory"
        )
    );
    let (code, said) = run_with(&[("f/readme.txt", "")], &["--policies", "f"]);
    assert_eq!(
        (code, said.as_str()),
        (64, "pathwatch: no policy in f: it has no *.yaml file with one; name another with --policies DIR")
    );
}

#[test]
fn without_privileges_it_is_77() {
    // The binary and the policies may lie where only their owner reads.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let binary = dir.path().join("pathwatch");
    fs::copy(env!("CARGO_BIN_EXE_pathwatch"), &binary).unwrap();
    let policy = root().join("policies/credential-access/shadow-read.yaml");
    fs::create_dir(dir.path().join("policies")).unwrap();
    fs::copy(policy, dir.path().join("policies/p.yaml")).unwrap();
    for command in ["run", "trace"] {
        let mut sensor = Command::new(&binary);
        sensor.arg(command).current_dir(dir.path());
        if rustix::process::geteuid().is_root() {
            sensor.uid(65534).gid(65534);
        }
        let want = "pathwatch: not permitted to load eBPF programs: needs CAP_BPF and CAP_PERFMON; run as root, for example with sudo";
        assert_eq!(fails(&mut sensor), (77, want.to_owned()));
    }
}

#[test]
fn a_recording_that_is_not_there_is_1() {
    let (code, said) = fails(pathwatch().args(["replay", "missing.jsonl"]).current_dir(root()));
    assert_eq!(
        (code, said.as_str()),
        (1, "pathwatch: cannot read the recording missing.jsonl: No such file or directory (os error 2)")
    );
}
