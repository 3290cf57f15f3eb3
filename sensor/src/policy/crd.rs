//! The custom resources, made of the very types that files are read into, with bounds and rules that the API server checks.
//! The sensor checks all of it again: a cluster may have the resources of an older release.
use schemars::{JsonSchema as _, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Kind, Spec};

/// Most characters of a text, where nothing else is said.
const TEXT: u64 = 4096;
/// Most entries of a list, where nothing else is said.
const LIST: u64 = 256;

/// The definition of `kind`.
#[must_use]
pub fn crd(kind: Kind) -> Value {
    let tenant = kind == Kind::PathPolicy;
    let (name, plural) = (format!("{kind:?}"), kind.plural());
    let column = |name: &str, kind: &str, path: &str, description: &str| json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    let condition = |name: &str| format!(".status.conditions[?(@.type=='{name}')].status");
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.pathwatch.dev"),
            // Without the definition all policies in it are gone.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": "pathwatch.dev",
            "scope": if tenant { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": name, "listKind": format!("{name}List"), "plural": plural, "singular": name.to_lowercase(),
                "shortNames": [if tenant { "pp" } else { "cpp" }], "categories": ["pathwatch"],
            },
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Severity", "string", ".spec.severity", "How much an alert matters"),
                    column("Accepted", "string", &condition("Accepted"), "Whether it is a good policy"),
                    column("Programmed", "string", &condition("Programmed"), "Whether it is in force on all nodes"),
                    column("Nodes", "string", ".status.nodes", "On how many nodes it is in force, of how many"),
                    column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": if tenant {
                        "Which accesses of this namespace's pods to which files raise an alert."
                    } else {
                        "Which accesses to which files on every node raise an alert."
                    },
                    "required": ["spec"],
                    "properties": {"spec": spec(tenant), "status": status()},
                }},
            }],
        },
    });
    // By this the chart knows a definition that another release has left.
    let mut sum = format!("{:x}", Sha256::digest(crd.to_string()));
    sum.truncate(12);
    if let Some(annotations) = crd.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert("pathwatch.dev/schema".to_owned(), json!(sum));
    }
    crd
}

fn spec(tenant: bool) -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    let mut schema = Spec::json_schema(&mut settings.into_generator()).to_value();
    structural(&mut schema);
    bound(&mut schema, "", tenant);
    let field = |name: &str| format!("/properties/{name}");
    rules(
        schema.pointer_mut(&format!("{}/items", field("paths"))),
        &[(
            "self.startsWith('/') || self.startsWith('**/')",
            "a path begins with / or with **/; write '/etc/shadow' or '**/id_rsa'",
        )],
    );
    if let Some(paths) = schema.pointer_mut(&field("paths")) {
        paths["minItems"] = json!(1);
    }
    for list in ["operations", "results"] {
        if let Some(list) = schema.pointer_mut(&field(list)) {
            list["minItems"] = json!(1);
        }
    }
    rules(
        schema.pointer_mut(&format!("{}/items", field("exceptions"))),
        &[(
            "has(self.executables) || has(self.scripts) || has(self.ancestors) || has(self.users) || has(self.images) || \
             has(self.paths) || has(self.sha256)",
            "an exception without a criterion would leave out everything; name a program, an image or the like",
        )],
    );
    if tenant {
        let own = |field: &str, what: &str| {
            (
                format!("!has(self.{field})"),
                format!("a PathPolicy {what}; leave {field} out, or ask for a ClusterPathPolicy"),
            )
        };
        let tenancy = [
            own("subjects", "speaks of its namespace's pods only"),
            own("files", "speaks of its namespace's pods only"),
            own("namespaceSelector", "sees its own namespace only"),
            (
                "!has(self.severity) || self.severity != 'critical'".to_owned(),
                "a PathPolicy may be 'high' at most; 'critical' is for ClusterPathPolicies".to_owned(),
            ),
        ];
        let tenancy: Vec<(&str, &str)> = tenancy.iter().map(|(rule, why)| (rule.as_str(), why.as_str())).collect();
        rules(Some(&mut schema), &tenancy);
    }
    schema
}

/// Adds CEL rules with what is said when they do not hold.
fn rules(schema: Option<&mut Value>, rules: &[(&str, &str)]) {
    if let Some(Value::Object(schema)) = schema {
        let rules = rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message}));
        schema.insert("x-kubernetes-validations".to_owned(), rules.collect());
    }
}

/// What the controller writes.
fn status() -> Value {
    let text = |limit: u64| json!({"type": "string", "maxLength": limit});
    let number = || json!({"type": "integer", "format": "int64", "minimum": 0});
    json!({
        "type": "object",
        "description": "What has become of it.",
        "properties": {
            "observedGeneration": number(),
            "nodes": {"type": "string", "maxLength": 32, "description": "On how many nodes it is in force, of how many."},
            "programmed": number(),
            "desired": number(),
            "conditions": {
                "type": "array", "maxItems": 8, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": text(64), "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "observedGeneration": number(), "reason": text(64), "message": text(4096),
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                    },
                },
            },
            "failing": {
                "type": "array", "maxItems": 10, "x-kubernetes-list-type": "atomic",
                "description": "Some of the nodes on which it is not in force, and why.",
                "items": {"type": "object", "properties": {"node": text(253), "reason": text(1024)}},
            },
        },
    })
}

/// Rewrites what JSON Schema allows and a structural schema does not.
fn structural(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    // The API server would write defaults into objects, which are then no longer what their author wrote.
    for word in ["$schema", "title", "default", "nullable"] {
        map.remove(word);
    }
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        map.remove("additionalProperties");
    }
    if map.get("format").and_then(Value::as_str) == Some("uint32") {
        map.insert("format".to_owned(), json!("int64"));
        map.insert("maximum".to_owned(), json!(u32::MAX));
    }
    if let Some(Value::Array(words)) = map.remove("oneOf") {
        let word = |word: &Value| word.get("const").cloned().or_else(|| word.get("enum")?.get(0).cloned());
        map.insert("type".to_owned(), json!("string"));
        map.insert("enum".to_owned(), words.iter().filter_map(word).collect());
    }
    // An optional field may be left out; it is not null.
    if let Some(Value::Array(kinds)) = map.remove("anyOf")
        && let Some(Value::Object(kind)) =
            kinds.into_iter().find(|kind| kind.get("properties").is_some() || kind.get("oneOf").is_some())
    {
        for (word, value) in kind {
            map.entry(word).or_insert(value);
        }
        return structural(schema);
    }
    if let Some(Value::Array(kinds)) = map.get("type") {
        let kind = kinds.iter().find(|kind| *kind != "null").cloned().unwrap_or(json!("string"));
        map.insert("type".to_owned(), kind);
    }
    for below in below(map) {
        structural(below);
    }
}

/// The schemas in one schema.
fn below(map: &mut Map<String, Value>) -> Vec<&mut Value> {
    let mut all = Vec::new();
    for (word, value) in map.iter_mut() {
        match (word.as_str(), value) {
            ("properties", Value::Object(fields)) => all.extend(fields.values_mut()),
            ("items" | "additionalProperties", value) => all.push(value),
            _ => {}
        }
    }
    all
}

/// Puts a limit to every list and text, of the field `name`: what has none costs rules too much, and the API server too.
fn bound(schema: &mut Value, name: &str, tenant: bool) {
    let Value::Object(map) = schema else { return };
    let pattern = if tenant { 1024 } else { TEXT };
    match map.get("type").and_then(Value::as_str) {
        Some("array") => {
            let items = match name {
                "paths" | "exclude" if !tenant => 10_000,
                "exceptions" => 64,
                "tags" | "threat" => 16,
                "fires" | "silent" => 1000,
                _ => LIST,
            };
            map.insert("maxItems".to_owned(), json!(items));
        }
        Some("string") if !map.contains_key("enum") => {
            let limit = match name {
                "tags" | "threat" | "tactic" | "technique" => 128,
                "window" => 64,
                "paths" | "exclude" | "executables" | "scripts" | "ancestors" => pattern,
                _ => TEXT,
            };
            map.insert("maxLength".to_owned(), json!(limit));
        }
        Some("object") if map.contains_key("additionalProperties") => {
            map.insert("maxProperties".to_owned(), json!(64));
        }
        _ => {}
    }
    if let Some(Value::Object(fields)) = map.get_mut("properties") {
        fields.iter_mut().for_each(|(field, schema)| bound(schema, field, tenant));
    }
    for word in ["items", "additionalProperties"] {
        map.get_mut(word).into_iter().for_each(|items| bound(items, name, tenant));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every schema within `schema`, with its path.
    fn each(schema: &Value, path: &str, seen: &mut dyn FnMut(&str, &Map<String, Value>)) {
        let Value::Object(map) = schema else { return };
        seen(path, map);
        for (word, value) in map {
            match (word.as_str(), value) {
                ("properties", Value::Object(fields)) => {
                    fields.iter().for_each(|(field, schema)| each(schema, &format!("{path}.{field}"), seen));
                }
                ("items" | "additionalProperties", value) => each(value, &format!("{path}[]"), seen),
                _ => {}
            }
        }
    }

    #[test]
    fn the_schema_is_structural_and_everything_in_it_is_bounded() {
        for kind in Kind::ALL {
            let crd = crd(kind);
            let mut count = 0;
            each(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", &mut |path, map| {
                count += 1;
                for word in ["$ref", "oneOf", "anyOf", "allOf", "const", "default", "$defs"] {
                    assert!(!map.contains_key(word), "{word} in {path}");
                }
                let bounded = match map["type"].as_str().unwrap() {
                    "array" => map.contains_key("maxItems"),
                    "string" => ["maxLength", "enum", "format"].iter().any(|word| map.contains_key(*word)),
                    "object" => map.contains_key("properties") || map.contains_key("maxProperties"),
                    _ => true,
                };
                assert!(bounded, "{path} has no bound: {map:?}");
            });
            assert!(count > 80, "{count}");
        }
    }

    #[test]
    fn only_a_path_policy_is_kept_to_its_namespace() {
        let rules = |kind| spec(kind == Kind::PathPolicy)["x-kubernetes-validations"].to_string();
        for word in ["subjects", "files", "namespaceSelector", "critical"] {
            assert!(rules(Kind::PathPolicy).contains(word) && !rules(Kind::ClusterPathPolicy).contains(word));
        }
    }
}
