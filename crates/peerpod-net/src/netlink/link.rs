//! Interfaces.

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use nix::libc::{RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK};

use super::{NlError, RouteSocket};
use crate::{Counters, Family, NetError};

const LOOPBACK: u32 = 1;
/// Where nothing ever answers. A device without a peer would be taken for one of IPv4.
const NO_PEER: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0);

/// An interface as the kernel describes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// What kind of virtual interface it is; empty for hardware.
    pub(crate) kind: String,
    pub(crate) loopback: bool,
    pub(crate) vxlan_id: Option<u32>,
    pub(crate) vxlan_port: Option<u16>,
    /// Whether the packets of a tunnel device travel over IPv6.
    pub(crate) vxlan_v6: bool,
    /// Index of the bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    pub(crate) counters: Counters,
}

impl Link {
    pub(crate) fn is_vxlan(&self) -> bool {
        self.kind == "vxlan"
    }

    /// Whether this is the tunnel device with that id and port.
    pub(crate) fn is_tunnel(&self, vni: u32, port: u16) -> bool {
        self.vxlan_id == Some(vni) && self.vxlan_port == Some(port)
    }

    fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Stats64(stats) => {
                    link.counters = Counters {
                        rx_packets: stats.rx_packets,
                        tx_packets: stats.tx_packets,
                        rx_bytes: stats.rx_bytes,
                        tx_bytes: stats.tx_bytes,
                    };
                }
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                _ => {}
            }
        }
        link
    }

    fn read_info(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = kind.to_string(),
                LinkInfo::Data(InfoData::Vxlan(values)) => {
                    for value in values {
                        match value {
                            InfoVxlan::Id(id) => self.vxlan_id = Some(id),
                            InfoVxlan::Port(port) => self.vxlan_port = Some(port),
                            InfoVxlan::Group6(_) | InfoVxlan::Local6(_) => self.vxlan_v6 = true,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A tunnel device to be made.
pub(crate) struct NewVxlan<'a> {
    pub(crate) name: &'a str,
    pub(crate) id: u32,
    pub(crate) port: u16,
    /// The family its packets travel over.
    pub(crate) family: Family,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: Option<u32>,
    /// Where the device appears. Its packets travel in the namespace of the socket that makes it.
    pub(crate) namespace: &'a File,
}

impl RouteSocket {
    /// All interfaces, without what they counted: that is most of what the kernel would have to tell.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let answer = self
            .dump(RTM_GETLINK, &message)
            .map_err(|e| e.at(format!("cannot list the interfaces of {}", self.place())))?;
        Ok(answer.into_iter().map(Link::from_message).collect())
    }

    /// The interface of that name. The kernel looks it up: a node has as many others as pods.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.ask(RTM_GETLINK, &message, 0) {
            // An interface may have other names beside its own, by which it is found, too.
            Ok(answer) => Ok(answer.into_iter().map(Link::from_message).find(|link| link.name == name)),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e.at(format!("cannot look for interface {name} of {}", self.place()))),
        }
    }

    /// Makes a tunnel device directly in its namespace: the underlay is the namespace of this socket.
    pub(crate) fn create_vxlan(&mut self, new: &NewVxlan<'_>) -> Result<(), NlError> {
        let mut data = vec![
            InfoVxlan::Id(new.id),
            // Everything the tunnel carries goes to its one peer; learning from packets would let others join.
            InfoVxlan::Learning(false),
            InfoVxlan::Port(new.port),
        ];
        let no_peer = (new.family == Family::V6).then_some(IpAddr::V6(NO_PEER));
        data.extend(new.remote.or(no_peer).map(group));
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(new.name.to_owned()),
            LinkAttribute::NetNsFd(new.namespace.as_raw_fd()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ];
        message.attributes.extend(new.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.extend(new.mtu.map(LinkAttribute::Mtu));
        self.ask(RTM_NEWLINK, &message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Points a tunnel device at its peer, in place of any earlier one.
    pub(crate) fn set_vxlan_remote(&mut self, index: u32, remote: IpAddr) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![group(remote)])),
        ])];
        // Not "set link": that request leaves the data of a link's kind alone.
        self.ask(RTM_NEWLINK, &message, 0).map(drop)
    }

    /// Makes a bridge.
    pub(crate) fn create_bridge(&mut self, name: &str) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.ask(RTM_NEWLINK, &message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Makes an interface a port of a bridge.
    pub(crate) fn set_controller(&mut self, index: u32, bridge: u32) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Controller(bridge)];
        self.ask(RTM_SETLINK, &message, 0).map(drop)
    }

    /// Gives an interface that is down another name.
    pub(crate) fn rename_link(&mut self, index: u32, name: &str) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.ask(RTM_SETLINK, &message, 0).map(drop)
    }

    pub(crate) fn delete_link(&mut self, index: u32) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask(RTM_DELLINK, &message, 0).map(drop)
    }

    pub(crate) fn set_up(&mut self, index: u32) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.ask(RTM_SETLINK, &message, 0).map(drop)
    }

    pub(crate) fn set_loopback_up(&mut self) -> Result<(), NetError> {
        self.set_up(LOOPBACK)
            .map_err(|e| e.at(format!("cannot set the loopback interface of {} up", self.place())))
    }

    /// Moves an interface to another namespace. It arrives down and without addresses.
    pub(crate) fn move_link(&mut self, index: u32, to: &File) -> Result<(), NlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::NetNsFd(to.as_raw_fd())];
        self.ask(RTM_SETLINK, &message, 0).map(drop)
    }
}

fn group(remote: IpAddr) -> InfoVxlan {
    match remote {
        IpAddr::V4(ip) => InfoVxlan::Group(ip),
        IpAddr::V6(ip) => InfoVxlan::Group6(ip),
    }
}
