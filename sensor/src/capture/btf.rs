//! The running kernel's type information: where the members of its structures stand.
use std::path::Path;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::Error;

/// Where a kernel built with CONFIG_DEBUG_INFO_BTF describes itself.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// `struct btf_header` of include/uapi/linux/btf.h.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u16,
    version: u8,
    flags: u8,
    len: u32,
    types_offset: u32,
    types_len: u32,
    strings_offset: u32,
    strings_len: u32,
}

/// `struct btf_type`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Type {
    name: u32,
    info: u32,
    size_or_type: u32,
}

/// `struct btf_member`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Member {
    name: u32,
    kind: u32,
    offset: u32,
}

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    /// Bytes that follow the type, by kind (Documentation/bpf/btf.rst).
    fn trailing(self) -> Option<usize> {
        let count = (self.info & 0xffff) as usize;
        Some(match self.kind() {
            1 | 14 | 17 => 4,                       // INT, VAR, DECL_TAG
            3 => 12,                                // ARRAY
            STRUCT | UNION | 15 | 19 => 12 * count, // DATASEC, ENUM64
            ENUM | FUNC_PROTO => 8 * count,
            2 | 7..=12 | 16 | 18 => 0, // pointers, modifiers, FWD, TYPEDEF, FUNC, FLOAT, TYPE_TAG
            _ => return None,
        })
    }
}

/// Parsed type information.
pub(super) struct Types {
    raw: Vec<u8>,
    strings: usize,
    /// Each type and where its trailing bytes begin; id 0 is void.
    types: Vec<(Type, usize)>,
}

impl Types {
    /// Reads the type information of the running kernel.
    pub(super) fn of_this_kernel() -> Result<Self, Error> {
        match std::fs::read(Path::new(VMLINUX)) {
            Ok(raw) => Self::parse(raw).ok_or(Error::BadBtf),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Err(Error::NoBtf),
            Err(why) => Err(Error::Io(VMLINUX.to_owned(), why)),
        }
    }

    fn parse(raw: Vec<u8>) -> Option<Self> {
        let (header, _) = Header::read_from_prefix(&raw).ok()?;
        if header.magic != MAGIC {
            return None;
        }
        let strings = header.len as usize + header.strings_offset as usize;
        let mut at = header.len as usize + header.types_offset as usize;
        let end = at.checked_add(header.types_len as usize)?;
        let mut types = vec![(Type { name: 0, info: 0, size_or_type: 0 }, 0)];
        while at < end {
            let (found, _) = Type::read_from_prefix(raw.get(at..end)?).ok()?;
            at += size_of::<Type>();
            types.push((found, at));
            at += found.trailing()?;
        }
        Some(Self { raw, strings, types })
    }

    fn name(&self, offset: u32) -> &[u8] {
        let rest = self.raw.get(self.strings + offset as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The prototype of a function as C writes it, if the kernel has one of that name.
    pub(super) fn prototype(&self, name: &str) -> Option<String> {
        let is_it = |(t, _): &&(Type, usize)| t.kind() == FUNC && self.name(t.name) == name.as_bytes();
        let (function, _) = self.types.iter().find(is_it)?;
        let (proto, at) = *self.types.get(function.size_or_type as usize)?;
        let parameters = self.raw.get(at..at + proto.trailing()?)?.chunks_exact(8).map(|chunk| {
            // `struct btf_param`: name and type.
            let [name, kind] = <[u32; 2]>::read_from_bytes(chunk).ok()?;
            Some(declare(self.type_name(kind, 0)?, &String::from_utf8_lossy(self.name(name))))
        });
        let parameters = parameters.collect::<Option<Vec<_>>>()?.join(", ");
        (proto.kind() == FUNC_PROTO)
            .then(|| Some(format!("{}({parameters})", declare(self.type_name(proto.size_or_type, 0)?, name))))?
    }

    /// A type as C writes it.
    fn type_name(&self, id: u32, depth: u32) -> Option<String> {
        // Deeper than any type is; a loop in a damaged BTF must end.
        if depth > 16 {
            return None;
        }
        if id == 0 {
            return Some("void".to_owned());
        }
        let (found, _) = self.types.get(id as usize)?;
        let inner = || self.type_name(found.size_or_type, depth + 1);
        let name = String::from_utf8_lossy(self.name(found.name));
        Some(match found.kind() {
            2 => declare(inner()?, "*"),
            // Some compilers say it twice.
            10 => {
                inner().map(|inner| if inner.starts_with("const ") { inner } else { format!("const {inner}") })?
            }
            9 | 11 | 18 => inner()?,
            STRUCT | 7 => format!("struct {name}"),
            UNION => format!("union {name}"),
            ENUM | 19 => format!("enum {name}"),
            _ if name == "long int" => "long".to_owned(),
            _ => name.into_owned(),
        })
    }

    /// Offset in bytes of the first of `members` that `structure` has, looking into unnamed members too.
    pub(super) fn offset(&self, structure: &str, members: &[&str]) -> Option<u32> {
        let is_it = |(t, _): &&(Type, usize)| t.kind() == STRUCT && self.name(t.name) == structure.as_bytes();
        self.types.iter().filter(is_it).find_map(|(t, at)| self.member(*t, *at, members, 0))
    }

    /// Value of an enumerator of the enumeration `of`.
    pub(super) fn enumerator(&self, of: &str, name: &str) -> Option<u32> {
        let is_it = |(t, _): &&(Type, usize)| t.kind() == ENUM && self.name(t.name) == of.as_bytes();
        self.types.iter().filter(is_it).find_map(|(t, at)| {
            let bytes = self.raw.get(*at..at + t.trailing()?)?;
            // `struct btf_enum`: name and value.
            bytes.chunks_exact(8).find_map(|chunk| {
                let [found, value] = <[u32; 2]>::read_from_bytes(chunk).ok()?;
                (self.name(found) == name.as_bytes()).then_some(value)
            })
        })
    }

    fn member(&self, of: Type, at: usize, wanted: &[&str], depth: u32) -> Option<u32> {
        // C nests unnamed members a few deep; a loop in a damaged BTF must end.
        if depth > 8 {
            return None;
        }
        let bytes = self.raw.get(at..at + of.trailing()?)?;
        bytes.chunks_exact(size_of::<Member>()).find_map(|chunk| {
            let member = Member::read_from_bytes(chunk).ok()?;
            let bits = if of.info >> 31 == 1 { member.offset & 0xff_ffff } else { member.offset };
            let name = self.name(member.name);
            if wanted.iter().any(|w| w.as_bytes() == name) {
                return Some(bits / 8);
            }
            let (inner, inner_at) = *self.types.get(member.kind as usize)?;
            let unnamed = name.is_empty() && matches!(inner.kind(), STRUCT | UNION);
            unnamed.then(|| self.member(inner, inner_at, wanted, depth + 1)).flatten().map(|o| o + bits / 8)
        })
    }
}

/// `int x`, but `int *x`.
fn declare(kind: String, name: &str) -> String {
    if kind.ends_with('*') { kind + name } else { format!("{kind} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little BTF: struct s { int a; union { int b; int c; }; } with offsets 0, 8, 8 bytes.
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0c\0do_it\0e\0int\0";
        let word = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let mut types = word(&[17, 1 << 24, 4, 32]); // 1: int
        types.extend(word(&[0, UNION << 24 | 2, 4, 5, 1, 0, 7, 1, 0])); // 2: union of b and c
        types.extend(word(&[1, STRUCT << 24 | 2, 12, 3, 1, 0, 0, 2, 64])); // 3: struct s
        types.extend(word(&[9, FUNC << 24, 8])); // 4: do_it
        types.extend(word(&[15, ENUM << 24 | 2, 4, 3, 7, 5, 8])); // 5: enum e { a = 7, b = 8 }
        types.extend(word(&[0, 10 << 24, 3])); // 6: const struct s
        types.extend(word(&[0, 2 << 24, 6])); // 7: const struct s *
        types.extend(word(&[0, FUNC_PROTO << 24 | 2, 7, 3, 7, 5, 1])); // 8: const struct s *(const struct s *a, int b)
        let mut raw = word(&[u32::from(MAGIC) | 1 << 16, 24, 0, types.len() as u32]);
        raw.extend(word(&[types.len() as u32, strings.len() as u32]));
        raw.extend(types);
        raw.extend(strings);
        raw
    }

    #[test]
    fn members_are_found_by_any_of_their_names_and_through_unnamed_unions() {
        let types = Types::parse(sample()).unwrap();
        assert_eq!(types.offset("s", &["a"]), Some(0));
        assert_eq!(types.offset("s", &["nope", "c"]), Some(8));
        assert_eq!(types.offset("s", &["d"]), None);
        assert_eq!(types.offset("t", &["a"]), None);
        assert_eq!(types.prototype("do_it").unwrap(), "const struct s *do_it(const struct s *a, int b)");
        assert_eq!(types.prototype("a"), None);
        assert_eq!((types.enumerator("e", "b"), types.enumerator("e", "c")), (Some(8), None));
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = sample();
        for len in 0..whole.len() {
            if let Some(types) = Types::parse(whole[..len].to_vec()) {
                types.offset("s", &["c"]);
                types.enumerator("e", "c");
                types.prototype("do_it");
            }
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0xff;
            if let Some(types) = Types::parse(bent) {
                types.offset("s", &["c"]);
            }
        }
    }
}
