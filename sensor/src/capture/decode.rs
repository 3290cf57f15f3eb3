//! Bytes of the ring to [`Event`]. The bytes come from our own program, but are checked like a stranger's.
use jiff::{SignedDuration, Timestamp};
use sensor_ebpf::{
    Call as What, CgroupRecord, ForkRecord, Hook, OPEN_HOOKS, OpenRecord, RecordHeader, STATUS_ABOVE_CUT,
    STATUS_ARGS_CUT, STATUS_CHROOT, STATUS_COVERED, STATUS_DELETED, STATUS_DETACHED, STATUS_DISCONNECTED,
    STATUS_FD_RACE_POSSIBLE, STATUS_FD_REPLACED, STATUS_FOREIGN_MOUNT, STATUS_REQUESTED_CUT,
    STATUS_REQUESTED_UNTRUSTED, STATUS_SHIFT, STATUS_TOO_LONG, Section,
};
use uuid::Uuid;
use zerocopy::FromBytes as _;

use super::names::{Body, Paths, assemble, join};
use crate::{
    event::{Args, Call, CaptureMode, Event, File, Ids, Name, PathStatus, flags},
    observation::{CgroupMade, Exec, Fork, Identity, Observation},
};

/// The order is that of [`PathStatus`], so that an event's list is sorted.
const STATUS: &[(u32, PathStatus)] = &[
    (STATUS_CHROOT, PathStatus::Chroot),
    (STATUS_DETACHED, PathStatus::Detached),
    (STATUS_FOREIGN_MOUNT, PathStatus::ForeignMount),
    (STATUS_DISCONNECTED, PathStatus::Disconnected),
    (STATUS_COVERED, PathStatus::Covered),
    (STATUS_TOO_LONG | STATUS_ABOVE_CUT, PathStatus::TooLong),
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
        let is = |hook: Hook| header.hook == hook as u16;
        if usize::from(header.hook) < OPEN_HOOKS {
            return Some(Observation::Open(self.open(&Body::read(bytes)?)?));
        }
        let process = Identity { pid: seen_as(header.tgid, header.initial_tgid), start_ns: header.start_ns };
        if is(Hook::SchedProcessExec) {
            return Some(Observation::Exec(exec(process, &Body::read(bytes)?)?));
        }
        if is(Hook::SchedProcessFork) {
            let (record, _) = ForkRecord::read_from_prefix(bytes).ok()?;
            let pid = seen_as(record.child, record.initial_child);
            let child = Identity { pid, start_ns: record.child_start_ns };
            let program = (header.exe_device, header.exe_inode);
            return Some(Observation::Fork(Fork { parent: process, cgroup_id: header.cgroup_id, program, child }));
        }
        if is(Hook::SchedProcessExit) {
            return Some(Observation::Exit(process));
        }
        let (record, _) = CgroupRecord::read_from_prefix(bytes).ok()?;
        if is(Hook::CgroupRmdir) {
            return Some(Observation::CgroupRemoved(record.id));
        }
        let CgroupRecord { id, parent, name, .. } = record;
        let name = until_nul(&name).to_vec().into();
        let made = CgroupMade { id, parent, name, by: process, maker: header.cgroup_id };
        is(Hook::CgroupMkdir).then_some(Observation::CgroupMade(made))
    }

    fn open(&self, body: &Body<'_>) -> Option<Event> {
        let record = body.record;
        let found = Paths::of(body)?;
        let header = record.header;
        let time = self.boot_time.checked_add(SignedDuration::from_nanos(header.time_ns as i64)).ok()?;
        let opened = record.inode_mode != 0;
        let pid = seen_as(header.tgid, header.initial_tgid);
        let [uid, gid, suid, sgid, euid, egid, fsuid, fsgid] = header.ids;
        Some(Event {
            time,
            boot_id: self.boot_id,
            mode: self.mode,
            cpu: header.cpu,
            hook: header.hook,
            sequence: header.sequence,
            pid,
            tid: if header.pid == 0 { pid } else { header.pid },
            initial_pid: (header.initial_tgid != pid).then_some(header.initial_tgid),
            own_pid: (header.own_tgid != pid).then_some(header.own_tgid),
            start_ns: header.start_ns,
            started: self.boot_time.checked_add(SignedDuration::from_nanos(header.start_ns as i64)).ok(),
            cgroup_id: header.cgroup_id,
            ids: Ids {
                uid,
                gid,
                euid: Some(euid),
                egid: Some(egid),
                suid: Some(suid),
                sgid: Some(sgid),
                fsuid: Some(fsuid),
                fsgid: Some(fsgid),
            },
            // AUDIT_UID_UNSET of include/uapi/linux/audit.h.
            login_uid: (header.login_uid != u32::MAX).then_some(header.login_uid),
            user_ns: Some(header.user_ns),
            mount_ns: Some(header.mount_ns),
            pid_ns: Some(header.pid_ns),
            program: Some((header.exe_device, header.exe_inode)),
            comm: until_nul(&header.comm).to_vec().into(),
            call: call(record.call)?,
            flags: record.flags,
            result: record.result,
            file: opened.then_some(File {
                inode: record.inode,
                device: record.device,
                mode: record.inode_mode,
                links: record.links,
                created: record.mode & flags::MODE_CREATED != 0,
            }),
            status: status(&record, &found),
            requested: found.requested,
            path: found.path,
            inner: found.inner,
            home: None,
            more_homes: Vec::new(),
            target: found.target,
            target_inner: found.target_inner,
            target_home: None,
        })
    }
}

/// What was called.
fn call(number: u32) -> Option<Call> {
    let calls = [
        (What::Open, Call::Open),
        (What::Truncate, Call::Truncate),
        (What::Rename, Call::Rename),
        (What::Link, Call::Link),
        (What::Delete, Call::Delete),
    ];
    calls.into_iter().find_map(|(what, call)| (what as u32 == number).then_some(call))
}

/// What there is to know about the paths. Of anonymous files the kernel makes the names; whoever gives a file such a name
/// and takes it away has made one.
fn status(record: &OpenRecord, found: &Paths) -> Vec<PathStatus> {
    let bits = record.status | record.status >> STATUS_SHIFT;
    let name = found.path.as_ref().map(Name::as_bytes).unwrap_or_default();
    let memfd = bits & STATUS_DISCONNECTED != 0 && name.starts_with(b"memfd:");
    // d_tmpfile() of fs/dcache.c
    let named_so = || name.ends_with(format!("/#{}", record.inode).as_bytes());
    let tmpfile = record.inode_mode != 0
        && bits & STATUS_DELETED != 0
        && (record.flags & flags::O_TMPFILE != 0 || record.links == 0 && named_so());
    let mut status: Vec<_> = STATUS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, status)| *status).collect();
    // Such a file never had a name to lose.
    status.retain(|status| *status != PathStatus::Deleted || !memfd && !tmpfile);
    status.extend(memfd.then_some(PathStatus::Memfd));
    status.extend(tmpfile.then_some(PathStatus::Tmpfile));
    status.sort_unstable();
    status
}

fn exec(process: Identity, body: &Body<'_>) -> Option<Exec> {
    let record = body.record;
    let path = assemble(body.get(Section::Path)?, record.status)?;
    let cwd = assemble(body.get(Section::Cwd)?, record.status >> STATUS_SHIFT)?;
    Some(Exec {
        process,
        cgroup_id: record.header.cgroup_id,
        mount_ns: record.header.mount_ns,
        path: (!path.is_empty()).then(|| path.into()),
        device: record.device,
        inode: record.inode,
        script: script(&cwd, body.get(Section::Requested)?),
        chroot: record.status & STATUS_CHROOT != 0,
        cwd: (!cwd.is_empty()).then(|| cwd.into()),
        args: Args::new(body.get(Section::Args)?),
        args_cut: record.status & STATUS_ARGS_CUT != 0,
    })
}

/// The path of a script that was asked for by this name. None of a name that goes up: with symbolic links, its letters do
/// not tell where to.
fn script(cwd: &[u8], requested: &[u8]) -> Option<Name> {
    let up = requested.split(|byte| *byte == b'/').any(|name| name == b"..");
    let base = if requested.starts_with(b"/") { b"/" } else { cwd };
    (!requested.is_empty() && !up).then(|| join(base, requested))
}

/// A process as the node's /proc numbers it; one that is not in there, beside the node, by its number in the initial
/// namespace.
fn seen_as(in_proc: u32, initial: u32) -> u32 {
    if in_proc == 0 { initial } else { in_proc }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sensor_ebpf::{STATUS_PATH_IS_BASE, Span};
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

    fn components(names: &[&[u8]]) -> Vec<u8> {
        names.iter().flat_map(|name| [&(name.len() as u16).to_le_bytes()[..], name].concat()).collect()
    }

    fn build(mut fixed: OpenRecord, sections: &[(Section, Vec<u8>)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (section, bytes) in sections {
            fixed.sections[*section as usize] = Span { start: body.len() as u16, len: bytes.len() as u16 };
            body.extend(bytes);
        }
        [fixed.as_bytes(), &body].concat()
    }

    fn fixed(status: u32, result: i32) -> OpenRecord {
        let mut fixed = OpenRecord::read_from_bytes(&[0; size_of::<OpenRecord>()]).unwrap();
        fixed.header = RecordHeader { sequence: 7, tgid: 42, initial_tgid: 42, ..fixed.header };
        fixed.header.comm[..3].copy_from_slice(b"cat");
        (fixed.status, fixed.result, fixed.inode_mode) = (status, result, if result == 0 { 0o100_644 } else { 0 });
        fixed.status |= if result == 0 { 0 } else { STATUS_PATH_IS_BASE };
        (fixed.inode, fixed.links) = (9, 1);
        fixed
    }

    fn record(requested: &[u8], names: &[&[u8]], status: u32, result: i32) -> Vec<u8> {
        build(
            fixed(status, result),
            &[(Section::Path, components(names)), (Section::Requested, requested.to_vec())],
        )
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
        let status = vec![PathStatus::Disconnected, PathStatus::Memfd];
        assert_eq!((event.path, event.status), (Some("memfd:x".into()), status));
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
    fn what_a_bind_mount_leaves_out_is_in_the_path_of_the_file_system() {
        // /mnt/secret, where /mnt is a mount of /home/ann of its file system.
        let sections = |target: &[&[u8]]| {
            let path = components(&[b"secret", b"", b"mnt"]);
            vec![
                (Section::Path, path),
                (Section::Above, components(&[b"ann", b"home"])),
                (Section::Target, components(target)),
            ]
        };
        let event = open(&build(fixed(0, 0), &sections(&[])));
        assert_eq!((event.path, event.inner), (Some("/mnt/secret".into()), Some("/home/ann/secret".into())));
        assert_eq!((event.target, event.target_inner), (None, None));
        let mut rename = fixed(0, 0);
        rename.call = What::Rename as u32;
        let event = open(&build(rename, &sections(&[b"new", b"", b"mnt"])));
        assert_eq!(event.call, Call::Rename);
        assert_eq!((event.target, event.target_inner), (Some("/mnt/new".into()), Some("/home/ann/new".into())));
        rename.status = STATUS_ABOVE_CUT;
        assert_eq!(open(&build(rename, &sections(&[]))).inner, None);
        rename.call = 99;
        assert_eq!(decoder().decode(&build(rename, &[])), None);
    }

    #[test]
    fn only_what_the_kernel_named_so_is_an_anonymous_file() {
        let tmp = PathStatus::Tmpfile;
        for (name, links, flags, deleted, want) in [
            (&b"#9"[..], 0, 0, true, true),
            (b"#8", 0, 0, true, false),
            (b"#9", 1, 0, true, false),
            (b"#9", 0, 0, false, false),
            (b"x", 1, flags::O_TMPFILE, true, true),
        ] {
            let mut fixed = fixed(if deleted { STATUS_DELETED } else { 0 }, 0);
            (fixed.links, fixed.flags) = (links, flags);
            let event = open(&build(fixed, &[(Section::Path, components(&[name, b"tmp"]))]));
            assert_eq!(event.status.contains(&tmp), want, "{name:?} {links} {flags} {deleted}");
        }
        // A file by that name in a directory.
        assert!(!open(&record(b"", &[b"memfd:x", b"tmp"], 0, 0)).status.contains(&PathStatus::Memfd));
    }

    /// A record of an exec with script, working directory and arguments.
    fn exec_record(script: &[u8], cwd: &[u8], status: u32) -> Vec<u8> {
        let mut fixed = fixed(status, 0);
        fixed.header.hook = Hook::SchedProcessExec as u16;
        build(
            fixed,
            &[
                (Section::Path, components(&[b"sh", b"bin"])),
                (Section::Requested, script.to_vec()),
                (Section::Cwd, components(&[cwd])),
                (Section::Args, b"sh\0-x\0\0".to_vec()),
            ],
        )
    }

    fn exec(bytes: &[u8]) -> Exec {
        match decoder().decode(bytes) {
            Some(Observation::Exec(exec)) => exec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_exec_has_its_arguments_and_where_its_script_lies() {
        let told = exec(&exec_record(b"", b"work", 0));
        assert_eq!((told.process.pid, told.path, told.script), (42, Some("/bin/sh".into()), None));
        assert_eq!((told.cwd, told.args, told.args_cut), (Some("/work".into()), Args::new(b"sh\0-x\0\0"), false));
        for (script, want) in [
            (&b"./run"[..], Some("/work/run")),
            (b"/opt/run", Some("/opt/run")),
            // With a symbolic link in it, this is anywhere.
            (b"/opt/x/../run", None),
            (b"..", None),
        ] {
            assert_eq!(exec(&exec_record(script, b"work", 0)).script, want.map(Name::from), "{script:?}");
        }
        // A working directory that is not whole leads nowhere.
        let cut = exec(&exec_record(b"run", b"work", STATUS_TOO_LONG << STATUS_SHIFT | STATUS_ARGS_CUT));
        assert_eq!((cut.script, cut.cwd, cut.args_cut), (Some("work/run".into()), Some("work".into()), true));
        assert!(exec(&exec_record(b"", b"work", STATUS_CHROOT)).chroot && !cut.chroot);
    }

    #[test]
    fn processes_and_cgroups_are_told_from_opens() {
        let process = Identity { pid: 42, start_ns: 0 };
        let mut fork = ForkRecord::read_from_bytes(&[0; size_of::<ForkRecord>()]).unwrap();
        fork.header.hook = Hook::SchedProcessFork as u16;
        (fork.header.tgid, fork.child, fork.child_start_ns, fork.header.cgroup_id) = (42, 43, 9, 7);
        let child = Identity { pid: 43, start_ns: 9 };
        let want = Fork { parent: process, cgroup_id: 7, program: (0, 0), child };
        assert_eq!(decoder().decode(fork.as_bytes()), Some(Observation::Fork(want)));
        assert_eq!(decoder().decode(&fork.as_bytes()[..140]), None);
        fork.header.hook = Hook::SchedProcessExit as u16;
        assert_eq!(decoder().decode(fork.header.as_bytes()), Some(Observation::Exit(process)));

        let mut cgroup = CgroupRecord::read_from_bytes(&[0; size_of::<CgroupRecord>()]).unwrap();
        (cgroup.header, cgroup.id, cgroup.parent) = (fork.header, 9, 8);
        cgroup.header.hook = Hook::CgroupMkdir as u16;
        cgroup.name.fill(b'x');
        let name = Name::from(vec![b'x'; 256]);
        let want = CgroupMade { id: 9, parent: 8, name, by: process, maker: 7 };
        assert_eq!(decoder().decode(cgroup.as_bytes()), Some(Observation::CgroupMade(want)));
        cgroup.header.hook = Hook::CgroupRmdir as u16;
        assert_eq!(decoder().decode(cgroup.as_bytes()), Some(Observation::CgroupRemoved(9)));
        cgroup.header.hook = 99;
        assert_eq!(decoder().decode(cgroup.as_bytes()), None);
    }

    #[test]
    fn a_process_that_the_nodes_proc_does_not_show_has_its_initial_number() {
        let mut bytes = record(b"", &[b"x"], 0, 0);
        let mut set = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        set(std::mem::offset_of!(RecordHeader, initial_tgid), 4711);
        set(std::mem::offset_of!(RecordHeader, own_tgid), 1);
        let event = open(&bytes);
        assert_eq!((event.pid, event.initial_pid, event.own_pid), (42, Some(4711), Some(1)));
        let mut set = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        set(std::mem::offset_of!(RecordHeader, tgid), 0);
        let event = open(&bytes);
        assert_eq!((event.pid, event.tid, event.initial_pid), (4711, 4711, None));
    }

    #[test]
    fn short_or_lying_records_are_refused_without_a_panic() {
        for whole in [record(b"req", &[b"shadow", b"etc"], 0, -2), exec_record(b"x", b"work", 0)] {
            assert!((0..whole.len()).all(|len| decoder().decode(&whole[..len]).is_none()));
            for at in 0..whole.len() {
                let mut bent = whole.clone();
                bent[at] ^= 0xff;
                decoder().decode(&bent);
            }
        }
    }
}
