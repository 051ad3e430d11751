#![doc = include_str!("../README.md")]

pub mod client;
mod conn;
pub mod envelope;
pub mod frame;
#[cfg(test)]
mod fuzz;
pub mod messages;
pub mod relay;
pub mod server;
pub mod status;
#[cfg(feature = "tls")]
pub mod tls;
pub mod wire;

pub use client::Client;
pub use relay::Relay;
pub use server::{CallContext, Server, Service};
pub use status::{Code, Status};

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
