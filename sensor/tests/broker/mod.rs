//! A real broker: Apache Kafka in KRaft mode as a plain java process, on loopback, its data in a directory that
//! outlives its deaths.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
mod certs;

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::{common::cache, schema};

/// A broker needs seconds to start, and a minute after a death under load.
const PATIENCE: Duration = Duration::from_secs(120);

/// What OAUTHBEARER tokens must be signed for.
pub(crate) const AUDIENCE: &str = "kafka";

pub(crate) struct Broker {
    directory: tempfile::TempDir,
    /// PLAINTEXT, the controller's, SSL, SASL_SSL.
    ports: [u16; 4],
    secure: bool,
    running: Option<Child>,
}

/// A record as an independent consumer, kcat, read it.
#[derive(Clone, Debug)]
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

    pub(crate) fn kind(&self) -> &str {
        self.header("ce_type").trim_start_matches("dev.pathwatch.").trim_end_matches(".v1")
    }
}

impl Broker {
    /// Formats storage for a broker that trusts everybody; it is not started yet.
    pub(crate) fn new() -> Self {
        Self::make(false, None)
    }

    /// The same of one with TLS, SASL and rights: `super` may do everything, `sensor` what it is granted, and so may who
    /// comes in plain text.
    pub(crate) fn secure() -> Self {
        Self::make(true, None)
    }

    /// The same with its data in `data`.
    pub(crate) fn with_data(data: &Path) -> Self {
        Self::make(false, Some(data))
    }

    fn make(secure: bool, data: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // All at once, so that they differ; the kernel does not hand a port out again soon.
        let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = [0, 1, 2, 3].map(|n| listeners[n].local_addr().unwrap().port());
        let data = data.map_or_else(|| directory.path().join("data"), Path::to_path_buf);
        let mut properties = properties(ports, &data);
        if secure {
            fs::create_dir(directory.path().join("certs")).unwrap();
            certs::make(&directory.path().join("certs"));
            fs::write(directory.path().join("jwks.json"), "{\"keys\": []}").unwrap();
            properties += &security(ports, directory.path());
        }
        fs::write(directory.path().join("server.properties"), properties).unwrap();
        let broker = Self { directory, ports, secure, running: None };
        let format = broker
            .java("kafka.tools.StorageTool")
            .args(["format", "--standalone", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"])
            .arg(broker.file("server.properties"))
            .output()
            .unwrap();
        assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr));
        broker
    }

    /// A file of the broker's: `certs/ca.pem`, `jwks.json`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
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
        java.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        java.arg(format!(
            "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{}",
            self.file("jwks.json").display()
        ));
        java.arg("-cp").arg(format!("{}/*", libraries.display())).arg(class).stdin(Stdio::null());
        java
    }

    /// `host:port`, in plain text.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// The same with TLS, where the client must have a certificate.
    pub(crate) fn tls_address(&self) -> String {
        format!("localhost:{}", self.ports[2])
    }

    /// The same with TLS and SASL.
    pub(crate) fn sasl_address(&self) -> String {
        format!("localhost:{}", self.ports[3])
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

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.running.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.running.take().unwrap().wait().unwrap();
    }

    /// Lets it hang: its connections stay, and nothing is answered.
    pub(crate) fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().id()
    }

    /// The broker's time of every record, in milliseconds since 1970, and the record.
    pub(crate) fn times(&self, topic: &str) -> Vec<(i64, Value)> {
        let out = Command::new("kcat")
            .args(["-C", "-q", "-e", "-o", "beginning", "-b", &self.address(), "-t", topic, "-f", "%T\\x1f%s\\n"])
            .output()
            .unwrap();
        let record = |line: &str| {
            let (time, document) = line.split_once('\x1f').unwrap();
            (time.parse().unwrap(), serde_json::from_str(document).unwrap())
        };
        String::from_utf8(out.stdout).unwrap().lines().map(record).collect()
    }

    /// Whether it still runs.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.running.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    fn admin<T>(&self, act: impl AsyncFnOnce(AdminClient<DefaultClientContext>, AdminOptions) -> T) -> T {
        let client = ClientConfig::new().set("bootstrap.servers", self.address()).create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        tokio::runtime::Runtime::new().unwrap().block_on(act(client, options))
    }

    /// Makes a topic.
    pub(crate) fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]);
    }

    /// Makes a topic with these settings.
    pub(crate) fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let made = self.admin(async |admin, options| admin.create_topics([&new], &options).await);
        made.unwrap().remove(0).unwrap();
    }

    /// Deletes a topic.
    pub(crate) fn delete_topic(&self, topic: &str) {
        let gone = self.admin(async |admin, options| admin.delete_topics(&[topic], &options).await);
        gone.unwrap().remove(0).unwrap();
    }

    /// Changes a topic's settings; those that are not named get their defaults.
    pub(crate) fn alter_topic(&self, topic: &str, settings: &[(&str, &str)]) {
        let alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let alter = settings.iter().fold(alter, |alter, (name, value)| alter.set(name, value));
        let done = self.admin(async |admin, options| admin.alter_configs([&alter], &options).await);
        done.unwrap().remove(0).unwrap();
    }

    fn tool(&self, class: &str, arguments: &[&str]) {
        let address = self.address();
        let done = self.java(class).args(["--bootstrap-server", &address]).args(arguments).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&said));
    }

    /// Lets `sensor` write to the topic, or no longer.
    pub(crate) fn grant(&self, topic: &str, granted: bool) {
        let act: &[&str] = if granted { &["--add"] } else { &["--remove", "--force"] };
        let what = ["--allow-principal", "User:sensor", "--producer", "--topic", topic];
        self.tool("org.apache.kafka.tools.AclCommand", &[act, &what[..]].concat());
    }

    /// Sets the password of `super` for SCRAM with SHA-256 or SHA-512.
    pub(crate) fn set_password(&self, sum: u32, password: &str) {
        let config = format!("SCRAM-SHA-{sum}=[password={password}]");
        let alter = ["--alter", "--add-config", &config, "--entity-type", "users", "--entity-name", "super"];
        self.tool("kafka.admin.ConfigCommand", &alter);
    }

    /// Everything that the topic holds now, by kcat: a consumer that shares no code with the sensor's Rust side. Every
    /// record is held to the schema.
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
            let document = serde_json::from_str(document).unwrap();
            schema::check(&document);
            Consumed {
                key: key.to_owned(),
                headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                document,
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

fn properties(ports: [u16; 4], data: &Path) -> String {
    let [plain, controller, ..] = ports;
    format!(
        "process.roles=broker,controller\nnode.id=1\n\
         controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{plain}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
         log.dirs={}\nauto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\nlog.cleaner.dedupe.buffer.size=4194304\n",
        data.display()
    )
}

/// Later lines win over earlier ones.
fn security(ports: [u16; 4], directory: &Path) -> String {
    let [plain, controller, ssl, sasl] = ports;
    let place = directory.display();
    let mut text = format!(
        "listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SSL://127.0.0.1:{ssl},SASL_SSL://127.0.0.1:{sasl}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SSL://localhost:{ssl},SASL_SSL://localhost:{sasl}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL\n\
         ssl.keystore.type=PEM\nssl.keystore.location={place}/certs/server.keychain.pem\n\
         ssl.truststore.type=PEM\nssl.truststore.location={place}/certs/ca.pem\n\
         listener.name.ssl.ssl.client.auth=required\n\
         ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/,DEFAULT\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS;User:super\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n"
    );
    let login = "org.apache.kafka.common.security";
    for (mechanism, module) in [
        ("plain", "plain.PlainLoginModule required user_super=\"c0rrect-h0rse\""),
        ("scram-sha-256", "scram.ScramLoginModule required"),
        ("scram-sha-512", "scram.ScramLoginModule required"),
        ("oauthbearer", "oauthbearer.OAuthBearerLoginModule required"),
    ] {
        writeln!(text, "listener.name.sasl_ssl.{mechanism}.sasl.jaas.config={login}.{module};").unwrap();
    }
    let prefix = "listener.name.sasl_ssl.oauthbearer";
    writeln!(
        text,
        "{prefix}.sasl.server.callback.handler.class={login}.oauthbearer.OAuthBearerValidatorCallbackHandler\n\
         {prefix}.sasl.oauthbearer.jwks.endpoint.url=file://{place}/jwks.json\n\
         {prefix}.sasl.oauthbearer.expected.audience={AUDIENCE}\n\
         {prefix}.sasl.oauthbearer.expected.issuer=pathwatch-tests"
    )
    .unwrap();
    text
}
