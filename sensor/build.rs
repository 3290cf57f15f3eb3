//! Builds the kernel side with the compiler that builds everything else, and embeds it.
#![expect(clippy::panic, clippy::expect_used, reason = "a build script stops the build by panicking")]
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=../sensor-ebpf");
    println!("cargo:rerun-if-changed=../Cargo.lock");
    let var = |name| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(var("OUT_DIR"));
    let arch = var("CARGO_CFG_TARGET_ARCH");
    // One directory for all profiles, clippy and tests: core is compiled once, not once per OUT_DIR.
    let target = out.ancestors().filter(|dir| dir.join("CACHEDIR.TAG").is_file()).last().unwrap_or(&out);
    let target = target.join(format!("ebpf-{arch}"));
    let status = Command::new(var("CARGO"))
        .args(["build", "--locked", "--quiet", "--package=sensor-ebpf", "--bin=pathwatch-ebpf", "--release"])
        .args(["--target=bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
        .arg(&target)
        // A stable compiler builds core only with this; it must not reach the other crates.
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{arch}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf"),
        )
        .env("PATH", path_with_tools())
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // From the environment, not by env!: a copied target directory must not build the old tree.
        .current_dir(Path::new(&var("CARGO_MANIFEST_DIR")).join(".."))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the kernel side does not build; type: e2e/setup.sh build");
    fs::copy(target.join("bpfel-unknown-none/release/pathwatch-ebpf"), out.join("pathwatch-ebpf"))
        .expect("copy the kernel object");
}

/// PATH with the directory in front in which e2e/setup.sh puts bpf-linker.
fn path_with_tools() -> std::ffi::OsString {
    println!("cargo:rerun-if-env-changed=PATHWATCH_CACHE");
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("PATHWATCH_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("pathwatch")))
        .unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/pathwatch"));
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(cache.join("bin")).chain(env::split_paths(&path))).expect("PATH")
}
