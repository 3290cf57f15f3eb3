//! Policies that are objects of the API server, kept within bounds: anybody with rights in a namespace may write them.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Kind, parse::Key};

/// Most PathPolicies of one namespace, and of all.
pub(super) const NAMESPACE_LIMIT: usize = 64;
pub(super) const TENANTS_LIMIT: usize = 1000;
/// Most bytes of one PathPolicy, of all of a namespace, and of all.
const TENANT_BYTES: usize = 64 << 10;
const NAMESPACE_BYTES: usize = 512 << 10;
const TENANTS_BYTES: usize = 8 << 20;
/// Most bytes of one ClusterPathPolicy, and of all.
const CLUSTER_POLICY_BYTES: usize = 1 << 20;
const CLUSTER_BYTES: usize = 16 << 20;
/// Most PathPolicies of which as much as the name is kept, of one namespace and of all.
const KEPT_OF_NAMESPACE: usize = 4 * NAMESPACE_LIMIT;
const KEPT: usize = 65_536;
/// So many are gathered at most before those are let go that there is no room for.
const GATHERED: usize = 256;

/// What makes an object one and the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a ClusterPathPolicy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tells it from another that had its name before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Reference {
    /// Where it comes from, in alerts and messages, whatever its version.
    pub(super) fn place(&self) -> String {
        let Self { kind, namespace, name, .. } = self;
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        format!("kubernetes:{kind:?}/{namespace}{name}")
    }

    /// The same as documents have it.
    pub(super) fn key(&self) -> Key {
        (format!("{:?}", self.kind), self.namespace.clone(), self.name.clone())
    }
}

/// A policy as an object, as far as it is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Which one.
    pub reference: Reference,
    /// Grows with every change of its spec.
    pub generation: i64,
    /// When it was made, in seconds since 1970: the older has the older right.
    pub created: i64,
    /// Its document as YAML, without what only the API server needs; None if there is no room for it.
    pub text: Option<Arc<str>>,
    /// Bytes of that text.
    pub size: usize,
    /// Why there is no room for it.
    pub refused: Option<String>,
}

/// All objects of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    all: BTreeMap<Reference, Object>,
    /// PathPolicies of which nothing is kept.
    beyond: u64,
    /// Kinds of which the API server has told what there is.
    told: BTreeSet<Kind>,
}

impl Objects {
    /// Whether this very version is there.
    #[must_use]
    pub fn has(&self, object: &Object) -> bool {
        self.all.get(&object.reference) == Some(object)
    }

    /// Takes in a new object, or a new version.
    pub fn apply(&mut self, object: Object) {
        self.gather(object);
        self.admit();
    }

    /// The same of one of many: there may be more than there is room for until all are there.
    pub fn gather(&mut self, object: Object) {
        if object.reference.kind == Kind::PathPolicy && !self.make_place(&object) {
            self.beyond += 1;
            return;
        }
        self.all.insert(object.reference.clone(), object);
        // Texts that there is no room for must not pile up meanwhile.
        if self.all.len().is_multiple_of(GATHERED) {
            self.admit();
        }
    }

    /// Forgets one; true if there is room now for another that was refused, which must be fetched again.
    pub fn delete(&mut self, reference: &Reference) -> bool {
        self.all.remove(reference);
        self.admit() || std::mem::take(&mut self.beyond) > 0
    }

    /// Puts `objects` in place of all of their kind; of those that are not kept in full, others may be by now.
    pub fn replace(&mut self, kind: Kind, objects: Self) {
        self.all.retain(|reference, _| reference.kind != kind);
        self.all.extend(objects.all);
        self.told.insert(kind);
        if kind == Kind::PathPolicy {
            self.beyond = objects.beyond;
        }
        self.admit();
    }

    /// Whether the API server has told of both kinds.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.told.len() == Kind::ALL.len()
    }

    /// Whether it would be news that there are none of `kind`.
    pub(super) fn has_news_without(&self, kind: Kind) -> bool {
        !self.told.contains(&kind) || self.all.keys().any(|reference| reference.kind == kind)
    }

    /// How many there are of which not even the name is kept.
    #[must_use]
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    /// All of them, the oldest first: every sensor and the controller come to the same when there are too many.
    #[must_use]
    pub fn in_order(&self) -> Vec<Object> {
        let mut all: Vec<Object> = self.all.values().cloned().collect();
        all.sort_by(|one, other| (one.created, &one.reference).cmp(&(other.created, &other.reference)));
        all
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Makes place for a PathPolicy, at the cost of a younger one of its namespace if that has its share.
    fn make_place(&mut self, object: &Object) -> bool {
        let Reference { kind, namespace, .. } = &object.reference;
        if self.all.contains_key(&object.reference) {
            return true;
        }
        let first =
            Reference { kind: *kind, namespace: namespace.clone(), name: String::new(), uid: String::new() };
        let own =
            self.all.range(first..).take_while(|(other, _)| other.kind == *kind && other.namespace == *namespace);
        let (count, youngest) = own.fold((0, None), |(count, youngest), (reference, other)| {
            (count + 1, youngest.max(Some((other.created, reference))))
        });
        if count < KEPT_OF_NAMESPACE {
            return self.all.len() < KEPT;
        }
        let Some((created, youngest)) = youngest.map(|(created, youngest)| (created, youngest.clone())) else {
            return false;
        };
        let older = object.created < created;
        if older {
            self.all.remove(&youngest);
            self.beyond += 1;
        }
        older
    }

    /// Lets in as much as there is room for, the oldest first; true if one is let in whose text is gone.
    fn admit(&mut self) -> bool {
        let mut order: Vec<(i64, Reference)> =
            self.all.iter().map(|(reference, object)| (object.created, reference.clone())).collect();
        order.sort();
        let (mut room, mut wanted) = (Room::default(), false);
        for (_, reference) in order {
            let Some(object) = self.all.get_mut(&reference) else { continue };
            object.refused = room.take(&reference, object.size).err();
            if object.refused.is_some() {
                object.text = None;
            }
            wanted |= object.refused.is_none() && object.text.is_none();
        }
        wanted
    }
}

/// What has been let in.
#[derive(Default)]
struct Room {
    namespaces: HashMap<String, (usize, usize)>,
    tenants: (usize, usize),
    cluster: usize,
}

impl Room {
    /// Takes `size` bytes for an object, or says why not.
    fn take(&mut self, reference: &Reference, size: usize) -> Result<(), String> {
        let limit = if reference.kind == Kind::PathPolicy { TENANT_BYTES } else { CLUSTER_POLICY_BYTES };
        if size > limit {
            return Err(format!("{size} bytes; a {:?} may have {limit}", reference.kind));
        }
        if reference.kind == Kind::ClusterPathPolicy {
            if self.cluster + size > CLUSTER_BYTES {
                return Err(format!("the ClusterPathPolicies before it have {CLUSTER_BYTES} bytes already"));
            }
            self.cluster += size;
            return Ok(());
        }
        let own = self.namespaces.entry(reference.namespace.clone()).or_default();
        let (count, bytes) = &mut self.tenants;
        if own.0 >= NAMESPACE_LIMIT {
            return Err(format!("the namespace has {NAMESPACE_LIMIT} PathPolicies already"));
        }
        if own.1 + size > NAMESPACE_BYTES {
            return Err(format!("the namespace's PathPolicies have {NAMESPACE_BYTES} bytes already"));
        }
        if *count >= TENANTS_LIMIT || *bytes + size > TENANTS_BYTES {
            return Err(format!(
                "there are {TENANTS_LIMIT} PathPolicies, or {TENANTS_BYTES} bytes of them, already"
            ));
        }
        (own.0, own.1, *count, *bytes) = (own.0 + 1, own.1 + size, *count + 1, *bytes + size);
        Ok(())
    }
}

/// What a sensor has made of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// This generation is in force.
    Active,
    /// It is good, and switched off.
    Suspended,
    /// This generation is bad, and the last good one is in force.
    Stale,
    /// It is bad, and no version of it is in force.
    Failed,
    /// There is no room for it.
    Refused,
}

/// An object, and what a sensor has made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Which one.
    #[serde(flatten)]
    pub reference: Reference,
    /// The generation that was looked at.
    pub generation: i64,
    /// What came of it.
    pub state: State,
    /// Why, if it is not in force as it stands.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, name: usize, created: i64, size: usize) -> Object {
        let kind = if namespace.is_empty() { Kind::ClusterPathPolicy } else { Kind::PathPolicy };
        let reference =
            Reference { kind, namespace: namespace.into(), name: format!("p{name}"), uid: String::new() };
        let text = Some("x".repeat(size).into());
        Object { reference, generation: 1, created, text, size, refused: None }
    }

    fn refused(objects: &Objects) -> Vec<String> {
        objects.in_order().into_iter().filter(|o| o.refused.is_some()).map(|o| o.reference.name).collect()
    }

    #[test]
    fn a_namespace_has_its_share_and_the_oldest_come_first_in_any_order() {
        let mut objects = Objects::default();
        for n in (0..NAMESPACE_LIMIT + 2).rev() {
            objects.apply(object("a", n, n as i64, 100));
        }
        objects.apply(object("b", 1000, 1000, 100));
        objects.apply(object("", 1001, 0, 100));
        assert_eq!(refused(&objects), ["p64", "p65"]);
        assert!(objects.in_order().iter().all(|o| o.refused.is_some() == o.text.is_none()));
        // What was refused has no text any more, and must be fetched when there is room.
        assert!(!objects.delete(&object("b", 1000, 0, 0).reference));
        assert!(objects.delete(&object("a", 3, 0, 0).reference));
        assert_eq!(refused(&objects), ["p65"]);
    }

    #[test]
    fn bytes_are_bounded_by_object_namespace_and_in_all() {
        let mut objects = Objects::default();
        objects.apply(object("a", 0, 0, TENANT_BYTES + 1));
        for n in 1..=9 {
            objects.apply(object("a", n, n as i64, TENANT_BYTES));
        }
        assert_eq!(refused(&objects), ["p0", "p9"]);
        for n in 0..1100 {
            objects.apply(object(&format!("n{}", n / 60), n, 100 + n as i64, 40_000));
        }
        let held: usize = objects.in_order().iter().filter_map(|o| o.text.as_ref()).map(|text| text.len()).sum();
        assert!((TENANTS_BYTES - 100_000..=TENANTS_BYTES).contains(&held), "{held}");
        let mut objects = Objects::default();
        for n in 0..17 {
            objects.apply(object("", n, n as i64, CLUSTER_POLICY_BYTES));
        }
        objects.apply(object("", 17, 17, CLUSTER_POLICY_BYTES + 1));
        assert_eq!(refused(&objects), ["p16", "p17"]);
    }

    #[test]
    fn names_without_end_are_not_kept() {
        let mut objects = Objects::default();
        for n in (0..20_000).rev() {
            objects.gather(object("a", n, n as i64, 0));
        }
        assert_eq!((objects.len(), objects.beyond), (KEPT_OF_NAMESPACE, 20_000 - KEPT_OF_NAMESPACE as u64));
        assert!(objects.in_order().iter().zip(0..).all(|(kept, n)| kept.created == n), "the oldest are kept");
        // They take nobody else's place.
        objects.apply(object("z", 0, 30_000, 1));
        objects.apply(object("", 1, 0, 1));
        assert_eq!(
            (objects.len(), refused(&objects).len()),
            (KEPT_OF_NAMESPACE + 2, KEPT_OF_NAMESPACE - NAMESPACE_LIMIT)
        );
        assert!(objects.has(&object("", 1, 0, 1)));
        assert!(objects.delete(&object("a", 3, 0, 0).reference), "those that are not kept are fetched");
        objects.replace(Kind::PathPolicy, Objects::default());
        assert!(objects.len() == 1 && !objects.is_whole());
        objects.replace(Kind::ClusterPathPolicy, Objects::default());
        assert!(objects.is_empty() && objects.is_whole());
    }
}
