//! Whom a policy speaks of: the selectors, held against where a process is.
use super::{Compiled, Kind, Policy, PolicySet, Subjects, spec::Spec};
use crate::event::{Container, Place, Pod};

/// Why a policy does not speak of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// It speaks of another kind of process.
    Subject,
    /// The namespace is not known, and a PathPolicy sees its own only.
    NamespaceUnknown,
    /// Another namespace.
    Namespace,
    /// Other labels of the pod.
    Pod,
    /// Another container.
    Container,
}

impl Policy {
    /// The same for policies that speak of the same processes.
    pub(super) fn speaks_to(&self) -> String {
        let Spec { subjects, namespace_selector, pod_selector, container_selector, .. } = &self.spec;
        let namespace = Some(&self.metadata.namespace).filter(|_| self.kind == Kind::PathPolicy);
        format!("{namespace:?} {subjects:?} {namespace_selector:?} {pod_selector:?} {container_selector:?}")
    }
}

impl Compiled {
    /// Whether the policy speaks of processes at `place`; of those that are `on_host`, surely in no container.
    ///
    /// What is unknown is no reason against it: a ClusterPathPolicy rather alerts too often, while a PathPolicy must
    /// never see another namespace.
    ///
    /// # Errors
    /// Why it does not.
    pub fn speaks_of(&self, place: &Place, on_host: bool) -> Result<(), Other> {
        let spec = &self.policy.spec;
        let (container, pod) = (place.container.as_deref(), place.pod.as_deref());
        if self.policy.kind == Kind::PathPolicy {
            let Some(pod) = pod else {
                return Err(if on_host { Other::Subject } else { Other::NamespaceUnknown });
            };
            if self.policy.metadata.namespace.as_ref() != Some(&pod.namespace) {
                return Err(Other::Namespace);
            }
        } else {
            match spec.subjects.unwrap_or_default() {
                Subjects::Pods if on_host => return Err(Other::Subject),
                Subjects::Host if container.is_some() => return Err(Other::Subject),
                Subjects::Pods | Subjects::Host | Subjects::All => {}
            }
        }
        self.selects(container, pod)
    }

    fn selects(&self, container: Option<&Container>, pod: Option<&Pod>) -> Result<(), Other> {
        let spec = &self.policy.spec;
        let labels = pod.and_then(|pod| pod.namespace_labels.as_ref());
        if let (Some(selector), Some(labels)) = (&spec.namespace_selector, labels)
            && !selector.selects(labels)
        {
            return Err(Other::Namespace);
        }
        if let (Some(selector), Some(pod)) = (&spec.pod_selector, pod)
            && !pod.labels_cut
            && !selector.selects(&pod.labels)
        {
            return Err(Other::Pod);
        }
        let name = container.and_then(|container| container.name.as_deref());
        let image = container.and_then(|container| container.image.as_deref());
        let others = [(&self.container_names, name), (&self.container_images, image)];
        let other = others.into_iter().any(|(patterns, text)| {
            patterns.as_ref().zip(text).is_some_and(|(patterns, text)| !patterns.matches_name(text))
        });
        if other { Err(Other::Container) } else { Ok(()) }
    }
}

/// The label that every namespace has, with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl PolicySet {
    /// The policies that speak of processes at `place`, by their places in the set. One that would look closer if the
    /// namespace were known is among them.
    #[must_use]
    pub fn speaking_of(&self, place: &Place, on_host: bool) -> Vec<u32> {
        let policies = self.policies.iter().zip(0..);
        let may =
            |policy: &Compiled| matches!(policy.speaks_of(place, on_host), Ok(()) | Err(Other::NamespaceUnknown));
        policies.filter(|(policy, _)| may(policy)).map(|(_, at)| at).collect()
    }

    /// Whether some policy selects by labels of namespaces that are not known from the namespace's name alone.
    #[must_use]
    pub fn wants_namespace_labels(&self) -> bool {
        let selectors = self.policies.iter().filter_map(|policy| policy.policy.spec.namespace_selector.as_ref());
        let keys = |selector: &super::LabelSelector| {
            let expressions = selector.match_expressions.iter().map(|requirement| requirement.key.clone());
            selector.match_labels.keys().cloned().chain(expressions).collect::<Vec<_>>()
        };
        selectors.flat_map(keys).any(|key| key != NAME_LABEL)
    }

    /// The labels of a namespace of which nothing but the name is known.
    #[must_use]
    pub fn labels_of_namespace(name: &str) -> std::collections::BTreeMap<String, String> {
        [(NAME_LABEL.to_owned(), name.to_owned())].into()
    }
}
