#![doc = include_str!("../README.md")]

pub mod envelope;
pub mod frame;
pub mod messages;
pub mod status;
pub mod wire;
