//! The form of the records: the schemas in sensor/tests/schema, which e2e/schemas.py makes.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each test takes from here what it needs, and fails by panicking"
)]
use std::{collections::BTreeMap, fs, path::PathBuf, sync::LazyLock};

use jsonschema::{Registry, Validator};
use serde_json::Value;

use crate::common::root;

/// What the schemas' `$id`s begin with.
const BASE: &str = "https://pathwatch.dev/schema/";

static VALIDATORS: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| {
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(directory().join(name)).unwrap()).unwrap()
    };
    let mut registry = Registry::new();
    for name in ["ecs.json", "ocsf.json", "pathwatch.json"] {
        registry = registry.add(format!("{BASE}{name}"), read(name)).unwrap();
    }
    let registry = registry.prepare().unwrap();
    let validator = |name| jsonschema::options().offline().with_registry(&registry).build(&read(name)).unwrap();
    ["ecs.json", "ocsf.json"].into_iter().map(|name| (name, validator(name))).collect()
});

/// Where the schemas are.
pub(crate) fn directory() -> PathBuf {
    root().join("sensor/tests/schema")
}

/// What is wrong with a record, each fault as `/path/in/it: message`. Only OCSF's records have a `class_uid`.
pub(crate) fn faults(document: &Value) -> Vec<String> {
    let schema = if document.get("class_uid").is_some() { "ocsf.json" } else { "ecs.json" };
    VALIDATORS[schema].iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Fails with everything that is wrong with a record.
pub(crate) fn check(document: &Value) {
    let faults = faults(document);
    assert!(faults.is_empty(), "{}\nin {document:#}", faults.join("\n"));
}
