//! File systems, mounts and a kernel that reads them.
use std::cell::Cell;

use fastrand::Rng;
use sensor::keys::{Known, Mounted};
use sensor_ebpf::{
    decide::{Dentries, Kernel, Mount, Remembered, Valid},
    table::{Table, WORDS},
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
    is_there: bool,
}

pub(crate) struct World {
    dentries: Vec<Dentry>,
    mounts: Vec<Mounting>,
    event: Cell<u64>,
    epoch: Cell<u64>,
    memory: Vec<Remembered>,
    /// The keys in use.
    pub(crate) words: Vec<u64>,
    pub(crate) fault: Fault,
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
            epoch: Cell::new(1),
            memory: vec![Remembered::default(); 64],
            words: Vec::new(),
            fault,
        };
        for device in 1..=3 {
            let root = world.dentries.len();
            world.dentries.push(Dentry { name: b"/".to_vec(), parent: root, device, is_directory: true });
            for _ in 0..rng.usize(5..30) {
                world.make(rng, device);
            }
        }
        world.mounts.push(Mounting { root: 0, parent: 0, mountpoint: 0, namespace: OWN, is_there: true });
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
            self.epoch.set(self.epoch.get() + 1);
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
        if !self.mounts[parent].is_there {
            return;
        }
        let namespace = if rng.u8(..8) == 0 { OTHER } else { self.mounts[parent].namespace };
        self.mounts.push(Mounting { root, parent, mountpoint, namespace, is_there: true });
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

    pub(crate) fn swapped(&self) {
        if self.fault != Fault::Swaps {
            self.epoch.set(self.epoch.get() + 1);
        }
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

    /// Salted with the directory, as the kernel does it.
    fn name_hash(&self, dentry: u64) -> u32 {
        let Dentry { name, parent, .. } = self.dentry(dentry);
        name.iter().fold(*parent as u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)))
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

impl<'a> Kernel for &'a World {
    type Near = &'a World;
    type Far = &'a World;

    fn near(&self) -> &'a World {
        self
    }

    fn far(&self) -> &'a World {
        self
    }

    fn device(&self, dentry: u64) -> u32 {
        self.dentry(dentry).device
    }

    fn mount(&self, mount: u64) -> Mount {
        let Mounting { root, parent, mountpoint, namespace, .. } = self.mounts[(mount - BASE) as usize];
        Mount {
            parent: World::address(parent),
            mountpoint: World::address(mountpoint),
            namespace,
            root: World::address(root),
        }
    }

    fn valid(&self) -> Option<Valid> {
        Some(Valid { epoch: self.epoch.get(), namespace: OWN, event: self.event.get() })
    }

    fn table(&self) -> Option<&Table> {
        Table::ref_from_bytes(self.words.as_bytes()).ok()
    }

    fn memory(&self, hash: u32) -> Option<&Remembered> {
        self.memory.get(hash as usize % 64)
    }
}
