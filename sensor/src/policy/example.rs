//! Accesses that a policy's author has in mind.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{
    diagnostic::{Fault, shortened},
    spec::Outcome,
};
use crate::event::Operation;

/// Accesses on which a policy must fire, and on which it must not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Examples {
    /// The policy fires on each of these.
    pub fires: Vec<Example>,
    /// The policy is silent on each of these.
    pub silent: Vec<Example>,
}

/// One access: `open`, `rename`, `link` or `delete`, and who did it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Example {
    /// The name that is opened.
    pub open: Option<String>,
    /// The old name of a rename.
    pub rename: Option<String>,
    /// The existing name of a link.
    pub link: Option<String>,
    /// The name that is taken away.
    pub delete: Option<String>,
    /// The new name of a rename or link.
    pub to: Option<String>,
    /// What is done to an opened file; by default read.
    pub operation: Option<Operation>,
    /// How it ended; by default success.
    pub result: Option<Outcome>,
    /// The path that the name leads to, if it is another one: through links, a chroot, `/proc/self/root`.
    pub resolves: Option<String>,
    /// The path of the file where it lives, if mounts lie in between.
    pub home: Option<String>,
    /// The program, trusted unless `trusted` says otherwise; absent is a program of unknown name.
    pub by: Option<String>,
    /// Whether the program is the one that root or the image put there; by default true.
    pub trusted: Option<bool>,
    /// SHA-256 sum of the program.
    pub sha256: Option<String>,
    /// The script that the program interprets, executed through its `#!` line.
    pub script: Option<String>,
    /// Parent, grandparent and so on.
    pub ancestors: Vec<String>,
    /// Effective user id.
    #[serde(rename = "as")]
    pub user: Option<u32>,
    /// Namespace of the opener's pod. Any field of a pod makes the opener one; otherwise it is a process of the
    /// host, or of a pod in the namespace `default` without labels if the policy speaks of pods only.
    pub namespace: Option<String>,
    /// Labels of that namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Labels of the pod.
    pub pod_labels: BTreeMap<String, String>,
    /// Name of the container.
    pub container: Option<String>,
    /// Its image, without tag and digest.
    pub image: Option<String>,
}

/// What is wrong with the form of `examples`.
pub(super) fn faults(examples: &Examples) -> Vec<Fault> {
    let fires =
        examples.fires.iter().enumerate().map(|(at, example)| (format!("spec.examples.fires[{at}]"), example));
    let silent =
        examples.silent.iter().enumerate().map(|(at, example)| (format!("spec.examples.silent[{at}]"), example));
    fires.chain(silent).filter_map(|(field, example)| fault(field, example)).collect()
}

fn fault(field: String, example: &Example) -> Option<Fault> {
    let verbs = [&example.open, &example.rename, &example.link, &example.delete];
    if verbs.iter().filter(|verb| verb.is_some()).count() != 1 {
        let help = "give one of open, rename, link and delete";
        return Some(Fault::error(field, "an example is about one access", help));
    }
    if example.open.is_none() && example.operation.is_some()
        || matches!(example.operation, Some(Operation::Rename | Operation::Link | Operation::Delete))
    {
        let help = "write rename, link or delete in place of open; operation is what is done by an open";
        return Some(Fault::error(field, "an operation that does not go with the access", help));
    }
    let two_names = example.rename.is_some() || example.link.is_some();
    if two_names != example.to.is_some() {
        let message =
            if two_names { "a rename or link without its new name" } else { "'to' without rename or link" };
        return Some(Fault::error(field, message, "'to' is the new name of a rename or link"));
    }
    let names =
        verbs.into_iter().chain([&example.to, &example.resolves, &example.home, &example.by, &example.script]);
    let relative = names.flatten().chain(&example.ancestors).find(|name| !name.starts_with('/'))?;
    let message = format!("'{}' does not begin with /", shortened(relative));
    Some(Fault::error(field, message, "write the full path"))
}
