//! The external network: a second interface of the guest that carries the pod's traffic to the outside, while the
//! pod's own subnets stay reachable through the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;

use super::default_routes;
use crate::family::{host_net, is_link_local};
use crate::inspect::primary;
use crate::model::RouteScope;
use crate::netlink::{Address, KernelRoute, Link, NlError, RouteKind, RouteSocket};
use crate::place::Places;
use crate::{Family, NetError, NetErrorKind, TeardownReport};

/// Interfaces that programs inside the guest made for themselves.
const VIRTUAL: [&str; 9] = ["veth", "lo", "docker", "podman", "br-", "cni", "tunl", "tun", "tap"];

/// Where clouds answer with the instance's user data, which holds the guest's key. Through an interface of the guest
/// the workload would reach them; they stay out of its sight.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // AWS and Google Cloud.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// A second interface with all that is lost when it moves.
struct Second {
    link: Link,
    addresses: Vec<Address>,
    /// The ways out, at most one of each family.
    defaults: Vec<KernelRoute>,
    /// Its other routes: those to its own subnet, and whatever makes a gateway reachable.
    routes: Vec<KernelRoute>,
}

impl Second {
    fn new(link: Link, addresses: Vec<Address>, defaults: Vec<KernelRoute>, all: &[KernelRoute]) -> Self {
        let mut routes: Vec<_> = all
            .iter()
            .filter(|route| {
                // The kernel makes the one of link-local addresses again.
                route.kind == RouteKind::Unicast
                    && route.link == Some(link.index)
                    && !route.is_default()
                    && !is_link_local(route.destination.addr())
            })
            .cloned()
            .collect();
        routes.sort_by_key(|route| route.gateway.is_some());
        Self { link, addresses, defaults, routes }
    }
}

/// Moves the second interface into the pod namespace and makes it the way to the outside.
pub(super) fn take(places: &mut Places, worker: IpAddr) -> Result<(), NetError> {
    let Some(second) = find(&mut places.host, worker)? else {
        return Err(NetError::new(
            NetErrorKind::NoInterface,
            "external-net-via-pod-vm needs a second interface with an address and a way out, and the guest \
             has none (attach one, or turn the external network off)",
        ));
    };
    places
        .host
        .move_link(second.link.index, &places.pod_file)
        .map_err(|e| e.at(format!("cannot move {} to {}", second.link.name, places.pod.place())))?;
    let arranged = arrange(&mut places.pod, &second);
    if arranged.is_err()
        && let Err(e) = move_back(places, &second)
    {
        tracing::warn!(error = e.chain(), "undoing a failed external network left something");
    }
    arranged
}

fn arrange(pod: &mut RouteSocket, second: &Second) -> Result<(), NetError> {
    let earlier = pod.routes()?;
    // Of a family that has no way out here, the pod keeps the one it had.
    let replaced = |family| second.defaults.iter().any(|route| route.family() == family);
    for route in default_routes(&earlier).filter(|route| replaced(route.family())) {
        pod.delete_route(route)
            .map_err(|e| e.at(format!("cannot delete a default route of {}", pod.place())))?;
    }
    furnish(pod, second, true)?;
    hide_metadata(pod)
}

/// Takes back what an earlier run left in the pod namespace, so that a set-up starts from the same state each time.
pub(super) fn reclaim(places: &mut Places, tunnel: &str) -> Result<(), NetError> {
    for second in moved(&mut places.pod, tunnel)? {
        move_back(places, &second)?;
    }
    Ok(())
}

/// Moves every interface that is neither loopback nor tunnel back to the guest's root namespace.
pub(super) fn give_back(places: &mut Places, tunnel: &str, report: &mut TeardownReport) {
    match moved(&mut places.pod, tunnel) {
        Ok(moved) => {
            for second in moved {
                match move_back(places, &second) {
                    Ok(()) => report.note(format!("{} from {}", second.link.name, places.pod.place())),
                    Err(e) => report.problem(e),
                }
            }
        }
        Err(e) => report.problem(e),
    }
    for address in METADATA {
        match places.pod.delete_route(&unreachable(address)) {
            Err(e) if !is_absent(address, &e) => {
                report.problem(e.at(format!("cannot make {address} reachable in {}", places.pod.place())));
            }
            _ => {}
        }
    }
}

fn move_back(places: &mut Places, second: &Second) -> Result<(), NetError> {
    let name = &second.link.name;
    // Its index may have changed on the way here.
    let Some(link) = places.pod.link(name)? else { return Ok(()) };
    places
        .pod
        .move_link(link.index, &places.host_file)
        .map_err(|e| e.at(format!("cannot move {name} back to {}", places.host.place())))?;
    // In the primary interface's subnet it had borrowed the default route, which must not compete with the owner's.
    let subnets = primary_subnets(&mut places.host)?;
    let borrowed =
        second.addresses.iter().any(|address| subnets.iter().any(|net| net.contains(&address.prefix.addr())));
    furnish(&mut places.host, second, !borrowed)
}

fn primary_subnets(host: &mut RouteSocket) -> Result<Vec<IpNet>, NetError> {
    let links = host.links()?;
    let routes = host.routes()?;
    let (first, _) = primary(&links, &routes, host.place())?;
    Ok(host.addresses(first.index)?.iter().map(|address| address.prefix).collect())
}

/// The first interface, in order of index, that leads outside and carries neither the guest nor the tunnel.
fn find(host: &mut RouteSocket, worker: IpAddr) -> Result<Option<Second>, NetError> {
    let links = host.links()?;
    let routes = host.routes()?;
    let (first, _) = primary(&links, &routes, host.place())?;
    let (tunnel_way, _) = host.way_to(worker)?;
    let subnets = primary_subnets(host)?;
    for link in &links {
        let virtual_name = VIRTUAL.iter().any(|prefix| link.name.starts_with(prefix));
        if link.index == first.index || link.index == tunnel_way || link.loopback || virtual_name {
            continue;
        }
        let addresses = host.addresses(link.index)?;
        let defaults: Vec<_> = Family::BOTH
            .into_iter()
            .filter_map(|family| way_out(family, link, first, &addresses, &subnets, &routes))
            .collect();
        if !defaults.is_empty() {
            return Ok(Some(Second::new(link.clone(), addresses, defaults, &routes)));
        }
    }
    Ok(None)
}

/// The default route of an interface with an address of the family: its own, or the primary interface's when it lies in
/// the same subnet.
fn way_out(
    family: Family,
    link: &Link,
    first: &Link,
    addresses: &[Address],
    subnets: &[IpNet],
    routes: &[KernelRoute],
) -> Option<KernelRoute> {
    let address = addresses.iter().find(|address| address.family() == family)?;
    let of = |index| {
        default_routes(routes)
            .filter(move |route| route.family() == family && route.link == Some(index))
            .min_by_key(|route| route.metric.unwrap_or(0))
    };
    if let Some(own) = of(link.index) {
        return Some(own.clone());
    }
    let shared = subnets.iter().any(|subnet| subnet.contains(&address.prefix.addr()));
    // The subnet is the same, so the gateway is on this link, too, whatever routes say.
    let borrowed = of(first.index).filter(|_| shared)?;
    Some(KernelRoute { source: None, metric: None, onlink: true, ..borrowed.clone() })
}

/// The interfaces of the pod namespace that came from the guest's root namespace.
fn moved(pod: &mut RouteSocket, tunnel: &str) -> Result<Vec<Second>, NetError> {
    let links = pod.links()?;
    let routes = pod.routes()?;
    let mut found = Vec::new();
    for link in links {
        if link.loopback || link.name == tunnel || link.is_vxlan() {
            continue;
        }
        let defaults: Vec<_> =
            default_routes(&routes).filter(|route| route.link == Some(link.index)).cloned().collect();
        if defaults.is_empty() {
            continue;
        }
        let addresses = pod.addresses(link.index)?;
        found.push(Second::new(link, addresses, defaults, &routes));
    }
    Ok(found)
}

/// Gives a moved interface its addresses and routes again, the default one where wanted.
fn furnish(socket: &mut RouteSocket, second: &Second, with_default: bool) -> Result<(), NetError> {
    let place = socket.place().to_owned();
    let name = &second.link.name;
    // The index may have been taken in the new namespace; the name is what stays.
    let link = socket.link(name)?.ok_or_else(|| {
        NetError::new(NetErrorKind::NoInterface, format!("interface {name} did not arrive in {place}"))
    })?;
    for address in &second.addresses {
        socket
            .add_address(link.index, address)
            .map_err(|e| e.at(format!("cannot add {} to {name} in {place}", address.prefix)))?;
    }
    socket.set_up(link.index).map_err(|e| e.at(format!("cannot set {name} in {place} up")))?;
    for route in &second.routes {
        let route = KernelRoute { link: Some(link.index), ..route.clone() };
        match socket.add_route(&route) {
            // The kernel made it together with the address.
            Err(e) if e.errno() == Some(Errno::EEXIST) => {}
            other => other.map_err(|e| {
                e.at(format!("cannot add the route to {} dev {name} in {place}", route.destination))
            })?,
        }
    }
    if !with_default {
        return Ok(());
    }
    for default in &second.defaults {
        let mut default = KernelRoute { link: Some(link.index), ..default.clone() };
        if default.gateway.is_none() && default.family() == Family::V4 {
            default.scope = RouteScope::Link;
        }
        socket
            .add_route(&default)
            .map_err(|e| e.at(format!("cannot add the default route dev {name} in {place}")))?;
    }
    Ok(())
}

fn unreachable(address: IpAddr) -> KernelRoute {
    KernelRoute { kind: RouteKind::Unreachable, ..KernelRoute::new(host_net(address)) }
}

fn hide_metadata(pod: &mut RouteSocket) -> Result<(), NetError> {
    for address in METADATA {
        match pod.add_route(&unreachable(address)) {
            // A kernel without IPv6 has no way there either.
            Err(e) if e.errno() != Some(Errno::EEXIST) && !(address.is_ipv6() && is_without_v6(&e)) => {
                return Err(e.at(format!("cannot hide {address} from the pod in {}", pod.place())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a route that could not be deleted is not there.
fn is_absent(address: IpAddr, error: &NlError) -> bool {
    matches!(error.errno(), Some(Errno::ESRCH | Errno::ENOENT)) || (address.is_ipv6() && is_without_v6(error))
}

/// Whether the kernel has no IPv6, or has it switched off.
fn is_without_v6(error: &NlError) -> bool {
    matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EACCES))
}
