//! Makes every hook on a function fire once: some can be hooked and are never called, since the compiler has put them into
//! their callers. A tracepoint is called wherever it stands.
use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use aya::{Ebpf, maps::PerCpuArray};
use sensor_ebpf::{Hook, PARTS, Part};

use super::Error;

/// The kernel side's counters of runs for the sensor itself.
const FIRED: &str = "FIRED";

/// Where the sensor may write, first come first served: a container with a read-only root has the first.
pub const PLACES: [&str; 4] = ["/dev/shm", "/tmp", "/run", "/var/tmp"];

/// Does to files of its own what the hooks watch, and says which programs have run for it; None if it found no place.
pub(super) fn fired(bpf: &Ebpf) -> Option<Result<Fired, Error>> {
    let name = format!("pathwatch-{}", std::process::id());
    let place =
        PLACES.iter().map(|place| Path::new(place).join(&name)).find(|place| fs::create_dir(place).is_ok())?;
    let by_handle = exercise(&place);
    fs::remove_dir_all(&place).ok();
    Some(read(bpf).map(|runs| Fired { runs, by_handle }))
}

/// Which programs have run for the sensor itself.
pub(super) struct Fired {
    runs: Vec<bool>,
    /// A file was opened by its handle, for which the sensor may lack the right, or the file system the means.
    by_handle: bool,
}

impl Fired {
    /// Whether this part of that hook has, or could not be tried.
    pub(super) fn has(&self, hook: Hook, part: Part) -> bool {
        let untried = hook == Hook::DoHandleOpen && !self.by_handle;
        untried || self.runs.get(hook as usize * PARTS + part as usize).copied().unwrap_or(false)
    }
}

fn read(bpf: &Ebpf) -> Result<Vec<bool>, Error> {
    let map = bpf.map(FIRED).ok_or(Error::MissingProgram(FIRED))?;
    let counters = PerCpuArray::<_, u64>::try_from(map).map_err(|why| Error::Load(FIRED, why.into()))?;
    let has = |slot| counters.get(&slot, 0).map(|counts| counts.iter().any(|count| *count > 0));
    let fired = (0..counters.len()).map(has).collect::<Result<_, _>>();
    fired.map_err(|why| Error::Load(FIRED, why.into()))
}

/// Nothing here need succeed: what does not is a program that has not fired. Says whether a file was opened by its handle.
fn exercise(place: &Path) -> bool {
    let path = |name: &str| -> PathBuf { place.join(name) };
    let by_handle = File::create(path("a")).is_ok_and(|file| open_by_handle(&file));
    truncate(&path("a"));
    fs::rename(path("a"), path("b")).ok();
    fs::hard_link(path("b"), path("c")).ok();
    fs::remove_file(path("c")).ok();
    fs::create_dir(path("d")).ok();
    fs::remove_dir(path("d")).ok();
    by_handle
}

/// truncate(2), for which rustix has only ftruncate(2), which opens nothing.
#[expect(unsafe_code, reason = "no safe interface has truncate(2)")]
fn truncate(path: &Path) {
    let Ok(name) = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()) else { return };
    // SAFETY: the name ends with a NUL and lives longer than the call.
    unsafe { libc::truncate(name.as_ptr(), 0) };
}

/// A file handle with room for any (open_by_handle_at(2)).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

#[expect(unsafe_code, reason = "no safe interface has file handles")]
fn open_by_handle(file: &File) -> bool {
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount = 0;
    let (at, empty) = (&raw mut handle, c"".as_ptr());
    // SAFETY: the handle says how much room it has, and all pointers outlive the call.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            empty,
            at,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if named != 0 {
        return false;
    }
    // SAFETY: as above; the handle is one of the kernel's.
    let opened = unsafe { libc::syscall(libc::SYS_open_by_handle_at, file.as_raw_fd(), at, libc::O_PATH) };
    if opened >= 0 {
        // SAFETY: a descriptor that nobody else knows.
        unsafe { libc::close(opened as i32) };
    }
    opened >= 0
}
