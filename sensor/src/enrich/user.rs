//! User ids as a process's own user namespace has them.
use std::{collections::HashMap, fs};

/// Inode of the initial user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const INITIAL: u32 = 0xEFFF_FFFD;
/// Most namespaces that are remembered.
const CACHE_LIMIT: usize = 1000;

/// One line of /proc/PID/uid_map: first id inside, first id outside, how many.
type Range = (u32, u32, u32);

/// Maps of user namespaces by inode. A map is written once and never changes (user_namespaces(7)).
#[derive(Default)]
pub(super) struct Users {
    maps: HashMap<u32, Vec<Range>>,
}

impl Users {
    /// The effective user of `pid` as its own namespace numbers it; None if it has no number there.
    pub(super) fn look_up(&mut self, pid: u32, euid: Option<u32>, namespace: Option<u32>) -> Option<u32> {
        let (euid, namespace) = (euid?, namespace?);
        if namespace == INITIAL {
            return Some(euid);
        }
        if !self.maps.contains_key(&namespace) {
            let map = parse(&fs::read_to_string(format!("/proc/{pid}/uid_map")).ok()?);
            // Not written yet.
            if map.is_empty() {
                return None;
            }
            if self.maps.len() >= CACHE_LIMIT {
                self.maps.clear();
            }
            self.maps.insert(namespace, map);
        }
        self.maps.get(&namespace)?.iter().find_map(|(inside, outside, count)| {
            let at = euid.checked_sub(*outside).filter(|at| at < count)?;
            inside.checked_add(at)
        })
    }
}

fn parse(map: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(str::parse);
        Some((words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?))
    };
    map.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_namespace() {
        let mut users = Users::default();
        assert_eq!(users.look_up(1, Some(1000), Some(INITIAL)), Some(1000));
        users.maps.insert(7, parse("         0     100000      65536\n     70000       5000          1\n"));
        for (outside, inside) in
            [(100_000, Some(0)), (100_033, Some(33)), (165_536, None), (5000, Some(70_000)), (0, None)]
        {
            assert_eq!(users.look_up(1, Some(outside), Some(7)), inside, "{outside}");
        }
        assert_eq!(users.look_up(1, None, Some(INITIAL)), None);
    }
}
