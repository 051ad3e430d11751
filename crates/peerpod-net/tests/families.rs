//! Pods of both families over nodes of both families, with packets both ways.

mod support;

use peerpod_net::{Family, InspectOptions, NetErrorKind, PodNetwork};
use support::{
    CNI_GATEWAY, CNI_GATEWAY6, Cluster, POD_IP, POD_IP6, Underlay, echo, ip, ips, netns, ping, ruleset,
};

const VNI: u32 = 555_000;

fn over(family: Family) -> Underlay {
    Underlay { family, ..Underlay::default() }
}

/// Packets between the guest on one side and the node and another pod on the other, each way, in one family.
async fn talks(cluster: &Cluster, other: &std::path::Path, family: Family) {
    let (guest, node) = (cluster.podns.path(), cluster.node.path());
    let (pod, gateway, neighbour) = match family {
        Family::V4 => (POD_IP, CNI_GATEWAY, "10.244.1.77"),
        Family::V6 => (POD_IP6, CNI_GATEWAY6, "fd44::77"),
    };
    for (from, to) in [(guest, gateway), (guest, neighbour), (node, pod), (other, pod)] {
        assert!(ping(from, to, 100).await, "{} does not reach {to}", from.display());
    }
    for (server, client, address) in
        [(guest, node, pod), (guest, other, pod), (node, guest, gateway), (other, guest, neighbour)]
    {
        assert_eq!(echo(server, client, address, 200_000).await, 200_000, "{}", client.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_both_families_talks_in_both_over_ipv4() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    let network = cluster.join(VNI).await;
    let other = cluster.neighbour(1450).await;

    assert_eq!(network.pod_ip, Some(format!("{POD_IP}/24").parse().unwrap()));
    let second = network.ipv6.as_ref().unwrap();
    assert_eq!(second.pod_ip, Some(format!("{POD_IP6}/64").parse().unwrap()));
    for family in [Family::V4, Family::V6] {
        talks(&cluster, other.path(), family).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_both_families_talks_in_both_over_ipv6() {
    let cluster = Cluster::dual(over(Family::V6), 1430).await;
    let network = cluster.join(VNI).await;
    let other = cluster.neighbour(1430).await;

    assert_eq!(network.worker_node_ip, Some("fd99::1/64".parse().unwrap()));
    let device = ip(cluster.podns.path(), "-d link show eth0");
    assert!(device.contains("remote fd99::1 "), "{device}");
    for family in [Family::V4, Family::V6] {
        talks(&cluster, other.path(), family).await;
    }
}

async fn only_v6(family: Family) -> Cluster {
    Cluster::over(over(family), |cluster| {
        ips(
            cluster.pod.path(),
            &format!(
                "addr add {POD_IP6}/64 dev eth0 nodad
                 link set eth0 mtu 1400
                 link set eth0 up
                 -6 route add default via {CNI_GATEWAY6}
                 -6 neigh add fd44::9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent"
            ),
        );
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_ipv6_alone_talks_over_either_family() {
    for family in [Family::V4, Family::V6] {
        let cluster = only_v6(family).await;
        let network = cluster.join(VNI).await;
        let other = cluster.neighbour(1400).await;

        assert_eq!(network.pod_ip, Some(format!("{POD_IP6}/64").parse().unwrap()));
        assert_eq!(network.ipv6, None);
        talks(&cluster, other.path(), Family::V6).await;
        let neighbours = ip(cluster.podns.path(), "-6 neigh show nud permanent");
        assert!(neighbours.contains("fd44::9 dev eth0 lladdr 02:00:00:00:00:09"), "{neighbours}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guests_ipv6_routes_are_those_of_the_pod_and_no_router_adds_any() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    ip(cluster.pod.path(), "-6 route add fd77::/64 via fe80::1 dev eth0 metric 50 proto static");
    cluster.join(VNI).await;
    for command in ["-6 route show fd77::/64", "-6 route show default", "-6 route show fd44::/64"] {
        let words = |place: &std::path::Path| -> Vec<String> {
            ip(place, command).split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words(cluster.podns.path()), words(cluster.pod.path()), "{command}");
    }
    let addresses = ip(cluster.podns.path(), "-6 addr show dev eth0 scope global");
    assert!(addresses.contains(POD_IP6) && !addresses.contains("tentative"), "{addresses}");
    let net = format!("--net={}", cluster.podns.path().display());
    let accepts = support::run("nsenter", &[&net, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"]);
    assert_eq!(accepts.trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_image_switches_ipv6_off_has_it_on_the_pods_interface() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    let net = format!("--net={}", cluster.podns.path().display());
    support::run("nsenter", &[&net, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"]);
    cluster.join(VNI).await;
    assert!(ping(cluster.node.path(), POD_IP6, 100).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv4_route_through_an_ipv6_gateway_arrives_as_it_was() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    ip(cluster.pod.path(), "route add 10.7.0.0/16 via inet6 fd44::1 dev eth0");
    cluster.join(VNI).await;
    let route = ip(cluster.podns.path(), "route show 10.7.0.0/16");
    assert_eq!(route.trim(), "10.7.0.0/16 via inet6 fd44::1 dev eth0");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_asked_of_a_server_with_an_ipv6_address() {
    let cluster = only_v6(Family::V4).await;
    cluster.join(VNI).await;
    let server = peerpod_net::netns::run_in(cluster.node.path(), || async {
        tokio::net::UdpSocket::bind(format!("[{CNI_GATEWAY6}]:53")).await.unwrap().into_std().unwrap()
    })
    .await
    .unwrap();
    let answering = tokio::spawn(async move {
        let server = tokio::net::UdpSocket::from_std(server).unwrap();
        let mut question = [0; 512];
        let (length, from) = server.recv_from(&mut question).await.unwrap();
        // An answer is the question with one bit set.
        question[2] |= 0x80;
        server.send_to(&question[..length], from).await.unwrap();
        from
    });
    let answer = peerpod_net::netns::run_in(cluster.podns.path(), || async {
        let socket = tokio::net::UdpSocket::bind("[::]:0").await.unwrap();
        socket.connect(format!("[{CNI_GATEWAY6}]:53")).await.unwrap();
        let mut buffer = [0; 512];
        for _ in 0..20 {
            socket
                .send(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03pod\x00\x00\x1c\x00\x01")
                .await
                .unwrap();
            let wait = std::time::Duration::from_secs(1);
            if let Ok(Ok(length)) = tokio::time::timeout(wait, socket.recv(&mut buffer)).await {
                return buffer[..length].to_vec();
            }
        }
        Vec::new()
    })
    .await
    .unwrap();
    assert_eq!(answer.get(..3), Some(&b"\x12\x34\x81"[..]));
    assert_eq!(answering.await.unwrap().ip().to_string(), POD_IP6);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_of_the_family_of_the_peer_and_go_with_the_tunnel() {
    let cluster = Cluster::dual(over(Family::V6), 1400).await;
    let network = cluster.join(VNI).await;
    for (place, peer) in [(&cluster.node, "fd99::2"), (&cluster.guest, "fd99::1")] {
        let rules = ruleset(place.path());
        for part in [
            "table ip6 peerpod",
            &format!("udp dport 4789 ip6 daddr {peer} notrack comment \"peerpod [vni:555000]\""),
            &format!("udp dport 4789 ip6 saddr {peer} notrack comment \"peerpod [vni:555000]\""),
        ] {
            assert!(rules.contains(part), "{part:?} in {rules}");
        }
        assert!(!rules.contains("table ip peerpod"), "{rules}");
    }
    assert!(cluster.teardown(VNI).await.is_complete());
    assert!(cluster.guest_teardown(&network).await.is_complete());
    assert_eq!(ruleset(cluster.node.path()) + &ruleset(cluster.guest.path()), "");
    assert_eq!(ip(cluster.pod.path(), "link show type bridge"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_reserved_among_the_tunnels_of_its_family() {
    let cluster = Cluster::dual(over(Family::V6), 1400).await;
    let other = netns("taken").await;
    let path = other.path().to_owned();
    cluster
        .on_node(move || async move {
            peerpod_net::worker::reserve(&path, VNI, support::PORT, Family::V6).await.unwrap();
        })
        .await;
    assert_eq!(cluster.reserve(VNI).await.unwrap_err().kind(), NetErrorKind::IdInUse);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_of_the_other_family_is_made_anew_for_the_peer() {
    for (reserved, underlay) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let cluster = Cluster::dual(over(underlay), 1400).await;
        let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
        network.vxlan_id = VNI;
        let pod = cluster.pod_path();
        cluster
            .on_node(move || async move {
                peerpod_net::worker::reserve(&pod, VNI, support::PORT, reserved).await.unwrap();
            })
            .await;
        cluster.guest_setup(&network).await.unwrap();
        cluster.connect(VNI).await.unwrap();
        assert_eq!(cluster.echo(1000).await, 1000, "{reserved}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_two_ipv6_addresses_is_an_error_that_lists_them() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    ip(cluster.pod.path(), "addr add fd44::24/64 dev eth0 nodad");
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::ManyAddresses);
    let text = error.to_string();
    assert!(text.contains("fd44::23/64") && text.contains("fd44::24/64") && text.contains("IPv6"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_subnets_of_both_families_go_through_the_gateway_of_their_own() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    let mut opts = InspectOptions::default();
    opts.pod_subnet_cidrs = vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()];
    let network = cluster.inspect(opts.clone()).await.unwrap();
    let last = |network: &PodNetwork| serde_json::to_string(network.routes.last().unwrap()).unwrap();
    assert_eq!(last(&network), r#"{"dst":"10.96.0.0/12","gw":"10.244.1.1","dev":"eth0"}"#);
    let second = network.ipv6.unwrap();
    let route = serde_json::to_string(second.routes.last().unwrap()).unwrap();
    assert_eq!(route, r#"{"dst":"fd96::/112","gw":"fd44::1","dev":"eth0"}"#);

    // A pod of one family has no use for the prefixes of the other.
    let network = Cluster::new().await.inspect(opts).await.unwrap();
    assert!(network.ipv6.is_none() && network.routes.iter().all(|route| route.destination.addr().is_ipv4()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_external_network_takes_the_ways_out_of_both_families() {
    let cluster = Cluster::dual(over(Family::V4), 1450).await;
    ips(cluster.node.path(), "addr add 172.20.0.1/24 dev br0\n addr add fd20::1/64 dev br0 nodad");
    let mut opts = InspectOptions::default();
    opts.external_net_via_pod_vm = true;
    let mut network = cluster.inspect(opts).await.unwrap();
    network.vxlan_id = VNI;
    let guest = cluster.guest.path().file_name().unwrap().to_str().unwrap();
    ips(
        cluster.node.path(),
        &format!(
            "link add guest1 type veth peer name ens4 netns {guest}
             link set guest1 master br0
             link set guest1 up"
        ),
    );
    ips(
        cluster.guest.path(),
        "link set ens4 up
         addr add 172.20.0.9/24 dev ens4
         addr add fd20::9/64 dev ens4 nodad
         route add default via 172.20.0.1 metric 200
         -6 route add default via fd20::1 metric 2000",
    );

    cluster.guest_setup(&network).await.unwrap();

    let routes = ip(cluster.podns.path(), "-6 route show default");
    assert!(routes.contains("via fd20::1 dev ens4") && !routes.contains("eth0"), "{routes}");
    let hidden = ip(cluster.podns.path(), "-6 route show type unreachable");
    for address in ["fd00:ec2::254", "fd20:ce::254"] {
        assert!(hidden.contains(address), "{hidden}");
    }
    assert!(ping(cluster.podns.path(), "fd20::1", 100).await);
    assert!(ping(cluster.podns.path(), "172.20.0.1", 100).await);

    assert!(cluster.guest_teardown(&network).await.is_complete());
    assert_eq!(ip(cluster.podns.path(), "-6 route show type unreachable"), "");
    let addresses = ip(cluster.guest.path(), "addr show ens4");
    assert!(addresses.contains("fd20::9/64") && addresses.contains("172.20.0.9/24"), "{addresses}");
    let back = ip(cluster.guest.path(), "-6 route show default");
    assert!(back.contains("via fd20::1 dev ens4"), "{back}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_an_address_of_the_tunnels_family_is_waited_for() {
    let cluster = std::sync::Arc::new(Cluster::dual(over(Family::V6), 1400).await);
    let network = {
        let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
        network.vxlan_id = VNI;
        network
    };
    ips(
        cluster.guest.path(),
        "addr del fd99::2/64 dev ens3
         addr add 10.99.0.2/24 dev ens3
         route add default via 10.99.0.1",
    );
    let setup = tokio::spawn({
        let (cluster, network) = (cluster.clone(), network.clone());
        async move { cluster.guest_setup(&network).await }
    });
    ip(cluster.guest.path(), "addr add fd99::2/64 dev ens3 nodad");
    assert!(!setup.is_finished());
    ip(cluster.guest.path(), "-6 route replace default via fd99::1");
    setup.await.unwrap().unwrap();
    assert!(ip(cluster.podns.path(), "link show eth0").contains("UP"));
}
