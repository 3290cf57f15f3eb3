//! Which policies speak of which cgroup: decided once for each container, and again when its pod or the policies change.
//! The kernel filter is fed with it.
use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use super::container::Home;
use crate::{event::Place, policy::PolicySet};

/// Which policies speak of the processes in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Their places in the set, sorted.
    pub policies: Arc<[u32]>,
    /// The cgroup is surely in no container.
    pub on_host: bool,
}

/// The decision for all cgroups that are in containers, and those that are surely in none. Any other may be in one: of
/// those every policy speaks.
///
/// Who uses it must hold `policies` against the set in force, and must not apply it to processes that have moved
/// themselves: those are judged by where they were, too.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// The policies that were asked.
    pub policies: Arc<PolicySet>,
    /// By the cgroup's id.
    pub cgroups: HashMap<u64, Target>,
}

/// Keeps the targets current.
pub(super) struct Selection {
    policies: Arc<PolicySet>,
    /// By container's id, what was known of it and what was decided.
    decided: HashMap<String, (Place, Arc<[u32]>)>,
    published: watch::Sender<Arc<Targets>>,
}

impl Selection {
    pub(super) fn new() -> (Self, watch::Receiver<Arc<Targets>>) {
        let (published, receiver) = watch::channel(Arc::default());
        (Self { policies: Arc::default(), decided: HashMap::new(), published }, receiver)
    }

    /// Decides on cgroups of `homes` of which something else is known than before; on those without a home, which are the
    /// host's; and publishes what has changed.
    pub(super) fn refresh<'a>(
        &mut self,
        homes: impl Iterator<Item = (u64, Option<&'a Arc<Home>>)>,
        policies: &Arc<PolicySet>,
        mut place: impl FnMut(&Home) -> Place,
    ) {
        if !Arc::ptr_eq(&self.policies, policies) {
            self.policies = policies.clone();
            self.decided.clear();
        }
        let mut before = std::mem::take(&mut self.decided);
        let mut cgroups = HashMap::new();
        let host: Arc<[u32]> = policies.speaking_of(&Place::default(), true).into();
        for (id, home) in homes {
            let Some(home) = home else {
                cgroups.insert(id, Target { policies: host.clone(), on_host: true });
                continue;
            };
            let name = &home.container.id;
            if !self.decided.contains_key(name) {
                let place = place(home);
                let known = before.remove(name).filter(|(before, _)| *before == place);
                let decision = known.unwrap_or_else(|| {
                    let speaking = policies.speaking_of(&place, false).into();
                    (place, speaking)
                });
                self.decided.insert(name.clone(), decision);
            }
            if let Some((_, decision)) = self.decided.get(name) {
                cgroups.insert(id, Target { policies: decision.clone(), on_host: false });
            }
        }
        let policies = policies.clone();
        self.published.send_if_modified(|targets| {
            let same = Arc::ptr_eq(&targets.policies, &policies) && targets.cgroups == cgroups;
            if !same {
                *targets = Arc::new(Targets { policies, cgroups });
            }
            !same
        });
    }
}
