//! Documents within the limits of those who read them: what is shortened is named, and kept as long as there is room.
use serde_json::{Map, Value};

use super::text::cut;

/// Elastic stores longer keywords, but does not find by them (`ignore_above` of the ECS templates).
const KEYWORD_BYTES: usize = 1024;
/// Where the project's own fields are.
const OWN: &str = "pathwatch";
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
/// No date is longer, with the longest name of a time zone.
const DATE_BYTES: usize = 100;
/// Names of fields that are dates, wherever they stand: all names are the encoder's own.
const DATES: [&str; 4] = ["@timestamp", "created", "start", "end"];
/// Bytes of a sentence.
const MESSAGE_BYTES: usize = 2048;

/// Puts the ECS document in order for those who index it, in one walk:
///
/// - Nulls, and objects and lists in which nothing is left, are taken out.
/// - Keywords are shortened to what can be found; the whole goes to `pathwatch.full`, the field's name to
///   `pathwatch.truncated`.
/// - Texts that OpenSearch's dynamic mapping would take for dates get a space behind them, and are named in
///   `pathwatch.padded`, if `pads`: the first such file, pod or tag in an index would make its field a date there, and the
///   index would refuse all others from then on.
pub(super) fn put_in_order(document: &mut Value, pads: bool) {
    let Value::Object(fields) = document else { return };
    let mut changed = Changed { pads, ..Changed::default() };
    let mut full = Map::new();
    fields.retain(|name, value| {
        if let Some(whole) = order(name, value, name == OWN, &mut changed) {
            full.insert(name.clone(), whole);
        }
        !is_nothing(value)
    });
    if changed.truncated.is_empty() && changed.padded.is_empty() {
        return;
    }
    if let Value::Object(own) = fields.entry(OWN).or_insert_with(|| Value::Object(Map::new())) {
        for (name, names) in [("truncated", changed.truncated), ("padded", changed.padded)] {
            if !names.is_empty() {
                own.insert(name.to_owned(), names.into());
            }
        }
        if !full.is_empty() {
            own.insert("full".to_owned(), full.into());
        }
    }
}

/// Names of fields that are not as they were.
#[derive(Default)]
struct Changed {
    /// Whether dates are padded.
    pads: bool,
    truncated: Vec<String>,
    padded: Vec<String>,
}

/// Takes out nulls, and objects and lists in which nothing is left.
pub(super) fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.retain(|_, value| {
            prune(value);
            !is_nothing(value)
        }),
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(_) | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Orders the field `name`; returns the whole of what was shortened in it, nested likewise. What is `own` is never shortened.
fn order(name: &str, value: &mut Value, own: bool, changed: &mut Changed) -> Option<Value> {
    let before = (changed.truncated.len(), changed.padded.len());
    let whole = match value {
        Value::String(text) => {
            let whole = if own { None } else { shorten(text, limit(name)) };
            let padded = changed.pads && !DATES.contains(&name) && pad(text);
            changed.truncated.extend(whole.is_some().then(String::new));
            changed.padded.extend(padded.then(String::new));
            whole.map(Value::from)
        }
        Value::Array(items) => order_items(items, own, changed),
        Value::Object(fields) => {
            let mut full = Map::new();
            fields.retain(|name, value| {
                if let Some(whole) = order(name, value, own, changed) {
                    full.insert(name.clone(), whole);
                }
                !is_nothing(value)
            });
            (!full.is_empty()).then(|| full.into())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    };
    // What was found below has its name from there on.
    let below = changed.truncated.iter_mut().skip(before.0).chain(changed.padded.iter_mut().skip(before.1));
    below.for_each(|found| *found = if found.is_empty() { name.to_owned() } else { format!("{name}.{found}") });
    whole
}

/// The same of a list: one name for all of it.
fn order_items(items: &mut [Value], own: bool, changed: &mut Changed) -> Option<Value> {
    let long = |item: &Value| item.as_str().is_some_and(|text| text.len() > KEYWORD_BYTES);
    let whole = (!own && items.iter().any(long)).then(|| Value::from(items.to_vec()));
    let (mut below, mut padded) = (Changed { pads: changed.pads, ..Changed::default() }, false);
    for item in items {
        match item {
            Value::String(text) => {
                if !own {
                    shorten(text, KEYWORD_BYTES);
                }
                padded |= changed.pads && pad(text);
            }
            // A list of objects is one field for each of theirs.
            Value::Object(fields) => {
                fields.retain(|name, value| {
                    order(name, value, true, &mut below);
                    !is_nothing(value)
                });
            }
            Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    below.padded.sort_unstable();
    below.padded.dedup();
    changed.padded.extend(below.padded);
    changed.truncated.extend(whole.is_some().then(String::new));
    changed.padded.extend(padded.then(String::new));
    whole
}

/// Bytes that a field's text may have.
fn limit(name: &str) -> usize {
    match name {
        "message" => MESSAGE_BYTES,
        // Its type is made for it.
        "command_line" => usize::MAX,
        _ => KEYWORD_BYTES,
    }
}

/// Cuts the text; returns the whole of it if it was longer.
fn shorten(text: &mut String, limit: usize) -> Option<String> {
    if text.len() <= limit {
        return None;
    }
    let short = cut(text, limit).to_owned();
    Some(std::mem::replace(text, short))
}

/// Puts a space behind what looks like a date.
fn pad(text: &mut String) -> bool {
    let found = is_like_a_date(text);
    if found {
        text.push(' ');
    }
    found
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
        && text.len() <= DATE_BYTES
        // These are no dates to it, and must stay what they are.
        && uuid::Uuid::try_parse(text).is_err()
        && text.parse::<std::net::IpAddr>().is_err()
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
        put_in_order(&mut document, true);
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
        put_in_order(&mut document, true);
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
            ("2001:470:1:2::5", false),
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
