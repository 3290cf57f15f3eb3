//! File systems, mounts and a kernel that reads them.
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use fastrand::Rng;
use sensor::{
    capture::swap,
    keys::{Known, Mounted},
};
use sensor_ebpf::{
    decide::{Dentries, Kernel, Mount, Remembered, RequestedName, Valid},
    table::{ANYWHERE, HOST, State, TABLE, Table, WORDS, Wants, place_of},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Names of files and directories; patterns are made of the same.
pub(crate) const NAMES: &[&str] = &[
    "etc",
    "ssh",
    "var",
    "run",
    "lock",
    "usr",
    "bin",
    "lib",
    "secrets",
    "token",
    "a",
    "b",
    "id_rsa",
    "x.pem",
    "..2026_11_22_10_11_12.1234",
    "a-name-that-is-longer-than-forty-bytes-altogether",
    "a-name-that-is-longer-than-forty-bytes-altogethe2",
];

/// How the kernel may go wrong; the test must find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Nobody tells that a directory was moved.
    Moves,
    /// Nobody tells that something was mounted.
    Mounts,
    /// What is remembered outlives the policies.
    Swaps,
    /// Where else file systems are mounted is not known.
    Homes,
    /// A policy that speaks of a cgroup is not known to do so.
    Audience,
    /// Nobody looks whether a table was swapped meanwhile.
    Meanwhile,
    /// Nobody tells that a dentry was freed.
    Deaths,
    /// Names that were asked for are held against those of files where a pattern has that of a directory.
    Unnamed,
    /// A name that is longer than what is looked at seems to end there.
    Cut,
}

/// What user space writes while opens are looked at.
#[derive(Clone, Copy)]
enum Write {
    /// One of [`World::tables`] to the place for even or odd swaps.
    Table(usize, usize),
    /// A word of [`State`].
    Word(usize, u64),
}

struct Dentry {
    name: Vec<u8>,
    parent: usize,
    device: u32,
    is_directory: bool,
}

struct Mounting {
    root: usize,
    parent: usize,
    mountpoint: usize,
    namespace: u64,
}

pub(crate) struct World {
    dentries: Vec<Dentry>,
    mounts: Vec<Mounting>,
    event: Cell<u64>,
    moves: u64,
    /// How many dentries have been freed, by their places.
    deaths: Vec<u32>,
    memory: Vec<Remembered>,
    /// All tables of keys so far, and which stand in the two places for them.
    tables: Vec<Rc<[u64]>>,
    places: [Cell<usize>; 2],
    state: Cell<State>,
    /// What is going to be written, and who says when.
    writes: RefCell<VecDeque<Write>>,
    when: RefCell<Rng>,
    /// How many of those were written while an open was looked at.
    pub(crate) written_meanwhile: Cell<u64>,
    pub(crate) fault: Fault,
}

/// An open is looked at.
pub(crate) struct Looking<'a> {
    world: &'a World,
    swaps: u64,
    /// What policies want of a process of which nobody knows whom they speak of.
    pub(crate) wants: Wants,
}

/// Addresses are indexes, from where no index is taken for a null pointer.
const BASE: u64 = 1 << 32;
const OWN: u64 = 7;
const OTHER: u64 = 8;

impl World {
    pub(crate) fn random(rng: &mut Rng, fault: Fault) -> Self {
        let mut world = Self {
            dentries: Vec::new(),
            mounts: Vec::new(),
            event: Cell::new(0),
            moves: 0,
            deaths: vec![0; 64],
            memory: vec![Remembered::default(); 64],
            tables: vec![vec![0; size_of::<Table>() / 8].into()],
            places: [Cell::new(0), Cell::new(0)],
            state: Cell::new(State { epoch: 1 << 32, ..State::NEW }),
            writes: RefCell::default(),
            when: RefCell::new(rng.fork()),
            written_meanwhile: Cell::new(0),
            fault,
        };
        for device in 1..=3 {
            let root = world.dentries.len();
            world.dentries.push(Dentry { name: b"/".to_vec(), parent: root, device, is_directory: true });
            for _ in 0..rng.usize(5..30) {
                world.make(rng, device);
            }
        }
        world.mounts.push(Mounting { root: 0, parent: 0, mountpoint: 0, namespace: OWN });
        for _ in 0..rng.usize(0..4) {
            world.mount(rng);
        }
        world
    }

    fn pick(&self, rng: &mut Rng, mut fits: impl FnMut(&Dentry) -> bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.dentries.len()).filter(|at| fits(&self.dentries[*at])).collect();
        rng.choice(all)
    }

    fn make(&mut self, rng: &mut Rng, device: u32) {
        let parent = self.pick(rng, |dentry| dentry.is_directory && dentry.device == device).unwrap();
        let name = rng.choice(NAMES).unwrap().as_bytes().to_vec();
        self.dentries.push(Dentry { name, parent, device, is_directory: rng.bool() });
    }

    /// Moves something below another directory of its file system, or gives it another name; rather something above `near`.
    pub(crate) fn rename(&mut self, rng: &mut Rng, near: usize) {
        let above: Vec<usize> = self.up(near).filter(|at| self.dentries[*at].name != b"/").collect();
        let any = self.pick(rng, |dentry| dentry.name != b"/");
        let Some(what) = rng.choice(above).filter(|_| rng.bool()).or(any) else { return };
        let device = self.dentries[what].device;
        let to = self.pick(rng, |dentry| dentry.is_directory && dentry.device == device).unwrap();
        if self.up(to).any(|above| above == what) {
            return;
        }
        self.dentries[what].parent = to;
        self.dentries[what].name = rng.choice(NAMES).unwrap().as_bytes().to_vec();
        if self.fault != Fault::Moves && self.dentries[what].is_directory {
            self.moves += 1;
        }
    }

    /// Removes a directory that has nothing in it but files; its memory becomes that of another one. Rather that of `near`.
    pub(crate) fn replace(&mut self, rng: &mut Rng, near: usize) {
        let is_leaf = |at: &usize| {
            let has_directories = self.dentries.iter().any(|dentry| dentry.parent == *at && dentry.is_directory);
            let is_mounted = self.mounts.iter().any(|mount| mount.mountpoint == *at || mount.root == *at);
            self.dentries[*at].is_directory && self.dentries[*at].name != b"/" && !has_directories && !is_mounted
        };
        let leaves: Vec<usize> = (0..self.dentries.len()).filter(is_leaf).collect();
        let near = Some(self.dentries[near].parent).filter(|at| leaves.contains(at) && rng.bool());
        let Some(what) = near.or_else(|| rng.choice(&leaves).copied()) else { return };
        let device = self.dentries[what].device;
        let fits = |dentry: &Dentry| dentry.is_directory && dentry.device == device;
        let to = self.pick(rng, fits).filter(|to| *to != what).unwrap_or(self.dentries[what].parent);
        self.dentries[what].parent = to;
        if rng.bool() {
            self.dentries[what].name = rng.choice(NAMES).unwrap().as_bytes().to_vec();
        }
        if self.fault != Fault::Deaths {
            self.deaths[place_of(World::address(what)) % 64] += 1;
        }
    }

    /// Mounts a part of some file system somewhere; a file on a file, a directory on a directory.
    pub(crate) fn mount(&mut self, rng: &mut Rng) {
        let root = self.pick(rng, |_| true).unwrap();
        let is_directory = self.dentries[root].is_directory;
        let parent = rng.usize(..self.mounts.len());
        let within: Vec<usize> = (0..self.dentries.len())
            .filter(|at| self.dentries[*at].is_directory == is_directory && self.shows(parent, *at))
            .collect();
        let Some(mountpoint) = rng.choice(within) else { return };
        let namespace = if rng.u8(..8) == 0 { OTHER } else { self.mounts[parent].namespace };
        self.mounts.push(Mounting { root, parent, mountpoint, namespace });
        self.changed();
    }

    /// Moves a mount to another place, rather `near`.
    pub(crate) fn move_mount(&mut self, rng: &mut Rng, near: usize) {
        let at = if rng.bool() { near } else { rng.usize(..self.mounts.len()) };
        let is_directory = self.dentries[self.mounts[at].root].is_directory;
        let fits = |dentry: &usize| self.dentries[*dentry].is_directory == is_directory && self.shows(0, *dentry);
        let within: Vec<usize> = (0..self.dentries.len()).filter(fits).collect();
        let Some(mountpoint) = rng.choice(within).filter(|_| at != 0) else { return };
        (self.mounts[at].parent, self.mounts[at].mountpoint) = (0, mountpoint);
        self.changed();
    }

    fn changed(&self) {
        if self.fault != Fault::Mounts {
            self.event.set(self.event.get() + 1);
        }
    }

    /// Begins to swap the keys; nothing is written until [`World::write_all`], or meanwhile.
    pub(crate) fn swap(&mut self, wants: Wants, words: Vec<u64>) {
        if !self.is_swapping() {
            self.tables = self.places.each_ref().map(|place| self.tables[place.get()].clone()).into();
            self.places = [Cell::new(0), Cell::new(1)];
        }
        self.tables.push(words.into());
        let wants = if self.fault == Fault::Unnamed { without_unnamed(wants) } else { wants };
        let before = self.writes.borrow().iter().fold(self.state.get(), |state, write| put(state, *write));
        let mut steps = swap(before, wants);
        if self.fault == Fault::Swaps {
            steps[2].epoch = before.epoch;
        }
        let mut writes = self.writes.borrow_mut();
        writes.push_back(Write::Table((steps[2].swaps & TABLE) as usize, self.tables.len() - 1));
        for words in steps.map(words_of) {
            writes.extend(words.into_iter().enumerate().map(|(at, word)| Write::Word(at, word)));
        }
    }

    /// What is in use.
    pub(crate) fn in_use(&self) -> (Wants, &[u64]) {
        let state = self.state.get();
        (state.in_use(), &self.tables[self.places[(state.swaps & TABLE) as usize].get()])
    }

    /// Whether a swap has begun and not ended.
    pub(crate) fn is_swapping(&self) -> bool {
        !self.writes.borrow().is_empty()
    }

    pub(crate) fn write_all(&self) {
        self.writes.take().into_iter().for_each(|write| self.write(write));
    }

    fn write(&self, write: Write) {
        if let Write::Table(place, table) = write {
            self.places[place].set(table);
        }
        self.state.set(put(self.state.get(), write));
    }

    /// User space may write something now.
    fn meanwhile(&self) {
        let mut writes = self.writes.borrow_mut();
        let mut when = self.when.borrow_mut();
        let count = if when.bool() { 0 } else { when.usize(..=writes.len()) };
        for write in (0..count).map_while(|_| writes.pop_front()) {
            self.write(write);
            self.written_meanwhile.set(self.written_meanwhile.get() + 1);
        }
    }

    /// Begins to look at an open, as the kernel side does.
    pub(crate) fn look(&self) -> Looking<'_> {
        self.meanwhile();
        let swaps = self.state.get().swaps;
        self.meanwhile();
        let [even, odd] = self.state.get().wants;
        Looking { world: self, swaps, wants: if swaps & TABLE == 0 { even } else { odd } }
    }

    /// A dentry and all above it.
    fn up(&self, from: usize) -> impl Iterator<Item = usize> {
        let next = |at: &usize| Some(self.dentries[*at].parent).filter(|parent| parent != at);
        std::iter::successors(Some(from), next)
    }

    fn shows(&self, mount: usize, dentry: usize) -> bool {
        self.up(dentry).any(|above| above == self.mounts[mount].root)
    }

    /// The names from below `top` down to a dentry.
    fn names(&self, top: usize, dentry: usize) -> Vec<u8> {
        let mut way: Vec<usize> = self.up(dentry).take_while(|at| *at != top).collect();
        way.reverse();
        way.iter().flat_map(|at| [b"/", self.dentries[*at].name.as_slice()].concat()).collect()
    }

    /// Where a dentry is by way of a mount.
    pub(crate) fn path(&self, mount: usize, dentry: usize) -> Vec<u8> {
        let Mounting { root, parent, mountpoint, .. } = self.mounts[mount];
        let rest = self.names(root, dentry);
        let at = if parent == mount { b"/".to_vec() } else { self.path(parent, mountpoint) };
        let path = [at.strip_suffix(b"/").unwrap_or(&at), rest.as_slice()].concat();
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// Every place where it is.
    pub(crate) fn homes(&self, dentry: usize) -> Vec<Vec<u8>> {
        (0..self.mounts.len())
            .filter(|mount| self.shows(*mount, dentry))
            .map(|mount| self.path(mount, dentry))
            .collect()
    }

    /// Something to open, and by which mount.
    pub(crate) fn file(&self, rng: &mut Rng) -> (usize, usize) {
        let mount = rng.usize(..self.mounts.len());
        let within: Vec<usize> = (0..self.dentries.len()).filter(|at| self.shows(mount, *at)).collect();
        (mount, rng.choice(within).unwrap())
    }

    /// What enrichment knows of the mounts.
    pub(crate) fn known(&self) -> Known {
        let place = |(at, mount): (usize, &Mounting)| {
            let part = self.names(self.file_system(mount.root), mount.root);
            let part = if part.is_empty() { b"/".to_vec() } else { part };
            Mounted { device: self.dentries[mount.root].device, part, at: self.path(at, mount.root) }
        };
        let mut mounts: Vec<Mounted> = self.mounts.iter().enumerate().map(place).collect();
        if self.fault == Fault::Homes {
            mounts.iter_mut().for_each(|mount| mount.at = b"/".to_vec());
        }
        Known { mounts, links: Vec::new() }
    }

    pub(crate) fn is_directory(&self, dentry: usize) -> bool {
        self.dentries[dentry].is_directory
    }

    fn file_system(&self, dentry: usize) -> usize {
        self.up(dentry).last().unwrap()
    }

    pub(crate) const fn address(at: usize) -> u64 {
        BASE + at as u64
    }

    fn dentry(&self, address: u64) -> &Dentry {
        &self.dentries[(address - BASE) as usize]
    }
}

impl Dentries for &World {
    fn parent(&self, dentry: u64) -> u64 {
        World::address(self.dentry(dentry).parent)
    }

    fn name_len(&self, dentry: u64) -> u32 {
        self.dentry(dentry).name.len() as u32
    }

    fn is_inline(&self, dentry: u64) -> bool {
        self.dentry(dentry).name.len() < 32
    }

    fn inline_word(&self, dentry: u64, at: usize) -> u64 {
        // What stands behind a name is anything.
        let mut padded = self.dentry(dentry).name.clone();
        padded.resize(8 * WORDS, 0xa5);
        u64::from_le_bytes(padded[8 * at..8 * at + 8].try_into().unwrap())
    }

    fn long_name(&self, dentry: u64) -> [u64; WORDS] {
        std::array::from_fn(|at| self.inline_word(dentry, at))
    }
}

/// What is wanted, as if every pattern had the name of a file.
pub(crate) fn without_unnamed(mut wants: Wants) -> Wants {
    wants.flags &= ANYWHERE | HOST;
    wants
}

/// A name that was asked for, and what follows it in memory.
pub(crate) struct Name(pub(crate) Vec<u8>, pub(crate) Fault);

impl RequestedName for Name {
    fn bytes<const N: usize>(&self, at: u32) -> ([u8; N], u32) {
        let end = if self.1 == Fault::Cut { self.0.len().min(500) } else { self.0.len() };
        let rest = self.0.get(at as usize..end).unwrap_or_default();
        let len = rest.len().min(N - 1);
        // Of what stands behind the zero nothing is copied.
        let bytes = std::array::from_fn(|at| if at < len { rest[at] } else { 0 });
        (bytes, len as u32 + 1)
    }
}

const STATE_WORDS: usize = size_of::<State>() / 8;

fn words_of(state: State) -> [u64; STATE_WORDS] {
    zerocopy::transmute!(state)
}

fn put(state: State, write: Write) -> State {
    let mut words = words_of(state);
    if let Write::Word(at, word) = write {
        words[at] = word;
    }
    zerocopy::transmute!(words)
}

impl<'a> Kernel for Looking<'a> {
    type Near = &'a World;
    type Far = &'a World;

    fn near(&self) -> &'a World {
        self.world
    }

    fn far(&self) -> &'a World {
        self.world
    }

    fn device(&self, dentry: u64) -> u32 {
        self.world.meanwhile();
        self.world.dentry(dentry).device
    }

    fn mount(&self, mount: u64) -> Mount {
        self.world.meanwhile();
        let Mounting { root, parent, mountpoint, namespace, .. } = self.world.mounts[(mount - BASE) as usize];
        Mount {
            parent: World::address(parent),
            mountpoint: World::address(mountpoint),
            namespace,
            root: World::address(root),
        }
    }

    fn valid(&self) -> Option<Valid> {
        self.world.meanwhile();
        let epoch = self.world.state.get().epoch;
        self.world.meanwhile();
        if epoch == 0 || !self.is_current() {
            return None;
        }
        Some(Valid { epoch: epoch + self.world.moves, namespace: OWN, event: self.world.event.get() })
    }

    fn table(&self) -> Option<&Table> {
        self.world.meanwhile();
        let table = self.world.places[(self.swaps & TABLE) as usize].get();
        Table::ref_from_bytes(self.world.tables[table].as_bytes()).ok()
    }

    fn is_current(&self) -> bool {
        self.world.meanwhile();
        self.world.fault == Fault::Meanwhile || self.world.state.get().swaps == self.swaps
    }

    fn memory(&self, dentry: u64) -> Option<&Remembered> {
        self.world.memory.get(place_of(dentry) % 64)
    }

    fn deaths(&self, dentry: u64) -> u32 {
        self.world.deaths[place_of(dentry) % 64]
    }
}
