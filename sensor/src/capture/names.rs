//! The names in a record: components become paths, and names that were asked for are put below where they start from.
use sensor_ebpf::{
    COMPONENT_LEN, OpenRecord, STATUS_ABOVE_CUT, STATUS_DISCONNECTED, STATUS_PATH_IS_BASE, STATUS_SHIFT,
    STATUS_TOO_LONG, Section,
};
use zerocopy::FromBytes as _;

use crate::event::Name;

/// A record of what was done to a file, or of an exec, and its body.
pub(super) struct Body<'a> {
    pub(super) record: OpenRecord,
    body: &'a [u8],
}

impl<'a> Body<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (record, body) = OpenRecord::read_from_prefix(bytes).ok()?;
        Some(Self { record, body })
    }

    pub(super) fn get(&self, section: Section) -> Option<&'a [u8]> {
        let span = self.record.sections.get(section as usize)?;
        self.body.get(usize::from(span.start)..)?.get(..usize::from(span.len))
    }
}

/// The names in a record.
pub(super) struct Paths {
    pub(super) path: Option<Name>,
    pub(super) inner: Option<Name>,
    pub(super) requested: Option<Name>,
    pub(super) target: Option<Name>,
    pub(super) target_inner: Option<Name>,
}

impl Paths {
    /// None of a record that contradicts itself.
    pub(super) fn of(body: &Body<'_>) -> Option<Self> {
        let status = body.record.status;
        let (path, target) = (body.get(Section::Path)?, body.get(Section::Target)?);
        let (requested, other) = (body.get(Section::Requested)?, body.get(Section::TargetRequested)?);
        let [path_whole, target_whole] = [assemble(path, status)?, assemble(target, status >> STATUS_SHIFT)?];
        if status & STATUS_PATH_IS_BASE != 0 {
            let joined = |base: &[u8], name: &[u8]| (!name.is_empty()).then(|| join(base, name));
            return Some(Self {
                path: None,
                inner: None,
                requested: joined(&path_whole, requested),
                target: joined(&target_whole, other),
                target_inner: None,
            });
        }
        let above = body.get(Section::Above)?;
        let inner = |bytes: &[u8], status: u32| {
            let cut = status & (STATUS_TOO_LONG | STATUS_DISCONNECTED) != 0
                || body.record.status & STATUS_ABOVE_CUT != 0;
            let inner = assemble(&[within_mount(bytes), above].concat(), 0)?;
            Some((!cut).then(|| inner.into()))
        };
        Some(Self {
            inner: inner(path, status)?,
            path: (!path_whole.is_empty()).then(|| path_whole.into()),
            requested: (!requested.is_empty()).then(|| join(b"", requested)),
            target_inner: if target.is_empty() { None } else { inner(target, status >> STATUS_SHIFT)? },
            target: (!target.is_empty()).then(|| target_whole.into()),
        })
    }
}

/// The components up to the first crossing to another mount.
fn within_mount(mut bytes: &[u8]) -> &[u8] {
    let all = bytes;
    while let Some((len, rest)) = bytes.split_first_chunk::<COMPONENT_LEN>() {
        let len = usize::from(u16::from_le_bytes(*len));
        if len == 0 {
            break;
        }
        bytes = rest.get(len..).unwrap_or_default();
    }
    all.get(..all.len() - bytes.len()).unwrap_or_default()
}

/// Joins components that come leaf first. Only a path that reached its root begins with a slash.
pub(super) fn assemble(mut bytes: &[u8], status: u32) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<COMPONENT_LEN>() {
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*len) as usize)?;
        // An empty name is a mount crossing; "/" is the name of a root that the walk met without its mount.
        if !name.is_empty() && name != b"/" {
            names.push(name);
        }
        bytes = rest;
    }
    names.reverse();
    let rooted = status & (STATUS_TOO_LONG | STATUS_DISCONNECTED) == 0;
    let mut path = if rooted { b"/".to_vec() } else { Vec::new() };
    path.extend(names.join(&b'/'));
    Some(path)
}

/// `requested` below `base`, with `.`, `..` and doubled slashes taken out by their letters alone: nothing is
/// known of symlinks on the way to a file that was not opened.
pub(super) fn join(base: &[u8], requested: &[u8]) -> Name {
    let mut names: Vec<&[u8]> = base.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
    // The base of an absolute name is the task's root, which `..` cannot leave.
    let floor = if requested.first() == Some(&b'/') { names.len() } else { 0 };
    for name in requested.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => names.truncate(names.len().saturating_sub(1).max(floor)),
            name => names.push(name),
        }
    }
    let rooted = base.first() == Some(&b'/') || base.is_empty() && requested.first() == Some(&b'/');
    let mut path = if rooted { b"/".to_vec() } else { Vec::new() };
    path.extend(names.join(&b'/'));
    path.into()
}
