//! The built `cloud-api-adaptor` on a node of network namespaces, with instances of the provider `local`. Needs root.

// The provider is looked up by name here too, and the linker keeps only what is named.
use cloud_providers_bundle as _;

mod cluster;
#[cfg(feature = "otlp")]
#[expect(dead_code, reason = "the tests of a life use the rest")]
#[path = "../life/collector.rs"]
mod collector;
mod command_line;
mod faults;
mod gateway;
mod handover;
#[cfg(feature = "libvirt")]
mod libvirt;
mod lost;
mod node;
mod pods;
mod refusals;
mod replay;
mod restart;
mod rewrite;
mod shims;
mod signs;
mod stops;
#[cfg(feature = "otlp")]
mod traces;
mod wire;
