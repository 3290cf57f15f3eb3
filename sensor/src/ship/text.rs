//! Bytes and texts as fields hold them.
use std::fmt::Write as _;

use crate::event::Name;

/// Text of bytes for a field: the characters as they are, bytes that are no characters as `\xNN`.
pub(super) fn text(name: &Name) -> String {
    let mut text = String::new();
    for part in name.as_bytes().utf8_chunks() {
        text.push_str(part.valid());
        for byte in part.invalid() {
            // Writing to a String cannot fail.
            if write!(text, "\\x{byte:02x}").is_err() {}
        }
    }
    text
}

/// The beginning of `text` that takes at most `bytes`, in whole characters.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}
