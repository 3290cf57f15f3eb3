//! A pattern and paths, from any bytes: no panic, no hang, and the tree says what the components say one by one.
//! `make fuzz` runs it for ten minutes, `make test` for a few seconds.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use sensor::policy::{Glob, Patterns};
    let mut parts = bytes.split(|byte| *byte == 0);
    let texts: Vec<String> =
        parts.by_ref().take(3).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let globs: Vec<Option<Glob>> = texts.iter().map(|text| Glob::parse(text).ok()).collect();
    let good: Vec<String> =
        texts.iter().zip(&globs).filter(|(_, glob)| glob.is_some()).map(|(text, _)| text.clone()).collect();
    let Ok(together) = Patterns::compile("", &good) else { panic!("parsed one by one, but not together") };
    for glob in globs.iter().flatten() {
        let _ = glob.decided();
        // What a pattern without wildcards names, it matches.
        for path in glob.literals().into_iter().flatten() {
            assert!(together.first_match(&path).is_some(), "{}", String::from_utf8_lossy(&path));
        }
    }
    let alone: Vec<Patterns> =
        good.iter().filter_map(|text| Patterns::compile("", std::slice::from_ref(text)).ok()).collect();
    for path in parts.take(8) {
        let one_by_one = alone.iter().find_map(|pattern| pattern.first_match(path));
        assert_eq!(together.first_match(path), one_by_one, "{good:?} on {}", String::from_utf8_lossy(path));
    }
});

#[cfg(not(fuzzing))]
fn main() {}
