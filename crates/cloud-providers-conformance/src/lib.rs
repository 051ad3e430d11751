#![doc = include_str!("../README.md")]

mod cases;
mod context;
mod harness;
mod interrupt;
mod logs;
mod outcome;
mod report;
mod skips;
mod suite;

pub use cases::RULES;
pub use harness::{Bounds, Effect, Fault, Feature, Found, Harness, ListFault, Refusal};
pub use outcome::{Obstacle, Offer};
pub use report::{CaseReport, Outcome, Report};
pub use suite::Suite;
