//! `pathwatch policy explain`
use std::collections::BTreeMap;

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Output, json, paint, print};
use crate::{
    cli::Deciding,
    config,
    event::Operation,
    matcher::{Verdict, event_of, explain},
    policy::{Compiled, Example, Outcome, PolicySet, shown},
};

#[derive(Args)]
#[command(after_help = "\
Without PATH: every pattern of every policy, and where it is decided that an open is none of its business: in the \
kernel, in the kernel and then in user space, or in user space only.

Examples:
  pathwatch policy explain /etc/shadow --by /usr/bin/cat
  pathwatch policy explain /etc/shadow --by /usr/sbin/sshd --as 0 --all
  pathwatch policy explain /root/.ssh/authorized_keys --operation write
  pathwatch policy explain /data/key --namespace shop --pod-label app=api --image registry.example/shop/api
  pathwatch policy explain")]
pub(in crate::cli) struct Arguments {
    /// Path of the file
    path: Option<String>,
    /// Path of the program that opens it
    #[arg(long, value_name = "EXE")]
    by: Option<String>,
    /// Effective user id
    #[arg(long = "as", value_name = "UID")]
    user: Option<u32>,
    /// What is done: read, write, create, truncate, rename, link, delete, exec, list or reference
    #[arg(long, value_name = "WORD", default_value = "read", value_parser = word::<Operation>)]
    operation: Operation,
    /// New name, for rename and link
    #[arg(long, value_name = "PATH")]
    to: Option<String>,
    /// How it ends: success, denied, missing or error
    #[arg(long, value_name = "WORD", default_value = "success", value_parser = word::<Outcome>)]
    result: Outcome,
    /// Path that PATH leads to, if it is another one
    #[arg(long, value_name = "PATH")]
    resolves: Option<String>,
    /// Script that the program interprets
    #[arg(long, value_name = "PATH")]
    script: Option<String>,
    /// Parent's program, grandparent's and so on; may be repeated
    #[arg(long = "ancestor", value_name = "EXE")]
    ancestors: Vec<String>,
    /// Namespace of the opener's pod
    #[arg(long)]
    namespace: Option<String>,
    /// Label of the pod; may be repeated
    #[arg(long = "pod-label", value_name = "KEY=VALUE", value_parser = label)]
    pod_labels: Vec<(String, String)>,
    /// Label of its namespace; may be repeated
    #[arg(long = "namespace-label", value_name = "KEY=VALUE", value_parser = label)]
    namespace_labels: Vec<(String, String)>,
    /// Name of the container
    #[arg(long)]
    container: Option<String>,
    /// Image of the container, without tag and digest
    #[arg(long)]
    image: Option<String>,
    /// Also show the policies of which no pattern matches
    #[arg(long)]
    all: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    decide: Deciding,
}

/// A word of the policy language.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(text)).map_err(|why| why.to_string())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (_, loaded) = arguments.decide.load_all()?;
    match &arguments.path {
        None => patterns(&loaded.set, arguments.output),
        Some(path) => access(arguments, path, &loaded.set),
    }
}

/// Every pattern and where it is decided.
fn patterns(set: &PolicySet, output: Output) -> anyhow::Result<()> {
    let all = set
        .policies
        .iter()
        .flat_map(|policy| policy.paths.iter().zip(&policy.policy.spec.paths).map(move |pair| (policy, pair)));
    if output == Output::Json {
        let rows: Vec<Value> = all
            .map(|(policy, (glob, text))| json!({"policy": policy.full_name(), "pattern": text, "decided": glob.decided()}))
            .collect();
        return json(&rows);
    }
    let width = width(set);
    let mut text = paint("1", &format!("{:<width$}  {:<11}  PATTERN", "POLICY", "DECIDED")) + "\n";
    for (policy, (glob, pattern)) in all {
        text += &format!("{:<width$}  {:<11}  {}\n", policy.full_name(), glob.decided(), shown(pattern));
    }
    print(&text)
}

fn width(set: &PolicySet) -> usize {
    set.policies.iter().map(|policy| policy.full_name().len()).max().unwrap_or(0).max("POLICY".len())
}

/// What every policy makes of one access.
fn access(arguments: &Arguments, path: &str, set: &PolicySet) -> anyhow::Result<()> {
    let example = example(arguments, path)?;
    let namespace = arguments.namespace.as_deref();
    let event = event_of(&example, false, namespace);
    let verdicts: Vec<(&Compiled, Verdict)> =
        set.policies.iter().map(AsRef::as_ref).zip(explain(&event, set)).collect();
    if arguments.output == Output::Json {
        return json(&verdicts.iter().map(|(policy, verdict)| row(policy, verdict)).collect::<Vec<_>>());
    }
    let width = width(set);
    let who = if event.container.is_some() { "a process in a pod" } else { "a process of the host" };
    let by = arguments.by.as_deref().unwrap_or("a program of unknown name");
    let mut text = format!("{} {path} by {by}, {who}\n\n", event.event.deed());
    let mut others = 0;
    for (policy, verdict) in &verdicts {
        let fires = matches!(verdict, Verdict::Fires(..));
        // Pods and namespaces aside, what no pattern matches is most of any library.
        if !arguments.all && matches!(verdict, Verdict::Path) {
            others += 1;
            continue;
        }
        let word = if fires { paint("1;31", "fires ") } else { paint("2", "silent") };
        let name = policy.full_name();
        let decided = if fires {
            format!("  [{}, {}]", policy.policy.spec.severity, policy.decided())
        } else {
            String::new()
        };
        text += &format!("{word}  {name:<width$}  {}{decided}\n", shown(&verdict.because(policy)));
    }
    if others > 0 {
        text += &format!("silent  {others} more, of which no pattern matches (--all shows them)\n");
    }
    print(&text)
}

fn row(policy: &Compiled, verdict: &Verdict) -> Value {
    let spec = &policy.policy.spec;
    let hit = if let Verdict::Fires(view, at) | Verdict::Operation(view, at) = verdict {
        Some((view, at))
    } else {
        None
    };
    json!({
        "policy": policy.full_name(),
        "source": policy.source,
        "fires": matches!(verdict, Verdict::Fires(..)),
        "because": verdict.because(policy),
        "view": hit.map(|(view, _)| view),
        "pattern": hit.and_then(|(_, at)| spec.paths.get(*at as usize)),
        "decided": policy.decided(),
    })
}

fn example(arguments: &Arguments, path: &str) -> Result<Example, config::Error> {
    if !path.starts_with('/') || path.split('/').any(|name| name == ".." || name == ".") {
        let what = "does not begin with /, or has a component '.' or '..'";
        return Err(config::Error::new(format!("'{path}' {what}; write the full path as the kernel has it")));
    }
    let map = |labels: &[(String, String)]| labels.iter().cloned().collect::<BTreeMap<_, _>>();
    let verb = |operation| (arguments.operation == operation).then(|| path.to_owned());
    let (rename, link, delete) = (verb(Operation::Rename), verb(Operation::Link), verb(Operation::Delete));
    if arguments.to.is_some() != (rename.is_some() || link.is_some()) {
        return Err(config::Error::new(
            "--to is the new name of a rename or link; give it with these only".to_owned(),
        ));
    }
    let open = rename.as_ref().or(link.as_ref()).or(delete.as_ref()).is_none().then(|| path.to_owned());
    Ok(Example {
        open,
        rename,
        link,
        delete,
        to: arguments.to.clone(),
        operation: Some(arguments.operation),
        result: Some(arguments.result),
        resolves: arguments.resolves.clone(),
        by: arguments.by.clone(),
        user: arguments.user,
        script: arguments.script.clone(),
        ancestors: arguments.ancestors.clone(),
        namespace: arguments.namespace.clone(),
        namespace_labels: map(&arguments.namespace_labels),
        pod_labels: map(&arguments.pod_labels),
        container: arguments.container.clone(),
        image: arguments.image.clone(),
        ..Example::default()
    })
}
