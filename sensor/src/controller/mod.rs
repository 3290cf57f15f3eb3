//! The controller: compiles policy objects as sensors do, asks the sensors what they have made of them, and writes both
//! into the objects' status. One replica; what it writes is the same whoever writes it, so no leader is elected.
mod sensors;
mod status;
mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{sensors::Sensors, writer::Writer};
use crate::{
    apiserver::Source,
    http::{self, Served},
    metrics::Metrics,
    notice::Notices,
    policy::{self, Directory, InForce, Judge, Objects, Reference, State},
};

/// How often all sensors are asked when nothing has changed.
const EVERY: Duration = Duration::from_secs(30);
/// The first pause after a change: sensors need a moment for it, too.
const SOON: Duration = Duration::from_millis(700);

/// How long what is known is written before a look at what is new.
const PASS: Duration = Duration::from_secs(2);

/// What the controller needs to know.
pub struct Config {
    /// How to reach the API server; by default as a pod does.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the sensors, and their service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The port on which sensors answer.
    pub port: u16,
    /// The token that they know the controller by.
    pub token_file: PathBuf,
    /// Where the controller itself answers.
    pub listen: Option<SocketAddr>,
}

/// Runs until `stop`. `judge` holds policies to their examples.
///
/// # Errors
/// When the API server cannot be known, or the address not be listened on.
pub async fn run(config: Config, judge: Judge, stop: CancellationToken) -> anyhow::Result<()> {
    let source = Source::new("controller", config.kubeconfig.clone())?;
    let (metrics, notices) = (Arc::new(Metrics::default()), Notices::default());
    let (sender, objects) = watch::channel(Arc::default());
    let mut tasks = JoinSet::new();
    if let Some(listen) = config.listen {
        let (_, policies) = watch::channel(Some(Arc::from([])));
        let since = std::time::Instant::now();
        let served = Served { metrics: metrics.clone(), policies, tokens: None, since, status: None };
        tasks.spawn(http::serve(listen, Arc::new(served), stop.clone()));
    }
    tasks.spawn(policy::watch_resources(source.clone(), sender, notices.clone()));
    let log = tokio::spawn(notices.clone().log());
    let controller = Controller {
        directory: Directory::new(Vec::new(), BTreeMap::new(), judge),
        verdicts: Arc::from([]),
        sensors: Sensors::new(source.clone(), &config),
        writer: Writer::new(source, notices.clone()),
        metrics,
        notices,
    };
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = controller.run(objects) => Ok(()),
        Some(ended) = tasks.join_next() => ended?,
    };
    log.abort();
    outcome
}

struct Controller {
    directory: Directory,
    /// What this very code makes of the objects.
    verdicts: Arc<[InForce]>,
    sensors: Sensors,
    writer: Writer,
    metrics: Arc<Metrics>,
    notices: Notices,
}

impl Controller {
    async fn run(mut self, mut objects: watch::Receiver<Arc<Objects>>) {
        // Of a part of the objects nothing is written: the others' status would be taken for that of none.
        if objects.wait_for(|all| all.is_whole()).await.is_err() {
            return;
        }
        let mut pause = SOON;
        loop {
            let known = objects.borrow_and_update().clone();
            self.judge(&known);
            // Whether a policy is any good needs no sensor.
            self.tell(&known, None, &objects).await;
            let reports = self.sensors.ask(&self.notices).await;
            let settled = match &reports {
                Some(reports) => self.tell(&known, Some(reports), &objects).await,
                None => false,
            };
            pause = if settled { EVERY } else { (pause * 2).min(EVERY) };
            let next = Instant::now() + pause;
            tokio::select! {
                () = sleep_until(next) => {}
                changed = objects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pause = SOON;
                    sleep_until(Instant::now() + SOON).await;
                }
            }
        }
    }

    /// Compiles what has changed.
    fn judge(&mut self, objects: &Objects) {
        self.directory.set_objects(objects.in_order());
        match self.directory.poll() {
            Ok(Some(loaded)) => {
                loaded.tell(&self.metrics, &self.notices);
                let mut verdicts = loaded.objects;
                // Whoever writes more than there is room for does not have the others wait.
                verdicts.sort_by_key(|verdict| verdict.state == State::Refused);
                self.verdicts = verdicts.into();
            }
            Ok(None) => {}
            Err(why) => self.notices.add("controller", "unreadable", 1, why.to_string()),
        }
    }

    /// Writes the status of every object that has another now, until there is `news`; true if all are written and in force
    /// on all nodes.
    async fn tell(
        &mut self,
        objects: &Objects,
        reports: Option<&sensors::Reports>,
        news: &watch::Receiver<Arc<Objects>>,
    ) -> bool {
        if !self.writer.begin().await {
            return false;
        }
        let (mut settled, began) = (true, Instant::now());
        for verdict in self.verdicts.iter() {
            // They can wait until the others' sensors have been asked.
            if reports.is_none() && verdict.state == State::Refused {
                continue;
            }
            let known = self.writer.known(&verdict.reference);
            let status = match reports {
                Some(reports) => status::of(verdict, reports, known),
                None => status::accepted(verdict, known),
            };
            settled &= status::is_settled(&status);
            // The API server is away, or this is not what there is any more: all of it is told anew then. Not at once, or
            // somebody who makes news all the time would have nothing told of those behind him.
            let is_written = self.writer.write(&verdict.reference, status).await;
            if !is_written || began.elapsed() > PASS && news.has_changed().unwrap_or(true) {
                return false;
            }
        }
        let there: HashSet<&Reference> = self.verdicts.iter().map(|verdict| &verdict.reference).collect();
        self.writer.forget(|reference| there.contains(reference));
        settled && objects.len() == self.verdicts.len()
    }
}
