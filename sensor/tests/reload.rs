//! Policies that change under a running sensor, and what the configuration changes in them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "common/policies.rs"]
mod policies;

use std::{collections::BTreeMap, fs, time::Duration};

use policies::{HEAD, directory_of, names, open, said};
use sensor::{
    matcher::run_examples,
    policy::{Directory, Loaded, Override, Severity},
};

fn policy(name: &str, path: &str) -> String {
    format!("{}spec: {{subjects: all, paths: ['{path}']}}\n", HEAD.replace("name: p", &format!("name: {name}")))
}

#[test]
fn a_bad_version_of_a_policy_leaves_the_last_good_one_in_force() {
    let dir = directory_of(&[("a.yaml", policy("a", "/a").as_bytes()), ("b.yaml", policy("b", "/b").as_bytes())]);
    let mut directory = open(dir.path());
    assert_eq!(names(&directory.poll().unwrap().unwrap()), ["a", "b"]);
    assert!(directory.poll().unwrap().is_none(), "nothing has changed");

    let mut change = |file: &str, text: &str| {
        // Written aside and renamed, as editors do: a new inode tells, however coarse the clock.
        fs::write(dir.path().join("new"), text).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join(file)).unwrap();
        directory.poll().unwrap().unwrap()
    };
    for bad in ["spec: [", "", "\u{1}", &policy("a", "relative"), &policy("a", "/a").replace("paths", "path")] {
        let loaded = change("a.yaml", bad);
        assert_eq!((names(&loaded), loaded.stale.as_slice()), (vec!["a", "b"], &["a".to_owned()][..]), "{bad:?}");
        assert_eq!(loaded.set.policies[0].policy.spec.paths, ["/a"]);
        assert_eq!(said(&loaded, dir.path()).len(), 1, "{:?}", said(&loaded, dir.path()));
    }
    let loaded = change("a.yaml", &policy("a", "/new"));
    assert_eq!((loaded.set.policies[0].policy.spec.paths[0].as_str(), loaded.stale.len()), ("/new", 0));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(names(&directory.poll().unwrap().unwrap()), ["b"]);
    // A directory that is away for a moment takes nothing away.
    fs::rename(dir.path(), dir.path().with_extension("away")).unwrap();
    assert!(directory.poll().is_err());
    fs::rename(dir.path().with_extension("away"), dir.path()).unwrap();
    assert!(directory.poll().unwrap().is_none());
}

#[test]
fn what_is_bad_in_a_file_takes_nothing_else_with_it() {
    let both = format!("{}---\n{}", policy("a", "/a"), policy("b", "/b"));
    let dir = directory_of(&[("f.yaml", both.as_bytes()), ("g.yaml", policy("c", "/c").as_bytes())]);
    let mut directory = open(dir.path());
    assert_eq!(names(&directory.poll().unwrap().unwrap()), ["a", "b", "c"]);
    let mut change = |text: &str| {
        fs::write(dir.path().join("new"), text).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("f.yaml")).unwrap();
        let loaded = directory.poll().unwrap().unwrap();
        let paths =
            loaded.set.policies.iter().map(|policy| policy.policy.spec.paths[0].clone()).collect::<Vec<_>>();
        (paths, loaded.stale)
    };
    let stale = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    // A misspelt kind is no other policy; the one beside it is new.
    let bad = format!(
        "{}---\n{}",
        policy("a", "/a").replace("ClusterPathPolicy", "ClusterPathPolcy"),
        policy("b", "/new")
    );
    assert_eq!(change(&bad), (paths(&["/new", "/a", "/c"]), stale(&["a"])));
    // Nor is one that has lost its name.
    let bad = format!("{}---\n{}", policy("a", "/a").replace("name: a", "nam: a"), policy("b", "/newer"));
    assert_eq!(change(&bad), (paths(&["/newer", "/a", "/c"]), stale(&["a"])));
    // A link that leads nowhere is one bad file, and one that leads back is none.
    std::os::unix::fs::symlink("/does/not/exist", dir.path().join("h.yaml")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    assert_eq!(change(&both), (paths(&["/a", "/b", "/c"]), vec![]));
}

#[test]
fn a_mounted_config_map_is_swapped_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let generation = |name: &str, path: &str| {
        let place = dir.path().join(name);
        fs::create_dir(&place).unwrap();
        for file in ["a", "b"] {
            fs::write(place.join(format!("{file}.yaml")), policy(file, path)).unwrap();
        }
        std::os::unix::fs::symlink(name, dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    generation("..2026_11_22_10_11_12.1", "/one");
    for file in ["a.yaml", "b.yaml"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), dir.path().join(file)).unwrap();
    }
    let paths = |loaded: &Loaded| {
        let all = loaded.set.policies.iter().map(|policy| policy.policy.spec.paths[0].clone());
        all.collect::<Vec<_>>()
    };
    let mut directory = open(dir.path());
    assert_eq!(paths(&directory.poll().unwrap().unwrap()), ["/one", "/one"]);
    generation("..2026_11_22_10_11_13.2", "/two");
    assert_eq!(paths(&directory.poll().unwrap().unwrap()), ["/two", "/two"]);
    assert!(directory.poll().unwrap().is_none());

    // While another thread swaps without end, every set that is read is one generation.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 3.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                generation(&format!("..2026_11_22_10_11_14.{n}"), &format!("/n{n}"));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut seen = 0;
        while seen < 200 {
            if let Ok(Some(loaded)) = directory.poll() {
                let paths = paths(&loaded);
                assert!(paths.len() == 2 && paths[0] == paths[1], "a mixture: {paths:?}");
                seen += 1;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        seen
    });
    assert_eq!(seen, 200);
}

#[test]
fn overrides_change_a_policy_and_those_that_name_nothing_are_told() {
    let dir = directory_of(&[("a.yaml", policy("a", "/a").as_bytes()), ("b.yaml", policy("b", "/b").as_bytes())]);
    let changes: BTreeMap<String, Override> = serde_yaml::from_str(
        "a: {severity: low, exceptions: [{executables: [/usr/bin/x]}]}\nb: {suspend: true}\nc: {suspend: true}\n",
    )
    .unwrap();
    let loaded = Directory::new(vec![dir.path().to_path_buf()], changes, run_examples).poll().unwrap().unwrap();
    let a = &loaded.policies[0];
    assert_eq!((a.policy.spec.severity, a.policy.spec.exceptions.len()), (Severity::Low, 1));
    assert_eq!(a.overridden, ["severity", "exceptions"]);
    assert_eq!((names(&loaded), loaded.policies.len()), (vec!["a"], 2));
    assert_eq!(
        said(&loaded, dir.path()),
        ["policies.overrides.c: warning: no policy is named 'c'; name one, or leave the override out"]
    );
}

#[test]
fn an_override_may_swallow_an_example_and_a_bad_one_takes_no_policy_with_it() {
    let text = format!(
        "{}spec: {{paths: [/a], examples: {{fires: [{{open: /a, by: /usr/bin/x}}]}}}}\n",
        HEAD.replace("name: p", "name: a")
    );
    let dir = directory_of(&[("a.yaml", text.as_bytes())]);
    let load = |yaml: &str| {
        let changes = serde_yaml::from_str(yaml).unwrap();
        Directory::new(vec![dir.path().to_path_buf()], changes, run_examples).poll().unwrap().unwrap()
    };
    let loaded = load("a: {exceptions: [{executables: [/usr/bin/x]}]}\n");
    assert_eq!((names(&loaded), said(&loaded, dir.path())), (vec!["a"], vec![]));
    assert_eq!(loaded.set.policies[0].policy.spec.exceptions.len(), 1);
    let loaded = load("a: {severity: low, exceptions: [{executables: [x]}]}\n");
    assert_eq!((names(&loaded), loaded.set.policies[0].overridden.len()), (vec!["a"], 0));
    assert_eq!(
        said(&loaded, dir.path()),
        [
            "policies.overrides.a: 'x' begins with neither / nor **/; write its full path; the policy is used without this override"
        ]
    );
}
