#![doc = include_str!("../README.md")]

mod fault;
mod libvirtd;
mod names;
mod netns;
mod process;
mod shim;
mod snapshot;
mod wait;

pub use fault::FaultProxy;
pub use libvirtd::{Lease, Libvirtd};
pub use names::{unique, unique_ifname};
pub use netns::{Netns, require_root, run};
pub use process::ProcessGuard;
pub use shim::{AgentPlayer, PROGRAMS, ShimPlayer, process, spec};
pub use snapshot::{NamespaceState, ProcessInfo, processes, processes_matching, processes_using_namespaces};
pub use wait::{wait_for, wait_for_async};
