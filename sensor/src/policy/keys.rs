//! What the kernel's filter must let through: from every pattern a name that all paths have which it matches.
//!
//! Sound, not precise: what passes is judged by the whole patterns. `sensor/tests/filter.rs` holds it to the matcher.
use std::collections::{BTreeSet, HashMap};

use sensor_ebpf::table::{EXEC, READ, REFERENCE, WRITE};

use super::{
    Outcome, PolicySet, alias,
    glob::{Component, Glob},
    trie::Trie,
};
use crate::{
    event::Operation,
    keys::{Key, Keys, Known},
};

/// What [`Keys`] are made from, and what is needed to tell what mounts mean to them.
#[derive(Debug, Default)]
pub(super) struct Sources {
    keys: Keys,
    names: HashMap<Vec<u8>, Key>,
    /// The beginnings of patterns up to the directory whose name was taken.
    directories: Trie<u8>,
    /// Whole patterns of which the file's name was taken.
    files: Trie<u8>,
    /// Directories of literal paths.
    parents: BTreeSet<Vec<u8>>,
}

impl PolicySet {
    /// What the filter must let through so that no policy of the set misses anything, `known` of the node's files.
    #[must_use]
    pub fn keys(&self, known: &Known) -> Keys {
        let mut sources = Sources::default();
        for policy in &self.policies {
            let spec = &policy.policy.spec;
            let classes = spec.operations.iter().fold(0, |all, operation| all | class(*operation));
            for outcome in &spec.results {
                if let Some(wanted) = sources.keys.wanted.get_mut(place(*outcome)) {
                    *wanted |= classes;
                }
            }
            policy.paths.iter().for_each(|glob| sources.add(glob, classes));
        }
        sources.into_keys(known)
    }
}

/// The class of opens in which an operation is done; none if it is no open.
fn class(operation: Operation) -> u8 {
    match operation {
        Operation::Read | Operation::List => READ,
        Operation::Write | Operation::Create | Operation::Truncate => WRITE,
        Operation::Exec => EXEC,
        Operation::Reference => REFERENCE,
        Operation::Rename | Operation::Link | Operation::Delete => 0,
    }
}

/// Its place in [`Keys::wanted`].
fn place(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Success => 0,
        Outcome::Denied => 1,
        Outcome::Missing => 2,
        Outcome::Error => 3,
    }
}

impl Sources {
    fn add(&mut self, glob: &Glob, classes: u8) {
        for components in glob.alternatives() {
            if let Some(Component::Literal(name)) = components.last() {
                self.name(name).file |= classes;
                self.files.insert(&Glob::of(components), classes);
                self.add_parent(components);
            } else if let Some((at, name)) = last_literal(components) {
                self.name(name).below |= classes;
                for other in alias::stand_ins(name) {
                    self.name(last(other)).add(Key { file: classes, below: classes, names: false });
                    self.add_directory_of(other);
                }
                self.directories.insert(&Glob::of(components.get(..=at).unwrap_or_default()), classes);
            } else {
                self.keys.everything |= classes;
            }
        }
    }

    /// Notes in which directory a pattern's file is, if that is plain.
    fn add_parent(&mut self, components: &[Component]) {
        let path = Glob::of(components).literals().and_then(|mut paths| paths.pop());
        path.iter().flat_map(|path| alias::names(path)).for_each(|name| self.add_directory_of(&name));
        self.keys.anywhere |= path.is_none();
    }

    /// Has the names of files count that are in the same directory as `path`. A root is called `/`.
    fn add_directory_of(&mut self, path: &[u8]) {
        let directory = directory(path);
        self.name(directory.map_or(b"/", last)).names = true;
        self.parents.insert(directory.unwrap_or(b"/").to_vec());
    }

    fn name(&mut self, name: &[u8]) -> &mut Key {
        self.names.entry(name.to_vec()).or_default()
    }

    fn into_keys(mut self, known: &Known) -> Keys {
        let classes = self.keys.classes();
        // What a literal leads to is wanted by that name, too.
        for link in &known.links {
            self.name(last(link)).file |= classes;
            self.add_directory_of(link);
        }
        let mut devices: HashMap<u32, Key> = HashMap::new();
        for mount in &known.mounts {
            let meaning = self.meaning(&mount.at);
            let device = devices.entry(mount.device).or_default();
            // What is in the part has its directory on the way, and the root of a file system has no name.
            if mount.part == b"/" {
                device.add(Key { file: 0, names: meaning.names || meaning.file != 0, ..meaning });
                self.name(b"/").file |= meaning.file;
            } else if meaning != Key::default() {
                // The part may be a file.
                self.name(last(&mount.part)).add(Key { file: meaning.file | meaning.below, ..meaning });
                match directory(&mount.part) {
                    Some(parent) => self.name(last(parent)).names = true,
                    None => device.names = true,
                }
            }
        }
        let mut keys = self.keys;
        keys.names = self.names.into_iter().filter(|(_, key)| *key != Key::default()).collect();
        keys.names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        keys.devices = devices.into_iter().collect();
        keys.devices.sort_unstable_by_key(|(device, _)| *device);
        keys
    }

    /// What a place means to what is mounted there: its own names are not on the way of who comes by another mount.
    fn meaning(&self, at: &[u8]) -> Key {
        // What is right below a generation of a volume is known as if that were not there.
        let mut key = Key { names: last(at).starts_with(b".."), ..Key::default() };
        for name in alias::names(at) {
            self.files.matches(&name, |classes| key.file |= classes);
            key.names |= self.parents.contains(name.as_ref());
            for end in name.iter().enumerate().filter_map(|(at, byte)| (*byte == b'/' && at > 0).then_some(at)) {
                self.directories.matches(name.get(..end).unwrap_or_default(), |classes| key.below |= classes);
            }
            self.directories.matches(&name, |classes| key.below |= classes);
        }
        key
    }
}

/// The last component that is a name, and its place.
fn last_literal(components: &[Component]) -> Option<(usize, &[u8])> {
    components.iter().enumerate().rev().find_map(|(at, component)| match component {
        Component::Literal(name) => Some((at, name.as_slice())),
        Component::Wild(_) | Component::Any => None,
    })
}

/// The directory of a path, unless that is the root.
fn directory(path: &[u8]) -> Option<&[u8]> {
    let at = path.iter().rposition(|byte| *byte == b'/')?;
    path.get(..at).filter(|directory| !directory.is_empty())
}

/// The last component of a path.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}
