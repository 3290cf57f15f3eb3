//! The socket of those who may look at this node: a file that only its owner may open.
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{LIFETIME, Peer, Served, connection, plain};
use crate::{log, notice::Notices, status::Status};

/// Most connections at a time.
const CONNECTIONS: usize = 8;
/// Most bytes that an answer may have: a thousand policies of many patterns.
const ANSWER: usize = 64 << 20;

/// Answers at `socket` until `stop`. A sensor works without it, too.
///
/// # Errors
/// None: what is in the way is told.
pub async fn serve_local(
    socket: std::path::PathBuf,
    served: Arc<Served>,
    notices: Notices,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    match listen(&socket).await {
        Ok(listener) => {
            stop.run_until_cancelled(accept(listener, served)).await;
            fs::remove_file(&socket).ok();
        }
        Err(why) => {
            let told = format!(
                "`pathwatch status` does not find this sensor: {why:#}; or name another place in http.socket"
            );
            notices.add("http", "socket_unusable", 1, told);
            stop.cancelled().await;
        }
    }
    Ok(())
}

/// A listener where nobody else listens.
async fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let place = socket.display();
    if let Some(directory) = socket.parent().filter(|directory| fs::metadata(directory).is_err()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
    }
    match fs::symlink_metadata(socket) {
        // Left behind by one that was killed.
        Ok(found) if found.file_type().is_socket() => {
            ensure!(
                UnixStream::connect(socket).await.is_err(),
                "another sensor listens at {place}; stop it, since every alert may come twice"
            );
            fs::remove_file(socket).with_context(|| format!("cannot remove {place}"))?;
        }
        Ok(_) => bail!("{place} is no socket"),
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen at {place}"))?;
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(socket, mode).with_context(|| format!("cannot protect {place}"))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, served: Arc<Served>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = free.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let served = served.clone();
        tokio::spawn(async move {
            timeout(LIFETIME, connection(stream, Peer::Local, served)).await.ok();
            drop(place);
        });
    }
}

/// Changes the log's level as `LEVEL/SECONDS` says, where zero seconds are for good.
pub(super) fn set_log(what: &str) -> Response<Full<Bytes>> {
    let (level, seconds) = what.rsplit_once('/').unwrap_or((what, "0"));
    let Ok(seconds) = seconds.parse::<u32>() else {
        return plain(StatusCode::BAD_REQUEST, "it takes /log/LEVEL/SECONDS");
    };
    let time = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    match log::set(level, time) {
        Ok(before) => plain(StatusCode::OK, &before),
        Err(why) => plain(StatusCode::BAD_REQUEST, &why),
    }
}

/// Asks the sensor that listens at `socket` for its status.
///
/// # Errors
/// When there is none, or it says something else.
pub async fn ask(socket: &Path) -> anyhow::Result<Status> {
    let text = asked(socket, Method::GET, "/status").await?;
    serde_json::from_slice(&text)
        .with_context(|| format!("what listens at {} is of another version", socket.display()))
}

/// Asks it for another level of its log, for a time unless that is zero; returns what it was.
///
/// # Errors
/// As [`ask`], and if it is no level.
pub async fn ask_to_log(socket: &Path, level: &str, seconds: u32) -> anyhow::Result<String> {
    let text = asked(socket, Method::PUT, &format!("/log/{level}/{seconds}")).await?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

async fn asked(socket: &Path, method: Method, path: &str) -> anyhow::Result<Bytes> {
    let place = socket.display();
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => {
            return Err(why).with_context(|| {
                format!("the sensor at {place} cannot be asked; only its own user may, so use sudo")
            });
        }
        Err(why) => bail!(
            "no sensor runs here: {place}: {why}; in a cluster, ask in its pod: kubectl exec -t ds/pathwatch -- /pathwatch status"
        ),
    };
    let request = Request::builder().method(method).uri(path).header("host", "sensor").body(Empty::<Bytes>::new());
    let answered = timeout(LIFETIME, answer(stream, request?)).await;
    answered.map_err(io::Error::from).with_context(|| format!("the sensor at {place} does not answer"))?
}

async fn answer(stream: UnixStream, request: Request<Empty<Bytes>>) -> anyhow::Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let text = Limited::new(response.into_body(), ANSWER).collect().await;
    let text = text.map_err(|why| anyhow::anyhow!("its answer breaks off: {why}"))?.to_bytes();
    driving.abort();
    ensure!(status == StatusCode::OK, "{}", String::from_utf8_lossy(&text).trim());
    Ok(text)
}
