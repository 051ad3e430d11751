//! The provider with a real libvirtd and real machines, as root.

#[path = "../common/mod.rs"]
mod common;
mod life;
