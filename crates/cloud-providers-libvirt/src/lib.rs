#![doc = include_str!("../README.md")]

mod client;
mod error;

/// The name under which the provider is registered.
pub const NAME: &str = "libvirt";
