//! A policy held to its own examples.
use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Verdict, explain};
use crate::{
    event::{
        Call, CaptureMode, Container, Enriched, Enrichment, Event, File, Ids, Name, Operation, Owner, Pod,
        Program, flags,
    },
    policy::{Compiled, Example, Fault, Kind, Outcome, PolicySet, Subjects},
};

/// A fault for each example of `policy` that does not behave.
#[must_use]
pub fn run_examples(policy: &Arc<Compiled>) -> Vec<Fault> {
    // Suspending a policy does not change what it says.
    let mut active = policy.clone();
    if policy.policy.spec.suspend {
        let mut awake = policy.policy.clone();
        awake.spec.suspend = false;
        let Ok(awake) = Compiled::new(awake, policy.source.clone(), vec![]) else { return Vec::new() };
        active = Arc::new(awake);
    }
    let set = PolicySet::new(vec![active]);
    let examples = &policy.policy.spec.examples;
    let pods = policy.policy.kind == Kind::PathPolicy
        || policy.policy.spec.subjects.unwrap_or_default() == Subjects::Pods;
    let namespace = policy.policy.metadata.namespace.as_deref();
    let verdict = |example: &Example| explain(&event_of(example, pods, namespace), &set).into_iter().next();
    let mut faults = Vec::new();
    for (at, example) in examples.fires.iter().enumerate() {
        match verdict(example) {
            Some(Verdict::Fires(..)) | None => {}
            Some(other) => {
                let message = format!("this example does not fire: {}", other.because(policy));
                let help = "mend the policy, or move the example to silent";
                faults.push(Fault::error(format!("spec.examples.fires[{at}]"), message, help));
            }
        }
    }
    for (at, example) in examples.silent.iter().enumerate() {
        if let Some(Verdict::Fires(view, pattern)) = verdict(example) {
            let message = format!("this example fires: {}", Verdict::Fires(view, pattern).because(policy));
            let help = "mend the policy, or move the example to fires";
            faults.push(Fault::error(format!("spec.examples.silent[{at}]"), message, help));
        }
    }
    faults
}

impl Verdict {
    /// A clause for a person: why the policy fires, or why not.
    #[must_use]
    pub fn because(&self, policy: &Compiled) -> String {
        let spec = &policy.policy.spec;
        let pattern = |at: &u32| spec.paths.get(*at as usize).cloned().unwrap_or_default();
        match self {
            Self::Fires(view, at) => format!("its {} matches '{}'", view.word(), pattern(at)),
            Self::Subject => "the policy speaks of other processes (spec.subjects)".to_owned(),
            Self::NamespaceUnknown => "the namespace of the process is unknown".to_owned(),
            Self::Namespace => "it is another namespace".to_owned(),
            Self::Pod => "the pod has other labels (spec.podSelector)".to_owned(),
            Self::Container => "it is another container (spec.containerSelector)".to_owned(),
            Self::Result => "it ended otherwise (spec.results)".to_owned(),
            Self::Path => "no pattern matches".to_owned(),
            Self::Operation(view, at) => {
                format!(
                    "its {} matches '{}', but this is another operation (spec.operations)",
                    view.word(),
                    pattern(at)
                )
            }
            Self::Files => "it is somebody else's file (spec.files)".to_owned(),
            Self::Excluded(view, by) => format!("exclude '{by}' matches its {}", view.word()),
            Self::Excepted(at) => format!("exception {} covers it", at + 1),
        }
    }
}

/// The event that `example` describes, in a pod if it says something of one or if `pods` are all there is.
#[must_use]
pub fn event_of(example: &Example, pods: bool, namespace: Option<&str>) -> Enriched {
    let in_pod = pods
        || example.namespace.is_some()
        || example.container.is_some()
        || example.image.is_some()
        || !(example.pod_labels.is_empty() && example.namespace_labels.is_empty());
    let program = |path: Option<&String>| Program {
        pid: 2,
        executable: path.map(|path| Name::from(path.as_str())),
        trusted: example.trusted.unwrap_or(true),
        ..Program::default()
    };
    let pod = in_pod.then(|| Pod {
        name: "example".to_owned(),
        namespace: example.namespace.as_deref().or(namespace).unwrap_or("default").to_owned(),
        labels: example.pod_labels.clone(),
        namespace_labels: Some(namespace_labels(example, namespace)),
        ..Pod::default()
    });
    let container = in_pod.then(|| Container {
        id: "0".repeat(64),
        name: example.container.clone(),
        image: example.image.clone(),
        ..Container::default()
    });
    Enriched {
        event: access(example),
        process: Arc::new(Program {
            script: example.script.as_deref().map(Name::from),
            sha256: example.sha256.as_ref().map(|sum| sum.to_lowercase()),
            ..program(example.by.as_ref())
        }),
        ancestors: example.ancestors.iter().map(|path| Arc::new(program(Some(path)))).collect(),
        user: example.user,
        cgroup_path: Some("/example".into()),
        container: container.map(Arc::new),
        pod: pod.map(Arc::new),
        moved_from: None,
        owner: Some(if in_pod && example.home.is_some() { Owner::Host } else { Owner::Own }),
        known_as: Vec::new(),
        target_known_as: Vec::new(),
        enrichment: Enrichment::Complete,
        missing: Vec::new(),
    }
}

/// Every namespace has its own name as a label (kubernetes.io/metadata.name).
fn namespace_labels(example: &Example, namespace: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = example.namespace_labels.clone();
    let name = example.namespace.as_deref().or(namespace).unwrap_or("default");
    labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| name.to_owned());
    labels
}

fn access(example: &Example) -> Event {
    let name = |text: &Option<String>| text.as_deref().map(Name::from);
    let (call, asked) = match example {
        Example { rename: Some(old), .. } => (Call::Rename, Some(old)),
        Example { link: Some(old), .. } => (Call::Link, Some(old)),
        Example { delete: Some(old), .. } => (Call::Delete, Some(old)),
        Example { open, .. } => (Call::Open, open.as_ref()),
    };
    let operation = example.operation.unwrap_or(Operation::Read);
    let result = match example.result.unwrap_or(Outcome::Success) {
        Outcome::Success => 0,
        Outcome::Denied => -13,
        Outcome::Missing => -2,
        Outcome::Error => -5,
    };
    let found = result == 0;
    let asked = asked.map(|text| Name::from(text.as_str()));
    Event {
        time: Timestamp::UNIX_EPOCH,
        boot_id: Uuid::nil(),
        mode: CaptureMode::Fexit,
        cpu: 0,
        hook: 0,
        sequence: 1,
        pid: 2,
        tid: 2,
        initial_pid: None,
        own_pid: None,
        start_ns: 0,
        started: None,
        cgroup_id: 1,
        ids: Ids { uid: example.user.unwrap_or_default(), euid: example.user, ..Ids::default() },
        login_uid: None,
        user_ns: None,
        mount_ns: None,
        pid_ns: None,
        program: None,
        comm: Name::default(),
        call: if operation == Operation::Truncate { Call::Truncate } else { call },
        flags: flags_of(operation),
        result,
        file: found.then(|| File {
            inode: 1,
            device: 1,
            mode: if operation == Operation::List { 0o040_755 } else { 0o100_644 },
            links: 1,
            created: operation == Operation::Create,
        }),
        path: if found { name(&example.resolves).or_else(|| asked.clone()) } else { None },
        inner: None,
        home: name(&example.home),
        more_homes: Vec::new(),
        requested: asked,
        target: name(&example.to),
        target_inner: None,
        target_home: None,
        status: Vec::new(),
    }
}

fn flags_of(operation: Operation) -> u32 {
    match operation {
        Operation::Read | Operation::Rename | Operation::Link | Operation::Delete | Operation::List => 0,
        Operation::Write | Operation::Truncate => flags::O_WRONLY,
        Operation::Create => flags::O_WRONLY | flags::O_CREAT,
        Operation::Exec => flags::EXEC,
        Operation::Reference => flags::O_PATH,
    }
}
