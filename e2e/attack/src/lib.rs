//! Every way to reach a file that this project knows of. Each case is tried in a process of its own, in a directory of its
//! own, on a file of its own; `cases.rs` has what the right answer is.
mod calls;
mod cases;
mod cgroups;
mod changes;
mod mounts;
mod names;
mod sys;
mod uring;

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

pub use cases::{CASES, Case};
pub use cgroups::open_by_child_in;
pub use sys::Failed;
use sys::Result;

/// What a case works with.
pub struct Stage {
    /// Its directory.
    pub dir: PathBuf,
    /// The file that is watched.
    pub secret: PathBuf,
    name: &'static str,
}

/// What became of a case.
#[derive(Debug)]
pub struct Tried {
    pub name: &'static str,
    /// The process that did it, or whose children did, by its number in the /proc that was named.
    pub pid: u32,
    /// Why it was not done.
    pub failed: Option<String>,
}

/// How the two opens are called between which a case does what it is about.
pub const BEGIN: &str = "@begin-";
pub const END: &str = "@end-";

impl Stage {
    /// The one thing that is to be seen.
    pub fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        self.mark(BEGIN);
        let done = act();
        self.mark(END);
        done
    }

    /// An open of what there is not, by which others know where in the case they are.
    pub fn mark(&self, mark: &str) {
        sys::open(libc::AT_FDCWD, format!("/{mark}{}", self.name), 0).ok();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in the case's own.
    pub fn mkdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).map_err(|why| Failed(format!("mkdir {}: {why}", path.display())))?;
        Ok(path)
    }
}

impl Case {
    /// The directory of this case below `base`.
    pub fn dir(&self, base: &Path) -> PathBuf {
        base.join(self.name)
    }

    /// The file that is watched.
    pub fn secret(&self, base: &Path) -> PathBuf {
        self.dir(base).join(std::ffi::OsStr::from_bytes(self.file))
    }
}

/// Does all cases of `only`, or all there are, in directories of `base`. `proc` is where processes have the numbers by which they
/// are to be told, which in a container are others than its own.
pub fn run(base: &Path, only: &[String], proc: &Path) -> Vec<Tried> {
    let wanted = |case: &&Case| only.is_empty() || only.iter().any(|name| name == case.name);
    CASES.iter().filter(wanted).map(|case| try_one(case, base, proc)).collect()
}

fn try_one(case: &Case, base: &Path, proc: &Path) -> Tried {
    let [note, number] = ["failed", "pid"].map(|what| base.join(format!("{}.{what}", case.name)));
    let child = match sys::fork() {
        Ok(0) => {
            let own = fs::read_link(proc.join("self")).unwrap_or_default();
            fs::write(&number, own.as_os_str().as_bytes()).ok();
            let done = prepare(case, base).and_then(|stage| (case.act)(&stage));
            let code = match done {
                Ok(()) => 0,
                Err(Failed(why)) => fs::write(&note, why).map_or(2, |()| 1),
            };
            sys::exit(code)
        }
        Ok(child) => child,
        Err(Failed(why)) => return Tried { name: case.name, pid: 0, failed: Some(why) },
    };
    let status = sys::wait(child);
    let failed = (status != 0).then(|| {
        fs::read_to_string(&note).unwrap_or_else(|_| format!("its process ended with status {status:#x}"))
    });
    let told = fs::read_to_string(&number).ok().and_then(|number| number.parse().ok());
    Tried { name: case.name, pid: told.unwrap_or(child as u32), failed }
}

fn prepare(case: &Case, base: &Path) -> Result<Stage> {
    let stage = Stage { dir: case.dir(base), secret: case.secret(base), name: case.name };
    fs::create_dir_all(&stage.dir).map_err(|why| Failed(format!("mkdir: {why}")))?;
    if case.exists {
        fs::write(&stage.secret, "secret\n").map_err(|why| Failed(format!("write the secret: {why}")))?;
    }
    Ok(stage)
}
