//! Policies from a directory of YAML files, read again when it changes.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    string::FromUtf8Error,
};

use super::{
    Errors, Fault, Judge, Loaded, Object, Override, Severity,
    load::{Loader, Text},
};

/// Largest file that is read, in bytes: far beyond any sensible policy, small enough to parse in an instant.
const FILE_LIMIT: u64 = 1 << 20;
/// Deepest directory, so that a loop of bind mounts ends.
const DEPTH_LIMIT: usize = 8;
/// Most files.
const FILES_LIMIT: usize = 10_000;

/// What tells that a file has changed: path, device, inode, size, and times of content and of status.
type Stamp = (PathBuf, u64, u64, u64, (i64, i64), (i64, i64));

/// A directory of policies, or several, or single files.
pub struct Directory {
    paths: Vec<PathBuf>,
    library: Option<(PathBuf, Severity)>,
    stamps: Vec<Stamp>,
    objects: Vec<Object>,
    /// The objects are others than at the last reading.
    changed: bool,
    loader: Loader,
}

impl Directory {
    /// All `*.yaml` and `*.yml` at and below `paths`, changed by `overrides` and held to their examples by `judge`.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>, overrides: BTreeMap<String, Override>, judge: Judge) -> Self {
        Self {
            paths,
            library: None,
            stamps: Vec::new(),
            objects: Vec::new(),
            changed: false,
            loader: Loader::new(overrides, judge),
        }
    }

    /// Adds the library in `directory`, of which policies below `severity` are suspended unless an override says otherwise.
    #[must_use]
    pub fn with_library(mut self, directory: PathBuf, severity: Severity) -> Self {
        self.paths.push(directory.clone());
        self.library = Some((directory, severity));
        self
    }

    fn wanted_of(&self, file: &Path) -> Option<Severity> {
        self.library.as_ref().filter(|(directory, _)| file.starts_with(directory)).map(|(_, severity)| *severity)
    }

    /// Says which policies the API server has besides; the next [`Self::poll`] reads them.
    pub fn set_objects(&mut self, objects: Vec<Object>) {
        self.changed |= objects != self.objects;
        let uids: HashMap<_, _> =
            objects.iter().map(|object| (object.reference.key(), &object.reference.uid)).collect();
        // What another had by that name before is none of its versions.
        for object in &self.objects {
            if uids.get(&object.reference.key()).is_some_and(|uid| **uid != object.reference.uid) {
                self.loader.forget(&object.reference.key());
            }
        }
        self.objects = objects;
    }

    /// Reads everything if a file has come, gone or changed since the last call; None if nothing has.
    ///
    /// # Errors
    /// If a directory cannot be read; what was loaded before stays as it was.
    pub fn poll(&mut self) -> Result<Option<Loaded>, Errors> {
        let mut before = self.list()?;
        if before == self.stamps && !self.changed {
            return Ok(None);
        }
        // A volume of Kubernetes is swapped as a whole, by renaming `..data`: what was read of both is of neither.
        for _ in 0..10 {
            let files = before.iter().map(|(path, ..)| Text {
                place: path.clone(),
                text: read(path),
                object: None,
                from: self.wanted_of(path),
            });
            let mut texts: Vec<Text> = files.collect();
            let after = self.list()?;
            if before == after {
                (self.stamps, self.changed) = (after, false);
                texts.extend(self.objects.iter().cloned().map(Text::of_object));
                // Whoever writes a policy by the name of one of the library means his own.
                texts.sort_by_key(|text| text.from.is_some());
                return Ok(Some(self.loader.load(&texts)));
            }
            before = after;
        }
        Err(Errors(
            "the policies change faster than they can be read; the next look may find them at rest".to_owned(),
        ))
    }

    /// The same of one text, as if it were the only file.
    #[must_use]
    pub fn read_text(text: &[u8], judge: Judge) -> Loaded {
        let text = String::from_utf8(text.to_vec()).map_err(not_text);
        Self::new(Vec::new(), BTreeMap::new(), judge).loader.load(&[Text {
            place: "policy.yaml".into(),
            text,
            object: None,
            from: None,
        }])
    }

    fn list(&self) -> Result<Vec<Stamp>, Errors> {
        let mut stamps = Vec::new();
        for path in &self.paths {
            if let Err((at, why)) = list(path, 0, &mut HashSet::new(), &mut stamps) {
                let remedy =
                    if at == *path { "; name another with --policies DIR or policies.directory" } else { "" };
                return Err(Errors(format!("cannot read the policies in {}: {why}{remedy}", at.display())));
            }
        }
        stamps.sort();
        if stamps.len() > FILES_LIMIT {
            return Err(Errors(format!("{} files of policies; at most {FILES_LIMIT} are read", stamps.len())));
        }
        Ok(stamps)
    }
}

fn list(
    path: &Path,
    depth: usize,
    seen: &mut HashSet<(u64, u64)>,
    stamps: &mut Vec<Stamp>,
) -> Result<(), (PathBuf, io::Error)> {
    let at = |why| (path.to_path_buf(), why);
    let found = fs::metadata(path).map_err(at)?;
    if found.is_file() {
        let times = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        stamps.push((path.to_path_buf(), found.dev(), found.ino(), found.size(), times.0, times.1));
    }
    // A link to a directory above leads here again.
    if !found.is_dir() || !seen.insert((found.dev(), found.ino())) {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?.path();
        let name = entry.file_name().unwrap_or_default().as_encoded_bytes();
        // Hidden: editors' leftovers, and the directories behind a mounted ConfigMap's links.
        let hidden = name.first() == Some(&b'.');
        let yaml = matches!(entry.extension().map(|e| e.as_encoded_bytes()), Some(b"yaml" | b"yml"));
        if hidden || depth >= DEPTH_LIMIT || !(yaml || entry.is_dir()) {
            continue;
        }
        // One that cannot be looked at is one bad file, unless it has just gone.
        if list(&entry, depth + 1, seen, stamps).is_err() && fs::symlink_metadata(&entry).is_ok() {
            stamps.push((entry, 0, 0, 0, (0, 0), (0, 0)));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Fault> {
    let unreadable = |why: io::Error| Fault::error("", format!("cannot be read: {why}"), "check its permissions");
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(unreadable)?;
    file.by_ref().take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_LIMIT {
        let size = file.metadata().map_or(FILE_LIMIT + 1, |found| found.size());
        return Err(Fault::error(
            "",
            format!("the file has {size} bytes; at most {FILE_LIMIT} are read"),
            "split it",
        ));
    }
    String::from_utf8(bytes).map_err(not_text)
}

fn not_text(why: FromUtf8Error) -> Fault {
    let at = why.utf8_error().valid_up_to();
    Fault::error("", format!("byte {at} is not UTF-8"), "write a byte that is no text as \\xNN in a pattern")
}
