#![doc = include_str!("../README.md")]

pub mod facts;
pub mod install;
pub mod names;
pub mod object;
mod place;
pub mod rules;
pub mod writes;

pub use facts::{Facts, PodOwner};
pub use object::{PeerPod, PeerPodSpec, PeerPodStatus, Placement, crd};
pub use place::place_in;
pub use rules::{Gone, Origin, Stage};
pub use writes::Claim;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
