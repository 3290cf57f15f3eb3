//! Pods and their containers by the ids that cgroups carry.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{container::Home, describe::Described};
use crate::{
    event::{Container, Missing, Place, Pod},
    notice::Notices,
    policy::PolicySet,
};

/// Most pods that are remembered; the kubelet runs 110 by default, and some nodes 500.
const LIMIT: usize = 4096;
/// How long a pod is remembered after it was deleted, or longer while cgroups of it are there.
const TOMBSTONE: Duration = Duration::from_secs(60);
/// Most ids of containers that are remembered of a pod: a container that restarts gets a new one each time.
pub(super) const IDS: usize = 128;
/// Most bytes of labels that are kept, of one pod and of all pods and namespaces together.
pub(super) const LABELS: usize = 64 << 10;
const ALL_LABELS: usize = 4 << 20;

type Labels = BTreeMap<String, String>;

/// What the watches tell.
#[derive(Debug)]
pub(super) enum Change {
    /// All pods follow, and then [`Change::Listed`].
    Began,
    /// A pod is there, or has changed.
    Applied(Box<PodInfo>),
    /// The pod of this uid is deleted.
    Deleted(String),
    /// Pods that were not told of since [`Change::Began`] are deleted.
    Listed,
    /// The labels of a namespace; None of one that is deleted.
    Namespace(String, Option<Labels>),
    /// These are all namespaces.
    Namespaces(HashSet<String>),
    /// The API server does not answer, or it refuses to tell of pods.
    Silent,
    /// The same of namespaces.
    NamespacesSilent,
}

/// A pod, and what its containers are called.
#[derive(Clone, Debug, Default)]
pub(super) struct PodInfo {
    pub(super) pod: Pod,
    /// The uid that the cgroups of a static pod carry.
    pub(super) hash: Option<String>,
    /// By id, as far as the status tells.
    pub(super) containers: BTreeMap<String, Described>,
    /// The one container of a pod that has no other: it needs no status.
    pub(super) only: Option<Described>,
    /// All its containers have ended for good.
    pub(super) ended: bool,
}

struct Entry {
    info: PodInfo,
    /// With the labels of its namespace.
    pod: Arc<Pod>,
    /// Containers as events carry them, made when first asked for.
    containers: HashMap<String, Arc<Container>>,
    /// When it was deleted.
    gone: Option<Instant>,
}

/// All pods that are known.
pub(super) struct Pods {
    by_uid: HashMap<String, Entry>,
    /// Uids of static pods by what their cgroups carry.
    by_hash: HashMap<String, HashSet<String>>,
    namespaces: HashMap<String, Labels>,
    /// Pods that were told of since the list began.
    listed: Option<HashSet<String>>,
    label_bytes: usize,
    /// The API server answers, as far as is known: it is worth waiting for what it will say.
    in_contact: bool,
    /// The same of namespaces.
    namespaces_in_contact: bool,
    /// It has answered once.
    answered: bool,
    notices: Notices,
}

impl Pods {
    /// Of a node in a cluster, or in none.
    pub(super) fn new(in_cluster: bool, notices: Notices) -> Self {
        Self {
            by_uid: HashMap::new(),
            by_hash: HashMap::new(),
            namespaces: HashMap::new(),
            listed: None,
            label_bytes: 0,
            in_contact: in_cluster,
            namespaces_in_contact: in_cluster,
            answered: false,
            notices,
        }
    }

    /// Takes in what a watch tells.
    pub(super) fn change(&mut self, change: Change, now: Instant) {
        match change {
            Change::Silent => self.in_contact = false,
            Change::NamespacesSilent => self.namespaces_in_contact = false,
            // So says the watch before it has asked.
            Change::Began => self.listed = Some(HashSet::new()),
            Change::Applied(info) => {
                self.in_contact = true;
                self.apply(*info);
            }
            Change::Deleted(uid) => {
                self.in_contact = true;
                self.delete(&uid, now);
            }
            Change::Listed => {
                (self.in_contact, self.answered) = (true, true);
                let listed = self.listed.take().unwrap_or_default();
                let missing: Vec<_> = self.by_uid.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                missing.iter().for_each(|uid| self.delete(uid, now));
            }
            Change::Namespace(name, labels) => {
                self.namespaces_in_contact = true;
                self.name_space(name, labels);
            }
            Change::Namespaces(all) => {
                self.namespaces_in_contact = true;
                let over: Vec<_> = self.namespaces.keys().filter(|name| !all.contains(*name)).cloned().collect();
                over.into_iter().for_each(|name| self.name_space(name, None));
            }
        }
    }

    fn apply(&mut self, mut info: PodInfo) {
        let uid = info.pod.uid.clone();
        if uid.is_empty() {
            return;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.clone());
        }
        let before = self.remove(&uid);
        if before.is_none() && self.by_uid.len() >= LIMIT && !self.make_room() {
            let detail = format!("{LIMIT} pods are remembered; {} is not", info.pod.name);
            self.notices.add("enrich", "pods_full", 1, detail);
            return;
        }
        // The status forgets all but the last two ids of a container.
        if let Some(before) = before {
            let room = IDS.saturating_sub(info.containers.len());
            let older = before.info.containers.into_iter().filter(|(id, _)| !info.containers.contains_key(id));
            let older: Vec<_> = older.take(room).collect();
            info.containers.extend(older);
        }
        let bytes = size_of_labels(&info.pod.labels);
        if bytes > LABELS || self.label_bytes + bytes > ALL_LABELS {
            let detail = format!("{}/{} has {bytes} bytes of labels", info.pod.namespace, info.pod.name);
            self.notices.add("enrich", "labels_full", 1, format!("{detail}; every selector of labels selects it"));
            info.pod.labels.clear();
            info.pod.labels_cut = true;
        }
        self.label_bytes += size_of_labels(&info.pod.labels);
        if let Some(hash) = &info.hash {
            self.by_hash.entry(hash.clone()).or_default().insert(uid.clone());
        }
        let namespace_labels = self.namespaces.get(&info.pod.namespace).cloned();
        let pod = Arc::new(Pod { namespace_labels, ..info.pod.clone() });
        self.by_uid.insert(uid, Entry { info, pod, containers: HashMap::new(), gone: None });
    }

    /// Takes a pod out with all that points to it.
    fn remove(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.by_uid.remove(uid)?;
        self.label_bytes = self.label_bytes.saturating_sub(size_of_labels(&entry.info.pod.labels));
        if let Some(hash) = &entry.info.hash
            && let Some(uids) = self.by_hash.get_mut(hash)
        {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_hash.remove(hash);
            }
        }
        Some(entry)
    }

    /// Anybody may make pods for this node that the kubelet refuses to run: those have ended.
    fn make_room(&mut self) -> bool {
        let done = self.by_uid.iter().find(|(_, entry)| entry.gone.is_some() || entry.info.ended);
        let uid = done.map(|(uid, _)| uid.clone());
        uid.is_some_and(|uid| self.remove(&uid).is_some())
    }

    fn delete(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.by_uid.get_mut(uid) {
            entry.gone.get_or_insert(now);
        }
    }

    fn name_space(&mut self, name: String, labels: Option<Labels>) {
        let before = self.namespaces.remove(&name).map_or(0, |labels| size_of_labels(&labels));
        self.label_bytes = self.label_bytes.saturating_sub(before);
        let known = labels.is_some();
        let labels = labels.filter(|labels| self.label_bytes + size_of_labels(labels) <= ALL_LABELS);
        if known && labels.is_none() {
            let detail = format!("labels of namespace {name} find no room; every selector of them selects it");
            self.notices.add("enrich", "labels_full", 1, detail);
        }
        if let Some(labels) = &labels {
            self.label_bytes += size_of_labels(labels);
            self.namespaces.insert(name.clone(), labels.clone());
        }
        for entry in self.by_uid.values_mut().filter(|entry| entry.pod.namespace == name) {
            entry.pod = Arc::new(Pod { namespace_labels: labels.clone(), ..(*entry.pod).clone() });
        }
    }

    /// Forgets pods that were deleted a while ago, unless their cgroups are still there: then they run, whatever the API
    /// server has lost.
    pub(super) fn expire(&mut self, now: Instant, alive: &HashSet<&str>) {
        let over = |entry: &Entry| {
            let uids = [Some(&entry.info.pod.uid), entry.info.hash.as_ref()];
            entry.gone.is_some_and(|since| now.duration_since(since) >= TOMBSTONE)
                && !uids.into_iter().flatten().any(|uid| alive.contains(uid.as_str()))
        };
        let over: Vec<_> =
            self.by_uid.iter().filter(|(_, entry)| over(entry)).map(|(uid, _)| uid.clone()).collect();
        over.iter().for_each(|uid| drop(self.remove(uid)));
    }

    /// The container and pod that a cgroup tells of; and what is not known of them.
    pub(super) fn place(&mut self, home: &Home, policies: &PolicySet) -> (Place, Option<Missing>) {
        let bare = || Place { container: Some(home.container.clone()), pod: None };
        let Some(uid) = &home.container.pod_uid else { return (bare(), None) };
        let uid = if self.by_uid.contains_key(uid) { Some(uid.clone()) } else { self.static_pod(uid) };
        let Some(entry) = uid.and_then(|uid| self.by_uid.get_mut(&uid)) else {
            return (bare(), Some(Missing::Pod));
        };
        let container = entry.container(home);
        let wants = policies.wants_namespace_labels();
        if !wants && entry.pod.namespace_labels.is_none() {
            let labels = PolicySet::labels_of_namespace(&entry.pod.namespace);
            entry.pod = Arc::new(Pod { namespace_labels: Some(labels), ..(*entry.pod).clone() });
        }
        let known = !wants || self.namespaces.contains_key(&entry.pod.namespace);
        let pod = if known {
            entry.pod.clone()
        } else {
            Arc::new(Pod { namespace_labels: None, ..(*entry.pod).clone() })
        };
        (Place { container: Some(container), pod: Some(pod) }, (!known).then_some(Missing::Namespace))
    }

    /// The one pod that claims to be the static one of this hash, those that are deleted aside if another does. Two that
    /// claim the same are neither.
    fn static_pod(&self, hash: &str) -> Option<String> {
        let claims = self.by_hash.get(hash)?;
        let is_there = |uid: &&String| self.by_uid.get(*uid).is_some_and(|entry| entry.gone.is_none());
        let there: Vec<&String> = claims.iter().filter(is_there).collect();
        let only = if there.is_empty() { claims.iter().collect() } else { there };
        if let [only] = only[..] { Some(only.clone()) } else { None }
    }

    /// Whether it is worth waiting for what the API server may say.
    pub(super) fn may_tell(&self, what: Missing) -> bool {
        match what {
            Missing::Pod => self.in_contact,
            Missing::Namespace => self.namespaces_in_contact,
            Missing::Program | Missing::Cgroup => false,
        }
    }

    /// The API server answers, and knows of none.
    pub(super) fn is_empty_in_contact(&self) -> bool {
        self.in_contact && self.answered && self.by_uid.is_empty()
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }
}

impl Entry {
    /// The container with its name, as far as it is known. The only container of a pod needs no status, unless it may be
    /// the sandbox, which is made first.
    fn container(&mut self, home: &Home) -> Arc<Container> {
        let id = &home.container.id;
        if let Some(made) = self.containers.get(id) {
            return made.clone();
        }
        let only = self.info.only.as_ref().filter(|_| !home.first);
        let Some(described) = self.info.containers.get(id).or(only) else { return home.container.clone() };
        let made = Arc::new(Container {
            runtime: described.runtime.clone().or_else(|| home.container.runtime.clone()),
            name: Some(described.name.clone()),
            image: Some(described.image.clone()).filter(|image| !image.is_empty()),
            image_tag: described.tag.clone(),
            image_digest: described.digest.clone(),
            ..(*home.container).clone()
        });
        if self.containers.len() < IDS {
            self.containers.insert(id.clone(), made.clone());
        }
        made
    }
}

pub(super) fn size_of_labels(labels: &Labels) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Pods {
        Pods::new(true, Notices::default())
    }

    fn info(uid: &str) -> PodInfo {
        let pod = Pod { uid: uid.into(), name: format!("pod-{uid}"), namespace: "shop".into(), ..Pod::default() };
        PodInfo { pod, ..PodInfo::default() }
    }

    fn home(uid: &str, id: &str, first: bool) -> Home {
        let pod_uid = Some(uid.to_owned());
        Home { container: Arc::new(Container { id: id.into(), pod_uid, ..Container::default() }), first }
    }

    fn name(pods: &mut Pods, uid: &str) -> Option<String> {
        let (place, missing) = pods.place(&home(uid, "c", false), &PolicySet::default());
        assert_eq!(place.pod.is_none(), missing == Some(Missing::Pod));
        place.pod.map(|pod| pod.name.clone())
    }

    #[test]
    fn a_deleted_pod_is_known_for_a_while_and_longer_while_it_runs() {
        let (mut pods, now) = (pods(), Instant::now());
        pods.change(Change::Applied(Box::new(info("u"))), now);
        pods.change(Change::Deleted("u".into()), now);
        let later = now + TOMBSTONE;
        pods.expire(later, &HashSet::from(["u"]));
        assert_eq!(name(&mut pods, "u"), Some("pod-u".into()));
        pods.expire(later, &HashSet::new());
        assert_eq!(name(&mut pods, "u"), None);
        assert_eq!(pods.len(), 0);
    }

    #[test]
    fn a_list_leaves_out_what_was_deleted_meanwhile() {
        let (mut pods, now) = (pods(), Instant::now());
        for uid in ["a", "b"] {
            pods.change(Change::Applied(Box::new(info(uid))), now);
        }
        pods.change(Change::Silent, now);
        pods.change(Change::Began, now);
        assert!(!pods.may_tell(Missing::Pod), "it has not said anything");
        // Broken off in the middle.
        pods.change(Change::Applied(Box::new(info("a"))), now);
        pods.change(Change::Began, now);
        pods.change(Change::Applied(Box::new(info("b"))), now);
        assert_eq!(name(&mut pods, "a"), Some("pod-a".into()), "the list is not at its end");
        pods.change(Change::Listed, now);
        pods.expire(now + TOMBSTONE, &HashSet::new());
        assert_eq!((name(&mut pods, "a"), name(&mut pods, "b")), (None, Some("pod-b".into())));
        assert!(pods.may_tell(Missing::Pod));
    }

    #[test]
    fn two_that_claim_the_uid_of_a_static_pod_are_neither() {
        let (mut pods, now, hash) = (pods(), Instant::now(), "f".repeat(32));
        let mirror = |uid: &str| PodInfo { hash: Some("f".repeat(32)), ..info(uid) };
        pods.change(Change::Applied(Box::new(mirror("a"))), now);
        assert_eq!(name(&mut pods, &hash), Some("pod-a".into()));
        pods.change(Change::Applied(Box::new(mirror("b"))), now);
        assert_eq!(name(&mut pods, &hash), None);
        // Whoever may make pods may make such a claim, but it does not outlive his pod.
        pods.change(Change::Deleted("b".into()), now);
        assert_eq!(name(&mut pods, &hash), Some("pod-a".into()));
        // A uid of the API server's own is nobody's to claim.
        pods.change(Change::Applied(Box::new(PodInfo { hash: Some("a".into()), ..info("c") })), now);
        assert_eq!(name(&mut pods, "a"), Some("pod-a".into()));
    }

    #[test]
    fn the_only_container_of_a_pod_needs_no_status_and_the_sandbox_is_not_it() {
        let (mut pods, now) = (pods(), Instant::now());
        let only = Some(Described::new("main", "nginx:1", ""));
        pods.change(Change::Applied(Box::new(PodInfo { only, ..info("u") })), now);
        let mut of = |id: &str, first| {
            let (place, _) = pods.place(&home("u", id, first), &PolicySet::default());
            place.container.unwrap().name.clone()
        };
        assert_eq!((of("sandbox", true), of("c", false)), (None, Some("main".into())));
    }

    #[test]
    fn pods_that_nobody_runs_do_not_crowd_out_the_others_and_labels_are_bounded() {
        let (mut pods, now) = (pods(), Instant::now());
        for n in 0..2 * LIMIT {
            pods.change(Change::Applied(Box::new(PodInfo { ended: true, ..info(&n.to_string()) })), now);
        }
        assert_eq!(pods.len(), LIMIT);
        pods.change(Change::Applied(Box::new(info("real"))), now);
        assert_eq!(name(&mut pods, "real"), Some("pod-real".into()));
        let mut large = info("large");
        large.pod.labels.insert("k".into(), "v".repeat(LABELS));
        pods.change(Change::Applied(Box::new(large)), now);
        let (place, _) = pods.place(&home("large", "c", false), &PolicySet::default());
        let pod = place.pod.unwrap();
        assert!(pod.labels_cut && pod.labels.is_empty() && pods.label_bytes == 0);
        let reasons: Vec<_> = pods.notices.take().iter().map(|notice| notice.reason).collect();
        assert_eq!(reasons, ["labels_full"]);
    }
}
