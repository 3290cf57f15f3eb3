//! Certificates by openssl: an authority, a broker, clients, one that has expired, one of another authority.
use std::{fs, path::Path, process::Command};

/// Makes everything in `directory`, as `NAME.pem` and `NAME.key`.
pub(crate) fn make(directory: &Path) {
    authority(directory, "ca");
    authority(directory, "other-ca");
    let server = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth";
    leaf(directory, "server", "ca", "localhost", server, 20);
    let client = "extendedKeyUsage=clientAuth";
    for (name, authority, subject, days) in [
        ("super", "ca", "super", 20),
        ("super-2", "ca", "super", 20),
        ("sensor", "ca", "sensor", 20),
        ("stranger", "other-ca", "super", 20),
        ("expired", "ca", "super", -1),
    ] {
        leaf(directory, name, authority, subject, client, days);
    }
    // Kafka's form of a key store: the key and the chain in one file.
    let [key, chain] = ["server.key", "server.pem"].map(|name| fs::read(directory.join(name)).unwrap());
    fs::write(directory.join("server.keychain.pem"), [key, chain].concat()).unwrap();
}

fn openssl(directory: &Path, arguments: &[&str]) {
    let out = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
    assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

const NEW_KEY: [&str; 6] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"];

fn authority(directory: &Path, name: &str) {
    let (subject, key, pem) = (format!("/CN={name}"), format!("{name}.key"), format!("{name}.pem"));
    let rest = [
        &subject,
        "-days",
        "30",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout",
        &key,
        "-out",
        &pem,
    ];
    openssl(directory, &[&["req", "-x509"], &NEW_KEY[..], &rest].concat());
}

fn leaf(directory: &Path, name: &str, authority: &str, subject: &str, extensions: &str, days: i32) {
    let file = |ending: &str| format!("{name}.{ending}");
    let (subject, key, csr, pem) = (format!("/CN={subject}"), file("key"), file("csr"), file("pem"));
    openssl(directory, &[&["req"], &NEW_KEY[..], &[&subject, "-keyout", &key, "-out", &csr]].concat());
    fs::write(directory.join(file("ext")), extensions).unwrap();
    let (ca, ca_key, days, ext) =
        (format!("{authority}.pem"), format!("{authority}.key"), days.to_string(), file("ext"));
    let sign = ["x509", "-req", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", &days];
    openssl(directory, &[&sign[..], &["-extfile", &ext, "-out", &pem]].concat());
}
