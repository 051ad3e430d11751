//! Addresses and neighbours, of both families.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use nix::libc::{RTM_GETADDR, RTM_GETNEIGH, RTM_NEWADDR, RTM_NEWNEIGH};

use super::route::wire_family;
use super::{NlError, RouteSocket};
use crate::family::is_link_local;
use crate::{Family, NetError};

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) prefix: IpNet,
    /// Whether another address of the same subnet came first; of IPv6, whether it is a temporary one.
    pub(crate) secondary: bool,
    /// Whether it stays until it is removed, rather than as long as a router announces it.
    pub(crate) permanent: bool,
    pub(crate) broadcast: Option<Ipv4Addr>,
    pub(crate) no_prefix_route: bool,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelNeighbor {
    pub(crate) ip: IpAddr,
    pub(crate) mac: Vec<u8>,
}

impl RouteSocket {
    /// The addresses of an interface that can be used beyond its link, IPv4 first, each family in the kernel's order:
    /// primary ones come before their secondaries.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<Address>, NetError> {
        let all = self.all_addresses()?.into_iter();
        Ok(all.filter(|(of, _)| *of == index).map(|(_, address)| address).collect())
    }

    /// The same of all interfaces, each with the index of its interface.
    pub(crate) fn all_addresses(&mut self) -> Result<Vec<(u32, Address)>, NetError> {
        let mut addresses = Vec::new();
        for family in Family::BOTH {
            let mut query = AddressMessage::default();
            query.header.family = wire_family(family);
            let answer = self
                .dump(RTM_GETADDR, &query)
                .map_err(|e| e.at(format!("cannot list the addresses of {}", self.place())))?;
            let found =
                answer.iter().filter_map(|address| Some((address.header.index, read_address(address)?)));
            // A kernel without IPv6 answers with what it has.
            addresses.extend(found.filter(|(_, address)| address.family() == family));
        }
        Ok(addresses)
    }

    pub(crate) fn add_address(&mut self, index: u32, address: &Address) -> Result<(), NlError> {
        let ip = address.prefix.addr();
        let mut message = AddressMessage::default();
        message.header.family = wire_family(address.family());
        message.header.prefix_len = address.prefix.prefix_len();
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
        let mut flags = AddressFlags::empty();
        if address.no_prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        if address.family() == Family::V6 {
            // Whose address it is was decided elsewhere; asking the link would only delay its first use.
            flags |= AddressFlags::Nodad;
        }
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        self.ask(RTM_NEWADDR, &message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// The permanent neighbours of an interface, IPv4 first.
    pub(crate) fn permanent_neighbors(&mut self, index: u32) -> Result<Vec<KernelNeighbor>, NetError> {
        let mut neighbors = Vec::new();
        for family in Family::BOTH {
            let mut query = NeighbourMessage::default();
            query.header.family = wire_family(family);
            let answer = self
                .dump(RTM_GETNEIGH, &query)
                .map_err(|e| e.at(format!("cannot list the neighbours of {}", self.place())))?;
            let permanent = answer.iter().filter(|neighbour| {
                neighbour.header.ifindex == index && neighbour.header.state == NeighbourState::Permanent
            });
            let found = permanent.filter_map(read_neighbor);
            neighbors.extend(found.filter(|neighbor| Family::of(neighbor.ip) == family));
        }
        Ok(neighbors)
    }

    pub(crate) fn set_permanent_neighbor(
        &mut self,
        index: u32,
        ip: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NlError> {
        let mut message = NeighbourMessage::default();
        message.header.family = wire_family(Family::of(ip));
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unspec;
        message.attributes = vec![
            NeighbourAttribute::Destination(ip.into()),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.ask(RTM_NEWNEIGH, &message, NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut broadcast = None;
    // The header has room for the first flags only.
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point address the other attribute is the far end.
    let ip = local.or(peer)?;
    // Not usable yet, or never: somebody else has it.
    let unusable = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
        && !flags.contains(AddressFlags::Optimistic);
    if is_link_local(ip) || unusable {
        return None;
    }
    Some(Address {
        prefix: IpNet::new(ip, message.header.prefix_len).ok()?,
        secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
        permanent: flags.contains(AddressFlags::Permanent),
        broadcast,
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
    })
}

fn read_neighbor(message: &NeighbourMessage) -> Option<KernelNeighbor> {
    let mut ip = None;
    let mut mac = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac.clone_from(bytes),
            _ => {}
        }
    }
    Some(KernelNeighbor { ip: ip?, mac })
}

impl Address {
    /// An address to be added; its connected route is left out when `no_prefix_route` says so.
    pub(crate) fn new(prefix: IpNet, no_prefix_route: bool) -> Self {
        Self { prefix, secondary: false, permanent: true, broadcast: None, no_prefix_route }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of_net(self.prefix)
    }
}
