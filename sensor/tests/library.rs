//! The policies that come with Pathwatch: each must be held by its own examples, so that nobody can break one unseen.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it did")]
mod common;

use std::{collections::BTreeMap, fs, sync::Arc};

use common::root;
use sensor::{
    matcher::run_examples,
    policy::{Compiled, Directory, Loaded, Policy},
};

fn library() -> Loaded {
    let mut directory = Directory::new(vec![root().join("policies")], BTreeMap::new(), run_examples);
    directory.poll().unwrap().unwrap()
}

#[test]
fn every_policy_is_good_and_behaves_as_its_examples_say() {
    let loaded = library();
    let faults: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert!(loaded.policies.len() >= 30, "{} policies", loaded.policies.len());
    for policy in &loaded.policies {
        let examples = &policy.policy.spec.examples;
        assert!(
            !examples.fires.is_empty() && !examples.silent.is_empty(),
            "{} needs examples both ways",
            policy.name()
        );
    }
}

/// The policy with one thing changed is refused, by its form or by its examples.
fn is_caught(policy: &Policy) -> bool {
    match Compiled::new(policy.clone(), String::new(), vec![]) {
        Ok(compiled) => !run_examples(&Arc::new(compiled)).is_empty(),
        Err(_) => true,
    }
}

/// What `pattern` becomes by breaking it: as a whole, and each branch of each of its braces.
fn broken(pattern: &str) -> Vec<String> {
    let mut all = vec![format!("{}no-such-name", if pattern.starts_with('/') { "/" } else { "" })];
    let (mut depth, mut start) = (0, 0);
    for (at, byte) in pattern.bytes().enumerate() {
        let branch = depth == 1 && matches!(byte, b',' | b'}');
        if branch {
            all.push(format!("{}no-such-name{}", &pattern[..start], &pattern[at..]));
        }
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 1 && matches!(byte, b'{' | b',') {
            start = at + 1;
        }
    }
    all
}

/// The lists of patterns in a policy, by their names.
fn lists(policy: &mut Policy) -> Vec<(String, &mut Vec<String>)> {
    let spec = &mut policy.spec;
    let mut lists = vec![("paths".to_owned(), &mut spec.paths), ("exclude".to_owned(), &mut spec.exclude)];
    for (at, exception) in spec.exceptions.iter_mut().enumerate() {
        let field = |name: &str| format!("exceptions[{at}].{name}");
        lists.extend([
            (field("executables"), &mut exception.executables),
            (field("scripts"), &mut exception.scripts),
            (field("ancestors"), &mut exception.ancestors),
            (field("images"), &mut exception.images),
            (field("paths"), &mut exception.paths),
        ]);
    }
    lists
}

/// Every policy that `policy` becomes by breaking one pattern, and by deleting an exception or a criterion of one.
fn damaged(policy: &Policy) -> Vec<(String, Policy)> {
    let mut all = Vec::new();
    let mut original = policy.clone();
    for (list, (name, texts)) in lists(&mut original).into_iter().enumerate() {
        for (at, text) in texts.iter().enumerate() {
            for broken in broken(text) {
                let mut policy = policy.clone();
                lists(&mut policy)[list].1[at].clone_from(&broken);
                all.push((format!("{name}: '{text}' became '{broken}'"), policy));
            }
        }
        if name.contains('.') && !texts.is_empty() {
            let mut policy = policy.clone();
            lists(&mut policy)[list].1.clear();
            all.push((format!("{name} was deleted"), policy));
        }
    }
    for at in 0..policy.spec.exceptions.len() {
        let mut policy = policy.clone();
        policy.spec.exceptions.remove(at);
        all.push((format!("exceptions[{at}] was deleted"), policy));
    }
    all
}

#[test]
fn whatever_is_deleted_or_broken_in_a_policy_its_examples_tell() {
    let (mut tried, mut missed) = (0, Vec::new());
    for policy in &library().policies {
        assert!(!is_caught(&policy.policy), "{} is bad as it is", policy.name());
        for (what, damaged) in damaged(&policy.policy) {
            tried += 1;
            if !is_caught(&damaged) {
                missed.push(format!("{}: {what}", policy.name()));
            }
        }
    }
    println!("{tried} damaged policies, {} not caught", missed.len());
    assert!(tried > 200 && missed.is_empty(), "no example tells of:\n{}", missed.join("\n"));
}

/// The table of policies, by tactic.
fn table() -> String {
    let mut text = String::new();
    let mut tactic = String::new();
    for policy in library().policies {
        let spec = &policy.policy.spec;
        let place = policy.source.split("/policies/").nth(1).unwrap();
        let directory = place.split('/').next().unwrap();
        if directory != tactic {
            tactic = directory.to_owned();
            let title = tactic[..1].to_uppercase() + &tactic[1..].replace('-', " ");
            text += &format!(
                "\n### {title}\n| policy | severity | ATT&CK | what an alert means |\n| --- | --- | --- | --- |\n"
            );
        }
        let techniques: Vec<&str> = spec.threat.iter().map(|threat| threat.technique.as_str()).collect();
        let name = policy.name();
        let ids = techniques.join(", ");
        let description = spec.description.replace('|', "\\|");
        text += &format!("| [{name}]({place}) | {} | {ids} | {description} |\n", spec.severity);
    }
    text
}

#[test]
fn the_table_of_policies_is_fresh() {
    let path = root().join("policies/README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let marker = "<!-- The rest is generated: UPDATE=1 cargo test -p sensor --test library -->\n";
    let (head, old) = readme.split_once(marker).unwrap();
    let new = table();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, format!("{head}{marker}{new}")).unwrap();
    } else {
        assert!(old == new, "policies/README.md is stale; run UPDATE=1 cargo test -p sensor --test library");
    }
}

#[test]
fn the_schema_for_editors_is_fresh() {
    let path = root().join("policies/schema.json");
    let new = serde_json::to_string_pretty(&sensor::policy::schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, new).unwrap();
    } else {
        let old = fs::read_to_string(&path).unwrap_or_default();
        assert!(old == new, "policies/schema.json is stale; run UPDATE=1 cargo test -p sensor --test library");
    }
}
