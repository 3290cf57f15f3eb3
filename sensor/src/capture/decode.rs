//! Bytes of the ring to [`Event`]. The bytes come from our own program, but are checked like a stranger's.
use jiff::{SignedDuration, Timestamp};
use sensor_ebpf::{
    COMPONENT_LEN, ForkRecord, Hook, OpenRecord, RecordHeader, STATUS_DELETED, STATUS_DETACHED,
    STATUS_DISCONNECTED, STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_FOREIGN_MOUNT, STATUS_REQUESTED_CUT,
    STATUS_REQUESTED_UNTRUSTED, STATUS_TOO_LONG,
};
use uuid::Uuid;
use zerocopy::FromBytes as _;

use crate::{
    event::{Call, CaptureMode, Event, File, Name, PathStatus, flags},
    observation::{Exec, Fork, Identity, Observation},
};

/// The order is that of [`PathStatus`], so that an event's list is sorted.
const STATUS: &[(u32, PathStatus)] = &[
    (STATUS_DETACHED, PathStatus::Detached),
    (STATUS_FOREIGN_MOUNT, PathStatus::ForeignMount),
    (STATUS_DISCONNECTED, PathStatus::Disconnected),
    (STATUS_TOO_LONG, PathStatus::TooLong),
    (STATUS_DELETED, PathStatus::Deleted),
    (STATUS_FD_RACE_POSSIBLE, PathStatus::FdRacePossible),
    (STATUS_FD_REPLACED, PathStatus::FdReplaced),
    (STATUS_REQUESTED_CUT, PathStatus::RequestedCut),
    (STATUS_REQUESTED_UNTRUSTED, PathStatus::RequestedUntrusted),
];

/// What turns the kernel's numbers into facts that outlive the boot.
pub(super) struct Decoder {
    pub(super) boot_id: Uuid,
    pub(super) mode: CaptureMode,
    /// Wall clock minus `CLOCK_BOOTTIME`; refreshed, since the wall clock may be set.
    pub(super) boot_time: Timestamp,
}

impl Decoder {
    /// Reads one record; None if it is not one.
    pub(super) fn decode(&self, bytes: &[u8]) -> Option<Observation> {
        let (header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
        let process = Identity { pid: header.tgid, start_ns: header.start_ns };
        if header.hook == Hook::SchedProcessFork as u16 {
            let (record, _) = ForkRecord::read_from_prefix(bytes).ok()?;
            let child = Identity { pid: record.child, start_ns: record.child_start_ns };
            return Some(Observation::Fork(Fork { parent: process, child }));
        }
        let event = self.open(bytes)?;
        if header.hook == Hook::SchedProcessExec as u16 {
            let file = event.file.as_ref();
            let (device, inode) = (file.map_or(0, |file| file.device), file.map_or(0, |file| file.inode));
            return Some(Observation::Exec(Exec { process, path: event.path, device, inode }));
        }
        Some(Observation::Open(event))
    }

    fn open(&self, bytes: &[u8]) -> Option<Event> {
        let (record, body) = OpenRecord::read_from_prefix(bytes).ok()?;
        let (path, requested) = body.split_at_checked(record.path_len as usize)?;
        let path = assemble(path, record.status)?;
        let requested = requested.get(..record.requested_len as usize)?;
        let (path, base) = if record.path_is_base != 0 { (Vec::new(), path) } else { (path, Vec::new()) };
        let header = record.header;
        let time = self.boot_time.checked_add(SignedDuration::from_nanos(header.time_ns as i64)).ok()?;
        let opened = record.inode_mode != 0;
        let comm = header.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Event {
            time,
            boot_id: self.boot_id,
            mode: self.mode,
            cpu: header.cpu,
            sequence: header.sequence,
            pid: header.tgid,
            tid: header.pid,
            start_ns: header.start_ns,
            cgroup_id: header.cgroup_id,
            uid: header.uid,
            gid: header.gid,
            euid: Some(header.euid),
            user_ns: Some(header.user_ns),
            mount_ns: Some(header.mount_ns),
            program: Some((header.exe_device, header.exe_inode)),
            comm: comm.to_vec().into(),
            call: Call::Open,
            flags: record.flags,
            result: record.result,
            file: opened.then_some(File {
                inode: record.inode,
                device: record.device,
                mode: record.inode_mode,
                links: record.links,
                created: record.mode & flags::MODE_CREATED != 0,
            }),
            requested: (!requested.is_empty()).then(|| join(&base, requested)),
            path: (!path.is_empty()).then(|| path.into()),
            home: None,
            target: None,
            status: STATUS.iter().filter(|(bit, _)| record.status & bit != 0).map(|(_, status)| *status).collect(),
        })
    }
}

/// Joins components that come leaf first. Only a path that reached its root begins with a slash.
fn assemble(mut bytes: &[u8], status: u32) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<COMPONENT_LEN>() {
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*len) as usize)?;
        // An empty name is a mount crossing; "/" is the name of a root that the walk met without its mount.
        if !name.is_empty() && name != b"/" {
            names.push(name);
        }
        bytes = rest;
    }
    names.reverse();
    let rooted = status & (STATUS_TOO_LONG | STATUS_DISCONNECTED) == 0;
    let mut path = if rooted { b"/".to_vec() } else { Vec::new() };
    path.extend(names.join(&b'/'));
    Some(path)
}

/// `requested` below `base`, with `.`, `..` and doubled slashes taken out by their letters alone: nothing is
/// known of symlinks on the way to a file that was not opened.
fn join(base: &[u8], requested: &[u8]) -> Name {
    let mut names: Vec<&[u8]> = base.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
    // The base of an absolute name is the task's root, which `..` cannot leave.
    let floor = if requested.first() == Some(&b'/') { names.len() } else { 0 };
    for name in requested.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => names.truncate(names.len().saturating_sub(1).max(floor)),
            name => names.push(name),
        }
    }
    let rooted = base.first() == Some(&b'/') || base.is_empty() && requested.first() == Some(&b'/');
    let mut path = if rooted { b"/".to_vec() } else { Vec::new() };
    path.extend(names.join(&b'/'));
    path.into()
}

#[cfg(test)]
mod tests {
    use sensor_ebpf::RecordHeader;
    use zerocopy::IntoBytes as _;

    use super::*;

    fn decoder() -> Decoder {
        Decoder { boot_id: Uuid::nil(), mode: CaptureMode::Fexit, boot_time: Timestamp::UNIX_EPOCH }
    }

    fn open(bytes: &[u8]) -> Event {
        match decoder().decode(bytes) {
            Some(Observation::Open(event)) => event,
            other => panic!("{other:?}"),
        }
    }

    fn record(requested: &[u8], names: &[&[u8]], status: u32, result: i32) -> Vec<u8> {
        let mut path = Vec::new();
        for name in names {
            path.extend((name.len() as u16).to_le_bytes());
            path.extend(*name);
        }
        let mut fixed = OpenRecord::read_from_bytes(&[0; size_of::<OpenRecord>()]).unwrap();
        fixed.header = RecordHeader { sequence: 7, tgid: 42, ..fixed.header };
        fixed.header.comm[..3].copy_from_slice(b"cat");
        (fixed.status, fixed.result, fixed.inode_mode) = (status, result, if result == 0 { 0o100_644 } else { 0 });
        (fixed.requested_len, fixed.path_len) = (requested.len() as u32, path.len() as u32);
        fixed.path_is_base = u32::from(result != 0);
        [fixed.as_bytes(), &path, requested].concat()
    }

    #[test]
    fn components_become_a_path_with_mounts_left_out() {
        let event = open(&record(b"", &[b"shadow", b"", b"etc"], 0, 0));
        assert_eq!(event.path, Some("/etc/shadow".into()));
        assert_eq!((event.pid, event.sequence, event.comm), (42, 7, "cat".into()));
        assert!(event.file.is_some() && event.requested.is_none());
        assert_eq!(open(&record(b"", &[], 0, 0)).path, Some("/".into()));
    }

    #[test]
    fn a_path_that_did_not_reach_its_root_has_no_leading_slash() {
        let event = open(&record(b"", &[b"memfd:x"], STATUS_DISCONNECTED, 0));
        assert_eq!((event.path, event.status), (Some("memfd:x".into()), vec![PathStatus::Disconnected]));
        let event = open(&record(b"", &[b"b", b"a"], STATUS_TOO_LONG | STATUS_DELETED, 0));
        assert_eq!(
            (event.path, event.status),
            (Some("a/b".into()), vec![PathStatus::TooLong, PathStatus::Deleted])
        );
    }

    #[test]
    fn a_failed_open_has_the_requested_name_below_its_directory() {
        for (base, requested, want) in [
            (&[&b"ann"[..], b"home"][..], &b"x/./y//z"[..], "/home/ann/x/y/z"),
            (&[b"ann", b"home"], b"../../etc/./shadow", "/etc/shadow"),
            (&[], b"/etc/shadow", "/etc/shadow"),
            (&[b"jail"], b"/etc/../../../shadow", "/jail/shadow"),
            (&[], b"../..", "/"),
        ] {
            let event = open(&record(requested, base, 0, -13));
            assert_eq!((event.requested, event.path, event.file), (Some(want.into()), None, None));
        }
    }

    #[test]
    fn processes_are_told_from_opens() {
        let mut exec = record(b"", &[b"sh", b"bin"], 0, 0);
        let hook = std::mem::offset_of!(RecordHeader, hook);
        exec[hook] = Hook::SchedProcessExec as u8;
        let process = Identity { pid: 42, start_ns: 0 };
        let want = Exec { process, path: Some("/bin/sh".into()), device: 0, inode: 0 };
        assert_eq!(decoder().decode(&exec), Some(Observation::Exec(want)));
        let mut fork = ForkRecord::read_from_bytes(&[0; size_of::<ForkRecord>()]).unwrap();
        fork.header.hook = Hook::SchedProcessFork as u16;
        (fork.header.tgid, fork.child, fork.child_start_ns) = (42, 43, 9);
        let want = Fork { parent: process, child: Identity { pid: 43, start_ns: 9 } };
        assert_eq!(decoder().decode(fork.as_bytes()), Some(Observation::Fork(want)));
        assert_eq!(decoder().decode(&fork.as_bytes()[..100]), None);
    }

    #[test]
    fn short_or_lying_records_are_refused_without_a_panic() {
        let whole = record(b"req", &[b"shadow", b"etc"], 0, -2);
        assert!((0..whole.len()).all(|len| decoder().decode(&whole[..len]).is_none()));
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0xff;
            decoder().decode(&bent);
        }
    }
}
