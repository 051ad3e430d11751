//! Pods as the usual plugins leave them: recorded, inspected, made again in a guest, and spoken to.

mod support;

use std::path::{Path, PathBuf};

use peerpod_net::InspectOptions;
use support::{Cluster, POD_IP, POD_IP6, Underlay, echo, ip, ips, ping};

const VNI: u32 = 555_000;
/// The node's own addresses in the pods' network.
const NODE: [&str; 2] = ["10.244.1.1", "fd44::1"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/setups").join(name)
}

fn read(name: &str, file: &str) -> String {
    std::fs::read_to_string(folder(name).join(file)).unwrap()
}

/// Routes of the main table and permanent neighbours, sorted, one blank between words.
fn tables(netns: &Path) -> String {
    let commands = ["-4 route", "-6 route", "-4 neigh show nud permanent", "-6 neigh show nud permanent"];
    let text: String = commands.iter().map(|command| ip(netns, command)).collect();
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect();
    lines.sort();
    lines.join("\n") + "\n"
}

async fn arrives_as_it_was(name: &str) {
    let cluster = Cluster::over(Underlay::default(), |cluster| {
        ips(cluster.node.path(), &read(name, "node.txt"));
        ips(cluster.pod.path(), &read(name, "pod.txt"));
        let net = format!("--net={}", cluster.node.path().display());
        let settings = std::fs::read_to_string(folder(name).join("settings.txt")).unwrap_or_default();
        for (setting, value) in settings.lines().filter_map(|line| line.split_once('=')) {
            let write = format!("echo {value} > /proc/sys/{setting}");
            support::run("nsenter", &[&net, "sh", "-c", &write]);
        }
    })
    .await;
    // A route of link-local addresses appears once the kernel has found them to be free.
    let recorded = read(name, "tables.txt");
    let is_made = || async { (tables(cluster.pod.path()) == recorded).then_some(()) };
    let made = tokio::time::timeout(std::time::Duration::from_secs(10), support::wait_for(name, is_made));
    assert!(made.await.is_ok(), "{name}: {}\nrecorded: {recorded}", tables(cluster.pod.path()));

    let told = cluster.inspect(InspectOptions::default()).await.unwrap();
    let text = serde_json::to_string_pretty(&told).unwrap() + "\n";
    assert_eq!(text, read(name, "pod-network.json"), "{name}");

    cluster.join(VNI).await;
    let is_there = || async { (tables(cluster.podns.path()) == recorded).then_some(()) };
    let there = tokio::time::timeout(std::time::Duration::from_secs(10), support::wait_for(name, is_there));
    assert!(there.await.is_ok(), "{name}: {}\nrecorded: {recorded}", tables(cluster.podns.path()));
    for (pod, node) in [POD_IP, POD_IP6].into_iter().zip(NODE) {
        assert!(ping(cluster.podns.path(), node, 1400).await, "{name}: the guest does not reach {node}");
        assert!(ping(cluster.node.path(), pod, 1400).await, "{name}: the node does not reach {pod}");
        assert_eq!(echo(cluster.podns.path(), cluster.node.path(), pod, 100_000).await, 100_000, "{name}");
        assert_eq!(echo(cluster.node.path(), cluster.podns.path(), node, 100_000).await, 100_000, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_bridge_plugin_arrives_as_it_was() {
    arrives_as_it_was("bridge").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_ptp_plugin_arrives_as_it_was() {
    arrives_as_it_was("ptp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_calico_arrives_as_it_was() {
    arrives_as_it_was("calico").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_gateway_as_permanent_neighbour_arrives_as_it_was() {
    arrives_as_it_was("aws-vpc").await;
}
