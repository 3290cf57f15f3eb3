//! Other names that the same path has: what the language knows of merged directories and of Kubernetes' volumes.
use std::borrow::Cow;

/// Directories that are one and the same, as the FHS and systemd's merged /usr have them; the first group that a path
/// is in counts.
const SAME: &[&[&[u8]]] = &[
    &[b"/run/lock", b"/var/lock", b"/var/run/lock"],
    &[b"/run", b"/var/run"],
    &[b"/usr/bin", b"/bin"],
    &[b"/usr/sbin", b"/sbin"],
    &[b"/usr/lib", b"/lib"],
    &[b"/usr/lib32", b"/lib32"],
    &[b"/usr/lib64", b"/lib64"],
    &[b"/usr/libx32", b"/libx32"],
];

/// How a generation's name begins, with 0 for any digit; `os.MkdirTemp` adds a number.
const TIME: &[u8] = b"0000_00_00_00_00_00.";

/// `path` and every other name that it has.
#[must_use]
pub fn names(path: &[u8]) -> Vec<Cow<'_, [u8]>> {
    let mut names = vec![Cow::Borrowed(path)];
    names.extend(without_generation(path).map(Cow::Owned));
    for at in 0..names.len() {
        let more = names.get(at).map(|name| of_same_directories(name)).unwrap_or_default();
        names.extend(more.into_iter().map(Cow::Owned));
    }
    names
}

/// The other names of `path` by way of directories that have several.
#[must_use]
pub(super) fn of_same_directories(path: &[u8]) -> Vec<Vec<u8>> {
    let found = SAME.iter().find_map(|group| {
        let (own, rest) = group.iter().find_map(|directory| Some((directory, below(path, directory)?)))?;
        let others = group.iter().filter(|other| *other != own);
        Some(others.map(|other| [*other, rest].concat()).collect())
    });
    found.unwrap_or_default()
}

/// Directories that need not have one called `name` on their way, and have another name that does: `/run` is in `/var`, too.
pub(super) fn stand_ins(name: &[u8]) -> impl Iterator<Item = &'static [u8]> {
    let has = move |path: &&[u8]| path.split(|byte| *byte == b'/').any(|component| component == name);
    let others = move |group: &'static &'static [&'static [u8]]| {
        let some = group.iter().any(&has);
        group.iter().copied().filter(move |path| some && !has(path))
    };
    SAME.iter().flat_map(others)
}

/// What follows `directory` in `path`, if it is that directory or below it.
fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    path.strip_prefix(directory).filter(|rest| matches!(rest.first(), None | Some(b'/')))
}

/// A file of an atomic-writer volume lives in `D/..2026_11_22_10_11_12.123456/token`, is linked to `D/token`, and
/// `D/token` is what everybody calls it (kubernetes/pkg/volume/util/atomic_writer.go).
fn without_generation(path: &[u8]) -> Option<Vec<u8>> {
    path.windows(3).enumerate().filter(|(_, window)| window == b"/..").find_map(|(start, _)| {
        let (directory, rest) = path.split_at_checked(start)?;
        let rest = rest.get(3..)?;
        let (generation, rest) = rest.split_at_checked(rest.iter().position(|byte| *byte == b'/')?)?;
        let (time, number) = generation.split_at_checked(TIME.len())?;
        let form = time.iter().zip(TIME).all(
            |(byte, like)| {
                if *like == b'0' { byte.is_ascii_digit() } else { byte == like }
            },
        );
        let numbered = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
        (form && numbered).then(|| [directory, rest].concat())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_names_that_the_language_knows() {
        for (path, others) in [
            ("/etc/shadow", &[][..]),
            ("/bin/sh", &["/usr/bin/sh"]),
            ("/usr/bin/sh", &["/bin/sh"]),
            ("/usr/lib/x", &["/lib/x"]),
            ("/lib64/ld.so", &["/usr/lib64/ld.so"]),
            ("/usr/lib64/ld.so", &["/lib64/ld.so"]),
            ("/binary/x", &[]),
            ("/usr", &[]),
            ("/run", &["/var/run"]),
            ("/run/secrets/x", &["/var/run/secrets/x"]),
            ("/var/run/x", &["/run/x"]),
            ("/run/lock/x", &["/var/lock/x", "/var/run/lock/x"]),
            ("/var/lock/x", &["/run/lock/x", "/var/run/lock/x"]),
            ("/var/run/lock/x", &["/run/lock/x", "/var/lock/x"]),
            ("/d/..2026_11_22_10_11_12.1234/token", &["/d/token"]),
            ("/d/..2026_11_22_10_11_12.1234/a/b", &["/d/a/b"]),
            (
                "/run/d/..2026_11_22_10_11_12.1234/token",
                &["/run/d/token", "/var/run/d/token", "/var/run/d/..2026_11_22_10_11_12.1234/token"],
            ),
            ("/d/..2026_11_22_10_11_12.1234", &[]),
            ("/d/..2026_11_22_10_11_12./token", &[]),
            ("/d/..2026_11_22_10_11_1x.1/token", &[]),
            ("/d/..data/token", &[]),
            ("/d/..1/..2026_11_22_10_11_12.1/token", &["/d/..1/token"]),
            ("tail/bin/sh", &[]),
        ] {
            let mut got: Vec<String> =
                names(path.as_bytes()).iter().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
            let mut want: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
            want.push(path.to_owned());
            got.sort();
            want.sort();
            assert_eq!(got, want, "{path}");
        }
    }
}
