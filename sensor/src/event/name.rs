//! Bytes that a process chose, and how they are shown and stored.
use std::{fmt, sync::Arc};

use bstr::{BString, ByteVec as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// The arguments of a program, the first of which is its name as the caller gave it.
///
/// One piece of memory, however many there are: a process may have thousands of empty ones.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Args(Arc<[u8]>);

impl Args {
    /// From bytes in which each argument ends with a NUL; the last need not.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.strip_suffix(b"\0").unwrap_or(bytes).into())
    }

    /// At most the first `len` bytes.
    #[must_use]
    pub fn cut(&self, len: usize) -> Self {
        if self.0.len() <= len { self.clone() } else { Self(self.0.get(..len).unwrap_or_default().into()) }
    }

    /// Bytes that they take.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none, or if they are not known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Name> {
        let all = (!self.0.is_empty()).then(|| self.0.split(|byte| *byte == 0));
        all.into_iter().flatten().map(|bytes| bytes.to_vec().into())
    }
}

impl fmt::Debug for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Args {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Vec::<Name>::deserialize(deserializer)?;
        let bytes: Vec<u8> = all.iter().flat_map(|arg| arg.as_bytes().iter().chain(&[0]).copied()).collect();
        Ok(Self::new(&bytes))
    }
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

    #[test]
    fn arguments_survive_their_text_and_are_counted_as_they_were_given() {
        for (bytes, want) in [
            (&b""[..], &[][..]),
            (b"cat\0/etc/shadow\0", &["cat", "/etc/shadow"][..]),
            (b"sh\0-c\0\0", &["sh", "-c", ""]),
            (b"cut\0in the mid", &["cut", "in the mid"]),
        ] {
            let args = Args::new(bytes);
            assert_eq!(args.iter().collect::<Vec<_>>(), want.iter().map(|a| Name::from(*a)).collect::<Vec<_>>());
            assert_eq!(serde_json::from_str::<Args>(&serde_json::to_string(&args).unwrap()).unwrap(), args);
        }
        assert_eq!(Args::new(b"abc\0def").cut(5).iter().collect::<Vec<_>>(), ["abc".into(), Name::from("d")]);
    }
}
