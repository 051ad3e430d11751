//! How the allocator divides memory among threads.
#![allow(unsafe_code, reason = "the C library has no other way to limit its arenas than a call")]

/// How many parts of memory the allocator of the C library makes. Its own choice is eight for each processor, and a daemon
/// has many threads that live for some milliseconds: each leaves pieces behind in the part that it used, which took half of
/// all memory after 50 starts. Two are enough for what a daemon does at the same time.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 2;

/// Limits the parts. To be called before there are threads: the parts that exist stay.
pub(crate) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two numbers and sets a variable under the allocator's own lock.
    unsafe {
        // What it answers does not matter: a daemon that takes more memory works as well.
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
    }
}
