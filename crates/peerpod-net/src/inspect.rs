//! Reads what the guest has to know of a pod's network namespace.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::family::{IPV6_MINIMUM_MTU, is_link_local};
use crate::mac;
use crate::model::{
    DEFAULT_VXLAN_PORT, Neighbor, NeighborState, PodNetwork, Route, RouteProtocol, SecondFamily,
    TUNNEL_TYPE_VXLAN,
};
use crate::netlink::{Address, KernelNeighbor, KernelRoute, Link, RouteKind, RouteSocket};
use crate::place::{NODE, Places};
use crate::{Family, NetError, NetErrorKind, netns};

/// The parts of a node's configuration that shape every pod's network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectOptions {
    /// Interface for the tunnels; the primary one when open.
    pub host_interface: Option<String>,
    /// Prefixes that stay reachable through the pod's own gateway when the default route goes elsewhere.
    pub pod_subnet_cidrs: Vec<IpNet>,
    /// UDP port of the tunnels.
    pub vxlan_port: u16,
    /// Whether pods reach the outside through a second interface of their guest.
    pub external_net_via_pod_vm: bool,
}

impl Default for InspectOptions {
    fn default() -> Self {
        Self {
            host_interface: None,
            pod_subnet_cidrs: Vec::new(),
            vxlan_port: DEFAULT_VXLAN_PORT,
            external_net_via_pod_vm: false,
        }
    }
}

/// A node with more addresses than this does not tell them to its guests.
const SOURCES: usize = 16;

/// Reads address, routes and neighbours of the pod in `netns`, and the node address its tunnel starts from.
///
/// "The node" is the namespace of the calling thread. `vxlan_id` and `index` of the answer are 0: they are the
/// caller's to set once an id is reserved, so a failed inspection uses up no id.
///
/// # Errors
///
/// [`NetErrorKind::NetnsMissing`], [`NetErrorKind::NoDefaultRoute`] in either namespace,
/// [`NetErrorKind::NoInterface`] when `host_interface` names none, [`NetErrorKind::NoAddress`] when the tunnel or pod
/// interface has no address, [`NetErrorKind::ManyAddresses`] when the pod interface has more than one of a family,
/// [`NetErrorKind::Unsupported`] when it is no Ethernet interface, and when a pod has an IPv6 address and the node's
/// interface has no room for IPv6 in a tunnel.
pub async fn inspect(netns: &Path, opts: &InspectOptions) -> Result<PodNetwork, NetError> {
    let (netns, opts) = (netns.to_owned(), opts.clone());
    netns::on_thread("net-inspect", move || inspect_here(&netns, &opts)).await
}

fn inspect_here(netns: &Path, opts: &InspectOptions) -> Result<PodNetwork, NetError> {
    if opts.vxlan_port == 0 {
        return Err(NetError::new(NetErrorKind::InvalidInput, "the tunnel's UDP port is 0"));
    }
    let Places { mut host, mut pod, .. } = Places::open(netns, NODE)?;
    let underlay = underlay(&mut host, opts.host_interface.as_deref())?;

    let links = pod.links()?;
    let routes = pod.routes()?;
    let (link, _) = primary(&links, &routes, pod.place())?;
    if link.mac.len() != 6 {
        return Err(NetError::new(
            NetErrorKind::Unsupported,
            format!(
                "interface {} of {} has no MAC address, and the tunnel is Ethernet",
                link.name,
                pod.place()
            ),
        ));
    }
    let addresses = pod.addresses(link.index)?;
    let neighbors = pod.permanent_neighbors(link.index)?;
    let mut families = Vec::new();
    for family in Family::BOTH {
        if let Some(address) = only_address(&addresses, family, link, pod.place())? {
            families.push(family_part(family, address, link, &routes, &neighbors, &opts.pod_subnet_cidrs));
        }
    }
    let has_v6 = families.iter().any(|part| part.pod_ip.is_some_and(|ip| Family::of_net(ip) == Family::V6));
    let mut families = families.into_iter();
    let first = families.next().ok_or_else(|| no_address(link, pod.place()))?;

    Ok(PodNetwork {
        pod_ip: first.pod_ip,
        pod_hw_addr: mac::format(&link.mac),
        interface: link.name.clone(),
        worker_addresses: underlay.sources.clone(),
        worker_node_ip: Some(underlay.address),
        tunnel_type: TUNNEL_TYPE_VXLAN.into(),
        routes: first.routes,
        neighbors: first.neighbors,
        mtu: underlay.mtu_for(link.mtu, has_v6)?,
        vxlan_port: opts.vxlan_port,
        dedicated: underlay.dedicated,
        external_net_via_pod_vm: opts.external_net_via_pod_vm,
        ipv6: families.next(),
        ..PodNetwork::default()
    })
}

/// What the pod's interface has of one family.
fn family_part(
    family: Family,
    address: IpNet,
    link: &Link,
    routes: &[KernelRoute],
    neighbors: &[KernelNeighbor],
    subnets: &[IpNet],
) -> SecondFamily {
    let routes: Vec<_> = routes.iter().filter(|route| route.family() == family).cloned().collect();
    let gateway = routes
        .iter()
        .filter(|route| route.is_default() && route.link == Some(link.index))
        .min_by_key(|route| route.metric.unwrap_or(0))
        .and_then(|route| route.gateway);
    let mut part = SecondFamily {
        pod_ip: Some(address),
        routes: pod_routes(link, &routes),
        neighbors: neighbors
            .iter()
            .filter(|neighbor| Family::of(neighbor.ip) == family)
            .map(|neighbor| Neighbor {
                ip: Some(neighbor.ip),
                hw_addr: mac::format(&neighbor.mac),
                device: link.name.clone(),
                state: NeighborState::Permanent,
            })
            .collect(),
    };
    for cidr in subnets.iter().filter(|cidr| Family::of_net(**cidr) == family) {
        add_subnet(&mut part.routes, subnet_route(*cidr, gateway, link));
    }
    part
}

/// The node's end of tunnels.
struct Underlay {
    interface: String,
    address: IpNet,
    /// [`PodNetwork::worker_addresses`].
    sources: Vec<IpAddr>,
    mtu: u32,
    /// Whether it is an interface of its own.
    dedicated: bool,
}

impl Underlay {
    /// The largest packet a pod may send: what its interface takes, and what fits through the tunnel without fragments.
    fn mtu_for(&self, pod: u32, has_v6: bool) -> Result<u32, NetError> {
        let overhead = Family::of_net(self.address).tunnel_overhead();
        let room = self.mtu.saturating_sub(overhead);
        if has_v6 && room < IPV6_MINIMUM_MTU {
            return Err(NetError::new(
                NetErrorKind::Unsupported,
                format!(
                    "the pod has an IPv6 address, and a tunnel over {} of the node, whose MTU is {}, has room for packets \
                     of {room} bytes, of the {IPV6_MINIMUM_MTU} that IPv6 needs (raise the MTU to {} or more, or give the \
                     pod IPv4 addresses only)",
                    self.interface,
                    self.mtu,
                    IPV6_MINIMUM_MTU + overhead
                ),
            ));
        }
        if room < pod {
            tracing::debug!(
                pod,
                room,
                interface = self.interface,
                "the pod's packets are made smaller for the tunnel"
            );
        }
        Ok(pod.min(room))
    }
}

fn underlay(host: &mut RouteSocket, wanted: Option<&str>) -> Result<Underlay, NetError> {
    let links = host.links()?;
    let routes = host.routes()?;
    let (primary, _) = primary(&links, &routes, host.place())?;
    let link = match wanted {
        None => primary,
        Some(name) => links.iter().find(|link| link.name == name).ok_or_else(|| {
            NetError::new(
                NetErrorKind::NoInterface,
                format!("there is no interface {name} in {} (set HOST_INTERFACE)", host.place()),
            )
        })?,
    };
    let all = host.all_addresses()?;
    let own: Vec<Address> =
        all.iter().filter(|(index, _)| *index == link.index).map(|(_, address)| address.clone()).collect();
    let address = first_address(&own, None, link, host.place())?;
    Ok(Underlay {
        interface: link.name.clone(),
        address,
        sources: sources(&links, &all, address),
        mtu: link.mtu,
        dedicated: link.index != primary.index,
    })
}

/// The addresses that packets of the tunnel may come from; none when they cannot be told beforehand.
fn sources(links: &[Link], all: &[(u32, Address)], tunnel: IpNet) -> Vec<IpAddr> {
    // Interfaces that only hold addresses, as those of services, send nothing.
    let sends =
        |index: &u32| links.iter().any(|link| link.index == *index && !link.loopback && link.kind != "dummy");
    let family = Family::of_net(tunnel);
    let of_family: Vec<&Address> = all
        .iter()
        .filter(|(index, address)| sends(index) && address.family() == family)
        .map(|(_, address)| address)
        .collect();
    // In IPv6 the mark is that of a temporary address: another one takes its place within a day.
    let changes = family == Family::V6 && of_family.iter().any(|address| address.secondary);
    if changes || of_family.len() > SOURCES {
        tracing::debug!(
            addresses = of_family.len(),
            "guests are not told where packets of the tunnel come from"
        );
        return Vec::new();
    }
    of_family.iter().map(|address| address.prefix.addr()).collect()
}

/// The interface of the default route with the lowest metric, and that route. IPv6 decides where IPv4 has none.
pub(crate) fn primary<'a>(
    links: &'a [Link],
    routes: &'a [KernelRoute],
    place: &str,
) -> Result<(&'a Link, &'a KernelRoute), NetError> {
    routes
        .iter()
        .filter(|route| route.kind == RouteKind::Unicast && route.is_default())
        .filter_map(|route| {
            let link = links.iter().find(|link| Some(link.index) == route.link)?;
            Some((link, route))
        })
        .min_by_key(|(link, route)| (route.family() == Family::V6, route.metric.unwrap_or(0), link.index))
        .ok_or_else(|| NetError::new(NetErrorKind::NoDefaultRoute, format!("{place} has no default route")))
}

/// The first address of an interface, of that family or of any, IPv4 first; secondary ones of the same subnet come
/// after it.
pub(crate) fn first_address(
    addresses: &[Address],
    family: Option<Family>,
    link: &Link,
    place: &str,
) -> Result<IpNet, NetError> {
    let mut fitting =
        addresses.iter().filter(|address| family.is_none_or(|family| address.family() == family));
    let first = fitting.clone().find(|address| !address.secondary).or_else(|| fitting.next());
    first.map(|address| address.prefix).ok_or_else(|| match family {
        Some(family) => NetError::new(
            NetErrorKind::NoAddress,
            format!("interface {} of {place} has no {family} address", link.name),
        ),
        None => no_address(link, place),
    })
}

fn no_address(link: &Link, place: &str) -> NetError {
    NetError::new(NetErrorKind::NoAddress, format!("interface {} of {place} has no address", link.name))
}

/// The address of a family, if there is one. Addresses that a router announced do not count beside one that was given.
fn only_address(
    addresses: &[Address],
    family: Family,
    link: &Link,
    place: &str,
) -> Result<Option<IpNet>, NetError> {
    let mut fitting: Vec<_> = addresses.iter().filter(|address| address.family() == family).collect();
    if family == Family::V6 && fitting.iter().any(|address| address.permanent) {
        fitting.retain(|address| address.permanent);
    }
    match fitting[..] {
        [] => Ok(None),
        [address] => Ok(Some(address.prefix)),
        _ => {
            let list: Vec<_> = fitting.iter().map(|address| address.prefix.to_string()).collect();
            Err(NetError::new(
                NetErrorKind::ManyAddresses,
                format!(
                    "interface {} of {place} has {} {family} addresses ({}), and a tunnel carries exactly one",
                    link.name,
                    list.len(),
                    list.join(", ")
                ),
            ))
        }
    }
}

/// The routes that travel to the guest, in the order of the existing programs.
fn pod_routes(link: &Link, routes: &[KernelRoute]) -> Vec<Route> {
    let mut routes = routes.to_vec();
    routes.retain(|route| {
        // Every IPv6 interface has it from its kernel, the guest's too.
        if route.protocol == RouteProtocol::Kernel && is_link_local(route.destination.addr()) {
            return false;
        }
        // The tunnel is one interface; what leaves by another stays behind with that interface.
        let ours = route.kind == RouteKind::Unicast && route.link == Some(link.index);
        if !ours {
            tracing::warn!(
                destination = %route.destination,
                interface = link.name,
                "a route of the pod is no way out of its interface and is left out"
            );
        }
        ours
    });
    routes.sort_by_key(|route| {
        (route.destination.addr(), route.destination.prefix_len(), route.metric.unwrap_or(0))
    });
    routes
        .into_iter()
        .map(|route| Route {
            destination: route.destination,
            gateway: route.gateway,
            device: link.name.clone(),
            protocol: Some(route.protocol),
            scope: route.scope,
            metric: route.metric,
            onlink: route.onlink,
            source: route.source,
            mtu: route.mtu,
        })
        .collect()
}

fn subnet_route(cidr: IpNet, gateway: Option<IpAddr>, link: &Link) -> Route {
    let mut route = Route::new(cidr.trunc());
    route.gateway = gateway;
    route.device.clone_from(&link.name);
    route
}

/// Adds the route of a pod subnet, unless the pod has one to the same destination. That one leads into the tunnel too,
/// and the existing guest program does not start with two routes to one destination.
fn add_subnet(routes: &mut Vec<Route>, route: Route) {
    if routes.iter().any(|other| other.destination == route.destination) {
        tracing::debug!(destination = %route.destination, "the pod has a route to this pod subnet already");
        return;
    }
    routes.push(route);
}

#[cfg(test)]
mod tests;
