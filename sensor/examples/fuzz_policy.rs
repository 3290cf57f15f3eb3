//! A file of policies, from any bytes: no panic, no hang, and what is good stays good when it is written again.
//! `make fuzz` runs it for ten minutes, `make test` for a few seconds.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let loaded = sensor::policy::Directory::read_text(bytes, sensor::matcher::run_examples);
    for diagnostic in &loaded.diagnostics {
        assert!(!diagnostic.to_string().chars().any(char::is_control), "a message moves the cursor");
    }
    for policy in &loaded.policies {
        let text = serde_yaml::to_string(&policy.policy).unwrap_or_default();
        let again = sensor::policy::Directory::read_text(text.as_bytes(), sensor::matcher::run_examples);
        assert!(again.policies.first().is_some_and(|again| again.version == policy.version), "{text}");
    }
});

#[cfg(not(fuzzing))]
fn main() {}
