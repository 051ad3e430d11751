//! The guest's end on its own: stale state, failures, waiting, the external network.

mod support;

use std::time::{Duration, Instant};

use peerpod_net::{InspectOptions, NetErrorKind, PodNetwork};
use support::{Cluster, ip, ips, ruleset};
use tokio_util::sync::CancellationToken;

const VNI: u32 = 555_000;

async fn inspected(cluster: &Cluster) -> PodNetwork {
    let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
    network.vxlan_id = VNI;
    network
}

/// Asserts that nothing of a tunnel is in the guest.
fn assert_clean(cluster: &Cluster) {
    assert_eq!(ruleset(cluster.guest.path()), "");
    for place in [&cluster.guest, &cluster.podns] {
        assert_eq!(ip(place.path(), "link show type vxlan"), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_device_of_an_earlier_run_is_replaced() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    let id = format!("type vxlan id {VNI} dstport 4789 remote 10.99.0.250");
    ip(cluster.guest.path(), &format!("link add vxlan0 {id}"));
    let podns = cluster.podns.path().file_name().unwrap().to_str().unwrap().to_owned();
    ip(cluster.guest.path(), &format!("link set vxlan0 netns {podns} name eth0"));

    cluster.guest_setup(&network).await.unwrap();

    let device = ip(cluster.podns.path(), "-d link show eth0");
    assert!(device.contains("remote 10.99.0.1 "), "{device}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_left_half_way_to_the_pod_namespace_is_replaced() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    ip(cluster.guest.path(), &format!("link add vxlan0 type vxlan id {VNI} dstport 4789 remote 10.99.0.1"));

    cluster.guest_setup(&network).await.unwrap();

    assert_eq!(ip(cluster.guest.path(), "link show type vxlan"), "");
    assert!(cluster.guest_teardown(&network).await.is_complete());
    assert_clean(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_guest_itself_uses_is_free_for_the_pod() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    // Machines call their first card so; a set-up that was killed may have left the device it was about to rename.
    ip(cluster.guest.path(), &format!("link add {} type bridge", network.interface));
    let id = format!("type vxlan id {} dstport 4789 remote 10.99.0.250", VNI + 1);
    ip(cluster.podns.path(), &format!("link add pp{VNI:x}p12b5 {id}"));

    cluster.guest_setup(&network).await.unwrap();

    let devices = ip(cluster.podns.path(), "-d link show type vxlan");
    assert!(devices.contains(&format!(": {}", network.interface)), "{devices}");
    assert!(devices.contains("remote 10.99.0.1 "), "{devices}");
    assert_eq!(devices.matches("remote").count(), 1, "{devices}");
    assert!(cluster.guest_teardown(&network).await.is_complete());
    assert_clean(&cluster);
    assert!(ip(cluster.guest.path(), "link show type bridge").contains(&network.interface));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_is_not_ours_is_left_alone() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    ip(cluster.podns.path(), "link add eth0 type bridge");

    let error = cluster.guest_setup(&network).await.unwrap_err();

    assert_eq!(error.kind(), NetErrorKind::NameTaken);
    assert!(error.to_string().contains("eth0") && error.to_string().contains("bridge"), "{error}");
    assert!(ip(cluster.podns.path(), "link show type bridge").contains("eth0"));
    assert_clean(&cluster);
    assert!(cluster.guest_teardown(&network).await.is_complete());
    assert!(ip(cluster.podns.path(), "link show type bridge").contains("eth0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_another_interface_has_is_an_error() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    let elsewhere = support::netns("elsewhere").await;
    ip(cluster.guest.path(), &format!("link add other type vxlan id {VNI} dstport 4789"));
    let name = elsewhere.path().file_name().unwrap().to_str().unwrap().to_owned();
    ip(cluster.guest.path(), &format!("link set other netns {name}"));

    let error = cluster.guest_setup(&network).await.unwrap_err();

    assert_eq!(error.kind(), NetErrorKind::IdInUse);
    assert_clean(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_route_is_named_and_everything_is_undone() {
    let cluster = Cluster::new().await;
    let mut network = inspected(&cluster).await;
    let unreachable_gateway = r#"{"dst":"10.77.0.0/16","gw":"192.0.2.1","dev":"eth0"}"#;
    network.routes.push(serde_json::from_str(unreachable_gateway).unwrap());

    let error = cluster.guest_setup(&network).await.unwrap_err();

    assert_eq!(error.kind(), NetErrorKind::Kernel);
    assert!(error.to_string().contains("10.77.0.0/16 via 192.0.2.1 dev eth0"), "{error}");
    assert_clean(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_onlink_route_with_metric_and_mtu_arrives_as_it_was() {
    let cluster = Cluster::new().await;
    ip(
        cluster.pod.path(),
        "route add 10.7.0.0/16 via 192.0.2.1 dev eth0 onlink metric 50 mtu 1300 proto dhcp src 10.244.1.23",
    );
    let network = inspected(&cluster).await;
    cluster.guest_setup(&network).await.unwrap();
    for command in ["route show 10.7.0.0/16", "route show 10.244.1.0/24", "route show default"] {
        assert_eq!(
            ip(cluster.podns.path(), command).split_whitespace().collect::<Vec<_>>(),
            ip(cluster.pod.path(), command).split_whitespace().collect::<Vec<_>>()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_of_the_same_destination_without_metrics_do_not_fail() {
    let cluster = Cluster::new().await;
    let mut network = inspected(&cluster).await;
    let second = r#"{"dst":"","gw":"10.244.1.2","dev":"eth0","protocol":"boot"}"#;
    network.routes.push(serde_json::from_str(second).unwrap());
    cluster.guest_setup(&network).await.unwrap();
    let routes = ip(cluster.podns.path(), "route show default");
    assert!(routes.contains("via 10.244.1.1") && !routes.contains("via 10.244.1.2"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calico_pod_answers_through_its_link_local_gateway() {
    let cluster = Cluster::with_pod(|cluster| {
        ips(
            cluster.pod.path(),
            "addr add 10.244.1.23/32 dev eth0
             link set eth0 up
             route add 169.254.1.1 dev eth0 scope link
             route add default via 169.254.1.1 dev eth0",
        );
        ips(
            cluster.node.path(),
            "addr add 169.254.1.1/32 dev cni0
             route add 10.244.1.23/32 dev cni0 src 10.244.1.1",
        );
    })
    .await;
    cluster.join(VNI).await;
    assert_eq!(cluster.echo(50_000).await, 50_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_neighbours_arrive() {
    let cluster = Cluster::new().await;
    ip(cluster.pod.path(), "neigh add 10.244.1.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
    let network = inspected(&cluster).await;
    cluster.guest_setup(&network).await.unwrap();
    let neighbors = ip(cluster.podns.path(), "neigh show nud permanent");
    assert!(neighbors.contains("10.244.1.9 dev eth0 lladdr 02:00:00:00:00:09"), "{neighbors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mtu_follows_the_real_underlay() {
    for (underlay, pod, expected) in [("1300", 1450, "mtu 1250 "), ("9000", 8000, "mtu 8000 ")] {
        let cluster = Cluster::new().await;
        let mut network = inspected(&cluster).await;
        network.mtu = pod;
        ip(cluster.guest.path(), &format!("link set ens3 mtu {underlay}"));
        cluster.guest_setup(&network).await.unwrap();
        let device = ip(cluster.podns.path(), "link show eth0");
        assert!(device.contains(expected), "{expected:?} in {device}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_mtu_of_the_route_to_the_node_counts() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    ip(cluster.guest.path(), "route add 10.99.0.1/32 dev ens3 mtu lock 1200");
    cluster.guest_setup(&network).await.unwrap();
    let device = ip(cluster.podns.path(), "link show eth0");
    assert!(device.contains("mtu 1150 "), "{device}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secondary_addresses_of_the_guest_are_fine() {
    let cluster = Cluster::new().await;
    ip(cluster.guest.path(), "addr add 10.99.0.50/24 dev ens3");
    ip(cluster.guest.path(), "addr add 172.31.0.7/16 dev ens3");
    cluster.join(VNI).await;
    assert_eq!(cluster.echo(1000).await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_set_up_waits_for_the_guests_address() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    ip(cluster.guest.path(), "addr flush dev ens3");
    let (cluster, network) = (std::sync::Arc::new(cluster), network);
    let setup = tokio::spawn({
        let (cluster, network) = (cluster.clone(), network.clone());
        async move { cluster.guest_setup(&network).await }
    });
    ip(cluster.guest.path(), "addr add 10.99.0.2/24 dev ens3");
    assert!(!setup.is_finished());
    let ready = Instant::now();
    ip(cluster.guest.path(), "route add default via 10.99.0.1");
    setup.await.unwrap().unwrap();
    assert!(ready.elapsed() < Duration::from_secs(5), "{:?}", ready.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_cancelled_and_leaves_nothing() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    ip(cluster.guest.path(), "route del default");
    let cancel = CancellationToken::new();
    let setup = cluster.guest_setup_with(&network, None, &cancel);
    let (outcome, ()) = tokio::join!(setup, async { cancel.cancel() });
    assert_eq!(outcome.unwrap_err().kind(), NetErrorKind::Cancelled);
    assert_clean(&cluster);
}

/// Whether a thread of this process is in a namespace.
fn inhabited(netns: &std::path::Path) -> bool {
    let wanted = peerpod_net::netns::inode(netns).unwrap();
    std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
        // A thread may end while it is looked at.
        let namespace = task.unwrap().path().join("ns/net");
        peerpod_net::netns::inode(&namespace).is_ok_and(|inode| inode == wanted)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_set_up_ends_it() {
    let cluster = std::sync::Arc::new(Cluster::new().await);
    let network = inspected(&cluster).await;
    ip(cluster.guest.path(), "route del default");
    let (podns, guest) = (cluster.podns.path().to_owned(), cluster.guest.path().to_owned());
    let (drop_it, dropped) = tokio::sync::oneshot::channel::<()>();
    let setup = tokio::spawn(async move {
        peerpod_net::netns::run_in(&guest, move || async move {
            let cancel = CancellationToken::new();
            tokio::select! {
                outcome = peerpod_net::guest::setup(&podns, &network, None, &cancel) => outcome.unwrap(),
                _ = dropped => {}
            }
        })
        .await
        .unwrap();
    });
    let waiting = || async { inhabited(cluster.podns.path()).then_some(()) };
    support::wait_for("the set-up to wait", waiting).await;

    drop(drop_it);

    setup.await.unwrap();
    let gone = || async { (!inhabited(cluster.podns.path())).then_some(()) };
    support::wait_for("the set-up to end", gone).await;
    assert_clean(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dedicated_tunnel_needs_its_interface() {
    let cluster = Cluster::new().await;
    let mut network = inspected(&cluster).await;
    network.dedicated = true;
    let cancel = CancellationToken::new();

    let error = cluster.guest_setup_with(&network, None, &cancel).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::InvalidInput);
    assert!(error.to_string().contains("-host-interface"), "{error}");
    let error = cluster.guest_setup_with(&network, Some("ens3"), &cancel).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::InvalidInput);
    assert!(error.to_string().contains("ens3"), "{error}");
    assert_clean(&cluster);

    second_interface(&cluster, "ens4");
    ip(cluster.guest.path(), "addr add 10.99.0.3/24 dev ens4");
    cluster.guest_setup_with(&network, Some("ens4"), &cancel).await.unwrap();
    assert!(ip(cluster.podns.path(), "link show eth0").contains("UP"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_namespace_that_does_not_exist_is_an_error() {
    let cluster = Cluster::new().await;
    let network = inspected(&cluster).await;
    let name = cluster.podns.path().file_name().unwrap().to_str().unwrap().to_owned();
    peerpod_net::netns::delete(&name).unwrap();
    let error = cluster.guest_setup(&network).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NetnsMissing);
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(ruleset(cluster.guest.path()), "");
}

/// Gives the guest another interface on the node's bridge, up and without an address.
fn second_interface(cluster: &Cluster, name: &str) {
    let guest = cluster.guest.path().file_name().unwrap().to_str().unwrap();
    ips(
        cluster.node.path(),
        &format!(
            "link add guest1 type veth peer name {name} netns {guest}
             link set guest1 master br0
             link set guest1 up"
        ),
    );
    ip(cluster.guest.path(), &format!("link set {name} up"));
}

fn sorted(text: String) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

async fn external(cluster: &Cluster) -> PodNetwork {
    let mut opts = InspectOptions::default();
    opts.external_net_via_pod_vm = true;
    opts.pod_subnet_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let mut network = cluster.inspect(opts).await.unwrap();
    network.vxlan_id = VNI;
    network
}

#[tokio::test(flavor = "multi_thread")]
async fn the_external_network_takes_the_second_interface_and_gives_it_back() {
    let cluster = Cluster::new().await;
    ip(cluster.node.path(), "addr add 172.20.0.1/24 dev br0");
    let network = external(&cluster).await;
    second_interface(&cluster, "ens4");
    ips(
        cluster.guest.path(),
        "addr add 172.20.0.9/24 dev ens4
         route add default via 172.20.0.1 metric 200",
    );
    let before = ip(cluster.guest.path(), "route");

    cluster.guest_setup(&network).await.unwrap();
    let routes = ip(cluster.podns.path(), "route");
    assert!(routes.contains("default via 172.20.0.1 dev ens4 metric 200"), "{routes}");
    assert!(!routes.contains("default via 10.244.1.1"), "{routes}");
    assert!(routes.contains("10.244.0.0/16 via 10.244.1.1 dev eth0"), "{routes}");
    assert!(!ip(cluster.guest.path(), "link").contains("ens4"));
    // A restarted guest program finds the interface where the earlier run put it.
    cluster.guest_setup(&network).await.unwrap();
    assert_eq!(ip(cluster.podns.path(), "route"), routes);
    // The pod reaches the outside, as its node shows here, through the second interface.
    assert_eq!(support::echo(cluster.node.path(), cluster.podns.path(), "172.20.0.1", 1000).await, 1000);

    let report = cluster.guest_teardown(&network).await;
    assert!(report.is_complete(), "{report:?}");
    assert_clean(&cluster);
    assert!(!ip(cluster.podns.path(), "link").contains("ens4"));
    assert_eq!(ip(cluster.podns.path(), "route"), "");
    assert_eq!(sorted(ip(cluster.guest.path(), "route")), sorted(before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interface_in_the_primary_subnet_borrows_its_gateway() {
    let cluster = Cluster::new().await;
    let network = external(&cluster).await;
    second_interface(&cluster, "ens4");
    ip(cluster.guest.path(), "addr add 10.99.0.3/24 dev ens4 noprefixroute");

    cluster.guest_setup(&network).await.unwrap();
    let routes = ip(cluster.podns.path(), "route show default");
    assert_eq!(routes.trim(), "default via 10.99.0.1 dev ens4 onlink");

    assert!(cluster.guest_teardown(&network).await.is_complete());
    // The borrowed route is not brought along: the primary interface keeps the guest's only default route.
    assert_eq!(ip(cluster.guest.path(), "route show default").trim(), "default via 10.99.0.1 dev ens3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_services_stay_out_of_the_pods_sight() {
    let cluster = Cluster::new().await;
    let network = external(&cluster).await;
    second_interface(&cluster, "ens4");
    ips(
        cluster.guest.path(),
        "addr add 172.20.0.9/24 dev ens4\n route add default via 172.20.0.1 metric 200",
    );
    cluster.guest_setup(&network).await.unwrap();
    let routes = ip(cluster.podns.path(), "route show type unreachable");
    for address in ["169.254.169.254", "100.100.100.200"] {
        assert!(routes.contains(address), "{routes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_network_without_an_interface_fails_the_set_up() {
    let cluster = Cluster::new().await;
    let network = external(&cluster).await;
    second_interface(&cluster, "vethabc");
    ips(
        cluster.guest.path(),
        "addr add 172.20.0.9/24 dev vethabc\n route add default via 172.20.0.1 metric 200",
    );

    let error = cluster.guest_setup(&network).await.unwrap_err();

    assert_eq!(error.kind(), NetErrorKind::NoInterface);
    assert!(error.to_string().contains("external-net-via-pod-vm"), "{error}");
    assert_clean(&cluster);
    assert!(ip(cluster.guest.path(), "addr show vethabc").contains("172.20.0.9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_external_network_gives_the_interface_back() {
    let cluster = Cluster::new().await;
    let network = external(&cluster).await;
    second_interface(&cluster, "ens4");
    ips(
        cluster.guest.path(),
        "addr add 172.20.0.9/32 dev ens4 noprefixroute
         route add 172.20.0.1/32 dev ens4
         route add default via 172.20.0.1 dev ens4 metric 200",
    );
    // Stands in the way once the interface has moved.
    ip(cluster.podns.path(), "route add unreachable default metric 200");
    let before = ip(cluster.guest.path(), "route");

    let error = cluster.guest_setup(&network).await.unwrap_err();

    assert!(error.to_string().contains("default route dev ens4"), "{error}");
    assert_clean(&cluster);
    assert!(ip(cluster.guest.path(), "addr show ens4").contains("172.20.0.9/32"));
    assert_eq!(sorted(ip(cluster.guest.path(), "route")), sorted(before));
    assert!(!ip(cluster.podns.path(), "link").contains("ens4"));
}
