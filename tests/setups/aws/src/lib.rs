#![doc = include_str!("../README.md")]

mod account;
mod delete;
mod image;
mod network;
mod plan;
mod state;
mod tags;
mod worker;

pub use account::{Access, Account};
pub use delete::{Delete, leftovers};
pub use image::{ImageOptions, Uploaded};
pub use network::NetworkOptions;
pub use plan::plan;
pub use state::{Network, State};
pub use tags::Name;
pub use worker::WorkerOptions;
