//! Alerts to the spool: numbers, encodes and commits them in groups.
use std::{sync::Arc, time::Duration, vec};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{ecs::Encoder, spool::Spool};
use crate::{metrics::Metrics, notice::Notices, policy::Alert};

/// Most alerts in one commit.
const GROUP: usize = 4096;
/// Shortest time between two commits under load: the disk may be etcd's too. An idle spool commits at once.
const PACE: Duration = Duration::from_millis(50);
/// Bytes at which a group is committed before it is complete, so that odd names cannot fill the memory.
const COMMIT_BYTES: u64 = 4 << 20;
/// Largest record, in bytes; a broker's usual limit is 1 MiB for a whole batch.
pub(super) const RECORD_LIMIT: usize = 256 << 10;

/// The writing half of the stage.
pub(super) struct Writer {
    encoder: Encoder,
    spool: Spool,
    alerts: mpsc::Receiver<Alert>,
    committed: watch::Sender<u64>,
    acknowledged: watch::Receiver<u64>,
    metrics: Arc<Metrics>,
    notices: Notices,
}

impl Writer {
    pub(super) fn new(
        encoder: Encoder,
        spool: Spool,
        alerts: mpsc::Receiver<Alert>,
        committed: watch::Sender<u64>,
        acknowledged: watch::Receiver<u64>,
        metrics: Arc<Metrics>,
        notices: Notices,
    ) -> Self {
        Self { encoder, spool, alerts, committed, acknowledged, metrics, notices }
    }

    /// Works until the alerts end; then until the sender has ended, to delete what it still had acknowledged.
    ///
    /// # Errors
    /// When the spool cannot be written: redb then refuses every call until it is opened anew, so the sensor stops.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut group = Vec::new();
        let mut pace = Instant::now();
        loop {
            tokio::select! {
                received = self.alerts.recv_many(&mut group, GROUP) => if received == 0 { break },
                // Once the sender has ended this is off, and only the end of the alerts ends the loop.
                Ok(()) = self.acknowledged.changed() => {}
            }
            sleep_until(pace).await;
            while group.len() < GROUP
                && let Ok(alert) = self.alerts.try_recv()
            {
                group.push(alert);
            }
            self.write(&mut group)?;
            pace = Instant::now() + PACE;
        }
        // From here on the sender finds `committed` closed and knows that no more will come.
        drop(std::mem::replace(&mut self.committed, watch::channel(0).0));
        while self.acknowledged.changed().await.is_ok() {}
        self.commit(&mut Vec::new())
    }

    /// Numbers, encodes and commits `group`; empties it. An error ends the sensor, so what has no place in the spool
    /// then is lost, and counted.
    fn write(&mut self, group: &mut Vec<Alert>) -> anyhow::Result<()> {
        let mut alerts = std::mem::take(group).into_iter();
        let written = self.write_all(&mut alerts);
        if written.is_err() {
            self.alerts.close();
            let waiting = std::iter::from_fn(|| self.alerts.try_recv().ok()).count();
            self.metrics.alerts_lost.add((alerts.len() + waiting) as u64);
        }
        written
    }

    fn write_all(&mut self, alerts: &mut vec::IntoIter<Alert>) -> anyhow::Result<()> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        for alert in alerts {
            let record = match self.encode(&alert, self.spool.next() + records.len() as u64) {
                Ok(record) => record,
                Err(why) => {
                    self.lose("unencodable", &alert, &why);
                    continue;
                }
            };
            bytes += record.len() as u64;
            records.push(record);
            if bytes >= COMMIT_BYTES {
                self.commit(&mut records)?;
                bytes = 0;
            }
            if !self.spool.has_room(bytes) {
                let last = records.pop();
                // What was acknowledged meanwhile makes room.
                self.commit(&mut records)?;
                bytes = last.as_ref().map_or(0, |record| record.len() as u64);
                if self.spool.has_room(bytes) {
                    records.extend(last);
                } else {
                    bytes = 0;
                    self.lose(
                        "spool_full",
                        &alert,
                        "the spool is full; is the sink reachable, and ship.spool.max_bytes large enough?",
                    );
                }
            }
        }
        self.commit(&mut records)
    }

    /// Commits `records` and what was acknowledged; empties `records`.
    fn commit(&mut self, records: &mut Vec<Vec<u8>>) -> anyhow::Result<()> {
        let acknowledged = *self.acknowledged.borrow_and_update();
        if let Err(why) = tokio::task::block_in_place(|| self.spool.commit(records, acknowledged)) {
            self.metrics.alerts_lost.add(records.len() as u64);
            let place = self.spool.path().display().to_string();
            return Err(why)
                .with_context(|| format!("cannot write the spool {place}; free its disk and start again"));
        }
        records.clear();
        tracing::debug!(spooled = self.spool.last(), acknowledged, "committed");
        self.committed.send_replace(self.spool.last());
        Ok(())
    }

    fn encode(&self, alert: &Alert, sequence: u64) -> Result<Vec<u8>, String> {
        let record = self.encoder.record(alert, sequence, Timestamp::now());
        let bytes = record.and_then(|record| serde_json::to_vec(&record)).map_err(|why| why.to_string())?;
        if bytes.len() > RECORD_LIMIT { Err(format!("the record has {} bytes", bytes.len())) } else { Ok(bytes) }
    }

    fn lose(&self, reason: &'static str, alert: &Alert, why: &str) {
        self.metrics.alerts_lost.add(1);
        self.notices.add("ship", reason, 1, format!("an alert of {} is lost: {why}", alert.policy.name()));
    }
}
