use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const GOLDEN: [(&str, &str); 4] = [
    ("vxlan", include_str!("../../../../tests/fixtures/go-golden/apf/vxlan.json")),
    (
        "vxlan-profile-neigh",
        include_str!("../../../../tests/fixtures/go-golden/apf/vxlan-profile-neigh.json"),
    ),
    ("external-net", include_str!("../../../../tests/fixtures/go-golden/apf/external-net.json")),
    ("no-tls", include_str!("../../../../tests/fixtures/go-golden/apf/no-tls.json")),
];

/// The text of the `pod-network` object inside a golden file.
fn pod_network_text(file: &str) -> String {
    let start = file.find("\"pod-network\": ").unwrap() + "\"pod-network\": ".len();
    let end = file.find("\n    },\n").unwrap() + "\n    }".len();
    file[start..end].replace("\n    ", "\n")
}

fn pretty(network: &PodNetwork) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    network.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).unwrap();
    String::from_utf8(out).unwrap()
}

fn read(value: Value) -> PodNetwork {
    serde_json::from_value(value).unwrap()
}

#[test]
fn golden_files_are_written_byte_for_byte() {
    for (name, file) in GOLDEN {
        let text = pod_network_text(file);
        let network: PodNetwork = serde_json::from_str(&text).unwrap();
        assert_eq!(pretty(&network), text, "{name}");
    }
}

#[test]
fn golden_files_are_read_with_every_value() {
    let network: PodNetwork = serde_json::from_str(&pod_network_text(GOLDEN[1].1)).unwrap();
    assert_eq!(network.pod_ip, Some("10.244.1.23/24".parse().unwrap()));
    assert_eq!(network.pod_hw_addr, "6a:1b:2c:3d:4e:5f");
    assert_eq!(network.interface, "eth0");
    assert_eq!(network.worker_node_ip, Some("192.168.122.5/24".parse().unwrap()));
    assert_eq!(network.tunnel_type, TUNNEL_TYPE_VXLAN);
    assert_eq!((network.mtu, network.index), (1450, 3));
    assert_eq!((network.vxlan_port, network.vxlan_id), (4789, 555_003));
    assert!(network.dedicated && !network.external_net_via_pod_vm);
    let mut default = Route::new("0.0.0.0/0".parse().unwrap());
    default.gateway = Some("10.244.1.1".parse().unwrap());
    default.device = "eth0".into();
    default.protocol = Some(RouteProtocol::Boot);
    let mut connected = Route::new("10.244.1.0/24".parse().unwrap());
    connected.device = "eth0".into();
    connected.protocol = Some(RouteProtocol::Kernel);
    connected.scope = RouteScope::Link;
    assert_eq!(network.routes[0], default);
    assert_eq!(network.routes[2], connected);
    let neighbor = &network.neighbors[0];
    assert_eq!(neighbor.ip, Some("10.244.1.1".parse().unwrap()));
    assert_eq!((neighbor.hw_addr.as_str(), neighbor.device.as_str()), ("02:00:00:00:00:01", "eth0"));
    assert_eq!(neighbor.state, NeighborState::Permanent);
}

#[test]
fn a_missing_object_is_readable() {
    let zero: Value =
        serde_json::from_str(include_str!("../../../../tests/fixtures/go-golden/apf/zero.json")).unwrap();
    let network: Option<PodNetwork> = serde_json::from_value(zero["pod-network"].clone()).unwrap();
    assert_eq!(network, None);
}

#[test]
fn an_empty_network_has_all_keys_that_are_never_left_out() {
    assert_eq!(
        serde_json::to_string(&PodNetwork::default()).unwrap(),
        r#"{"podip":"","pod-hw-addr":"","interface":"","worker-node-ip":"","tunnel-type":"","routes":null,"neighbors":null,"mtu":0,"index":0,"dedicated":false,"external-net-via-pod-vm":false}"#
    );
}

#[test]
fn absent_null_and_empty_values_mean_not_set() {
    let unset = PodNetwork::default();
    assert_eq!(read(json!({})), unset);
    assert_eq!(read(json!({"podip": "", "worker-node-ip": "", "routes": [], "neighbors": []})), unset);
    assert_eq!(
        read(json!({
            "podip": null, "pod-hw-addr": null, "interface": null, "worker-node-ip": null, "tunnel-type": null,
            "routes": null, "neighbors": null, "mtu": null, "index": null, "vxlan-port": null, "vxlan-id": null,
            "dedicated": null, "external-net-via-pod-vm": null, "a-key-of-tomorrow": {"x": 1}
        })),
        unset
    );
}

#[test]
fn the_default_route_is_read_in_every_spelling() {
    for (dst, gateway, family) in [
        ("", "10.0.0.1", "0.0.0.0/0"),
        ("0.0.0.0/0", "", "0.0.0.0/0"),
        ("::/0", "", "::/0"),
        ("", "fe80::1", "::/0"),
    ] {
        let network = read(json!({"routes": [{"dst": dst, "gw": gateway}]}));
        assert_eq!(
            network.routes[0].destination,
            family.parse::<IpNet>().unwrap(),
            "{dst:?} via {gateway:?}"
        );
        assert!(network.routes[0].is_default());
    }
}

#[test]
fn a_default_route_without_a_gateway_is_spelled_out() {
    let mut route = Route::new("0.0.0.0/0".parse().unwrap());
    route.device = "eth0".into();
    assert_eq!(serde_json::to_value(&route).unwrap(), json!({"dst": "0.0.0.0/0", "gw": "", "dev": "eth0"}));
    route.gateway = Some("10.0.0.1".parse().unwrap());
    assert_eq!(serde_json::to_value(&route).unwrap(), json!({"dst": "", "gw": "10.0.0.1", "dev": "eth0"}));
}

#[test]
fn what_a_route_has_beyond_the_known_keys_is_added_after_them() {
    let mut route = Route::new("10.1.0.0/16".parse().unwrap());
    route.metric = Some(100);
    route.onlink = true;
    route.source = Some("10.0.0.2".parse().unwrap());
    route.mtu = Some(1300);
    assert_eq!(
        serde_json::to_string(&route).unwrap(),
        r#"{"dst":"10.1.0.0/16","gw":"","metric":100,"onlink":true,"src":"10.0.0.2","mtu":1300}"#
    );
}

#[test]
fn values_that_cannot_be_read_name_themselves() {
    for (value, named) in [
        (json!({"podip": "10.0.0.300/24"}), "10.0.0.300/24"),
        (json!({"routes": [{"dst": "nowhere", "gw": ""}]}), "nowhere"),
        (json!({"routes": [{"dst": "", "gw": "", "protocol": "bird"}]}), "bird"),
        (json!({"routes": [{"dst": "", "gw": "", "scope": "galaxy"}]}), "galaxy"),
        (json!({"neighbors": [{"ip": "x"}]}), "x"),
        (json!({"neighbors": [{"state": "asleep"}]}), "asleep"),
    ] {
        let error = serde_json::from_value::<PodNetwork>(value).unwrap_err().to_string();
        assert!(error.contains(named), "{named:?} in {error:?}");
    }
}

#[test]
fn every_name_of_the_wire_format_is_known() {
    for name in ["static", "boot", "dhcp", "kernel"] {
        assert_eq!(
            serde_json::to_value(serde_json::from_value::<RouteProtocol>(json!(name)).unwrap()).unwrap(),
            name
        );
    }
    for name in ["universe", "site", "link", "host", "nowhere"] {
        assert_eq!(
            serde_json::to_value(serde_json::from_value::<RouteScope>(json!(name)).unwrap()).unwrap(),
            name
        );
    }
    for name in ["none", "incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"]
    {
        assert_eq!(
            serde_json::to_value(serde_json::from_value::<NeighborState>(json!(name)).unwrap()).unwrap(),
            name
        );
    }
}

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len).unwrap()),
        (any::<[u8; 16]>(), 0..=128u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len).unwrap()),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn route() -> impl Strategy<Value = Route> {
    use RouteProtocol::{Boot, Dhcp, Kernel, Static};
    use RouteScope::{Host, Link, Nowhere, Site, Universe};
    let protocol = proptest::option::of(proptest::sample::select(vec![Static, Boot, Dhcp, Kernel]));
    let scope = proptest::sample::select(vec![Universe, Site, Link, Host, Nowhere]);
    let optional =
        (any::<Option<u32>>(), any::<bool>(), proptest::option::of(address()), any::<Option<u32>>());
    (net(), proptest::option::of(address()), ".{0,8}", protocol, scope, optional).prop_map(
        |(destination, gateway, device, protocol, scope, (metric, onlink, source, mtu))| {
            // A default route is "everything", whatever stands in its host bits.
            let destination = if destination.prefix_len() == 0 { destination.trunc() } else { destination };
            Route { destination, gateway, device, protocol, scope, metric, onlink, source, mtu }
        },
    )
}

fn neighbor() -> impl Strategy<Value = Neighbor> {
    use NeighborState::{Delay, Failed, Incomplete, Noarp, None, Permanent, Probe, Reachable, Stale};
    let states = vec![None, Incomplete, Reachable, Stale, Delay, Probe, Failed, Noarp, Permanent];
    (proptest::option::of(address()), ".{0,17}", ".{0,8}", proptest::sample::select(states))
        .prop_map(|(ip, hw_addr, device, state)| Neighbor { ip, hw_addr, device, state })
}

fn pod_network() -> impl Strategy<Value = PodNetwork> {
    let texts = (".{0,17}", ".{0,15}", ".{0,8}");
    let lists = (proptest::collection::vec(route(), 0..5), proptest::collection::vec(neighbor(), 0..4));
    let second = (
        proptest::option::of(net()),
        proptest::collection::vec(route(), 0..3),
        proptest::collection::vec(neighbor(), 0..3),
    )
        .prop_map(|(pod_ip, routes, neighbors)| SecondFamily { pod_ip, routes, neighbors });
    let addresses = proptest::collection::vec(net().prop_map(|net| net.addr()), 0..3);
    let lists = (lists, proptest::option::of(second), addresses);
    let numbers = (any::<u32>(), any::<u32>(), any::<u16>(), any::<u32>(), any::<bool>(), any::<bool>());
    (proptest::option::of(net()), proptest::option::of(net()), texts, lists, numbers).prop_map(
        |(
            pod_ip,
            worker_node_ip,
            (pod_hw_addr, interface, tunnel_type),
            ((routes, neighbors), ipv6, worker_addresses),
            numbers,
        )| {
            let (mtu, index, vxlan_port, vxlan_id, dedicated, external_net_via_pod_vm) = numbers;
            PodNetwork {
                pod_ip,
                pod_hw_addr,
                interface,
                worker_node_ip,
                tunnel_type,
                routes,
                neighbors,
                mtu,
                index,
                vxlan_port,
                vxlan_id,
                dedicated,
                external_net_via_pod_vm,
                worker_addresses,
                ipv6,
            }
        },
    )
}

#[test]
fn the_second_family_stands_in_a_key_of_its_own_behind_what_readers_know() {
    let mut network = PodNetwork { pod_ip: Some("10.1.0.5/24".parse().unwrap()), ..PodNetwork::default() };
    let plain = serde_json::to_string(&network).unwrap();
    assert!(!plain.contains("ipv6"));
    network.ipv6 = Some(SecondFamily {
        pod_ip: Some("fd00::5/64".parse().unwrap()),
        routes: vec![Route {
            gateway: Some("fe80::1".parse().unwrap()),
            ..Route::new("::/0".parse().unwrap())
        }],
        neighbors: Vec::new(),
    });
    let both = serde_json::to_string(&network).unwrap();
    let part = r#","ipv6":{"podip":"fd00::5/64","routes":[{"dst":"::/0","gw":"fe80::1"}],"neighbors":null}}"#;
    assert_eq!(both, plain.strip_suffix('}').unwrap().to_owned() + part);
    assert_eq!(serde_json::from_str::<PodNetwork>(r#"{"ipv6":null}"#).unwrap().ipv6, None);
}

#[test]
fn an_address_without_end_is_told_in_part() {
    let long = "x".repeat(100_000);
    for text in [format!(r#"{{"podip":"{long}"}}"#), format!(r#"{{"routes":[{{"dst":"{long}","gw":""}}]}}"#)]
    {
        let error = serde_json::from_str::<PodNetwork>(&text).unwrap_err().to_string();
        assert!(error.len() < 300 && error.contains("100000 bytes"), "{error}");
    }
}

proptest! {
    #[test]
    fn any_network_is_read_back_as_it_was_written(network in pod_network()) {
        let text = serde_json::to_string(&network).unwrap();
        let again: PodNetwork = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&again, &network, "{}", text);
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
