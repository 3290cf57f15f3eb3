//! Which cgroups the kernel side has refused records, because they had taken their share (`sensor_ebpf::share`).
use std::collections::HashMap;

use aya::{
    Ebpf,
    maps::{self, MapData, MapError},
};

use super::Error;
use crate::observation::Refused;

/// What was refused, by cgroup.
pub(super) struct Shares {
    /// By id of a cgroup, on each CPU.
    map: maps::PerCpuHashMap<MapData, u64, u64>,
    /// What was refused to each at the last look.
    seen: HashMap<u64, u64>,
    /// Of all that was refused, what is not yet told of any cgroup.
    open: u64,
    /// The least of that since the last look: the kernel side has forgotten whose it was.
    stale: u64,
}

impl Shares {
    pub(super) fn new(bpf: &mut Ebpf) -> Result<Self, Error> {
        const NAME: &str = "REFUSED";
        let map = bpf.take_map(NAME).ok_or(Error::MissingProgram(NAME))?;
        let map = map.try_into().map_err(|why: MapError| Error::Load(NAME, why.into()))?;
        Ok(Self { map, seen: HashMap::new(), open: 0, stale: 0 })
    }

    /// Who was refused what since the last look, when `new` records more were refused in all.
    pub(super) fn look(&mut self, new: u64) -> Result<Vec<Refused>, MapError> {
        self.open += new;
        if self.open == 0 {
            return Ok(Vec::new());
        }
        let shares = self.map.iter().collect::<Result<Vec<_>, _>>()?;
        let seen = std::mem::take(&mut self.seen);
        let mut refused = Vec::new();
        for (cgroup, counts) in shares {
            let count: u64 = counts.iter().sum();
            // One that was forgotten meanwhile began from zero.
            let before = seen.get(&cgroup).copied().filter(|before| *before <= count).unwrap_or(0);
            self.seen.insert(cgroup, count);
            // Never more than in all: what was refused after the sum was read is told with the next look.
            let told = (count - before).min(self.open);
            if told < count - before {
                self.seen.insert(cgroup, before + told);
            }
            self.open -= told;
            if told > 0 {
                refused.push(Refused { cgroup_id: Some(cgroup), count: told });
            }
        }
        // What nobody has claimed by the second look was of a cgroup that the kernel side has forgotten.
        let nobodys = self.stale.min(self.open);
        self.open -= nobodys;
        self.stale = self.open;
        if nobodys > 0 {
            refused.push(Refused { cgroup_id: None, count: nobodys });
        }
        Ok(refused)
    }
}
