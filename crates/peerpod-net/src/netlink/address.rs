//! Addresses and neighbours.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{NlError, RouteSocket};
use crate::NetError;

/// An IPv4 address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) prefix: Ipv4Net,
    /// Whether another address of the same subnet came first.
    pub(crate) secondary: bool,
    pub(crate) broadcast: Option<Ipv4Addr>,
    pub(crate) no_prefix_route: bool,
}

/// A permanent IPv4 neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelNeighbor {
    pub(crate) ip: Ipv4Addr,
    pub(crate) mac: Vec<u8>,
}

impl RouteSocket {
    /// The IPv4 addresses of an interface, in the kernel's order: primary ones come before their secondaries.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<Address>, NetError> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet;
        let answer = self
            .dump(&RouteNetlinkMessage::GetAddress(query))
            .map_err(|e| e.at(format!("cannot list the addresses of {}", self.place())))?;
        Ok(answer
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address) if address.header.index == index => {
                    read_address(&address)
                }
                _ => None,
            })
            .collect())
    }

    pub(crate) fn add_address(&mut self, index: u32, address: &Address) -> Result<(), NlError> {
        let ip = IpAddr::V4(address.prefix.addr());
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = address.prefix.prefix_len();
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
        if address.no_prefix_route {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
        }
        self.ask(&RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// The permanent IPv4 neighbours of an interface.
    pub(crate) fn permanent_neighbors(&mut self, index: u32) -> Result<Vec<KernelNeighbor>, NetError> {
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Inet;
        let answer = self
            .dump(&RouteNetlinkMessage::GetNeighbour(query))
            .map_err(|e| e.at(format!("cannot list the neighbours of {}", self.place())))?;
        Ok(answer
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(neighbour)
                    if neighbour.header.ifindex == index
                        && neighbour.header.state == NeighbourState::Permanent =>
                {
                    read_neighbor(&neighbour)
                }
                _ => None,
            })
            .collect())
    }

    pub(crate) fn set_permanent_neighbor(
        &mut self,
        index: u32,
        ip: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NlError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unspec;
        message.attributes = vec![
            NeighbourAttribute::Destination(ip.into()),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.ask(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut broadcast = None;
    let mut no_prefix_route = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => peer = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(flags) => no_prefix_route = flags.contains(AddressFlags::Noprefixroute),
            _ => {}
        }
    }
    // On a point-to-point address the other attribute is the far end.
    let ip = local.or(peer)?;
    Some(Address {
        prefix: Ipv4Net::new(ip, message.header.prefix_len).ok()?,
        secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
        broadcast,
        no_prefix_route,
    })
}

fn read_neighbor(message: &NeighbourMessage) -> Option<KernelNeighbor> {
    let mut ip = None;
    let mut mac = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(*v4),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac.clone_from(bytes),
            _ => {}
        }
    }
    Some(KernelNeighbor { ip: ip?, mac })
}

impl Address {
    /// An address to be added; its connected route is left out when `no_prefix_route` says so.
    pub(crate) fn new(prefix: Ipv4Net, no_prefix_route: bool) -> Self {
        Self { prefix, secondary: false, broadcast: None, no_prefix_route }
    }

    pub(crate) fn net(&self) -> IpNet {
        IpNet::V4(self.prefix)
    }
}
