//! `pathwatch policy reference`: every field of the language, made of the schema that editors use.
use std::fmt::Write as _;

use serde_json::{Map, Value};

const HEAD: &str = "# The policy language

Every field, printed by `pathwatch policy reference`; a test holds this page to it. [policies.md](policies.md) is the tutorial.
";

/// Definitions in the order in which a reader meets them; the others follow by name.
const FIRST: [&str; 12] = [
    "Kind",
    "Metadata",
    "Spec",
    "Severity",
    "Subjects",
    "Files",
    "Operation",
    "Outcome",
    "Exception",
    "LabelSelector",
    "ContainerSelector",
    "Examples",
];

/// The page.
pub(super) fn page() -> String {
    let schema = crate::policy::schema();
    let none = Map::new();
    let all = schema.get("$defs").and_then(Value::as_object).unwrap_or(&none);
    let first = FIRST.iter().filter_map(|name| Some((*name, all.get(*name)?)));
    let others = all.iter().filter(|(name, _)| !FIRST.contains(&name.as_str()));
    let mut page = HEAD.to_owned();
    definition("A document", &schema, &mut page);
    for (name, inner) in first.chain(others.map(|(name, inner)| (name.as_str(), inner))) {
        definition(name, inner, &mut page);
    }
    page
}

/// Writes a definition: its fields, or its words. Writing to a String does not fail.
fn definition(name: &str, schema: &Value, page: &mut String) {
    let words = schema.get("oneOf").and_then(Value::as_array);
    let fields = schema.get("properties").and_then(Value::as_object);
    if words.is_none() && fields.is_none() {
        return;
    }
    writeln!(page, "\n## {name}\n{}\n", text(schema, "description")).ok();
    if let Some(words) = words {
        page.push_str("| word | meaning |\n| --- | --- |\n");
        for word in words {
            writeln!(page, "| `{}` | {} |", text(word, "const"), text(word, "description")).ok();
        }
    }
    let Some(fields) = fields else { return };
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    page.push_str("| field | is | meaning |\n| --- | --- | --- |\n");
    for (field, schema) in fields {
        let star = if required.contains(&field.as_str()) { " (required)" } else { "" };
        let description = text(schema, "description").replace('|', "\\|");
        writeln!(page, "| `{field}`{star} | {} | {description} |", kind(schema)).ok();
    }
}

/// A text in a schema, on one line.
fn text(schema: &Value, name: &str) -> String {
    schema.get(name).and_then(Value::as_str).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a value is, with a link to its definition.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(several) = schema.get("anyOf").and_then(Value::as_array) {
        let some = several.iter().find(|one| one.get("type").is_none_or(|kind| kind != "null"));
        return some.map(kind).unwrap_or_default();
    }
    // One of several is null.
    let kinds = schema.get("type").map(|kind| kind.as_array().cloned().unwrap_or_else(|| vec![kind.clone()]));
    let kinds = kinds.unwrap_or_default();
    let of_type =
        kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or_default().to_owned();
    match (of_type.as_str(), schema.get("items"), schema.get("additionalProperties")) {
        ("array", Some(items), _) => format!("list of {}", kind(items)),
        ("object", _, Some(values)) if values.is_object() => format!("map to {}", kind(values)),
        _ => of_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_fresh_and_leaves_no_field_unexplained() {
        let fresh = page();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy-reference.md");
        let same = std::fs::read_to_string(file).unwrap_or_default() == fresh;
        assert!(same, "write `pathwatch policy reference` to docs/policy-reference.md");
        for line in fresh.lines().filter(|line| line.starts_with("| `")) {
            assert!(
                line.split('|').all(|cell| cell.is_empty() || !cell.trim().is_empty()),
                "not explained: {line}"
            );
        }
    }
}
