//! A real broker: Apache Kafka in KRaft mode as a plain java process, on loopback, its data in a directory that
//! outlives its deaths.
use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::cache;

/// A broker needs seconds to start, and a minute after a death under load.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Broker {
    directory: tempfile::TempDir,
    port: u16,
    running: Option<Child>,
}

/// A record as an independent consumer, kcat, read it.
#[derive(Debug)]
pub(crate) struct Consumed {
    pub(crate) key: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) document: Value,
}

impl Consumed {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        &found.unwrap_or_else(|| panic!("no header {name} in {:?}", self.headers)).1
    }
}

impl Broker {
    /// Formats storage for a broker; it is not started yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Both at once, so that they differ; the kernel does not hand a port out again soon.
        let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let [port, controller] = [0, 1].map(|n| listeners[n].local_addr().unwrap().port());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}/data\nauto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\nlog.cleaner.dedupe.buffer.size=4194304\n",
            directory.path().display()
        );
        fs::write(directory.path().join("server.properties"), properties).unwrap();
        let broker = Self { directory, port, running: None };
        let format = broker
            .java("kafka.tools.StorageTool")
            .args(["format", "--standalone", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"])
            .arg(broker.file("server.properties"))
            .output()
            .unwrap();
        assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr));
        broker
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn java(&self, class: &str) -> Command {
        let libraries = cache().join("kafka-4.3.1");
        assert!(
            libraries.join(".complete").is_file(),
            "no Kafka in {}; type: e2e/setup.sh kafka",
            libraries.display()
        );
        let mut java = Command::new("java");
        java.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        java.arg(format!("{}/*", libraries.display())).arg(class).stdin(Stdio::null());
        java
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = File::create(self.file("log")).unwrap();
        let mut command = self.java("kafka.Kafka");
        command.arg(self.file("server.properties")).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        loop {
            let log = fs::read_to_string(self.file("log")).unwrap();
            if log.contains("Kafka Server started") && TcpStream::connect(self.address()).is_ok() {
                break;
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{ended:?}\n{log}");
            thread::sleep(Duration::from_millis(50));
        }
        self.running = Some(child);
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Makes a topic and waits until the broker leads it.
    pub(crate) fn create_topic(&self, topic: &str, partitions: u32) {
        let made = self
            .java("org.apache.kafka.tools.TopicCommand")
            .args(["--bootstrap-server", &self.address(), "--create", "--topic", topic, "--partitions"])
            .arg(partitions.to_string())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    }

    /// Everything that the topic holds now, by kcat: a consumer that shares no code with the sensor's Rust side.
    pub(crate) fn consume(&self, topic: &str) -> Vec<Consumed> {
        const FORMAT: &str = "%k\\x1f%h\\x1f%s\\n";
        let out = Command::new("kcat")
            .args(["-C", "-q", "-e", "-o", "beginning", "-b", &self.address(), "-t", topic, "-f", FORMAT])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        let record = |line: &str| {
            let [key, headers, document] = line.split('\x1f').collect::<Vec<_>>().try_into().unwrap();
            let headers = headers.split(',').map(|header| header.split_once('=').unwrap());
            Consumed {
                key: key.to_owned(),
                headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                document: serde_json::from_str(document).unwrap(),
            }
        };
        text.lines().map(record).collect()
    }

    /// Consumes until `enough` says so.
    pub(crate) fn consume_until(&self, topic: &str, enough: impl Fn(&[Consumed]) -> bool) -> Vec<Consumed> {
        let began = Instant::now();
        loop {
            let records = self.consume(topic);
            if enough(&records) {
                return records;
            }
            assert!(began.elapsed() < PATIENCE, "only {} records after {PATIENCE:?}", records.len());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
