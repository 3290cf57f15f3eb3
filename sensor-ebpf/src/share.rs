//! How much of the node's attention one cgroup may have: a storm in one pod must not blind the node to the others.
//!
//! A token bucket in the form of one number (the generic cell rate algorithm of ITU-T I.371): the time at which the bucket
//! would be full again. Kernel side and tests run this very code.

/// When a share is full again after one record more is taken of it at `now`; None if there is nothing left of it. Each record
/// takes `interval`, and `burst` of them may come at once; times are in nanoseconds.
#[inline(always)]
#[must_use]
pub const fn take(full_at: u64, now: u64, interval: u64, burst: u64) -> Option<u64> {
    let from = if full_at > now { full_at } else { now };
    let next = from.wrapping_add(interval);
    if next.wrapping_sub(now) > interval.wrapping_mul(burst) { None } else { Some(next) }
}

#[cfg(test)]
mod tests {
    use super::take;

    #[test]
    fn a_burst_passes_then_the_rate_and_a_pause_fills_it_again() {
        let (mut full_at, mut passed) = (0, [0; 3]);
        let mut ask = |now: u64, count: usize| {
            if let Some(next) = take(full_at, now, 1_000, 10) {
                full_at = next;
                passed[count] += 1;
            }
        };
        // A hundred at once, then a hundred in as many intervals of half the rate, then again at once after a pause.
        (0..100).for_each(|_| ask(5_000_000, 0));
        (1..=100).for_each(|nth| ask(5_000_000 + nth * 500, 1));
        (0..100).for_each(|_| ask(6_000_000, 2));
        assert_eq!(passed, [10, 50, 10]);
    }
}
