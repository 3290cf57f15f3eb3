//! Keys, certificates and kubeconfigs of a cluster, by the openssl command.
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Makes in `directory`: ca, server and admin, each `.crt` and `.key`; accounts.key, which signs service accounts'
/// tokens; admin.conf.
pub(super) fn create(directory: &Path, url: &str) {
    let certificate = |name: &str, subject: &str, extensions: &[&str]| {
        let mut arguments: Vec<String> = ["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt"]
            .iter()
            .map(ToString::to_string)
            .collect();
        arguments.extend(["ec_paramgen_curve:prime256v1", "-subj", subject].map(str::to_owned));
        arguments.extend(["-keyout".to_owned(), format!("{name}.key"), "-out".to_owned(), format!("{name}.crt")]);
        if name != "ca" {
            arguments.extend(["-CA", "ca.crt", "-CAkey", "ca.key"].map(str::to_owned));
        }
        for extension in extensions {
            arguments.extend(["-addext".to_owned(), (*extension).to_owned()]);
        }
        openssl(directory, &arguments);
    };
    certificate("ca", "/CN=test-ca", &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"]);
    let leaf = "basicConstraints=critical,CA:FALSE";
    certificate(
        "server",
        "/CN=kube-apiserver",
        &[leaf, "extendedKeyUsage=serverAuth", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
    );
    // Members of this group may do everything, past RBAC.
    certificate("admin", "/O=system:masters/CN=admin", &[leaf, "extendedKeyUsage=clientAuth"]);
    let key = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key"];
    openssl(directory, &key.map(str::to_owned));
    let file = |name: &str| directory.join(name).display().to_string();
    let user =
        format!(r#"{{"client-certificate": "{}", "client-key": "{}"}}"#, file("admin.crt"), file("admin.key"));
    write_kubeconfig(directory, url, "admin.conf", &user);
}

/// Writes a kubeconfig with that user, given as a YAML mapping.
pub(super) fn write_kubeconfig(directory: &Path, url: &str, name: &str, user: &str) {
    let authority = directory.join("ca.crt");
    let text = format!(
        r#"apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "{url}", certificate-authority: "{}"}}}}]
users: [{{name: me, user: {user}}}]
contexts: [{{name: test, context: {{cluster: test, user: me}}}}]
current-context: test
"#,
        authority.display()
    );
    fs::write(directory.join(name), text).unwrap();
}

fn openssl(directory: &Path, arguments: &[String]) {
    let out = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|why| panic!("openssl: {why}; type: e2e/setup.sh cluster"));
    assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}
