//! Everything that speaks netlink. The message crates are named here and nowhere else, because their types change
//! with every release.
//!
//! Requests are blocking and run on the short-lived threads of [`crate::netns`]: a socket belongs to the namespace
//! in which it was opened, for its whole life.

mod address;
mod attr;
mod link;
mod nft;
mod route;
mod socket;
mod tc;

pub(crate) use address::{Address, KernelNeighbor};
pub(crate) use link::{Link, NewVxlan};
pub(crate) use nft::{NftSocket, NftTable, Rule, RuleTarget};
pub(crate) use route::{KernelRoute, RouteKind};
pub(crate) use socket::{NlError, RouteSocket, Watch};
