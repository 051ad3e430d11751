#![doc = include_str!("../README.md")]

pub mod behaviour;
pub mod control;
pub mod ec2;
mod journal;
mod message;
mod proxy;
mod record;
mod redact;
mod rule;
mod upstream;

pub use behaviour::Behaviour;
pub use journal::{Entry, Journal};
pub use message::{Answer, Form, Request};
pub use proxy::{HttpFaultProxy, Options};
pub use record::{Conversation, Exchange};
pub use redact::LEFT_OUT;
pub use rule::{Act, Match, Moment, Rule};
pub use upstream::Upstream;
