//! The oracle must notice a wrong matcher: each of these mistakes, planted into a copy of the source, makes its tests
//! fail. Takes minutes, so `make test-mutants` runs it, not every `cargo test`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it did")]
mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use common::root;

/// A file below sensor/src, a piece of it, and what it becomes.
type Mutant = (&'static str, &'static str, &'static str);

const MUTANTS: &[Mutant] = &[
    // A component after `**` is looked for only once.
    (
        "policy/trie.rs",
        "if node.repeats {\n                    self.enter(id, &mut next);",
        "if false {\n                    self.enter(id, &mut next);",
    ),
    // `/dir/**` matches `/dir` too.
    (
        "policy/trie.rs",
        "node.here.iter().for_each(|value| found(*value));",
        "node.here.iter().chain(&node.below).for_each(|value| found(*value));",
    ),
    // Of several forms with the same beginning, one is forgotten.
    (
        "policy/trie.rs",
        "self.forms.entry(affix.into()).or_default().push(form);",
        "self.forms.insert(affix.into(), vec![form]);",
    ),
    // A star that has taken too little is not asked again.
    ("policy/glob/mod.rs", "retry = Some((after, more));", "retry = None;"),
    // A class matches one byte too many.
    ("policy/glob/mod.rs", "(*low..=*high).contains(&byte)", "(*low..=high.saturating_add(1)).contains(&byte)"),
    // /var/lock is forgotten.
    (
        "policy/alias.rs",
        "&[b\"/run/lock\", b\"/var/lock\", b\"/var/run/lock\"]",
        "&[b\"/run/lock\", b\"/var/run/lock\"]",
    ),
    // A path that is in doubt excludes.
    ("matcher/mod.rs", "if doubtful(&enriched.event) {\n        return None;\n    }\n    let by", "let by"),
    // A program is believed by its path alone.
    ("matcher/exempt.rs", "program.trusted && program.executable", "program.executable"),
    // Criteria of an exception are alternatives instead of conditions.
    ("matcher/exempt.rs", "&& holds(users,", "|| holds(users,"),
    // An exclude of any view takes all views out.
    (
        "matcher/mod.rs",
        "return Verdict::Fires(*view, *pattern);\n        };",
        "return Verdict::Fires(*view, *pattern);\n        };\n        if matches!(this, Verdict::Excluded(..)) {\n            return this;\n        }",
    ),
    // What is renamed onto a file does not write it.
    ("event/mod.rs", "vec![Operation::Write, Operation::Rename]", "vec![Operation::Rename]"),
    // A pod whose namespace is not known is taken for the host.
    ("policy/subject.rs", "if on_host { Other::Subject } else { Other::NamespaceUnknown }", "Other::Subject"),
];

/// The oracle's tests on the source at `work`.
fn oracle(work: &Path, arguments: &[&str]) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--locked", "-p", "sensor", "--test", "oracle"]).args(arguments).current_dir(work);
    // Dependencies are those of this build.
    cargo
        .env("CARGO_TARGET_DIR", root().join("target"))
        .env("CASES", "300000")
        .env_remove("SEED")
        .output()
        .unwrap()
}

#[test]
#[ignore = "takes minutes: make test-mutants"]
fn every_planted_mistake_is_noticed() {
    let work = root().join("target/mutants");
    // A copy that is left over may be of another version.
    fs::remove_dir_all(&work).ok();
    let copy = "git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t \"$0\"";
    fs::create_dir_all(&work).unwrap();
    let copied = Command::new("sh").args(["-c", copy]).arg(&work).current_dir(root()).status().unwrap();
    assert!(copied.success());
    let clean = oracle(&work, &[]);
    assert!(clean.status.success(), "fails without a mutant: {}", String::from_utf8_lossy(&clean.stdout));
    for (number, (file, from, to)) in MUTANTS.iter().enumerate() {
        let path = work.join("sensor/src").join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{file} must have '{from}' once");
        fs::write(&path, text.replace(from, to)).unwrap();
        let built = oracle(&work, &["--no-run"]);
        assert!(built.status.success(), "mutant {number}: {}", String::from_utf8_lossy(&built.stderr));
        let tested = oracle(&work, &[]);
        fs::write(&path, text).unwrap();
        let said = String::from_utf8_lossy(&tested.stdout).into_owned();
        let caught: Vec<&str> =
            said.lines().filter_map(|line| line.strip_suffix("... FAILED")?.split(' ').nth(1)).collect();
        println!("mutant {number}: '{to}' in {file}: caught by {caught:?}");
        assert!(
            !tested.status.success() && !caught.is_empty(),
            "mutant {number} is not noticed: '{to}' in {file}"
        );
    }
    println!("{} of {} mutants caught", MUTANTS.len(), MUTANTS.len());
}
