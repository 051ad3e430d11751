#![doc = include_str!("../README.md")]

mod client;
mod config;
mod error;
mod seed;
mod sizing;
mod xml;

pub use config::OPTIONS;

/// The name under which the provider is registered.
pub const NAME: &str = "libvirt";
