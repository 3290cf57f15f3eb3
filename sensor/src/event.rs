//! What the stages hand to each other: an open as captured, and the same with who did it.
use std::{collections::BTreeMap, fmt};

use bstr::{BString, ByteVec as _};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Flags of open(2) and of `f_mode` that the sensor asks about, as the kernel numbers them on x86_64 and arm64.
pub mod flags {
    /// Mask of the access mode (include/uapi/asm-generic/fcntl.h).
    pub const O_ACCMODE: u32 = 0o3;
    /// Write only.
    pub const O_WRONLY: u32 = 0o1;
    /// Read and write.
    pub const O_RDWR: u32 = 0o2;
    /// The file is cut to length zero.
    pub const O_TRUNC: u32 = 0o1000;
    /// The file is created if it is missing.
    pub const O_CREAT: u32 = 0o100;
    /// A reference to the file; neither read nor write.
    pub const O_PATH: u32 = 0o10_000_000;
    /// The kernel's own mark of an open that execve(2) makes (`__FMODE_EXEC`, include/linux/fs.h).
    pub const EXEC: u32 = 0x20;
    /// In `f_mode`: this open created the file (`FMODE_CREATED`, include/linux/fs.h).
    pub const MODE_CREATED: u32 = 0x10_0000;
}

/// Bytes that a process chose: a path, a name. Not always UTF-8, never safe for a terminal.
///
/// Shown and serialised as text in which every control character, backslash and invalid byte is escaped
/// (`\n`, `\\`, `\xff`); reading that text gives the same bytes back.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(BString);

impl Name {
    /// The bytes as the kernel has them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Name {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// True for characters that change the order in which a terminal shows the rest of the line, or end the line.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped =
            |f: &mut fmt::Formatter<'_>, bytes: &[u8]| bytes.iter().try_for_each(|b| write!(f, "\\x{b:02x}"));
        for part in self.0.utf8_chunks() {
            for c in part.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    c if c.is_control() || reorders(c) => escaped(f, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                    c => write!(f, "{c}")?,
                }
            }
            escaped(f, part.invalid())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Vec::unescape_bytes(text).into())
    }
}

/// How the sensor sees opens on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureMode {
    /// fexit on the function that every open passes.
    Fexit,
    /// The return of system calls, for kernels that refuse fexit.
    Tracepoint,
}

impl CaptureMode {
    /// What can be done to a file without being seen so.
    #[must_use]
    pub fn unseen(self) -> &'static [Operation] {
        match self {
            Self::Fexit => &[Operation::Rename, Operation::Link, Operation::Delete],
            Self::Tracepoint => &[Operation::Rename, Operation::Link, Operation::Delete, Operation::Exec],
        }
    }
}

impl fmt::Display for CaptureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fexit => "fexit",
            Self::Tracepoint => "tracepoint",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Create => "create",
            Self::Truncate => "truncate",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Delete => "delete",
            Self::Exec => "exec",
            Self::List => "list",
            Self::Reference => "reference",
        })
    }
}

/// Why the path of an event is not simply the path of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathStatus {
    /// The process has another root directory than its mount namespace.
    Chroot,
    /// The mount belongs to no mount namespace: lazily unmounted, or never attached.
    Detached,
    /// The mount belongs to another mount namespace than the process.
    ForeignMount,
    /// The file hangs in no tree; what is known of its name is given without a leading slash.
    Disconnected,
    /// Another mount covers the place.
    Covered,
    /// Too many components or bytes: the path is a tail, given without a leading slash.
    TooLong,
    /// The file had no name left.
    Deleted,
    /// An anonymous file of memfd_create(2).
    Memfd,
    /// An anonymous file of O_TMPFILE.
    Tmpfile,
    /// Found through the returned descriptor, which another thread may have replaced meanwhile.
    FdRacePossible,
    /// The descriptor was replaced while the path was read, so the path may be another file's; or it was closed
    /// before, and there is only the requested name.
    FdReplaced,
    /// The requested name was longer than 4,095 bytes or not readable.
    RequestedCut,
    /// The requested name was read from the process's memory after the call.
    RequestedUntrusted,
}

impl fmt::Display for PathStatus {
    /// The word that recordings and alerts have for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What is known of an opened file beside its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Inode number.
    pub inode: u64,
    /// Device number as the kernel holds it: 12 bits major, 20 bits minor.
    pub device: u32,
    /// File type and permissions, as in stat(2).
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Whether this very open created the file.
    pub created: bool,
}

impl File {
    /// ECS's word for the type of file (`file.type`).
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.mode & 0o170_000 {
            0o040_000 => "dir",
            0o120_000 => "symlink",
            0o010_000 => "fifo",
            0o140_000 => "socket",
            0o020_000 => "char_device",
            0o060_000 => "block_device",
            _ => "file",
        }
    }
}

/// One open as the kernel reported it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was reported.
    pub time: Timestamp,
    /// The boot in which `start_ns`, `cpu` and `sequence` mean something.
    pub boot_id: Uuid,
    /// How it was seen.
    pub mode: CaptureMode,
    /// The CPU that reported it.
    pub cpu: u32,
    /// Gapless per CPU and mode, from 1; a gap is an event that the kernel could not hand over.
    pub sequence: u64,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// When the process started, in nanoseconds since boot.
    pub start_ns: u64,
    /// Id of the cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// Effective user id in the initial user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub euid: Option<u32>,
    /// Inode of the process's user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ns: Option<u32>,
    /// Inode of the process's mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_ns: Option<u32>,
    /// Device and inode of the program that the process runs, as the kernel holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<(u32, u64)>,
    /// The thread's name. The process chooses it: shown, never decided by.
    pub comm: Name,
    /// What was called.
    #[serde(default)]
    pub call: Call,
    /// Flags of open(2), see [`flags`].
    pub flags: u32,
    /// Zero, or a negative errno.
    pub result: i32,
    /// The file, if the open succeeded and it could be found.
    pub file: Option<File>,
    /// The path from the root of the process's mount namespace.
    pub path: Option<Name>,
    /// The path from where the file lives, whatever mounts lie between.
    pub home: Option<Name>,
    /// The name that the process asked for, joined with the directory it starts from.
    pub requested: Option<Name>,
    /// The other name of a rename or link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// What to know about those paths, sorted.
    pub status: Vec<PathStatus>,
}

impl Event {
    /// What it does, as words for a person: `read, write`.
    #[must_use]
    pub fn deed(&self) -> String {
        self.operations().iter().map(Operation::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The most telling path there is: where the file is, or else what was asked for.
    #[must_use]
    pub fn best_path(&self) -> Option<&Name> {
        self.path.as_ref().or(self.requested.as_ref())
    }
}

/// What was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// Anything that opens a file.
    #[default]
    Open,
    /// truncate(2), which opens none.
    Truncate,
    /// rename(2) and its kin; the other name is [`Event::target`].
    Rename,
    /// link(2) and its kin; the new name is [`Event::target`].
    Link,
    /// unlink(2), rmdir(2).
    Delete,
}

/// What is done to a file, in the policy language's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Opened for reading.
    Read,
    /// Opened for writing.
    Write,
    /// This open made the file.
    Create,
    /// This open, or truncate(2), cut the file.
    Truncate,
    /// Given another name; either name counts.
    Rename,
    /// Given one more name; either name counts.
    Link,
    /// One of its names taken away.
    Delete,
    /// The program of an execve(2).
    Exec,
    /// A directory, to list it.
    List,
    /// A reference (O_PATH): neither read nor write.
    Reference,
}

impl Event {
    /// What is done to the file, in the order of [`Operation`]; never empty.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        match self.call {
            Call::Open => {}
            Call::Truncate => return vec![Operation::Truncate],
            Call::Rename => return vec![Operation::Rename],
            Call::Link => return vec![Operation::Link],
            Call::Delete => return vec![Operation::Delete],
        }
        if self.flags & flags::O_PATH != 0 {
            return vec![Operation::Reference];
        }
        if self.flags & flags::EXEC != 0 {
            return vec![Operation::Exec];
        }
        if self.file.as_ref().is_some_and(|file| file.kind() == "dir") {
            return vec![Operation::List];
        }
        let access = self.flags & flags::O_ACCMODE;
        // Access mode 3 asks for the right to read and write and is used for ioctl(2).
        let made = [
            (access != flags::O_WRONLY, Operation::Read),
            (access != 0, Operation::Write),
            (self.file.as_ref().is_some_and(|file| file.created), Operation::Create),
            (self.flags & flags::O_TRUNC != 0, Operation::Truncate),
        ];
        made.into_iter().filter_map(|(is, operation)| is.then_some(operation)).collect()
    }

    /// What is done to [`Event::target`]: a rename onto a file replaces what it holds, a link makes a file there.
    #[must_use]
    pub fn target_operations(&self) -> Vec<Operation> {
        match self.call {
            Call::Rename => vec![Operation::Write, Operation::Rename],
            Call::Link => vec![Operation::Create, Operation::Link],
            Call::Open | Call::Truncate | Call::Delete => vec![],
        }
    }
}

/// A running program, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it started, in nanoseconds since boot, to the clock tick.
    pub start_ns: u64,
    /// The kernel's path of the running program.
    pub executable: Option<Name>,
    /// Whether nobody but root, or the image, can have put that program at that path.
    #[serde(default)]
    pub trusted: bool,
    /// The file that was executed through its `#!` line, if the program is its interpreter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Name>,
    /// SHA-256 of the executable in hexadecimal digits, where some policy asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The container of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The runtime's full id.
    pub id: String,
    /// Uid of the pod, if the kubelet made the cgroup.
    pub pod_uid: Option<String>,
    /// Its name in the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its image, fully qualified, without tag and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// The pod of a process, as the API server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Labels of its namespace, once they are known.
    pub namespace_labels: Option<BTreeMap<String, String>>,
}

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The opener's: of its container and that container's pod, or the host's if the host opened it.
    Own,
    /// The host's, opened from a container.
    Host,
}

/// Whether everything that should be known of the opener is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enrichment {
    /// Everything is known.
    Complete,
    /// The process was gone, or its data could not be read.
    Partial,
}

/// How many generations of ancestors an event carries.
pub const ANCESTORS: usize = 5;

/// An event with who did it; what recordings hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enriched {
    /// The open.
    #[serde(flatten)]
    pub event: Event,
    /// The program that opened the file.
    pub process: Program,
    /// Its parent, that one's parent and so on, at most [`ANCESTORS`].
    pub ancestors: Vec<Program>,
    /// Effective user id in the process's own user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Path of the cgroup below the root of the hierarchy.
    pub cgroup_path: Option<Name>,
    /// The container that the cgroup belongs to; none on the host.
    pub container: Option<Container>,
    /// The pod that the container belongs to, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Whose file it is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Paths of policies that lead to this file in the opener's root, through symbolic links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known_as: Vec<Name>,
    /// Whether the above is all there is to know.
    pub enrichment: Enrichment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_its_text_whatever_its_bytes() {
        for bytes in [
            &b"plain"[..],
            b"a\nb\x1b[31m",
            b"back\\slash\\x41",
            b"\xff\xfe/\x80",
            "ü\u{301}\u{202e}".as_bytes(),
            b"",
        ] {
            let name = Name::from(bytes.to_vec());
            let text = serde_json::to_string(&name).unwrap();
            assert!(!text.chars().any(char::is_control), "{text}");
            assert_eq!(serde_json::from_str::<Name>(&text).unwrap(), name, "{text}");
        }
    }
}
