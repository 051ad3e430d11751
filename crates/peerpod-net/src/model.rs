//! The `pod-network` object of a guest's configuration, as it stands on the wire.
//!
//! Readers accept more than writers produce: absent keys, `null` in place of a value, and empty strings for
//! addresses all mean "not set", because that is what the existing programs write and read.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Family;

/// The tunnel type that is implemented.
pub const TUNNEL_TYPE_VXLAN: &str = "vxlan";
/// The UDP port of VXLAN when none is configured.
pub const DEFAULT_VXLAN_PORT: u16 = 4789;
/// The smallest id the existing daemon gives out; ids grow from here.
pub const DEFAULT_VXLAN_MIN_ID: u32 = 555_000;

/// Everything the guest needs to stand in for the pod's network interface.
///
/// Serialises to the `pod-network` object, keys in the order of the existing programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PodNetwork {
    /// The pod's address with its prefix length.
    #[serde(rename = "podip", with = "text")]
    pub pod_ip: Option<IpNet>,
    /// MAC address of the pod interface, in colon form.
    #[serde(rename = "pod-hw-addr", deserialize_with = "nullable")]
    pub pod_hw_addr: String,
    /// Name of the pod interface, usually `eth0`.
    #[serde(deserialize_with = "nullable")]
    pub interface: String,
    /// The node's address with its prefix length: the peer of the guest's tunnel.
    #[serde(rename = "worker-node-ip", with = "text")]
    pub worker_node_ip: Option<IpNet>,
    /// Always [`TUNNEL_TYPE_VXLAN`] when written by us.
    #[serde(rename = "tunnel-type", deserialize_with = "nullable")]
    pub tunnel_type: String,
    /// The routes of the pod's main table.
    #[serde(deserialize_with = "nullable", serialize_with = "null_when_empty")]
    pub routes: Vec<Route>,
    /// The permanent neighbours of the pod interface.
    #[serde(deserialize_with = "nullable", serialize_with = "null_when_empty")]
    pub neighbors: Vec<Neighbor>,
    /// MTU of the pod interface.
    #[serde(deserialize_with = "nullable")]
    pub mtu: u32,
    /// Number of the tunnel on its node, counted from the smallest id.
    #[serde(deserialize_with = "nullable")]
    pub index: u32,
    /// UDP port of the tunnel; 0 is left out.
    #[serde(rename = "vxlan-port", deserialize_with = "nullable", skip_serializing_if = "is_zero_port")]
    pub vxlan_port: u16,
    /// Id of the tunnel; 0 is left out and means that none was reserved yet.
    #[serde(rename = "vxlan-id", deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub vxlan_id: u32,
    /// Whether the tunnel runs over an interface of its own rather than the primary one.
    #[serde(deserialize_with = "nullable")]
    pub dedicated: bool,
    /// Whether the pod reaches the outside through the guest's second interface instead of the tunnel.
    #[serde(rename = "external-net-via-pod-vm", deserialize_with = "nullable")]
    pub external_net_via_pod_vm: bool,
    /// Every address of the node from which the tunnel's packets may come: which one it is depends on the node's way to
    /// the guest, and need not be `worker_node_ip`. Empty means that it is not known.
    ///
    /// An addition of ours, left out when empty: the existing guest program ignores it.
    #[serde(
        rename = "worker-addresses",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub worker_addresses: Vec<IpAddr>,
    /// The IPv6 part of a pod that has addresses of both families; what stands above is then IPv4.
    ///
    /// An addition of ours: the existing guest program ignores it, and its pods have IPv4 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<SecondFamily>,
}

impl PodNetwork {
    /// The family of addresses over which the tunnel's packets travel.
    pub fn underlay(&self) -> Family {
        self.worker_node_ip.map_or(Family::V4, Family::of_net)
    }
}

/// Address, routes and neighbours of a pod in its second family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SecondFamily {
    /// The pod's address with its prefix length.
    #[serde(rename = "podip", with = "text")]
    pub pod_ip: Option<IpNet>,
    /// The routes of this family.
    #[serde(deserialize_with = "nullable", serialize_with = "null_when_empty")]
    pub routes: Vec<Route>,
    /// The permanent neighbours of this family.
    #[serde(deserialize_with = "nullable", serialize_with = "null_when_empty")]
    pub neighbors: Vec<Neighbor>,
}

/// A route of the pod.
///
/// `metric`, `onlink`, `src` and `mtu` are additions: they are written only where the route has them, and the
/// existing guest program ignores them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// Where to; prefix length 0 is the default route.
    pub destination: IpNet,
    /// The next hop, if any.
    pub gateway: Option<IpAddr>,
    /// Name of the interface; empty means the pod interface.
    pub device: String,
    /// Who made the route.
    pub protocol: Option<RouteProtocol>,
    /// How far the destination is.
    pub scope: RouteScope,
    /// Priority among routes to the same destination, lowest first.
    pub metric: Option<u32>,
    /// Whether the next hop counts as reachable though no prefix covers it.
    pub onlink: bool,
    /// The address packets to this destination carry as their source.
    pub source: Option<IpAddr>,
    /// Path MTU of the route.
    pub mtu: Option<u32>,
}

impl Route {
    /// A route without any optional part.
    pub fn new(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            device: String::new(),
            protocol: None,
            scope: RouteScope::Universe,
            metric: None,
            onlink: false,
            source: None,
            mtu: None,
        }
    }

    /// Whether this is a default route.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}

/// Who made a route. Other protocols of the kernel are carried as [`RouteProtocol::Static`], because readers
/// refuse names they do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RouteProtocol {
    /// The administrator.
    Static,
    /// A program that did not say.
    Boot,
    /// A DHCP client.
    Dhcp,
    /// The kernel, together with an address.
    Kernel,
}

/// How far the destination of a route is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RouteScope {
    /// Anywhere. Left out when written.
    #[default]
    Universe,
    /// Inside this site.
    Site,
    /// On this link.
    Link,
    /// This host.
    Host,
    /// No existing destination.
    Nowhere,
}

/// A neighbour of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Neighbor {
    /// Its address.
    #[serde(with = "text")]
    pub ip: Option<IpAddr>,
    /// Its MAC address, in colon form.
    #[serde(rename = "hw-addr", deserialize_with = "nullable")]
    pub hw_addr: String,
    /// Name of the interface; empty means the pod interface.
    #[serde(rename = "dev", deserialize_with = "nullable")]
    pub device: String,
    /// What the kernel believes about it.
    #[serde(deserialize_with = "nullable")]
    pub state: NeighborState,
}

/// What the kernel believes about a neighbour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NeighborState {
    /// Nothing.
    #[default]
    None,
    /// Being asked for.
    Incomplete,
    /// Confirmed not long ago.
    Reachable,
    /// Confirmed long ago.
    Stale,
    /// About to be asked again.
    Delay,
    /// Being asked again.
    Probe,
    /// Did not answer.
    Failed,
    /// Needs no asking.
    Noarp,
    /// Set by hand and never asked for: what travels to the guest.
    Permanent,
}

/// The wire form of [`Route`].
#[derive(Serialize, Deserialize)]
struct RouteWire {
    #[serde(default, deserialize_with = "nullable")]
    dst: String,
    #[serde(default, with = "text")]
    gw: Option<IpAddr>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    dev: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<RouteProtocol>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_universe")]
    scope: RouteScope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric: Option<u32>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_false")]
    onlink: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    src: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The existing programs write an IPv4 default route as an empty prefix. Their reader then needs a gateway
        // to build the route from, so one without is spelled out.
        // That gateway is of IPv4: behind an empty prefix one of IPv6 would make it a route of IPv6.
        let unset = self.is_default()
            && matches!((self.destination, self.gateway), (IpNet::V4(_), Some(IpAddr::V4(_))));
        RouteWire {
            dst: if unset { String::new() } else { self.destination.to_string() },
            gw: self.gateway,
            dev: self.device.clone(),
            protocol: self.protocol,
            scope: self.scope,
            metric: self.metric,
            onlink: self.onlink,
            src: self.source,
            mtu: self.mtu,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = RouteWire::deserialize(deserializer)?;
        let destination: IpNet = match (wire.dst.as_str(), wire.gw) {
            ("", gateway) => gateway.map_or(Family::V4, Family::of).everything(),
            (text, _) => text.parse().map_err(|_| {
                serde::de::Error::custom(format!(
                    "dst {} of a route is no prefix such as 10.0.0.0/8",
                    shown(text)
                ))
            })?,
        };
        Ok(Self {
            // Every spelling of everything is the same route.
            destination: if destination.prefix_len() == 0 { destination.trunc() } else { destination },
            gateway: wire.gw,
            device: wire.dev,
            protocol: wire.protocol,
            scope: wire.scope,
            metric: wire.metric,
            onlink: wire.onlink,
            source: wire.src,
            mtu: wire.mtu,
        })
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_zero_port(value: &u16) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_universe(value: &RouteScope) -> bool {
    *value == RouteScope::Universe
}

/// Reads `null` as the type's default.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn null_when_empty<S: Serializer, T: Serialize>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { serializer.collect_seq(list) }
}

/// A value as an error shows it: what should be an address may be as long as the whole file.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// Values written as their text, with the empty string for "not set".
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer, T: Display>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: FromStr>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error>
    where
        T::Err: Display,
    {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|e| serde::de::Error::custom(format!("{}: {e}", super::shown(text)))),
        }
    }
}

#[cfg(test)]
mod tests;
