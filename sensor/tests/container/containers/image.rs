//! An image without a registry, and a bundle without containerd.
use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(super) const NAME: &str = "localhost/one-open:1";
pub(super) const PROGRAM: &str = "/one-open";

/// Makes `rootfs` below `directory`, the program and empty `files` in it, and `image.tar`, an OCI image of them.
pub(super) fn make(directory: &Path, files: &[String]) {
    let [rootfs, layout] = ["rootfs", "image"].map(|name| directory.join(name));
    fs::create_dir(&rootfs).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container/containers/one_open.c");
    succeed(Command::new("cc").args(["-O1", "-static", "-o"]).arg(inside(&rootfs, PROGRAM)).arg(source));
    for file in files {
        let path = inside(&rootfs, file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(layout.join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    archive(&rootfs, &directory.join("layer.tar"));
    let layer = blob("layer.v1.tar", &fs::read(directory.join("layer.tar")).unwrap());
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    // An uncompressed layer goes by the same digest inside and outside.
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Entrypoint": [PROGRAM]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
        "layers": [layer],
    });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    archive(&layout, &directory.join("image.tar"));
}

/// Makes a bundle for runc whose program opens `file`.
pub(super) fn make_bundle(bundle: &Path, rootfs: &Path, cgroup: &str, file: &str) {
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"].iter().map(|kind| json!({"type": kind})).collect();
    // Many containers share the root; a /dev of their own keeps them from making devices in it.
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": rootfs},
        "process": {"args": [PROGRAM, file], "cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {"cgroupsPath": cgroup, "namespaces": namespaces},
    });
    fs::create_dir_all(bundle).unwrap();
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}

/// The place of an absolute path of the container.
fn inside(rootfs: &Path, path: &str) -> std::path::PathBuf {
    rootfs.join(path.strip_prefix('/').unwrap())
}

fn archive(directory: &Path, tar: &Path) {
    succeed(
        Command::new("tar").args(["--owner=0", "--group=0", "-cf"]).arg(tar).arg("-C").arg(directory).arg("."),
    );
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
