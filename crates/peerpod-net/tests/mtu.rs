//! Packets of the right size over links of every usual one: none in fragments, none that vanish.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use peerpod_net::{Family, InspectOptions, NetErrorKind, netns};
use support::{Cluster, NODE_IP, POD_IP, POD_IP6, Underlay, echo, fragments, ip, ips, ping, wait_for};

const VNI: u32 = 555_000;
const STREAM: usize = 1_500_000;

/// Sends datagrams of that many bytes, headers included, that may not be cut, until the system knows how much is too
/// much; that size is the answer.
async fn path_mtu(from: &Path, to: &str, size: usize) -> usize {
    let to: IpAddr = to.parse().unwrap();
    let from = from.to_owned();
    netns::run_in(&from, move || async move {
        let (any, headers) = if to.is_ipv4() { ("0.0.0.0:0", 28) } else { ("[::]:0", 48) };
        let socket = std::net::UdpSocket::bind(any).unwrap();
        socket.connect(SocketAddr::new(to, 9)).unwrap();
        if to.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6DontFrag, &true).unwrap();
        }
        let payload = vec![0; size - headers];
        wait_for("the sender to learn the size", || async {
            let sent = socket.send(&payload);
            if to.is_ipv4() {
                let known = getsockopt(&socket.as_fd(), sockopt::IpMtu).unwrap();
                let known = usize::try_from(known).unwrap();
                return (known < size).then_some(known);
            }
            // The largest that goes now is what was learned.
            sent.is_err().then(|| {
                let send = |size: usize| socket.send(&payload[..size - headers]).is_ok();
                // The first may hear of an earlier packet.
                let fits = |size: &usize| send(*size) || send(*size);
                (1280..size).rev().find(fits).unwrap_or_default()
            })
        })
        .await
    })
    .await
    .unwrap()
}

/// One underlay: what the guest gets, that all of it passes in either direction, and that senders of more are told.
async fn sizes_are_right(family: Family, mtu: u32, pod_mtu: u32) {
    let room = (mtu - family.tunnel_overhead()).min(pod_mtu) as usize;
    let v6 = room >= 1280;
    let underlay = Underlay { family, mtu };
    let cluster = if v6 {
        Cluster::dual(underlay, pod_mtu).await
    } else {
        Cluster::over(underlay, |cluster| {
            ips(
                cluster.pod.path(),
                &format!(
                    "addr add {POD_IP}/24 dev eth0
                     link set eth0 mtu {pod_mtu}
                     link set eth0 up
                     route add default via 10.244.1.1"
                ),
            );
            ips(cluster.node.path(), &format!("link set pod0 mtu {pod_mtu}"));
        })
        .await
    };
    let network = cluster.join(VNI).await;
    let other = cluster.neighbour(pod_mtu).await;
    let what = format!("{family} {mtu}, pod {pod_mtu}");

    assert_eq!(network.mtu as usize, room, "{what}");
    let device = ip(cluster.podns.path(), "link show eth0");
    assert!(device.contains(&format!("mtu {room} ")), "{what}: {device}");
    let mut ways = vec![(POD_IP, "10.244.1.77")];
    if v6 {
        ways.push((POD_IP6, "fd44::77"));
    }
    for (pod, neighbour) in ways {
        // The largest packet, each way, and streams, each way.
        assert!(ping(cluster.podns.path(), neighbour, room).await, "{what}: to {neighbour}");
        assert!(ping(other.path(), pod, room).await, "{what}: to {pod}");
        assert_eq!(echo(cluster.podns.path(), other.path(), pod, STREAM).await, STREAM, "{what}: {pod}");
        assert_eq!(echo(other.path(), cluster.podns.path(), neighbour, STREAM).await, STREAM, "{what}");
        if pod_mtu as usize > room {
            // The sender's own link would take it.
            assert_eq!(path_mtu(other.path(), pod, pod_mtu as usize).await, room, "{what}: {pod}");
        }
    }
    for place in [&cluster.node, &cluster.guest, &cluster.pod] {
        assert_eq!(fragments(place.path()), 0, "{what}: {}", place.path().display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_over_ipv4_at_1280() {
    sizes_are_right(Family::V4, 1280, 1450).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_over_ipv4_at_1400() {
    sizes_are_right(Family::V4, 1400, 1400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_over_ipv4_at_1450() {
    sizes_are_right(Family::V4, 1450, 1450).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_over_ipv4_at_1500() {
    sizes_are_right(Family::V4, 1500, 1500).await;
    sizes_are_right(Family::V4, 1500, 1400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_over_ipv4_at_9001() {
    sizes_are_right(Family::V4, 9001, 9001).await;
    sizes_are_right(Family::V4, 9001, 1500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_over_ipv6_at_any_size() {
    for mtu in [1280, 1400, 1450, 1500, 9001] {
        sizes_are_right(Family::V6, mtu, mtu).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_ipv6_is_refused_before_it_has_a_machine_where_ipv6_does_not_fit() {
    for (family, mtu, least) in
        [(Family::V4, 1280, "1330"), (Family::V6, 1280, "1350"), (Family::V6, 1349, "1350")]
    {
        let cluster = Cluster::dual(Underlay { family, mtu }, 1450).await;
        let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), NetErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains("br0") && text.contains(&mtu.to_string()) && text.contains(least), "{text}");
    }
    for (family, mtu) in [(Family::V4, 1330), (Family::V6, 1350)] {
        let cluster = Cluster::dual(Underlay { family, mtu }, 1450).await;
        cluster.join(VNI).await;
        assert!(ping(cluster.node.path(), POD_IP6, 1280).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_a_smaller_link_than_its_node_refuses_ipv6_by_its_own_link() {
    let cluster = Cluster::dual(Underlay::default(), 1450).await;
    let mut network = cluster.inspect(InspectOptions::default()).await.unwrap();
    network.vxlan_id = VNI;
    ip(cluster.guest.path(), "link set ens3 mtu 1300");
    let error = cluster.guest_setup(&network).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains(NODE_IP) && text.contains("1300") && text.contains("1330"), "{text}");
    assert_eq!(ip(cluster.podns.path(), "link show type vxlan"), "");
}
