//! Encryption, identity and rights at a real broker, and their change under way.
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use crate::{
    TOPIC,
    broker::{AUDIENCE, Broker},
    shipper::{Place, health, paths},
};

fn started() -> Broker {
    let mut broker = Broker::secure();
    broker.start();
    broker.create_topic(TOPIC, 1);
    broker
}

/// The settings of TLS with the certificate and key of `name`.
pub(crate) fn tls(broker: &Broker, ca: &str, name: &str) -> String {
    let file = |name: String| broker.file(&format!("certs/{name}")).display().to_string();
    let [ca, certificate, key] = [format!("{ca}.pem"), format!("{name}.pem"), format!("{name}.key")].map(file);
    format!("{{ca_file: {ca}, certificate_file: {certificate}, key_file: {key}}}")
}

fn only_ca(broker: &Broker) -> String {
    format!("{{ca_file: {}}}", broker.file("certs/ca.pem").display())
}

/// The password that the broker has for PLAIN (`broker/mod.rs`). It stands nowhere else.
const PASSWORD: &str = "c0rrect-h0rse";
/// A client's, which is in the arguments of the processes that are fed, too.
const SECRET: &str = "hunter2";

/// Everything that one feed must bring, and a log of the chattiest level in which none of `secrets` is.
fn delivers(broker: &Broker, place: Place, seen: &mut u64, secrets: &[&str]) {
    let place = place.set("LOG__LEVEL", "trace");
    let mut shipper = place.start();
    shipper.feed(*seen..*seen + 10);
    *seen += 10;
    let log = shipper.finish();
    let wanted = usize::try_from(*seen).unwrap();
    assert_eq!(paths(&broker.consume(TOPIC)).len(), wanted);
    assert!(log.contains("\"TRACE\""), "{log}");
    for secret in secrets.iter().copied().chain([SECRET, "PRIVATE KEY"]) {
        for form in [secret.to_owned(), BASE64_STANDARD.encode(secret), format!("{:?}", secret.as_bytes())] {
            let found = log.lines().find(|line| line.contains(&form));
            assert!(found.is_none(), "{found:?}");
        }
    }
}

#[test]
fn every_mechanism_delivers() {
    let broker = started();
    [256, 512].into_iter().for_each(|sum| broker.set_password(sum, PASSWORD));
    let mut seen = 0;
    let mutual = Place::new(&broker.tls_address()).set("SHIP__KAFKA__TLS", &tls(&broker, "ca", "super"));
    delivers(&broker, mutual, &mut seen, &[]);
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let place = Place::new(&broker.sasl_address()).set("SHIP__KAFKA__TLS", &only_ca(&broker));
        fs::write(place.path("password"), format!("{PASSWORD}\n")).unwrap();
        let password = place.path("password").display().to_string();
        let sasl = format!("{{mechanism: {mechanism}, username: super, password_file: {password}}}");
        // PLAIN sends name and password together.
        delivers(
            &broker,
            place.set("SHIP__KAFKA__SASL", &sasl),
            &mut seen,
            &[PASSWORD, &format!("\0super\0{PASSWORD}")],
        );
    }
    let key = Signer::new(&broker);
    let place = Place::new(&broker.sasl_address()).set("SHIP__KAFKA__TLS", &only_ca(&broker));
    let token = key.token();
    fs::write(place.path("token"), &token).unwrap();
    let sasl = format!("{{mechanism: OAUTHBEARER, token_file: {}}}", place.path("token").display());
    delivers(&broker, place.set("SHIP__KAFKA__SASL", &sasl), &mut seen, &[&token]);

    let place = Place::new(&broker.sasl_address()).set("SHIP__KAFKA__TLS", &only_ca(&broker));
    fs::write(place.path("client-secret"), SECRET).unwrap();
    let endpoint = token_endpoint(token.clone());
    let secret = place.path("client-secret").display().to_string();
    let sasl = format!(
        "{{mechanism: OAUTHBEARER, token_endpoint: '{endpoint}', client_id: pathwatch, client_secret_file: {secret}, scope: kafka}}"
    );
    delivers(&broker, place.set("SHIP__KAFKA__SASL", &sasl), &mut seen, &[&token, &format!("pathwatch:{SECRET}")]);
}

#[test]
fn a_wrong_password_is_said_and_either_side_can_mend_it() {
    let broker = started();
    broker.set_password(512, "secret");
    let place = Place::new(&broker.sasl_address()).set("SHIP__KAFKA__TLS", &only_ca(&broker));
    let file = place.path("password");
    fs::write(&file, "wrong").unwrap();
    let sasl = format!("{{mechanism: SCRAM-SHA-512, username: super, password_file: {}}}", file.display());
    let place = place.set("SHIP__KAFKA__SASL", &sasl);
    let mut shipper = place.start();
    shipper.feed(0..10);
    shipper.wait_for_log("check the name and the password in ship.kafka.sasl");
    // The broker is told the password that the sensor has.
    broker.set_password(512, "wrong");
    shipper.wait_for_log("Kafka acknowledges again");
    // It is changed there, and the secret is replaced while the sensor runs.
    broker.set_password(512, "new");
    let mut other = Place::new(&broker.sasl_address()).set("SHIP__KAFKA__TLS", &only_ca(&broker));
    other = other.set("SHIP__KAFKA__SASL", &sasl);
    let mut late = other.start();
    late.feed(10..20);
    late.wait_for_log("check the name and the password in ship.kafka.sasl");
    fs::write(&file, "new").unwrap();
    let log = late.finish();
    assert!(log.contains("a certificate, key or password was replaced"), "{log}");
    let log = shipper.finish() + &log;
    assert!(!log.contains("\"wrong\"") && !log.contains("secret\""), "{log}");
    assert_eq!(paths(&broker.consume(TOPIC)).len(), 20);
}

#[test]
fn certificates_that_do_not_serve_are_said_with_the_remedy_and_their_successors_are_taken() {
    let broker = started();
    for (ca, name, wanted) in [
        ("other-ca", "super", "certificate verify failed"),
        ("ca", "stranger", "Kafka is degraded"),
        ("ca", "expired", "the sensor's certificate expires at"),
    ] {
        let place = Place::new(&broker.tls_address()).set("SHIP__KAFKA__TLS", &tls(&broker, ca, name));
        let mut shipper = place.start();
        shipper.feed(0..1);
        shipper.wait_for_log(wanted);
        shipper.wait_for_log("Kafka is degraded");
        shipper.wait_for_log("check ship.kafka.tls");
    }
    // One that is replaced on disk, first by what does not belong together.
    let place = Place::new(&broker.tls_address());
    let (certificate, key) = (place.path("c.pem"), place.path("c.key"));
    let copy = |name: &str| fs::read(broker.file(&format!("certs/{name}"))).unwrap();
    fs::write(&certificate, copy("expired.pem")).unwrap();
    fs::write(&key, copy("expired.key")).unwrap();
    let files = format!(
        "{{ca_file: {}, certificate_file: {}, key_file: {}}}",
        broker.file("certs/ca.pem").display(),
        certificate.display(),
        key.display()
    );
    let place = place.set("SHIP__KAFKA__TLS", &files);
    let mut shipper = place.start();
    shipper.feed(0..10);
    shipper.wait_for_log("Kafka is degraded");
    fs::write(&certificate, copy("super.pem")).unwrap();
    shipper.wait_for_log("does not belong to the certificate");
    fs::write(&key, copy("super.key")).unwrap();
    shipper.wait_for_log("Kafka acknowledges again");
    // A rotation without trouble loses nothing, whatever is under way.
    shipper.feed(10..5000);
    fs::write(&certificate, copy("super-2.pem")).unwrap();
    fs::write(&key, copy("super-2.key")).unwrap();
    shipper.wait_for_spooled(5000);
    let log = shipper.finish();
    let records = broker.consume(TOPIC);
    assert_eq!(paths(&records).len(), 5000, "{log}");
    assert!(!health(&records, "kafka_producer_replaced").is_empty());

    // At the start there is no other to stay with.
    for (broken, wanted) in [
        (format!("{{certificate_file: /nowhere, key_file: {}}}", key.display()), "cannot read /nowhere"),
        (tls(&broker, "ca", "super").replace("super.key", "sensor.key"), "does not belong to the certificate"),
        (format!("{{ca_file: {}}}", key.display()), "holds no certificate in PEM"),
    ] {
        let place = Place::new(&broker.tls_address()).set("SHIP__KAFKA__TLS", &broken);
        let out =
            place.command().args(["replay", "/dev/null", "--ship", "--policies", "policies"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains(wanted), "{said}");
    }
}

#[test]
fn rights_that_are_missing_are_said_and_waited_for_even_if_that_is_fatal_to_the_producer() {
    let broker = started();
    broker.create_topic("other", 1);
    let place = Place::new(&broker.tls_address()).set("SHIP__KAFKA__TLS", &tls(&broker, "ca", "sensor"));
    // On no topic at all: the idempotent producer is refused its id, which is fatal.
    let mut shipper = place.start();
    shipper.feed(0..10);
    shipper.wait_for_log("allow this user WRITE on the topic");
    broker.grant(TOPIC, true);
    shipper.wait_for_log("Kafka acknowledges again");
    // On this topic only: heals by itself.
    broker.grant("other", true);
    broker.grant(TOPIC, false);
    shipper.feed(10..20);
    let began = std::time::Instant::now();
    while shipper.log().matches("Kafka is degraded").count() < 2 {
        assert!(began.elapsed() < crate::shipper::PATIENCE, "{}", shipper.log());
        thread::sleep(std::time::Duration::from_millis(10));
    }
    broker.grant(TOPIC, true);
    let log = shipper.finish();
    assert!(log.contains("a fatal error of the producer"), "{log}");
    assert_eq!(paths(&broker.consume(TOPIC)).len(), 20);
}

/// Signs tokens, and tells the broker with which key.
struct Signer {
    directory: tempfile::TempDir,
}

fn encoded(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let out = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

impl Signer {
    fn new(broker: &Broker) -> Self {
        let directory = tempfile::tempdir().unwrap();
        openssl(directory.path(), &["genrsa", "-out", "key.pem", "2048"]);
        let modulus = openssl(directory.path(), &["rsa", "-in", "key.pem", "-noout", "-modulus"]);
        let modulus = String::from_utf8(modulus).unwrap().trim().replace("Modulus=", "");
        let bytes: Vec<u8> = (0..modulus.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&modulus[at..at + 2], 16).unwrap())
            .collect();
        let key = json!({
            "kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256", "e": "AQAB",
            "n": BASE64_URL_SAFE_NO_PAD.encode(bytes),
        });
        // The broker has read the file already, and reads it again when it meets a key that it does not know.
        fs::write(broker.file("jwks.json"), json!({"keys": [key]}).to_string()).unwrap();
        Self { directory }
    }

    fn token(&self) -> String {
        let now = jiff::Timestamp::now().as_second();
        let head = json!({"alg": "RS256", "kid": "1", "typ": "JWT"});
        let claims = json!({
            "sub": "super", "iss": "pathwatch-tests", "aud": AUDIENCE, "iat": now, "exp": now + 3600, "scope": "kafka",
        });
        let signed = format!("{}.{}", encoded(&head), encoded(&claims));
        fs::write(self.directory.path().join("signed"), &signed).unwrap();
        let signature = openssl(self.directory.path(), &["dgst", "-sha256", "-sign", "key.pem", "signed"]);
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A token endpoint on loopback that knows one client; returns its address.
fn token_endpoint(token: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/token", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !String::from_utf8_lossy(&request).contains("client_secret=hunter2") {
                match stream.read(&mut buffer) {
                    Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
                    _ => break,
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let good =
                ["grant_type=client_credentials", "client_id=pathwatch", "client_secret=hunter2", "scope=kafka"];
            let answer = if good.iter().all(|part| text.contains(part)) {
                json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600}).to_string()
            } else {
                "{}".to_owned()
            };
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}", answer.len())
                .unwrap();
        }
    });
    address
}
