//! The guest's end of a tunnel: an interface in the pod namespace that looks like the pod's own.
//!
//! "The guest" is the namespace of the calling thread, whose primary interface the tunnel runs over.

mod external;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use crate::family::IPV6_MINIMUM_MTU;
use crate::inspect::{first_address, primary};
use crate::model::{
    DEFAULT_VXLAN_PORT, Neighbor, NeighborState, PodNetwork, Route, RouteProtocol, RouteScope,
    TUNNEL_TYPE_VXLAN,
};
use crate::netlink::{Address, KernelRoute, Link, NftSocket, RouteKind, RouteSocket, Watch};
use crate::place::{GUEST, Places, Tunnel, check_id, delete};
use crate::{Counters, Family, NetError, NetErrorKind, TeardownReport, filter, mac, netns};

/// Some clouds bring a second interface up minutes after the first.
const ADDRESS_WITHIN: Duration = Duration::from_secs(180);
/// Changes are announced; this bounds how late a cancellation or a lost announcement is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Joins the pod namespace `podns` to the pod's network on its node.
///
/// Waits, up to three minutes, until the guest has a primary interface with an address (and `host_interface` one,
/// when the tunnel is dedicated), then makes the interface and everything the pod's own had. A device left by an
/// earlier run is replaced. On failure, and when `cancel` fires or the returned future is dropped, everything made
/// is removed.
///
/// # Errors
///
/// [`NetErrorKind::InvalidInput`] and [`NetErrorKind::Unsupported`] name the field of `network` to mend;
/// [`NetErrorKind::TimedOut`] names the interface that got no address; [`NetErrorKind::IdInUse`] means that another
/// interface of the guest has the tunnel's id; [`NetErrorKind::NoInterface`] that there is no second interface for
/// the external network; [`NetErrorKind::Kernel`] names the step that was refused.
pub async fn setup(
    podns: &Path,
    network: &PodNetwork,
    host_interface: Option<&str>,
    cancel: &CancellationToken,
) -> Result<(), NetError> {
    let (podns, network) = (podns.to_owned(), network.clone());
    let host_interface = host_interface.map(str::to_owned);
    let cancel = cancel.child_token();
    let _stop_when_dropped = cancel.clone().drop_guard();
    netns::on_thread("net-guest", move || {
        let plan = Plan::check(&network)?;
        // Sockets of the guest's root namespace come before the thread moves on.
        let mut watch = Watch::open()?;
        let mut nft = NftSocket::open()?;
        let mut places = Places::open(&podns, GUEST)?;
        let wanted = network.dedicated.then_some(host_interface.as_deref()).flatten();
        if network.dedicated && wanted.is_none() {
            return Err(NetError::new(
                NetErrorKind::InvalidInput,
                "the tunnel is dedicated, but no host interface is named (set -host-interface)",
            ));
        }
        wait_for_underlay(&mut places.host, plan.family(), wanted, &mut watch, &cancel)?;
        let made = build(&mut places, &mut nft, &plan, &cancel);
        if made.is_err() {
            let mut report = TeardownReport::default();
            remove(&mut places, &plan.id(), &mut report);
            if let Err(e) = filter::remove(&mut nft, plan.vni, plan.port) {
                report.problem(e);
            }
            for problem in report.problems() {
                tracing::warn!(error = problem.chain(), "undoing a failed pod network left something");
            }
        }
        made
    })
    .await
}

/// Removes the interface of the pod namespace and the tunnel's rules, and gives a moved second interface back.
///
/// Goes on after a failed step and reports it. Repeating is safe, also when the namespace is gone.
pub async fn teardown(podns: &Path, network: &PodNetwork) -> TeardownReport {
    let (podns, id) = (podns.to_owned(), DeviceId::of(network));
    crate::report::collect("net-guest", move |report| {
        filter::remove_reporting(id.vni, id.port, report);
        match Places::open(&podns, GUEST) {
            Ok(mut places) => remove(&mut places, &id, report),
            Err(e) if e.kind() == NetErrorKind::NetnsMissing => report.namespace_is_gone(&podns),
            Err(e) => report.problem(e),
        }
    })
    .await
}

/// Reads what an interface of the pod namespace carried.
///
/// # Errors
///
/// [`NetErrorKind::NetnsMissing`], or [`NetErrorKind::NoInterface`].
pub async fn counters(podns: &Path, interface: &str) -> Result<Counters, NetError> {
    crate::counters_of(podns, interface).await
}

/// What tells a device of ours from others.
struct DeviceId {
    interface: String,
    vni: u32,
    port: u16,
    external: bool,
}

impl DeviceId {
    fn of(network: &PodNetwork) -> Self {
        Self {
            interface: network.interface.clone(),
            vni: network.vxlan_id,
            port: port_of(network),
            external: network.external_net_via_pod_vm,
        }
    }
}

fn port_of(network: &PodNetwork) -> u16 {
    if network.vxlan_port == 0 { DEFAULT_VXLAN_PORT } else { network.vxlan_port }
}

/// A checked [`PodNetwork`]: every value in the form the kernel takes.
struct Plan {
    interface: String,
    vni: u32,
    port: u16,
    worker: IpAddr,
    /// Where packets of the tunnel may come from; empty when the node did not say.
    admitted: Vec<IpAddr>,
    /// One of each family the pod has.
    addresses: Vec<IpNet>,
    mac: [u8; 6],
    mtu: u32,
    routes: Vec<KernelRoute>,
    neighbors: Vec<(IpAddr, [u8; 6])>,
    external: bool,
}

/// The addresses of the tunnel's family from which the node sends; none when it did not say.
fn admitted(worker: IpAddr, told: &[IpAddr]) -> Vec<IpAddr> {
    if told.is_empty() {
        return Vec::new();
    }
    let mut all = vec![worker];
    all.extend(told.iter().filter(|ip| **ip != worker && Family::of(**ip) == Family::of(worker)));
    all
}

impl Plan {
    fn check(network: &PodNetwork) -> Result<Self, NetError> {
        let invalid = |what: &str| NetError::new(NetErrorKind::InvalidInput, format!("pod-network: {what}"));
        if network.tunnel_type != TUNNEL_TYPE_VXLAN {
            return Err(NetError::new(
                NetErrorKind::Unsupported,
                format!("pod-network: tunnel-type {:?} is not {TUNNEL_TYPE_VXLAN:?}", network.tunnel_type),
            ));
        }
        if network.interface.is_empty() || network.interface.len() > 15 {
            return Err(invalid(&format!("interface {:?} is no interface name", network.interface)));
        }
        let port = port_of(network);
        check_id(network.vxlan_id, port)?;
        let worker = network.worker_node_ip.ok_or_else(|| invalid("worker-node-ip is not set"))?;
        let first = network.pod_ip.ok_or_else(|| invalid("podip is not set"))?;
        let mut addresses = vec![first];
        let mut routes = network.routes.clone();
        let mut neighbors = permanent(&network.neighbors)?;
        if let Some(second) = &network.ipv6 {
            let address = second.pod_ip.ok_or_else(|| invalid("podip of ipv6 is not set"))?;
            if Family::of_net(address) == Family::of_net(first) {
                return Err(invalid(&format!("podip {first} and podip {address} of ipv6 are of one family")));
            }
            addresses.push(address);
            routes.extend(second.routes.iter().cloned());
            neighbors.extend(permanent(&second.neighbors)?);
        }
        Ok(Self {
            interface: network.interface.clone(),
            vni: network.vxlan_id,
            port,
            worker: worker.addr(),
            admitted: admitted(worker.addr(), &network.worker_addresses),
            addresses,
            mac: mac::parse(&network.pod_hw_addr, "pod-hw-addr")?,
            mtu: network.mtu,
            routes: ordered(&routes, &network.interface)?,
            neighbors,
            external: network.external_net_via_pod_vm,
        })
    }

    /// The family of addresses the tunnel's packets travel over.
    fn family(&self) -> Family {
        Family::of(self.worker)
    }

    fn has_v6(&self) -> bool {
        self.addresses.iter().any(|address| Family::of_net(*address) == Family::V6)
    }

    fn has_several_to(&self, route: &KernelRoute) -> bool {
        self.routes.iter().filter(|other| other.destination == route.destination).count() > 1
    }

    fn id(&self) -> DeviceId {
        DeviceId {
            interface: self.interface.clone(),
            vni: self.vni,
            port: self.port,
            external: self.external,
        }
    }
}

/// The pod's routes in an order the kernel accepts: a gateway has to be reachable before a route names it, so those
/// without one come first, and those of IPv4 behind a gateway of IPv6 last.
fn ordered(routes: &[Route], interface: &str) -> Result<Vec<KernelRoute>, NetError> {
    let (direct, mut via): (Vec<&Route>, Vec<&Route>) =
        routes.iter().partition(|route| route.gateway.is_none());
    via.sort_by_key(|route| {
        route.destination.addr().is_ipv4() && route.gateway.is_some_and(|gateway| gateway.is_ipv6())
    });
    direct.into_iter().chain(via).map(|route| kernel_route(route, interface)).collect()
}

fn kernel_route(route: &Route, interface: &str) -> Result<KernelRoute, NetError> {
    if !route.device.is_empty() && route.device != interface {
        return Err(NetError::new(
            NetErrorKind::InvalidInput,
            format!(
                "pod-network: the route to {} uses interface {}, and the guest has only {interface}",
                route.destination, route.device
            ),
        ));
    }
    let mut made = KernelRoute::new(route.destination.trunc());
    let family = made.family();
    let mismatch = |what: &str, ip: IpAddr| {
        NetError::new(
            NetErrorKind::InvalidInput,
            format!("pod-network: the route to {} has {what} {ip}, of the other family", route.destination),
        )
    };
    // An IPv4 destination behind an IPv6 gateway is fine, the other way round there is no such thing.
    if let Some(ip) = route.gateway.filter(|ip| family == Family::V6 && ip.is_ipv4()) {
        return Err(mismatch("gateway", ip));
    }
    if let Some(ip) = route.source.filter(|ip| Family::of(*ip) != family) {
        return Err(mismatch("source", ip));
    }
    made.gateway = route.gateway;
    made.source = route.source;
    made.protocol = route.protocol.unwrap_or(RouteProtocol::Boot);
    // Without a gateway a destination is on the link, whatever the node's kernel called it.
    made.scope = match family {
        Family::V4 if made.gateway.is_none() => RouteScope::Link,
        Family::V4 => route.scope,
        // The kernel knows no scopes of IPv6 routes.
        Family::V6 => RouteScope::Universe,
    };
    made.metric = route.metric;
    made.onlink = route.onlink;
    made.mtu = route.mtu;
    Ok(made)
}

fn permanent(neighbors: &[Neighbor]) -> Result<Vec<(IpAddr, [u8; 6])>, NetError> {
    neighbors
        .iter()
        .filter(|neighbor| neighbor.state == NeighborState::Permanent)
        .map(|neighbor| {
            let ip = neighbor.ip.ok_or_else(|| {
                NetError::new(NetErrorKind::InvalidInput, "pod-network: a neighbour has no ip")
            })?;
            Ok((ip, mac::parse(&neighbor.hw_addr, "hw-addr of a neighbour")?))
        })
        .collect()
}

fn cancelled(cancel: &CancellationToken) -> Result<(), NetError> {
    if cancel.is_cancelled() {
        return Err(NetError::new(NetErrorKind::Cancelled, "the set-up of the pod network was cancelled"));
    }
    Ok(())
}

/// Waits until the interfaces the tunnel runs over have addresses.
fn wait_for_underlay(
    host: &mut RouteSocket,
    family: Family,
    dedicated: Option<&str>,
    watch: &mut Watch,
    cancel: &CancellationToken,
) -> Result<(), NetError> {
    let deadline = Instant::now() + ADDRESS_WITHIN;
    loop {
        cancelled(cancel)?;
        match underlay(host, family, dedicated) {
            Ok(()) => return Ok(()),
            // The primary interface was taken for the dedicated one: no waiting mends that.
            Err(e) if e.kind() == NetErrorKind::InvalidInput => return Err(e),
            Err(e) if Instant::now() >= deadline => {
                return Err(NetError::new(
                    NetErrorKind::TimedOut,
                    format!("the guest's network was not ready within {} s", ADDRESS_WITHIN.as_secs()),
                )
                .with_source(e));
            }
            Err(_) => watch.wait(LOOK_AGAIN),
        }
    }
}

fn underlay(host: &mut RouteSocket, family: Family, dedicated: Option<&str>) -> Result<(), NetError> {
    let links = host.links()?;
    let mut routes = host.routes()?;
    if dedicated.is_none() {
        // The way to the node is one of its family, also in a guest with two.
        routes.retain(|route| route.family() == family);
    }
    let (primary, _) = primary(&links, &routes, host.place())
        .map_err(|e| if dedicated.is_none() { no_default_route(family, host.place()) } else { e })?;
    let Some(name) = dedicated else {
        // Secondary addresses are fine: the tunnel needs any, and the kernel picks the source by route.
        return first_address(&host.addresses(primary.index)?, Some(family), primary, host.place()).map(drop);
    };
    first_address(&host.addresses(primary.index)?, None, primary, host.place())?;
    let link = links.iter().find(|link| link.name == name).ok_or_else(|| {
        NetError::new(
            NetErrorKind::NoInterface,
            format!("there is no interface {name} in {} (set -host-interface)", host.place()),
        )
    })?;
    if link.index == primary.index {
        return Err(NetError::new(
            NetErrorKind::InvalidInput,
            format!("{name} is the primary interface, not a dedicated one (set -host-interface)"),
        ));
    }
    first_address(&host.addresses(link.index)?, Some(family), link, host.place()).map(drop)
}

fn no_default_route(family: Family, place: &str) -> NetError {
    NetError::new(NetErrorKind::NoDefaultRoute, format!("{place} has no {family} default route"))
}

fn build(
    places: &mut Places,
    nft: &mut NftSocket,
    plan: &Plan,
    cancel: &CancellationToken,
) -> Result<(), NetError> {
    filter::ensure(nft, plan.vni, plan.port, plan.worker, &plan.admitted)?;
    if plan.external {
        external::reclaim(places, &plan.interface)?;
    }
    let mtu = tunnel_mtu(&mut places.host, plan)?;
    places.delete_tunnel(&plan.interface)?;
    delete_strays(&mut places.host, plan.vni, plan.port)?;
    let device = places.create_tunnel(&Tunnel {
        name: &plan.interface,
        vni: plan.vni,
        port: plan.port,
        family: plan.family(),
        remote: Some(plan.worker),
        mac: Some(plan.mac),
        mtu: Some(mtu),
    })?;
    cancelled(cancel)?;
    furnish(&mut places.pod, &device, plan)?;
    cancelled(cancel)?;
    if plan.external {
        external::take(places, plan.worker)?;
    }
    Ok(())
}

/// The largest packet that fits through the tunnel, and no more than the pod's interface takes on its node.
fn tunnel_mtu(host: &mut RouteSocket, plan: &Plan) -> Result<u32, NetError> {
    let (way, path_mtu) = host.way_to(plan.worker)?;
    let link = host.links()?.into_iter().find(|link| link.index == way);
    let underlay = match (link, path_mtu) {
        (Some(link), Some(path)) => link.mtu.min(path),
        (Some(link), None) => link.mtu,
        (None, Some(path)) => path,
        (None, None) => {
            return Err(NetError::new(NetErrorKind::NoInterface, "the interface to the node vanished"));
        }
    };
    let fitting = fitting_mtu(plan.mtu, underlay, plan.family());
    if plan.has_v6() && fitting < IPV6_MINIMUM_MTU {
        return Err(NetError::new(
            NetErrorKind::Unsupported,
            format!(
                "the pod has an IPv6 address, and the tunnel to the node has room for packets of {fitting} bytes, of the \
                 {IPV6_MINIMUM_MTU} that IPv6 needs (the way to {} carries {underlay} bytes; raise that to {} or more, or \
                 give the pod IPv4 addresses only)",
                plan.worker,
                IPV6_MINIMUM_MTU + plan.family().tunnel_overhead()
            ),
        ));
    }
    Ok(fitting)
}

fn fitting_mtu(pod: u32, underlay: u32, family: Family) -> u32 {
    let room = underlay.saturating_sub(family.tunnel_overhead());
    if pod == 0 { room } else { pod.min(room) }
}

/// Deletes tunnel devices with our id that another program left in the guest's root namespace on its way to the pod
/// namespace: they would hold the id for ever.
fn delete_strays(host: &mut RouteSocket, vni: u32, port: u16) -> Result<(), NetError> {
    for link in host.links()? {
        if link.is_vxlan() && link.is_tunnel(vni, port) {
            tracing::warn!(interface = link.name, vni, "deleting a tunnel device that was left half-made");
            delete(host, &link)?;
        }
    }
    Ok(())
}

/// Gives the device everything the pod's own interface had.
fn furnish(pod: &mut RouteSocket, device: &Link, plan: &Plan) -> Result<(), NetError> {
    let place = pod.place().to_owned();
    let name = &device.name;
    pod.set_loopback_up()?;
    if plan.has_v6() {
        prepare_v6(name);
    }
    // The routes come from the pod, the connected one included or left out on purpose, as some plugins do.
    for address in &plan.addresses {
        pod.add_address(device.index, &Address::new(*address, true))
            .map_err(|e| e.at(format!("cannot add {address} to {name} in {place}")))?;
    }
    pod.set_up(device.index).map_err(|e| e.at(format!("cannot set {name} in {place} up")))?;
    for route in &plan.routes {
        let mut route = route.clone();
        route.link = Some(device.index);
        let added = pod.add_route(&route);
        if matches!(&added, Err(e) if e.errno() == Some(Errno::EEXIST)) && plan.has_several_to(&route) {
            // A node that does not tell metrics lists the best of several routes first, and that one is in place.
            tracing::warn!(destination = %route.destination, "a further route to the same destination is left out");
            continue;
        }
        added.map_err(|e| {
            let via = route.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
            e.at(format!("cannot add the route to {}{via} dev {name} in {place}", route.destination))
        })?;
    }
    for (ip, hardware) in &plan.neighbors {
        pod.set_permanent_neighbor(device.index, *ip, *hardware)
            .map_err(|e| e.at(format!("cannot add neighbour {ip} of {name} in {place}")))?;
    }
    Ok(())
}

/// Switches IPv6 on for the device, without address or route that a router announces: the pod's are those it has on its
/// node. The calling thread is in the pod's namespace, whose settings these are.
fn prepare_v6(device: &str) {
    for (setting, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")] {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(device).join(setting);
        // A kernel without IPv6 refuses the address, and says so better than this file.
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(path = %path.display(), %error, "a setting of the pod's interface stays as it is");
        }
    }
}

/// Removes what [`build`] made in both namespaces, rules excepted.
fn remove(places: &mut Places, id: &DeviceId, report: &mut TeardownReport) {
    if id.external {
        external::give_back(places, &id.interface, report);
    }
    match places.pod.link(&id.interface) {
        Ok(Some(link)) if link.is_vxlan() => match delete(&mut places.pod, &link) {
            Ok(()) => report.note(format!("{} of {}", id.interface, places.pod.place())),
            Err(e) => report.problem(e),
        },
        Ok(_) => {}
        Err(e) => report.problem(e),
    }
    if let Err(e) = delete_strays(&mut places.host, id.vni, id.port) {
        report.problem(e);
    }
}

fn default_routes(routes: &[KernelRoute]) -> impl Iterator<Item = &KernelRoute> {
    routes.iter().filter(|route| route.kind == RouteKind::Unicast && route.is_default())
}

#[cfg(test)]
mod tests;
