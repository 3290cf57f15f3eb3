//! Tokens for OAUTHBEARER: from a file that somebody keeps fresh, or for client credentials.
use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rdkafka::client::OAuthToken;
use serde::Deserialize;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::security::{Sasl, read_line};

/// How long a token is taken to last that does not say.
const UNKNOWN_LIFE: Duration = Duration::from_secs(300);
/// Longest wait for the endpoint.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer of it.
const ANSWER_BYTES: u64 = 64 << 10;

/// Where tokens come from.
#[derive(Clone, Debug)]
pub(super) enum TokenSource {
    /// A file.
    File(PathBuf),
    /// RFC 6749, 4.4: client credentials.
    Endpoint {
        url: String,
        ca_file: Option<PathBuf>,
        client_id: String,
        secret_file: PathBuf,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: Option<u64>,
}

/// What a token says of itself.
#[derive(Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<i64>,
}

impl TokenSource {
    pub(super) fn new(sasl: &Sasl) -> Result<Self, String> {
        match (&sasl.token_file, &sasl.token_endpoint, &sasl.client_id, &sasl.client_secret_file) {
            (Some(file), None, _, _) => Ok(Self::File(file.clone())),
            (None, Some(url), Some(client_id), Some(secret_file)) => {
                let is_near = ["http://127.0.0.1:", "http://localhost:"].iter().any(|near| url.starts_with(near));
                if !url.starts_with("https://") && !is_near {
                    return Err(
                        "ship.kafka.sasl.token_endpoint must begin with https://, since the secret goes there"
                            .to_owned(),
                    );
                }
                if url.contains(['@', '?', '#']) {
                    return Err("ship.kafka.sasl.token_endpoint must be an address only, without user, '?' or '#'; the secret belongs into client_secret_file".to_owned());
                }
                Ok(Self::Endpoint {
                    url: url.clone(),
                    ca_file: sasl.token_ca_file.clone(),
                    client_id: client_id.clone(),
                    secret_file: secret_file.clone(),
                    scope: sasl.scope.clone(),
                })
            }
            (Some(_), Some(_), _, _) => {
                Err("ship.kafka.sasl has token_file and token_endpoint; leave one of them out".to_owned())
            }
            _ => Err("ship.kafka.sasl needs token_file, or token_endpoint with client_id and client_secret_file"
                .to_owned()),
        }
    }

    /// A token for now. Blocks.
    ///
    /// # Errors
    /// Names the file or endpoint.
    pub(super) fn token(&self) -> anyhow::Result<OAuthToken> {
        let (token, life) = match self {
            Self::File(file) => (read_line(file)?, None),
            Self::Endpoint { url, ca_file, client_id, secret_file, scope } => {
                let roots = match ca_file {
                    Some(file) => {
                        let pem =
                            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                        let certificate = Certificate::from_pem(&pem);
                        let certificate =
                            certificate.with_context(|| format!("{} holds no certificate", file.display()))?;
                        RootCerts::Specific(Arc::new(vec![certificate.to_owned()]))
                    }
                    None => RootCerts::PlatformVerifier,
                };
                let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
                // What a proxy would read is the client's secret.
                let agent = ureq::Agent::config_builder().tls_config(tls).proxy(None).max_redirects(0);
                let agent = agent.timeout_global(Some(TIMEOUT)).build().new_agent();
                let secret = read_line(secret_file)?;
                let mut form = vec![
                    ("grant_type", "client_credentials"),
                    ("client_id", client_id),
                    ("client_secret", &secret),
                ];
                form.extend(scope.as_deref().map(|scope| ("scope", scope)));
                let answer = agent.post(url).send_form(form);
                let mut answer = answer.with_context(|| format!("no token from {url}"))?;
                let text = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_string()?;
                let answer: Answer = serde_json::from_str(&text)
                    .ok()
                    .with_context(|| format!("{url} answers without access_token"))?;
                (answer.access_token, answer.expires_in)
            }
        };
        ensure!(!token.contains(char::is_whitespace), "the token has spaces in it");
        let claims = claims(&token);
        let now = Timestamp::now().as_millisecond();
        let life = life.map_or(UNKNOWN_LIFE, Duration::from_secs);
        let until =
            claims.exp.map_or(now + i64::try_from(life.as_millis()).unwrap_or(0), |exp| exp.saturating_mul(1000));
        ensure!(until > now, "the token has expired");
        Ok(OAuthToken { token, principal_name: claims.sub.unwrap_or_default(), lifetime_ms: until })
    }
}

/// The claims of a JSON Web Token; nothing of any other.
fn claims(token: &str) -> Claims {
    let body = token.split('.').nth(1).and_then(|body| BASE64_URL_SAFE_NO_PAD.decode(body).ok());
    body.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default()
}
