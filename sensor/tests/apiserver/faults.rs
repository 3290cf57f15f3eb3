//! An API server that answers as it should not, or seldom does: by a script, since a real one cannot be made to.
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    asking, container_id,
    pipeline::{Cgroup, Pipeline, policies_of, wait_until},
    watching,
};

/// The pod's uid; another each time, since its cgroups are the machine's.
static UID: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().to_string());

/// What to answer to one request.
enum Answer {
    /// Status line, headers and body, and then the end.
    Whole(&'static str, &'static str, String),
    /// A watch: pieces with a pause before each; then the end, or silence.
    Watch(Vec<(u64, String)>, End),
    /// Nothing: the connection is closed.
    Nothing,
}

#[derive(PartialEq)]
enum End {
    Close,
    Silence,
}

/// Answers request after request by the script, and with silence when it is at its end.
struct Scripted {
    directory: tempfile::TempDir,
    requests: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Scripted {
    fn start(script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
            "users": [{"name": "c", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        fs::write(directory.path().join("config"), config.to_string()).unwrap();
        let requests: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let noted = requests.clone();
        thread::spawn(move || {
            let mut script = script.into_iter();
            let mut silent = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
                let request = lines.next().and_then(Result::ok).unwrap_or_default();
                lines.map_while(Result::ok).find(String::is_empty);
                noted.lock().unwrap().push((Instant::now(), request));
                // A peer that has gone away has heard enough.
                let stays = answer(&mut connection, script.next()).unwrap_or(false);
                silent.extend(stays.then_some(connection));
            }
        });
        Self { directory, requests }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    fn requests(&self) -> Vec<(Instant, String)> {
        self.requests.lock().unwrap().clone()
    }
}

/// Gives the answer; true if the connection is to stay.
fn answer(to: &mut TcpStream, answer: Option<Answer>) -> std::io::Result<bool> {
    match answer.unwrap_or(Answer::Watch(Vec::new(), End::Silence)) {
        Answer::Nothing => Ok(false),
        Answer::Whole(status, headers, body) => {
            let length = body.len();
            write!(
                to,
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
            )?;
            Ok(false)
        }
        Answer::Watch(pieces, end) => {
            write!(to, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
            for (pause, piece) in pieces {
                thread::sleep(Duration::from_millis(pause));
                to.write_all(piece.as_bytes())?;
                to.flush()?;
            }
            Ok(end == End::Silence)
        }
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": *UID, "resourceVersion": "7", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": "web:1"}]},
        "status": {"phase": "Running"},
    })
}

/// A line of a watch.
fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn bookmark() -> String {
    line(
        "BOOKMARK",
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}},
        }),
    )
}

/// What a healthy server tells.
fn healthy() -> Answer {
    Answer::Watch(vec![(0, line("ADDED", &pod()) + &bookmark())], End::Silence)
}

fn error(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": reason})
}

/// Whether the pod is named in the end; and what was asked of the server.
fn named(script: Vec<Answer>) -> Vec<(Instant, String)> {
    let server = Scripted::start(script);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    let pipeline = Pipeline::start(&asking(server.kubeconfig()), "n1", policies_of(&watching(&place)), &place);
    let cgroup = Cgroup::make(&format!("/kubepods/pod{}/{}", *UID, container_id()));
    let marker = place.join("m");
    fs::write(&marker, "").unwrap();
    wait_until("the pod's name", || {
        cgroup.open(&marker);
        pipeline.of(&marker).last().is_some_and(|event| event.pod.as_ref().is_some_and(|pod| pod.name == "web"))
    });
    let above = Cgroup(cgroup.0.parent().unwrap().to_owned());
    cgroup.remove();
    above.remove();
    pipeline.finish();
    server.requests()
}

#[test]
fn a_server_without_streaming_lists_is_asked_for_lists_from_its_cache() {
    let list =
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": [pod()]});
    let requests = named(vec![
        Answer::Whole("422 Unprocessable Entity", "", error(422, "Invalid").to_string()),
        Answer::Whole("200 OK", "", list.to_string()),
        Answer::Watch(Vec::new(), End::Silence),
    ]);
    let texts: Vec<&str> = requests.iter().map(|(_, request)| request.as_str()).collect();
    assert!(texts[0].contains("sendInitialEvents=true") && texts[0].contains("spec.nodeName%3Dn1"), "{texts:#?}");
    assert!(!texts[1].contains("watch") && texts[1].contains("resourceVersion=0"), "{texts:#?}");
    assert!(texts[2].contains("watch=true") && !texts[2].contains("sendInitialEvents"), "{texts:#?}");
}

#[test]
fn whatever_goes_wrong_with_a_watch_another_is_begun() {
    let whole = line("ADDED", &pod());
    let pieces = whole.as_bytes().chunks(40).map(|piece| (30, String::from_utf8(piece.to_vec()).unwrap()));
    let slow: Vec<_> = pieces.chain([(0, bookmark())]).collect();
    let half = || vec![(0, whole[..whole.len() / 2].to_owned())];
    for (what, first) in [
        ("it closes in the middle of a line", Answer::Watch(half(), End::Close)),
        ("it is empty", Answer::Watch(Vec::new(), End::Close)),
        ("410 in the stream", Answer::Watch(vec![(0, line("ERROR", &error(410, "Expired")))], End::Close)),
        ("410 at once", Answer::Whole("410 Gone", "", error(410, "Expired").to_string())),
        ("500 in the stream", Answer::Watch(vec![(0, line("ERROR", &error(500, "InternalError")))], End::Close)),
        ("500", Answer::Whole("500 Internal Server Error", "", error(500, "InternalError").to_string())),
        ("no JSON", Answer::Watch(vec![(0, "{nonsense\n".to_owned())], End::Close)),
        ("a page of a proxy", Answer::Whole("200 OK", "", "<html>login</html>".to_owned())),
        ("an answer without an end", Answer::Whole("502 Bad Gateway", "", String::new())),
        ("no answer", Answer::Nothing),
    ] {
        let requests = named(vec![first, healthy()]);
        println!("{what}: {} requests", requests.len());
        assert!(requests.len() >= 2, "{what}: {requests:?}");
    }
    let requests = named(vec![Answer::Watch(slow, End::Silence)]);
    assert_eq!(requests.len(), 1, "a slow stream needs no other");
}

#[test]
fn a_server_that_asks_for_a_pause_gets_it() {
    let busy =
        Answer::Whole("429 Too Many Requests", "Retry-After: 3\r\n", error(429, "TooManyRequests").to_string());
    let requests = named(vec![busy, healthy()]);
    let pause = requests[1].0.duration_since(requests[0].0);
    println!("Retry-After: 3, asked again after {pause:.2?}");
    assert!(pause >= Duration::from_secs(3), "{pause:?}");
}

#[test]
fn an_object_that_cannot_be_read_as_a_whole_is_known_by_its_metadata_and_harms_no_other() {
    let mut odd = pod();
    odd["spec"] = json!({"containers": "none"});
    odd["status"] = json!(7);
    let mut other = pod();
    other["metadata"] = json!({"name": "other", "uid": "x", "resourceVersion": "8"});
    let all = line("ADDED", &odd) + &line("ADDED", &other) + &bookmark();
    assert_eq!(named(vec![Answer::Watch(vec![(0, all)], End::Silence)]).len(), 1);
}
