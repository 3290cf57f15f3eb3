//! `pathwatch policy` as people and editors use it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod common;

use std::{fs, path::Path, process::Output};

use common::{pathwatch, root};
use serde_json::{Value, json};

const BAD: &str =
    "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: bad}\nspec:\n  pahts: [/a]\n";
const GOOD: &str = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: good}\nspec:\n  subjects: all\n  paths: [/etc/a, '**/*.key']\n  exceptions: [{executables: [/usr/bin/x]}]\n  examples: {fires: [{open: /etc/a}]}\n";

/// `pathwatch policy …` in a directory of `files`.
fn policy(files: &[(&str, &str)], arguments: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text).unwrap();
    }
    let output = pathwatch().arg("policy").args(arguments).current_dir(dir.path()).output().unwrap();
    (output, dir)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_says_what_is_wrong_and_counts() {
    let (output, _dir) = policy(&[("policies/bad.yaml", BAD), ("policies/good.yaml", GOOD)], &["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stdout),
        "policies/bad.yaml:5:3: unknown field 'pahts'; did you mean 'paths'?\n1 good policy, 1 example: 1 error, 0 warnings\n"
    );
    assert_eq!(text(&output.stderr), "pathwatch: 1 error in the policies\n");
    let (output, _dir) = policy(&[("good.yaml", GOOD)], &["check", "good.yaml"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "1 good policy, 1 example: 0 errors, 0 warnings\n")
    );
    let (output, _dir) = policy(&[("empty/x.txt", "")], &["check", "empty"]);
    assert_eq!(text(&output.stderr), "pathwatch: there is no policy; name a directory with *.yaml files\n");
}

#[test]
fn check_speaks_json_to_editors() {
    let (output, _dir) = policy(&[("policies/bad.yaml", BAD)], &["check", "--output", "json"]);
    let got: Value = serde_json::from_slice(&output.stdout).unwrap();
    let want = json!({
        "policies": 0, "examples": 0, "errors": 1, "warnings": 0,
        "diagnostics": [{
            "file": "policies/bad.yaml", "line": 5, "column": 3, "policy": "bad", "text": "pahts", "level": "error",
            "field": "spec.pahts", "message": "unknown field 'pahts'", "help": "did you mean 'paths'?",
        }],
    });
    assert_eq!(got, want);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn check_tells_of_overrides_that_name_nothing_and_runs_examples_with_the_others() {
    let config = "policies:\n  overrides:\n    good: {severity: low}\n    godo: {suspend: true}\n";
    let files = [("policies/good.yaml", GOOD), ("c.yaml", config)];
    let (output, _dir) = policy(&files, &["check", "--config", "c.yaml"]);
    assert_eq!(
        text(&output.stdout),
        "policies.overrides.godo: warning: no policy is named 'godo'; name one, or leave the override out\n1 good policy, 1 example: 0 errors, 1 warning\n"
    );
    // An override can swallow what an example shows.
    let config = "policies: {overrides: {good: {exceptions: [{paths: [/etc/a], executables: [/usr/bin/y]}]}}}\n";
    let (output, _dir) =
        policy(&[("policies/good.yaml", GOOD), ("c.yaml", config)], &["check", "--config", "c.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn explain_says_who_fires_and_why_the_others_do_not() {
    let explain = |arguments: &[&str]| {
        let all = [&["explain"], arguments].concat();
        let (output, _dir) = policy(&[("policies/good.yaml", GOOD)], &all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(
        explain(&["/etc/a", "--by", "/usr/bin/cat"]),
        "read /etc/a by /usr/bin/cat, a process of the host\n\nfires   good    its path matches '/etc/a'  [medium, kernel]\n"
    );
    for (arguments, line) in [
        (&["/etc/a", "--by", "/usr/bin/x"][..], "silent  good    exception 1 covers it"),
        (&["/etc/a", "--result", "missing"], "silent  good    it ended otherwise (spec.results)"),
        (
            &["/etc/a", "--operation", "exec"],
            "silent  good    its path matches '/etc/a', but this is another operation",
        ),
        (&["/link", "--resolves", "/etc/a"], "fires   good    its path matches '/etc/a'"),
        (&["/tmp/n", "--operation", "rename", "--to", "/etc/a"], "fires   good    its target matches '/etc/a'"),
        (&["/x", "--all"], "silent  good    no pattern matches"),
        (&["/x"], "silent  1 more, of which no pattern matches (--all shows them)"),
    ] {
        let said = explain(arguments);
        assert!(said.contains(line), "{arguments:?}: {said}");
    }
    assert_eq!(
        explain(&[]),
        "POLICY  DECIDED      PATTERN\ngood    kernel       /etc/a\ngood    kernel       **/*.key\n"
    );
    let rows: Value =
        serde_json::from_str(&explain(&["/k/b.key", "--namespace", "shop", "--output", "json"])).unwrap();
    assert_eq!((&rows[0]["fires"], &rows[0]["pattern"]), (&json!(true), &json!("**/*.key")));
}

#[test]
fn what_explain_cannot_ask_is_64() {
    for (arguments, said) in [
        (&["etc/a"][..], "'etc/a' does not begin with /"),
        (&["/a", "--to", "/b"], "--to is the new name of a rename or link"),
        (&["/a", "--operation", "rename"], "--to is the new name of a rename or link"),
        (&["/a", "--operation", "eat"], "unknown variant `eat`, expected one of `read`"),
        (&["/a", "--pod-label", "app"], "write it as KEY=VALUE"),
    ] {
        let all = [&["explain"], arguments].concat();
        let (output, _dir) = policy(&[("policies/good.yaml", GOOD)], &all);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

fn alert(policy: &str, executable: Option<&str>, image: Option<&str>) -> String {
    let mut alert = json!({
        "event": {"kind": "alert"}, "rule": {"name": policy}, "file": {"path": "/etc/a"},
        "pathwatch": {"operation": ["read"]}, "process": {},
    });
    if let Some(executable) = executable {
        alert["process"]["executable"] = json!(executable);
    }
    if let Some(image) = image {
        alert["container"] = json!({"image": {"name": image}});
    }
    format!("{alert}\n")
}

#[test]
fn suggest_prints_exceptions_that_silence_the_alerts_and_refuses_interpreters() {
    let alerts = [
        alert("good", Some("/usr/sbin/backup[1]"), None),
        alert("good", Some("/usr/sbin/backup[1]"), None),
        alert("good", Some("/app"), Some("reg.example/shop/api")),
        alert("good", Some("/usr/bin/bash"), None),
        alert("good", None, None),
        "{\"event\": {\"kind\": \"metric\"}}\n".to_owned(),
    ];
    let files = [("alerts.jsonl", alerts.concat()), ("policies/good.yaml", GOOD.to_owned())];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let (output, dir) = policy(&files, &["suggest", "--from", "alerts.jsonl"]);
    let said = text(&output.stdout);
    assert_eq!(
        said,
        r#"# An exception holds for a program while nobody but root, or the image, can have put it there.
policies:
  overrides:
    # good: 1 alert: an unknown program, read /etc/a: no exception, since the program is unknown
    # good: 1 alert: /usr/bin/bash, read /etc/a: no exception, since whoever can run it could pass for it; name a script, a user or paths by hand
    good:
      exceptions:
        # 1 alert: /app in reg.example/shop/api, read /etc/a
        - executables: [/app]
          images: [reg.example/shop/api]
        # 2 alerts: /usr/sbin/backup[1], read /etc/a
        - executables: ["/usr/sbin/backup\\[1\\]"]
"#
    );
    // What is printed is a configuration, and with it the alerts are gone.
    fs::write(dir.path().join("c.yaml"), said).unwrap();
    for (by, fires) in [("/usr/sbin/backup[1]", false), ("/usr/sbin/backup1", true), ("/usr/bin/bash", true)] {
        let arguments = ["policy", "explain", "/etc/a", "--by", by, "--config", "c.yaml", "--output", "json"];
        let output = pathwatch().args(arguments).current_dir(dir.path()).output().unwrap();
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(rows[0]["fires"], json!(fires), "{by}");
    }
}

#[test]
fn suggest_names_a_line_that_is_no_alert() {
    for (line, said) in [
        ("x\n", "alerts.jsonl:1: not JSON"),
        ("{\"event\": {\"kind\": \"alert\"}}\n", "alerts.jsonl:1: not an alert of Pathwatch"),
    ] {
        let (output, _dir) = policy(&[("alerts.jsonl", line)], &["suggest", "--from", "alerts.jsonl"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
    let (output, _dir) = policy(&[("alerts.jsonl", "")], &["suggest", "--from", "alerts.jsonl"]);
    assert_eq!(text(&output.stdout), "# No alerts: nothing to suggest.\n");
}

#[test]
fn the_schema_describes_every_field_of_the_library() {
    let (output, _dir) = policy(&[], &["schema"]);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut count = 0;
    for directory in fs::read_dir(root().join("policies")).unwrap().map(|entry| entry.unwrap().path()) {
        for file in fs::read_dir(&directory).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let document: Value = serde_yaml::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            let errors: Vec<String> = validator.iter_errors(&document).map(|why| why.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", file.display());
            count += 1;
        }
    }
    assert!(count > 30, "{count} policies");
    let bad: Value = serde_yaml::from_str(BAD).unwrap();
    assert!(!validator.is_valid(&bad), "the schema lets 'pahts' through");
}
