//! What the names in a pod's object say: of images, and of who made it.
use std::collections::BTreeMap;

use crate::event::Workload;

/// What a container is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) runtime: Option<String>,
    pub(super) name: String,
    /// Fully qualified.
    pub(super) image: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<String>,
}

impl Described {
    /// From the names of a pod's spec or status: `nginx:1.27`, and the id of the image, if that is known.
    pub(super) fn new(name: &str, image: &str, image_id: &str) -> Self {
        let digest_of = |text: &str| text.split_once('@').map(|(_, digest)| digest.to_owned());
        // A status may name an image by its bare id, when its tag has moved on.
        let (image_name, tag) = if image.starts_with("sha256:") {
            (image_id.split_once('@').map(|(name, _)| parse_image(name).0).unwrap_or_default(), None)
        } else {
            parse_image(image)
        };
        let digest = digest_of(image_id).or_else(|| digest_of(image));
        Self { runtime: None, name: name.to_owned(), image: image_name, tag, digest }
    }
}

/// The fully qualified name of an image, and its tag.
fn parse_image(image: &str) -> (String, Option<String>) {
    let name = image.split('@').next().unwrap_or_default();
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (name, None),
    };
    // What docker and containerd make of short names: a first part without dot or port is no registry.
    let qualified = match name.split_once('/') {
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    (qualified, tag)
}

/// Who made a pod, and who made that, as far as names tell: the pod says no more than who controls it.
pub(super) fn owners(
    controller: Option<(String, String)>,
    labels: &BTreeMap<String, String>,
    created: Option<i64>,
) -> Vec<Workload> {
    let Some((kind, name)) = controller else { return Vec::new() };
    let above = match kind.as_str() {
        // A Deployment calls its ReplicaSet after itself and this hash, which pods carry.
        "ReplicaSet" => labels
            .get("pod-template-hash")
            .and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'))
            .map(|name| ("Deployment", name)),
        // A CronJob calls its Job after itself and the minute that it was due.
        "Job" => name
            .rsplit_once('-')
            .filter(|(_, minute)| {
                let due = minute.parse::<i64>().ok().map(|minute| minute * 60);
                due.zip(created).is_some_and(|(due, created)| (created - due).abs() < 24 * 3600)
            })
            .map(|(name, _)| ("CronJob", name)),
        _ => None,
    };
    let above = above.map(|(kind, name)| Workload { kind: kind.to_owned(), name: name.to_owned() });
    std::iter::once(Workload { kind, name }).chain(above).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_told_by_its_full_name_its_tag_and_its_digest() {
        for (image, id, want) in [
            ("nginx", "", ("docker.io/library/nginx", None, None)),
            (
                "nginx:1.27",
                "docker.io/library/nginx@sha256:aa",
                ("docker.io/library/nginx", Some("1.27"), Some("sha256:aa")),
            ),
            ("team/app:v1", "", ("docker.io/team/app", Some("v1"), None)),
            ("registry.example:5000/app", "", ("registry.example:5000/app", None, None)),
            ("registry.example:5000/app:v1", "", ("registry.example:5000/app", Some("v1"), None)),
            ("localhost/app@sha256:bb", "", ("localhost/app", None, Some("sha256:bb"))),
            ("quay.io/a/b:t@sha256:bb", "", ("quay.io/a/b", Some("t"), Some("sha256:bb"))),
            // The tag has moved on: containerd tells the image's own id.
            ("sha256:cc", "quay.io/a/b@sha256:bb", ("quay.io/a/b", None, Some("sha256:bb"))),
        ] {
            let told = Described::new("main", image, id);
            assert_eq!((told.image.as_str(), told.tag.as_deref(), told.digest.as_deref()), want, "{image}");
        }
    }

    #[test]
    fn who_made_a_pod_is_told_as_far_as_names_tell_it_surely() {
        let labels: BTreeMap<String, String> = [("pod-template-hash".to_owned(), "5d4f8".to_owned())].into();
        let created = Some(29_000_000 * 60 + 30);
        for (kind, name, want) in [
            ("ReplicaSet", "web-5d4f8", "ReplicaSet web-5d4f8, Deployment web"),
            // Of another controller than a Deployment.
            ("ReplicaSet", "web-other", "ReplicaSet web-other"),
            ("ReplicaSet", "5d4f8", "ReplicaSet 5d4f8"),
            ("Job", "backup-29000000", "Job backup-29000000, CronJob backup"),
            // Numbers that are no time of this pod.
            ("Job", "import-20240101", "Job import-20240101"),
            ("Job", "import", "Job import"),
            ("Node", "n1", "Node n1"),
        ] {
            let told = owners(Some((kind.into(), name.into())), &labels, created);
            let told: Vec<_> = told.iter().map(|owner| format!("{} {}", owner.kind, owner.name)).collect();
            assert_eq!(told.join(", "), want);
        }
        assert!(owners(None, &labels, created).is_empty());
    }
}
