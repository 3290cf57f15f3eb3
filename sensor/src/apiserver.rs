//! The API server: how to reach it, how to watch what it holds, and what to say when it does not answer.
use std::{
    collections::HashMap,
    fmt::Debug,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{
    Api, Client, Resource,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::notice::Notices;

/// Sensors of a cluster begin within so much time, so that not all ask at once; no longer than an event is held.
pub const SPREAD: Duration = Duration::from_secs(2);
/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent. The API server sends a bookmark each minute to a watch without news.
pub const SILENCE: Duration = Duration::from_secs(90);

/// Where the API server is and who we are to it.
#[derive(Clone)]
pub struct Source {
    /// Who asks, for notices.
    stage: &'static str,
    kubeconfig: Option<PathBuf>,
}

impl Source {
    /// By `kubeconfig`, or else by the pod's own service account, for `stage`.
    ///
    /// # Errors
    /// When the file, or what a pod is given, cannot be used.
    pub fn new(stage: &'static str, kubeconfig: Option<PathBuf>) -> anyhow::Result<Self> {
        let source = Self { stage, kubeconfig };
        source.client()?;
        Ok(source)
    }

    /// A client with the token as it is now: what the kubelet mounts is replaced long before it expires.
    ///
    /// # Errors
    /// When the kubeconfig, or what a pod is given, cannot be used.
    pub fn client(&self) -> anyhow::Result<Client> {
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let context = || format!("enrich.kubeconfig {} is not usable", file.display());
                let whole = Kubeconfig::read_from(file).with_context(context)?;
                let options = KubeConfigOptions::default();
                // It reads files only.
                kube::Config::from_custom_kubeconfig(whole, &options).now_or_never().context("it waits for something")?.with_context(context)?
            }
            None => kube::Config::incluster().context(
                "no cluster to ask: run as a pod with a service account, name a file in enrich.kubeconfig, or set enrich.kubernetes to off",
            )?,
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        Client::try_from(config).context("the API server's address or certificates are not usable")
    }

    /// Objects of `kind` as the API server tells of them; none if what a pod is given cannot be read now.
    pub fn stream<K>(
        &self,
        kind: &K::DynamicType,
        config: &watcher::Config,
        notices: &Notices,
    ) -> BoxStream<'static, Result<watcher::Event<K>, watcher::Error>>
    where
        K: Resource<DynamicType: Clone> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        match self.client() {
            Ok(client) => watcher(Api::all_with(client, kind), config.clone()).boxed(),
            Err(why) => {
                notices.add(self.stage, "api_unreachable", 1, format!("{why:#}"));
                futures::stream::empty().boxed()
            }
        }
    }

    /// Says what is the matter and what to do.
    pub fn tell(&self, notices: &Notices, what: &str, why: &watcher::Error) {
        let (reason, remedy) = match status(why) {
            Some(403) => ("api_refused", format!("allow the service account to list and watch {what}")),
            Some(401) => ("api_refused", "check the service account's token".to_owned()),
            // It has forgotten what came after our last look; everything is told anew.
            Some(410) => return,
            _ => ("api_unreachable", "it is asked again".to_owned()),
        };
        // The innermost cause says it; those around it repeat it at length.
        let causes = std::iter::successors(Some(why as &dyn std::error::Error), |why| why.source());
        let text = causes.last().map(ToString::to_string).unwrap_or_default();
        let detail = format!("the API server tells nothing of {what}: {text}; {remedy}");
        notices.add(self.stage, reason, 1, detail);
    }
}

/// A part of [`SPREAD`] by chance.
#[must_use]
pub fn spread() -> Duration {
    SPREAD.mul_f64((Uuid::new_v4().as_u128() % 1000) as f64 / 1000.0)
}

/// Lists that the API server answers from its cache. In pages it would go to etcd for them, whatever version is asked for.
#[must_use]
pub fn from_cache(config: watcher::Config) -> watcher::Config {
    watcher::Config { page_size: None, ..config.any_semantic() }
}

/// The answer of the API server, if it is one.
#[must_use]
pub fn status(why: &watcher::Error) -> Option<u16> {
    match why {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Before 1.34, or with the feature WatchList turned off, the parameters of a streaming list are invalid.
#[must_use]
pub fn refuses_streams(why: &watcher::Error) -> bool {
    matches!(why, watcher::Error::WatchStartFailed(_)) && matches!(status(why), Some(400 | 404 | 405 | 415 | 422))
}

/// How long a token that was found good is taken for good, and for how long at most if it cannot be asked about.
const FRESH: Duration = Duration::from_secs(600);
const USABLE: Duration = Duration::from_secs(3600);
/// How often a token is asked about that comes from one address, and from how many addresses in that time.
const ASKED: Duration = Duration::from_secs(1);
const ASKERS: usize = 10;

/// Who may ask for the state of policies: one service account, by a token that was made for this purpose only.
pub struct Tokens {
    source: Source,
    user: String,
    known: Mutex<Known>,
}

/// What is remembered of tokens.
#[derive(Default)]
struct Known {
    /// The sum of the one that was found good last, and when.
    good: Option<([u8; 32], Instant)>,
    /// When one was asked about last, by the address that sent it; the latest only.
    asked: HashMap<IpAddr, Instant>,
}

/// What a token must be made for: the API server takes it for nothing else, so a sensor cannot use it elsewhere.
pub const AUDIENCE: &str = "pathwatch-sensor";

impl Tokens {
    /// Those of `user`.
    #[must_use]
    pub fn new(source: Source, user: String) -> Self {
        Self { source, user, known: Mutex::default() }
    }

    /// Whether `token`, sent by `peer`, is one. Asks the API server unless it was found good lately, once a second for each
    /// peer: who guesses tokens must not keep the controller's from being looked at.
    ///
    /// # Errors
    /// When the API server cannot be asked now.
    pub async fn admits(&self, token: &str, peer: IpAddr) -> anyhow::Result<bool> {
        let sum: [u8; 32] = Sha256::digest(token).into();
        let age = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let age = known.good.filter(|(good, _)| *good == sum).map(|(_, at)| at.elapsed());
            known.asked.retain(|_, at| at.elapsed() < ASKED);
            let asked_lately = known.asked.contains_key(&peer) || known.asked.len() >= ASKERS;
            if age.is_some_and(|age| age < FRESH || asked_lately && age < USABLE) {
                return Ok(true);
            }
            anyhow::ensure!(!asked_lately, "too many tokens; try again in a second");
            known.asked.insert(peer, Instant::now());
            age
        };
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.source.client()?);
        let status = match reviews.create(&PostParams::default(), &review).await {
            Ok(review) => review.status.unwrap_or_default(),
            // It was good not long ago, and the API server does not say that it is not.
            Err(_) if age.is_some_and(|age| age < USABLE) => return Ok(true),
            Err(why) => return Err(why.into()),
        };
        let audience = status.audiences.is_some_and(|all| all.iter().any(|one| one == AUDIENCE));
        let user = status.user.and_then(|user| user.username);
        let good = status.authenticated == Some(true) && audience && user.as_deref() == Some(&self.user);
        if good {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).good = Some((sum, Instant::now()));
        }
        Ok(good)
    }
}
