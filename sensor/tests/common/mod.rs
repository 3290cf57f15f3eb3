//! The command under test.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The command under test, with nothing of this environment's configuration. Tests that count opens want none of the self-test's.
pub(crate) fn pathwatch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pathwatch"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PATHWATCH__")) {
        command.env_remove(name);
    }
    command.env("PATHWATCH__CAPTURE__SELF_TEST", "false");
    command
}

/// The project's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Where e2e/setup.sh keeps what it fetches.
pub(crate) fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("PATHWATCH_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("pathwatch")))
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/pathwatch"))
}
