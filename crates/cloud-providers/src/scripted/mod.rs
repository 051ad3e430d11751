//! A provider in memory whose calls, delays and failures are scripted. Feature `scripted`, for tests only.
//!
//! The double has two halves, as a real provider has. [`World`] is the cloud: it keeps disks, interfaces and instances,
//! takes named remote calls, and does to each call what a test scripted. [`ScriptedProvider`] is a whole provider over
//! it that follows the contract, including what is hard: replies that never come, lists that lag behind, an undo that
//! fails. Two providers over one world are two processes over one account.
//!
//! How faithful it is: ids, names, idempotency values that are replayed (also for an instance that is gone already),
//! delayed lists with pages, disks that cannot go while attached, and machines that need time to come and go follow
//! what clouds do. It has no quota, zones, networks or images, and the order of events within one call is fixed: the
//! effect comes at the end of the call's latency, together with the reply.
//!
//! Time is tokio's, so `start_paused` tests run a minute of waiting in no time.
//!
//! ```
//! use cloud_providers::{
//!     CreateRequest, Error, ErrorKind, OpContext, Provider, Scope, Token, Unit,
//!     scripted::{Fault, ScriptedProvider, World},
//! };
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let world = World::new();
//! world.script(Fault::on("run_instance").after(Error::new(ErrorKind::Transient, "connection reset")));
//! let provider = ScriptedProvider::new(&world);
//! let unit = Unit { id: "sandbox-1".into(), name_hint: "web".into() };
//! let token = Token::new(Scope::Cluster("c1".into()), &unit.id, 1);
//! let request = CreateRequest::new(token, unit, "node-1");
//!
//! // The instance was made, but the reply was lost: nothing may stay.
//! assert!(provider.create_instance(&OpContext::new(), &request).await.is_err());
//! assert!(world.resources().is_empty());
//! # }
//! ```

mod client;
mod cloud;
mod fault;
mod provider;
mod undo;
mod world;

pub use cloud::{OPTIONS, ScriptedCloud};
pub use fault::{Fault, parse_fault};
pub use provider::ScriptedProvider;
pub use world::{Call, Gate, Lag, Outcome, Remote, World};

/// Kind of the disks that the double makes.
pub const DISK: &str = "disk";
/// Kind of the network interfaces that the double makes.
pub const INTERFACE: &str = "network_interface";
/// Kind of volumes that belong to the user.
pub const VOLUME: &str = "volume";
/// Tag that names the instance a disk or interface was made for.
pub const INSTANCE_TAG: &str = "peerpod-instance";
