//! Pages for people: sections of rows whose columns are aligned, in colour on a terminal.
use std::io::IsTerminal as _;

use crate::{policy::shown, ship::paint};

/// A word of a row, with the colour that it is given on a terminal.
#[derive(Clone, Debug)]
pub(super) struct Word {
    text: String,
    color: &'static str,
}

/// Colours by what they mean (ECMA-48, SGR).
pub(super) const PLAIN: &str = "";
pub(super) const BOLD: &str = "1";
pub(super) const FAINT: &str = "2";
pub(super) const GOOD: &str = "32";
pub(super) const DOUBTFUL: &str = "33";
pub(super) const BAD: &str = "1;31";

/// A word in a colour. What others have chosen cannot move the cursor.
pub(super) fn word(color: &'static str, text: impl AsRef<str>) -> Word {
    Word { text: shown(text.as_ref()), color }
}

/// Text under construction.
pub(super) struct Page {
    color: bool,
    text: String,
}

impl Page {
    /// An empty page for standard output.
    pub(super) fn new() -> Self {
        Self { color: std::io::stdout().is_terminal(), text: String::new() }
    }

    fn put(&mut self, Word { text, color }: &Word, width: usize) {
        let padded = format!("{text:<width$}");
        self.text += &if self.color && !color.is_empty() { paint(color, &padded) } else { padded };
    }

    /// A line that begins at the margin.
    pub(super) fn line(&mut self, words: &[Word]) {
        for (at, word) in words.iter().enumerate() {
            if at > 0 {
                self.text.push(' ');
            }
            self.put(word, 0);
        }
        self.text.push('\n');
    }

    /// A heading, and rows below it of which all but the last column are as wide as the widest.
    pub(super) fn section(&mut self, heading: &str, rows: &[Vec<Word>]) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(&[word(BOLD, heading)]);
        let width = |at: usize| {
            let words = rows.iter().filter(|row| at + 1 < row.len()).filter_map(|row| row.get(at));
            words.map(|word| word.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
        for row in rows {
            for (at, word) in row.iter().enumerate() {
                self.text += "  ";
                let width = if at + 1 == row.len() { 0 } else { widths.get(at).copied().unwrap_or(0) };
                self.put(word, width);
            }
            // An empty column at the end leaves no blanks.
            self.text.truncate(self.text.trim_end_matches(' ').len());
            self.text.push('\n');
        }
    }

    /// What was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_word_and_escapes_are_shown() {
        let mut page = Page { color: false, text: String::new() };
        page.section(
            "HEAD",
            &[
                vec![word(GOOD, "a"), word(PLAIN, "one"), word(PLAIN, "last")],
                vec![word(BAD, "longer"), word(PLAIN, "\u{1b}[2J"), word(PLAIN, "")],
            ],
        );
        assert_eq!(page.text(), "HEAD\n  a       one      last\n  longer  \\x1b[2J\n");
    }
}
