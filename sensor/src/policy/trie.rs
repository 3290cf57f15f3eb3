//! Many patterns as one tree of components: a look-up costs what the path is long, not what the patterns are many.
//!
//! Literal names are looked up in a hash map, once a component; forms such as `id_*` and `*.pem` by their literal
//! beginning or end; what has neither is tried one by one.
use std::collections::HashMap;

use super::glob::{Component, Glob, Wild};

/// A place in the tree; the root is the first.
type NodeId = u32;

/// Patterns, each with a value of its author's choice.
#[derive(Debug)]
pub(super) struct Trie<T> {
    /// Every literal component of any pattern. One look-up tells that a name is in none.
    names: HashMap<Box<[u8]>, u32>,
    literals: HashMap<(NodeId, u32), NodeId>,
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    wilds: Option<Box<Wilds>>,
    /// The node behind a `**`, which is also reached with no component in between.
    any: Option<NodeId>,
    /// True behind a `**`: stays in force whatever component comes.
    repeats: bool,
    /// Patterns that end here.
    here: Vec<T>,
    /// Patterns that end here with `/**`.
    below: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { wilds: None, any: None, repeats: false, here: vec![], below: vec![] }
    }
}

/// The forms of names that lead on from one node.
#[derive(Debug, Default)]
struct Wilds {
    forms: Vec<(Wild, NodeId)>,
    /// Forms with a literal beginning, by it.
    by_prefix: Affixes,
    /// Forms with a literal end only, by it.
    by_suffix: Affixes,
    /// The others.
    rest: Vec<usize>,
}

/// Places in [`Wilds::forms`] by a literal part, and the lengths that these parts have.
#[derive(Debug, Default)]
struct Affixes {
    lengths: Vec<usize>,
    forms: HashMap<Box<[u8]>, Vec<usize>>,
}

impl Affixes {
    fn insert(&mut self, affix: &[u8], form: usize) {
        if !self.lengths.contains(&affix.len()) {
            self.lengths.push(affix.len());
        }
        self.forms.entry(affix.into()).or_default().push(form);
    }
}

impl Wilds {
    fn child(&self, form: &Wild) -> Option<NodeId> {
        // Only forms that share its literal part can be the same.
        let same = if form.prefix.is_empty() {
            self.by_suffix.forms.get(form.suffix.as_slice())
        } else {
            self.by_prefix.forms.get(form.prefix.as_slice())
        };
        let same = same.unwrap_or(&self.rest);
        same.iter().filter_map(|at| self.forms.get(*at)).find(|(known, _)| known == form).map(|(_, node)| *node)
    }

    fn insert(&mut self, form: Wild, node: NodeId) {
        let at = self.forms.len();
        if !form.prefix.is_empty() {
            self.by_prefix.insert(&form.prefix, at);
        } else if !form.suffix.is_empty() {
            self.by_suffix.insert(&form.suffix, at);
        } else {
            self.rest.push(at);
        }
        self.forms.push((form, node));
    }

    /// Calls `found` with the node behind every form that `name` has.
    fn matches(&self, name: &[u8], mut found: impl FnMut(NodeId)) {
        let mut all = |places: &[usize]| {
            for (form, node) in places.iter().filter_map(|at| self.forms.get(*at)) {
                if form.matches(name) {
                    found(*node);
                }
            }
        };
        all(&self.rest);
        for prefix in self.by_prefix.lengths.iter().filter_map(|len| name.get(..*len)) {
            self.by_prefix.forms.get(prefix).into_iter().for_each(|forms| all(forms));
        }
        for suffix in self.by_suffix.lengths.iter().filter_map(|len| name.get(name.len().checked_sub(*len)?..)) {
            self.by_suffix.forms.get(suffix).into_iter().for_each(|forms| all(forms));
        }
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { names: HashMap::new(), literals: HashMap::new(), nodes: vec![Node::default()] }
    }
}

impl<T: Copy> Trie<T> {
    /// Adds `glob`; `value` is handed out for every path that it matches.
    pub(super) fn insert(&mut self, glob: &Glob, value: T) {
        for components in glob.alternatives() {
            let below = components.last() == Some(&Component::Any);
            let way = components.get(..components.len() - usize::from(below)).unwrap_or_default();
            let end = way.iter().fold(0, |node, component| self.child(node, component));
            if let Some(node) = self.nodes.get_mut(end as usize) {
                if below { &mut node.below } else { &mut node.here }.push(value);
            }
        }
    }

    /// The node that `component` leads to from `parent`, made if it is not there yet.
    fn child(&mut self, parent: NodeId, component: &Component) -> NodeId {
        let next = self.nodes.len() as NodeId;
        let Some(node) = self.nodes.get_mut(parent as usize) else { return parent };
        let (child, repeats) = match component {
            Component::Literal(name) => {
                let names = self.names.len() as u32;
                let name = *self.names.entry(name.as_slice().into()).or_insert(names);
                (*self.literals.entry((parent, name)).or_insert(next), false)
            }
            Component::Wild(form) => {
                let wilds = node.wilds.get_or_insert_default();
                let child = wilds.child(form).unwrap_or_else(|| {
                    wilds.insert(form.clone(), next);
                    next
                });
                (child, false)
            }
            Component::Any => (*node.any.get_or_insert(next), true),
        };
        if child == next {
            self.nodes.push(Node { repeats, ..Node::default() });
        }
        child
    }

    /// Calls `found` with the value of every pattern that matches `path`, in no order and maybe more than once.
    ///
    /// A path without a leading slash is the tail of one: it can only be found by patterns that begin with `**`.
    pub(super) fn matches(&self, path: &[u8], mut found: impl FnMut(T)) {
        let (mut active, mut next) = (Vec::new(), Vec::new());
        let names = match path.strip_prefix(b"/") {
            Some(names) => {
                self.enter(0, &mut active);
                names
            }
            None => {
                let root = self.nodes.first();
                root.and_then(|root| root.any).into_iter().for_each(|any| self.enter(any, &mut active));
                root.into_iter().flat_map(|root| &root.below).for_each(|value| found(*value));
                path
            }
        };
        for name in names.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let known = self.names.get(name);
            for id in active.drain(..) {
                let Some(node) = self.nodes.get(id as usize) else { continue };
                node.below.iter().for_each(|value| found(*value));
                if node.repeats {
                    self.enter(id, &mut next);
                }
                if let Some(child) = known.and_then(|name| self.literals.get(&(id, *name))) {
                    self.enter(*child, &mut next);
                }
                if let Some(wilds) = &node.wilds {
                    wilds.matches(name, |child| self.enter(child, &mut next));
                }
            }
            std::mem::swap(&mut active, &mut next);
            if active.is_empty() {
                return;
            }
        }
        for node in active.iter().filter_map(|id| self.nodes.get(*id as usize)) {
            node.here.iter().for_each(|value| found(*value));
        }
    }

    /// Puts `id` in force, and what is reached from it by no component.
    fn enter(&self, id: NodeId, active: &mut Vec<NodeId>) {
        let Some(node) = self.nodes.get(id as usize) else { return };
        // Only what repeats can be reached twice: by staying, and from its parent again.
        if node.repeats && active.contains(&id) {
            return;
        }
        active.push(id);
        if let Some(any) = node.any {
            self.enter(any, active);
        }
    }
}
