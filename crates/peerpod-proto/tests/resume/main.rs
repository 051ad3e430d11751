//! Sessions between two relays, as between gateway and forwarder, over connections that break.

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod ends;
mod levels;
mod set;
