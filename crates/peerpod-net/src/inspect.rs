//! Reads what the guest has to know of a pod's network namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::IpNet;

use crate::mac;
use crate::model::{DEFAULT_VXLAN_PORT, Neighbor, NeighborState, PodNetwork, Route, TUNNEL_TYPE_VXLAN};
use crate::netlink::{Address, KernelRoute, Link, RouteKind, RouteSocket};
use crate::place::{NODE, Places, ipv4_net};
use crate::{NetError, NetErrorKind, netns};

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

/// Reads address, routes and neighbours of the pod in `netns`, and the node address its tunnel starts from.
///
/// "The node" is the namespace of the calling thread. `vxlan_id` and `index` of the answer are 0: they are the
/// caller's to set once an id is reserved, so a failed inspection uses up no id.
///
/// # Errors
///
/// [`NetErrorKind::NetnsMissing`], [`NetErrorKind::NoDefaultRoute`] in either namespace,
/// [`NetErrorKind::NoInterface`] when `host_interface` names none, [`NetErrorKind::NoAddress`] when the tunnel or pod
/// interface has no IPv4 address, [`NetErrorKind::ManyAddresses`] when the pod interface has more than one,
/// [`NetErrorKind::Unsupported`] when it is no Ethernet interface.
pub async fn inspect(netns: &Path, opts: &InspectOptions) -> Result<PodNetwork, NetError> {
    let (netns, opts) = (netns.to_owned(), opts.clone());
    netns::on_thread("net-inspect", move || inspect_here(&netns, &opts)).await
}

fn inspect_here(netns: &Path, opts: &InspectOptions) -> Result<PodNetwork, NetError> {
    if opts.vxlan_port == 0 {
        return Err(NetError::new(NetErrorKind::InvalidInput, "the tunnel's UDP port is 0"));
    }
    let Places { mut host, mut pod, .. } = Places::open(netns, NODE)?;
    let (worker_node_ip, dedicated) = tunnel_address(&mut host, opts.host_interface.as_deref())?;

    let links = pod.links()?;
    let routes = pod.routes()?;
    let (link, default) = primary(&links, &routes, pod.place())?;
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
    let pod_ip = only_address(&pod.addresses(link.index)?, link, pod.place())?;
    let gateway = default.gateway;

    let mut network = PodNetwork {
        pod_ip: Some(pod_ip),
        pod_hw_addr: mac::format(&link.mac),
        interface: link.name.clone(),
        worker_node_ip: Some(worker_node_ip),
        tunnel_type: TUNNEL_TYPE_VXLAN.into(),
        routes: pod_routes(link, &routes),
        mtu: link.mtu,
        vxlan_port: opts.vxlan_port,
        dedicated,
        external_net_via_pod_vm: opts.external_net_via_pod_vm,
        ..PodNetwork::default()
    };
    for cidr in &opts.pod_subnet_cidrs {
        add_subnet(&mut network.routes, subnet_route(*cidr, gateway, link)?);
    }
    for neighbor in pod.permanent_neighbors(link.index)? {
        network.neighbors.push(Neighbor {
            ip: Some(IpAddr::V4(neighbor.ip)),
            hw_addr: mac::format(&neighbor.mac),
            device: link.name.clone(),
            state: NeighborState::Permanent,
        });
    }
    Ok(network)
}

/// The node address tunnels start from, and whether it is on an interface of its own.
fn tunnel_address(host: &mut RouteSocket, wanted: Option<&str>) -> Result<(IpNet, bool), NetError> {
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
    let dedicated = link.index != primary.index;
    Ok((first_address(&host.addresses(link.index)?, link, host.place())?, dedicated))
}

/// The interface of the default route with the lowest metric, and that route.
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
        .min_by_key(|(link, route)| (route.metric.unwrap_or(0), link.index))
        .ok_or_else(|| {
            NetError::new(NetErrorKind::NoDefaultRoute, format!("{place} has no IPv4 default route"))
        })
}

/// The first address of an interface; secondary ones of the same subnet come after it.
pub(crate) fn first_address(addresses: &[Address], link: &Link, place: &str) -> Result<IpNet, NetError> {
    addresses.iter().find(|address| !address.secondary).or(addresses.first()).map(Address::net).ok_or_else(
        || {
            NetError::new(
                NetErrorKind::NoAddress,
                format!("interface {} of {place} has no IPv4 address", link.name),
            )
        },
    )
}

fn only_address(addresses: &[Address], link: &Link, place: &str) -> Result<IpNet, NetError> {
    match addresses {
        [] | [_] => first_address(addresses, link, place),
        several => {
            let list: Vec<_> = several.iter().map(|address| address.prefix.to_string()).collect();
            Err(NetError::new(
                NetErrorKind::ManyAddresses,
                format!(
                    "interface {} of {place} has {} IPv4 addresses ({}), and a tunnel carries exactly one",
                    link.name,
                    several.len(),
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
            destination: IpNet::V4(route.destination),
            gateway: route.gateway.map(IpAddr::V4),
            device: link.name.clone(),
            protocol: Some(route.protocol),
            scope: route.scope,
            metric: route.metric,
            onlink: route.onlink,
            source: route.source.map(IpAddr::V4),
            mtu: route.mtu,
        })
        .collect()
}

fn subnet_route(cidr: IpNet, gateway: Option<Ipv4Addr>, link: &Link) -> Result<Route, NetError> {
    let cidr = ipv4_net(cidr, "pod subnet")?;
    let mut route = Route::new(IpNet::V4(cidr.trunc()));
    route.gateway = gateway.map(IpAddr::V4);
    route.device.clone_from(&link.name);
    Ok(route)
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
