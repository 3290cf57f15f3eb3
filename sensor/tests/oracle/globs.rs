//! Random patterns, in this project's dialect and in globset's, and paths that they match.
use fastrand::Rng;

/// Features of the dialect, in the order of their counters.
pub(crate) const FEATURES: &[&str] = &[
    "literal",
    "star",
    "one",
    "class",
    "negated class",
    "range",
    "braces",
    "nested braces",
    "braces with slash",
    "escape",
    "hex",
    "leading **",
    "middle **",
    "trailing **",
];

/// One step of a pattern.
#[derive(Clone, Debug)]
enum Step {
    Byte(u8, Spelling),
    One,
    Star,
    Class { negated: bool, ranges: Vec<(u8, u8)> },
    Either(Vec<Vec<Step>>),
}

#[derive(Clone, Copy, Debug)]
enum Spelling {
    Plain,
    Escaped,
    Hex,
}

#[derive(Clone, Debug)]
enum Part {
    Name(Vec<Step>),
    Any,
}

/// A pattern: what it looks like here and there, what it uses, and how to find a path for it.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    pub(crate) globset: String,
    /// A bit for each of [`FEATURES`].
    pub(crate) features: u32,
    parts: Vec<Part>,
}

/// Names that patterns and paths are made of: few, so that they meet often.
const NAMES: &[&str] = &[
    "a", "b", "ab", "abc", "etc", "run", "bin", "usr", "lib", "var", "lock", "x.pem", ".ssh", "id_a", "{b}", "a*",
];
/// Directories that are one and the same.
pub(crate) const SAME: &[&[&str]] = &[
    &["/run/lock", "/var/lock", "/var/run/lock"],
    &["/run", "/var/run"],
    &["/usr/bin", "/bin"],
    &["/usr/sbin", "/sbin"],
    &["/usr/lib", "/lib"],
    &["/usr/lib32", "/lib32"],
    &["/usr/lib64", "/lib64"],
    &["/usr/libx32", "/libx32"],
];

/// Bytes within names.
const BYTES: &[u8] = b"abcx.-_";

pub(crate) fn pick<'a, T: ?Sized>(rng: &mut Rng, from: &[&'a T]) -> &'a T {
    from[rng.usize(..from.len())]
}

fn byte(rng: &mut Rng, byte: u8) -> Step {
    let special = b"*?[]{}\\".contains(&byte);
    let spelling = match rng.u8(..10) {
        0 if byte != b'x' || special => Spelling::Escaped,
        1 => Spelling::Hex,
        _ if special => Spelling::Escaped,
        _ => Spelling::Plain,
    };
    Step::Byte(byte, spelling)
}

fn steps(rng: &mut Rng, depth: u8) -> Vec<Step> {
    if rng.u8(..10) < 4 {
        return pick(rng, NAMES).bytes().map(|b| byte(rng, b)).collect();
    }
    let count = rng.usize(1..4);
    (0..count).map(|_| step(rng, depth)).collect()
}

fn step(rng: &mut Rng, depth: u8) -> Step {
    match rng.u8(..10) {
        0 | 1 => Step::Star,
        2 => Step::One,
        3 | 4 => {
            // Ranges that lie around the separator, too, which no class may match.
            let ranges = (0..rng.usize(1..3)).map(|_| match rng.u8(..4) {
                0 => (b'a', b'c'),
                1 => (b'-', b'x'),
                2 => (b'.', b'0'),
                _ => {
                    let byte = BYTES[rng.usize(..BYTES.len())];
                    (byte, byte)
                }
            });
            Step::Class { ranges: ranges.collect(), negated: rng.bool() }
        }
        5 | 6 if depth < 2 => {
            let branches = rng.usize(2..4);
            Step::Either((0..branches).map(|_| branch(rng, depth)).collect())
        }
        _ => {
            let b = BYTES[rng.usize(..BYTES.len())];
            byte(rng, b)
        }
    }
}

/// A branch of a brace, sometimes with a slash in it.
fn branch(rng: &mut Rng, depth: u8) -> Vec<Step> {
    let mut all = steps(rng, depth + 1);
    if rng.u8(..6) == 0 {
        all.push(Step::Byte(b'/', Spelling::Plain));
        all.extend(steps(rng, depth + 1));
    }
    all
}

impl Pattern {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let count = rng.usize(1..5);
        let mut parts: Vec<Part> =
            (0..count).map(|_| if rng.u8(..6) == 0 { Part::Any } else { Part::Name(steps(rng, 0)) }).collect();
        if rng.u8(..4) == 0 {
            parts.push(Part::Any);
        }
        if rng.u8(..5) == 0 {
            let group = rng.choice(SAME).unwrap();
            let names = pick(rng, group).split('/').skip(1);
            let literal = |name: &str| Part::Name(name.bytes().map(|b| Step::Byte(b, Spelling::Plain)).collect());
            parts.splice(..0, names.map(literal).collect::<Vec<_>>());
        }
        parts.dedup_by(|a, b| matches!((a, b), (Part::Any, Part::Any)));
        let bare = matches!(parts.first(), Some(Part::Any)) && parts.len() > 1 && rng.bool();
        let mut pattern = Self { text: String::new(), globset: String::new(), features: 0, parts };
        pattern.spell(bare);
        pattern
    }

    /// The pattern of one path; None if it has bytes that globset cannot spell.
    pub(crate) fn of_path(path: &[u8], rng: &mut Rng) -> Option<Self> {
        let path = std::str::from_utf8(path).ok()?;
        let parts = path.split('/').skip(1).map(|name| Part::Name(name.bytes().map(|b| byte(rng, b)).collect()));
        let mut pattern =
            Self { text: String::new(), globset: String::new(), features: 0, parts: parts.collect() };
        pattern.spell(false);
        Some(pattern)
    }

    /// Whether it has no wildcards but braces.
    pub(crate) fn is_literal(&self) -> bool {
        let wild = ["star", "one", "class", "negated class", "leading **", "middle **", "trailing **"];
        let bits = FEATURES.iter().enumerate().filter(|(_, name)| wild.contains(name)).map(|(at, _)| 1 << at);
        bits.fold(0, |all: u32, bit: u32| all | bit) & self.features == 0
    }

    fn mark(&mut self, feature: &str) {
        let at = FEATURES.iter().position(|name| *name == feature).unwrap();
        self.features |= 1 << at;
    }

    fn spell(&mut self, bare: bool) {
        let parts = self.parts.clone();
        for (at, part) in parts.iter().enumerate() {
            // All paths here are absolute, and globset would take the front of `**/x` for an empty name.
            self.globset += "/";
            if at > 0 || !bare {
                self.text += "/";
            }
            match part {
                Part::Name(steps) => self.spell_steps(steps, 0),
                Part::Any => {
                    let last = at + 1 == parts.len();
                    self.mark(if last {
                        "trailing **"
                    } else if at == 0 {
                        "leading **"
                    } else {
                        "middle **"
                    });
                    self.both("**");
                }
            }
        }
    }

    fn both(&mut self, text: &str) {
        self.text += text;
        self.globset += text;
    }

    fn spell_steps(&mut self, steps: &[Step], depth: u8) {
        for step in steps {
            match step {
                Step::Byte(byte, spelling) => self.spell_byte(*byte, *spelling, depth),
                Step::One => {
                    self.mark("one");
                    self.both("?");
                }
                Step::Star => {
                    self.mark("star");
                    // Two in a row would be something else.
                    if !self.text.ends_with('*') || self.text.ends_with("\\*") {
                        self.both("*");
                    }
                }
                Step::Class { negated, ranges } => self.spell_class(*negated, ranges),
                Step::Either(branches) => {
                    self.mark(if depth > 0 { "nested braces" } else { "braces" });
                    self.both("{");
                    for (at, branch) in branches.iter().enumerate() {
                        if at > 0 {
                            self.both(",");
                        }
                        self.spell_steps(branch, depth + 1);
                    }
                    self.both("}");
                }
            }
        }
    }

    fn spell_byte(&mut self, byte: u8, spelling: Spelling, depth: u8) {
        let c = char::from(byte);
        if byte == b'/' {
            self.mark("braces with slash");
        }
        match spelling {
            Spelling::Plain => {
                self.mark("literal");
                // A comma means something within braces only.
                self.text.push(c);
            }
            Spelling::Escaped => {
                self.mark("escape");
                self.text += &format!("\\{c}");
            }
            Spelling::Hex => {
                self.mark("hex");
                self.text += &format!("\\x{byte:02x}");
            }
        }
        let special = b"*?[]{}\\".contains(&byte) || depth > 0 && byte == b',';
        if special {
            self.globset.push('\\');
        }
        self.globset.push(c);
    }

    /// globset's classes match the separator, this project's never do.
    fn spell_class(&mut self, negated: bool, ranges: &[(u8, u8)]) {
        self.mark(if negated { "negated class" } else { "class" });
        let (mut here, mut there) = (String::new(), String::new());
        for (low, high) in ranges {
            if low < high {
                self.mark("range");
            }
            let shown = |byte: u8| {
                if b"]\\-!^".contains(&byte) {
                    format!("\\{}", char::from(byte))
                } else {
                    char::from(byte).to_string()
                }
            };
            here += &if low == high { shown(*low) } else { format!("{}-{}", shown(*low), shown(*high)) };
            // globset has no escapes in classes: every byte of the range by itself, `-` at the end.
            there
                .extend((*low..=*high).filter(|byte| *byte != b'/' && !b"]\\-!^[".contains(byte)).map(char::from));
        }
        let has = |byte: u8| ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte));
        let front = if has(b']') { "]" } else { "" };
        let back: String = b"\\!^[-".iter().filter(|byte| has(**byte)).map(|byte| char::from(*byte)).collect();
        let slash = if negated { "/" } else { "" };
        self.text += &format!("[{}{here}]", if negated { "!" } else { "" });
        self.globset += &format!("[{}{front}{there}{slash}{back}]", if negated { "!" } else { "" });
    }

    /// A path that the pattern matches, most of the time.
    pub(crate) fn path(&self, rng: &mut Rng) -> Vec<u8> {
        let mut path = Vec::new();
        for (at, part) in self.parts.iter().enumerate() {
            match part {
                Part::Name(steps) => {
                    path.push(b'/');
                    fill(steps, &mut path, rng);
                }
                Part::Any => {
                    let least = usize::from(at + 1 == self.parts.len());
                    for _ in 0..rng.usize(least..3) {
                        path.push(b'/');
                        path.extend(pick(rng, NAMES).bytes());
                    }
                }
            }
        }
        path
    }
}

fn fill(steps: &[Step], path: &mut Vec<u8>, rng: &mut Rng) {
    for step in steps {
        match step {
            Step::Byte(byte, _) => path.push(*byte),
            Step::One => path.push(*rng.choice(b"abx\xff").unwrap()),
            Step::Star => path.extend((0..rng.usize(..3)).map(|_| *rng.choice(b"ab.\xfe").unwrap())),
            Step::Class { negated: false, ranges } => {
                let (low, high) = ranges[rng.usize(..ranges.len())];
                path.push(rng.u8(low..=high));
            }
            Step::Class { .. } => path.push(*rng.choice(b"zqa").unwrap()),
            Step::Either(branches) => fill(&branches[rng.usize(..branches.len())], path, rng),
        }
    }
}

/// A path of names that patterns are made of.
pub(crate) fn random_path(rng: &mut Rng) -> Vec<u8> {
    let mut path = Vec::new();
    for _ in 0..rng.usize(1..6) {
        path.push(b'/');
        path.extend(pick(rng, NAMES).bytes());
    }
    path
}
