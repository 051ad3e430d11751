#![doc = include_str!("../README.md")]

// Both attributes go when the calls of client/api.rs are written: the compiler says so then.
#[cfg_attr(not(test), expect(dead_code, reason = "the calls of client/api.rs are not written"))]
mod client;
mod cloud;
mod config;
#[cfg_attr(not(test), expect(dead_code, reason = "the calls of client/api.rs are not written"))]
mod error;
mod provider;

pub use cloud::__Type__Cloud;
pub use config::OPTIONS;
pub use provider::__Type__Provider;

/// The name under which the provider is registered.
pub const NAME: &str = "__name__";

cloud_providers::register! {
    name: NAME,
    summary: "virtual machines of __name__",
    options: OPTIONS,
    cloud: __Type__Cloud::new(),
}
