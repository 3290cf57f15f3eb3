//! Where file systems are mounted: what turns a path within one into the path that an author writes, whatever mounts, roots
//! and descriptors a process has put in between.
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{self, Read as _},
    time::{Duration, Instant},
};

use super::trust::{first_of_container, host, mount_namespace};
use crate::{
    event::{Container, Name, Owner},
    keys::Mounted,
    procfs,
};

/// When a table is read anew.
const REFRESH: Duration = Duration::from_secs(1);
/// When it is read anew because it has no answer.
const RETRY: Duration = Duration::from_millis(100);
/// Most places of one file that are told.
const HOMES: usize = 8;
/// How much is read of a container's table of mounts: some 3,000.
const MOST: u64 = 512 << 10;
/// Most containers of which tables are remembered.
const CACHE_LIMIT: usize = 2000;

/// Where a part of a file system is mounted, by the kernel's number of its device.
type Places = HashMap<u32, Vec<Place>>;

#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The part: a path in the file system.
    root: Vec<u8>,
    /// Where it is mounted.
    at: Vec<u8>,
}

/// A mount namespace's table, as one process showed it.
#[derive(Default)]
struct Table {
    places: Places,
    /// What is mounted at `/`: a device, and a part of what is on it.
    root: Option<(u32, Vec<u8>)>,
    /// Its mount namespace.
    namespace: u64,
    read: Option<Instant>,
    /// How often it was another than before.
    changes: u64,
}

/// The tables of the host and of containers.
#[derive(Default)]
pub(super) struct Mounts {
    host: Table,
    containers: HashMap<String, Table>,
    /// Of other mount namespaces in which files were opened, by their inodes.
    others: HashMap<u64, Table>,
}

/// Where a file lives, and whose it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Living {
    /// The places, the best first.
    pub(super) homes: Vec<Name>,
    pub(super) owner: Option<Owner>,
}

impl Mounts {
    /// Where `inner`, a path in the file system on `device`, is for the host.
    pub(super) fn on_host(&mut self, device: u32, inner: &Name, now: Instant) -> Vec<Name> {
        self.host.refresh(now, Some(host()));
        let found = self.host.find(device, inner);
        if !found.is_empty() {
            return found;
        }
        self.host.retry(now, Some(host()));
        self.host.find(device, inner)
    }

    /// The same for a process in `container`; `lineage` are pids of it and its ancestors, the nearest first.
    ///
    /// What lies in the container's own root file system, or in a volume that the kubelet or the runtime has made for its
    /// pod, is where the container sees it, and its own. All else that the host has mounted is the host's.
    pub(super) fn in_container(
        &mut self,
        container: &Container,
        lineage: &[u32],
        device: u32,
        inner: &Name,
        now: Instant,
    ) -> Living {
        self.host.refresh(now, Some(host()));
        if self.containers.len() >= CACHE_LIMIT && !self.containers.contains_key(&container.id) {
            self.containers.clear();
        }
        let table = self.containers.entry(container.id.clone()).or_default();
        // Until the runtime has changed its root, that is the host's; some never do.
        let is_early = |table: &Table, host: &Table| table.root.is_none() || table.root == host.root;
        let early = is_early(table, &self.host);
        if table.is_due(now, if early { RETRY } else { REFRESH }) {
            table.read = None;
            let known = table.namespace;
            let first = first_of_container(lineage);
            // Once it has moved itself to another namespace, what it shows is of its own making.
            table.refresh(now, first.filter(|pid| known == 0 || mount_namespace(*pid) == Some(known)));
        }
        // What the runtime does before is done in the host's places.
        let early = is_early(table, &self.host);
        let own = if early { Vec::new() } else { table.find(device, inner) };
        let of_root = |(on, part): &(u32, Vec<u8>)| *on == device && below(inner.as_bytes(), part).is_some();
        if !early && table.root.as_ref().is_some_and(of_root) {
            return Living { homes: own, owner: Some(Owner::Own) };
        }
        let homes = self.on_host(device, inner, now);
        // A volume may be mounted elsewhere, too: for all pods that use it, or by who mounts it.
        if homes.is_empty() || homes.iter().any(|home| is_made_for(home.as_bytes(), container)) {
            let owner = (!homes.is_empty()).then_some(Owner::Own);
            return Living { homes: own, owner };
        }
        Living { homes, owner: Some(Owner::Host) }
    }

    /// Looks at the host's mounts again, if it is time.
    pub(super) fn refresh(&mut self, now: Instant) {
        self.host.refresh(now, Some(host()));
    }

    /// Sees to it that a device which was met in process `pid` is known, if that can be.
    pub(super) fn meet(&mut self, device: u32, namespace: u64, pid: u32, now: Instant) {
        if self.tables().any(|table| table.places.contains_key(&device)) {
            return;
        }
        self.host.retry(now, Some(host()));
        if self.others.len() >= CACHE_LIMIT && !self.others.contains_key(&namespace) {
            self.others.clear();
        }
        let pid = Some(pid).filter(|pid| mount_namespace(*pid) == Some(namespace));
        self.others.entry(namespace).or_default().retry(now, pid);
    }

    /// Changes whenever what is known of mounts does.
    pub(super) fn changes(&self) -> (usize, u64) {
        (self.containers.len() + self.others.len(), self.tables().map(|table| table.changes).sum())
    }

    /// Everything that is mounted as far as is known, each place once, sorted.
    pub(super) fn all(&self) -> Vec<Mounted> {
        let of_table = |table: &Table| -> Vec<Mounted> {
            let places =
                table.places.iter().flat_map(|(device, places)| places.iter().map(|place| (*device, place)));
            places
                .map(|(device, Place { root, at })| Mounted { device, part: root.clone(), at: at.clone() })
                .collect()
        };
        let all: BTreeSet<Mounted> = self.tables().flat_map(of_table).collect();
        all.into_iter().collect()
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.host).chain(self.containers.values()).chain(self.others.values())
    }

    /// The mount namespace of a container, if it is known.
    pub(super) fn namespace_of(&self, container: &Container) -> Option<u64> {
        self.containers.get(&container.id).map(|table| table.namespace).filter(|namespace| *namespace != 0)
    }
}

impl Table {
    fn is_due(&self, now: Instant, after: Duration) -> bool {
        self.read.is_none_or(|read| now.duration_since(read) >= after)
    }

    /// Reads the table through `pid`, if it is old; what cannot be read stays as it was.
    fn refresh(&mut self, now: Instant, pid: Option<u32>) {
        if !self.is_due(now, REFRESH) {
            return;
        }
        self.read = Some(now);
        let Some(pid) = pid else { return };
        if let (Ok(text), Some(namespace)) = (read(pid), mount_namespace(pid)) {
            let (places, root) = parse(&text);
            if self.places != places {
                self.places = places;
                self.changes += 1;
            }
            (self.root, self.namespace) = (root, namespace);
        }
    }

    fn retry(&mut self, now: Instant, pid: Option<u32>) {
        if self.is_due(now, RETRY) {
            self.read = None;
            self.refresh(now, pid);
        }
    }

    /// The places where it is, those first that show most of the file system, and of these the earliest: whoever mounts a
    /// part of it elsewhere shows less, or comes later.
    fn find(&self, device: u32, inner: &Name) -> Vec<Name> {
        let inner = inner.as_bytes();
        let places = self.places.get(&device).map(Vec::as_slice).unwrap_or_default();
        let mut fits: Vec<_> =
            places.iter().filter_map(|place| Some((place, below(inner, &place.root)?))).collect();
        fits.sort_by_key(|(place, _)| place.root.len());
        let path = |(place, rest): (&Place, &[u8])| {
            let path = [place.at.strip_suffix(b"/").unwrap_or(&place.at), rest].concat();
            if path.is_empty() { "/".into() } else { path.into() }
        };
        fits.into_iter().take(HOMES).map(path).collect()
    }
}

/// What follows directory `root` in `path`, with its slash; None if it is not in there.
fn below<'a>(path: &'a [u8], root: &[u8]) -> Option<&'a [u8]> {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    path.strip_prefix(root).filter(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
}

/// Whether a path of the host is what the kubelet has made for the pod of `container`, or the runtime for a sandbox: host
/// name, hosts and resolver of it.
fn is_made_for(home: &[u8], container: &Container) -> bool {
    let names: Vec<&[u8]> = home.split(|byte| *byte == b'/').collect();
    let uid = container.pod_uid.as_deref().map(str::as_bytes);
    let of_kubelet =
        names.windows(3).any(|window| matches!(window, [b"kubelet", b"pods", pod] if Some(*pod) == uid));
    let of_runtime = names.windows(3).any(|window| {
        let [kind, id, file] = window else { return false };
        let kind = matches!(*kind, b"sandboxes" | b"overlay-containers");
        let file = matches!(*file, b"hostname" | b"hosts" | b"resolv.conf" | b"shm" | b"userdata");
        kind && file && id.len() == 64 && id.iter().all(u8::is_ascii_hexdigit)
    });
    of_kubelet || of_runtime
}

/// The lines of /proc/PID/mountinfo, of a container's no more than [`MOST`] bytes: who may mount can make a hundred thousand
/// (`fs.mount-max`), of any length. What the runtime has mounted comes first.
fn read(pid: u32) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let most = if pid == host() { u64::MAX } else { MOST };
    fs::File::open(procfs::of(pid, "mountinfo"))?.take(most).read_to_end(&mut text)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    text.truncate(whole);
    Ok(text)
}

/// A /proc/PID/mountinfo (proc_pid_mountinfo(5)), and what is mounted at its root.
fn parse(text: &[u8]) -> (Places, Option<(u32, Vec<u8>)>) {
    let (mut places, mut root) = (Places::new(), None);
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        let (Some(device), Some(part), Some(at)) = (words.next().and_then(device), words.next(), words.next())
        else {
            continue;
        };
        // The last mount there is the one that is seen.
        if at == b"/" {
            root = Some((device, unescape(part)));
        }
        places.entry(device).or_default().push(Place { root: unescape(part), at: unescape(at) });
    }
    (places, root)
}

/// `8:1` as the kernel holds it: 12 bits major, 20 bits minor.
pub(super) fn device(text: &[u8]) -> Option<u32> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
}

/// `\040` and its like (mangle() of fs/seq_file.c).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        if let Some(digits) = digits {
            plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
            rest = after.get(3..).unwrap_or_default();
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /proc rw - proc proc rw
3 1 8:1 /home/ann /mnt/with\\040space rw - ext4 /dev/sda1 rw
4 1 8:1 / /late rw - ext4 /dev/sda1 rw
5 1 0:40 /@data /data rw - btrfs /dev/sdb rw
6 1 0:40 /@data/x /x rw - btrfs /dev/sdb rw
broken
";

    fn table() -> Table {
        let (places, root) = parse(TABLE.as_bytes());
        Table { places, root, ..Table::default() }
    }

    #[test]
    fn a_file_lives_where_most_of_its_file_system_is_seen() {
        let table = table();
        assert_eq!(table.root, Some((8 << 20 | 1, b"/".to_vec())));
        for (device, inner, want) in [
            (8 << 20 | 1, "/etc/shadow", Some("/etc/shadow")),
            (8 << 20 | 1, "/home/ann/x", Some("/home/ann/x")),
            (8 << 20 | 1, "/", Some("/")),
            (40, "/@data", Some("/data")),
            (40, "/@data/x/y", Some("/data/x/y")),
            (40, "/@database/x", None),
            (40, "/@other", None),
            (41, "/x", None),
        ] {
            assert_eq!(table.find(device, &inner.into()).first(), want.map(Name::from).as_ref(), "{inner}");
        }
        assert_eq!(table.places[&(8 << 20 | 1)][1].at, b"/mnt/with space");
        assert_eq!(unescape(b"a\\134b\\04"), b"a\\b\\04");
    }

    #[test]
    fn what_was_made_for_a_pod_is_its_own() {
        let uid = "11111111-2222-3333-4444-555555555555";
        let container = Container { pod_uid: Some(uid.into()), ..Container::default() };
        let sandbox = "0".repeat(64);
        for (path, own) in [
            (format!("/var/lib/kubelet/pods/{uid}/etc-hosts"), true),
            (format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/d/f"), true),
            ("/var/lib/kubelet/pods/another/etc-hosts".to_owned(), false),
            ("/var/lib/kubelet/config.yaml".to_owned(), false),
            (format!("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{sandbox}/resolv.conf"), true),
            (format!("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{sandbox}/other"), false),
            ("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/x/resolv.conf".to_owned(), false),
            ("/etc/shadow".to_owned(), false),
        ] {
            assert_eq!(is_made_for(path.as_bytes(), &container), own, "{path}");
        }
        assert!(!is_made_for(b"/var/lib/kubelet/pods//x", &Container::default()));
    }
}
