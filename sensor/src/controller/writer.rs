//! Writes status into objects: only what has changed, not too often, and an Event for whoever looks at those.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::ObjectMeta,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::status::condition_of;
use crate::{
    apiserver::Source,
    notice::Notices,
    policy::{Kind, Reference, resource},
};

/// Shortest time between two writes, whatever they are of.
const PACE: Duration = Duration::from_millis(100);
/// Shortest time between two writes of how far one policy has got: every one goes to all sensors that watch.
const PROGRESS: Duration = Duration::from_secs(5);
/// Who writes, for the API server.
const MANAGER: &str = "pathwatch-controller";

/// The writer, and what stands in each status.
pub(super) struct Writer {
    source: Source,
    notices: Notices,
    recorder: Option<Recorder>,
    written: HashMap<Reference, (Value, Instant)>,
    /// What stood there before this controller began is known.
    begun: bool,
    last: Instant,
}

impl Writer {
    pub(super) fn new(source: Source, notices: Notices) -> Self {
        Self { source, notices, recorder: None, written: HashMap::new(), begun: false, last: Instant::now() }
    }

    /// What stands in the status of an object.
    pub(super) fn known(&self, reference: &Reference) -> Option<&Value> {
        self.written.get(reference).map(|(status, _)| status)
    }

    /// Forgets what stands in others than these.
    pub(super) fn forget(&mut self, mut there: impl FnMut(&Reference) -> bool) {
        self.written.retain(|reference, _| there(reference));
    }

    /// Writes `status`, unless it stands there already, or only says how far things have got and that was told lately.
    pub(super) async fn write(&mut self, reference: &Reference, status: Value) {
        if !self.begun {
            self.begin().await;
        }
        let known = self.written.get(reference);
        if known
            .is_some_and(|(known, at)| *known == status || at.elapsed() < PROGRESS && is_progress(known, &status))
        {
            return;
        }
        let events = events(known.map(|(known, _)| known), &status);
        sleep(PACE.saturating_sub(self.last.elapsed())).await;
        self.last = Instant::now();
        match self.put(reference, &status, events).await {
            Ok(()) => drop(self.written.insert(reference.clone(), (status, Instant::now()))),
            // It was deleted, which the watch will tell.
            Err(why) if why.downcast_ref().is_some_and(|why: &kube::Error| is_gone(why)) => {}
            Err(why) => {
                let detail = format!("the status of {reference:?} cannot be written: {why:#}; it is tried again");
                self.notices.add("controller", "status_unwritten", 1, detail);
            }
        }
    }

    async fn put(&mut self, reference: &Reference, status: &Value, events: Vec<Event>) -> anyhow::Result<()> {
        let client = self.source.client()?;
        let kind = resource(reference.kind);
        let api: Api<DynamicObject> = match reference.kind {
            Kind::ClusterPathPolicy => Api::all_with(client.clone(), &kind),
            Kind::PathPolicy => Api::namespaced_with(client.clone(), &reference.namespace, &kind),
        };
        let patch = json!({"apiVersion": kind.api_version, "kind": kind.kind, "status": status});
        let params = PatchParams::apply(MANAGER).force();
        let object = api.patch_status(&reference.name, &params, &Patch::Apply(patch)).await?;
        for event in events {
            self.publish(&client, &object, &kind, event).await;
        }
        Ok(())
    }

    async fn publish(
        &mut self,
        client: &Client,
        object: &DynamicObject,
        kind: &kube::api::ApiResource,
        event: Event,
    ) {
        let ObjectMeta { name, namespace, uid, .. } = object.metadata.clone();
        let regarding = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(kind.api_version.clone()),
            kind: Some(kind.kind.clone()),
            name,
            namespace,
            uid,
            ..Default::default()
        };
        let recorder = self.recorder.get_or_insert_with(|| {
            Recorder::new(client.clone(), Reporter { controller: MANAGER.to_owned(), instance: None })
        });
        if let Err(why) = recorder.publish(&event, &regarding).await {
            self.notices.add("controller", "event_unwritten", 1, format!("an Event cannot be written: {why}"));
        }
    }

    /// Reads what an earlier controller wrote, so as not to write it again.
    async fn begin(&mut self) {
        for kind in Kind::ALL {
            let mut params = ListParams::default().limit(250);
            loop {
                let Ok(client) = self.source.client() else { return };
                let api: Api<DynamicObject> = Api::all_with(client, &resource(kind));
                // Without the CRD there is nothing to read.
                let Ok(list) = api.list(&params).await else { break };
                for object in list.items {
                    let reference = Reference {
                        kind,
                        namespace: object.metadata.namespace.unwrap_or_default(),
                        name: object.metadata.name.unwrap_or_default(),
                    };
                    if let Some(status) = object.data.get("status") {
                        self.written.insert(reference, (status.clone(), Instant::now()));
                    }
                }
                match list.metadata.continue_.filter(|more| !more.is_empty()) {
                    Some(more) => params = params.continue_token(&more),
                    None => break,
                }
            }
        }
        self.begun = true;
    }
}

fn is_gone(why: &kube::Error) -> bool {
    matches!(why, kube::Error::Api(status) if status.code == 404)
}

/// Whether the two differ only in how far things have got.
fn is_progress(known: &Value, status: &Value) -> bool {
    let same = |kind: &str| {
        let of = |status| {
            condition_of(Some(status), kind).map(|condition| (&condition["status"], &condition["reason"]))
        };
        of(known) == of(status)
    };
    known["observedGeneration"] == status["observedGeneration"]
        && ["Accepted", "Programmed", "Degraded"].iter().all(|kind| same(kind))
}

/// What somebody who looks at Events should see of the change.
fn events(known: Option<&Value>, status: &Value) -> Vec<Event> {
    let mut events = Vec::new();
    for (kind, bad) in [("Accepted", "False"), ("Degraded", "True")] {
        let Some(condition) = condition_of(Some(status), kind) else { continue };
        let before = condition_of(known, kind);
        let told = before.is_some_and(|before| {
            before["status"] == condition["status"]
                && (kind == "Degraded" || before["message"] == condition["message"])
        });
        if condition["status"] == bad && !told {
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            events.push(Event {
                type_: EventType::Warning,
                reason: text("reason"),
                // The API server takes 1 KiB.
                note: Some(text("message").chars().take(250).collect()),
                action: if kind == "Accepted" { "Compile" } else { "Program" }.to_owned(),
                secondary: None,
            });
        }
    }
    events
}
