//! The C library's memory: a sensor shares its node with pods that need theirs.

/// Keeps all threads to two arenas. By default each that was ever busy has its own, and what one has freed no other can use:
/// with a full spool that was 16 MiB of 83. A single one would take a quarter more time.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; it is called before there are other threads.
    #[expect(unsafe_code, reason = "only the C library can do it")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2)
    };
}

/// Gives freed memory back: the kernel's types took some 30 MiB to read and are needed no more.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions, and changes nothing that is in use.
    #[expect(unsafe_code, reason = "only the C library can do it")]
    unsafe {
        libc::malloc_trim(0)
    };
}
