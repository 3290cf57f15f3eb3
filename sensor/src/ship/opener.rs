//! Who opened the file, in the Elastic Common Schema: process, user, container, pod.
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    ecs::kept,
    encoder::Encoder,
    identity::{Node, entity_id},
    text::text,
};
use crate::event::{Container, Enriched, Event, Name, Place, Pod, Program};

/// Kinds of owners that are fields of their own.
const KINDS: [&str; 6] = ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob"];

/// `process`: the kernel's report of it, or marked as read from /proc; and whether secrets were taken out.
pub(super) fn process(encoder: &Encoder, enriched: &Enriched, raw: &mut Map<String, Value>) -> (Value, bool) {
    let (event, program) = (&enriched.event, &enriched.process);
    let agent = encoder.identity.agent_id;
    let entity = |program: &Program| entity_id(agent, event.boot_id, program.pid, program.start_ns);
    let id = |id: Option<u32>| id.map(|id| json!({"id": id.to_string()}));
    let ids = &event.ids;
    let mut redacted = false;
    let mut args = |program: &Program| {
        let args: Vec<String> = program.args.iter().map(|arg| text(&arg)).collect();
        let (args, found) = encoder.redact.args(&args);
        redacted |= found;
        args
    };
    let own = args(program);
    let parent = enriched.ancestors.first().map(|parent| {
        json!({
            "pid": parent.pid,
            "entity_id": entity(parent),
            "name": parent.executable.as_ref().map(base_name),
            "executable": parent.executable.as_ref().map(|exe| kept("process.parent.executable", exe, raw)),
            "args": args(parent),
        })
    });
    let process = json!({
        "pid": event.pid,
        "vpid": event.own_pid,
        "entity_id": entity(program),
        "name": text(&event.comm),
        "executable": program.executable.as_ref().map(|exe| kept("process.executable", exe, raw)),
        "args_count": (!own.is_empty() && !program.args_cut).then_some(own.len()),
        "command_line": (!own.is_empty()).then(|| own.join(" ")),
        "args": own,
        "working_directory": program.cwd.as_ref().map(|cwd| kept("process.working_directory", cwd, raw)),
        "start": event.started.map(|time| time.to_string()),
        "thread": {"id": event.tid},
        "user": id(ids.euid),
        "group": id(ids.egid),
        "real_user": id(Some(ids.uid)),
        "real_group": id(Some(ids.gid)),
        "saved_user": id(ids.suid),
        "saved_group": id(ids.sgid),
        "parent": parent,
    });
    (process, redacted)
}

/// The last component of a path.
pub(super) fn base_name(path: &Name) -> String {
    let bytes = path.as_bytes();
    let name = bytes.iter().rposition(|byte| *byte == b'/').and_then(|at| bytes.get(at + 1..)).unwrap_or(bytes);
    text(&name.to_vec().into())
}

/// What ECS has no field for.
pub(super) fn own(enriched: &Enriched) -> Map<String, Value> {
    let Event { initial_pid, login_uid, pid_ns, mount_ns, user_ns, ids, .. } = &enriched.event;
    let moved = enriched.moved_from.as_deref();
    let value = json!({
        "enrichment": enriched.enrichment,
        "missing": enriched.missing,
        "cgroup": {
            "id": enriched.event.cgroup_id.to_string(),
            "path": enriched.cgroup_path.as_ref().map(text),
            "moved_from": moved.map(place),
        },
        "process": {
            "trusted": enriched.process.trusted,
            "from_proc": enriched.process.from_proc.then_some(true),
            "args_cut": enriched.process.args_cut.then_some(true),
            "script": enriched.process.script.as_ref().map(text),
            "initial_pid": initial_pid,
            "login_uid": login_uid.map(|id| id.to_string()),
            "fs_uid": ids.fsuid.filter(|id| Some(*id) != ids.euid).map(|id| id.to_string()),
            "fs_gid": ids.fsgid.filter(|id| Some(*id) != ids.egid).map(|id| id.to_string()),
            "pid_namespace": pid_ns.map(|inode| inode.to_string()),
            "mount_namespace": mount_ns.map(|inode| inode.to_string()),
            "user_namespace": user_ns.map(|inode| inode.to_string()),
            "ancestors": enriched.ancestors.iter().filter_map(|program| program.executable.as_ref()).map(text).collect::<Vec<_>>(),
        },
    });
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

/// A place that is not the process's own any more.
fn place(place: &Place) -> Value {
    let (container, pod) = (place.container.as_deref(), place.pod.as_deref());
    json!({
        "container_id": container.map(|container| &container.id),
        "namespace": pod.map(|pod| &pod.namespace),
        "pod": pod.map(|pod| &pod.name),
    })
}

/// `container`.
pub(super) fn container(container: &Container) -> Value {
    json!({
        "id": container.id,
        "name": container.name,
        "runtime": container.runtime,
        "image": {
            "name": container.image,
            "tag": container.image_tag.as_ref().map(|tag| [tag]),
            "hash": {"all": container.image_digest.as_ref().map(|digest| [digest])},
        },
    })
}

/// `orchestrator`.
pub(super) fn orchestrator(node: &Node, container: Option<&Container>, pod: Option<&Pod>) -> Value {
    let uid = container.and_then(|container| container.pod_uid.as_ref());
    if uid.is_none() && node.cluster.is_none() {
        return Value::Null;
    }
    // Labels are pairs in one field: a key of its own for each would fill the index's mapping.
    let labels = pod.map(|pod| pod.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>());
    json!({
        "type": "kubernetes",
        "cluster": {"name": node.cluster},
        "namespace": pod.map(|pod| &pod.namespace),
        "resource": uid.map(|uid| json!({
            "type": "pod",
            "id": pod.map_or(uid, |pod| &pod.uid),
            "name": pod.map(|pod| &pod.name),
            "ip": pod.map(|pod| &pod.ips),
            "label": labels,
            "parent": {"type": pod.and_then(|pod| pod.owners.last()).map(|owner| owner.kind.to_lowercase())},
        })),
    })
}

/// `kubernetes`: the names that collectors of logs and metrics use, beside ECS's.
pub(super) fn kubernetes(node: &Node, container: Option<&Container>, pod: &Pod) -> Value {
    let fields = json!({
        "namespace": pod.namespace,
        "node": {"name": node.name},
        "pod": {"name": pod.name, "uid": pod.uid, "ip": pod.ips.first()},
        "container": {"name": container.and_then(|container| container.name.as_ref())},
        "labels": well_known(&pod.labels),
    });
    // Whoever defines a resource chooses its kind: only those of Kubernetes itself become fields.
    let owners = pod.owners.iter().filter(|owner| KINDS.contains(&owner.kind.as_str()));
    let owners = owners.map(|owner| (owner.kind.to_lowercase(), json!({"name": owner.name})));
    if let Value::Object(mut fields) = fields {
        fields.extend(owners);
        return fields.into();
    }
    fields
}

/// The recommended labels (kubernetes.io/docs, "Recommended Labels"), by keys without dots; any other could make a field of
/// its own for each pod.
fn well_known(labels: &BTreeMap<String, String>) -> BTreeMap<String, &String> {
    const NAMES: [&str; 6] = ["name", "instance", "version", "component", "part-of", "managed-by"];
    let wanted = |key: &str| {
        key == "app" || key.strip_prefix("app.kubernetes.io/").is_some_and(|name| NAMES.contains(&name))
    };
    labels
        .iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (key.replace(['.', '/'], "_"), value))
        .collect()
}
