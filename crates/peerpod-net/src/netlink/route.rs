//! Routes of the main table, IPv4.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteProtocol as WireProtocol, RouteScope as WireScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{NlError, RouteSocket};
use crate::NetError;
use crate::model::{RouteProtocol, RouteScope};

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
    pub(crate) destination: Ipv4Net,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Index of the interface; of the first next hop where there are several.
    pub(crate) link: Option<u32>,
    pub(crate) protocol: RouteProtocol,
    pub(crate) scope: RouteScope,
    pub(crate) metric: Option<u32>,
    pub(crate) onlink: bool,
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) mtu: Option<u32>,
}

impl KernelRoute {
    pub(crate) fn new(destination: Ipv4Net) -> Self {
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
        let mut route = Self::new(Ipv4Net::default());
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
        let mut destination = Ipv4Addr::UNSPECIFIED;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = *ip,
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some(*ip),
                RouteAttribute::Oif(index) => route.link = Some(*index),
                RouteAttribute::Priority(metric) => route.metric = Some(*metric),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some(*ip),
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
                        route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(*ip),
                            _ => None,
                        });
                    }
                }
                _ => {}
            }
        }
        if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return None;
        }
        route.destination = Ipv4Net::new(destination, header.destination_prefix_length).ok()?;
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = AddressFamily::Inet;
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
        let address = |ip: Ipv4Addr| RouteAddress::Inet(ip);
        let attributes = &mut message.attributes;
        if !self.is_default() {
            attributes.push(RouteAttribute::Destination(address(self.destination.network())));
        }
        attributes.extend(self.gateway.map(|ip| RouteAttribute::Gateway(address(ip))));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.source.map(|ip| RouteAttribute::PrefSource(address(ip))));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }
}

impl RouteSocket {
    /// The unicast and unreachable IPv4 routes of the main table.
    pub(crate) fn routes(&mut self) -> Result<Vec<KernelRoute>, NetError> {
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        let answer = self
            .dump(&RouteNetlinkMessage::GetRoute(query))
            .map_err(|e| e.at(format!("cannot list the routes of {}", self.place())))?;
        Ok(answer
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => KernelRoute::from_message(route),
                _ => None,
            })
            .collect())
    }

    pub(crate) fn add_route(&mut self, route: &KernelRoute) -> Result<(), NlError> {
        self.ask(&RouteNetlinkMessage::NewRoute(route.message()), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    pub(crate) fn delete_route(&mut self, route: &KernelRoute) -> Result<(), NlError> {
        self.ask(&RouteNetlinkMessage::DelRoute(route.message()), 0).map(drop)
    }

    /// The interface by which packets to `ip` leave, and the path MTU of the route if it has one.
    pub(crate) fn way_to(&mut self, ip: Ipv4Addr) -> Result<(u32, Option<u32>), NetError> {
        let step = format!("cannot find the way to {ip} in {}", self.place());
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        query.header.destination_prefix_length = 32;
        query.attributes = vec![RouteAttribute::Destination(IpAddr::V4(ip).into())];
        let answer = self.ask(&RouteNetlinkMessage::GetRoute(query), 0).map_err(|e| e.at(step.clone()))?;
        let mut link = None;
        let mut mtu = None;
        for message in &answer {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
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
