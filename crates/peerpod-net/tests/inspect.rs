//! Inspecting namespaces as the usual network plugins leave them.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peerpod_net::{InspectOptions, NetErrorKind, inspect};
use serde_json::{Value, json};
use support::{Cluster, ip, ips};

async fn inspected(cluster: &Cluster) -> Value {
    serde_json::to_value(cluster.inspect(InspectOptions::default()).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_pod_gives_the_whole_object() {
    let cluster = Cluster::new().await;
    ip(cluster.pod.path(), "neigh add 10.244.1.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
    ip(cluster.pod.path(), "neigh add 10.244.1.8 lladdr 02:00:00:00:00:08 dev eth0 nud reachable");

    let network = inspected(&cluster).await;

    assert_eq!(
        network,
        json!({
            "podip": "10.244.1.23/24",
            "pod-hw-addr": "6a:1b:2c:3d:4e:5f",
            "interface": "eth0",
            "worker-node-ip": "10.99.0.1/24",
            "tunnel-type": "vxlan",
            "routes": [
                {"dst": "", "gw": "10.244.1.1", "dev": "eth0", "protocol": "boot"},
                {"dst": "10.244.1.0/24", "gw": "", "dev": "eth0", "protocol": "kernel", "scope": "link",
                 "src": "10.244.1.23"},
            ],
            "neighbors": [
                {"ip": "10.244.1.9", "hw-addr": "02:00:00:00:00:09", "dev": "eth0", "state": "permanent"},
            ],
            "mtu": 1400,
            "index": 0,
            "vxlan-port": 4789,
            "dedicated": false,
            "external-net-via-pod-vm": false,
            "worker-addresses": ["10.99.0.1", "10.244.1.1"],
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calico_pod_keeps_the_link_route_to_its_gateway() {
    let cluster = Cluster::with_pod(calico).await;
    let network = inspected(&cluster).await;
    assert_eq!(network["podip"], "10.244.1.23/32");
    assert_eq!(
        network["routes"],
        json!([
            {"dst": "", "gw": "169.254.1.1", "dev": "eth0", "protocol": "boot"},
            {"dst": "169.254.1.1/32", "gw": "", "dev": "eth0", "protocol": "boot", "scope": "link"},
        ])
    );
}

fn calico(cluster: &Cluster) {
    ips(
        cluster.pod.path(),
        "addr add 10.244.1.23/32 dev eth0
         link set eth0 up
         route add 169.254.1.1 dev eth0 scope link
         route add default via 169.254.1.1 dev eth0",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ptp_pod_keeps_its_replaced_connected_route() {
    let cluster = Cluster::with_pod(|cluster| {
        ips(
            cluster.pod.path(),
            "addr add 10.244.1.23/24 dev eth0
             link set eth0 up
             route del 10.244.1.0/24 dev eth0
             route add 10.244.1.1 dev eth0 scope link src 10.244.1.23
             route add 10.244.1.0/24 via 10.244.1.1 src 10.244.1.23
             route add default via 10.244.1.1",
        );
    })
    .await;
    assert_eq!(
        inspected(&cluster).await["routes"],
        json!([
            {"dst": "", "gw": "10.244.1.1", "dev": "eth0", "protocol": "boot"},
            {"dst": "10.244.1.0/24", "gw": "10.244.1.1", "dev": "eth0", "protocol": "boot", "src": "10.244.1.23"},
            {"dst": "10.244.1.1/32", "gw": "", "dev": "eth0", "protocol": "boot", "scope": "link",
             "src": "10.244.1.23"},
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metric_onlink_source_and_mtu_of_a_route_travel_along() {
    let cluster = Cluster::new().await;
    ips(
        cluster.pod.path(),
        "route add 10.7.0.0/16 via 192.0.2.1 dev eth0 onlink metric 50 mtu 1300 proto dhcp src 10.244.1.23
         route add 10.8.0.0/16 via 10.244.1.1 proto bird
         route add unreachable 10.9.0.0/16",
    );
    let network = inspected(&cluster).await;
    let routes = network["routes"].as_array().unwrap();
    assert!(
        routes.contains(&json!(
            {"dst": "10.7.0.0/16", "gw": "192.0.2.1", "dev": "eth0", "protocol": "dhcp", "metric": 50,
             "onlink": true, "src": "10.244.1.23", "mtu": 1300}
        )),
        "{network}"
    );
    // A protocol that readers do not know is carried under a name that they do.
    assert!(
        routes.contains(
            &json!({"dst": "10.8.0.0/16", "gw": "10.244.1.1", "dev": "eth0", "protocol": "static"})
        ),
        "{network}"
    );
    assert_eq!(routes.len(), 4, "{network}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_subnets_are_added_through_the_pods_gateway() {
    let cluster = Cluster::new().await;
    let mut opts = InspectOptions::default();
    opts.pod_subnet_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap()];
    opts.external_net_via_pod_vm = true;
    let network = cluster.inspect(opts).await.unwrap();
    assert!(network.external_net_via_pod_vm);
    let last: Vec<_> = network.routes[2..].iter().map(|r| serde_json::to_value(r).unwrap()).collect();
    assert_eq!(
        last,
        [
            json!({"dst": "10.244.0.0/16", "gw": "10.244.1.1", "dev": "eth0"}),
            json!({"dst": "10.96.0.0/12", "gw": "10.244.1.1", "dev": "eth0"}),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_metric_names_the_nodes_interface() {
    let cluster = Cluster::new().await;
    ips(
        cluster.node.path(),
        "route del default
         route add default via 10.244.1.254 dev cni0 metric 100
         route add default via 10.99.0.254 dev br0 metric 50",
    );
    let network = cluster.inspect(InspectOptions::default()).await.unwrap();
    assert_eq!(network.worker_node_ip, Some("10.99.0.1/24".parse().unwrap()));

    ip(cluster.node.path(), "route add default via 10.244.1.254 dev cni0 metric 10");
    let network = cluster.inspect(InspectOptions::default()).await.unwrap();
    assert_eq!(network.worker_node_ip, Some("10.244.1.1/24".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_interface_of_its_own_makes_the_tunnel_dedicated() {
    let cluster = Cluster::new().await;
    let mut opts = InspectOptions::default();
    opts.host_interface = Some("cni0".into());
    let network = cluster.inspect(opts.clone()).await.unwrap();
    assert!(network.dedicated);
    assert_eq!(network.worker_node_ip, Some("10.244.1.1/24".parse().unwrap()));

    opts.host_interface = Some("br0".into());
    assert!(!cluster.inspect(opts.clone()).await.unwrap().dedicated);

    opts.host_interface = Some("ib0".into());
    let error = cluster.inspect(opts).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NoInterface);
    assert!(error.to_string().contains("ib0") && error.to_string().contains("HOST_INTERFACE"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_interface_without_an_address_is_an_error() {
    let cluster = Cluster::new().await;
    ips(
        cluster.node.path(),
        "route del default
         addr del 10.99.0.1/24 dev br0
         route add default dev br0",
    );
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NoAddress);
    assert!(error.to_string().contains("br0 of the node's"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_default_route_is_an_error() {
    let cluster = Cluster::new().await;
    ip(cluster.node.path(), "route del default");
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NoDefaultRoute);
    assert!(error.to_string().contains("the node's network namespace"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_default_route_is_an_error() {
    let cluster = Cluster::new().await;
    ip(cluster.pod.path(), "route del default");
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NoDefaultRoute);
    assert!(error.to_string().contains(cluster.pod.path().to_str().unwrap()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_an_address_is_an_error() {
    let cluster = Cluster::with_pod(|cluster| {
        ips(cluster.pod.path(), "link set eth0 up\n route add default dev eth0");
    })
    .await;
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::NoAddress);
    assert!(error.to_string().contains("eth0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_two_addresses_is_an_error() {
    let cluster = Cluster::new().await;
    ip(cluster.pod.path(), "addr add 10.244.1.24/24 dev eth0");
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::ManyAddresses);
    assert!(error.to_string().contains("10.244.1.23/24, 10.244.1.24/24"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_interface_without_a_mac_address_is_an_error() {
    let cluster = Cluster::with_pod(|cluster| {
        ips(
            cluster.pod.path(),
            "tuntap add tun0 mode tun
             addr add 10.244.1.23/24 dev tun0
             link set tun0 up
             route add default via 10.244.1.1",
        );
    })
    .await;
    let error = cluster.inspect(InspectOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::Unsupported);
    assert!(error.to_string().contains("tun0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_does_not_exist_is_an_error() {
    let cluster = Cluster::new().await;
    let plain_file = tempfile::NamedTempFile::new().unwrap();
    for path in [Path::new("/run/netns/peerpod-net-was-never-here"), plain_file.path()] {
        let (asked, named) = (path.to_owned(), path.to_str().unwrap());
        let error = cluster
            .on_node(move || async move { inspect(&asked, &InspectOptions::default()).await })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), NetErrorKind::NetnsMissing);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inspecting_is_right_while_the_pods_routes_change() {
    let cluster = Cluster::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let batch = tempfile::NamedTempFile::new().unwrap();
    let mut commands = String::new();
    for word in ["add", "del"] {
        for n in 0..200 {
            commands.push_str(&format!("route {word} 10.50.{n}.0/24 via 10.244.1.1\n"));
        }
    }
    std::fs::write(batch.path(), commands).unwrap();
    let busy = std::thread::spawn({
        let (stop, pod, file) = (stop.clone(), cluster.pod_path(), batch.path().to_owned());
        move || {
            while !stop.load(Ordering::Relaxed) {
                ip(&pod, &format!("-batch {}", file.display()));
            }
        }
    });
    for _ in 0..100 {
        let network = cluster.inspect(InspectOptions::default()).await.unwrap();
        let stable =
            network.routes.iter().filter(|route| !route.destination.to_string().starts_with("10.50."));
        assert_eq!(stable.count(), 2, "{:?}", network.routes);
    }
    stop.store(true, Ordering::Relaxed);
    busy.join().unwrap();
}
