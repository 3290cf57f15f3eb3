//! What others may ask of a running process: whether it lives, whether it sees, its counters, and, if they may, the state
//! of policies.
//!
//! Whoever reaches the pod's address can connect: connections are few, short, and few of one address.
mod local;

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::local::{ask, ask_to_log, serve_local};
use crate::{
    apiserver::Tokens,
    metrics::{self, Metrics},
    policy::InForce,
    status,
};

/// Most connections at a time, and of one address. The kubelet, Prometheus and the controller need one each.
const CONNECTIONS: usize = 64;
const OF_ADDRESS: usize = 8;
/// How long a connection may last.
const LIFETIME: Duration = Duration::from_secs(5);

/// How long the API server may take to tell of its policies; a sensor works without it, too.
const WAIT: Duration = Duration::from_secs(10);

/// Where to answer, and whom.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port, such as `0.0.0.0:9753`; by default nobody is answered.
    pub listen: Option<SocketAddr>,
    /// Who may ask for the state of policies, as `system:serviceaccount:NAMESPACE:NAME`; by default nobody.
    pub controller: Option<String>,
    /// Where `pathwatch status` asks: a socket that only the sensor's own user may open.
    pub socket: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: None, controller: None, socket: "/run/pathwatch/status.sock".into() }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Address(IpAddr),
    /// By the socket.
    Local,
}

/// What is served.
pub struct Served {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What has become of each policy object; None until the API server has told what there is.
    pub policies: watch::Receiver<Option<Arc<[InForce]>>>,
    /// Who may ask for that, and how to know him; None if nobody may.
    pub tokens: Option<Tokens>,
    /// When the process began.
    pub since: Instant,
    /// What it says of itself to who asks by the socket.
    pub status: Option<status::Source>,
}

/// Answers until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(listen: SocketAddr, served: Arc<Served>, stop: CancellationToken) -> anyhow::Result<()> {
    let context = || format!("cannot listen on {listen}; name another in http.listen");
    let listener = TcpListener::bind(listen).await.with_context(context)?;
    tracing::info!(%listen, "metrics and health are served");
    let mut open: VecDeque<(IpAddr, CancellationToken)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        // Out of descriptors, perhaps: that passes.
        let Ok((stream, peer)) = accepted else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.retain(|(_, over)| !over.is_cancelled());
        // Whoever is last is answered, and be it at the cost of the first, who has had his time: the kubelet's probes must
        // get through whatever others keep open, from its own address or another.
        let own = |(address, _): &(IpAddr, CancellationToken)| *address == peer.ip();
        if open.iter().filter(|other| own(other)).count() >= OF_ADDRESS {
            open.iter().find(|other| own(other)).iter().for_each(|(_, over)| over.cancel());
        } else if open.len() >= CONNECTIONS {
            open.front().iter().for_each(|(_, over)| over.cancel());
        }
        let (served, over) = (served.clone(), CancellationToken::new());
        open.push_back((peer.ip(), over.clone()));
        tokio::spawn(async move {
            // An error is the peer's: it went away, or did not speak HTTP.
            let answered = timeout(LIFETIME, connection(stream, Peer::Address(peer.ip()), served));
            if over.run_until_cancelled(answered).await.is_none() {
                tracing::debug!(%peer, "a connection has made room for another");
            }
            over.cancel();
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, served: Arc<Served>) {
    let service = service_fn(move |request| {
        let served = served.clone();
        async move { Ok::<_, Infallible>(answer(&request, peer, &served).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_buf_size(16 << 10).keep_alive(false);
    builder.serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn answer(request: &Request<Incoming>, peer: Peer, served: &Served) -> Response<Full<Bytes>> {
    if let (Peer::Local, &Method::PUT, Some(what)) =
        (peer, request.method(), request.uri().path().strip_prefix("/log/"))
    {
        return local::set_log(what);
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    match request.uri().path() {
        // Nobody is answered before the hooks are attached and the policies of files loaded.
        "/healthz" => plain(StatusCode::OK, "ok"),
        "/readyz" if served.policies.borrow().is_some() || served.since.elapsed() > WAIT => {
            plain(StatusCode::OK, "ok")
        }
        "/readyz" => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "not yet: the API server has not told of its policies")
        }
        "/metrics" => body(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(&served.metrics)),
        "/policies" => match peer {
            Peer::Address(peer) => policies(request, peer, served).await,
            Peer::Local => plain(StatusCode::NOT_FOUND, "ask for /status"),
        },
        "/status" => match (peer, &served.status) {
            (Peer::Local, Some(status)) => {
                let text = serde_json::to_string(&status.now()).unwrap_or_default();
                body(StatusCode::OK, "application/json", text)
            }
            _ => plain(StatusCode::FORBIDDEN, "only by the socket: pathwatch status"),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz, /metrics, /policies and, by the socket, /status",
        ),
    }
}

/// The state of policies, to whom it may concern: names and reasons of policies are nobody else's business.
async fn policies(request: &Request<Incoming>, peer: IpAddr, served: &Served) -> Response<Full<Bytes>> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let token = header(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    let (Some(tokens), Some(token)) = (&served.tokens, token) else {
        return plain(StatusCode::UNAUTHORIZED, "a token of the controller's service account is needed");
    };
    match tokens.admits(token, peer).await {
        Ok(true) => {}
        Ok(false) => return plain(StatusCode::FORBIDDEN, "this is not the controller's token for this purpose"),
        Err(why) => {
            return plain(StatusCode::SERVICE_UNAVAILABLE, &format!("the token cannot be checked: {why:#}"));
        }
    }
    let Some(known) = served.policies.borrow().clone() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the API server has not told of its policies yet");
    };
    let text = serde_json::to_string(&known).unwrap_or_default();
    // The same on most nodes: who has read it from one need not read it from another.
    let tag = format!("\"{:x}\"", Sha256::digest(&text));
    let known = header(IF_NONE_MATCH).is_some_and(|known| known == tag);
    let (status, text) = if known { (StatusCode::NOT_MODIFIED, String::new()) } else { (StatusCode::OK, text) };
    let mut response = body(status, "application/json", text);
    if let Ok(tag) = tag.parse() {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    body(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn body(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
