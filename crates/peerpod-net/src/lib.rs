#![doc = include_str!("../README.md")]

mod error;
mod family;
mod filter;
#[cfg(test)]
mod fuzz;
pub mod guest;
mod inspect;
mod mac;
mod model;
mod netlink;
pub mod netns;
mod place;
mod report;
pub mod worker;

use std::path::Path;

pub use error::{NetError, NetErrorKind};
pub use family::Family;
pub use inspect::{InspectOptions, inspect};
pub use model::{
    DEFAULT_VXLAN_MIN_ID, DEFAULT_VXLAN_PORT, Neighbor, NeighborState, PodNetwork, Route, RouteProtocol,
    RouteScope, SecondFamily, TUNNEL_TYPE_VXLAN,
};
pub use report::{Counters, TeardownReport};

async fn counters_of(netns: &Path, interface: &str) -> Result<Counters, NetError> {
    let (netns, interface) = (netns.to_owned(), interface.to_owned());
    netns::on_thread("net-counters", move || {
        netns::enter(&netns::open(&netns)?, &netns)?;
        let mut socket = netlink::RouteSocket::open(format!("network namespace {}", netns.display()))?;
        let link = socket.link(&interface)?.ok_or_else(|| {
            NetError::new(
                NetErrorKind::NoInterface,
                format!("there is no interface {interface} in {}", socket.place()),
            )
        })?;
        Ok(link.counters)
    })
    .await
}
