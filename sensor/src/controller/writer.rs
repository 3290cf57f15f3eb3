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
/// How long a client is used.
const CLIENT: Duration = Duration::from_secs(300);
/// Who writes, for the API server.
const MANAGER: &str = "pathwatch-controller";

/// The writer, and what stands in each status.
pub(super) struct Writer {
    source: Source,
    notices: Notices,
    client: Option<(Client, Instant)>,
    written: HashMap<Reference, (Value, Instant)>,
    /// What stood there before this controller began is known.
    begun: bool,
    last: Instant,
}

impl Writer {
    pub(super) fn new(source: Source, notices: Notices) -> Self {
        Self { source, notices, client: None, written: HashMap::new(), begun: false, last: Instant::now() }
    }

    /// What stands in the status of an object.
    pub(super) fn known(&self, reference: &Reference) -> Option<&Value> {
        self.written.get(reference).map(|(status, _)| status)
    }

    /// Forgets what stands in others than these.
    pub(super) fn forget(&mut self, mut there: impl FnMut(&Reference) -> bool) {
        self.written.retain(|reference, _| there(reference));
    }

    /// Writes `status`, unless it stands there already, or only says how far things have got and that was told lately; false
    /// if the API server would not take it.
    pub(super) async fn write(&mut self, reference: &Reference, status: Value) -> bool {
        let known = self.written.get(reference);
        if known
            .is_some_and(|(known, at)| *known == status || at.elapsed() < PROGRESS && is_progress(known, &status))
        {
            return true;
        }
        let events = events(known.map(|(known, _)| known), &status);
        sleep(PACE.saturating_sub(self.last.elapsed())).await;
        self.last = Instant::now();
        match self.put(reference, &status, events).await {
            Ok(()) => {
                self.written.insert(reference.clone(), (status, Instant::now()));
                true
            }
            // It was deleted, or made anew, which the watch will tell.
            Err(why) if why.downcast_ref().is_some_and(|why: &kube::Error| is_gone(why)) => true,
            Err(why) => {
                self.client = None;
                let name = &reference.name;
                let detail = format!("the status of {name} cannot be written: {why:#}; it is tried again");
                self.notices.add("controller", "status_unwritten", 1, detail);
                false
            }
        }
    }

    /// A client, made anew every few minutes, since tokens are replaced.
    fn client(&mut self) -> anyhow::Result<Client> {
        if let Some((client, since)) = &self.client
            && since.elapsed() < CLIENT
        {
            return Ok(client.clone());
        }
        let client = self.source.client()?;
        self.client = Some((client.clone(), Instant::now()));
        Ok(client)
    }

    async fn put(&mut self, reference: &Reference, status: &Value, events: Vec<Event>) -> anyhow::Result<()> {
        let client = self.client()?;
        let kind = resource(reference.kind);
        let api: Api<DynamicObject> = match reference.kind {
            Kind::ClusterPathPolicy => Api::all_with(client.clone(), &kind),
            Kind::PathPolicy => Api::namespaced_with(client.clone(), &reference.namespace, &kind),
        };
        // With the uid it is refused if another object has the name now.
        let metadata = json!({"name": reference.name, "uid": reference.uid});
        let patch =
            json!({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status});
        let params = PatchParams::apply(MANAGER).force();
        let object = api.patch_status(&reference.name, &params, &Patch::Apply(patch)).await?;
        for event in events {
            self.publish(&client, &object, &kind, event).await;
        }
        Ok(())
    }

    async fn publish(&self, client: &Client, object: &DynamicObject, kind: &kube::api::ApiResource, event: Event) {
        let ObjectMeta { name, namespace, uid, .. } = object.metadata.clone();
        let regarding = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(kind.api_version.clone()),
            kind: Some(kind.kind.clone()),
            name,
            namespace,
            uid,
            ..Default::default()
        };
        // One that is used again takes a second fault for a repeat of the first.
        let recorder = Recorder::new(client.clone(), Reporter { controller: MANAGER.to_owned(), instance: None });
        if let Err(why) = recorder.publish(&event, &regarding).await {
            self.notices.add("controller", "event_unwritten", 1, format!("an Event cannot be written: {why}"));
        }
    }

    /// Reads what an earlier controller wrote, so as not to write it again; false if that could not be read.
    pub(super) async fn begin(&mut self) -> bool {
        if self.begun {
            return true;
        }
        if let Err(why) = self.read().await {
            let detail = format!("policies cannot be listed: {why:#}; nothing is written until they are");
            self.notices.add("controller", "status_unread", 1, detail);
        } else {
            self.begun = true;
        }
        self.begun
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        for kind in Kind::ALL {
            let mut params = ListParams::default().limit(250);
            loop {
                let api: Api<DynamicObject> = Api::all_with(self.client()?, &resource(kind));
                let list = match api.list(&params).await {
                    // Without the CRD there is nothing to read.
                    Err(why) if is_gone(&why) => break,
                    list => list?,
                };
                for object in list.items {
                    let reference = Reference {
                        kind,
                        namespace: object.metadata.namespace.unwrap_or_default(),
                        name: object.metadata.name.unwrap_or_default(),
                        uid: object.metadata.uid.unwrap_or_default(),
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
        Ok(())
    }
}

fn is_gone(why: &kube::Error) -> bool {
    matches!(why, kube::Error::Api(status) if matches!(status.code, 404 | 409))
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
