//! The watch of policies that are objects of the API server. It needs no CRD and no right to begin with: it asks again,
//! and picks the policies up when there are some.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use kube::{
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher::{self, Event},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout_at},
};

use super::{Kind, Object, Objects, Reference};
use crate::{
    apiserver::{SPREAD, Source, from_cache, refuses_streams, spread, status},
    notice::Notices,
};

/// The first pause after an error.
const SOON: Duration = Duration::from_millis(500);
/// The longest: so late a right that was given is noticed.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest pause between two looks for a CRD that is not there.
const ABSENT: Duration = Duration::from_secs(60);
/// How often objects that were refused are fetched again, at most: whoever makes and deletes them must not have all
/// sensors list all policies all the time.
const AGAIN: Duration = Duration::from_secs(10);

/// The resource of `kind`.
#[must_use]
pub fn resource(kind: Kind) -> ApiResource {
    let gvk = GroupVersionKind::gvk("pathwatch.dev", "v1alpha1", &format!("{kind:?}"));
    ApiResource::from_gvk_with_plural(&gvk, kind.plural())
}

/// What is of use of an object of the API server, as the text that a file would have.
fn object_of(kind: Kind, object: DynamicObject) -> Object {
    let metadata = object.metadata;
    let (name, namespace) = (metadata.name.unwrap_or_default(), metadata.namespace.unwrap_or_default());
    let uid = metadata.uid.unwrap_or_default();
    let mut document = json!({
        "apiVersion": "pathwatch.dev/v1alpha1",
        "kind": format!("{kind:?}"),
        "metadata": {"name": name},
        "spec": object.data.get("spec"),
    });
    if let (false, Some(metadata)) = (namespace.is_empty(), document.get_mut("metadata")) {
        metadata["namespace"] = json!(namespace);
    }
    // Not as JSON: to the reader of YAML some of its texts and long names are none.
    let text = serde_yaml::to_string(&document).unwrap_or_default();
    Object {
        reference: Reference { kind, namespace, name, uid },
        generation: metadata.generation.unwrap_or_default(),
        created: metadata.creation_timestamp.map(|time| time.0.as_second()).unwrap_or_default(),
        size: text.len(),
        text: Some(text.into()),
        refused: None,
    }
}

/// Keeps `objects` as the API server has them, until nobody listens. While it does not answer they stay as they were.
///
/// # Errors
/// Never; it is a task like others.
pub async fn watch_resources(
    source: Source,
    objects: watch::Sender<Arc<Objects>>,
    notices: Notices,
) -> anyhow::Result<()> {
    // At once: until they are known they are not in force. Rolling updates spread the sensors' starts.
    let watches = async {
        let [cluster, tenants] = Kind::ALL.map(|kind| watch_kind(kind, &source, &objects, &notices));
        tokio::join!(cluster, tenants);
    };
    tokio::select! {
        () = objects.closed() => {}
        () = watches => {}
    }
    Ok(())
}

async fn watch_kind(kind: Kind, source: &Source, objects: &watch::Sender<Arc<Objects>>, notices: &Notices) {
    let plain = from_cache(watcher::Config::default());
    let mut config = watcher::Config::default().streaming_lists();
    let mut pause = SOON;
    let mut absent = false;
    loop {
        let began = Instant::now();
        match watch_once(kind, source, &config, objects, notices).await {
            Ended::Again => sleep(AGAIN.saturating_sub(began.elapsed()).max(spread())).await,
            Ended::Failed(Some(why)) if status(&why) == Some(404) => {
                // The CRD is not there, and so there are no objects; said twice, in case that the server has only just
                // begun and does not know yet.
                if absent {
                    objects.send_if_modified(|all| {
                        all.has_news_without(kind) && {
                            Arc::make_mut(all).replace(kind, Objects::default());
                            true
                        }
                    });
                }
                absent = true;
                sleep(pause + spread() / 2).await;
                pause = (pause * 2).min(ABSENT);
                continue;
            }
            Ended::Failed(Some(why)) if config != plain && refuses_streams(&why) => config = plain.clone(),
            Ended::Failed(why) => {
                why.iter().for_each(|why| source.tell(notices, kind.plural(), why));
                // A watch that lasted is begun anew soon.
                pause = if began.elapsed() > SPREAD * 5 { SOON } else { (pause * 2).min(LONGEST) };
                sleep(pause + spread() / 2).await;
            }
        }
        absent = false;
    }
}

/// How a watch came to its end.
enum Ended {
    /// By an error, or by nothing that is known.
    Failed(Option<watcher::Error>),
    /// There is room for objects that were refused.
    Again,
}

async fn watch_once(
    kind: Kind,
    source: &Source,
    config: &watcher::Config,
    objects: &watch::Sender<Arc<Objects>>,
    notices: &Notices,
) -> Ended {
    let mut stream = source.stream::<DynamicObject>(&resource(kind), config, notices);
    let (began, mut room, mut listed) = (tokio::time::Instant::now(), false, Objects::default());
    loop {
        // Not before a while has passed, however often objects come and go.
        let deadline = if room { began + AGAIN } else { began + Duration::from_secs(86_400) };
        let Ok(event) = timeout_at(deadline, stream.next()).await else { return Ended::Again };
        match event {
            Some(Ok(Event::Init)) => listed = Objects::default(),
            Some(Ok(Event::InitApply(found))) => listed.gather(object_of(kind, found)),
            Some(Ok(Event::InitDone)) => {
                let listed = std::mem::take(&mut listed);
                if listed.beyond() > 0 {
                    let detail =
                        "there are too many PathPolicies to look at; delete some, and set a ResourceQuota on them";
                    notices.add("policy", "policies_full", listed.beyond(), detail);
                }
                objects.send_modify(|all| Arc::make_mut(all).replace(kind, listed));
            }
            // A status that the controller writes is no news.
            Some(Ok(Event::Apply(found))) => {
                let object = object_of(kind, found);
                objects.send_if_modified(|all| {
                    let news = !all.has(&object);
                    if news {
                        Arc::make_mut(all).apply(object);
                    }
                    news
                });
            }
            Some(Ok(Event::Delete(found))) => {
                let reference = object_of(kind, found).reference;
                objects.send_modify(|all| room |= Arc::make_mut(all).delete(&reference));
            }
            Some(Err(why)) => return Ended::Failed(Some(why)),
            None => return Ended::Failed(None),
        }
    }
}
