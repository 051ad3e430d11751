//! Who may send into a tunnel, and tunnels of pods that have one address.

mod support;

use std::path::Path;

use peerpod_net::netns::{self, NetnsGuard};
use peerpod_net::{Family, InspectOptions, PodNetwork, guest, inspect, worker};
use support::{Cluster, NODE_IP, PORT, Underlay, echo, ip, ips, ping, ruleset};
use tokio_util::sync::CancellationToken;

const VNI: u32 = 555_000;
/// Packets of a stranger that are waited for. Many more than the pod's own that come meanwhile, such as questions of
/// the kernel about neighbours.
const SENT: u64 = 60;

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// A machine on the link of node and guest that has made itself a tunnel device with the id of the pod's.
async fn stranger(cluster: &Cluster, target: &str) -> NetnsGuard {
    let stranger = support::netns("stranger").await;
    let (address, length) = match cluster.underlay.family {
        Family::V4 => ("10.99.0.66", 24),
        Family::V6 => ("fd99::66", 64),
    };
    ips(
        cluster.node.path(),
        &format!(
            "link add stranger0 type veth peer name ens3 netns {}
             link set stranger0 master br0
             link set stranger0 up",
            file_name(stranger.path())
        ),
    );
    let nodad = if length == 64 { "nodad" } else { "" };
    ips(
        stranger.path(),
        &format!(
            "addr add {address}/{length} dev ens3 {nodad}
             link set ens3 up
             link add pod type vxlan id {VNI} dstport {PORT} remote {target} nolearning
             link set pod address 02:00:00:00:00:66
             addr add 10.244.1.66/24 dev pod
             link set pod up"
        ),
    );
    stranger
}

/// How many packets the rules of a namespace dropped.
fn dropped(netns: &Path) -> u64 {
    let rules = ruleset(netns);
    let counter = rules.split("counter packets ").nth(1).unwrap_or_else(|| panic!("no counter in {rules}"));
    counter.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sends frames with the right id into both ends; neither the node's pod nor the guest's sees one of them.
async fn strangers_are_not_heard(family: Family) {
    let cluster = Cluster::over(Underlay { family, ..Underlay::default() }, |cluster| {
        ips(
            cluster.pod.path(),
            "addr add 10.244.1.23/24 dev eth0
             link set eth0 mtu 1400
             link set eth0 up
             route add default via 10.244.1.1",
        );
    })
    .await;
    cluster.join(VNI).await;
    assert_eq!(cluster.echo(1000).await, 1000);
    let (node, guest) = match family {
        Family::V4 => (NODE_IP, support::GUEST_IP),
        Family::V6 => (support::NODE_IP6, support::GUEST_IP6),
    };
    for (end, device, target, pod_side) in
        [(&cluster.node, "vxlan1", node, &cluster.pod), (&cluster.guest, "eth0", guest, &cluster.podns)]
    {
        let stranger = stranger(&cluster, target).await;
        let before = received(pod_side.path(), device).await;
        let mac = if device == "eth0" { "ff:ff:ff:ff:ff:ff" } else { "02:00:00:00:00:01" };
        ip(stranger.path(), &format!("neigh add 10.244.1.23 lladdr {mac} dev pod nud permanent"));
        let socket =
            netns::run_in(stranger.path(), || async { std::net::UdpSocket::bind("10.244.1.66:0").unwrap() })
                .await
                .unwrap();
        let arrived = || async {
            socket.send_to(b"let me in", "10.244.1.23:9").unwrap();
            (dropped(end.path()) >= SENT).then_some(())
        };
        support::wait_for("packets of a stranger to be dropped", arrived).await;
        let heard = received(pod_side.path(), device).await - before;
        assert!(heard < SENT / 2, "{heard} packets on {device} over {family}");
        // The tunnel itself goes on.
        assert_eq!(cluster.echo(1000).await, 1000);
        ip(cluster.node.path(), "link del stranger0");
    }
}

async fn received(netns: &Path, device: &str) -> u64 {
    guest::counters(netns, device).await.unwrap().rx_packets
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_with_the_right_id_from_a_wrong_address_enter_neither_end_over_ipv4() {
    strangers_are_not_heard(Family::V4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_with_the_right_id_from_a_wrong_address_enter_neither_end_over_ipv6() {
    strangers_are_not_heard(Family::V6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_do_not_get_around_the_rule() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;
    let stranger = stranger(&cluster, NODE_IP).await;
    // Every packet of the stranger's tunnel is larger than its link.
    ips(stranger.path(), "link set pod mtu 1500\n link set ens3 mtu 600");
    ip(stranger.path(), "neigh add 10.244.1.23 lladdr 02:00:00:00:00:01 dev pod nud permanent");
    let before = received(cluster.pod.path(), "vxlan1").await;
    let socket =
        netns::run_in(stranger.path(), || async { std::net::UdpSocket::bind("10.244.1.66:0").unwrap() })
            .await
            .unwrap();
    let arrived = || async {
        socket.send_to(&[7; 1200], "10.244.1.23:9").unwrap();
        (dropped(cluster.node.path()) >= SENT).then_some(())
    };
    support::wait_for("fragments of a stranger to be dropped", arrived).await;
    assert!(support::fragments(stranger.path()) > 0);
    let heard = received(cluster.pod.path(), "vxlan1").await - before;
    assert!(heard < SENT / 2, "{heard} packets");
}

/// A second pod of the node, with the address and MAC of the first, in a network of its own, with a guest of its own.
struct Twin {
    pod: NetnsGuard,
    guest: NetnsGuard,
    podns: NetnsGuard,
    /// Another pod of the twin's network.
    beside: NetnsGuard,
}

async fn twin(cluster: &Cluster) -> Twin {
    let twin = Twin {
        pod: support::netns("twin").await,
        guest: support::netns("twinguest").await,
        podns: support::netns("twinpodns").await,
        beside: support::netns("beside").await,
    };
    ips(
        cluster.node.path(),
        &format!(
            "link add cni1 type bridge
             link set cni1 up
             link add twin0 type veth peer name eth0 netns {pod}
             link set twin0 master cni1
             link set twin0 up
             link add beside0 type veth peer name eth0 netns {beside}
             link set beside0 master cni1
             link set beside0 up
             link add twinguest0 type veth peer name ens3 netns {guest}
             link set twinguest0 master br0
             link set twinguest0 up",
            pod = file_name(twin.pod.path()),
            beside = file_name(twin.beside.path()),
            guest = file_name(twin.guest.path()),
        ),
    );
    ips(
        twin.pod.path(),
        "link set eth0 address 6a:1b:2c:3d:4e:5f
         addr add 10.244.1.23/24 dev eth0
         link set eth0 mtu 1400
         link set eth0 up
         route add default via 10.244.1.1",
    );
    ips(twin.beside.path(), "addr add 10.244.1.77/24 dev eth0\n link set eth0 up");
    ips(
        twin.guest.path(),
        "addr add 10.99.0.3/24 dev ens3
         link set ens3 up
         route add default via 10.99.0.1",
    );
    twin
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_one_node_with_one_address_do_not_hear_each_other() {
    let cluster = Cluster::new().await;
    cluster.join(VNI).await;
    let beside_first = cluster.neighbour(1400).await;
    let twin = twin(&cluster).await;
    let pod = twin.pod.path().to_owned();
    let network: PodNetwork = cluster
        .on_node(move || async move {
            let mut network = inspect(&pod, &InspectOptions::default()).await.unwrap();
            network.vxlan_id = VNI + 1;
            worker::reserve(&pod, VNI + 1, PORT, Family::V4).await.unwrap();
            let tunnel = worker::TunnelSpec::new(VNI + 1, PORT, "10.99.0.3".parse().unwrap(), "eth0");
            worker::connect(&pod, &tunnel).await.unwrap();
            network
        })
        .await;
    let podns = twin.podns.path().to_owned();
    netns::run_in(twin.guest.path(), move || async move {
        guest::setup(&podns, &network, None, &CancellationToken::new()).await.unwrap();
    })
    .await
    .unwrap();

    // Each answers to its own network, and only there: the servers are in different guests.
    assert_eq!(echo(cluster.podns.path(), beside_first.path(), support::POD_IP, 100_000).await, 100_000);
    assert_eq!(echo(twin.podns.path(), twin.beside.path(), support::POD_IP, 100_000).await, 100_000);
    let first = received(cluster.podns.path(), "eth0").await;
    assert!(ping(twin.beside.path(), support::POD_IP, 100).await);
    assert_eq!(received(cluster.podns.path(), "eth0").await, first);

    // One goes, the other stays.
    assert!(cluster.teardown(VNI).await.is_complete());
    assert_eq!(echo(twin.podns.path(), twin.beside.path(), support::POD_IP, 1000).await, 1000);
    let rules = ruleset(cluster.node.path());
    assert!(!rules.contains("vni:555000]") && rules.contains("vni:555001]"), "{rules}");
}

/// A node whose way to the guest makes it send from another address than the one of its default route, as a host of
/// virtual machines does from the address of their bridge.
async fn node_with_two_addresses() -> Cluster {
    Cluster::over(Underlay::default(), |cluster| {
        ips(
            cluster.pod.path(),
            "addr add 10.244.1.23/24 dev eth0
             link set eth0 mtu 1400
             link set eth0 up
             route add default via 10.244.1.1",
        );
        ips(
            cluster.node.path(),
            &format!(
                "addr add 10.99.0.3/24 dev br0
                 route add {}/32 dev br0 src 10.99.0.3",
                support::GUEST_IP
            ),
        );
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_sends_from_another_of_its_addresses_is_heard() {
    let cluster = node_with_two_addresses().await;
    let network = cluster.join(VNI).await;
    assert!(network.worker_addresses.contains(&"10.99.0.3".parse().unwrap()), "{network:?}");
    assert_eq!(cluster.echo(1000).await, 1000);
    assert!(ruleset(cluster.guest.path()).contains("drop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_of_a_daemon_that_does_not_tell_its_addresses_hears_them_all() {
    let cluster = node_with_two_addresses().await;
    let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
    network.worker_addresses.clear();
    cluster.reserve(VNI).await.unwrap();
    network.vxlan_id = VNI;
    cluster.guest_setup(&network).await.unwrap();
    cluster.connect(VNI).await.unwrap();
    assert_eq!(cluster.echo(1000).await, 1000);
    assert!(!ruleset(cluster.guest.path()).contains("drop"));
    assert!(ruleset(cluster.node.path()).contains("drop"), "the node knows its guest");
}
