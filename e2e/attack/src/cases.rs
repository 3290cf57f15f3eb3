//! What each case is about, and what the right answer to it is.
use crate::{Stage, calls, changes, mounts, names, sys::Result, uring};

/// One way to reach a file.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, and that of its directory.
    pub name: &'static str,
    /// What it does, for a person.
    pub about: &'static str,
    pub(crate) act: fn(&Stage) -> Result,
    /// What is done to the file, in the words of policies.
    pub operation: &'static str,
    /// Zero, or the negative errno.
    pub result: i32,
    /// The file's path from the root of the mount namespace. `{dir}` is the case's directory and `{secret}` the file that is
    /// watched; `{tail}` is any beginning, and a `#` at the end stands for the kernel's name of an anonymous file. Empty if
    /// the open fails.
    pub path: &'static str,
    /// By which of its names the file that is watched is told. Empty where the case is about another.
    pub named_by: &'static str,
    /// Doubts that may be said of the path: it is then marked, and not wrong. Where nobody could know better.
    pub doubts: &'static [&'static str],
    /// What else must be said of it, and nothing more.
    pub marks: &'static [&'static str],
    /// Why the return of system calls does not show it.
    pub untraced: &'static str,
    /// Name of the file that is watched.
    pub file: &'static [u8],
    /// It is there before.
    pub exists: bool,
}

/// 127 combining characters and one of a single byte.
#[expect(clippy::indexing_slicing, reason = "at compile time, where a mistake stops the build")]
const COMBINING: &[u8] = &{
    let mut name = [b'x'; 255];
    let mut at = 1;
    while at < 255 {
        name[at] = 0xcc;
        name[at + 1] = 0x81;
        at += 2;
    }
    name
};

const fn case(
    name: &'static str,
    about: &'static str,
    act: fn(&Stage) -> Result,
    operation: &'static str,
    path: &'static str,
    named_by: &'static str,
) -> Case {
    let (doubts, marks, untraced) = (&[], &[], "");
    Case {
        name,
        about,
        act,
        operation,
        result: 0,
        path,
        named_by,
        doubts,
        marks,
        untraced,
        file: b"secret",
        exists: true,
    }
}

impl Case {
    const fn doubted(self, doubts: &'static [&'static str]) -> Self {
        Self { doubts, ..self }
    }

    const fn marked(self, marks: &'static [&'static str]) -> Self {
        Self { marks, ..self }
    }

    const fn untraced(self, untraced: &'static str) -> Self {
        Self { untraced, ..self }
    }

    const fn fails(self, errno: i32) -> Self {
        Self { result: -errno, ..self }
    }

    const fn file(self, file: &'static [u8]) -> Self {
        Self { file, ..self }
    }

    const fn absent(self) -> Self {
        Self { exists: false, ..self }
    }
}

const NO_CALL: &str = "no system call returns it";
const LETTERS: &str = "of a name that system calls pass, the letters are all there is";

/// All of them.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    case("open", "open(2) by its path", names::plain, "read", "{dir}/secret", "path"),
    case("symlink", "a symbolic link to it", names::symlinked, "read", "{dir}/secret", "path"),
    case("symlink-dotdot", "a symbolic link to a directory, and .. from there", names::dotdot, "read", "{dir}/secret", "path"),
    case("relative", "a relative name", names::relative, "read", "{dir}/secret", "path"),
    case("dirfd", "a name below a descriptor", names::dirfd, "read", "{dir}/secret", "path"),
    case("dirfd-passed", "the same, of a descriptor from another process", names::passed, "read", "{dir}/secret", "path"),
    case("proc-root", "/proc/self/root", names::proc_root, "read", "{dir}/secret", "path"),
    case("proc-cwd", "/proc/self/cwd", names::proc_cwd, "read", "{dir}/secret", "path"),
    case("map-files", "/proc/self/map_files", names::map_files, "read", "{dir}/secret", "path"),
    case("hard-link", "another name of the file", names::hard_link, "read", "{dir}/other", "identity"),
    case("hard-link-left", "another name, after its own is gone", names::hard_link_left, "read", "{dir}/other", "identity"),
    case("chroot", "its name in a chroot", mounts::chrooted, "read", "{dir}/secret", "path").marked(&["chroot"]),
    case("chroot-dirfd", "a descriptor kept across chroot(2)", mounts::kept_across_chroot, "read", "{dir}/secret", "path").marked(&["chroot"]),
    case("pivot-root", "pivot_root(2) to its directory", mounts::pivoted, "read", "/secret", "home"),
    case("bind", "a bind mount of its directory, in a namespace of its own", mounts::bound, "read", "{dir}/bind/secret", "home"),
    case("bind-file", "a bind mount of the file", mounts::bound_file, "read", "{dir}/bind", "home"),
    case("bind-root", "a bind mount of everything", mounts::bound_root, "read", "{dir}/all{dir}/secret", "home"),
    case("user-namespace", "a bind mount in a user namespace", mounts::in_user_namespace, "read", "{dir}/bind/secret", "home"),
    case("setns", "a mount namespace entered by its descriptor", mounts::entered, "read", "{dir}/bind/secret", "home"),
    case("foreign", "a descriptor of a mount in a namespace that was left", mounts::foreign, "read", "{dir}/bind/secret", "home").doubted(&["foreign_mount"]),
    case("open-tree", "open_tree(2), a mount that nobody has attached", mounts::cloned_tree, "read", "/secret", "home").doubted(&["detached", "foreign_mount"]),
    case("unmounted", "a lazily unmounted file system", mounts::unmounted, "read", "/secret", "").doubted(&["detached"]),
    case("unmounted-bind", "a lazily unmounted bind mount", mounts::unmounted_bind, "read", "/secret", "home").doubted(&["detached"]),
    case("covered", "its directory under another mount", mounts::covered, "read", "{dir}/secret", "path").marked(&["covered"]),
    case("covered-elsewhere", "the same, in another namespace only", mounts::covered_elsewhere, "read", "{dir}/secret", "path"),
    case("mounts-256", "256 mounts on each other", mounts::mounts_256, "read", "{dir}{m256}/secret", ""),
    case("overlay-read", "a file of an overlay's lower layer", mounts::overlay_read, "read", "{dir}/merged/secret", ""),
    case("overlay-write", "the same, to write: it is copied up", mounts::overlay_write, "read write", "{dir}/merged/secret", ""),
    case("overlay-twice", "an overlay on an overlay", mounts::overlay_twice, "read", "{dir}/twice/secret", ""),
    case("openat2", "openat2(2) with RESOLVE_IN_ROOT", names::in_root, "read", "{dir}/secret", "path"),
    case("creat", "creat(2)", names::creat, "write truncate", "{dir}/secret", "path"),
    case("o-creat", "O_CREAT of what was not there", names::create, "write create", "{dir}/secret", "path").absent(),
    case("o-trunc", "O_TRUNC", names::cut, "write truncate", "{dir}/secret", "path"),
    case("o-rdwr", "O_RDWR", names::write, "read write", "{dir}/secret", "path"),
    case("o-tmpfile", "O_TMPFILE in its directory", names::tmpfile, "read write", "{dir}/#", "").marked(&["tmpfile"]),
    case("o-path", "O_PATH", names::reference, "reference", "{dir}/secret", "path"),
    case("o-path-reopened", "O_PATH, and that through /proc/self/fd", names::reopened, "read", "{dir}/secret", "path"),
    case("truncate", "truncate(2)", calls::truncated, "truncate", "{dir}/secret", "path"),
    case("handle", "open_by_handle_at(2)", calls::by_handle, "read", "{dir}/secret", "path").doubted(&["disconnected"]),
    case("32-bit", "open(2) of 32 bits", calls::of_32_bits, "read", "{dir}/secret", "path"),
    case("exec", "execve(2)", calls::executed, "exec", "{dir}/secret", "path").untraced(NO_CALL),
    case("io-uring", "io_uring", uring::inline, "read", "{dir}/secret", "path").untraced(NO_CALL),
    case("io-uring-worker", "io_uring, by a worker", uring::by_worker, "read", "{dir}/secret", "path").untraced(NO_CALL),
    case("io-uring-poller", "io_uring, by the polling thread", uring::by_poller, "read", "{dir}/secret", "path").untraced(NO_CALL),
    case("io-uring-linked", "io_uring, behind another request, into a slot", uring::linked, "read", "{dir}/secret", "path").untraced(NO_CALL),
    case("directory", "a directory", names::directory, "list", "{dir}/secret", "path").absent(),
    case("fifo", "a FIFO", names::fifo, "read", "{dir}/secret", "path").absent(),
    case("deleted", "a deleted file, through /proc/self/fd", names::deleted, "read", "{dir}/secret", "path").marked(&["deleted"]),
    case("memfd", "memfd_create(2), through /proc/self/fd", names::memfd, "read", "memfd:secret", "").doubted(&["disconnected"]).marked(&["memfd"]),
    case("components-40", "40 directories deep", names::components_40, "read", "{dir}{d40}/secret", ""),
    case("components-5000", "5,000 directories deep", names::components_5000, "read", "{tail}/secret", "").doubted(&["too_long"]),
    case("bytes-8000", "a path of 8,000 bytes", names::bytes_8000, "read", "{dir}{w32}/secret", "").doubted(&["too_long"]),
    case("name-deleted", "a file whose name ends with ` (deleted)`", names::plain, "read", "{secret}", "path").file(b"x (deleted)"),
    case("name-not-utf8", "a name that is no UTF-8", names::plain, "read", "{secret}", "path").file(b"a\xff\xfeb"),
    case("name-escape", "a name of terminal escapes and line ends", names::plain, "read", "{secret}", "path").file(b"\x1b[2J\n\r\x07"),
    case("name-255", "a name of 255 bytes of combining characters", names::plain, "read", "{secret}", "path").file(COMBINING),
    case("missing", "what is not there", names::missing, "read", "", "requested").fails(2).absent(),
    case("not-a-directory", "a file as a directory", names::not_a_directory, "read", "", "requested").fails(20).absent(),
    case("too-many-links", "a symbolic link to itself", names::too_many_links, "read", "", "requested").fails(40).absent(),
    case("denied", "what nobody may open", names::denied, "read", "", "requested").fails(13),
    case("handle-denied", "open_by_handle_at(2) without the right", calls::by_stale_handle, "read", "", "").fails(1),
    case("truncate-missing", "truncate(2) of what is not there", calls::truncated_missing, "truncate", "", "requested").fails(2).doubted(&["requested_untrusted"]).absent(),
    case("truncate-denied", "truncate(2) without the right", calls::truncated_denied, "truncate", "", "path").fails(13),
    case("rename-onto", "a rename onto it", changes::onto, "rename", "{dir}/other", "target"),
    case("rename-away", "a rename of it", changes::away, "rename", "{dir}/secret", "path"),
    case("rename-exchange", "an exchange of it for another", changes::exchanged, "write rename", "{dir}/other", "target"),
    case("rename-relative", "a rename onto it by relative names", changes::replaced, "rename", "{dir}/other", "target"),
    case("rename-by-bind", "a rename onto it by a bind mount", changes::onto_by_bind, "rename", "{dir}/bind/other", "target_home").untraced(LETTERS),
    case("rename-directory", "a rename of a directory to its name", changes::directory_of_it, "rename", "{dir}/d", "target").absent(),
    case("rename-deep", "a rename onto it from 20,000 bytes deep", changes::onto_from_the_deep, "rename", "{tail}/secret", "target").doubted(&["too_long"]),
    case("rename-around", "a rename of its directory", changes::directory_around, "rename", "{dir}", "identity"),
    case("rename-denied", "a rename onto it without the right", changes::onto_denied, "rename", "", "target").fails(13),
    case("rename-missing", "a rename of what is not there", changes::away_missing, "rename", "", "requested").fails(2).absent(),
    case("link", "link(2) of it", changes::linked, "link", "{dir}/secret", "path"),
    case("link-to", "link(2) to its name", changes::linked_to, "link", "{dir}/other", "target").absent(),
    case("unlink", "unlink(2)", changes::removed, "delete", "{dir}/secret", "path"),
    case("unlink-denied", "unlink(2) without the right", changes::removed_denied, "delete", "", "path").fails(13),
    case("rmdir", "rmdir(2)", changes::removed_directory, "delete", "{dir}/secret", "path").absent(),
];
