//! The whole tunnel, between namespaces that stand in for a node and a guest.

mod support;

use std::time::Duration;

use peerpod_net::netns::{self, NetnsGuard};
use peerpod_net::{Family, InspectOptions, NetErrorKind, guest, worker};
use support::{Cluster, GUEST_IP, PORT, ip, ips, netns, ruleset, tc};

const VNI: u32 = 555_000;

#[tokio::test(flavor = "multi_thread")]
async fn packets_reach_the_guest_under_the_pods_address() {
    let cluster = Cluster::new().await;
    let network = cluster.join(VNI).await;

    assert_eq!(cluster.echo(200_000).await, 200_000);

    let node_end = worker::counters(cluster.pod.path()).await.unwrap();
    let guest_end = guest::counters(cluster.podns.path(), "eth0").await.unwrap();
    for counted in [node_end, guest_end] {
        assert!(counted.rx_packets > 10 && counted.tx_packets > 10, "{node_end:?} {guest_end:?}");
        assert!(counted.rx_bytes > 200_000 && counted.tx_bytes > 200_000, "{node_end:?} {guest_end:?}");
    }
    // The guest answers for the pod under its MAC address.
    let seen = ip(cluster.node.path(), "neigh show 10.244.1.23 dev cni0");
    assert!(seen.contains(&network.pod_hw_addr), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_devices_are_what_the_existing_programs_make() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;

    let node_end = ip(cluster.pod.path(), "-d link show vxlan1");
    for part in ["vxlan id 555000 ", &format!("remote {GUEST_IP} "), "dstport 4789", "nolearning", "UP"] {
        assert!(node_end.contains(part), "{part:?} in {node_end}");
    }
    let guest_end = ip(cluster.podns.path(), "-d link show eth0");
    for part in ["vxlan id 555000 ", "remote 10.99.0.1 ", "nolearning", "6a:1b:2c:3d:4e:5f", "mtu 1400"] {
        assert!(guest_end.contains(part), "{part:?} in {guest_end}");
    }
    for (from, to) in [("eth0", "vxlan1"), ("vxlan1", "eth0")] {
        let filters = tc(cluster.pod.path(), &format!("filter show dev {from} ingress"));
        assert!(filters.contains("protocol all"), "{filters}");
        assert!(filters.contains("match 00000000/00000000 at 0"), "{filters}");
        assert!(filters.contains(&format!("Egress Redirect to device {to}) stolen")), "{filters}");
    }
    let routes = ip(cluster.podns.path(), "route");
    assert!(routes.contains("default via 10.244.1.1 dev eth0"), "{routes}");
    assert!(routes.contains("10.244.1.0/24 dev eth0 proto kernel scope link src 10.244.1.23"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_exempt_the_tunnel_from_connection_tracking() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;

    for (place, peer) in [(&cluster.node, GUEST_IP), (&cluster.guest, support::NODE_IP)] {
        let rules = ruleset(place.path());
        for part in [
            "hook output priority raw",
            "hook prerouting priority raw",
            &format!("udp dport 4789 ip daddr {peer} notrack comment \"peerpod [vni:555000]\""),
            &format!("udp dport 4789 ip saddr {peer} notrack comment \"peerpod [vni:555000]\""),
        ] {
            assert!(rules.contains(part), "{part:?} in {rules}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn setting_up_twice_changes_nothing() {
    let cluster = Cluster::new().await;
    let network = cluster.join(VNI).await;
    let rules = ruleset(cluster.node.path());

    cluster.guest_setup(&network).await.unwrap();
    cluster.connect(VNI).await.unwrap();
    cluster.connect(VNI).await.unwrap();

    assert_eq!(ruleset(cluster.node.path()), rules);
    assert_eq!(cluster.echo(1000).await, 1000);
    let filters = tc(cluster.pod.path(), "filter show dev eth0 ingress");
    assert_eq!(filters.matches("Egress Redirect").count(), 1, "{filters}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_follows_its_guest_to_another_address() {
    let cluster = Cluster::new().await;
    let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
    network.vxlan_id = VNI;
    let elsewhere = worker::TunnelSpec::new(VNI, PORT, "10.99.0.77".parse().unwrap(), "eth0");
    let pod = cluster.pod_path();
    cluster.on_node(move || async move { worker::connect(&pod, &elsewhere).await }).await.unwrap();
    cluster.guest_setup(&network).await.unwrap();

    cluster.connect(VNI).await.unwrap();

    assert_eq!(cluster.echo(1000).await, 1000);
    assert!(!ruleset(cluster.node.path()).contains("10.99.0.77"));
    assert!(!ip(cluster.pod.path(), "-d link show vxlan1").contains("10.99.0.77"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tearing_down_twice_leaves_nothing_the_second_time_too() {
    let cluster = Cluster::new().await;
    let network = cluster.join(VNI).await;

    let first = cluster.teardown(VNI).await;
    assert!(first.is_complete() && first.removed().len() == 4, "{first:?}");
    let second = cluster.teardown(VNI).await;
    assert!(second.is_complete() && second.removed().is_empty(), "{second:?}");
    let first = cluster.guest_teardown(&network).await;
    assert!(first.is_complete() && first.removed().len() == 2, "{first:?}");
    let second = cluster.guest_teardown(&network).await;
    assert!(second.is_complete() && second.removed().is_empty(), "{second:?}");

    assert_eq!(ruleset(cluster.node.path()), "");
    assert_eq!(ruleset(cluster.guest.path()), "");
    assert_eq!(ip(cluster.pod.path(), "link show type vxlan"), "");
    assert_eq!(ip(cluster.podns.path(), "link show type vxlan"), "");
    assert!(!tc(cluster.pod.path(), "qdisc show").contains("ingress"));
    // The pod's own interface is as before.
    assert!(ip(cluster.pod.path(), "addr show eth0").contains("10.244.1.23/24"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_after_the_namespace_is_gone_still_removes_the_rules() {
    let cluster = Cluster::new().await;
    let network = cluster.join(VNI).await;
    let Cluster { podns, guest, pod, node, .. } = cluster;
    let (pod_path, podns_path) = (pod.path().to_owned(), podns.path().to_owned());
    drop((pod, podns));

    let report =
        netns::run_in(node.path(), move || async move { worker::teardown(&pod_path, VNI, PORT).await })
            .await
            .unwrap();
    assert!(report.is_complete(), "{report:?}");
    let report =
        netns::run_in(guest.path(), move || async move { guest::teardown(&podns_path, &network).await })
            .await
            .unwrap();
    assert!(report.is_complete(), "{report:?}");

    assert_eq!(ruleset(node.path()), "");
    assert_eq!(ruleset(guest.path()), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_finds_redirects_whose_tunnel_is_gone() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;
    ip(cluster.pod.path(), "link del vxlan1");

    let report = cluster.teardown(VNI).await;

    assert!(report.is_complete(), "{report:?}");
    assert!(!tc(cluster.pod.path(), "qdisc show").contains("ingress"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_leaves_other_tunnels_and_other_tables_alone() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;
    let foreign = netns("other").await;
    let path = foreign.path().to_owned();
    cluster
        .on_node(move || async move {
            ip(&path, "link add eth0 type bridge");
            worker::reserve(&path, VNI + 1, PORT, Family::V4).await.unwrap();
            let other = worker::TunnelSpec::new(VNI + 1, PORT, "10.99.0.3".parse().unwrap(), "eth0");
            worker::connect(&path, &other).await.unwrap();
        })
        .await;
    let net = format!("--net={}", cluster.node.path().display());
    support::run("nsenter", &[&net, "nft", "add", "table", "ip", "theirs"]);

    assert!(cluster.teardown(VNI).await.is_complete());

    let rules = ruleset(cluster.node.path());
    assert!(!rules.contains("[vni:555000]"), "{rules}");
    assert_eq!(rules.matches("peerpod [vni:555001]").count(), 3, "{rules}");
    assert!(rules.contains("table ip theirs"), "{rules}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_teardown_leaves_a_tunnel_with_another_id_alone() {
    let cluster = Cluster::new().await;
    cluster.join(VNI + 1).await;

    let report = cluster.teardown(VNI).await;

    assert!(report.is_complete() && report.removed().is_empty(), "{report:?}");
    assert_eq!(cluster.echo(1000).await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_down_tunnel_frees_its_id() {
    let cluster = Cluster::new().await;
    cluster.reserve(VNI).await.unwrap();
    assert!(cluster.teardown(VNI).await.is_complete());
    let other = netns("other").await;
    let path = other.path().to_owned();
    cluster
        .on_node(move || async move { worker::reserve(&path, VNI, PORT, Family::V4).await.unwrap() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_somebody_removed_come_back_and_are_not_missed_at_the_end() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;
    let net = format!("--net={}", cluster.node.path().display());
    let nft = |command: &str| support::run("nsenter", &[&net, "nft", command]);
    let rules = ruleset(cluster.node.path());

    nft("flush chain ip peerpod output");
    cluster.connect(VNI).await.unwrap();
    assert_eq!(ruleset(cluster.node.path()), rules);
    nft("delete chain ip peerpod prerouting");
    cluster.connect(VNI).await.unwrap();
    assert_eq!(ruleset(cluster.node.path()).matches("notrack comment").count(), 2);
    nft("delete table ip peerpod");
    let report = cluster.teardown(VNI).await;
    assert!(report.is_complete() && report.removed().len() == 3, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_on_another_port_is_another_tunnel() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;
    let second = netns("port").await;
    let path = second.path().to_owned();
    cluster
        .on_node(move || async move {
            ip(&path, "link add eth0 type bridge");
            worker::reserve(&path, VNI, 8472, Family::V4).await.unwrap();
            let other = worker::TunnelSpec::new(VNI, 8472, "10.99.0.3".parse().unwrap(), "eth0");
            worker::connect(&path, &other).await.unwrap();
            assert!(worker::teardown(&path, VNI, 8472).await.is_complete());
        })
        .await;

    let rules = ruleset(cluster.node.path());
    assert_eq!(rules.matches("udp dport 4789").count(), 3, "{rules}");
    assert_eq!(cluster.echo(1000).await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_id_says_so_and_the_next_one_works() {
    let cluster = Cluster::new().await;
    let others = netns("taken").await;
    let path = others.path().to_owned();
    cluster
        .on_node(move || async move { worker::reserve(&path, VNI, PORT, Family::V4).await.unwrap() })
        .await;

    let refused = cluster.reserve(VNI).await.unwrap_err();

    assert_eq!(refused.kind(), NetErrorKind::IdInUse);
    assert!(refused.to_string().contains("id 555000 on UDP port 4789"), "{refused}");
    assert_eq!(ip(cluster.pod.path(), "link show type vxlan"), "");
    cluster.reserve(VNI + 1).await.unwrap();
    // A reservation receives nothing yet.
    assert!(ip(cluster.pod.path(), "link show vxlan1").contains("state DOWN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_free_again_once_its_namespace_is_gone() {
    let cluster = Cluster::new().await;
    let first = netns("first").await;
    let path = first.path().to_owned();
    cluster
        .on_node(move || async move { worker::reserve(&path, VNI, PORT, Family::V4).await.unwrap() })
        .await;
    drop(first);

    support::wait_for("the id to be free", || async { cluster.reserve(VNI).await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reserving_again_replaces_the_pods_own_tunnel() {
    let cluster = Cluster::new().await;
    cluster.reserve(VNI).await.unwrap();
    cluster.reserve(VNI).await.unwrap();
    cluster.reserve(VNI + 5).await.unwrap();

    assert!(ip(cluster.pod.path(), "-d link show vxlan1").contains("vxlan id 555005 "));
    // The first id is free again.
    let other = netns("other").await;
    let path = other.path().to_owned();
    cluster
        .on_node(move || async move { worker::reserve(&path, VNI, PORT, Family::V4).await.unwrap() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_is_no_taken_id() {
    let cluster = Cluster::new().await;
    ip(cluster.pod.path(), "link add vxlan1 type bridge");

    let refused = cluster.reserve(VNI).await.unwrap_err();

    assert_eq!(refused.kind(), NetErrorKind::NameTaken);
    assert!(refused.to_string().contains("vxlan1"), "{refused}");
    // A teardown leaves what is not ours.
    assert!(cluster.teardown(VNI).await.is_complete());
    assert!(ip(cluster.pod.path(), "link show vxlan1").contains("vxlan1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_beyond_24_bits_are_refused() {
    let cluster = Cluster::new().await;
    for id in [0, 1 << 24, u32::MAX] {
        let refused = cluster.reserve(id).await.unwrap_err();
        assert_eq!(refused.kind(), NetErrorKind::IdOutOfRange, "{id}");
    }
    cluster.reserve((1 << 24) - 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connect_leaves_only_the_reservation() {
    let cluster = Cluster::new().await;
    cluster.reserve(VNI).await.unwrap();
    // An ingress hook of another kind cannot be replaced by ours.
    tc(cluster.pod.path(), "qdisc add dev eth0 clsact");

    let refused = cluster.connect(VNI).await.unwrap_err();

    assert_eq!(refused.kind(), NetErrorKind::Kernel);
    assert!(refused.to_string().contains("redirect what arrives on eth0"), "{refused}");
    assert_eq!(ruleset(cluster.node.path()), "");
    assert!(!tc(cluster.pod.path(), "qdisc show dev vxlan1").contains("ingress"));
    assert_eq!(ip(cluster.pod.path(), "link show type bridge"), "");
    assert!(ip(cluster.pod.path(), "-d link show vxlan1").contains("vxlan id 555000 "));
    assert!(tc(cluster.pod.path(), "qdisc show dev eth0").contains("clsact"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_names_what_is_missing() {
    let cluster = Cluster::new().await;
    let pod = cluster.pod_path();
    cluster
        .on_node(move || async move {
            let no_interface = worker::TunnelSpec::new(VNI, PORT, GUEST_IP.parse().unwrap(), "net7");
            let error = worker::connect(&pod, &no_interface).await.unwrap_err();
            assert_eq!(error.kind(), NetErrorKind::NoInterface);
            assert!(error.to_string().contains("net7"), "{error}");

            let gone = std::path::Path::new("/run/netns/peerpod-net-was-never-here");
            let error = worker::reserve(gone, VNI, PORT, Family::V4).await.unwrap_err();
            assert_eq!(error.kind(), NetErrorKind::NetnsMissing);
            assert!(error.to_string().contains("peerpod-net-was-never-here"), "{error}");
            let error = worker::counters(&pod).await.unwrap_err();
            assert_eq!(error.kind(), NetErrorKind::NoInterface);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_namespace_is_no_pod() {
    let cluster = Cluster::new().await;
    let node = cluster.node.path().to_owned();
    let error = cluster
        .on_node(move || async move { worker::reserve(&node, VNI, PORT, Family::V4).await })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tunnels_of_one_node_come_and_go_at_once() {
    const TUNNELS: u32 = 12;
    let cluster = Cluster::new().await;
    let mut pods: Vec<NetnsGuard> = Vec::new();
    for _ in 0..TUNNELS {
        let pod = netns("many").await;
        ips(pod.path(), "link add eth0 type bridge\n link set eth0 up");
        pods.push(pod);
    }
    let round = |connect: bool| {
        let paths: Vec<_> = pods.iter().map(|pod| pod.path().to_owned()).collect();
        netns::run_in(cluster.node.path(), move || async move {
            let mut tasks = tokio::task::JoinSet::new();
            for (n, path) in (0u8..).zip(paths) {
                tasks.spawn(async move {
                    let vni = VNI + u32::from(n);
                    if connect {
                        let peer = std::net::Ipv4Addr::new(10, 99, 0, 100 + n);
                        let tunnel = worker::TunnelSpec::new(vni, PORT, peer.into(), "eth0");
                        worker::reserve(&path, vni, PORT, Family::V4).await.unwrap();
                        worker::connect(&path, &tunnel).await.unwrap();
                    } else {
                        let report = worker::teardown(&path, vni, PORT).await;
                        assert!(report.is_complete(), "{report:?}");
                    }
                });
            }
            tasks.join_all().await;
        })
    };

    round(true).await.unwrap();
    let rules = ruleset(cluster.node.path());
    assert_eq!(rules.matches("notrack comment").count(), 2 * TUNNELS as usize, "{rules}");
    round(false).await.unwrap();
    assert_eq!(ruleset(cluster.node.path()), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_survive_changes_by_other_programs() {
    let cluster = Cluster::new().await;
    let net = format!("--net={}", cluster.node.path().display());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                support::run(
                    "nsenter",
                    &[&net, "nft", "add table ip busy; add chain ip busy c; delete table ip busy"],
                );
            }
        }
    });
    for _ in 0..20 {
        cluster.reserve(VNI).await.unwrap();
        cluster.connect(VNI).await.unwrap();
        assert!(cluster.teardown(VNI).await.is_complete());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    busy.join().unwrap();
    assert!(!ruleset(cluster.node.path()).contains("peerpod"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_in_the_middle_is_an_error_in_good_time() {
    let cluster = Cluster::new().await;
    let path = cluster.pod_path();
    netns::delete(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let connect = cluster.connect(VNI);
    let error = tokio::time::timeout(Duration::from_secs(20), connect).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NetnsMissing);
    assert_eq!(ruleset(cluster.node.path()), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_node_end_works_with_a_guest_made_step_by_step() {
    let cluster = Cluster::new().await;
    cluster.reserve(VNI).await.unwrap();
    let podns = cluster.podns.path().file_name().unwrap().to_str().unwrap();
    ips(
        cluster.guest.path(),
        &format!(
            "link add vxlan0 type vxlan id {VNI} remote 10.99.0.1 dstport 4789 nolearning
             link set vxlan0 netns {podns}"
        ),
    );
    ips(
        cluster.podns.path(),
        "link set vxlan0 name eth0
         link set eth0 address 6a:1b:2c:3d:4e:5f
         link set eth0 mtu 1400
         addr add 10.244.1.23/24 dev eth0
         link set eth0 up",
    );

    cluster.connect(VNI).await.unwrap();

    assert_eq!(cluster.echo(100_000).await, 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_guest_end_works_with_a_node_made_step_by_step() {
    let cluster = Cluster::new().await;
    let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
    network.vxlan_id = VNI;
    let pod = cluster.pod.path().file_name().unwrap().to_str().unwrap();
    ips(
        cluster.node.path(),
        &format!(
            "link add ppvxlan1 type vxlan id {VNI} remote {GUEST_IP} dstport 4789 nolearning
             link set ppvxlan1 netns {pod}"
        ),
    );
    ips(cluster.pod.path(), "link set ppvxlan1 name vxlan1\n link set vxlan1 up");
    for (from, to) in [("eth0", "vxlan1"), ("vxlan1", "eth0")] {
        tc(cluster.pod.path(), &format!("qdisc add dev {from} ingress"));
        let matching = "protocol all u32 match u32 0 0 action mirred egress redirect dev";
        tc(cluster.pod.path(), &format!("filter add dev {from} parent ffff: {matching} {to}"));
    }

    cluster.guest_setup(&network).await.unwrap();

    assert_eq!(cluster.echo(100_000).await, 100_000);
    // A daemon of ours that takes over a node tears the other's tunnel down.
    let report = cluster.teardown(VNI).await;
    assert!(report.is_complete() && report.removed().len() == 3, "{report:?}");
    assert!(!tc(cluster.pod.path(), "qdisc show").contains("ingress"));
}
