#![doc = include_str!("../README.md")]

// The linker drops a crate that code never names, and its registration with it.
#[cfg(feature = "local")]
use cloud_providers_local as _;

/// Names of the providers that the features chose.
pub const COMPILED_IN: &[&str] = &[
    #[cfg(feature = "local")]
    "local",
];

/// Checks that what was compiled in is what registered. Every program calls it at its start.
///
/// # Errors
///
/// [`cloud_providers::ErrorKind::Internal`] naming the providers that are missing or doubled.
pub fn check() -> cloud_providers::Result<()> {
    cloud_providers::check_registered(COMPILED_IN)
}
