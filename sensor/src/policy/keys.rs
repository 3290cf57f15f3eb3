//! What the kernel's filter must let through: from every pattern a name that all paths have which it matches.
//!
//! Sound, not precise: what passes is judged by the whole patterns. `sensor/tests/filter/` holds it to the matcher.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use sensor_ebpf::table::{ALL, ANYWHERE, CHANGE, EVERYBODY, EXEC, HOST, READ, REFERENCE, UNNAMED, WRITE, Wants};

use super::{
    Compiled, Outcome, PolicySet, alias,
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
    names: HashMap<Vec<u8>, Key>,
    /// The beginnings of patterns up to the directory whose name was taken.
    directories: Trie<Key>,
    /// Whole patterns of which the file's name was taken.
    files: Trie<Key>,
    /// Directories of literal paths.
    parents: BTreeSet<Vec<u8>>,
}

impl PolicySet {
    /// What the filter must let through so that no policy of the set misses anything, `known` of the node's files.
    #[must_use]
    pub fn keys(&self, known: &Known) -> Keys {
        let mut sources = Sources::default();
        let each = self.wants_of_each();
        for (policy, wants) in self.policies.iter().zip(&each) {
            let classes = classes(policy) & ALL;
            for components in policy.paths.iter().flat_map(Glob::alternatives).filter(|_| classes != 0) {
                sources.add(components, classes, wants.audience);
            }
        }
        sources.into_keys(known, each.into_iter().fold(Wants::default(), either))
    }

    /// What each policy wants, before any path counts, in their order.
    #[must_use]
    pub fn wants_of_each(&self) -> Vec<Wants> {
        // Those that speak of the same processes are one in the kernel, as far as there is room.
        let mut audiences = HashMap::new();
        let wants = |policy: &Arc<Compiled>| {
            let next = audiences.len() as u32 % u16::BITS;
            wants(policy, 1 << *audiences.entry(policy.policy.speaks_to()).or_insert(next))
        };
        self.policies.iter().map(wants).collect()
    }
}

/// What is wanted of processes of which these policies speak, by what each of all policies wants.
#[must_use]
pub fn wants_of(each: &[Wants], speaking: &[u32], on_host: bool) -> Wants {
    let host = Wants { flags: if on_host { HOST } else { 0 }, ..Wants::default() };
    speaking.iter().filter_map(|at| each.get(*at as usize)).copied().fold(host, either)
}

/// What either wants.
fn either(mut one: Wants, other: Wants) -> Wants {
    one.wanted.iter_mut().zip(other.wanted).for_each(|(one, other)| *one |= other);
    one.everything |= other.everything;
    one.flags |= other.flags;
    one.audience |= other.audience;
    one
}

fn wants(policy: &Compiled, audience: u16) -> Wants {
    let (mut wants, classes) = (Wants { audience, ..Wants::default() }, classes(policy));
    for outcome in &policy.policy.spec.results {
        if let Some(wanted) = wants.wanted.get_mut(place(*outcome)) {
            *wanted |= classes;
        }
    }
    for components in policy.paths.iter().flat_map(Glob::alternatives) {
        match key(components) {
            Place::File if plain(components).is_none() => wants.flags |= ANYWHERE,
            Place::File => {}
            Place::Directory(..) if classes & ALL == 0 => {}
            // What was asked for need not say in which directory it ends.
            Place::Directory(..) => {
                let ends = policy.policy.spec.results.iter().map(|outcome| place(*outcome));
                wants.flags |= ends.filter_map(|at| UNNAMED.get(at)).fold(0, |all, bit| all | bit);
            }
            Place::None => wants.everything |= classes & ALL,
        }
    }
    wants
}

/// The classes of a policy's operations.
fn classes(policy: &Compiled) -> u8 {
    policy.policy.spec.operations.iter().fold(0, |all, operation| all | class(*operation))
}

/// The class in which an operation is done.
fn class(operation: Operation) -> u8 {
    match operation {
        Operation::Read | Operation::List => READ,
        Operation::Write | Operation::Create | Operation::Truncate => WRITE,
        Operation::Exec => EXEC,
        Operation::Reference => REFERENCE,
        Operation::Rename | Operation::Link | Operation::Delete => CHANGE,
    }
}

/// Where a pattern has the name that is taken from it.
enum Place<'a> {
    /// It is the file's.
    File,
    /// It is that of the directory at this place.
    Directory(usize, &'a [u8]),
    /// It has none.
    None,
}

fn key(components: &[Component]) -> Place<'_> {
    match last_literal(components) {
        Some((at, _)) if at + 1 == components.len() => Place::File,
        Some((at, name)) => Place::Directory(at, name),
        None => Place::None,
    }
}

/// The only path that a pattern matches, if that is so.
fn plain(components: &[Component]) -> Option<Vec<u8>> {
    Glob::of(components).literals().and_then(|mut paths| paths.pop())
}

/// Its place in [`Wants::wanted`].
fn place(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Success => 0,
        Outcome::Denied => 1,
        Outcome::Missing => 2,
        Outcome::Error => 3,
    }
}

impl Sources {
    fn add(&mut self, components: &[Component], classes: u8, audience: u16) {
        match key(components) {
            Place::File => {
                let key = Key { file: classes, audience, ..Key::default() };
                self.name(components.last().and_then(literal).unwrap_or_default()).add(key);
                self.files.insert(&Glob::of(components), key);
                let path = plain(components);
                path.iter().flat_map(|path| alias::names(path)).for_each(|name| self.add_directory_of(&name));
            }
            Place::Directory(at, name) => {
                let key = Key { below: classes, audience, ..Key::default() };
                self.name(name).add(key);
                for other in alias::stand_ins(name) {
                    self.name(last(other)).add(Key { file: classes, ..key });
                    self.add_directory_of(other);
                }
                self.directories.insert(&Glob::of(components.get(..=at).unwrap_or_default()), key);
            }
            Place::None => {}
        }
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

    fn into_keys(mut self, known: &Known, wants: Wants) -> Keys {
        let classes = wants.wanted.iter().fold(0, |all, classes| all | classes) & ALL;
        // What a literal leads to is wanted by that name, too.
        for link in &known.links {
            self.name(last(link)).add(Key { file: classes, audience: EVERYBODY, ..Key::default() });
            self.add_directory_of(link);
        }
        let mut devices: HashMap<u32, Key> = HashMap::new();
        for mount in &known.mounts {
            let meaning = self.meaning(&mount.at);
            let device = devices.entry(mount.device).or_default();
            // What is in the part has its directory on the way, and the root of a file system has no name.
            if mount.part == b"/" {
                device.add(Key { file: 0, names: meaning.names || meaning.file != 0, ..meaning });
                self.name(b"/").add(Key { below: 0, names: false, ..meaning });
            } else if meaning != Key::default() {
                // The part may be a file.
                self.name(last(&mount.part)).add(Key { file: meaning.file | meaning.below, ..meaning });
                match directory(&mount.part) {
                    Some(parent) => self.name(last(parent)).names = true,
                    None => device.names = true,
                }
            }
        }
        let mut keys = Keys { wants, ..Keys::default() };
        keys.names = self.names.into_iter().filter(|(_, key)| key.file | key.below != 0 || key.names).collect();
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
            self.files.matches(&name, |found| key.add(found));
            key.names |= self.parents.contains(name.as_ref());
            for end in name.iter().enumerate().filter_map(|(at, byte)| (*byte == b'/' && at > 0).then_some(at)) {
                self.directories.matches(name.get(..end).unwrap_or_default(), |found| key.add(found));
            }
            self.directories.matches(&name, |found| key.add(found));
        }
        key
    }
}

/// The last component that is a name, and its place.
fn last_literal(components: &[Component]) -> Option<(usize, &[u8])> {
    components.iter().enumerate().rev().find_map(|(at, component)| Some((at, literal(component)?)))
}

/// The name that a component is.
fn literal(component: &Component) -> Option<&[u8]> {
    match component {
        Component::Literal(name) => Some(name),
        Component::Wild(_) | Component::Any => None,
    }
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
