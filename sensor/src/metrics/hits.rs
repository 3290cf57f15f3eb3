//! Alerts by policy: of few, since whoever may write policies chooses how many there are.
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Policies that are counted apart; the others together.
const APART: usize = 1000;

/// How often each policy has fired since the process began.
#[derive(Debug, Default)]
pub struct Hits(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    each: BTreeMap<String, u64>,
    others: u64,
}

impl Hits {
    /// Counts an alert of this policy, by its name with the namespace.
    pub fn add(&self, policy: &str) {
        let Counts { each, others } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = each.get_mut(policy) {
            *count += 1;
        } else if each.len() < APART {
            each.insert(policy.to_owned(), 1);
        } else {
            *others += 1;
        }
    }

    /// Makes room for the policies that there are: forgets those that are not among `known`, and has each of these at zero
    /// until it fires.
    pub fn know<'a>(&self, known: impl Iterator<Item = &'a str>) {
        let Counts { each, others } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(each);
        for policy in known.take(APART) {
            each.insert(policy.to_owned(), before.remove(policy).unwrap_or(0));
        }
        // Those of namespaces are told as one sum, which only grows.
        let gone = before.into_iter().filter(|(policy, _)| policy.contains('/'));
        *others += gone.map(|(_, count)| count).sum::<u64>();
    }

    /// Names and counts, sorted by name.
    #[must_use]
    pub fn each(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).each.clone()
    }

    /// Alerts of policies that are not counted apart, and of those of namespaces that are no more.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_beyond_the_bound_and_those_that_went_are_counted_together() {
        let hits = Hits::default();
        let names: Vec<String> = (0..APART + 5).map(|n| format!("team/policy-{n:04}")).collect();
        hits.know(names.iter().map(String::as_str));
        names.iter().for_each(|name| hits.add(name));
        assert_eq!((hits.each().len(), hits.others()), (APART, 5));
        hits.know(names.iter().take(2).map(String::as_str));
        assert_eq!((hits.each().len(), hits.others()), (2, APART as u64 + 3));
        hits.add("team/policy-0001");
        assert_eq!(hits.each().get("team/policy-0001"), Some(&2));
        // One of the cluster's goes with its series.
        hits.know(["cluster-wide"].into_iter());
        hits.add("cluster-wide");
        hits.know([].into_iter());
        assert_eq!(hits.others(), APART as u64 + 6);
    }
}
