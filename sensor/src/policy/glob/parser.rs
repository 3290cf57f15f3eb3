//! From the text of a pattern to its components: steps first, then braces multiplied out, then split at slashes.
use super::{Atom, Component, GlobError, Wild};
use crate::policy::diagnostic::shortened;

/// Longest pattern, in bytes: `PATH_MAX` of include/uapi/linux/limits.h.
const PATTERN_LIMIT: usize = 4096;
/// How deep braces may nest.
const NESTING_LIMIT: usize = 4;
/// Most patterns without braces that one with braces may stand for.
const ALTERNATIVES_LIMIT: usize = 256;
/// Most steps of all of them together, so that a short pattern cannot take much memory.
const STEPS_LIMIT: usize = 1 << 16;
/// Longest name that the kernel's own file systems give to a file (`NAME_MAX`, include/uapi/linux/limits.h).
const NAME_MAX: usize = 255;

fn error<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, GlobError> {
    Err(GlobError { message: message.into(), help: help.into() })
}

/// The patterns without braces that `text` stands for, each as components.
pub(super) fn parse(text: &str) -> Result<Vec<Vec<Component>>, GlobError> {
    if text.len() > PATTERN_LIMIT {
        let message = format!("the pattern is {} bytes long", text.len());
        return error(message, format!("at most {PATTERN_LIMIT} are allowed, as in a path"));
    }
    // What messages repeat of it.
    let shown = &shortened(text);
    if !text.starts_with('/') && !text.starts_with("**/") {
        let message = format!("'{shown}' begins with neither / nor **/");
        return error(message, format!("write '/{shown}' for one place or '**/{shown}' for any directory"));
    }
    let mut parser = Parser { rest: text.as_bytes(), depth: 0, text: shown };
    let steps = parser.sequence()?;
    if !parser.rest.is_empty() {
        return error(format!("'{shown}' closes a brace that it never opened"), "write '\\}' for a plain one");
    }
    let mut flat = vec![Vec::new()];
    let limit = ALTERNATIVES_LIMIT.min(STEPS_LIMIT / text.len());
    if !expand(&steps, &mut flat, limit) {
        let message = format!("the braces of '{shown}' stand for more than {limit} patterns");
        return error(message, "write several patterns, or * for what they have in common");
    }
    flat.iter().map(|steps| components(steps, shown)).collect()
}

/// One step of a pattern as it is written.
#[derive(Clone)]
enum Step {
    Atom(Atom),
    Slash,
    /// `**` as a whole component.
    Any,
    /// One of these.
    Either(Vec<Vec<Step>>),
}

/// Appends `steps` to every pattern of `flat`, which grows by their braces; false if to more than `limit`.
fn expand(steps: &[Step], flat: &mut Vec<Vec<Step>>, limit: usize) -> bool {
    for step in steps {
        let Step::Either(branches) = step else {
            flat.iter_mut().for_each(|pattern| pattern.push(step.clone()));
            continue;
        };
        let mut grown = Vec::new();
        for branch in branches {
            let mut with = flat.clone();
            let fits = expand(branch, &mut with, limit);
            grown.append(&mut with);
            if !fits || grown.len() > limit {
                return false;
            }
        }
        *flat = grown;
    }
    true
}

/// A pattern without braces as components.
fn components(steps: &[Step], text: &str) -> Result<Vec<Component>, GlobError> {
    let mut components = Vec::new();
    let parts: Vec<&[Step]> = steps.split(|step| matches!(step, Step::Slash)).collect();
    // The first part is what stands before the first slash: nothing, or `**`.
    let skip = usize::from(parts.first().is_some_and(|part| part.is_empty()));
    let last = parts.len() - 1;
    for (at, part) in parts.iter().enumerate().skip(skip) {
        if let [Step::Any] = part {
            // One `**` after another adds nothing but at the end, where at least one component must follow.
            if at == last || components.last() != Some(&Component::Any) {
                components.push(Component::Any);
            }
            continue;
        }
        let atoms: Vec<Atom> = part
            .iter()
            .filter_map(|step| if let Step::Atom(atom) = step { Some(atom.clone()) } else { None })
            .collect();
        if atoms.is_empty() {
            if parts.len() == 2 && at == last && skip == 1 {
                // The root directory itself.
                return Ok(components);
            }
            return no_such_name(at == last, text);
        }
        components.push(component(atoms, text)?);
    }
    Ok(components)
}

fn no_such_name<T>(at_end: bool, text: &str) -> Result<T, GlobError> {
    if at_end {
        let directory = text.trim_end_matches("/**/").trim_end_matches('/');
        return error(
            format!("'{text}' ends in '/', which no path does"),
            format!("write '{directory}/**' for what is below it"),
        );
    }
    error(format!("'{text}' has two slashes in a row, which no path has"), "write one")
}

fn component(atoms: Vec<Atom>, text: &str) -> Result<Component, GlobError> {
    let byte = |atom: &Atom| if let Atom::Byte(byte) = atom { Some(*byte) } else { None };
    let prefix: Vec<u8> = atoms.iter().map_while(byte).collect();
    let least = atoms.iter().filter(|atom| **atom != Atom::Star).count();
    if least > NAME_MAX {
        return error(
            format!("'{text}' has a component of {least} bytes and can never match"),
            format!("no file has a name longer than {NAME_MAX}"),
        );
    }
    if atoms.contains(&Atom::Byte(0)) {
        return error(format!("'{text}' has a zero byte and can never match"), "no path has one; leave it out");
    }
    if prefix.len() == atoms.len() {
        if prefix == b"." || prefix == b".." {
            let name = String::from_utf8_lossy(&prefix).into_owned();
            return error(
                format!("'{text}' has a component '{name}', which no path of the kernel has"),
                "write the real one",
            );
        }
        return Ok(Component::Literal(prefix));
    }
    let mut suffix: Vec<u8> = atoms.iter().rev().map_while(byte).collect();
    suffix.reverse();
    let mut middle = atoms.get(prefix.len()..atoms.len() - suffix.len()).unwrap_or_default().to_vec();
    middle.dedup_by(|a, b| *a == Atom::Star && *b == Atom::Star);
    Ok(Component::Wild(Wild { prefix, middle, suffix }))
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
    fn sequence(&mut self) -> Result<Vec<Step>, GlobError> {
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
                b'/' => Step::Slash,
                b'*' => Step::Atom(Atom::Star),
                b'?' => Step::Atom(Atom::One),
                b'[' => Step::Atom(self.class()?),
                b'{' => self.either()?,
                b'\\' => match self.escape()? {
                    b'/' => Step::Slash,
                    byte => Step::Atom(Atom::Byte(byte)),
                },
                byte => Step::Atom(Atom::Byte(byte)),
            });
        }
        Ok(steps)
    }

    /// `**` stands for whole components: between slashes, at the start, or after the last slash.
    fn double_star(&mut self, before: Option<&Step>) -> Result<Step, GlobError> {
        self.eat(b"**");
        let whole = matches!(before, None | Some(Step::Slash)) && matches!(self.rest.first(), None | Some(b'/'));
        if whole && self.depth == 0 {
            return Ok(Step::Any);
        }
        let message = format!("'{}' has ** next to other characters or inside braces", self.text);
        error(message, "it stands for whole components, as in '/a/**' or '/a/**/b'; write * within one")
    }

    fn class(&mut self) -> Result<Atom, GlobError> {
        let unclosed = GlobError {
            message: format!("'{}' opens a [ that it never closes", self.text),
            help: "write '\\[' for a plain one".to_owned(),
        };
        let negated = self.eat(b"!") || self.eat(b"^");
        let mut ranges = Vec::new();
        loop {
            let low = match self.next().ok_or_else(|| unclosed.clone())? {
                b']' if !ranges.is_empty() => break,
                b'\\' => self.escape()?,
                byte => byte,
            };
            let ranged = self.rest.first() == Some(&b'-') && self.rest.get(1).is_some_and(|byte| *byte != b']');
            let high = if ranged {
                self.next();
                match self.next().ok_or_else(|| unclosed.clone())? {
                    b'\\' => self.escape()?,
                    byte => byte,
                }
            } else {
                low
            };
            if low > high {
                return error(
                    format!("'{}' has a range in [ ] that runs backwards", self.text),
                    "write the lower end first",
                );
            }
            ranges.push((low, high));
        }
        let slash_only = !negated && ranges.iter().all(|range| *range == (b'/', b'/'));
        let nothing = negated && ranges.iter().any(|(low, high)| *low <= 1 && *high == 255);
        if slash_only || nothing {
            let message = format!("'{}' has a [ ] that no byte of a name is in, and can never match", self.text);
            return error(message, "a component holds no '/'; write it outside of [ ]");
        }
        Ok(Atom::Class { negated, ranges })
    }

    fn either(&mut self) -> Result<Step, GlobError> {
        self.depth += 1;
        if self.depth > NESTING_LIMIT {
            let message = format!("'{}' nests braces more than {NESTING_LIMIT} deep", self.text);
            return error(message, "write several patterns");
        }
        let mut branches = vec![self.sequence()?];
        loop {
            match self.next() {
                Some(b',') => branches.push(self.sequence()?),
                Some(_) => break,
                None => {
                    let message = format!("'{}' opens a {{ that it never closes", self.text);
                    return error(message, "write '\\{' for a plain one");
                }
            }
        }
        self.depth -= 1;
        Ok(Step::Either(branches))
    }

    fn escape(&mut self) -> Result<u8, GlobError> {
        let text = self.text;
        match self.next() {
            Some(b'x') => {
                let digits = self.rest.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
                let byte = digits.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
                let Some(byte) = byte else {
                    let message = format!("'{text}' has \\x without two hexadecimal digits");
                    return error(message, "write a byte as '\\x0a', a plain backslash as '\\\\'");
                };
                self.rest = self.rest.get(2..).unwrap_or_default();
                Ok(byte)
            }
            Some(byte) => Ok(byte),
            None => error(format!("'{text}' ends in a backslash"), "write '\\\\' for a plain one"),
        }
    }
}
