//! The messages of the services that peer pods use, written by hand after their wire definitions.
//!
//! Decoding drops fields that are not named here, so a struct is for reading a message, or for making a new one.

pub mod agent;
pub mod cdh;
pub mod health;
pub mod hypervisor;
pub mod oci;
pub mod peer;
pub mod podvminfo;
