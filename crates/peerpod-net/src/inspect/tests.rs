use super::*;
use crate::model::{RouteProtocol, RouteScope};

fn link(index: u32, name: &str) -> Link {
    Link { index, name: name.into(), ..Link::default() }
}

fn default_via(index: u32, metric: Option<u32>) -> KernelRoute {
    KernelRoute {
        gateway: Some(IpAddr::from([10, 0, 0, 1])),
        link: Some(index),
        metric,
        ..KernelRoute::new("0.0.0.0/0".parse().unwrap())
    }
}

fn address(prefix: &str, secondary: bool) -> Address {
    Address { secondary, ..Address::new(prefix.parse().unwrap(), false) }
}

#[test]
fn the_default_route_with_the_lowest_metric_decides() {
    let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2")];
    let routes = [default_via(2, Some(300)), default_via(3, Some(100)), default_via(4, Some(200))];
    assert_eq!(primary(&links, &routes, "x").unwrap().0.name, "eth1");
}

#[test]
fn a_default_route_without_a_metric_wins() {
    let links = [link(2, "eth0"), link(3, "eth1")];
    let routes = [default_via(2, Some(1)), default_via(3, None)];
    assert_eq!(primary(&links, &routes, "x").unwrap().0.name, "eth1");
}

#[test]
fn routes_that_lead_nowhere_are_no_default_route() {
    let links = [link(2, "eth0")];
    let unreachable = KernelRoute { kind: RouteKind::Unreachable, ..default_via(2, None) };
    let vanished = default_via(9, None);
    let error = primary(&links, &[unreachable, vanished], "namespace x").unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NoDefaultRoute);
    assert!(error.to_string().contains("namespace x"), "{error}");
}

#[test]
fn an_interface_without_addresses_is_an_error_and_no_panic() {
    let eth0 = link(2, "eth0");
    for family in [None, Some(Family::V4), Some(Family::V6)] {
        let error = first_address(&[], family, &eth0, "x").unwrap_err();
        assert_eq!(error.kind(), NetErrorKind::NoAddress);
        assert!(error.to_string().contains("eth0"), "{error}");
    }
    assert_eq!(only_address(&[], Family::V4, &eth0, "x").unwrap(), None);
}

#[test]
fn an_address_of_the_wanted_family_is_taken() {
    let eth0 = link(2, "eth0");
    let list = [address("10.0.0.5/24", false), address("fd00::5/64", false)];
    let first = |family| first_address(&list, family, &eth0, "x").unwrap().to_string();
    assert_eq!(first(None), "10.0.0.5/24");
    assert_eq!(first(Some(Family::V6)), "fd00::5/64");
    let error = first_address(&list[1..], Some(Family::V4), &eth0, "x").unwrap_err();
    assert!(error.to_string().contains("IPv4"), "{error}");
}

#[test]
fn an_announced_ipv6_address_does_not_count_beside_a_given_one() {
    let announced = Address { permanent: false, ..address("fd00::aaaa/64", false) };
    let given = address("fd00::5/64", false);
    let only = |list: &[Address]| only_address(list, Family::V6, &link(2, "eth0"), "x").unwrap();
    assert_eq!(only(&[announced.clone(), given.clone()]), Some(given.prefix));
    assert_eq!(only(std::slice::from_ref(&announced)), Some(announced.prefix));
    assert!(only_address(&[announced.clone(), announced], Family::V6, &link(2, "eth0"), "x").is_err());
}

#[test]
fn ipv4_names_the_primary_interface_where_both_families_could() {
    let links = [link(2, "eth0"), link(3, "eth1")];
    let six = KernelRoute { link: Some(2), metric: Some(1), ..KernelRoute::new("::/0".parse().unwrap()) };
    assert_eq!(primary(&links, &[six.clone(), default_via(3, Some(900))], "x").unwrap().0.name, "eth1");
    assert_eq!(primary(&links, &[six], "x").unwrap().0.name, "eth0");
}

#[test]
fn the_nodes_mtu_bounds_that_of_the_pod() {
    let underlay = |mtu, address: &str| Underlay {
        sources: Vec::new(),
        interface: "eth7".into(),
        address: address.parse().unwrap(),
        mtu,
        dedicated: false,
    };
    let (v4, v6) = ("10.0.0.1/24", "fd00::1/64");
    for (mtu, address, pod, has_v6, expected) in [
        (1500, v4, 1500, true, 1450),
        (1500, v6, 1500, true, 1430),
        (1500, v4, 1400, true, 1400),
        (1280, v4, 1500, false, 1230),
        (1280, v6, 1500, false, 1210),
        (1330, v4, 1500, true, 1280),
        (1350, v6, 1500, true, 1280),
        (9001, v4, 9001, true, 8951),
    ] {
        assert_eq!(underlay(mtu, address).mtu_for(pod, has_v6).unwrap(), expected, "{pod} over {mtu}");
    }
    for (mtu, address, least) in [(1329, v4, "1330"), (1349, v6, "1350"), (1280, v4, "1330")] {
        let error = underlay(mtu, address).mtu_for(1500, true).unwrap_err();
        assert_eq!(error.kind(), NetErrorKind::Unsupported);
        assert!(error.to_string().contains(least) && error.to_string().contains("eth7"), "{error}");
    }
}

#[test]
fn the_nodes_first_primary_address_is_taken() {
    let eth0 = link(2, "eth0");
    let list = [address("10.0.0.9/24", true), address("10.0.0.5/24", false), address("10.1.0.1/16", false)];
    assert_eq!(first_address(&list, None, &eth0, "x").unwrap(), "10.0.0.5/24".parse::<IpNet>().unwrap());
}

#[test]
fn several_pod_addresses_are_listed_in_the_error() {
    let list = [address("10.0.0.5/24", false), address("10.0.0.6/24", true)];
    let error = only_address(&list, Family::V4, &link(2, "eth0"), "x").unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::ManyAddresses);
    assert!(error.to_string().contains("10.0.0.5/24, 10.0.0.6/24"), "{error}");
}

#[test]
fn routes_are_sorted_by_destination_length_and_metric() {
    let route =
        |net: &str, metric| KernelRoute { link: Some(2), metric, ..KernelRoute::new(net.parse().unwrap()) };
    let sorted = pod_routes(
        &link(2, "eth0"),
        &[
            route("10.0.0.0/16", Some(5)),
            route("169.254.1.1/32", None),
            route("10.0.0.0/16", None),
            route("0.0.0.0/0", None),
            route("10.0.0.0/8", None),
        ],
    );
    let order: Vec<_> = sorted.iter().map(|r| (r.destination.to_string(), r.metric)).collect();
    let expected = [
        ("0.0.0.0/0", None),
        ("10.0.0.0/8", None),
        ("10.0.0.0/16", None),
        ("10.0.0.0/16", Some(5)),
        ("169.254.1.1/32", None),
    ];
    assert_eq!(order, expected.map(|(net, metric)| (net.to_owned(), metric)));
}

#[test]
fn everything_a_route_says_is_carried() {
    let kernel = KernelRoute {
        gateway: Some(IpAddr::from([10, 0, 0, 1])),
        link: Some(2),
        protocol: RouteProtocol::Dhcp,
        scope: RouteScope::Site,
        metric: Some(7),
        onlink: true,
        source: Some(IpAddr::from([10, 0, 0, 5])),
        mtu: Some(1300),
        ..KernelRoute::new("10.9.0.0/16".parse().unwrap())
    };
    let route = pod_routes(&link(2, "eth0"), &[kernel]).remove(0);
    assert_eq!(route.gateway, Some("10.0.0.1".parse().unwrap()));
    assert_eq!((route.protocol, route.scope), (Some(RouteProtocol::Dhcp), RouteScope::Site));
    assert_eq!((route.metric, route.onlink, route.mtu), (Some(7), true, Some(1300)));
    assert_eq!(route.source, Some("10.0.0.5".parse().unwrap()));
}

#[test]
fn routes_of_other_interfaces_stay_behind() {
    let routes = [default_via(2, None), default_via(3, Some(5))];
    assert_eq!(pod_routes(&link(2, "eth0"), &routes).len(), 1);
}

#[test]
fn a_pod_subnet_goes_through_the_pods_gateway() {
    let gateway = Some(IpAddr::from([10, 244, 1, 1]));
    let route = subnet_route("10.96.3.4/12".parse().unwrap(), gateway, &link(2, "eth0"));
    assert_eq!(
        serde_json::to_string(&route).unwrap(),
        r#"{"dst":"10.96.0.0/12","gw":"10.244.1.1","dev":"eth0"}"#
    );
}

#[test]
fn a_pod_subnet_that_the_pod_has_a_route_to_is_not_added_again() {
    let gateway = |last| Some(IpAddr::from([10, 244, 1, last]));
    let subnet = |net: &str, last| subnet_route(net.parse().unwrap(), gateway(last), &link(2, "eth0"));
    let mut routes = vec![subnet("10.244.0.0/16", 9)];
    for net in ["10.244.7.7/16", "10.96.0.0/12", "10.96.0.0/12", "10.244.0.0/24"] {
        add_subnet(&mut routes, subnet(net, 1));
    }
    assert_eq!(routes, [subnet("10.244.0.0/16", 9), subnet("10.96.0.0/12", 1), subnet("10.244.0.0/24", 1)]);
}

#[test]
fn a_guest_is_told_the_addresses_that_packets_may_come_from_and_none_that_change() {
    let links = [
        Link { loopback: true, ..link(1, "lo") },
        link(2, "eth0"),
        Link { kind: "bridge".into(), ..link(3, "virbr0") },
        Link { kind: "dummy".into(), ..link(4, "kube-ipvs0") },
    ];
    let v4 = [
        (1, "127.0.0.1/8"),
        (2, "192.0.2.7/24"),
        (3, "198.51.100.1/24"),
        (4, "203.0.113.1/32"),
        (2, "fd00::7/64"),
    ];
    let v4 = v4.map(|(index, prefix)| (index, address(prefix, false)));
    let told = sources(&links, &v4, "192.0.2.7/24".parse().unwrap());
    assert_eq!(told, ["192.0.2.7".parse::<IpAddr>().unwrap(), "198.51.100.1".parse().unwrap()]);

    let v6 = |temporary| [(2, address("fd00::7/64", false)), (2, address("fd00::8/64", temporary))];
    let tunnel = "fd00::7/64".parse().unwrap();
    assert_eq!(sources(&links, &v6(false), tunnel).len(), 2);
    assert!(sources(&links, &v6(true), tunnel).is_empty());
    let many: Vec<_> = (0..=SOURCES).map(|n| (2, address(&format!("10.0.0.{n}/24"), false))).collect();
    assert!(sources(&links, &many, "10.0.0.1/24".parse().unwrap()).is_empty());
}
