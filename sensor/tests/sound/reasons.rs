//! Why opens pass is counted: one open for each reason but that the keys changed meanwhile, which is for swaps.rs.
use std::{fs, path::Path};

use sensor::{matcher::run_examples, policy::Directory};
use sensor_ebpf::decide::Reason;

use super::{eye::Eye, mounted::known, place::policy};

fn keys(paths: &[String]) -> sensor::keys::Keys {
    let text = policy("p", paths, (&["read"], &["success", "missing"]));
    Directory::read_text(text.as_bytes(), run_examples).set.keys(&known())
}

pub(crate) fn run() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().canonicalize().unwrap();
    let mut eye = Eye::open(true);
    let make = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    };
    let deep = (0..30).fold(base.join("deep"), |path, level| path.join(level.to_string())).join("file");
    let (named, below, linked) = (base.join("named"), base.join("below/file"), base.join("linked"));
    [&deep, &named, &below, &linked].into_iter().for_each(|path| make(path));
    fs::hard_link(&linked, base.join("other")).unwrap();
    let text = |path: &Path| path.display().to_string();
    eye.filter.set(&keys(&[text(&named), text(&base.join("missing"))])).unwrap();
    for (path, reason) in [(&named, Reason::Name), (&deep, Reason::Unknown), (&linked, Reason::Links)] {
        passes(&mut eye, reason, || drop(fs::File::open(path).unwrap()));
    }
    passes(&mut eye, Reason::Failed, || drop(fs::File::open(base.join("missing")).unwrap_err()));
    eye.filter.set(&keys(&[text(&base.join("below/**"))])).unwrap();
    passes(&mut eye, Reason::Directory, || drop(fs::File::open(&below).unwrap()));
    eye.filter.set(&keys(&["/**/*.nothing".to_owned()])).unwrap();
    passes(&mut eye, Reason::Everything, || drop(fs::File::open(&named).unwrap()));
    eye.close();
    println!("reasons: each is counted");
}

/// Of what `open` opens at least that passes for this reason.
fn passes(eye: &mut Eye, reason: Reason, open: impl Fn()) {
    let count = |eye: &Eye| {
        eye.filter.count_passed(&eye.metrics);
        eye.metrics.passed[reason as usize].get()
    };
    let before = count(eye);
    open();
    assert_eq!(count(eye), before + 1, "{reason:?}");
}
