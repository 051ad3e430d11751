//! The node's end of a tunnel.
//!
//! The device stands in the pod's namespace and takes whatever arrives on the pod's interface; its packets travel in
//! the node's namespace. "The node" is the namespace of the calling thread.

use std::net::IpAddr;
use std::path::Path;

use crate::netlink::{Link, NftSocket, RouteSocket};
use crate::place::{NODE, Places, Tunnel, check_id, delete};
use crate::{Counters, Family, NetError, NetErrorKind, TeardownReport, filter, netns};

/// The name of the tunnel device in the pod's namespace.
pub const DEVICE: &str = "vxlan1";

/// A bridge that never carries a packet. Of a tunnel device that is a bridge's port the kernel tells senders whose
/// packets are too big, which it does for no other tunnel device; without, such packets vanish or come in fragments.
const BRIDGE: &str = "ppmtu0";

/// A tunnel from a pod's interface to its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelSpec {
    /// Id of the tunnel, as reserved.
    pub vni: u32,
    /// UDP port of both ends.
    pub port: u16,
    /// The guest's address.
    pub peer: IpAddr,
    /// The pod interface whose packets go to the guest.
    pub pod_interface: String,
}

impl TunnelSpec {
    /// Names everything a tunnel consists of.
    pub fn new(vni: u32, port: u16, peer: IpAddr, pod_interface: impl Into<String>) -> Self {
        Self { vni, port, peer, pod_interface: pod_interface.into() }
    }
}

/// Reserves a tunnel id by making the device, without a peer and down, in the pod's namespace.
///
/// The kernel keeps ids unique among the devices made from one namespace, wherever they stand, so a reservation
/// outlives this program and needs no table of ours. It counts ids for each family of addresses the tunnel's packets
/// may travel over, so `underlay` says which. A tunnel device left in this pod's namespace is replaced.
///
/// # Errors
///
/// [`NetErrorKind::IdInUse`]: take the next id. [`NetErrorKind::NameTaken`]: an interface of the pod has the device's
/// name and is no tunnel. [`NetErrorKind::IdOutOfRange`], [`NetErrorKind::NetnsMissing`], [`NetErrorKind::Kernel`].
pub async fn reserve(netns: &Path, vni: u32, port: u16, underlay: Family) -> Result<(), NetError> {
    let netns = netns.to_owned();
    netns::on_thread("net-reserve", move || {
        check_id(vni, port)?;
        reserve_in(&mut Places::open(&netns, NODE)?, vni, port, underlay).map(drop)
    })
    .await
}

/// Connects a reserved tunnel: peer, both redirects, packet filter rules, device up.
///
/// A device that is missing, or was reserved with another id or family, is made first. Connecting again, also to another peer, replaces what
/// is there. A failed connect leaves the reservation and nothing else.
///
/// # Errors
///
/// Those of [`reserve`], and [`NetErrorKind::NoInterface`] when the pod interface is missing.
pub async fn connect(netns: &Path, tunnel: &TunnelSpec) -> Result<(), NetError> {
    let (netns, tunnel) = (netns.to_owned(), tunnel.clone());
    netns::on_thread("net-connect", move || {
        check_id(tunnel.vni, tunnel.port)?;
        // The socket for the node's rules has to be opened before the thread moves to the pod's namespace.
        let mut nft = NftSocket::open()?;
        let mut places = Places::open(&netns, NODE)?;
        let connected = connect_in(&mut places, &mut nft, &tunnel);
        if connected.is_err() {
            disconnect(&mut places, &mut nft, &tunnel);
        }
        connected
    })
    .await
}

/// Removes everything of a tunnel: redirects, device, rules.
///
/// Goes on after a failed step and reports it; a namespace that is gone has taken its part along. Repeating is safe,
/// also when the namespace meanwhile holds a tunnel with another id, which stays.
pub async fn teardown(netns: &Path, vni: u32, port: u16) -> TeardownReport {
    let netns = netns.to_owned();
    crate::report::collect("net-teardown", move |report| {
        filter::remove_reporting(vni, port, report);
        match Places::open(&netns, NODE) {
            Ok(mut places) => remove_from_pod(&mut places, vni, port, report),
            Err(e) if e.kind() == NetErrorKind::NetnsMissing => report.namespace_is_gone(&netns),
            Err(e) => report.problem(e),
        }
    })
    .await
}

/// Reads what the tunnel device of a pod carried.
///
/// # Errors
///
/// [`NetErrorKind::NetnsMissing`], or [`NetErrorKind::NoInterface`] when there is no tunnel.
pub async fn counters(netns: &Path) -> Result<Counters, NetError> {
    crate::counters_of(netns, DEVICE).await
}

fn reserve_in(places: &mut Places, vni: u32, port: u16, family: Family) -> Result<Link, NetError> {
    places.delete_tunnel(DEVICE)?;
    places.create_tunnel(&Tunnel { name: DEVICE, vni, port, family, remote: None, mac: None, mtu: None })
}

fn connect_in(places: &mut Places, nft: &mut NftSocket, tunnel: &TunnelSpec) -> Result<(), NetError> {
    let peer = tunnel.peer;
    let family = Family::of(peer);
    let pod_link = places.pod.link(&tunnel.pod_interface)?.ok_or_else(|| {
        NetError::new(
            NetErrorKind::NoInterface,
            format!("there is no interface {} in {}", tunnel.pod_interface, places.pod.place()),
        )
    })?;
    let device = match places.pod.link(DEVICE)? {
        Some(link) if link.is_tunnel(tunnel.vni, tunnel.port) && link.vxlan_v6 == (family == Family::V6) => {
            link
        }
        _ => reserve_in(places, tunnel.vni, tunnel.port, family)?,
    };
    // First the rules: a packet before them would make an entry that outlives them.
    filter::ensure(nft, tunnel.vni, tunnel.port, peer, &[peer])?;
    let pod = &mut places.pod;
    let place = pod.place().to_owned();
    pod.set_vxlan_remote(device.index, peer)
        .map_err(|e| e.at(format!("cannot point {DEVICE} of {place} at {peer}")))?;
    if let Err(e) = tell_of_big_packets(pod, &device) {
        // Nothing that fits is lost, and old kernels cannot do it.
        tracing::warn!(error = e.chain(), "senders are not told which packets are too big for the tunnel");
    }
    pod.set_up(device.index).map_err(|e| e.at(format!("cannot set {DEVICE} of {place} up")))?;
    for (from, to) in [(&device, &pod_link), (&pod_link, &device)] {
        pod.redirect(from.index, to.index).map_err(|e| {
            e.at(format!("cannot redirect what arrives on {} to {} in {place}", from.name, to.name))
        })?;
    }
    Ok(())
}

/// Makes the tunnel device a port of a bridge that is down. What arrives by the tunnel is redirected before the bridge
/// would see it.
fn tell_of_big_packets(pod: &mut RouteSocket, device: &Link) -> Result<(), NetError> {
    let place = pod.place().to_owned();
    let bridge = match pod.link(BRIDGE)? {
        Some(link) => link,
        None => {
            pod.create_bridge(BRIDGE).map_err(|e| e.at(format!("cannot make bridge {BRIDGE} in {place}")))?;
            pod.link(BRIDGE)?.ok_or_else(|| {
                NetError::new(NetErrorKind::NoInterface, format!("bridge {BRIDGE} of {place} vanished"))
            })?
        }
    };
    if device.controller == Some(bridge.index) {
        return Ok(());
    }
    pod.set_controller(device.index, bridge.index)
        .map_err(|e| e.at(format!("cannot make {DEVICE} of {place} a port of {BRIDGE}")))
}

/// Takes a half-made connection back to the bare reservation.
fn disconnect(places: &mut Places, nft: &mut NftSocket, tunnel: &TunnelSpec) {
    let mut report = TeardownReport::default();
    match find(&mut places.pod, tunnel.vni, tunnel.port) {
        Ok((links, device)) => {
            remove_redirects(&mut places.pod, &links, device.as_ref(), &mut report);
            remove_bridge(&mut places.pod, &links, tunnel.vni, tunnel.port, &mut report);
        }
        Err(e) => report.problem(e),
    }
    if let Err(e) = filter::remove(nft, tunnel.vni, tunnel.port) {
        report.problem(e);
    }
    for problem in report.problems() {
        tracing::warn!(error = problem.chain(), "undoing a failed tunnel left something");
    }
}

fn remove_from_pod(places: &mut Places, vni: u32, port: u16, report: &mut TeardownReport) {
    let (links, device) = match find(&mut places.pod, vni, port) {
        Ok(found) => found,
        Err(e) => return report.problem(e),
    };
    remove_redirects(&mut places.pod, &links, device.as_ref(), report);
    if let Some(device) = device {
        match delete(&mut places.pod, &device) {
            Ok(()) => report.note(format!("{DEVICE} of {}", places.pod.place())),
            Err(e) => report.problem(e),
        }
    }
    remove_bridge(&mut places.pod, &links, vni, port, report);
}

/// Removes the bridge, unless another tunnel of the pod is its port.
fn remove_bridge(pod: &mut RouteSocket, links: &[Link], vni: u32, port: u16, report: &mut TeardownReport) {
    let Some(bridge) = links.iter().find(|link| link.name == BRIDGE && link.kind == "bridge") else { return };
    let is_used = links
        .iter()
        .any(|link| link.is_vxlan() && !link.is_tunnel(vni, port) && link.controller == Some(bridge.index));
    if !is_used && let Err(e) = delete(pod, bridge) {
        report.problem(e);
    }
}

/// The pod's interfaces, and the tunnel device among them if it has this id: ids are unique on a node, so a device
/// with another id belongs to whoever reserved that.
fn find(pod: &mut RouteSocket, vni: u32, port: u16) -> Result<(Vec<Link>, Option<Link>), NetError> {
    let links = pod.links()?;
    let device = links.iter().find(|link| link.name == DEVICE && link.is_tunnel(vni, port)).cloned();
    Ok((links, device))
}

/// Removes the redirects between the tunnel and whichever interface it was connected to, also those that point at a
/// tunnel device that is gone.
fn remove_redirects(
    pod: &mut RouteSocket,
    links: &[Link],
    device: Option<&Link>,
    report: &mut TeardownReport,
) {
    let tunnel = device.map(|link| link.index);
    let place = pod.place().to_owned();
    for link in links.iter().filter(|link| !link.loopback) {
        let step = || format!("cannot remove the redirect of {} in {place}", link.name);
        let ours = match pod.redirect_targets(link.index) {
            Ok(targets) => targets.iter().any(|target| *target == 0 || Some(*target) == tunnel),
            Err(e) => {
                report.problem(e.at(step()));
                continue;
            }
        };
        if ours || Some(link.index) == tunnel {
            match pod.remove_ingress(link.index) {
                Ok(true) => report.note(format!("redirect of {} in {place}", link.name)),
                Ok(false) => {}
                Err(e) => report.problem(e.at(step())),
            }
        }
    }
}
