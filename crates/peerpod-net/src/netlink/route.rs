//! Routes of the main table, of both families.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteProtocol as WireProtocol, RouteScope as WireScope, RouteType, RouteVia,
};
use nix::libc::{RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE};

use super::{NlError, RouteSocket};
use crate::family::host_net;
use crate::model::{RouteProtocol, RouteScope};
use crate::{Family, NetError};

/// What happens to a packet that takes the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteKind {
    /// It is sent on.
    Unicast,
    /// The sender is told that there is no way.
    Unreachable,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelRoute {
    pub(crate) kind: RouteKind,
    pub(crate) destination: IpNet,
    /// Of the other family for an IPv4 destination behind an IPv6 gateway.
    pub(crate) gateway: Option<IpAddr>,
    /// Index of the interface; of the first next hop where there are several.
    pub(crate) link: Option<u32>,
    pub(crate) protocol: RouteProtocol,
    pub(crate) scope: RouteScope,
    pub(crate) metric: Option<u32>,
    pub(crate) onlink: bool,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
}

impl KernelRoute {
    pub(crate) fn new(destination: IpNet) -> Self {
        Self {
            kind: RouteKind::Unicast,
            destination,
            gateway: None,
            link: None,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            metric: None,
            onlink: false,
            source: None,
            mtu: None,
        }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of_net(self.destination)
    }

    pub(crate) fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }

    fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let kind = match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Unreachable => RouteKind::Unreachable,
            _ => return None,
        };
        let family = match header.address_family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        // What the kernel remembers of a path is no entry of the table.
        if header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut route = Self::new(family.everything());
        route.kind = kind;
        route.protocol = match header.protocol {
            WireProtocol::Boot => RouteProtocol::Boot,
            WireProtocol::Dhcp => RouteProtocol::Dhcp,
            WireProtocol::Kernel => RouteProtocol::Kernel,
            _ => RouteProtocol::Static,
        };
        route.scope = match header.scope {
            WireScope::Site => RouteScope::Site,
            WireScope::Link => RouteScope::Link,
            WireScope::Host => RouteScope::Host,
            WireScope::NoWhere => RouteScope::Nowhere,
            _ => RouteScope::Universe,
        };
        route.onlink = header.flags.contains(RouteFlags::Onlink);
        let mut table = u32::from(header.table);
        let mut destination = family.everything().addr();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = read(address).unwrap_or(destination),
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route.gateway = gateway(attribute),
                RouteAttribute::Oif(index) => route.link = Some(*index),
                RouteAttribute::Priority(metric) => route.metric = Some(*metric),
                RouteAttribute::PrefSource(address) => route.source = read(address),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::MultiPath(hops) => {
                    if let Some(hop) = hops.first() {
                        route.link = Some(hop.interface_index);
                        route.onlink |= hop.flags.contains(RouteNextHopFlags::Onlink);
                        route.gateway = hop.attributes.iter().find_map(gateway);
                    }
                }
                _ => {}
            }
        }
        if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return None;
        }
        route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = wire_family(self.family());
        header.destination_prefix_length = self.destination.prefix_len();
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.kind = match self.kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Unreachable => RouteType::Unreachable,
        };
        header.protocol = match self.protocol {
            RouteProtocol::Static => WireProtocol::Static,
            RouteProtocol::Boot => WireProtocol::Boot,
            RouteProtocol::Dhcp => WireProtocol::Dhcp,
            RouteProtocol::Kernel => WireProtocol::Kernel,
        };
        header.scope = match self.scope {
            RouteScope::Universe => WireScope::Universe,
            RouteScope::Site => WireScope::Site,
            RouteScope::Link => WireScope::Link,
            RouteScope::Host => WireScope::Host,
            RouteScope::Nowhere => WireScope::NoWhere,
        };
        if self.onlink {
            header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if !self.is_default() {
            attributes.push(RouteAttribute::Destination(self.destination.network().into()));
        }
        attributes.extend(self.gateway.map(|ip| match ip {
            IpAddr::V6(six) if self.family() == Family::V4 => RouteAttribute::Via(RouteVia::Inet6(six)),
            ip => RouteAttribute::Gateway(ip.into()),
        }));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }
}

impl RouteSocket {
    /// The unicast and unreachable routes of the main table, IPv4 first.
    pub(crate) fn routes(&mut self) -> Result<Vec<KernelRoute>, NetError> {
        let mut routes = Vec::new();
        for family in Family::BOTH {
            let mut query = RouteMessage::default();
            query.header.address_family = wire_family(family);
            let answer = self
                .dump(RTM_GETROUTE, &query)
                .map_err(|e| e.at(format!("cannot list the routes of {}", self.place())))?;
            let found = answer.iter().filter_map(KernelRoute::from_message);
            // A kernel without IPv6 answers with what it has.
            routes.extend(found.filter(|route| route.family() == family));
        }
        Ok(routes)
    }

    pub(crate) fn add_route(&mut self, route: &KernelRoute) -> Result<(), NlError> {
        self.ask(RTM_NEWROUTE, &route.message(), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    pub(crate) fn delete_route(&mut self, route: &KernelRoute) -> Result<(), NlError> {
        self.ask(RTM_DELROUTE, &route.message(), 0).map(drop)
    }

    /// The interface by which packets to `ip` leave, and the path MTU of the route if it has one.
    pub(crate) fn way_to(&mut self, ip: IpAddr) -> Result<(u32, Option<u32>), NetError> {
        let step = format!("cannot find the way to {ip} in {}", self.place());
        let mut query = RouteMessage::default();
        query.header.address_family = wire_family(Family::of(ip));
        query.header.destination_prefix_length = host_net(ip).prefix_len();
        query.attributes = vec![RouteAttribute::Destination(ip.into())];
        let answer = self.ask(RTM_GETROUTE, &query, 0).map_err(|e| e.at(step.clone()))?;
        let mut link = None;
        let mut mtu = None;
        for route in &answer {
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => link = Some(*index),
                    RouteAttribute::Metrics(metrics) => {
                        mtu = metrics.iter().find_map(|metric| match metric {
                            RouteMetric::Mtu(value) => Some(*value),
                            _ => None,
                        });
                    }
                    _ => {}
                }
            }
        }
        let link = link.ok_or_else(|| NlError::Decode("the route has no interface".into()).at(step))?;
        Ok((link, mtu))
    }
}

pub(super) fn wire_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn read(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => read(address),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
