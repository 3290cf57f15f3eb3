//! Hands to the kernel what policies want to see, as keys of `sensor_ebpf::decide`.
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray},
};
use sensor_ebpf::{
    decide::REASONS,
    table::{ALL, CLEAN, NAMES, PROBES, State, Table, Wants, hash, slot_of},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::Error;
use crate::keys::{Key, Keys};

/// A table as the map holds it.
const WORDS: usize = size_of::<Table>() / 8;

/// What a key means, as the table has it.
fn word(key: Key) -> u16 {
    u16::from(key.file & ALL) | u16::from(key.below & ALL) << 4 | if key.names { NAMES } else { 0 }
}

/// [`State`] as the map holds it.
type StateWords = [u64; size_of::<State>() / 8];
/// The section of the kernel side that is the map of it.
const STATE: &str = ".data.filter";
/// A change of what is in use, or a second, in [`State::epoch`].
const EPOCH: u64 = 1 << 32;

/// The tables in the kernel.
pub struct Filter {
    tables: Array<MapData, [u64; WORDS]>,
    words: Array<MapData, StateWords>,
    passed: PerCpuArray<MapData, u64>,
    state: State,
}

impl Filter {
    /// The filter of `bpf`, through which everything passes.
    pub(super) fn new(bpf: &mut Ebpf) -> Result<Self, Error> {
        fn take(bpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, Error> {
            bpf.take_map(name).ok_or(Error::MissingProgram(name))
        }
        let failed = |why: aya::maps::MapError| Error::Load("FILTER", why.into());
        Ok(Self {
            tables: take(bpf, "FILTER")?.try_into().map_err(failed)?,
            words: take(bpf, STATE)?.try_into().map_err(failed)?,
            passed: take(bpf, "PASSED")?.try_into().map_err(failed)?,
            state: State::NEW,
        })
    }

    /// Puts `keys` in the place of those in use; an open is judged by the old ones or by these.
    ///
    /// # Errors
    /// When the kernel refuses; then the old ones stay.
    pub fn set(&mut self, keys: &Keys) -> Result<(), Error> {
        self.swap(keys).map_err(|why| Error::Load("FILTER", why.into()))
    }

    /// Has forgotten what was remembered of directories.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(&mut self) -> Result<(), Error> {
        if self.state.epoch == 0 {
            return Ok(());
        }
        self.remember().map_err(|why| Error::Load("FILTER_STATE", why.into()))
    }

    fn swap(&mut self, keys: &Keys) -> Result<(), aya::maps::MapError> {
        let (wants, words) = table(keys);
        let mut next = self.state;
        next.swaps += 1;
        let Ok(table) = <&[u64; WORDS]>::try_from(words.as_slice()) else { return Ok(()) };
        self.tables.set((next.swaps & 1) as u32, table, 0)?;
        let [even, odd] = &mut self.state.wants;
        *(if next.swaps & 1 == 0 { even } else { odd }) = wants;
        next.wants = self.state.wants;
        self.write(self.state)?;
        if next.epoch != 0 {
            next.epoch += EPOCH;
        }
        // First the swap, then the epoch: who sees the new epoch sees the new table.
        self.write(State { epoch: 0, ..next })?;
        self.write(next)?;
        self.state = next;
        Ok(())
    }

    /// Has remembered from now on what directories mean, which must be told when one is moved.
    pub(super) fn remember(&mut self) -> Result<(), aya::maps::MapError> {
        let next = State { epoch: self.state.epoch + EPOCH, ..self.state };
        self.write(next)?;
        self.state = next;
        Ok(())
    }

    fn write(&mut self, state: State) -> Result<(), aya::maps::MapError> {
        let words: StateWords = zerocopy::transmute!(state);
        self.words.set(0, words, 0)
    }

    /// How many opens have passed, by reason.
    #[must_use]
    pub fn passed(&self) -> [u64; REASONS] {
        std::array::from_fn(|reason| self.passed.get(&(reason as u32), 0).map_or(0, |counts| counts.iter().sum()))
    }
}

/// What `keys` want and their table, as the kernel has them. If a name has no place in it, everything passes.
#[must_use]
pub fn table(keys: &Keys) -> (Wants, Vec<u64>) {
    let (everything, anywhere) = (keys.everything, keys.anywhere.into());
    let mut wants = Wants { wanted: keys.wanted, everything, anywhere, reserved: 0 };
    let mut words = vec![0; WORDS];
    let Ok(table) = Table::mut_from_bytes(words.as_mut_bytes()) else { return (wants, words) };
    let placed = keys.names.iter().all(|(name, key)| {
        let hash = hash(name);
        let same = |entry: u64| (entry ^ hash) >> 16 == 0;
        place(&mut table.names, hash as usize, same, hash & !0xffff | u64::from(word(*key)))
    });
    if !placed {
        wants.everything = ALL;
    }
    for (device, key) in &keys.devices {
        // As what a directory means to its files, `decide::look` has it.
        let meaning = u16::from(key.below & ALL) | word(*key) & NAMES | CLEAN;
        let same = |entry: u64| (entry >> 32) as u32 == *device;
        // One that finds no place stays unknown, and what is on it passes.
        place(&mut table.devices, slot_of(*device), same, u64::from(*device) << 32 | u64::from(meaning));
    }
    (wants, words)
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
