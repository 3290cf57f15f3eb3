//! Alerts to the spool, in groups: drives the books.
use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout_at},
};

use super::{
    book::{Book, Dead, Now},
    sender::Progress,
};
use crate::policy::Alert;

/// Alerts that are taken from the queue at a time: with the largest records they are less than what may wait for a commit.
const TAKE: usize = 16;
/// Shortest time between two commits under load: the disk may be etcd's too. An idle spool commits at once.
const PACE: Duration = Duration::from_millis(50);
/// Bytes at which a group is committed before its time, so that odd names cannot fill the memory.
const COMMIT_BYTES: u64 = 2 << 20;
/// How often it is looked what there is to tell.
const TICK: Duration = Duration::from_secs(1);
/// How often a commit is tried at the end if the disk refuses.
const LAST_TRIES: usize = 3;

/// The writing half of the stage.
pub(super) struct Writer {
    pub(super) book: Book,
    pub(super) alerts: mpsc::Receiver<Alert>,
    pub(super) dead: mpsc::Receiver<Dead>,
    pub(super) committed: watch::Sender<u64>,
    pub(super) progress: watch::Receiver<Progress>,
}

impl Writer {
    /// Works until the alerts end; then until the sender has ended, to delete what it still had acknowledged.
    ///
    /// # Errors
    /// When the spool is damaged, or cannot be written at the end.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut group = Vec::new();
        let mut pace = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = self.alerts.recv_many(&mut group, TAKE) => if received == 0 { break },
                // Once the sender has ended these two are off, and only the end of the alerts ends the loop.
                Ok(()) = self.progress.changed() => {}
                Some(dead) = self.dead.recv() => self.book.bury(&dead),
                _ = ticks.tick() => self.book.tell(Now::read(), false),
            }
            self.take(&mut group);
            self.gather(&mut group, pace).await;
            self.commit()?;
            // A disk that refuses is not asked again at once.
            pace = Instant::now() + if self.book.is_failing() { TICK } else { PACE };
        }
        self.wait_for_sink(&mut ticks).await?;
        self.book.tell(Now::read(), true);
        self.commit_at_last().await?;
        // From here on the sender finds `committed` closed and knows that no more will come.
        drop(std::mem::replace(&mut self.committed, watch::channel(0).0));
        loop {
            tokio::select! {
                changed = self.progress.changed() => if changed.is_err() { break },
                Some(dead) = self.dead.recv() => self.book.bury(&dead),
            }
        }
        self.commit_at_last().await
    }

    /// Waits until the sink has what is there, or until the sender gives up: what cannot be delivered is told as well.
    async fn wait_for_sink(&mut self, ticks: &mut Interval) -> anyhow::Result<()> {
        loop {
            self.commit()?;
            if self.progress.borrow().acknowledged >= self.book.committed() && !self.book.is_failing() {
                return Ok(());
            }
            tokio::select! {
                changed = self.progress.changed() => if changed.is_err() { return Ok(()) },
                Some(dead) = self.dead.recv() => self.book.bury(&dead),
                _ = ticks.tick() => self.book.tell(Now::read(), false),
            }
        }
    }

    fn take(&mut self, group: &mut Vec<Alert>) {
        let now = Now::read();
        group.drain(..).for_each(|alert| self.book.take(&alert, now));
    }

    /// Takes more alerts until the next commit may be: at once if it has been a while.
    async fn gather(&mut self, group: &mut Vec<Alert>, pace: Instant) {
        // A disk that refuses is waited for, whatever comes: beyond their bound, alerts are lost, and counted.
        while self.book.is_failing() || self.book.pending_bytes() < COMMIT_BYTES {
            let before = Instant::now();
            if self.alerts.is_empty() && before >= pace {
                return;
            }
            // Under load this is where the time goes; the queue is emptied even if it is late.
            match timeout_at(pace, self.alerts.recv_many(group, TAKE)).await {
                Ok(1..) => self.take(group),
                Ok(0) | Err(_) => {
                    sleep_until(pace).await;
                    return;
                }
            }
            if Instant::now() >= pace {
                return;
            }
        }
    }

    /// Commits what there is, with what the sender says.
    fn commit(&mut self) -> anyhow::Result<()> {
        // In this order: what is buried was sent before it counts as acknowledged.
        let progress = *self.progress.borrow_and_update();
        while let Ok(dead) = self.dead.try_recv() {
            self.book.bury(&dead);
        }
        tokio::task::block_in_place(|| {
            self.book.acknowledge(progress.acknowledged, progress.handed);
            self.book.commit(Now::read())
        })?;
        let committed = self.book.committed();
        self.committed.send_if_modified(|old| std::mem::replace(old, committed) != committed);
        Ok(())
    }

    async fn commit_at_last(&mut self) -> anyhow::Result<()> {
        for _ in 0..LAST_TRIES {
            self.commit()?;
            if !self.book.is_failing() {
                return Ok(());
            }
            sleep(TICK).await;
        }
        anyhow::bail!(
            "cannot write the spool at the end; what was in memory is lost; free its disk and start again"
        )
    }
}
