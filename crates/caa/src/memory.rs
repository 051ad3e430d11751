//! How the allocator divides memory among threads.
#![allow(unsafe_code, reason = "the C library has no other way to limit its arenas than a call")]

use cloud_providers::EnvSource;

/// How many parts of memory the allocator of the C library makes. Its own choice is eight for each processor, and a daemon
/// has many threads that live for some milliseconds: each leaves pieces behind in the part that it used, which took half of
/// all memory after 50 starts. Two are enough for what a daemon does at the same time.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 2;

/// Limits the parts, unless whoever started the program says how many there may be. To be called before there are threads:
/// the parts that exist stay.
pub(crate) fn limit_arenas(env: &dyn EnvSource) {
    #[cfg(target_env = "gnu")]
    if !is_told_how_many(env) {
        // SAFETY: the call takes two numbers and sets a variable under the allocator's own lock.
        unsafe {
            // What it answers does not matter: a daemon that takes more memory works as well.
            nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = env;
}

/// Whether the environment sets the limit, in one of the two ways of the C library.
#[cfg(target_env = "gnu")]
fn is_told_how_many(env: &dyn EnvSource) -> bool {
    let tunables = env.variable("GLIBC_TUNABLES").unwrap_or_default();
    env.variable("MALLOC_ARENA_MAX").is_some() || tunables.contains("glibc.malloc.arena_max")
}
