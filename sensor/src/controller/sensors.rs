//! The sensors: where they are, and what they say of each policy.
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{Api, api::ListParams};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use super::Config;
use crate::{
    apiserver::Source,
    notice::Notices,
    policy::{InForce, Reference, State},
};

/// Sensors that are asked at a time.
const AT_A_TIME: usize = 32;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer: a thousand policies, each with a reason.
const ANSWER: u64 = 4 << 20;
/// Different answers that are remembered. On nearly all nodes it is the same one.
const ANSWERS: usize = 32;
/// Nodes that are named with what is wrong on them.
pub(super) const NAMED: usize = 10;

/// What all sensors say, summed up by policy: five thousand answers are never there at a time.
#[derive(Default)]
pub(super) struct Reports {
    /// Sensors that there are.
    pub(super) sensors: u64,
    /// Sensors that do not answer, and why; the first of them.
    pub(super) silent: u64,
    pub(super) silent_named: Vec<(String, String)>,
    counts: HashMap<(Reference, i64), Counts>,
}

/// What sensors say of one generation of a policy.
#[derive(Clone, Default)]
pub(super) struct Counts {
    /// Nodes on which it is in force.
    pub(super) programmed: u64,
    /// Nodes on which it cannot be.
    pub(super) failing: u64,
    /// Of those, on which an earlier generation is.
    pub(super) stale: u64,
    /// Some of them, and why.
    pub(super) named: Vec<(String, String)>,
}

impl Reports {
    /// Of `generation` of a policy.
    pub(super) fn of(&self, reference: &Reference, generation: i64) -> Counts {
        self.counts.get(&(reference.clone(), generation)).cloned().unwrap_or_default()
    }

    /// Takes in what the sensor of `node` says.
    pub(super) fn add(&mut self, node: &str, said: Result<&[InForce], String>) {
        self.sensors += 1;
        let said = match said {
            Ok(said) => said,
            Err(why) => {
                self.silent += 1;
                if self.silent_named.len() < NAMED {
                    self.silent_named.push((node.to_owned(), format!("the sensor does not answer: {why}")));
                }
                return;
            }
        };
        for policy in said {
            let counts = self.counts.entry((policy.reference.clone(), policy.generation)).or_default();
            match policy.state {
                State::Active | State::Suspended => counts.programmed += 1,
                State::Stale | State::Failed | State::Refused => {
                    counts.failing += 1;
                    counts.stale += u64::from(policy.state == State::Stale);
                    if counts.named.len() < NAMED {
                        counts.named.push((node.to_owned(), policy.reason.clone()));
                    }
                }
            }
        }
    }
}

type Answer = Arc<Vec<InForce>>;

/// The way to all sensors.
pub(super) struct Sensors {
    source: Source,
    namespace: String,
    service: String,
    port: u16,
    token_file: PathBuf,
    agent: ureq::Agent,
    /// Answers by their sum, and the sum of the last answer of each address.
    answers: HashMap<String, Answer>,
    last: HashMap<String, String>,
}

impl Sensors {
    pub(super) fn new(source: Source, config: &Config) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build();
        Self {
            source,
            namespace: config.namespace.clone(),
            service: config.service.clone(),
            port: config.port,
            token_file: config.token_file.clone(),
            agent: agent.into(),
            answers: HashMap::new(),
            last: HashMap::new(),
        }
    }

    /// Asks all sensors; None if it cannot be known who they are.
    pub(super) async fn ask(&mut self, notices: &Notices) -> Option<Reports> {
        let (places, token) = match self.find().await {
            Ok(found) => found,
            Err(why) => {
                notices.add("controller", "sensors_unknown", 1, format!("{why:#}"));
                return None;
            }
        };
        let mut reports = Reports::default();
        // A node on which no sensor could be started has no endpoint.
        for _ in places.len()..self.wanted().await {
            reports.add("a node", Err("there is none; see the DaemonSet's events".to_owned()));
        }
        let asked = places.into_iter().map(|(node, address)| {
            let known = self.last.get(&address).filter(|sum| self.answers.contains_key(*sum)).cloned();
            let (agent, token, port) = (self.agent.clone(), token.clone(), self.port);
            async move {
                let at = address.clone();
                let answer = spawn_blocking(move || ask_one(&agent, &at, port, &token, known.as_deref())).await;
                (node, address, answer.unwrap_or_else(|why| Err(why.into())))
            }
        });
        let mut answers = stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_A_TIME);
        let mut last = HashMap::new();
        while let Some((node, address, answer)) = answers.next().await {
            match answer.and_then(|answer| self.understand(&address, answer)) {
                Ok((sum, said)) => {
                    last.insert(address, sum);
                    reports.add(&node, Ok(&said));
                }
                Err(why) => reports.add(&node, Err(format!("{why:#}"))),
            }
        }
        // What no sensor says any more is forgotten.
        self.answers.retain(|sum, _| last.values().any(|one| one == sum));
        self.last = last;
        Some(reports)
    }

    /// On how many nodes there should be one; 0 if the DaemonSet cannot be asked.
    async fn wanted(&self) -> usize {
        let Ok(client) = self.source.client() else { return 0 };
        let sensors: Api<DaemonSet> = Api::namespaced(client, &self.namespace);
        let status = sensors.get(&self.service).await.ok().and_then(|found| found.status);
        status.and_then(|status| usize::try_from(status.desired_number_scheduled).ok()).unwrap_or_default()
    }

    /// Nodes with the addresses of their sensors, and the token.
    async fn find(&self) -> anyhow::Result<(Vec<(String, String)>, String)> {
        let token = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("cannot read the token {}", self.token_file.display()))?;
        let slices: Api<EndpointSlice> = Api::namespaced(self.source.client()?, &self.namespace);
        let of_service = format!("kubernetes.io/service-name={}", self.service);
        let params = ListParams::default().labels(&of_service).match_any();
        let slices = slices.list(&params).await.context("cannot list the sensors' EndpointSlices")?;
        let endpoints = slices.items.into_iter().flat_map(|slice| slice.endpoints);
        // What ends answers no more; its successor is another endpoint.
        let ends =
            |endpoint: &Endpoint| endpoint.conditions.as_ref().is_some_and(|is| is.terminating == Some(true));
        let endpoints = endpoints.filter(|endpoint| !ends(endpoint));
        let mut places: Vec<(String, String)> = endpoints
            .filter_map(|endpoint| {
                let address = endpoint.addresses.into_iter().next()?;
                Some((endpoint.node_name.unwrap_or_else(|| address.clone()), address))
            })
            .collect();
        places.sort();
        places.dedup();
        Ok((places, token.trim().to_owned()))
    }

    /// What an answer says, and its sum.
    fn understand(&mut self, address: &str, answer: Option<Vec<u8>>) -> anyhow::Result<(String, Answer)> {
        let Some(bytes) = answer else {
            let sum = self
                .last
                .get(address)
                .cloned()
                .context("it says that nothing has changed since it said nothing")?;
            let said = self.answers.get(&sum).cloned().context("its last answer is forgotten")?;
            return Ok((sum, said));
        };
        let sum = format!("\"{:x}\"", Sha256::digest(&bytes));
        if let Some(said) = self.answers.get(&sum) {
            return Ok((sum, said.clone()));
        }
        let said: Answer = Arc::new(serde_json::from_slice(&bytes).context("its answer is not understood")?);
        if self.answers.len() < ANSWERS {
            self.answers.insert(sum.clone(), said.clone());
        }
        Ok((sum, said))
    }
}

/// The answer of one sensor; None if it is still the `known` one.
fn ask_one(
    agent: &ureq::Agent,
    address: &str,
    port: u16,
    token: &str,
    known: Option<&str>,
) -> anyhow::Result<Option<Vec<u8>>> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let mut request =
        agent.get(format!("http://{host}:{port}/policies")).header("Authorization", format!("Bearer {token}"));
    if let Some(known) = known {
        request = request.header("If-None-Match", known);
    }
    let mut response = request.call()?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(ANSWER).read_to_vec()?;
    match status {
        200 => Ok(Some(body)),
        304 if known.is_some() => Ok(None),
        _ => anyhow::bail!(
            "status {status}: {}",
            String::from_utf8_lossy(&body).trim().chars().take(200).collect::<String>()
        ),
    }
}
