#![doc = include_str!("../README.md")]

use cloud_providers::Result;

// A provider crate that stands only in the manifest is dropped by the linker, and its registration with it.
#[cfg(feature = "aws")]
use cloud_providers_aws as _;
#[cfg(feature = "libvirt")]
use cloud_providers_libvirt as _;
#[cfg(feature = "local")]
use cloud_providers_local as _;

/// The names of the providers of this build, sorted.
pub const COMPILED_IN: &[&str] = &[
    #[cfg(feature = "aws")]
    "aws",
    #[cfg(feature = "libvirt")]
    "libvirt",
    #[cfg(feature = "local")]
    "local",
];

/// Checks that what was compiled in is what registered. Every program calls it once at its start.
///
/// The call also keeps this crate, and with it the providers, in the program.
///
/// # Errors
///
/// [`cloud_providers::ErrorKind::Internal`] naming what is missing or was registered twice.
pub fn check() -> Result<()> {
    cloud_providers::check_registered(COMPILED_IN)
}
