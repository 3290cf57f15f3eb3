//! Encryption and identity: files are read, held to each other, and watched for their successors.
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use openssl::{asn1::Asn1Time, pkey::PKey, x509::X509};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Config, oauth::TokenSource};

/// Encryption of the connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Authorities that may have signed the broker's certificate, as PEM; by default the machine's own.
    pub ca_file: Option<PathBuf>,
    /// The sensor's certificate and those between it and its authority, as PEM.
    pub certificate_file: Option<PathBuf>,
    /// Its key, as PEM.
    pub key_file: Option<PathBuf>,
    /// The key's password.
    pub key_password_file: Option<PathBuf>,
}

/// How the sensor proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Mechanism {
    /// Name and password.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Name and password, which the broker does not learn.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with another sum.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token that somebody else vouches for.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Who the sensor is to the broker. Secrets are in files, which may be replaced while it runs.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.
    pub mechanism: Mechanism,
    /// The name.
    #[serde(default)]
    pub username: Option<String>,
    /// A file with the name, instead.
    #[serde(default)]
    pub username_file: Option<PathBuf>,
    /// A file with the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// OAUTHBEARER: a file with a token that somebody keeps fresh, as the kubelet does.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// OAUTHBEARER: where tokens are issued for client credentials.
    #[serde(default)]
    pub token_endpoint: Option<String>,
    /// Authorities that may have signed the endpoint's certificate.
    #[serde(default)]
    pub token_ca_file: Option<PathBuf>,
    /// The client's name there.
    #[serde(default)]
    pub client_id: Option<String>,
    /// A file with its secret.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// What the token is asked for.
    #[serde(default)]
    pub scope: Option<String>,
}

impl Tls {
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.certificate_file, &self.key_file) {
            (None, Some(_)) => Err("ship.kafka.tls.certificate_file is missing; a key_file needs it".to_owned()),
            (Some(_), None) => Err("ship.kafka.tls.key_file is missing; a certificate_file needs it".to_owned()),
            _ => Ok(()),
        }
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca_file, &self.certificate_file, &self.key_file, &self.key_password_file].into_iter().flatten()
    }
}

impl Sasl {
    pub(super) fn check(&self, tls: bool) -> Result<(), String> {
        let name = self.mechanism.name();
        if !tls {
            return Err(
                "ship.kafka.sasl without ship.kafka.tls would send the password where others can read it; add 'tls: {}'"
                    .to_owned(),
            );
        }
        if self.mechanism == Mechanism::OauthBearer {
            return TokenSource::new(self).map(drop);
        }
        if self.username.is_none() && self.username_file.is_none() {
            return Err(format!("ship.kafka.sasl.username is missing; {name} needs it, or username_file"));
        }
        if self.password_file.is_none() {
            return Err(format!("ship.kafka.sasl.password_file is missing; {name} needs it"));
        }
        Ok(())
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.username_file, &self.password_file].into_iter().flatten()
    }
}

/// What the files hold now.
pub(super) struct Material {
    properties: Vec<(&'static str, String)>,
    /// Another whenever the files are.
    pub(super) sum: [u8; 32],
    /// When the sensor's certificate expires.
    pub(super) expires: Option<Timestamp>,
    /// Where tokens come from.
    pub(super) tokens: Option<TokenSource>,
}

impl fmt::Debug for Material {
    /// Without what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Material {
    /// Reads the files and holds them to each other.
    ///
    /// # Errors
    /// Names the file, and what is wrong with it.
    pub(super) fn read(config: &Config) -> anyhow::Result<Self> {
        let mut properties = Vec::new();
        let protocol = match (&config.tls, &config.sasl) {
            (None, None) => "PLAINTEXT",
            (Some(_), None) => "SSL",
            (None, Some(_)) => "SASL_PLAINTEXT",
            (Some(_), Some(_)) => "SASL_SSL",
        };
        properties.push(("security.protocol", protocol.to_owned()));
        let mut expires = None;
        if let Some(tls) = &config.tls {
            expires = tls_properties(tls, &mut properties)?;
        }
        let mut tokens = None;
        if let Some(sasl) = &config.sasl {
            properties.push(("sasl.mechanism", sasl.mechanism.name().to_owned()));
            if sasl.mechanism == Mechanism::OauthBearer {
                tokens = Some(TokenSource::new(sasl).map_err(anyhow::Error::msg)?);
            } else {
                let name = match (&sasl.username, &sasl.username_file) {
                    (Some(name), _) => name.clone(),
                    (None, Some(file)) => read_line(file)?,
                    (None, None) => String::new(),
                };
                properties.push(("sasl.username", name));
                if let Some(file) = &sasl.password_file {
                    properties.push(("sasl.password", read_line(file)?));
                }
            }
        }
        Ok(Self { properties, sum: sum(config)?, expires, tokens })
    }

    /// As librdkafka calls them.
    pub(super) fn properties(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.properties.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// A sum of all files, to see when one is replaced.
pub(super) fn sum(config: &Config) -> anyhow::Result<[u8; 32]> {
    let mut sum = Sha256::new();
    let files = config.tls.iter().flat_map(Tls::files).chain(config.sasl.iter().flat_map(Sasl::files));
    for file in files {
        let bytes = read(file)?;
        sum.update((bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
    }
    Ok(sum.finalize().into())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The file's text without the newline that editors add.
pub(super) fn read_line(file: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(read(file)?).ok().with_context(|| format!("{} is no text", file.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "{} is empty", file.display());
    Ok(text.to_owned())
}

/// Adds the properties of `tls`; returns when the sensor's certificate expires.
fn tls_properties(tls: &Tls, properties: &mut Vec<(&'static str, String)>) -> anyhow::Result<Option<Timestamp>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    match &tls.ca_file {
        Some(file) => {
            let found = X509::stack_from_pem(&read(file)?);
            ensure!(found.is_ok_and(|all| !all.is_empty()), "{} holds no certificate in PEM", file.display());
            properties.push(("ssl.ca.location", text(file)));
        }
        None => properties.push(("ssl.ca.location", "probe".to_owned())),
    }
    let (Some(certificate_file), Some(key_file)) = (&tls.certificate_file, &tls.key_file) else { return Ok(None) };
    let place = certificate_file.display();
    let chain = X509::stack_from_pem(&read(certificate_file)?);
    let certificate = chain.ok().and_then(|chain| chain.into_iter().next());
    let certificate = certificate.with_context(|| format!("{place} holds no certificate in PEM"))?;
    let password = tls.key_password_file.as_deref().map(read_line).transpose()?;
    let bytes = read(key_file)?;
    let key = match &password {
        Some(password) => PKey::private_key_from_pem_passphrase(&bytes, password.as_bytes()),
        // Without a password given it must not be asked for at the terminal.
        None => PKey::private_key_from_pem_callback(&bytes, |_| Ok(0)),
    };
    let Ok(key) = key else {
        bail!("{} holds no key in PEM that can be read; has it a password?", key_file.display());
    };
    ensure!(
        certificate.public_key()?.public_eq(&key),
        "the key {} does not belong to the certificate {place}",
        key_file.display()
    );
    properties.push(("ssl.certificate.location", text(certificate_file)));
    properties.push(("ssl.key.location", text(key_file)));
    properties.extend(password.map(|password| ("ssl.key.password", password)));
    let epoch = Asn1Time::from_unix(0)?;
    let lasts = epoch.diff(certificate.not_after())?;
    let seconds = i64::from(lasts.days) * 86_400 + i64::from(lasts.secs);
    Ok(Some(Timestamp::from_second(seconds)?))
}
