//! What policies want of the processes in each cgroup, as the kernel has it: user space writes it, by whom policies speak of.
use core::cell::Cell;

use zerocopy::transmute;

use crate::table::Wants;

/// Places in [`Cgroups`]: a power of two. A cgroup that finds none is one that nobody knows, of which everything is wanted.
pub const PLACES: usize = 1 << 12;
/// How many places from its own a cgroup may stand.
pub const PROBES: usize = 4;
/// Stands where a cgroup was.
const STRUCK: u64 = u64::MAX;

/// Cgroups of which not everything is wanted.
#[repr(C)]
pub struct Cgroups {
    /// Their ids; zero where nothing stands.
    ids: [Cell<u64>; PLACES],
    /// Of each, its [`Wants`].
    wants: [Cell<u64>; PLACES],
}

/// Where a cgroup is looked for first.
#[inline(always)]
#[must_use]
pub const fn place_of(id: u64) -> usize {
    (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

impl Cgroups {
    /// Without any.
    #[expect(
        clippy::new_without_default,
        clippy::large_stack_frames,
        reason = "only a static is made of it, by the compiler"
    )]
    #[must_use]
    pub const fn new() -> Self {
        Self { ids: [const { Cell::new(0) }; PLACES], wants: [const { Cell::new(0) }; PLACES] }
    }

    #[expect(clippy::indexing_slicing, reason = "the mask keeps it within")]
    #[inline(always)]
    fn find(&self, id: u64) -> Option<(&Cell<u64>, &Cell<u64>)> {
        let at = place_of(id);
        for probe in 0..PROBES {
            let place = at.wrapping_add(probe) & (PLACES - 1);
            let found = self.ids[place].get();
            // Also for an id that could not be read.
            if found == 0 {
                break;
            }
            if found == id {
                return Some((&self.ids[place], &self.wants[place]));
            }
        }
        None
    }

    /// What is wanted of a cgroup, if not everything is.
    #[inline(always)]
    #[must_use]
    pub fn wants(&self, id: u64) -> Option<Wants> {
        self.find(id).map(|(_, wants)| transmute!(wants.get()))
    }

    /// Has a cgroup be one that nobody knows.
    #[inline(always)]
    pub fn strike(&self, id: u64) {
        if let Some((id, _)) = self.find(id) {
            id.set(STRUCK);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;

    use super::{Cgroups, PLACES, PROBES, place_of};

    #[test]
    fn what_stands_behind_a_cgroup_that_was_struck_is_still_found() {
        let cgroups = Box::new(Cgroups::new());
        let mut same = (1_u64..).filter(|id| place_of(*id) % PLACES == 7);
        let ids: [u64; PROBES] = core::array::from_fn(|_| same.next().unwrap());
        for (probe, id) in ids.into_iter().enumerate() {
            cgroups.ids[7 + probe].set(id);
            cgroups.wants[7 + probe].set(id);
        }
        let word = |id| cgroups.wants(id).map(|wants| -> u64 { zerocopy::transmute!(wants) });
        assert_eq!(ids.map(word), ids.map(Some));
        cgroups.strike(ids[1]);
        let [first, _, third, last] = ids.map(Some);
        assert_eq!(ids.map(word), [first, None, third, last]);
        assert_eq!([same.next().unwrap(), 0].map(word), [None, None]);
    }
}
