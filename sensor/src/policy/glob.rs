//! The glob dialect: its one parser and what a glob compiles to.
//!
//! On bytes, case-sensitive. `*` any bytes but `/`; `?` one byte but `/`; `**` whole components; `[a-z]`, `[!a-z]`;
//! `{a,b}`; `\` takes the next character as it is; `\xNN` is one byte.
use std::fmt::Write as _;

/// Longest pattern, in bytes.
const PATTERN_LIMIT: usize = 4096;
/// How deep braces may nest.
const NESTING_LIMIT: usize = 4;

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// This byte.
    Byte(u8),
    /// Any byte but `/`.
    One,
    /// Any bytes but `/`.
    Star,
    /// A byte in, or not in, the ranges; never `/`.
    Class { negated: bool, ranges: Vec<(u8, u8)> },
    /// One of these.
    Either(Vec<Vec<Step>>),
    /// `**/`: any number of whole components, none included.
    Components,
    /// `**` at the end: at least one component.
    Below,
}

/// A parsed pattern.
#[derive(Clone, Debug)]
pub struct Glob {
    steps: Vec<Step>,
}

impl Glob {
    /// Parses `text`.
    ///
    /// # Errors
    /// One line that says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > PATTERN_LIMIT {
            return Err(format!("the pattern is {} bytes long; at most {PATTERN_LIMIT} are allowed", text.len()));
        }
        if !text.starts_with('/') && !text.starts_with("**/") {
            return Err(format!(
                "'{text}' begins with neither / nor **/; write '/{text}' for one place or '**/{text}' for any directory"
            ));
        }
        if let Some(odd) = text.split('/').skip(1).find(|part| matches!(*part, "." | "..")) {
            return Err(format!(
                "'{text}' has a component '{odd}', which no path of the kernel has; write the real one"
            ));
        }
        if text.contains("//") || text.contains("/{/") {
            return Err(format!("'{text}' has two slashes in a row, which no path has; write one"));
        }
        let mut parser = Parser { rest: text.as_bytes(), depth: 0, text };
        let steps = parser.sequence()?;
        if !parser.rest.is_empty() {
            return Err(format!("'{text}' closes a brace that it never opened; write '\\}}' for a plain one"));
        }
        if steps.len() > 1 && matches!(steps.last(), Some(Step::Byte(b'/') | Step::Components)) || text == "**/" {
            return Err(format!(
                "'{text}' ends in '/', which no path does; write '{}/**' for what is below it",
                text.trim_end_matches("/**/").trim_end_matches('/')
            ));
        }
        Ok(Self { steps })
    }

    /// The one path that it matches, if it has no wildcards.
    #[must_use]
    pub fn literal(&self) -> Option<Vec<u8>> {
        self.steps.iter().map(|step| if let Step::Byte(byte) = step { Some(*byte) } else { None }).collect()
    }

    /// The same as an anchored regular expression on bytes.
    #[must_use]
    pub fn regex(&self) -> String {
        let mut regex = r"(?s-u)\A".to_owned();
        sequence_regex(&self.steps, &mut regex);
        regex.push_str(r"\z");
        regex
    }
}

fn sequence_regex(steps: &[Step], regex: &mut String) {
    let byte = |regex: &mut String, byte: u8| {
        // Writing to a String cannot fail.
        if write!(regex, "\\x{byte:02x}").is_err() {}
    };
    for step in steps {
        match step {
            Step::Byte(b) => byte(regex, *b),
            Step::One => regex.push_str("[^/]"),
            Step::Star => regex.push_str("[^/]*"),
            Step::Class { negated, ranges } => {
                // A class never matches the separator, whatever it says.
                regex.push_str(if *negated { "[^/" } else { "[" });
                for (low, high) in ranges {
                    byte(regex, *low);
                    regex.push('-');
                    byte(regex, *high);
                }
                regex.push_str(if *negated { "]" } else { "&&[^/]]" });
            }
            Step::Either(branches) => {
                regex.push_str("(?:");
                for (at, branch) in branches.iter().enumerate() {
                    if at > 0 {
                        regex.push('|');
                    }
                    sequence_regex(branch, regex);
                }
                regex.push(')');
            }
            Step::Components => regex.push_str("(?:.*/)?"),
            Step::Below => regex.push_str(".+"),
        }
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    depth: usize,
    text: &'a str,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn eat(&mut self, text: &[u8]) -> bool {
        self.rest.strip_prefix(text).map(|rest| self.rest = rest).is_some()
    }

    /// Up to the end, or to the `,` or `}` that ends this branch of a brace.
    fn sequence(&mut self) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        while let Some(&byte) = self.rest.first() {
            if byte == b'}' || self.depth > 0 && byte == b',' {
                break;
            }
            if self.rest.starts_with(b"**") {
                steps.push(self.double_star(steps.last())?);
                continue;
            }
            self.next();
            steps.push(match byte {
                b'*' => Step::Star,
                b'?' => Step::One,
                b'[' => self.class()?,
                b'{' => self.either()?,
                b'\\' => Step::Byte(self.escape()?),
                byte => Step::Byte(byte),
            });
        }
        Ok(steps)
    }

    /// `**` stands for whole components: between slashes, at the start, or after the last slash.
    fn double_star(&mut self, before: Option<&Step>) -> Result<Step, String> {
        let whole = matches!(before, None | Some(Step::Byte(b'/') | Step::Components));
        if whole && self.depth == 0 {
            if self.eat(b"**/") {
                return Ok(Step::Components);
            }
            if self.rest == b"**" {
                self.rest = &[];
                return Ok(Step::Below);
            }
        }
        Err(format!(
            "'{}' has ** next to other characters or inside braces; it stands for whole components, as in '/a/**' or '/a/**/b'; write * within one",
            self.text
        ))
    }

    fn class(&mut self) -> Result<Step, String> {
        let unclosed = format!("'{}' opens a [ that it never closes; write '\\[' for a plain one", self.text);
        let negated = self.eat(b"!") || self.eat(b"^");
        let mut ranges = Vec::new();
        loop {
            let low = match self.next().ok_or(&unclosed)? {
                b']' if !ranges.is_empty() => return Ok(Step::Class { negated, ranges }),
                b'\\' => self.escape()?,
                byte => byte,
            };
            let ranged = self.rest.first() == Some(&b'-') && self.rest.get(1).is_some_and(|byte| *byte != b']');
            let high = if ranged {
                self.next();
                match self.next().ok_or(&unclosed)? {
                    b'\\' => self.escape()?,
                    byte => byte,
                }
            } else {
                low
            };
            if low > high {
                return Err(format!("'{}' has a range in [ ] that runs backwards", self.text));
            }
            ranges.push((low, high));
        }
    }

    fn either(&mut self) -> Result<Step, String> {
        self.depth += 1;
        if self.depth > NESTING_LIMIT {
            return Err(format!("'{}' nests braces more than {NESTING_LIMIT} deep", self.text));
        }
        let mut branches = vec![self.sequence()?];
        loop {
            match self.next() {
                Some(b',') => branches.push(self.sequence()?),
                Some(_) => break,
                None => {
                    return Err(format!(
                        "'{}' opens a {{ that it never closes; write '\\{{' for a plain one",
                        self.text
                    ));
                }
            }
        }
        self.depth -= 1;
        Ok(Step::Either(branches))
    }

    fn escape(&mut self) -> Result<u8, String> {
        let text = self.text;
        match self.next() {
            Some(b'x') => {
                let digits = self.rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
                let byte = digits.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                let byte = byte.ok_or_else(|| format!("'{text}' has \\x without two hexadecimal digits"))?;
                self.rest = self.rest.get(2..).unwrap_or_default();
                Ok(byte)
            }
            Some(byte) => Ok(byte),
            None => Err(format!("'{text}' ends in a backslash; write '\\\\' for a plain one")),
        }
    }
}

#[cfg(test)]
mod tests {
    use regex_automata::{meta, util::syntax};

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let glob = Glob::parse(pattern).unwrap();
        let syntax = syntax::Config::new().utf8(false).unicode(false);
        meta::Regex::builder().syntax(syntax).build(&glob.regex()).unwrap().is_match(path)
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
            ("/a/?", &["/a/b", "/a/\u{7f}"], &["/a/", "/a/bc", "/a//"]),
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
            ("/{a,b{1,2}}/{,x}", &["/a/", "/b1/x", "/b2/x"], &["/b/x", "/a/y"]),
            ("/a,b", &["/a,b"], &["/a"]),
            ("/.+", &["/.+"], &["/ab"]),
        ] {
            yes.iter().for_each(|path| assert!(matches(pattern, path), "{pattern} should match {path}"));
            no.iter().for_each(|path| assert!(!matches(pattern, path), "{pattern} should not match {path}"));
        }
    }

    #[test]
    fn a_bad_pattern_is_told_what_to_write_instead() {
        for (pattern, message) in [
            (
                "etc/shadow",
                "'etc/shadow' begins with neither / nor **/; write '/etc/shadow' for one place or '**/etc/shadow' for any directory",
            ),
            (
                "/a**b",
                "'/a**b' has ** next to other characters or inside braces; it stands for whole components, as in '/a/**' or '/a/**/b'; write * within one",
            ),
            ("/a/[bc", "'/a/[bc' opens a [ that it never closes; write '\\[' for a plain one"),
            ("/a/{b,c", "'/a/{b,c' opens a { that it never closes; write '\\{' for a plain one"),
            ("/a}", "'/a}' closes a brace that it never opened; write '\\}' for a plain one"),
            ("/a[z-a]", "'/a[z-a]' has a range in [ ] that runs backwards"),
            ("/a\\", "'/a\\' ends in a backslash; write '\\\\' for a plain one"),
            ("/a\\xg0", "'/a\\xg0' has \\x without two hexadecimal digits"),
            ("/a//b", "'/a//b' has two slashes in a row, which no path has; write one"),
            ("/a/../b", "'/a/../b' has a component '..', which no path of the kernel has; write the real one"),
            ("/a/**/", "'/a/**/' ends in '/', which no path does; write '/a/**' for what is below it"),
            ("/a/", "'/a/' ends in '/', which no path does; write '/a/**' for what is below it"),
            ("/{{{{{a}}}}}", "'/{{{{{a}}}}}' nests braces more than 4 deep"),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap_err(), message);
        }
    }
}
