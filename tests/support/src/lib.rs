#![doc = include_str!("../README.md")]

mod canary;
mod fault;
mod kubernetes;
mod libvirtd;
mod metrics;
mod moto;
mod names;
mod netns;
mod process;
mod shim;
mod snapshot;
mod tables;
mod wait;

pub use canary::Canaries;
pub use fault::FaultProxy;
pub use kubernetes::{
    Answer, ClusterClient, ClusterOptions, ExistingController, Part, RealCluster, Request,
    existing_definition, existing_peer_pod,
};
pub use libvirtd::{Lease, Libvirtd};
pub use metrics::{fresh_part, metrics_table};
pub use moto::{Moto, install_moto, moto_cache};
pub use names::{unique, unique_ifname};
pub use netns::{Netns, require_root, run};
pub use process::ProcessGuard;
pub use shim::{AgentPlayer, PROGRAMS, ShimPlayer, process, spec};
pub use snapshot::{NamespaceState, ProcessInfo, processes, processes_matching, processes_using_namespaces};
pub use tables::{command_table, exit_table};
pub use wait::{wait_for, wait_for_async};
