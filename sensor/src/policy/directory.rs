//! Policies from a directory of YAML files.
use std::{
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize as _;

use super::{Compiled, Policy, PolicySet};

/// Largest file that is read, in bytes: far beyond any sensible policy, small enough to parse in an instant.
const FILE_LIMIT: u64 = 1 << 20;
/// Deepest directory, so that a loop of bind mounts ends.
const DEPTH_LIMIT: usize = 8;

/// Everything that is wrong with a directory of policies, a line each.
#[derive(Debug)]
pub struct Errors(Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Errors {}

/// Loads every `*.yaml` and `*.yml` at and below `directory`, in the order of their paths.
///
/// # Errors
/// All faults of all files at once, each with file and, where the parser knows them, line and column.
pub fn load(directory: &Path) -> Result<PolicySet, Errors> {
    let mut files = Vec::new();
    if let Err((path, why)) = list(directory, 0, &mut files) {
        let remedy =
            if path == directory { "; name another with --policies DIR or policies.directory" } else { "" };
        return Err(Errors(vec![format!("cannot read the policies in {}: {why}{remedy}", path.display())]));
    }
    files.sort();
    let mut set = PolicySet::default();
    let mut errors = Vec::new();
    let mut names: HashMap<String, String> = HashMap::new();
    for path in &files {
        let source = path.display().to_string();
        let policies = read(path).and_then(|text| parse(&text));
        for compiled in policies.unwrap_or_else(|why| vec![Err(vec![why])]) {
            match compiled.and_then(|policy| Compiled::new(policy, source.clone())) {
                Ok(compiled) => {
                    if let Some(other) = names.insert(compiled.name().to_owned(), source.clone()) {
                        let name = compiled.name();
                        errors
                            .push(format!("{source}: a policy named '{name}' is already in {other}; rename one"));
                    }
                    if !compiled.policy.spec.suspend {
                        set.policies.push(Arc::new(compiled));
                    }
                }
                Err(faults) => errors.extend(faults.iter().map(|fault| {
                    let place = if fault.starts_with(|c: char| c.is_ascii_digit()) { ":" } else { ": " };
                    format!("{source}{place}{fault}")
                })),
            }
        }
    }
    if names.is_empty() && errors.is_empty() {
        errors.push(format!("no policy in {}: it has no *.yaml file with one", directory.display()));
    }
    if errors.is_empty() { Ok(set) } else { Err(Errors(errors)) }
}

fn list(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
    let at = |why| (directory.to_path_buf(), why);
    for entry in fs::read_dir(directory).map_err(at)? {
        let path = entry.map_err(at)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        // Hidden: editors' leftovers, and the directories behind a mounted ConfigMap's links.
        if name.first() == Some(&b'.') {
            continue;
        }
        let kind = fs::metadata(&path).map_err(|why| (path.clone(), why))?;
        if kind.is_dir() && depth < DEPTH_LIMIT {
            list(&path, depth + 1, files)?;
        } else if kind.is_file()
            && matches!(path.extension().map(|e| e.as_encoded_bytes()), Some(b"yaml" | b"yml"))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    let size = fs::metadata(path).map_err(|why| why.to_string())?.len();
    if size > FILE_LIMIT {
        return Err(format!("the file has {size} bytes; at most {FILE_LIMIT} are read, split it"));
    }
    let bytes = fs::read(path).map_err(|why| why.to_string())?;
    String::from_utf8(bytes).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        format!("byte {at} is not UTF-8; write a byte that is no text as \\xNN in a pattern")
    })
}

/// The policies in `text`, each good or with its faults; `Err` if the rest of the file cannot be read either.
fn parse(text: &str) -> Result<Vec<Result<Policy, Vec<String>>>, String> {
    let mut policies = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        match Option::<Policy>::deserialize(document) {
            Ok(Some(policy)) => policies.push(Ok(policy)),
            // A file may begin or end with `---`.
            Ok(None) => {}
            Err(why) => {
                let (line, column) = why.location().map_or((1, 1), |place| (place.line(), place.column()));
                let what = why.to_string();
                let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
                policies.push(Err(vec![format!("{line}:{column}: {what}")]));
                // The parser does not recover.
                break;
            }
        }
    }
    Ok(policies)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: NAME}\nspec:\n  paths: [/etc/shadow]\n";

    fn errors_of(files: &[(&str, &str)]) -> String {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        load(dir.path()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "D")
    }

    #[test]
    fn policies_of_all_files_and_documents_are_loaded_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::create_dir(dir.path().join("..data")).unwrap();
        fs::write(dir.path().join("..data/x.yaml"), "not read").unwrap();
        fs::write(
            dir.path().join("b.yaml"),
            format!("---\n{}---\n{}", GOOD.replace("NAME", "b1"), GOOD.replace("NAME", "b2")),
        )
        .unwrap();
        fs::write(
            dir.path().join("sub/c.yml"),
            GOOD.replace("NAME", "c").replace("spec:", "spec:\n  suspend: true"),
        )
        .unwrap();
        fs::write(dir.path().join("a.yaml"), GOOD.replace("NAME", "a")).unwrap();
        let set = load(dir.path()).unwrap();
        assert_eq!(set.policies.iter().map(|p| p.name()).collect::<Vec<_>>(), ["a", "b1", "b2"]);
    }

    #[test]
    fn every_fault_of_every_file_is_named() {
        let bad_glob = GOOD.replace("NAME", "g").replace("/etc/shadow", "etc, '/x[', /ok");
        let got = errors_of(&[
            ("a.yaml", &GOOD.replace("NAME", "twin")),
            ("b.yaml", &GOOD.replace("NAME", "twin")),
            ("c.yaml", &GOOD.replace("paths", "pahts")),
            ("d.yaml", "metadata: {name: x\nspec: {}\n"),
            ("e.yaml", &bad_glob),
            ("f.yaml", &GOOD.replace("[/etc/shadow]", "[]")),
            ("g.yaml", &GOOD.replace("kind: Cluster", "kind: Custer")),
        ]);
        let want = "D/b.yaml: a policy named 'twin' is already in D/a.yaml; rename one\n\
            D/c.yaml:5:3: spec: unknown field `pahts`, expected one of `description`, `severity`, `tags`, `threat`, `suspend`, `paths`, `exclude`, `operations`\n\
            D/d.yaml:2:5: did not find expected ',' or '}' at line 2 column 5, while parsing a flow mapping\n\
            D/e.yaml: spec.paths[0]: 'etc' begins with neither / nor **/; write '/etc' for one place or '**/etc' for any directory\n\
            D/e.yaml: spec.paths[1]: '/x[' opens a [ that it never closes; write '\\[' for a plain one\n\
            D/f.yaml: spec.paths is empty; name at least one file to watch\n\
            D/g.yaml:2:7: kind: unknown variant `CusterPathPolicy`, expected `ClusterPathPolicy`";
        assert_eq!(got, want);
    }

    #[test]
    fn a_directory_without_policies_or_without_itself_is_an_error() {
        assert_eq!(errors_of(&[("readme.txt", "")]), "no policy in D: it has no *.yaml file with one");
        let missing = load(Path::new("/does/not/exist")).unwrap_err().to_string();
        assert_eq!(
            missing,
            "cannot read the policies in /does/not/exist: No such file or directory (os error 2); name another with --policies DIR or policies.directory"
        );
    }

    #[test]
    fn huge_and_binary_files_are_refused() {
        assert_eq!(
            errors_of(&[("a.yaml", &" ".repeat(2 << 20))]),
            "D/a.yaml: the file has 2097152 bytes; at most 1048576 are read, split it"
        );
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), b"abc\xff").unwrap();
        let got = load(dir.path()).unwrap_err().to_string();
        assert!(
            got.ends_with("a.yaml: byte 3 is not UTF-8; write a byte that is no text as \\xNN in a pattern"),
            "{got}"
        );
    }
}
