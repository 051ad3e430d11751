//! The bridge, the instances' links and their addresses.
//!
//! Everything here is found again by what the kernel keeps: the bridge by name and alias, a link by its alias, which
//! carries folder, id, address, scope and token of its instance.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use cloud_providers::{Error, ErrorKind, Result};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    config::Config,
    error::io_error,
    netlink::{Netlink, is_missing},
};

/// Marks the bridge, and begins the alias of every link.
const ALIAS: &str = "peerpod-local";
/// The interface that an instance sees.
pub(crate) const GUEST_INTERFACE: &str = "eth0";

/// One link of the namespace, as far as it matters here.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) controller: Option<u32>,
    bridge: bool,
    alias: Option<String>,
    mac: Vec<u8>,
}

/// What the alias of an instance's link says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkTag {
    /// Hash of the data folder: instances of another folder are none of ours.
    pub(crate) folder: String,
    /// Id of the instance.
    pub(crate) id: String,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// The scope as tag value.
    pub(crate) scope: String,
    /// The token as tag value.
    pub(crate) token: String,
}

impl LinkTag {
    fn text(&self) -> String {
        let Self { folder, id, address, scope, token } = self;
        format!("{ALIAS} dir={folder} id={id} ip={address} scope={scope} token={token}")
    }

    fn parse(alias: &str) -> Option<Self> {
        let rest = alias.strip_prefix(ALIAS)?;
        let field = |key: &str| {
            rest.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
        };
        Some(Self {
            folder: field("dir")?,
            id: field("id")?,
            address: field("ip")?.parse().ok()?,
            scope: field("scope")?,
            token: field("token")?,
        })
    }
}

impl Link {
    /// Returns what the alias says, when the link is an instance's.
    pub(crate) fn tag(&self) -> Option<LinkTag> {
        LinkTag::parse(self.alias.as_deref()?)
    }

    fn of(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            controller: None,
            bridge: false,
            alias: None,
            mac: Vec::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::LinkInfo(infos) => {
                    link.bridge = infos.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Bridge)));
                }
                _ => {}
            }
        }
        link
    }
}

/// The network of the namespace in which the provider runs.
pub(crate) struct Network {
    netlink: Netlink,
}

impl Network {
    /// Opens the network of the calling thread's namespace.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self { netlink: Netlink::open()? })
    }

    /// Lists all links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self
            .netlink
            .dump(Message::GetLink(LinkMessage::default()))
            .map_err(|e| io_error("cannot list the links", e))?;
        let link = |m: &Message| match m {
            Message::NewLink(link) => Some(Link::of(link)),
            _ => None,
        };
        Ok(answers.iter().filter_map(link).collect())
    }

    /// Lists IPv4 addresses with the index of their link.
    fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Net)>> {
        let mut ask = AddressMessage::default();
        ask.header.family = AddressFamily::Inet;
        let answers = self
            .netlink
            .dump(Message::GetAddress(ask))
            .map_err(|e| io_error("cannot list the addresses", e))?;
        let address = |m: &Message| {
            let Message::NewAddress(m) = m else { return None };
            m.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(ip)) => {
                    Some((m.header.index, Ipv4Net::new(*ip, m.header.prefix_len).ok()?))
                }
                _ => None,
            })
        };
        Ok(answers.iter().filter_map(address).collect())
    }

    /// Checks that neither the bridge's name nor the subnet is somebody else's. Returns our bridge when it is there.
    pub(crate) fn check(&mut self, config: &Config, links: &[Link]) -> Result<Option<Link>> {
        let bridge = links.iter().find(|l| l.name == config.bridge);
        if let Some(link) = bridge
            && !is_our_bridge(link, config)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the bridge's name is taken by an interface that is not ours",
            )
            .with("interface", &link.name)
            .with("set", "LOCAL_BRIDGE"));
        }
        let subnet = config.subnet;
        for (index, net) in self.addresses()? {
            let overlaps = subnet.contains(&net.network()) || net.contains(&subnet.network());
            if bridge.is_some_and(|b| b.index == index) {
                if net.trunc() != subnet || net.addr() != config.gateway() {
                    return Err(Error::new(ErrorKind::Conflict, "the bridge serves another subnet already")
                        .with("bridge", &config.bridge)
                        .with("has", net)
                        .with("wanted", Ipv4Net::new(config.gateway(), subnet.prefix_len()).unwrap_or(subnet))
                        .with("set", "LOCAL_BRIDGE or LOCAL_SUBNET"));
                }
            } else if overlaps {
                let name = links.iter().find(|l| l.index == index).map_or("?", |l| l.name.as_str());
                return Err(Error::new(ErrorKind::Conflict, "the subnet overlaps with another interface's")
                    .with("subnet", subnet)
                    .with("interface", name)
                    .with("has", net)
                    .with("set", "LOCAL_SUBNET"));
            }
        }
        Ok(bridge.cloned())
    }

    /// Returns the index of our bridge, made and given its address where needed.
    pub(crate) fn ensure_bridge(&mut self, config: &Config, links: &[Link]) -> Result<u32> {
        let failed = |what: &str, e: io::Error| io_error(what, e).with("bridge", &config.bridge);
        let found = self.check(config, links)?;
        let (index, marked) = match found {
            Some(link) => (link.index, link.alias.is_some()),
            None => {
                let mut message = LinkMessage::default();
                message.header.flags = LinkFlags::Up;
                message.header.change_mask = LinkFlags::Up;
                message.attributes = vec![
                    LinkAttribute::IfName(config.bridge.clone()),
                    LinkAttribute::Address(bridge_mac(config).to_vec()),
                    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
                ];
                self.netlink
                    .create(Message::NewLink(message))
                    .map_err(|e| failed("cannot make the bridge", e))?;
                let made = self.link(&config.bridge)?.ok_or_else(|| {
                    Error::internal("the bridge vanished while it was made").with("bridge", &config.bridge)
                })?;
                (made.index, false)
            }
        };
        if !marked {
            self.set_alias(index, ALIAS).map_err(|e| failed("cannot mark the bridge", e))?;
        }
        match self.add_address(index, config.gateway(), config.subnet.prefix_len()) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("cannot give the bridge its address", e))
            }
            _ => Ok(index),
        }
    }

    /// Removes the bridge when it is ours and nothing is attached to it.
    pub(crate) fn remove_unused_bridge(&mut self, config: &Config) -> Result<()> {
        let links = self.links()?;
        let Some(bridge) = links.iter().find(|l| l.name == config.bridge) else { return Ok(()) };
        if !is_our_bridge(bridge, config) || links.iter().any(|l| l.controller == Some(bridge.index)) {
            return Ok(());
        }
        self.delete(bridge.index)
            .map_err(|e| io_error("cannot remove the bridge", e).with("bridge", &config.bridge))
    }

    /// Makes the link of an instance: one end on the bridge, the other as `eth0` in the namespace `netns`.
    pub(crate) fn attach(
        &mut self,
        name: &str,
        bridge: u32,
        netns: BorrowedFd<'_>,
        tag: &LinkTag,
    ) -> Result<()> {
        let failed = |what: &str, e: io::Error| io_error(what, e).with("link", name);
        // Not up yet: the kernel brings up no end of a pair that is not complete.
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(GUEST_INTERFACE.into()),
            LinkAttribute::Address(guest_mac(tag.address).to_vec()),
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
        ];
        let mut message = up(0);
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.netlink
            .create(Message::NewLink(message))
            .map_err(|e| failed("cannot make the link of the instance", e))?;
        let link = self
            .link(name)?
            .ok_or_else(|| Error::internal("the link vanished while it was made").with("link", name))?;
        self.set_alias(link.index, &tag.text()).map_err(|e| {
            // Nobody would find it again by a mark that it does not have.
            let _ = self.delete(link.index);
            failed("cannot mark the link", e)
        })
    }

    /// Tries in a fresh namespace of the calling thread whether the kernel has what instances need.
    pub(crate) fn probe(config: &Config) -> Result<()> {
        let mut network = Self::open()?;
        let links = network.links()?;
        let bridge = network.ensure_bridge(config, &links)?;
        let netns = File::open("/proc/thread-self/ns/net")
            .map_err(|e| io_error("cannot open the network namespace", e))?;
        let tag = LinkTag {
            folder: "probe".into(),
            id: "probe".into(),
            address: pick_address(config, &BTreeSet::new(), None)?,
            scope: "probe".into(),
            token: "probe".into(),
        };
        network.attach("probe", bridge, netns.as_fd(), &tag)?;
        network.configure_guest(config, tag.address)
    }

    /// Removes an instance's link; a link of that name with somebody else's alias stays.
    pub(crate) fn detach(&mut self, name: &str, folder: &str, id: &str) -> Result<()> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        // A creation that was killed between making and marking leaves no link: the namespace of its other end went
        // with it. So a link without our mark is never ours.
        if link.tag().is_none_or(|tag| tag.folder != folder || tag.id != id) {
            return Ok(());
        }
        self.delete(link.index).map_err(|e| io_error("cannot remove the link", e).with("link", name))
    }

    /// Brings up loopback.
    pub(crate) fn set_loopback_up(&mut self) -> Result<()> {
        self.netlink.change(Message::SetLink(up(1))).map_err(|e| io_error("cannot bring up loopback", e))
    }

    /// Brings up loopback and the interface of an instance. Called on a thread inside the instance's namespace.
    pub(crate) fn configure_guest(&mut self, config: &Config, address: Ipv4Addr) -> Result<()> {
        let failed = |what: &str, e: io::Error| io_error(what, e).with("address", address);
        self.set_loopback_up()?;
        let link = self
            .link(GUEST_INTERFACE)?
            .ok_or_else(|| Error::internal("the instance's interface is missing in its namespace"))?;
        self.add_address(link.index, address, config.subnet.prefix_len())
            .map_err(|e| failed("cannot give the instance its address", e))?;
        self.netlink
            .change(Message::SetLink(up(link.index)))
            .map_err(|e| failed("cannot bring up the instance's interface", e))?;
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::Inet(config.gateway())),
            RouteAttribute::Oif(link.index),
        ];
        self.netlink
            .create(Message::NewRoute(route))
            .map_err(|e| failed("cannot set the instance's default route", e))
    }

    /// Finds a link by name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::IfName(name.into()));
        match self.netlink.get(Message::GetLink(ask)) {
            Ok(answers) => Ok(answers.iter().find_map(|m| match m {
                Message::NewLink(link) => Some(Link::of(link)),
                _ => None,
            })),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(io_error("cannot look for a link", error).with("link", name)),
        }
    }

    fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfAlias(alias.into()));
        self.netlink.change(Message::SetLink(message))
    }

    fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes =
            vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
        self.netlink.create(Message::NewAddress(message))
    }

    fn delete(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.netlink.change(Message::DelLink(message)) {
            // The kernel removes the link by itself when the instance's namespace ends.
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        }
    }
}

/// Picks the lowest address that nobody has, or checks that `wanted` is one.
pub(crate) fn pick_address(
    config: &Config,
    used: &BTreeSet<Ipv4Addr>,
    wanted: Option<Ipv4Addr>,
) -> Result<Ipv4Addr> {
    let gateway = config.gateway();
    if let Some(wanted) = wanted {
        if used.contains(&wanted) {
            return Err(
                Error::new(ErrorKind::Conflict, "the address is another instance's").with("address", wanted)
            );
        }
        return Ok(wanted);
    }
    let last = config.last_address();
    config.subnet.hosts().find(|a| *a != gateway && *a <= last && !used.contains(a)).ok_or_else(|| {
        Error::new(
            ErrorKind::Capacity { zone: None, instance_type: None },
            "all addresses of the subnet are taken",
        )
        .with("subnet", config.subnet)
        .with("set", "LOCAL_SUBNET")
    })
}

fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Whether a link is a bridge of ours: by its mark or, when we were killed before we could set it, by our address.
fn is_our_bridge(link: &Link, config: &Config) -> bool {
    link.bridge
        && match &link.alias {
            Some(alias) => alias == ALIAS,
            None => link.mac == bridge_mac(config),
        }
}

/// The bridge's hardware address: fixed, so that it does not change with the links attached.
fn bridge_mac(config: &Config) -> [u8; 6] {
    mac(0x62, config.gateway())
}

/// The hardware address follows from the IP address, so that neighbours' caches stay right when an address is used
/// again by another instance.
fn guest_mac(address: Ipv4Addr) -> [u8; 6] {
    mac(0x70, address)
}

fn mac(kind: u8, address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // The first byte says: locally administered, one station.
    [0x02, kind, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use cloud_providers::Settings;

    use super::*;

    fn config(subnet: &str, reserved: &str) -> Config {
        let mut settings = Settings::new(crate::OPTIONS);
        let env = [("LOCAL_SUBNET", subnet), ("LOCAL_RESERVED_ADDRESSES", reserved)];
        settings.load_env(&cloud_providers::MapEnv::new(env));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        config
    }

    #[test]
    fn a_link_tag_survives_the_alias() {
        let tag = LinkTag {
            folder: "0123abcd".into(),
            id: "local-0123456789abcdef".into(),
            address: Ipv4Addr::new(10, 88, 0, 2),
            scope: format!("h-{}", "a".repeat(40)),
            token: "b".repeat(40),
        };
        let text = tag.text();
        assert!(text.len() < 256, "the kernel keeps 255 bytes, this is {}", text.len());
        assert_eq!(LinkTag::parse(&text), Some(tag));
        assert_eq!(LinkTag::parse("peerpod-local"), None);
        assert_eq!(LinkTag::parse("somebody else's"), None);
    }

    #[test]
    fn the_lowest_free_address_is_picked_and_the_gateway_never() {
        let config = config("192.0.2.0/29", "0");
        let mut used = BTreeSet::new();
        for last in 2..=6 {
            let address = pick_address(&config, &used, None).unwrap();
            assert_eq!(address, Ipv4Addr::new(192, 0, 2, last));
            used.insert(address);
        }
        let error = pick_address(&config, &used, None).unwrap_err();
        assert_eq!(error.kind().label(), "capacity");
        used.remove(&Ipv4Addr::new(192, 0, 2, 4));
        assert_eq!(pick_address(&config, &used, None).unwrap(), Ipv4Addr::new(192, 0, 2, 4));
        let taken = pick_address(&config, &used, Some(Ipv4Addr::new(192, 0, 2, 2))).unwrap_err();
        assert_eq!(*taken.kind(), ErrorKind::Conflict);
    }

    #[test]
    fn reserved_addresses_are_given_only_to_who_asks_for_them() {
        let config = config("192.0.2.0/29", "3");
        let mut used = BTreeSet::new();
        for last in 2..=3 {
            assert!(used.insert(pick_address(&config, &used, None).unwrap()));
            assert!(used.contains(&Ipv4Addr::new(192, 0, 2, last)));
        }
        assert_eq!(pick_address(&config, &used, None).unwrap_err().kind().label(), "capacity");
        let reserved = Ipv4Addr::new(192, 0, 2, 5);
        assert_eq!(pick_address(&config, &used, Some(reserved)).unwrap(), reserved);
    }
}
