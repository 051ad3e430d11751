use super::*;

fn network() -> PodNetwork {
    serde_json::from_str(
        r#"{"podip":"10.244.1.23/24","pod-hw-addr":"6a:1b:2c:3d:4e:5f","interface":"eth0",
            "worker-node-ip":"192.168.122.5/24","tunnel-type":"vxlan","routes":null,"neighbors":null,
            "mtu":1450,"index":3,"vxlan-port":4789,"vxlan-id":555003}"#,
    )
    .unwrap()
}

fn with_routes(routes: &str) -> PodNetwork {
    PodNetwork { routes: serde_json::from_str(routes).unwrap(), ..network() }
}

fn with_second(part: &str) -> PodNetwork {
    PodNetwork { ipv6: Some(serde_json::from_str(part).unwrap()), ..network() }
}

#[test]
fn a_pod_of_both_families_has_both_addresses_and_all_routes() {
    let network = with_second(
        r#"{"podip":"fd44::23/64","routes":[
            {"dst":"::/0","gw":"fe80::1","dev":"eth0","metric":1024},
            {"dst":"fd44::/64","gw":"","dev":"eth0","protocol":"kernel","metric":256}]}"#,
    );
    let plan = Plan::check(&network).unwrap();
    assert!(plan.has_v6() && plan.family() == Family::V4);
    assert_eq!(plan.addresses, ["10.244.1.23/24".parse().unwrap(), "fd44::23/64".parse::<IpNet>().unwrap()]);
    assert_eq!(described(&network), ["fd44::/64 Universe", "::/0 via fe80::1 Universe"]);
}

#[test]
fn a_node_with_an_ipv6_address_makes_a_tunnel_over_ipv6() {
    let network = PodNetwork { worker_node_ip: Some("fd00::1/64".parse().unwrap()), ..network() };
    assert_eq!(Plan::check(&network).unwrap().family(), Family::V6);
}

fn described(network: &PodNetwork) -> Vec<String> {
    Plan::check(network)
        .unwrap()
        .routes
        .iter()
        .map(|route| {
            let via = route.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
            format!("{}{via} {:?}", route.destination, route.scope)
        })
        .collect()
}

#[test]
fn calico_routes_come_with_the_gateway_route_first() {
    let network = with_routes(
        r#"[{"dst":"","gw":"169.254.1.1","dev":"eth0","protocol":"boot"},
            {"dst":"169.254.1.1/32","gw":"","dev":"eth0","protocol":"boot","scope":"link"}]"#,
    );
    assert_eq!(described(&network), ["169.254.1.1/32 Link", "0.0.0.0/0 via 169.254.1.1 Universe"]);
}

#[test]
fn ptp_routes_keep_their_order_behind_the_gateway_route() {
    let network = with_routes(
        r#"[{"dst":"","gw":"10.1.0.1","dev":"eth0"},
            {"dst":"10.1.0.0/24","gw":"10.1.0.1","dev":"eth0"},
            {"dst":"10.1.0.1/32","gw":"","dev":"eth0","scope":"link"}]"#,
    );
    assert_eq!(
        described(&network),
        ["10.1.0.1/32 Link", "0.0.0.0/0 via 10.1.0.1 Universe", "10.1.0.0/24 via 10.1.0.1 Universe"]
    );
}

#[test]
fn bridge_routes_come_with_the_connected_one_first() {
    let network = with_routes(
        r#"[{"dst":"","gw":"10.244.1.1","dev":"eth0","protocol":"boot"},
            {"dst":"10.244.0.0/16","gw":"10.244.1.1","dev":"eth0"},
            {"dst":"10.244.1.0/24","gw":"","dev":"eth0","protocol":"kernel","scope":"link"}]"#,
    );
    assert_eq!(
        described(&network),
        ["10.244.1.0/24 Link", "0.0.0.0/0 via 10.244.1.1 Universe", "10.244.0.0/16 via 10.244.1.1 Universe"]
    );
}

#[test]
fn a_route_without_a_gateway_is_on_the_link() {
    let network = with_routes(r#"[{"dst":"10.5.0.0/16","gw":"","scope":"host"}]"#);
    assert_eq!(described(&network), ["10.5.0.0/16 Link"]);
}

#[test]
fn the_smaller_of_pod_and_underlay_decides_the_mtu() {
    for (pod, underlay, over_v4, over_v6) in [
        (1450, 1500, 1450, 1430),
        (1500, 1500, 1450, 1430),
        (8931, 9001, 8931, 8931),
        (9001, 9001, 8951, 8931),
        (1500, 1400, 1350, 1330),
        (1500, 1280, 1230, 1210),
        (0, 1500, 1450, 1430),
    ] {
        assert_eq!(fitting_mtu(pod, underlay, Family::V4), over_v4, "{pod} over {underlay}");
        assert_eq!(fitting_mtu(pod, underlay, Family::V6), over_v6, "{pod} over {underlay}");
    }
}

#[test]
fn a_port_left_out_is_the_standard_one() {
    let network = PodNetwork { vxlan_port: 0, ..network() };
    assert_eq!(Plan::check(&network).unwrap().port, 4789);
}

#[test]
fn only_permanent_neighbours_are_set() {
    let neighbors = serde_json::from_str(
        r#"[{"ip":"10.244.1.1","hw-addr":"02:00:00:00:00:01","dev":"eth0","state":"permanent"},
            {"ip":"10.244.1.2","hw-addr":"","dev":"eth0","state":"failed"}]"#,
    )
    .unwrap();
    let plan = Plan::check(&PodNetwork { neighbors, ..network() }).unwrap();
    assert_eq!(plan.neighbors, [(IpAddr::from([10, 244, 1, 1]), [2, 0, 0, 0, 0, 1])]);
}

#[test]
fn unusable_values_are_refused_by_name() {
    use NetErrorKind::{IdOutOfRange, InvalidInput, Unsupported};
    let base = network();
    let cases = [
        (PodNetwork { tunnel_type: "gre".into(), ..base.clone() }, Unsupported, "tunnel-type"),
        (PodNetwork { interface: String::new(), ..base.clone() }, InvalidInput, "interface"),
        (
            PodNetwork { interface: "a-name-beyond-15-bytes".into(), ..base.clone() },
            InvalidInput,
            "interface",
        ),
        (PodNetwork { vxlan_id: 0, ..base.clone() }, IdOutOfRange, "id 0"),
        (PodNetwork { vxlan_id: 1 << 24, ..base.clone() }, IdOutOfRange, "16777216"),
        (PodNetwork { pod_ip: None, ..base.clone() }, InvalidInput, "podip"),
        (PodNetwork { worker_node_ip: None, ..base.clone() }, InvalidInput, "worker-node-ip"),
        (PodNetwork { pod_hw_addr: String::new(), ..base.clone() }, InvalidInput, "pod-hw-addr"),
        (with_routes(r#"[{"dst":"10.0.0.0/8","gw":"","dev":"net1"}]"#), InvalidInput, "net1"),
        (with_routes(r#"[{"dst":"fd00::/8","gw":"10.0.0.1"}]"#), InvalidInput, "10.0.0.1"),
        (with_routes(r#"[{"dst":"fd00::/8","gw":"","src":"10.0.0.5"}]"#), InvalidInput, "10.0.0.5"),
        (with_second(r#"{"routes":null}"#), InvalidInput, "podip of ipv6"),
        (with_second(r#"{"podip":"10.0.0.7/24"}"#), InvalidInput, "10.0.0.7/24"),
    ];
    for (network, kind, named) in cases {
        let error = Plan::check(&network).err().unwrap_or_else(|| panic!("{named} was taken"));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{named} in {error}");
    }
}
