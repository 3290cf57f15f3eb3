//! Policies that are objects of the API server, beside files and the library.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "common/policies.rs"]
mod policies;

use std::{collections::BTreeMap, sync::Arc};

use policies::{HEAD, directory_of, names, open};
use sensor::{
    matcher::run_examples,
    policy::{Directory, Kind, Loaded, Object, Override, Reference, Severity, State},
};

fn policy(name: &str, path: &str) -> String {
    format!("{}spec: {{subjects: all, paths: ['{path}']}}\n", HEAD.replace("name: p", &format!("name: {name}")))
}

/// An object of the API server.
fn object(name: &str, created: i64, generation: i64, spec: &str) -> Object {
    let namespace = "team";
    let reference =
        Reference { kind: Kind::PathPolicy, namespace: namespace.into(), name: name.into(), uid: String::new() };
    let text = format!(
        r#"{{"apiVersion": "pathwatch.dev/v1alpha1", "kind": "PathPolicy", "metadata": {{"name": "{name}", "namespace": "{namespace}"}}, "spec": {spec}}}"#
    );
    let size = text.len();
    Object { reference, generation, created, text: Some(text.into()), size, refused: None }
}

fn told(loaded: &Loaded) -> Vec<(String, i64, State)> {
    loaded.objects.iter().map(|o| (o.reference.name.clone(), o.generation, o.state)).collect()
}

#[test]
fn objects_and_files_are_one_set_and_a_bad_object_keeps_its_last_good_version() {
    let dir = directory_of(&[("a.yaml", policy("a", "/a").as_bytes())]);
    let mut directory = open(dir.path());
    let good = object("o", 1, 1, r#"{"paths": ["/o"]}"#);
    directory.set_objects(vec![good.clone()]);
    let loaded = directory.poll().unwrap().unwrap();
    assert_eq!(names(&loaded), ["a", "o"]);
    assert_eq!(told(&loaded), [("o".into(), 1, State::Active)]);
    let of = |loaded: &Loaded| loaded.policies.iter().find(|policy| policy.name() == "o").unwrap().clone();
    assert_eq!(of(&loaded).source, "kubernetes:PathPolicy/team/o@1");
    directory.set_objects(vec![good.clone()]);
    assert!(directory.poll().unwrap().is_none(), "nothing has changed");

    // It passes the API server's schema, and is bad all the same.
    directory.set_objects(vec![object("o", 1, 2, r#"{"paths": ["/o/[z-a]"]}"#)]);
    let bad = directory.poll().unwrap().unwrap();
    assert_eq!(told(&bad), [("o".into(), 2, State::Stale)]);
    assert!(bad.objects[0].reason.contains("spec.paths[0]: "), "{:?}", bad.objects[0].reason);
    assert!(Arc::ptr_eq(&of(&bad), &of(&loaded)), "the last good version");

    directory.set_objects(vec![object("o", 1, 3, r#"{"paths": ["/o"], "suspend": true}"#)]);
    let suspended = directory.poll().unwrap().unwrap();
    assert_eq!(told(&suspended), [("o".into(), 3, State::Suspended)]);
    assert_eq!((suspended.policies.len(), names(&suspended)), (2, vec!["a"]));
    directory.set_objects(vec![]);
    assert_eq!(names(&directory.poll().unwrap().unwrap()), ["a"]);

    // One that was never good has no version to keep; what speaks of others than its namespace is refused here, too.
    directory.set_objects(vec![object("o", 1, 1, r#"{"paths": ["/o"], "subjects": "all"}"#)]);
    let refused = directory.poll().unwrap().unwrap();
    assert_eq!((names(&refused).len(), told(&refused)), (1, vec![("o".into(), 1, State::Failed)]));
}

#[test]
fn what_has_not_changed_is_not_compiled_again() {
    let mut directory = Directory::new(Vec::new(), BTreeMap::new(), run_examples);
    let all = |edited: i64| {
        let generation = |n: i64| if n == 7 { edited } else { 1 };
        (0..50).map(|n| object(&format!("p{n}"), n, generation(n), &format!(r#"{{"paths": ["/{n}"]}}"#))).collect()
    };
    directory.set_objects(all(1));
    let before = directory.poll().unwrap().unwrap();
    directory.set_objects(all(2));
    let after = directory.poll().unwrap().unwrap();
    let same = before.policies.iter().zip(&after.policies).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
    assert_eq!((before.policies.len(), after.policies.len(), same), (50, 50, 49));
}

#[test]
fn of_the_library_the_severe_are_in_force_and_a_policy_of_ones_own_takes_the_place_of_its_namesake() {
    let text = |name: &str, severity: &str| {
        policy(name, "/l").replace("subjects", &format!("severity: {severity}, subjects"))
    };
    let library = directory_of(&[
        ("low.yaml", text("low", "low").as_bytes()),
        ("wanted.yaml", text("wanted", "medium").as_bytes()),
        ("high.yaml", text("high", "high").as_bytes()),
        ("own.yaml", text("own", "critical").as_bytes()),
    ]);
    let own = directory_of(&[("own.yaml", policy("own", "/mine").as_bytes())]);
    let wanted = Override { suspend: Some(false), ..Override::default() };
    let changes = BTreeMap::from([("wanted".to_owned(), wanted)]);
    let loaded = Directory::new(vec![own.path().to_path_buf()], changes, run_examples)
        .with_library(library.path().to_path_buf(), Severity::High)
        .poll()
        .unwrap()
        .unwrap();
    assert_eq!(loaded.errors().count(), 0, "{:?}", loaded.diagnostics);
    let mut active: Vec<_> =
        loaded.set.policies.iter().map(|p| (p.name().to_owned(), p.policy.spec.paths[0].clone())).collect();
    active.sort();
    let want = [("high", "/l"), ("own", "/mine"), ("wanted", "/l")];
    assert_eq!(active, want.map(|(name, path)| (name.to_owned(), path.to_owned())));
}
