//! The cluster's side of the daemon, against an API server that fails as told.

mod events;
#[path = "../life/fakes.rs"]
#[allow(dead_code, reason = "another test uses all of it")]
mod fakes;
mod lives;
mod pods;
mod real;
mod records;
mod resource;
mod server;
