#![doc = include_str!("../README.md")]

pub mod batch;
pub mod choice;
pub mod cloud_config;
mod console;
mod context;
mod error;
#[cfg(test)]
mod fuzz;
mod id;
pub mod initdata;
mod instance;
pub mod layers;
pub mod names;
mod options;
pub mod placement;
mod provider;
mod registry;
mod request;
#[cfg(feature = "scripted")]
pub mod scripted;
pub mod tags;
mod verify;

pub use console::ConsoleTail;
pub use context::{NoRecord, OpContext, Record};
pub use error::{Cause, Error, ErrorKind, Result, Retry};
pub use id::{InstanceId, Scope, Token, Unit};
pub use instance::{Capabilities, Instance, InstanceState, Owned, OwnedList, Ownership, Resource};
pub use options::{
    EnvSource, MapEnv, Mapping, OptionKind, OptionSpec, ProcessEnv, Settings, Source, Values,
    format_go_duration, go_flags, mapping_schema, options_table, parse_bool, parse_go_duration, parse_list,
    parse_map,
};
pub use provider::{Cloud, Provider};
pub use registry::{Registration, check_registered, lookup, provider_list, registered};
pub use request::{
    Architecture, Confidential, ConfidentialType, CreateRequest, InstanceSpec, NetworkRequest, PortRequest,
    Role, UserData, VolumeRequest,
};
pub use verify::{CheckOutcome, Finding, VerifyReport};

// What the macros and implementations of provider crates need, at the versions that the contract uses.
#[doc(hidden)]
pub use inventory;
pub use {async_trait::async_trait, clap, secrecy, tokio_util::sync::CancellationToken};
