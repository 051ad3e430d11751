#![doc = include_str!("../README.md")]

pub mod flags;
pub mod forwarder;
pub mod init;
pub mod log;
mod notify;
pub mod paths;
pub mod programs;
pub mod userdata;
pub mod volumes;

pub use notify::Notifier;

/// Version of the programs of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
