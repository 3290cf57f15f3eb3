//! Nothing acknowledged is lost, and every loss is a record: hundreds of rounds of faults, and then the topic itself is asked.
//!
//! A round feeds opens to the real binary while something happens to it, to its disk or to its broker. What the topic held
//! before it is deleted, and what it holds at the end, is the archive; everything is proved from that alone.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::Value;

use crate::{
    TOPIC,
    broker::{Broker, Consumed},
    shipper::{Place, Shipper, mount, open, spooled, unmount},
};

/// Faults, by the names that the summary has for them.
const FAULTS: [&str; 8] = [
    "nothing",
    "sensor killed",
    "broker killed",
    "broker restarted",
    "disk full",
    "topic deleted and made anew",
    "right withdrawn and given back",
    "record too large",
];

/// One run.
struct Run {
    broker: Broker,
    place: Place,
    random: fastrand::Rng,
    shipper: Option<Shipper>,
    archive: Vec<Consumed>,
    happened: BTreeMap<&'static str, u32>,
    /// Opens that were fed.
    fed: u64,
    /// Of those, what was fed before the present sensor started, and what was fed to sensors that were killed.
    fed_before: u64,
    at_risk: u64,
    /// The highest number that a sensor said was on the disk.
    spooled: u64,
    /// Distinguishes paths.
    serial: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut broker = Broker::secure();
        broker.start();
        broker.grant(TOPIC, true);
        let file = |name: &str| broker.file(&format!("certs/{name}")).display().to_string();
        let [ca, certificate, key] = ["ca.pem", "sensor.pem", "sensor.key"].map(file);
        let place = Place::new(&broker.tls_address())
            .set(
                "SHIP__KAFKA__TLS",
                &format!("{{ca_file: {ca}, certificate_file: {certificate}, key_file: {key}}}"),
            )
            .set("SHIP__KAFKA__COMPRESSION", "none")
            .set("SHIP__KAFKA__STALL", "2s")
            .set(
                "SHIP__KAFKA__PROPERTIES",
                "{topic.metadata.propagation.max.ms: '500', reconnect.backoff.max.ms: '500'}",
            )
            .set("SHIP__HEARTBEAT", "1s")
            .set("SHIP__SPOOL__MAX_BYTES", "2MiB")
            .set("SHIP__STORM__WINDOW", "2s")
            .set("SHIP__STORM__POLICY", "{per_second: 40, burst: 80}")
            .set("SHIP__STORM__NODE", "{per_second: 60, burst: 150}");
        // What is too large must get as far as the broker, whatever the limits.
        let large = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: large}\n\
             spec: {subjects: all, severity: critical, rateLimit: {perSecond: 1000, burst: 1000}, paths: ['/large/**']}\n";
        fs::write(place.path("policies/large.yaml"), large).unwrap();
        mount(&place.state(), "24m");
        let run = Self {
            broker,
            place,
            random: fastrand::Rng::with_seed(seed),
            shipper: None,
            archive: Vec::new(),
            happened: FAULTS.iter().map(|fault| (*fault, 0)).collect(),
            fed: 0,
            fed_before: 0,
            at_risk: 0,
            spooled: 0,
            serial: 0,
        };
        run.create_topic();
        run
    }

    fn create_topic(&self) {
        // A record of an ordinary open has 2.6 kB.
        self.broker.create_topic_with(TOPIC, 2, &[("max.message.bytes", "16000")]);
    }

    fn shipper(&mut self) -> &mut Shipper {
        if self.shipper.is_none() {
            self.fed_before = self.fed;
        }
        let place = &self.place;
        self.shipper.get_or_insert_with(|| place.start())
    }

    /// Feeds some opens: new ones, and repeats of the last.
    fn feed(&mut self) {
        for _ in 0..self.random.u32(20..120) {
            if self.random.u8(0..3) > 0 {
                self.serial += 1;
            }
            let event = open(self.fed, &format!("/watched/{}", self.serial));
            if self.shipper().write(&event) {
                self.fed += 1;
            }
        }
    }

    /// Everything that the sensor has is delivered, and what the topic holds is put away.
    fn archive(&mut self) {
        self.finish();
        self.archive.extend(self.broker.consume(TOPIC));
    }

    fn finish(&mut self) {
        if self.shipper.is_none() {
            self.shipper();
        }
        let shipper = self.shipper.take().unwrap();
        let log = shipper.finish();
        self.note_spooled(&log);
    }

    fn note_spooled(&mut self, log: &str) {
        let spooled = spooled(log);
        assert!(spooled == 0 || spooled >= self.spooled, "the spool went back from {} to {spooled}", self.spooled);
        self.spooled = self.spooled.max(spooled);
    }

    fn round(&mut self, fault: &'static str) {
        *self.happened.get_mut(fault).unwrap() += 1;
        self.feed();
        match fault {
            "nothing" => {}
            "sensor killed" => self.kill_sensor(),
            "broker killed" => {
                self.broker.kill();
                self.feed();
                // Whoever comes back first.
                if self.random.bool() {
                    self.kill_sensor();
                }
                self.broker.start();
            }
            "broker restarted" => {
                self.broker.stop();
                self.feed();
                self.broker.start();
            }
            "disk full" => self.fill_disk(),
            "topic deleted and made anew" => {
                // A live producer could still write to what nobody reads any more; faults.rs has that case.
                self.archive();
                self.broker.delete_topic(TOPIC);
                self.feed();
                let pause = Duration::from_millis(self.random.u64(0..1500));
                std::thread::sleep(pause);
                self.create_topic();
            }
            "right withdrawn and given back" => {
                self.broker.grant(TOPIC, false);
                self.feed();
                self.broker.grant(TOPIC, true);
            }
            "record too large" => {
                let long: String = std::iter::repeat_n("0123456789", 350).collect();
                let event = open(self.fed, &format!("/large/{}/{long}", self.fed));
                if self.shipper().write(&event) {
                    self.fed += 1;
                }
            }
            other => unreachable!("{other}"),
        }
        self.feed();
    }

    fn kill_sensor(&mut self) {
        std::thread::sleep(Duration::from_millis(self.random.u64(0..120)));
        if let Some(shipper) = self.shipper.take() {
            self.at_risk += self.fed - self.fed_before;
            let log = shipper.kill();
            self.note_spooled(&log);
        }
    }

    fn fill_disk(&mut self) {
        let filler = self.place.state().join("filler");
        let mut file = File::create(&filler).unwrap();
        // In pieces, so that the last fits as well as it can.
        for size in [1 << 20, 64 << 10, 4 << 10] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        self.feed();
        std::thread::sleep(Duration::from_millis(self.random.u64(0..1500)));
        self.feed();
        fs::remove_file(&filler).unwrap();
    }

    fn audit(&self, file: &str, records: &[Value]) -> (bool, Value) {
        let path = self.place.path(file);
        write_lines(&path, records);
        let out = self.place.command().arg("audit").arg(&path).output().unwrap();
        (out.status.success(), serde_json::from_slice(&out.stdout).unwrap())
    }
}

fn write_lines(path: &PathBuf, records: &[Value]) {
    let mut out = File::create(path).unwrap();
    records.iter().for_each(|record| writeln!(out, "{record}").unwrap());
}

/// The sums, added up here and not by the product.
#[derive(Debug, Default)]
struct Sums {
    fired: u64,
    shipped: u64,
    suppressed: u64,
    limited: u64,
    lost: u64,
    lost_and_yet_there: u64,
    duplicates: u64,
    interrupted: u64,
}

fn add_up(records: &[Value]) -> Sums {
    let mut sums = Sums::default();
    let mut ids: BTreeMap<u64, String> = BTreeMap::new();
    let (mut alerts, mut lost) = (BTreeSet::new(), BTreeSet::new());
    for record in records {
        let (sequence, id) = (record["event"]["sequence"].as_u64().unwrap(), record["event"]["id"].to_string());
        if let Some(known) = ids.insert(sequence, id.clone()) {
            assert_eq!(known, id, "number {sequence} has two ids");
            sums.duplicates += 1;
            continue;
        }
        let own = &record["pathwatch"];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        if own.get("summary").is_some() {
            sums.suppressed += number(&own["summary"]["suppressed"]);
            sums.limited += number(&own["summary"]["limited"]);
            sums.interrupted += u64::from(own["summary"]["interrupted"] == true);
        } else if let Some(loss) = own.get("loss").filter(|loss| loss["stage"] == "ship") {
            sums.lost += if loss["reason"] == "dead_record" { 0 } else { number(&loss["count"]) };
            for range in loss["ranges"].as_array().into_iter().flatten() {
                lost.extend(number(&range["first"])..=number(&range["last"]));
            }
        } else if let Some(beat) = own.get("heartbeat") {
            sums.fired = sums.fired.max(number(&beat["fired"]));
        } else if record["event"]["kind"] == "alert" {
            alerts.insert(sequence);
        }
    }
    sums.shipped = alerts.len() as u64;
    sums.lost_and_yet_there = alerts.intersection(&lost).count() as u64;
    let last = *ids.keys().next_back().unwrap();
    let unexplained: Vec<u64> = (1..=last).filter(|n| !ids.contains_key(n) && !lost.contains(n)).collect();
    assert!(unexplained.is_empty(), "numbers {unexplained:?} are neither there nor lost");
    sums
}

#[test]
fn nothing_acknowledged_is_lost_and_every_loss_is_a_record() {
    let seed = std::env::var("CONSERVATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let rounds: u32 =
        std::env::var("CONSERVATION_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(16);
    println!("seed {seed}, {rounds} rounds (CONSERVATION_SEED, CONSERVATION_ROUNDS)");
    let began = Instant::now();
    let mut run = Run::new(seed);
    for round in 0..rounds {
        // Each fault as often as any other, in an order that the seed shuffles.
        let at = round as usize % FAULTS.len();
        let fault = if at == 0 { FAULTS[run.random.usize(..FAULTS.len())] } else { FAULTS[at] };
        run.round(fault);
        if round % 50 == 49 {
            println!("round {}: {:?}, {} opens", round + 1, began.elapsed(), run.fed);
        }
    }
    // A last run with nothing to do but to say what is left.
    run.finish();
    run.archive();
    let records: Vec<Value> = run.archive.iter().map(|record| record.document.clone()).collect();
    if let Some(file) = std::env::var_os("CONSERVATION_KEEP") {
        write_lines(&file.into(), &records);
    }
    let sums = add_up(&records);
    println!("{:?}\n{sums:?}\n{} opens fed in {:?}", run.happened, run.fed, began.elapsed());
    assert_eq!(sums.fired, sums.shipped + sums.suppressed + sums.limited + sums.lost - sums.lost_and_yet_there);
    assert!(sums.fired <= run.fed, "more fired than was fed");
    // What a killed sensor had in its memory never fired: there was no commit that said so.
    let gone = run.fed - sums.fired;
    println!(
        "{gone} opens were in the memory of sensors that were killed, of {} that those were fed",
        run.at_risk
    );
    assert!(gone <= run.at_risk, "opens are gone that no killed sensor had");
    let last = records.iter().map(|record| record["event"]["sequence"].as_u64().unwrap()).max().unwrap();
    assert!(last >= run.spooled, "number {} was on the disk, and the last in the topic is {last}", run.spooled);
    let wanted = rounds / FAULTS.len() as u32 * 9 / 10;
    for (fault, count) in run.happened.iter().filter(|(fault, _)| **fault != "nothing") {
        assert!(*count >= wanted.max(1), "'{fault}' happened {count} times");
    }
    for (what, count) in [("suppressed", sums.suppressed), ("limited", sums.limited), ("lost", sums.lost)] {
        assert!(count > 0, "none was {what}: seed {seed}");
    }
    let (whole, accounts) = run.audit("whole.jsonl", &records);
    assert!(whole, "{accounts:#}");
    assert_eq!(accounts[0]["duplicates"], sums.duplicates);

    the_checker_finds_what_is_taken_away(&mut run, &records);
    unmount(&run.place.state());
}

/// One record of a copy of the topic, or one row of the spool, and it is no longer whole.
fn the_checker_finds_what_is_taken_away(run: &mut Run, records: &[Value]) {
    // Nothing misses the last number.
    let last = records.iter().map(|record| record["event"]["sequence"].as_u64()).max().unwrap();
    let others = records.iter().filter(|record| record["event"]["sequence"].as_u64() != last);
    let ids: BTreeSet<String> = others.map(|record| record["event"]["id"].to_string()).collect();
    let ids: Vec<&String> = ids.iter().collect();
    for _ in 0..5 {
        let id = ids[run.random.usize(..ids.len())];
        let is_it = |record: &&Value| record["event"]["id"].to_string().as_str() == id.as_str();
        let left: Vec<Value> = records.iter().filter(|record| !is_it(record)).cloned().collect();
        let lost_and_there = records.len() - left.len();
        let (whole, accounts) = run.audit("less.jsonl", &left);
        assert!(!whole, "{id} ({lost_and_there} times) is not missed: {accounts:#}");
    }
    run.broker.kill();
    run.feed();
    let spooled = run.shipper().spooled();
    let wanted = spooled.max(run.spooled) + 3;
    run.shipper().wait_for_spooled(wanted);
    run.shipper.take().unwrap().kill();
    let table: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
    let db = redb::Database::open(run.place.state().join("spool.redb")).unwrap();
    let read = db.begin_read().unwrap().open_table(table).unwrap();
    let numbers: Vec<u64> = read.iter().unwrap().map(|record| record.unwrap().0.value()).collect();
    let gone = numbers[numbers.len() / 2];
    let write = db.begin_write().unwrap();
    write.open_table(table).unwrap().remove(gone).unwrap();
    write.commit().unwrap();
    drop((read, db));
    run.broker.start();
    run.finish();
    run.archive();
    let records: Vec<Value> = run.archive.iter().map(|record| record.document.clone()).collect();
    let (whole, accounts) = run.audit("spool.jsonl", &records);
    assert!(
        !whole && accounts[0]["unexplained"].to_string().contains(&format!("missing: {gone}")),
        "{accounts:#}"
    );
    println!("a record that was taken from the topic, and number {gone} from the spool, are missed");
}
