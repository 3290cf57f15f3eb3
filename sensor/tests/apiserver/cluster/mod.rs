//! A real API server: etcd and kube-apiserver on loopback, their data in a directory that outlives their deaths. No
//! controllers, scheduler or kubelet: what these would write, a test writes (`objects.rs`).
#![allow(dead_code, unused_imports, clippy::allow_attributes, reason = "each test takes from here what it needs")]
mod access;
mod objects;
mod pki;

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    core::{Request, params::GetParams},
};
use tokio::runtime::{self, Runtime};

pub(crate) use objects::{NewPod, controlled_by, running};

use crate::common::cache;

/// An API server needs seconds to start; more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    /// Of the API server, etcd for clients, etcd for peers.
    ports: [u16; 3],
    running: Vec<Server>,
    driver: Driver,
    client: Client,
}

/// One of the two processes.
struct Server {
    name: &'static str,
    child: Child,
}

impl Cluster {
    /// Starts a cluster of its own and waits until it answers.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports();
        pki::create(directory.path(), &format!("https://127.0.0.1:{}", ports[0]));
        let driver = Driver::new();
        let client = driver.run(client_for(directory.path().join("admin.conf")));
        let mut cluster = Self { directory, ports, running: vec![], driver, client };
        cluster.spawn();
        cluster
    }

    /// Kills both servers as a power cut would.
    pub(crate) fn kill(&mut self) {
        for server in &mut self.running {
            server.child.kill().unwrap();
        }
        for mut server in self.running.drain(..) {
            server.child.wait().unwrap();
        }
    }

    /// Kills the servers if they run, and starts them on the same ports with the same certificates; without its data,
    /// the cluster is an empty one whose resource versions begin anew.
    pub(crate) fn restart(&mut self, keep_data: bool) {
        self.kill();
        if !keep_data {
            fs::remove_dir_all(self.file("etcd")).unwrap();
        }
        self.spawn();
    }

    /// `https://host:port`.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports[0])
    }

    /// A kubeconfig of somebody who may do everything.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.file("admin.conf")
    }

    /// The client of somebody who may do everything. It outlives restarts.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Completes `future` on the cluster's own runtime. Unlike `block_on`, async tests may call it too.
    pub(crate) fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.driver.run(future)
    }

    /// Asks until `done`; `what` says for what, should it never be.
    pub(crate) fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spawn(&mut self) {
        let [port, clients, peers] = self.ports;
        let etcd = vec![
            "--name=test".to_owned(),
            format!("--data-dir={}", self.file("etcd").display()),
            format!("--listen-client-urls=http://127.0.0.1:{clients}"),
            format!("--advertise-client-urls=http://127.0.0.1:{clients}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-cluster=test=http://127.0.0.1:{peers}"),
            "--log-level=warn".to_owned(),
            // A killed process loses nothing that it has written; only a dying machine would.
            "--unsafe-no-fsync".to_owned(),
        ];
        let file = |name: &str| self.file(name).display().to_string();
        let apiserver = vec![
            format!("--etcd-servers=http://127.0.0.1:{clients}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            // A loopback address is no endpoint for the service "kubernetes"; nobody here asks for one.
            "--endpoint-reconciler-type=none".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // Nobody makes the default service accounts that this would insist on.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("accounts.key")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
        ];
        for (name, arguments) in [("etcd", etcd), ("kube-apiserver", apiserver)] {
            self.running.push(self.server(name, &arguments));
        }
        self.wait_until_ready();
    }

    fn server(&self, name: &'static str, arguments: &[String]) -> Server {
        let program = cache().join("cluster").join(name);
        let log = File::create(self.file(&format!("{name}.log"))).unwrap();
        let child = Command::new(&program)
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|why| panic!("{}: {why}; type: e2e/setup.sh cluster", program.display()));
        Server { name, child }
    }

    /// Ready is the server by its own word, and with the namespace that every cluster has.
    fn wait_until_ready(&mut self) {
        let began = Instant::now();
        loop {
            let client = self.client();
            let asked = async move {
                let readyz = Request::new("").get("readyz", &GetParams::default()).unwrap();
                client.request_text(readyz).await?;
                Api::<Namespace>::all(client).get("default").await
            };
            let answer = match self.run(async { tokio::time::timeout(Duration::from_secs(5), asked).await }) {
                Ok(Ok(_)) => return,
                Ok(Err(why)) => why.to_string(),
                Err(why) => why.to_string(),
            };
            for Server { name, child } in &mut self.running {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{name} ended: {ended:?}\n{}", tails(self.directory.path()));
            }
            assert!(
                began.elapsed() < PATIENCE,
                "not ready after {PATIENCE:?}: {answer}\n{}",
                tails(self.directory.path())
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.running {
            server.child.kill().ok();
        }
        for server in &mut self.running {
            server.child.wait().ok();
        }
    }
}

/// Drives the clients, so that tests need not be async.
struct Driver(Option<Runtime>);

impl Driver {
    fn new() -> Self {
        Self(Some(runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()))
    }

    fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.0.as_ref().unwrap().spawn(async move { sender.send(future.await) });
        receiver.recv().unwrap_or_else(|_| panic!("the future panicked, see above"))
    }
}

impl Drop for Driver {
    /// Waiting for its end, as the runtime's own drop does, is not allowed in an async test.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A client of whoever the kubeconfig names.
async fn client_for(kubeconfig: PathBuf) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The end of both logs.
fn tails(directory: &Path) -> String {
    let tail = |name: &str| {
        let log = fs::read(directory.join(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        format!("--- the end of {name}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
    };
    format!("{}\n{}", tail("etcd.log"), tail("kube-apiserver.log"))
}

/// Three ports below those that the kernel gives to outgoing connections: while a server is dead, a connection could
/// take its port, and a client that tries again and again could even connect to itself.
fn free_ports() -> [u16; 3] {
    let mut listeners = vec![];
    while listeners.len() < 3 {
        listeners.extend(TcpListener::bind(("127.0.0.1", fastrand::u16(10_000..32_768))));
    }
    [0, 1, 2].map(|n: usize| listeners[n].local_addr().unwrap().port())
}
