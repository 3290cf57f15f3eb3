//! Where the fields of a document stand in its file: from a field's path to line and column.
//!
//! serde says what is wrong with a value, but not where the value of a later check stood; so the file is read a second
//! time, into places alone. What would take long to read is refused here, before anything else looks at it.
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, Span};

use super::diagnostic::Fault;

/// Deepest nesting; a policy needs nine.
const DEPTH_LIMIT: usize = 32;
/// Most values of a file, each alias counted as what it stands for: as many as the largest file holds without.
const VALUES_LIMIT: usize = 1 << 19;

/// A place in a file and what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// The text, if it is a single word.
    pub(super) text: Option<String>,
}

/// The nodes of all documents of a file.
#[derive(Debug, Default)]
pub(super) struct Positions {
    nodes: Vec<Node>,
    /// The top node of each document.
    documents: Vec<usize>,
}

#[derive(Debug)]
struct Node {
    place: Place,
    content: Content,
    /// Values in it, itself included.
    size: usize,
}

#[derive(Debug)]
enum Content {
    Scalar,
    Sequence(Vec<usize>),
    /// Keys and values.
    Mapping(Vec<(usize, usize)>),
}

/// A sequence or mapping that has not ended yet.
struct Open {
    node: usize,
    /// Nodes in the order of the file; in a mapping keys and values take turns.
    children: Vec<usize>,
    mapping: bool,
}

impl Positions {
    /// Reads the places of `text`.
    ///
    /// # Errors
    /// Where and why it cannot be read as YAML, or will not be.
    pub(super) fn read(text: &str) -> Result<Self, (Place, Fault)> {
        let mut positions = Self::default();
        let mut open: Vec<Open> = Vec::new();
        let mut anchors = HashMap::new();
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|why| {
                let (line, column) = (why.marker().line().max(1), why.marker().col() + 1);
                (Place { line, column, text: None }, syntax_fault(text, line, why.info()))
            })?;
            let (anchor, content, mapping) = match event {
                Event::DocumentStart(_) => {
                    anchors.clear();
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    if let Some(done) = open.pop() {
                        positions.close(done)?;
                    }
                    continue;
                }
                Event::Alias(anchor) => {
                    // The anchor's own node: however often it is repeated, it is stored once.
                    if let Some(node) = anchors.get(&anchor) {
                        positions.add(*node, &mut open);
                    }
                    continue;
                }
                Event::Scalar(word, _, anchor, _) => (anchor, Some(word.into_owned()), None),
                Event::SequenceStart(anchor, _) => (anchor, None, Some(false)),
                Event::MappingStart(anchor, _) => (anchor, None, Some(true)),
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            };
            let node = positions.nodes.len();
            let place = place_of(&span, content);
            positions.nodes.push(Node { place: place.clone(), content: Content::Scalar, size: 1 });
            anchors.insert(anchor, node);
            positions.add(node, &mut open);
            if let Some(mapping) = mapping {
                open.push(Open { node, children: vec![], mapping });
            }
            if open.len() > DEPTH_LIMIT {
                let fault =
                    Fault::error("", format!("nested more than {DEPTH_LIMIT} deep"), "no policy needs that");
                return Err((place, fault));
            }
        }
        Ok(positions)
    }

    /// Makes `node` a child of the innermost open node, or a document.
    fn add(&mut self, node: usize, open: &mut [Open]) {
        match open.last_mut() {
            Some(parent) => parent.children.push(node),
            None => self.documents.push(node),
        }
    }

    fn close(&mut self, done: Open) -> Result<(), (Place, Fault)> {
        let content = if done.mapping {
            let pairs: Vec<_> =
                done.children.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))).collect();
            let mut seen = HashSet::new();
            for place in pairs.iter().filter_map(|(key, _)| self.nodes.get(*key)).map(|node| &node.place) {
                if let Some(word) = &place.text
                    && !seen.insert(word)
                {
                    let message =
                        format!("the field '{}' stands here a second time", super::diagnostic::shortened(word));
                    return Err((place.clone(), Fault::error("", message, "keep one of them")));
                }
            }
            Content::Mapping(pairs)
        } else {
            Content::Sequence(done.children.clone())
        };
        let size = done.children.iter().filter_map(|child| self.nodes.get(*child)).map(|child| child.size);
        let size = size.fold(1usize, usize::saturating_add);
        let Some(node) = self.nodes.get_mut(done.node) else { return Ok(()) };
        if size > VALUES_LIMIT {
            let message = format!("its aliases stand for more than {VALUES_LIMIT} values");
            return Err((node.place.clone(), Fault::error("", message, "write out what is meant")));
        }
        (node.content, node.size) = (content, size);
        Ok(())
    }

    /// How many documents the file has.
    pub(super) fn documents(&self) -> usize {
        self.documents.len()
    }

    /// The place of `field`, such as `spec.paths[0]`, in a document; of the last part of it that there is.
    pub(super) fn find(&self, document: usize, field: &str) -> Option<Place> {
        let mut node = self.nodes.get(*self.documents.get(document)?)?;
        let mut place = &node.place;
        for part in field.split(['.', '[']).filter(|part| !part.is_empty()) {
            let (key, child) = match &node.content {
                Content::Scalar => break,
                Content::Sequence(children) => {
                    let index = part.trim_end_matches(']').parse::<usize>().ok();
                    (None, index.and_then(|index| children.get(index)))
                }
                Content::Mapping(pairs) => {
                    let word = |(key, _): &&(usize, usize)| {
                        self.nodes.get(*key).is_some_and(|node| node.place.text.as_deref() == Some(part))
                    };
                    let pair = pairs.iter().find(word);
                    (pair.map(|(key, _)| key), pair.map(|(_, value)| value))
                }
            };
            let Some(child) = child.and_then(|child| self.nodes.get(*child)) else { break };
            node = child;
            // The start of a list or group says less than the word in front of it.
            let value = key.is_none() || matches!(node.content, Content::Scalar);
            place = if value {
                &node.place
            } else {
                key.and_then(|key| self.nodes.get(*key)).map_or(place, |key| &key.place)
            };
        }
        Some(place.clone())
    }

    /// The word at exactly `field`.
    pub(super) fn word(&self, document: usize, field: &str) -> Option<String> {
        let mut node = self.nodes.get(*self.documents.get(document)?)?;
        for part in field.split('.') {
            let Content::Mapping(pairs) = &node.content else { return None };
            let word = |index: usize| self.nodes.get(index).and_then(|node| node.place.text.as_deref());
            let (_, value) = pairs.iter().find(|(key, _)| word(*key) == Some(part))?;
            node = self.nodes.get(*value)?;
        }
        node.place.text.clone()
    }
}

fn place_of(span: &Span, text: Option<String>) -> Place {
    Place { line: span.start.line().max(1), column: span.start.col() + 1, text }
}

fn too_deep() -> Fault {
    Fault::error("", format!("nested more than {DEPTH_LIMIT} deep"), "no policy needs that")
}

/// A syntax error in words that help; the parser's own say what it expected of the grammar.
fn syntax_fault(text: &str, line: usize, info: &str) -> Fault {
    let tabbed = |line: &str| line.trim_start_matches(' ').starts_with('\t');
    let around = text.lines().skip(line.saturating_sub(2)).take(2);
    if around.into_iter().any(tabbed) {
        return Fault::error("", "a tab stands where YAML wants spaces", "indent by spaces");
    }
    if info.contains("anchor") {
        let help = "a word that begins with * or & means something to YAML: put it in quotes";
        return Fault::error("", format!("not YAML: {info}"), help);
    }
    if info.contains("recursion limit") {
        return too_deep();
    }
    Fault::error("", format!("not YAML: {info}"), "put what is special to YAML, such as * { [ : #, in quotes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_in_any_style_and_the_nearest_part_of_a_missing_one() {
        let text = "a: 1\nspec:\n  paths:\n    - /x\n    - \"/y\"\n  more: {k: [u, v]}\n---\nspec: &s {paths: [/z]}\nother: *s\n";
        let positions = Positions::read(text).unwrap();
        for (document, field, line, column, word) in [
            (0, "spec.paths[1]", 5, 7, Some("/y")),
            (0, "spec.paths", 3, 3, Some("paths")),
            (0, "spec.paths[7]", 3, 3, Some("paths")),
            (0, "spec.more.k[1]", 6, 17, Some("v")),
            (0, "spec.nothing.deeper", 2, 1, Some("spec")),
            (1, "spec.paths[0]", 8, 19, Some("/z")),
            (1, "other.paths[0]", 8, 19, Some("/z")),
        ] {
            let want = Place { line, column, text: word.map(str::to_owned) };
            assert_eq!(positions.find(document, field), Some(want), "{field}");
        }
        assert_eq!(positions.find(2, "spec"), None);
        assert_eq!(positions.word(0, "a").as_deref(), Some("1"));
        assert_eq!(positions.word(0, "spec.nothing"), None);
    }
}
