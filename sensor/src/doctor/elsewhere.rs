//! What guests have answered of a case that cannot be tried here: docs/coverage.md and docs/coverage-arm64.md, which tests make.
use crate::event::CaptureMode;

#[cfg(not(target_arch = "aarch64"))]
const TABLE: &str = include_str!("../../../docs/coverage.md");
#[cfg(target_arch = "aarch64")]
const TABLE: &str = include_str!("../../../docs/coverage-arm64.md");

/// Major and minor number of a kernel.
pub(super) type Version = (u32, u32);

/// `6.12.57+deb13-amd64` is 6.12.
pub(super) fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The cells of a line, without those that the bars at its ends make.
fn cells(line: &str) -> impl Iterator<Item = &str> {
    line.trim_matches('|').split('|').map(str::trim)
}

/// What the guest in this mode whose kernel is the newest that is not newer, or else the oldest, has answered.
pub(super) fn answered(release: &str, mode: CaptureMode, case: &str) -> Option<String> {
    let mut lines = TABLE.lines().filter(|line| line.starts_with('|'));
    let columns = cells(lines.next()?).enumerate().filter_map(|(at, head)| {
        let (kernel, of_mode) = head.split_once(' ')?;
        Some((version(kernel)?, at)).filter(|_| of_mode == mode.to_string())
    });
    let mut columns: Vec<(Version, usize)> = columns.collect();
    columns.sort_unstable();
    let own = version(release)?;
    let like = columns.iter().rev().find(|(kernel, _)| *kernel <= own).or(columns.first());
    let ((major, minor), at) = *like?;
    let row = lines.find(|line| cells(line).next() == Some(case))?;
    Some(format!("{} in the guest of {major}.{minor}", cells(row).nth(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_that_is_most_alike_answers() {
        for (release, mode, says) in [
            ("6.12.57+deb13-amd64", CaptureMode::Fexit, Some("right (path) in the guest of 6.12")),
            ("6.10.1", CaptureMode::Fexit, Some("right (path) in the guest of 6.1")),
            ("5.4.0", CaptureMode::Fexit, Some("right (path) in the guest of 5.10")),
            ("9.9.9", CaptureMode::Fexit, Some("right (path) in the guest of 7.3")),
            ("nonsense", CaptureMode::Fexit, None),
        ] {
            assert_eq!(answered(release, mode, "open").as_deref(), says, "{release}");
        }
        assert_eq!(answered("6.12", CaptureMode::Fexit, "no such case"), None);
        assert!(answered("6.18", CaptureMode::Tracepoint, "exec").unwrap().starts_with("not seen: "));
    }
}
