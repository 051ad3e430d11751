#![doc = include_str!("../README.md")]

mod blueprint;
pub mod client;
mod cloud;
mod config;
mod create;
mod discover;
pub mod error;
mod known;
mod look;
mod owned;
mod parts;
mod provider;
mod remote;
mod remove;
#[cfg(any(test, feature = "testing"))]
pub mod scripted;
mod user_data;
mod verify;
mod volumes;

pub use cloud::AwsCloud;
pub use config::OPTIONS;
pub use provider::AwsProvider;

/// The name under which the provider is registered.
pub const NAME: &str = "aws";

cloud_providers::register! {
    name: NAME,
    summary: "instances of Amazon EC2",
    options: OPTIONS,
    cloud: AwsCloud::new(),
}
