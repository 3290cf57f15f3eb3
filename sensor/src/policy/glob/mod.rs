//! The glob dialect: its one parser, and the components that a pattern asks for.
//!
//! On bytes, case-sensitive. `*` any bytes but `/`; `?` one byte but `/`; `**` whole components; `[a-z]`, `[!a-z]`;
//! `{a,b}`; `\` takes the next character as it is; `\xNN` is one byte.
mod parser;

use std::fmt;

/// A parsed pattern: it matches what any of its alternatives matches.
#[derive(Clone, Debug)]
pub struct Glob {
    alternatives: Vec<Vec<Component>>,
}

/// What one component of a path must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Component {
    /// This name.
    Literal(Vec<u8>),
    /// A name of this form.
    Wild(Wild),
    /// `**`: any number of components; at the end of a pattern at least one.
    Any,
}

/// The form of one component with wildcards: what stands before the first and after the last of them, and between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wild {
    pub(super) prefix: Vec<u8>,
    middle: Vec<Atom>,
    pub(super) suffix: Vec<u8>,
}

/// One step within a component.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Atom {
    /// This byte.
    Byte(u8),
    /// Any byte.
    One,
    /// Any bytes.
    Star,
    /// A byte in, or not in, the ranges.
    Class { negated: bool, ranges: Vec<(u8, u8)> },
}

/// Where it can be decided that a pattern does not match: the kernel filter's precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Decided {
    /// The kernel knows the answer: a path, all below a directory, a name or an extension anywhere.
    #[serde(rename = "kernel")]
    Kernel,
    /// The kernel narrows by directory, name or extension; user space decides.
    #[serde(rename = "kernel+user")]
    KernelUser,
    /// There is nothing to narrow by: every open comes to user space.
    #[serde(rename = "user")]
    User,
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::KernelUser => "kernel+user",
            Self::User => "user",
        })
    }
}

/// What is wrong with a pattern, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobError {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

impl Glob {
    /// Parses `text`.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        Ok(Self { alternatives: parser::parse(text)? })
    }

    /// Parses a pattern that has no slash in front: of containers' and images' names.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn parse_name(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() || text.starts_with('/') {
            let message = if text.is_empty() { "a name is empty" } else { "a name begins with '/'" };
            return Err(GlobError { message: message.to_owned(), help: "write it as in 'api*'".to_owned() });
        }
        // The same dialect: a name is a path below the root.
        Ok(Self { alternatives: parser::parse(&format!("/{text}"))? })
    }

    /// The pattern of these components.
    pub(super) fn of(components: &[Component]) -> Self {
        Self { alternatives: vec![components.to_vec()] }
    }

    /// The patterns without braces that it stands for, each as components.
    pub(super) fn alternatives(&self) -> &[Vec<Component>] {
        &self.alternatives
    }

    /// The paths that it names, if it has no wildcards but braces.
    #[must_use]
    pub fn literals(&self) -> Option<Vec<Vec<u8>>> {
        let literal = |components: &Vec<Component>| {
            let names = components.iter().map(|component| match component {
                Component::Literal(name) => Some(name.as_slice()),
                Component::Wild(_) | Component::Any => None,
            });
            let path = names.collect::<Option<Vec<_>>>()?.join(&b'/');
            Some([b"/", path.as_slice()].concat())
        };
        self.alternatives.iter().map(literal).collect()
    }

    /// How many `**` it has at most.
    #[must_use]
    pub fn any_components(&self) -> usize {
        let count = |components: &Vec<Component>| components.iter().filter(|c| **c == Component::Any).count();
        self.alternatives.iter().map(count).max().unwrap_or(0)
    }

    /// Bytes of all its alternatives together.
    #[must_use]
    pub fn expanded_len(&self) -> usize {
        let len = |component: &Component| match component {
            Component::Literal(name) => name.len() + 1,
            Component::Wild(wild) => wild.prefix.len() + wild.middle.len() + wild.suffix.len() + 1,
            Component::Any => 3,
        };
        self.alternatives.iter().flatten().map(len).sum()
    }

    /// Where it can be decided that it does not match: the worst of its alternatives.
    #[must_use]
    pub fn decided(&self) -> Decided {
        self.alternatives.iter().map(|components| decided(components)).max().unwrap_or(Decided::User)
    }

    /// True if every path that `other` matches is surely matched by `self`; false if that is not plain to see.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let under = |wide: &[Component], narrow: &[Component]| match wide {
            [Component::Any] => !narrow.is_empty(),
            [Component::Any, name] => {
                narrow.last().is_some_and(|last| *last != Component::Any && covers_name(name, last))
            }
            // `/dir/**/*` is `/dir/**`.
            [directory @ .., Component::Any, Component::Wild(all)] if all.is_everything() => {
                narrow.len() > directory.len() && directory.iter().zip(narrow).all(|(a, b)| covers_name(a, b))
            }
            [directory @ .., Component::Any] => {
                narrow.len() > directory.len() && directory.iter().zip(narrow).all(|(a, b)| covers_name(a, b))
            }
            _ => wide.len() == narrow.len() && wide.iter().zip(narrow).all(|(a, b)| covers_name(a, b)),
        };
        other.alternatives.iter().all(|narrow| self.alternatives.iter().any(|wide| under(wide, narrow)))
    }
}

fn covers_name(wide: &Component, narrow: &Component) -> bool {
    match (wide, narrow) {
        (Component::Wild(wide), Component::Literal(name)) => wide.matches(name),
        (Component::Wild(wide), Component::Wild(narrow)) => wide == narrow || wide.is_everything(),
        (wide, narrow) => wide == narrow,
    }
}

fn decided(components: &[Component]) -> Decided {
    let literal = |component: &Component| matches!(component, Component::Literal(_));
    let extension = |component: &Component| match component {
        Component::Wild(wild) => {
            wild.middle == [Atom::Star] && wild.prefix.is_empty() && wild.suffix.contains(&b'.')
        }
        Component::Literal(_) | Component::Any => false,
    };
    match components {
        [Component::Any, name] if literal(name) || extension(name) => Decided::Kernel,
        [directory @ .., Component::Any] if !directory.is_empty() && directory.iter().all(literal) => {
            Decided::Kernel
        }
        all if all.iter().all(literal) => Decided::Kernel,
        [first, ..] if literal(first) => Decided::KernelUser,
        [.., last] if literal(last) || extension(last) => Decided::KernelUser,
        _ => Decided::User,
    }
}

impl Wild {
    /// True for `*`.
    pub(super) fn is_everything(&self) -> bool {
        self.prefix.is_empty() && self.middle == [Atom::Star] && self.suffix.is_empty()
    }

    /// Whether `name` has this form. Takes at most the product of both lengths in steps.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let middle =
            name.strip_prefix(self.prefix.as_slice()).and_then(|rest| rest.strip_suffix(self.suffix.as_slice()));
        middle.is_some_and(|middle| atoms_match(&self.middle, middle))
    }
}

/// Each star takes as little as it can, and the last one more whenever what follows it fails; going back to an
/// earlier star could not help.
fn atoms_match(mut atoms: &[Atom], mut name: &[u8]) -> bool {
    let mut retry: Option<(&[Atom], &[u8])> = None;
    loop {
        match (atoms.split_first(), name.split_first()) {
            (None, None) => return true,
            (Some((Atom::Star, rest)), _) => {
                retry = Some((rest, name));
                atoms = rest;
                continue;
            }
            (Some((atom, rest)), Some((byte, others))) if atom.takes(*byte) => {
                (atoms, name) = (rest, others);
                continue;
            }
            _ => {}
        }
        let Some((after, [_, more @ ..])) = retry else { return false };
        retry = Some((after, more));
        (atoms, name) = (after, more);
    }
}

impl Atom {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::One | Self::Star => true,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Patterns;

    fn matches(pattern: &str, path: &str) -> bool {
        Patterns::compile("", &[pattern.to_owned()]).unwrap().first_match(path.as_bytes()).is_some()
    }

    #[test]
    fn each_feature_matches_what_the_language_says() {
        for (pattern, yes, no) in [
            (
                "/etc/shadow",
                &["/etc/shadow"][..],
                &["/etc/shadow-", "/etc/shado", "/x/etc/shadow", "etc/shadow"][..],
            ),
            ("/etc/*.d", &["/etc/.d", "/etc/a.d"], &["/etc/a/b.d", "/etc/ad"]),
            ("/a/?", &["/a/b", "/a/\u{7f}"], &["/a/", "/a/bc"]),
            ("/dir/**", &["/dir/a", "/dir/a/b"], &["/dir", "/dir/", "/dirx/a"]),
            ("/a/**/b", &["/a/b", "/a/x/b", "/a/x/y/b"], &["/a/xb", "/ab", "/a/b/c"]),
            (
                "**/id_{rsa,ed25519}",
                &["/id_rsa", "/x/id_ed25519", "id_rsa", "tail/id_rsa"],
                &["/x/id_dsa", "/xid_rsa"],
            ),
            (
                "/home/*/.ssh/**",
                &["/home/ann/.ssh/id", "/home/b/.ssh/x/y"],
                &["/home/.ssh/id", "/home/a/b/.ssh/x"],
            ),
            ("/v[0-9a]x", &["/v1x", "/vax"], &["/vbx", "/vx", "/v10x"]),
            ("/v[!0-9]", &["/va"], &["/v1", "/v/"]),
            ("/v[^]a]", &["/vb"], &["/v]", "/va"]),
            ("/v[]a-]", &["/v]", "/va", "/v-"], &["/vb"]),
            ("/v[.-0]", &["/v.", "/v0"], &["/v/"]),
            (r"/\*\{\\", &["/*{\\"], &["/x{\\"]),
            (r"/\x41\xff", &[], &["/A"]),
            ("/{a,b{1,2}}/x{,y}", &["/a/x", "/b1/x", "/b2/xy"], &["/b/x", "/a/y"]),
            ("/**", &["/a", "/a/b", "tail"], &["/"]),
            ("/", &["/"], &["/a"]),
            ("/a/**/**/b", &["/a/b", "/a/x/b"], &["/a"]),
            ("/a*b*c", &["/abc", "/axbxc", "/abcbc"], &["/ac", "/ab/c"]),
            ("/a\\/b", &["/a/b"], &["/ab"]),
            ("/v[^/]x", &["/v1x"], &["/v/x"]),
            ("/*.tar.gz", &["/a.tar.gz", "/.tar.gz"], &["/tar.gz", "/a.tar"]),
            ("/{a/b,c}/d", &["/a/b/d", "/c/d"], &["/a/d"]),
            ("/a,b", &["/a,b"], &["/a"]),
            ("/.+", &["/.+"], &["/ab"]),
        ] {
            yes.iter().for_each(|path| assert!(matches(pattern, path), "{pattern} should match {path}"));
            no.iter().for_each(|path| assert!(!matches(pattern, path), "{pattern} should not match {path}"));
        }
    }

    #[test]
    fn it_is_known_where_a_pattern_is_decided() {
        for (decided, patterns) in [
            (
                Decided::Kernel,
                &["/etc/shadow", "/etc/{shadow,passwd}", "/dir/**", "**/id_rsa", "**/*.pem", "/"][..],
            ),
            (
                Decided::KernelUser,
                &["/home/*/.ssh/**", "/etc/*.d", "**/.ssh/id_rsa", "/a/**/b", "/*/x", "**/x/*.pem"],
            ),
            (Decided::User, &["/**", "**/*", "**/a*", "/*/b*", "/{etc,*}/*"]),
        ] {
            for pattern in patterns {
                assert_eq!(Glob::parse(pattern).unwrap().decided(), decided, "{pattern}");
            }
        }
    }

    #[test]
    fn a_pattern_covers_another_only_if_that_is_sure() {
        for (wide, narrow, covers) in [
            ("/**", "/a/b*", true),
            ("/a/**", "/a/b/**", true),
            ("/a/**", "/a", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b*", true),
            ("/a/b*", "/a/*", false),
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/{b,c}", false),
            ("/a/{b,c}", "/a/b", true),
            ("**/x", "/a/x", true),
            ("**/x", "/a/**", false),
            ("/a/**/*", "/a/b/**", true),
            ("/a/**/b", "/a/b", false),
        ] {
            let (a, b) = (Glob::parse(wide).unwrap(), Glob::parse(narrow).unwrap());
            assert_eq!(a.covers(&b), covers, "{wide} {narrow}");
        }
    }
}
