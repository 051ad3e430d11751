//! The daemon in a real cluster: an API server, pods by the local provider, and ends of both.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use peerpod_api::names;
use serde_json::{Value, json};
use test_support::{ClusterOptions, Part, RealCluster, wait_for};

use crate::node::{Node, SOON};

const RECORDS: &str = "/apis/confidentialcontainers.org/v1alpha1/namespaces/default/peerpods";
const LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/confidential-containers-system/leases/cloud-api-adaptor-n1";

/// A cluster in the node's network, with the node and its pod `pod-0`.
fn cluster(node: &Node) -> RealCluster {
    let definition = serde_json::to_value(peerpod_api::crd()).unwrap();
    let options = ClusterOptions::default().with_definitions([definition]);
    let cluster = options.in_netns(&node.netns, Ipv4Addr::new(192, 0, 2, 2).into()).start().unwrap();
    cluster.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).unwrap();
    let namespace = json!({"metadata": {"name": names::DEFAULT_NAMESPACE}});
    cluster.create("/api/v1/namespaces", &namespace).unwrap();
    let spec = json!({"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]});
    let pod = json!({"metadata": {"name": "pod-0"}, "spec": spec});
    cluster.create("/api/v1/namespaces/default/pods", &pod).unwrap();
    cluster
}

fn offered(cluster: &RealCluster) -> Value {
    let node = cluster.get("/api/v1/nodes/n1").unwrap().unwrap();
    node["status"]["capacity"][names::EXTENDED_RESOURCE].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_recorded_and_its_vm_goes_also_while_the_api_server_is_away() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let mut cluster = cluster(&node);
    let kubeconfig = cluster.kubeconfig();
    // The last one counts, and an empty id is none.
    let args = [
        "-kubeconfig",
        kubeconfig.to_str().unwrap(),
        "-node-name",
        "n1",
        "-cluster-id",
        "",
        "-peerpods-limit-per-node=7",
    ];
    node.crash_and_restart(&args).await.unwrap();
    wait_for("the node's offer", SOON, || (offered(&cluster) == "7").then_some(())).unwrap();
    wait_for("the daemon's Lease", SOON, || cluster.get(LEASE).unwrap()).unwrap();

    let (shim, _) = node.sandbox("s1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let record = cluster.list(RECORDS).unwrap().pop().unwrap();
    let (_, instance) = node.record_of("s1").unwrap();
    assert_eq!(record["spec"]["instanceID"], instance["id"]);
    assert_eq!(record["spec"]["nodeName"], "n1");
    let uid = cluster.get("/api/v1/namespaces/kube-system").unwrap().unwrap()["metadata"]["uid"].clone();
    assert_eq!(record["spec"]["token"], format!("cluster:{}/s1/1", uid.as_str().unwrap()));
    assert_eq!(record["metadata"]["finalizers"], json!([names::FINALIZER]));

    cluster.kill(Part::ApiServer).unwrap();
    node.crash_and_restart(&args).await.unwrap();
    drop(shim);
    let begun = Instant::now();
    node.shim("s1").await.unwrap().stop_vm().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "StopVM took {:?}", begun.elapsed());
    wait_for("the VM to go", SOON, || node.instances().is_empty().then_some(())).unwrap();
    cluster.start_again(Part::ApiServer).unwrap();
    let gone = || cluster.list(RECORDS).unwrap().is_empty().then_some(());
    wait_for("the record to go", SOON, gone).unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    node.wait_empty().unwrap();

    node.daemon.signal(Signal::SIGTERM).unwrap();
    assert!(node.daemon.wait_exit(SOON).unwrap().success());
    assert_eq!(offered(&cluster), Value::Null, "{}", node.logs());
}
