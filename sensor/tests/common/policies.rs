//! Directories of policies and what is said of them.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
use std::{collections::BTreeMap, fs, path::Path};

use sensor::{
    matcher::run_examples,
    policy::{Directory, Loaded},
};
use tempfile::TempDir;

/// How a policy called `p` begins.
pub(crate) const HEAD: &str = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: p}\n";

/// A directory of files.
pub(crate) fn directory_of(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// The policies of a directory.
pub(crate) fn open(dir: &Path) -> Directory {
    Directory::new(vec![dir.to_path_buf()], BTreeMap::new(), run_examples)
}

/// What is said of them, without the directory's name.
pub(crate) fn said(loaded: &Loaded, dir: &Path) -> Vec<String> {
    let place = format!("{}/", dir.display());
    loaded.diagnostics.iter().map(|diagnostic| diagnostic.to_string().replace(&place, "")).collect()
}

/// The names of those in force.
pub(crate) fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.set.policies.iter().map(|policy| policy.name()).collect()
}
