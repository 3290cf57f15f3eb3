//! Documents within the limits of those who read them: what is shortened is named, and kept as long as there is room.
use serde_json::{Map, Value};

use super::text::cut;

/// Elastic stores longer keywords, but does not find by them (`ignore_above` of the ECS templates).
const KEYWORD_BYTES: usize = 1024;
/// ECS fields that may be longer: their types are made for it.
const LONG: [&[&str]; 2] = [&["message"], &["process", "command_line"]];
/// What goes, in this order, when a document is too large.
const ORDER: [&[&str]; 11] = [
    &["process", "parent", "args"],
    &["pathwatch", "full", "process"],
    &["process", "command_line"],
    &["process", "args"],
    &["orchestrator", "resource", "label"],
    &["pathwatch", "process", "ancestors"],
    &["pathwatch", "raw", "process"],
    &["pathwatch", "cgroup", "path"],
    &["pathwatch", "path", "home"],
    &["pathwatch", "raw"],
    &["pathwatch", "full"],
];
/// ECS fields that are dates.
const DATES: [&[&str]; 6] = [
    &["@timestamp"],
    &["event", "created"],
    &["event", "start"],
    &["event", "end"],
    &["process", "start"],
    &["pathwatch", "summary", "process", "start"],
];
/// Bytes of a sentence.
const MESSAGE_BYTES: usize = 2048;

/// Shortens every keyword of the ECS document to what can be found; the whole goes to `pathwatch.full`, the field's name to
/// `pathwatch.truncated`.
pub(super) fn shorten_keywords(document: &mut Value) {
    let Value::Object(fields) = document else { return };
    let (mut full, mut truncated) = (Map::new(), Vec::new());
    for (name, value) in fields.iter_mut().filter(|(name, _)| *name != "pathwatch") {
        let mut path = vec![name.as_str()];
        if let Some(whole) = shorten(value, &mut path, &mut truncated) {
            full.insert(name.clone(), whole);
        }
    }
    if truncated.is_empty() {
        return;
    }
    let own = fields.entry("pathwatch").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(own) = own {
        own.insert("full".to_owned(), full.into());
        own.insert("truncated".to_owned(), truncated.into());
    }
}

/// Shortens what is at `path`; returns the whole of what was shortened, nested likewise.
fn shorten<'a>(value: &'a mut Value, path: &mut Vec<&'a str>, truncated: &mut Vec<Value>) -> Option<Value> {
    match value {
        Value::String(text) => {
            let limit = if path == LONG[0] {
                MESSAGE_BYTES
            } else if path == LONG[1] {
                usize::MAX
            } else {
                KEYWORD_BYTES
            };
            if text.len() <= limit {
                return None;
            }
            truncated.push(path.join(".").into());
            let short = cut(text, limit).to_owned();
            Some(std::mem::replace(text, short).into())
        }
        Value::Array(items) => {
            let long = items.iter().any(|item| item.as_str().is_some_and(|text| text.len() > KEYWORD_BYTES));
            if !long {
                return None;
            }
            truncated.push(path.join(".").into());
            let whole = items.clone();
            for item in items {
                if let Value::String(text) = item {
                    let short = cut(text, KEYWORD_BYTES).len();
                    text.truncate(short);
                }
            }
            Some(whole.into())
        }
        Value::Object(fields) => {
            let mut full = Map::new();
            for (name, value) in fields {
                let mut below = path.clone();
                below.push(name);
                if let Some(whole) = shorten(value, &mut below, truncated) {
                    full.insert(name.clone(), whole);
                }
            }
            (!full.is_empty()).then(|| full.into())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Puts a space behind every text that OpenSearch's dynamic mapping would take for a date, and names it in
/// `pathwatch.padded`: the first such file, pod or tag in an index would make its field a date there, and the index would
/// refuse all others from then on.
pub(super) fn pad_dates(document: &mut Value) {
    let mut padded = Vec::new();
    pad(document, &mut Vec::new(), &mut padded);
    if let Some(own) = document.get_mut("pathwatch").and_then(Value::as_object_mut)
        && !padded.is_empty()
    {
        padded.sort_unstable();
        padded.dedup();
        own.insert("padded".to_owned(), padded.into());
    }
}

fn pad<'a>(value: &'a mut Value, path: &mut Vec<&'a str>, padded: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            if is_like_a_date(text) && !DATES.contains(&path.as_slice()) {
                text.push(' ');
                padded.push(path.join("."));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| pad(item, &mut path.clone(), padded)),
        Value::Object(fields) => {
            for (name, value) in fields {
                let mut below = path.clone();
                below.push(name);
                pad(value, &mut below, padded);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What `date_detection` of OpenSearch 2.19 tries to read as a date, and somewhat more: `strict_date_optional_time` and
/// `yyyy/MM/dd HH:mm:ss Z||yyyy/MM/dd Z` begin with a year of four digits or more.
fn is_like_a_date(text: &str) -> bool {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let date = rest.bytes().take_while(|byte| b"0123456789-+/:.,".contains(byte)).count();
    digits >= 4
        && digits < text.len()
        && matches!(rest.as_bytes().get(date), None | Some(b'T' | b' '))
        // One of digits only is no date to it, and ids must stay what they are.
        && uuid::Uuid::try_parse(text).is_err()
}

/// Takes parts out of a document of `size` bytes until it has at most `limit`; true if there was anything to do.
///
/// What is left without them is bounded: keywords have at most 1,024 bytes, and the path that was asked for 4,096.
pub(super) fn shrink(document: &mut Value, mut size: usize, limit: usize) -> bool {
    if size <= limit {
        return false;
    }
    let mut gone = Vec::new();
    for path in ORDER {
        if size <= limit {
            break;
        }
        if let Some(value) = take(document, path) {
            size = size.saturating_sub(serde_json::to_string(&value).map_or(0, |text| text.len()));
            gone.push(Value::from(path.join(".")));
        }
    }
    if let Some(own) = document.get_mut("pathwatch").and_then(Value::as_object_mut)
        && let Value::Array(truncated) = own.entry("truncated").or_insert_with(|| Value::Array(Vec::new()))
    {
        truncated.extend(gone);
    }
    true
}

fn take(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, above) = path.split_last()?;
    let parent = above.iter().try_fold(value, |value, name| value.get_mut(*name))?;
    parent.as_object_mut()?.remove(*last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_keywords_are_cut_and_kept_whole_and_named() {
        let long = "ü".repeat(600);
        let mut document = json!({
            "message": "m", "file": {"path": long, "name": "n"}, "process": {"args": ["a", long], "command_line": long},
            "pathwatch": {"path": {"home": long}},
        });
        shorten_keywords(&mut document);
        assert_eq!(document["file"]["path"], "ü".repeat(512));
        assert_eq!(document["process"]["args"], json!(["a", "ü".repeat(512)]));
        assert_eq!(document["process"]["command_line"], long);
        assert_eq!(
            document["pathwatch"]["full"],
            json!({"file": {"path": long}, "process": {"args": ["a", long]}})
        );
        assert_eq!(document["pathwatch"]["truncated"], json!(["file.path", "process.args"]));
        assert_eq!(document["pathwatch"]["path"]["home"], long);
    }

    #[test]
    fn texts_that_look_like_dates_are_padded_and_named_and_dates_are_not() {
        let mut document = json!({
            "@timestamp": "2026-11-22T12:00:00Z", "file": {"name": "2026-11-22", "path": "/2026-11-22", "inode": "20261122"},
            "container": {"image": {"tag": ["v1", "2026/02/31"]}}, "pathwatch": {"pattern": "2026-11T12:00"},
        });
        pad_dates(&mut document);
        assert_eq!(document["@timestamp"], "2026-11-22T12:00:00Z");
        assert_eq!(document["file"], json!({"name": "2026-11-22 ", "path": "/2026-11-22", "inode": "20261122"}));
        assert_eq!(document["container"]["image"]["tag"], json!(["v1", "2026/02/31 "]));
        assert_eq!(
            document["pathwatch"]["padded"],
            json!(["container.image.tag", "file.name", "pathwatch.pattern"])
        );
        for (text, is_date) in [
            ("2026", false),
            ("20261122", false),
            ("2026-11-22.log", false),
            ("shadow", false),
            ("1.29", false),
            ("00000000-0000-0000-0000-000000000001", false),
            ("2026-11", true),
            ("2026T", true),
            ("0611-22", true),
            ("-2026-11-22", true),
            ("2026..", true),
            ("2026-11-22T12:00Europe/Paris", true),
        ] {
            assert_eq!(is_like_a_date(text), is_date, "{text}");
        }
    }

    #[test]
    fn a_document_that_is_too_large_loses_parts_in_a_fixed_order_and_names_them() {
        let mut document = json!({
            "process": {"args": ["x".repeat(500)], "parent": {"args": ["y".repeat(500)]}, "pid": 1},
            "pathwatch": {"truncated": ["file.path"]},
        });
        let size = document.to_string().len();
        assert!(!shrink(&mut document, size, size));
        assert!(shrink(&mut document, size, 700));
        assert_eq!(document["pathwatch"]["truncated"], json!(["file.path", "process.parent.args"]));
        assert_eq!(document["process"]["parent"], json!({}));
        assert!(document["process"]["args"].is_array());
    }
}
