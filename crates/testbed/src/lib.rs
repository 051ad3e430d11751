#![doc = include_str!("../README.md")]

pub mod adapter;
mod cli;
pub mod conformance;
mod constraints;
mod contract;
pub mod document;
pub mod emulate;
pub mod find;
mod fixed;
pub mod hooks;
pub mod inventories;
mod key;
pub mod life;
pub mod machine;
mod near;
mod obtained;
mod place;
pub mod plugin;
mod pool;
mod registry;
mod reservation;
pub mod several;
pub mod ssh;
pub mod state;
pub mod userdata;

#[doc(hidden)]
pub use inventory;

pub use async_trait::async_trait;
pub use cloud_providers::{Error, ErrorKind, OpContext, Result, Retry};

pub use cli::main;
#[doc(hidden)]
pub use cli::{args::command as command_line, exits::ALL as EXITS};
pub use constraints::{Constraint, NetworkConstraints, Shape};
pub use contract::{
    Context, Event, Features, Keep, MachineStatus, NoKeep, Plan, PlannedMachine, Progress, Silent, Testbed,
};
pub use key::{Key, KeyKind};
pub use obtained::{Environment, Host, Network, Obtained, Phase, Pool, ProviderState};
pub use place::{Place, Places};
pub use pool::Family;
pub use registry::{New, Registration, lookup, registrations};
pub use reservation::{
    Access, Group, Hook, HookAction, Hooks, Machine, NetworkRequest, Point, ProviderConfig, Reservation,
    Shortage, Size, StaticHost,
};
