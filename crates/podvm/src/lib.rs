#![doc = include_str!("../README.md")]

pub mod flags;
pub mod log;
pub mod paths;
pub mod userdata;

/// Version of the programs of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
