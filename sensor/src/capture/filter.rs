//! Hands to the kernel what policies want to see, as keys of `sensor_ebpf::decide`.
use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    os::fd::RawFd,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use sensor_ebpf::{
    cgroups::{self, Cgroups, PLACES, place_of},
    decide::REASONS,
    table::{self, ALL, AUDIENCE, CGROUPS, KNOWN, NAMES, PROBES, SWAP, State, TABLE, Table, Wants, hash, slot_of},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Error, Runs, opens::Opens};
use crate::{
    keys::{Key, Keys},
    metrics::Metrics,
};

/// A table as the map holds it.
const WORDS: usize = size_of::<Table>() / 8;

/// What a key means, as the table has it.
fn word(key: Key) -> u32 {
    let names = if key.names { NAMES } else { 0 };
    u32::from(key.audience) << AUDIENCE | names | u32::from(key.below & ALL) << 4 | u32::from(key.file & ALL)
}

/// [`State`] as the map holds it.
type StateWords = [u64; size_of::<State>() / 8];
/// The section of the kernel side that is the map of it.
const STATE: &str = ".data.filter";
/// [`Cgroups`] as its maps hold it: ids, then what is wanted of each.
type CgroupWords = [u64; CGROUP_WORDS];
const CGROUP_WORDS: usize = size_of::<Cgroups>() / 8;
/// The sections that are the maps of them, by [`CGROUPS`] of [`State::swaps`].
const CGROUP_SECTIONS: [&str; 2] = [".data.even", ".data.odd"];
/// A change of what is in use, or a second, in [`State::epoch`].
const EPOCH: u64 = 1 << 32;

/// How often a place is looked for each name, by another seed.
const SEEDS: usize = 8;

/// The tables in the kernel.
pub struct Filter {
    tables: Array<MapData, [u64; WORDS]>,
    map: Array<MapData, StateWords>,
    cgroups: [Array<MapData, CgroupWords>; 2],
    strays: HashMap<MapData, u64, u8>,
    strays_lost: Array<MapData, u64>,
    passed: PerCpuArray<MapData, u64>,
    /// Programs that tell of processes which change their cgroups; without all of them cgroups tell nothing.
    watchers: Option<Vec<RawFd>>,
    opens: Option<Opens>,
    /// Whether the kernel has cgroups.
    has_cgroups: bool,
    /// Whether it was told that the kernel side could not note all strays.
    has_lost_strays: bool,
    state: State,
}

impl Filter {
    /// The filter of `bpf`, through which everything passes.
    pub(super) fn new(bpf: &mut Ebpf) -> Result<Self, Error> {
        fn take<M: TryFrom<Map, Error = MapError>>(bpf: &mut Ebpf, name: &'static str) -> Result<M, Error> {
            let map = bpf.take_map(name).ok_or(Error::MissingProgram(name))?;
            map.try_into().map_err(|why: MapError| Error::Load(name, why.into()))
        }
        let [even, odd] = CGROUP_SECTIONS;
        Ok(Self {
            tables: take(bpf, "FILTER")?,
            map: take(bpf, STATE)?,
            cgroups: [take(bpf, even)?, take(bpf, odd)?],
            strays: take(bpf, "STRAYS")?,
            strays_lost: take(bpf, ".data.strays")?,
            passed: take(bpf, "PASSED")?,
            watchers: None,
            opens: None,
            has_cgroups: false,
            has_lost_strays: false,
            state: State::NEW,
        })
    }

    /// Puts `keys` in the place of those in use; an open is judged by the old ones or by these. What was wanted of each cgroup
    /// is forgotten, since other policies may speak of it.
    ///
    /// False if there was no room for all of them, and everything passes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, keys: &Keys) -> Result<bool, Error> {
        self.forget_cgroups()?;
        // Attach before the keys are in use, detach after: neither those before nor these miss an open.
        self.opens.iter_mut().try_for_each(|opens| opens.attach_for(keys.wants))?;
        let fits = self.swap_table(keys).map_err(|why| Error::Load("FILTER", why.into()))?;
        let wants = self.state.in_use();
        self.opens.iter_mut().try_for_each(|opens| opens.detach_for(wants))?;
        Ok(fits)
    }

    /// Says what is wanted of the processes in each cgroup, with the keys in use; of any other everything is.
    ///
    /// # Errors
    /// When the kernel refuses; then what was said before stays.
    pub fn set_cgroups(&mut self, wanted: &[(u64, Wants)]) -> Result<(), Error> {
        let wanted = if self.sees_all() && self.state.in_use() != Wants::EVERYTHING { wanted } else { &[] };
        self.swap_cgroups(wanted).map_err(|why| Error::Load("CGROUPS", why.into()))
    }

    /// Has forgotten what was remembered of directories, and what was said of cgroups if the kernel has not told of all who
    /// change theirs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(&mut self) -> Result<(), Error> {
        if !self.sees_all() {
            self.forget_cgroups()?;
        }
        if self.state.epoch == 0 {
            return Ok(());
        }
        self.remember().map_err(|why| Error::Load("FILTER_STATE", why.into()))
    }

    fn forget_cgroups(&mut self) -> Result<(), Error> {
        if self.has_cgroups { self.set_cgroups(&[]) } else { Ok(()) }
    }

    fn swap_table(&mut self, keys: &Keys) -> Result<bool, MapError> {
        let random = || RandomState::new().build_hasher().finish();
        let found = (0..SEEDS).find_map(|_| table(keys, random()));
        let fits = found.is_some();
        let (wants, words) = found.map_or((Wants::EVERYTHING, vec![0; WORDS]), |words| (keys.wants, words));
        let steps = swap(self.state, wants);
        let Ok(table) = <&[u64; WORDS]>::try_from(words.as_slice()) else { return Ok(false) };
        self.tables.set((steps[1].swaps & TABLE) as u32, table, 0)?;
        for step in steps {
            self.write(step)?;
            // If it is the last that succeeds, the next second's epoch is a later one all the same.
            self.state = State { epoch: steps[2].epoch, ..step };
        }
        Ok(fits)
    }

    fn swap_cgroups(&mut self, wanted: &[(u64, Wants)]) -> Result<(), MapError> {
        let next = State { swaps: (self.state.swaps + SWAP) ^ CGROUPS, ..self.state };
        let strays = self.strays()?;
        self.put_cgroups(next.swaps, wanted, strays.as_ref())?;
        // Who strays from here on strikes his cgroup from what was put there; who did so before is among the strays, or did meanwhile.
        if self.strays()? != strays {
            self.put_cgroups(next.swaps, &[], None)?;
        }
        self.write(next)?;
        self.state = next;
        self.has_cgroups = !wanted.is_empty();
        Ok(())
    }

    /// Cgroups that processes may have come to from a container; None if there are more than the kernel side could note.
    fn strays(&mut self) -> Result<Option<HashSet<u64>>, MapError> {
        let strays = self.strays.keys().collect::<Result<_, _>>()?;
        let all = self.strays_lost.get(&0, 0)? == 0;
        if !all && !self.has_lost_strays {
            tracing::warn!(
                "more cgroups than the kernel side can note may have processes of containers that were moved there: from now on the filter does not know whom policies speak of; restart the sensor once such moves are over"
            );
            self.has_lost_strays = true;
        }
        Ok(all.then_some(strays))
    }

    /// Puts what is wanted of cgroups, but of strays, where it is looked for after so many swaps.
    fn put_cgroups(
        &mut self,
        swaps: u64,
        wanted: &[(u64, Wants)],
        strays: Option<&HashSet<u64>>,
    ) -> Result<(), MapError> {
        let mut words = vec![0; CGROUP_WORDS];
        let (ids, wants) = words.split_at_mut(PLACES);
        let is_known = |id: u64| strays.is_some_and(|strays| !strays.contains(&id));
        for (id, wanted) in wanted.iter().filter(|(id, _)| is_known(*id)) {
            let places = (0..cgroups::PROBES).map(|probe| place_of(*id).wrapping_add(probe) % PLACES);
            // One that finds no place is one that nobody knows.
            if let Some(place) = places.into_iter().find(|place| ids.get(*place) == Some(&0))
                && let (Some(of), Some(is)) = (ids.get_mut(place), wants.get_mut(place))
            {
                (*of, *is) = (*id, zerocopy::transmute!(*wanted));
            }
        }
        let [even, odd] = &mut self.cgroups;
        let cgroups = if swaps & CGROUPS == 0 { even } else { odd };
        match <&[u64; CGROUP_WORDS]>::try_from(words.as_slice()) {
            Ok(words) => cgroups.set(0, words, 0),
            Err(_) => Ok(()),
        }
    }

    /// Whether the kernel tells of every process that changes its cgroup: programs do so, and none was skipped.
    fn sees_all(&self) -> bool {
        let watchers = self.watchers.iter().flatten();
        self.watchers.is_some()
            && watchers.filter_map(|program| Runs::of(*program).map(|runs| runs.skipped)).sum::<u64>() == 0
    }

    /// From now on it attaches and detaches the program that sees opens.
    pub(super) fn attaches(&mut self, opens: Opens) {
        self.opens = Some(opens);
    }

    /// From now on these programs tell of processes that change their cgroups.
    pub(super) fn watched_by(&mut self, watchers: Vec<RawFd>) {
        self.watchers = Some(watchers);
    }

    /// Has remembered from now on what directories mean, which must be told when one is moved.
    pub(super) fn remember(&mut self) -> Result<(), MapError> {
        let next = State { epoch: self.state.epoch + EPOCH, ..self.state };
        self.write(next)?;
        self.state = next;
        Ok(())
    }

    fn write(&mut self, state: State) -> Result<(), MapError> {
        let words: StateWords = zerocopy::transmute!(state);
        self.map.set(0, words, 0)
    }

    /// Counts in `metrics` how many opens have passed, by reason.
    pub fn count_passed(&self, metrics: &Metrics) {
        for (counter, passed) in metrics.passed.iter().zip(self.passed()) {
            counter.add(passed.saturating_sub(counter.get()));
        }
    }

    /// How many opens have passed, by reason.
    #[must_use]
    pub fn passed(&self) -> [u64; REASONS] {
        std::array::from_fn(|reason| self.passed.get(&(reason as u32), 0).map_or(0, |counts| counts.iter().sum()))
    }
}

/// What is written, one after the other, to have the table that is not in use be so, with what is wanted by it. Each is written
/// word by word, while opens are looked at: one that sees the new number sees nothing that was remembered by the old table.
#[must_use]
pub fn swap(before: State, wants: Wants) -> [State; 3] {
    let swaps = (before.swaps + SWAP) ^ TABLE;
    let [even, odd] = before.wants;
    let wants = if swaps & TABLE == 0 { [wants, odd] } else { [even, wants] };
    let epoch = if before.epoch == 0 { 0 } else { before.epoch + EPOCH };
    let nothing_remembered = State { epoch: 0, wants, ..before };
    [nothing_remembered, State { swaps, ..nothing_remembered }, State { swaps, epoch, wants }]
}

/// The table of `keys` with this seed, as the kernel has it; None if one of the names finds no place in it.
#[must_use]
pub fn table(keys: &Keys, seed: u64) -> Option<Vec<u64>> {
    let mut words = vec![0; WORDS];
    let table = Table::mut_from_bytes(words.as_mut_bytes()).ok()?;
    table.seed = seed;
    for (name, key) in &keys.names {
        let hash = hash(seed, name);
        let same = |entry: u64| (entry ^ hash) >> 32 == 0;
        let entry = hash >> 32 << 32 | u64::from(word(*key));
        place(&mut table.names, table::place_of(hash), same, entry).then_some(())?;
    }
    for (device, key) in &keys.devices {
        // As what a directory means to its files, `decide::look` has it.
        let meaning = word(Key { file: key.below, below: 0, ..*key }) | KNOWN;
        let same = |entry: u64| (entry >> 32) as u32 == *device;
        // One that finds no place stays unknown, and what is on it passes.
        place(&mut table.devices, slot_of(*device), same, u64::from(*device) << 32 | u64::from(meaning));
    }
    Some(words)
}

/// Puts `entry` where it is looked for from `at` on, beside what stands there of the same; false if there is no room.
fn place(slots: &mut [u64], at: usize, same: impl Fn(u64) -> bool, entry: u64) -> bool {
    let len = slots.len();
    for probe in 0..PROBES {
        let Some(slot) = slots.get_mut(at.wrapping_add(probe) % len) else { return false };
        if *slot == 0 || same(*slot) {
            *slot |= entry;
            return true;
        }
    }
    false
}
