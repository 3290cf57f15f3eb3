use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn open_in(dir: &Path) -> anyhow::Result<Spool> {
    Spool::open(dir, 1000, false, &Notices::default()).map(|(spool, _)| spool)
}

fn numbers(spool: &Spool) -> Vec<u64> {
    spool.reader().read(0, 100).unwrap().into_iter().map(|(n, _)| n).collect()
}

fn commit(spool: &mut Spool) {
    spool.commit(Timestamp::UNIX_EPOCH).unwrap();
}

#[test]
fn numbers_go_on_after_a_restart_and_acknowledged_records_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open_in(dir.path()).unwrap();
    let epoch = spool.epoch();
    [b"a", b"b", b"c"].iter().for_each(|record| spool.push(3, *record));
    commit(&mut spool);
    spool.push(3, b"d");
    spool.acknowledge(2);
    commit(&mut spool);
    assert_eq!((numbers(&spool), spool.committed()), (vec![3, 4], 4));
    drop(spool);
    let mut spool = open_in(dir.path()).unwrap();
    assert_eq!((numbers(&spool), spool.acknowledged(), spool.next(), spool.epoch()), (vec![3, 4], 2, 5, epoch));
    assert_eq!(spool.reader().read(4, 9).unwrap(), [(4, b"d".to_vec())]);
    let mode = std::fs::metadata(dir.path().join("spool.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "what alerts say is for nobody else");
    spool.acknowledge(4);
    commit(&mut spool);
    drop(spool);
    // Numbers are not used again, even when nothing is left.
    assert_eq!(open_in(dir.path()).unwrap().next(), 5);
}

#[test]
fn a_full_spool_gives_up_the_lowest_and_oldest_and_keeps_a_fifth_for_what_matters() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open_in(dir.path()).unwrap();
    // With its rank and the index's own count each takes 100 bytes; 800 of 1,000 may be ordinary.
    let record = [0; 89];
    let room = |spool: &mut Spool, rank, handed| {
        spool.handed = handed;
        let room = spool.make_room(rank, 89);
        (room.gone.into_iter().map(|(number, _)| number).collect::<Vec<_>>(), room.fits)
    };
    for rank in [3, 1, 2, 1, 3, 3, 3, 3] {
        assert_eq!(room(&mut spool, rank, 0), (vec![], true));
        spool.push(rank, &record);
    }
    assert_eq!(room(&mut spool, 3, 0), (vec![2], true), "the oldest of the lowest rank");
    spool.push(3, &record);
    assert_eq!(room(&mut spool, 2, 4), (vec![], false), "what was handed to the sink stays, and what is higher");
    assert_eq!(room(&mut spool, 2, 0), (vec![4], true));
    spool.push(2, &record);
    assert_eq!(room(&mut spool, 1, 0), (vec![], false), "nothing is lower than the lowest");
    for _ in 0..2 {
        assert_eq!(room(&mut spool, 5, 0), (vec![], true), "the reserve");
        spool.push(5, &record);
    }
    assert_eq!(room(&mut spool, SYSTEM, 0), (vec![3], true), "then lower ranks go");
    commit(&mut spool);
    assert_eq!(numbers(&spool), [1, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(spool.acknowledge(9), 6);
    assert_eq!(spool.alerts(), 3);
}

#[test]
fn a_disk_that_is_nearly_full_keeps_a_spool_from_growing_and_not_from_working() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = Spool::open(dir.path(), 64 << 20, false, &Notices::default()).unwrap();
    spool.floor = Some(FLOOR_BYTES);
    let mut taken = 0;
    while spool.make_room(3, 99_999).gone.is_empty() {
        spool.push(3, &[0; 99_999]);
        taken += 100_000;
        commit(&mut spool);
    }
    assert!(taken > FLOOR_BYTES / 10 * 9 && taken <= FLOOR_BYTES, "{taken}");
    assert!(spool.make_room(SYSTEM, 99_999).gone.is_empty(), "the reserve");
}

#[test]
fn nothing_is_given_up_in_vain() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open_in(dir.path()).unwrap();
    for rank in [SYSTEM, SYSTEM, SYSTEM, SYSTEM, SYSTEM, SYSTEM, SYSTEM, SYSTEM, 1] {
        spool.push(rank, &[0; 89]);
    }
    let room = spool.make_room(2, 89);
    assert!(room.gone.is_empty() && !room.fits, "{room:?}");
}

#[test]
fn two_sensors_on_one_spool_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open_in(dir.path()).unwrap();
    let why = open_in(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("is in use: another pathwatch runs on it"), "{why}");
}

#[test]
fn a_damaged_spool_is_moved_aside_and_said() {
    let good = tempfile::tempdir().unwrap();
    let mut spool = open_in(good.path()).unwrap();
    (0..50).for_each(|_| spool.push(3, &[7; 90]));
    commit(&mut spool);
    drop(spool);
    let whole = std::fs::read(good.path().join("spool.redb")).unwrap();
    let mut flipped = whole.clone();
    (0..flipped.len()).step_by(100).for_each(|at| flipped[at] ^= 0x55);
    let truncated = whole[..whole.len() / 3].to_vec();
    for damage in [b"not a database at all".to_vec(), flipped, truncated] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("spool.redb"), damage).unwrap();
        let notices = Notices::default();
        let (spool, _) = Spool::open(dir.path(), 1000, true, &notices).unwrap();
        assert_eq!(spool.next(), 1);
        assert_eq!(notices.take()[0].reason, "spool_damaged");
        let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.filter(|name| name.to_string_lossy().contains("damaged-")).count(), 1);
    }
}

#[test]
fn a_spool_that_is_gone_is_said() {
    for had_spool in [true, false] {
        let (dir, notices) = (tempfile::tempdir().unwrap(), Notices::default());
        Spool::open(dir.path(), 1000, had_spool, &notices).unwrap();
        let said = notices.take().iter().any(|notice| notice.reason == "spool_missing" && notice.lost);
        assert_eq!(said, had_spool);
    }
}

#[test]
fn rows_live_with_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open_in(dir.path()).unwrap();
    spool.set(b"a".to_vec(), Some(b"1".to_vec()));
    spool.set(b"b".to_vec(), Some(b"2".to_vec()));
    commit(&mut spool);
    spool.set(b"a".to_vec(), None);
    commit(&mut spool);
    drop(spool);
    let (spool, rows) = Spool::open(dir.path(), 1000, true, &Notices::default()).unwrap();
    assert_eq!(rows, [(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(spool.alive(), Some(Timestamp::UNIX_EPOCH));
}
