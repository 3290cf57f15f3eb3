//! What is in the spool, by how much it matters: enough to choose what is given up, and small enough for the memory.
use std::collections::VecDeque;

/// How much a record matters: an alert's severity from 1 to 5, or [`SYSTEM`].
pub(in crate::ship) type Rank = u8;

/// Records that tell of others: summaries, losses, health, heartbeats. They are never given up.
pub(in crate::ship) const SYSTEM: Rank = 6;
/// From this rank on a record may use the reserve.
pub(super) const CRITICAL: Rank = 5;
/// What a record takes beside its bytes.
const OVERHEAD: u64 = 10;

/// Numbers and sizes of all records, oldest first, by rank.
#[derive(Debug, Default)]
pub(super) struct Index {
    ranks: [VecDeque<(u64, u32)>; SYSTEM as usize + 1],
    bytes: [u64; SYSTEM as usize + 1],
}

/// Bytes that a record of `len` counts.
pub(super) fn size(len: usize) -> u64 {
    len as u64 + OVERHEAD
}

impl Index {
    /// Bytes of all records.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Bytes of alerts that are not above `rank`.
    pub(super) fn bytes_up_to(&self, rank: Rank) -> u64 {
        self.bytes.iter().take(rank.min(CRITICAL) as usize + 1).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranks.iter().all(VecDeque::is_empty)
    }

    /// Alerts among the records.
    pub(super) fn alerts(&self) -> u64 {
        self.ranks.iter().take(SYSTEM as usize).map(|rank| rank.len() as u64).sum()
    }

    /// The oldest number.
    pub(super) fn first(&self) -> Option<u64> {
        self.ranks.iter().filter_map(VecDeque::front).map(|(number, _)| *number).min()
    }

    /// Adds a record, newer than all others.
    pub(super) fn add(&mut self, rank: Rank, number: u64, len: usize) {
        let rank = rank as usize;
        if let (Some(queue), Some(bytes)) = (self.ranks.get_mut(rank), self.bytes.get_mut(rank)) {
            queue.push_back((number, u32::try_from(len).unwrap_or(u32::MAX)));
            *bytes += size(len);
        }
    }

    /// Takes out everything up to `number`; returns how many of that were alerts.
    pub(super) fn acknowledge(&mut self, number: u64) -> u64 {
        let mut alerts = 0;
        for ((queue, bytes), rank) in self.ranks.iter_mut().zip(&mut self.bytes).zip(0..) {
            while let Some((_, len)) = queue.pop_front_if(|(first, _)| *first <= number) {
                *bytes -= size(len as usize);
                alerts += u64::from(rank < SYSTEM);
            }
        }
        alerts
    }

    /// Takes out the oldest alert of the lowest rank that is newer than `handed` and not above `rank`.
    pub(super) fn evict(&mut self, rank: Rank, handed: u64) -> Option<u64> {
        let ranks = self.ranks.iter_mut().zip(&mut self.bytes).take(rank.min(CRITICAL) as usize + 1);
        for (queue, bytes) in ranks {
            let at = queue.partition_point(|(number, _)| *number <= handed);
            if let Some((number, len)) = queue.remove(at) {
                *bytes -= size(len as usize);
                return Some(number);
            }
        }
        None
    }

    /// Takes out one record; false if it is not there.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        for (queue, bytes) in self.ranks.iter_mut().zip(&mut self.bytes) {
            if let Ok(at) = queue.binary_search_by_key(&number, |(number, _)| *number)
                && let Some((_, len)) = queue.remove(at)
            {
                *bytes -= size(len as usize);
                return true;
            }
        }
        false
    }
}
