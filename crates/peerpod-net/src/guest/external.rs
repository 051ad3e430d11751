//! The external network: a second interface of the guest that carries the pod's traffic to the outside, while the
//! pod's own subnets stay reachable through the tunnel.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;

use super::{contains, default_routes};
use crate::inspect::primary;
use crate::model::RouteScope;
use crate::netlink::{Address, KernelRoute, Link, RouteKind, RouteSocket};
use crate::place::Places;
use crate::{NetError, NetErrorKind, TeardownReport};

/// Interfaces that programs inside the guest made for themselves.
const VIRTUAL: [&str; 9] = ["veth", "lo", "docker", "podman", "br-", "cni", "tunl", "tun", "tap"];

/// Where clouds answer with the instance's user data, which holds the guest's key. Through an interface of the guest
/// the workload would reach them; they stay out of its sight.
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(100, 100, 100, 200)];

/// A second interface with all that is lost when it moves.
struct Second {
    link: Link,
    addresses: Vec<Address>,
    default: KernelRoute,
    /// Its other routes: those to its own subnet, and whatever makes a gateway reachable.
    routes: Vec<KernelRoute>,
}

impl Second {
    fn new(link: Link, addresses: Vec<Address>, default: KernelRoute, all: &[KernelRoute]) -> Self {
        let mut routes: Vec<_> = all
            .iter()
            .filter(|route| {
                route.kind == RouteKind::Unicast && route.link == Some(link.index) && !route.is_default()
            })
            .cloned()
            .collect();
        routes.sort_by_key(|route| route.gateway.is_some());
        Self { link, addresses, default, routes }
    }
}

/// Moves the second interface into the pod namespace and makes it the way to the outside.
pub(super) fn take(places: &mut Places, worker: Ipv4Addr) -> Result<(), NetError> {
    let Some(second) = find(&mut places.host, worker)? else {
        return Err(NetError::new(
            NetErrorKind::NoInterface,
            "external-net-via-pod-vm needs a second interface with an IPv4 address and a way out, and the guest \
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
    for route in default_routes(&earlier) {
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
            Err(e) if !matches!(e.errno(), Some(Errno::ESRCH | Errno::ENOENT)) => {
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
    let borrowed = second
        .addresses
        .iter()
        .any(|address| subnets.iter().any(|net| contains(*net, address.prefix.addr())));
    furnish(&mut places.host, second, !borrowed)
}

fn primary_subnets(host: &mut RouteSocket) -> Result<Vec<IpNet>, NetError> {
    let links = host.links()?;
    let routes = host.routes()?;
    let (first, _) = primary(&links, &routes, host.place())?;
    Ok(host.addresses(first.index)?.iter().map(Address::net).collect())
}

/// The first interface, in order of index, that leads outside and carries neither the guest nor the tunnel.
fn find(host: &mut RouteSocket, worker: Ipv4Addr) -> Result<Option<Second>, NetError> {
    let links = host.links()?;
    let routes = host.routes()?;
    let (first, first_default) = primary(&links, &routes, host.place())?;
    let (tunnel_way, _) = host.way_to(worker)?;
    let subnets = primary_subnets(host)?;
    for link in &links {
        let virtual_name = VIRTUAL.iter().any(|prefix| link.name.starts_with(prefix));
        if link.index == first.index || link.index == tunnel_way || link.loopback || virtual_name {
            continue;
        }
        let addresses = host.addresses(link.index)?;
        let Some(address) = addresses.first() else { continue };
        let own = default_routes(&routes).find(|route| route.link == Some(link.index));
        let shared = subnets.iter().any(|subnet| contains(*subnet, address.prefix.addr()));
        let default = match own {
            Some(own) => own.clone(),
            // The subnet is the same, so the gateway is on this link, too, whatever routes say.
            None if shared => {
                KernelRoute { source: None, metric: None, onlink: true, ..first_default.clone() }
            }
            None => continue,
        };
        return Ok(Some(Second::new(link.clone(), addresses, default, &routes)));
    }
    Ok(None)
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
        let Some(default) = default_routes(&routes).find(|route| route.link == Some(link.index)).cloned()
        else {
            continue;
        };
        let addresses = pod.addresses(link.index)?;
        found.push(Second::new(link, addresses, default, &routes));
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
    let mut default = KernelRoute { link: Some(link.index), ..second.default.clone() };
    if default.gateway.is_none() {
        default.scope = RouteScope::Link;
    }
    socket
        .add_route(&default)
        .map_err(|e| e.at(format!("cannot add the default route dev {name} in {place}")))
}

fn unreachable(address: Ipv4Addr) -> KernelRoute {
    let net = Ipv4Net::new_assert(address, 32);
    KernelRoute { kind: RouteKind::Unreachable, ..KernelRoute::new(net) }
}

fn hide_metadata(pod: &mut RouteSocket) -> Result<(), NetError> {
    for address in METADATA {
        match pod.add_route(&unreachable(address)) {
            Err(e) if e.errno() != Some(Errno::EEXIST) => {
                return Err(e.at(format!("cannot hide {address} from the pod in {}", pod.place())));
            }
            _ => {}
        }
    }
    Ok(())
}
