//! Records that are no alerts, in the Elastic Common Schema.
use serde_json::{Value, json};

use super::{
    super::{
        encoder::{Beat, Encoder, Place},
        ledger::Loss,
        opener,
        storm::{Cause, Folded},
    },
    base,
};
use crate::notice::Notice;

/// Alerts that were counted instead of sent.
pub(super) fn summary(encoder: &Encoder, folded: &Folded, place: Place) -> Value {
    let mut document = base(encoder, place, place.created, "alert", "alert");
    let (container, pod) = (folded.container.as_deref(), folded.pod.as_deref());
    let opened = folded.result == 0;
    let more = json!({
        "message": folded.message(),
        "event": {
            "category": if opened { json!(["file"]) } else { json!(["file", "intrusion_detection"]) },
            "type": if opened { json!(["access"]) } else { json!(["access", "denied"]) },
            "action": match folded.cause { Cause::Repeats => "repeated", Cause::Overflow => "limited" },
            "outcome": match (folded.cause, opened) {
                (Cause::Overflow, _) => "unknown",
                (Cause::Repeats, true) => "success",
                (Cause::Repeats, false) => "failure",
            },
            "severity": folded.rule.severity as u8,
            "start": folded.first.to_string(),
            "end": folded.last.to_string(),
        },
        "rule": {
            "id": folded.rule.name, "name": folded.rule.name, "version": folded.rule.version, "ruleset": "pathwatch",
            "category": "file", "description": folded.rule.description,
        },
        "threat": super::threat(&folded.rule.threat),
        "tags": folded.rule.tags,
        "user": {"id": folded.uid.map(|uid| uid.to_string())},
        "file": {"path": folded.path},
        "process": {"executable": folded.executable},
        "container": container.map(opener::container),
        "orchestrator": opener::orchestrator(&encoder.node, container, pod),
        "kubernetes": pod.map(|pod| opener::kubernetes(&encoder.node, container, pod)),
        "pathwatch": {
            "schema_version": super::SCHEMA_VERSION,
            "severity": folded.rule.severity,
            "policy": {"name": folded.rule.name, "namespace": folded.rule.namespace, "version": folded.rule.version},
            "operation": folded.operations,
            "summary": {
                "cause": folded.cause,
                "suppressed": folded.suppressed,
                "limited": folded.limited,
                "first_alert": folded.first_alert,
                "interrupted": folded.interrupted.then_some(true),
                "process": folded.processes.iter().map(|seen| json!({
                    "pid": seen.pid, "uid": seen.uid.to_string(), "start": seen.start.map(|start| start.to_string()),
                    "command_line": (!seen.args.is_empty()).then_some(&seen.args),
                })).collect::<Vec<_>>(),
                "top": folded.top.iter().map(|top| json!({
                    "path": top.path, "executable": top.executable, "count": top.count,
                })).collect::<Vec<_>>(),
                "others": (folded.cause == Cause::Overflow).then_some(folded.others),
            },
        },
    });
    super::merge(&mut document, more);
    document
}

/// Something is gone.
pub(super) fn loss(encoder: &Encoder, loss: &Loss, place: Place) -> Value {
    let mut document = base(encoder, place, place.created, "pipeline_error", "loss");
    let (namespace, pod) = loss.subject.as_deref().and_then(|subject| subject.split_once('/')).unzip();
    let more = json!({
        "message": loss.message(),
        "event": {
            "action": "lost",
            "reason": loss.detail,
            "start": loss.first.to_string(),
            "end": loss.last.to_string(),
        },
        "container": {"id": loss.kind.container},
        "orchestrator": {
            "namespace": namespace, "resource": {"type": pod.map(|_| "pod"), "name": pod},
        },
        "pathwatch": {
            "schema_version": super::SCHEMA_VERSION,
            "policy": {"name": loss.kind.policy},
            "loss": {
                "stage": loss.kind.stage,
                "reason": loss.kind.reason,
                "count": loss.count,
                "numbered": loss.numbered(),
                "first_sequence": loss.ranges.iter().map(|(first, _)| first).min(),
                "last_sequence": loss.ranges.iter().map(|(_, last)| last).max(),
                "ranges": loss.ranges.iter().map(|(first, last)| json!({"first": first, "last": last})).collect::<Vec<_>>(),
            },
        },
    });
    super::merge(&mut document, more);
    document
}

/// Something about the sensor has changed.
pub(super) fn health(encoder: &Encoder, notice: &Notice, place: Place) -> Value {
    let mut document = base(encoder, place, place.created, "state", "health");
    let more = json!({
        "message": format!("{}: {}", notice.stage, notice.detail),
        "event": {"action": notice.reason},
        "pathwatch": {
            "schema_version": super::SCHEMA_VERSION,
            "health": {"stage": notice.stage, "reason": notice.reason, "count": notice.count},
        },
    });
    super::merge(&mut document, more);
    document
}

/// How far the sequence has got, in few bytes: it comes every minute from every node.
pub(super) fn heartbeat(encoder: &Encoder, beat: &Beat, place: Place) -> Value {
    let identity = encoder.identity;
    let totals = &beat.totals;
    json!({
        "@timestamp": place.created.to_string(),
        "ecs": {"version": super::ECS_VERSION},
        "message": if beat.last { "the sensor stops" } else { "alive" },
        "data_stream": {"type": "logs", "dataset": "pathwatch.heartbeat", "namespace": "default"},
        "event": {
            "kind": "metric", "module": "pathwatch", "dataset": "pathwatch.heartbeat",
            "action": if beat.last { "stopped" } else { "alive" },
            "id": place.id, "sequence": place.sequence,
        },
        "agent": {"id": identity.agent_id, "ephemeral_id": identity.epoch},
        "host": {"name": encoder.node.name},
        "pathwatch": {"schema_version": super::SCHEMA_VERSION, "heartbeat": {
            "fired": totals.fired, "shipped": totals.shipped, "waiting": beat.waiting,
            "suppressed": totals.suppressed, "limited": totals.limited, "lost": totals.lost,
            "untold": totals.untold(),
            "spool_bytes": beat.spool.0,
        }},
    })
}
