#![doc = include_str!("../README.md")]

mod boot;
mod client;
mod cloud;
mod config;
mod create;
mod error;
mod host;
mod look;
mod probe;
mod provider;
mod remove;
mod seed;
mod sizing;
mod verify;
mod xml;

pub use cloud::LibvirtCloud;
pub use config::OPTIONS;
pub use provider::LibvirtProvider;

/// What tests of this provider need: calls to libvirt that go wrong on purpose.
#[cfg(feature = "testing")]
pub mod testing {
    pub use crate::client::faults::{Faults, How};
}

/// The name under which the provider is registered.
pub const NAME: &str = "libvirt";

cloud_providers::register! {
    name: NAME,
    summary: "virtual machines of libvirt, on this host or another one",
    options: OPTIONS,
    cloud: LibvirtCloud::new(),
}
