#![doc = include_str!("../README.md")]

pub mod assess;
pub mod driver;
pub mod node;
pub mod report;
pub mod setup;
pub mod signals;
