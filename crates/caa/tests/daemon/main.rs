//! The built `cloud-api-adaptor` on a node of network namespaces, with instances of the provider `local`. Needs root.

mod command_line;
mod faults;
mod node;
mod pods;
mod replay;
mod rewrite;
mod signs;
mod wire;
