//! From the text of a file to policies, each good or with its faults and their places.
use serde::Deserialize as _;

use super::{
    Policy,
    diagnostic::{Diagnostic, FAULTS_LIMIT, Fault, Level, nearest, shortened},
    position::{Place, Positions},
};

/// What makes a policy one and the same through all its versions: kind, namespace and name.
pub(super) type Key = (String, String, String);

/// The key of a policy that could be read.
pub(super) fn key_of(policy: &Policy) -> Key {
    let metadata = &policy.metadata;
    (format!("{:?}", policy.kind), metadata.namespace.clone().unwrap_or_default(), metadata.name.clone())
}

/// One document of a file.
pub(super) struct Document {
    /// None where it cannot be told.
    pub(super) key: Option<Key>,
    /// The policy, if it has the right form.
    pub(super) policy: Result<Policy, Vec<Diagnostic>>,
    /// Its place in the file.
    pub(super) index: usize,
}

/// A file of policies.
pub(super) struct File<'a> {
    name: &'a str,
    text: &'a str,
    lines: Vec<&'a str>,
    positions: Positions,
}

impl<'a> File<'a> {
    /// Reads `text`, which came from the file `name`.
    ///
    /// # Errors
    /// If it is no YAML, or one that will not be read.
    pub(super) fn new(name: &'a str, text: &'a str) -> Result<Self, Box<Diagnostic>> {
        // Some editors begin a file with a mark that is no text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file = Self { name, text, lines: text.lines().collect(), positions: Positions::default() };
        match Positions::read(text) {
            Ok(positions) => Ok(Self { positions, ..file }),
            Err((place, fault)) => Err(Box::new(file.at(place, None, fault))),
        }
    }

    /// Its documents; empty ones, as at a leading `---`, are left out.
    pub(super) fn documents(&self) -> Vec<Document> {
        let mut documents = Vec::new();
        // Both parsers see the same documents; the limit is for the day that they do not.
        let all = serde_yaml::Deserializer::from_str(self.text).take(self.positions.documents() + 1);
        let mut bad = 0;
        for (index, yaml) in all.enumerate() {
            // Nobody reads more, and a file can hold a hundred thousand.
            if bad > FAULTS_LIMIT {
                break;
            }
            let word = |field: &str| self.positions.word(index, field);
            let name = word("metadata.name");
            let key = name.clone().map(|name| {
                (word("kind").unwrap_or_default(), word("metadata.namespace").unwrap_or_default(), name)
            });
            match Option::<Policy>::deserialize(yaml) {
                Ok(None) => {}
                Ok(Some(policy)) => documents.push(Document { key, policy: Ok(policy), index }),
                Err(why) => {
                    let fault = form_fault(&why.to_string());
                    let mut place = self.positions.find(index, &fault.field).unwrap_or(NOWHERE);
                    if let Some(location) = why.location() {
                        let key = fault.message.contains("unknown field");
                        let text =
                            if key { fault.field.rsplit('.').next().map(str::to_owned) } else { place.text };
                        place = Place { line: location.line(), column: location.column(), text };
                    }
                    let diagnostic = self.at(place, name, fault);
                    // What the parser cannot get past, it meets again.
                    let same = |told: &Diagnostic| told.line == diagnostic.line && told.fault == diagnostic.fault;
                    let again = |last: &Document| matches!(&last.policy, Err(told) if told.iter().any(same));
                    if documents.last().is_some_and(again) {
                        break;
                    }
                    bad += 1;
                    documents.push(Document { key, policy: Err(vec![diagnostic]), index });
                }
            }
        }
        documents
    }

    /// Faults of a document with their places.
    pub(super) fn diagnose(&self, document: &Document, faults: Vec<Fault>) -> Vec<Diagnostic> {
        let name = document.key.as_ref().map(|(_, _, name)| name.clone());
        let all = faults.len();
        let mut faults: Vec<Fault> = faults.into_iter().take(FAULTS_LIMIT).collect();
        if all > FAULTS_LIMIT {
            let more = format!("{} more faults", all - FAULTS_LIMIT);
            let error = faults.iter().any(|fault| fault.level == Level::Error);
            let more = if error { Fault::error("", more, MEND) } else { Fault::warning("", more, MEND) };
            faults.push(more);
        }
        let place = |fault: &Fault| self.positions.find(document.index, &fault.field).unwrap_or(NOWHERE);
        faults.into_iter().map(|fault| self.at(place(&fault), name.clone(), fault)).collect()
    }

    fn at(&self, place: Place, policy: Option<String>, fault: Fault) -> Diagnostic {
        let source = self.lines.get(place.line.saturating_sub(1)).map(|line| shortened(line));
        let text = place.text.as_deref().map(shortened);
        Diagnostic {
            file: self.name.to_owned(),
            line: place.line,
            column: place.column,
            policy: policy.as_deref().map(shortened),
            text,
            fault,
            source,
        }
    }
}

/// What to do about more faults than are told.
const MEND: &str = "mend those above first";

const NOWHERE: Place = Place { line: 1, column: 1, text: None };

/// serde's sentence taken apart: the field, what is wrong with it, and what would be right.
fn form_fault(sentence: &str) -> Fault {
    let sentence = sentence.rsplit_once(" at line ").map_or(sentence, |(sentence, _)| sentence);
    let kinds = ["unknown field `", "unknown variant `", "missing field `", "invalid type: ", "invalid value: "];
    let found = kinds.iter().find_map(|kind| Some((*kind, sentence.find(kind)?)));
    let Some((kind, at)) = found else {
        if let Some((field, _)) =
            sentence.split_once(": failed to parse input in the \"friendly\" duration format")
        {
            return Fault::error(field, "this is no duration", "write it as in 60s, 5m or 1h30m");
        }
        return Fault::error("", shortened(sentence), "see `pathwatch policy schema` for the form of a policy");
    };
    let field = sentence.get(..at).unwrap_or_default().trim_end_matches(": ").to_owned();
    let rest = sentence.get(at + kind.len()..).unwrap_or_default();
    // What a file says may hold anything, also the words that serde uses: the last of them are serde's.
    let (subject, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, ""));
    let subject = subject.trim_end_matches('`');
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let instead = |what: &str| match nearest(subject, &known) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => format!("leave it out; there are no {what} here"),
        None => format!("known {what} are {}", known.join(", ")),
    };
    match kind {
        "unknown field `" => {
            let field = if field.is_empty() { subject.to_owned() } else { format!("{field}.{subject}") };
            Fault::error(field, format!("unknown field '{}'", shortened(subject)), instead("fields"))
        }
        "unknown variant `" => Fault::error(
            field,
            format!("'{}' is none of the words allowed here", shortened(subject)),
            instead("words"),
        ),
        "missing field `" => Fault::error(field, format!("the field '{subject}' is missing"), "add it"),
        _ => {
            let (subject, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, ""));
            let subject = shortened(&in_words(subject));
            if field.is_empty() {
                let help = "write the fields apiVersion, kind, metadata and spec";
                return Fault::error(field, format!("{subject} is no policy"), help);
            }
            let name = field.rsplit('.').next().unwrap_or_default().to_owned();
            Fault::error(field, format!("'{name}' is {subject}"), format!("write {}", in_words(expected)))
        }
    }
}

/// serde's words for kinds of values in those of a YAML file.
fn in_words(what: &str) -> String {
    let (kind, value) = what.split_once(['`', '"']).unwrap_or((what, ""));
    let value = value.trim_end_matches(['`', '"']);
    match kind.trim_end() {
        "sequence" | "a sequence" => "a list".to_owned(),
        "map" | "a map" => "a group of fields".to_owned(),
        "string" => format!("the text '{value}'"),
        "a string" => "a text, in quotes if it has special characters".to_owned(),
        "integer" | "floating point" => format!("the number {value}"),
        "boolean" => format!("the word {value}"),
        "a boolean" => "true or false".to_owned(),
        "unit value" => "empty".to_owned(),
        "u32" => "a number from 0 on".to_owned(),
        kind if kind.starts_with("struct ") => "a group of fields".to_owned(),
        _ => what.replace('`', "'"),
    }
}
