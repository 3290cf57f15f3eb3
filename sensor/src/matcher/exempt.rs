//! Exceptions: who opens a watched file without an alert.
use super::{Sight, doubtful};
use crate::{
    event::{Enriched, Place, Program},
    policy::{Exempt, Patterns},
};

/// Whether the exception covers this event, its file seen so. What is unknown covers nothing.
pub(super) fn covers(exempt: &Exempt, event: &Enriched, sight: &Sight<'_>) -> bool {
    let Exempt { executables, scripts, ancestors, users, images, paths, sha256 } = exempt;
    // Of one that has moved itself, both images.
    let of_image = |patterns: &Patterns| {
        let image = |place: Place| place.container.and_then(|container| container.image.clone());
        event.places().all(|place| image(place).is_some_and(|image| patterns.matches_name(&image)))
    };
    let file = |patterns: &Patterns| {
        !doubtful(&event.event) && sight.names.iter().any(|name| patterns.first_match(name).is_some())
    };
    holds(executables, |patterns| is_program(patterns, &event.process))
        && holds(scripts, |patterns| is_script(patterns, &event.process))
        && holds(ancestors, |patterns| event.ancestors.iter().any(|program| is_program(patterns, program)))
        && holds(users, |users| event.user.is_some_and(|user| users.contains(&user)))
        && holds(images, of_image)
        && holds(paths, file)
        && holds(sha256, |sums| event.process.sha256.as_ref().is_some_and(|sum| sums.contains(sum)))
}

/// A criterion that the exception does not have holds for everybody.
fn holds<T>(criterion: &Option<T>, test: impl FnOnce(&T) -> bool) -> bool {
    criterion.as_ref().is_none_or(test)
}

/// Only a program that nobody could have put there is one by its path.
fn is_program(patterns: &Patterns, program: &Program) -> bool {
    program.trusted && program.executable.as_ref().is_some_and(|path| patterns.matches_program(path.as_bytes()))
}

fn is_script(patterns: &Patterns, program: &Program) -> bool {
    program.trusted && program.script.as_ref().is_some_and(|path| patterns.matches_program(path.as_bytes()))
}
