//! Whole lives of sandboxes, with a cluster that is there, away, or comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::Method;
use caa::sandbox::Phase;
use cloud_providers::{
    Error, ErrorKind,
    scripted::{Fault as CloudFault, ScriptedProvider, World},
};
use serde_json::Value;
use test_support::wait_for_async;

use crate::{
    fakes::{Node, SOON},
    server::{Fault, Server},
};

const ALL: &str = "/apis/confidentialcontainers.org/v1alpha1/namespaces/default/peerpods";
const EVENTS: &str = "/api/v1/namespaces/default/events";

async fn node(server: &Server) -> Node {
    let pod =
        serde_json::json!({"metadata": {"uid": "uid-web"}, "spec": {"nodeName": "n1", "containers": []}});
    server.put("/api/v1/namespaces/default/pods/web", pod);
    let world = World::new();
    let provider = Arc::new(ScriptedProvider::new(&world));
    Node::in_cluster(world, provider, &[], Arc::new(server.record()))
}

async fn no_records(server: &Server) {
    let gone = || async { server.all(ALL).is_empty().then_some(()) };
    wait_for_async("the records to go", SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_pods_life_leaves_no_record() {
    let server = Server::start().await;
    let node = node(&server).await;
    node.create("s1").await.unwrap();
    assert_eq!(server.all(ALL), Vec::<Value>::new(), "nothing is in the cloud yet");
    node.start("s1").await.unwrap();
    let record = &server.all(ALL)[0];
    assert_eq!(record["metadata"]["finalizers"], serde_json::json!(["peer.pod/finalizer"]));
    assert_eq!(record["metadata"]["ownerReferences"][0]["uid"], "uid-web");
    assert_eq!(record["spec"]["instanceID"], node.sandboxes.list()[0].instance_id.clone().unwrap());
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    no_records(&server).await;
}

#[tokio::test]
async fn a_start_that_fails_says_so_on_the_pod_and_leaves_no_record() {
    let server = Server::start().await;
    let node = node(&server).await;
    let error = Error::new(ErrorKind::Quota, "the quota is used up").with_code("VcpuLimitExceeded");
    node.world.script(CloudFault::on("run_instance").before(error).forever());
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap_err();
    node.wait_empty().await;
    no_records(&server).await;
    let told = wait_for_async("the event", SOON, || async { server.all(EVENTS).pop() }).await.unwrap();
    assert_eq!(told["reason"], "PodVMStartFailed");
    assert!(told["message"].as_str().unwrap().contains("VcpuLimitExceeded"), "{told}");
}

#[tokio::test]
async fn a_cluster_that_goes_away_keeps_no_vm_from_going() {
    let server = Server::start().await;
    let node = node(&server).await;
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    for method in [Method::GET, Method::PATCH, Method::POST, Method::DELETE] {
        server.fault(method, "/", Fault::Code(503), None);
    }
    let begun = Instant::now();
    node.sandboxes.stop_vm("s1").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let empty = || async { node.world.resources().is_empty().then_some(()) };
    wait_for_async("the VM to go", SOON, empty).await.unwrap();
    assert_eq!(server.all(ALL).len(), 1, "the record waits for the cluster");
    assert_eq!(node.sandboxes.list()[0].phase, Phase::Stopping);
    server.mend();
    node.wait_empty().await;
    no_records(&server).await;
}

#[tokio::test]
async fn no_vm_is_made_without_a_record() {
    let server = Server::start().await;
    let node = node(&server).await;
    node.create("s1").await.unwrap();
    server.fault(Method::POST, "/peerpods", Fault::Code(403), None);
    let error = node.start("s1").await.unwrap_err();
    assert!(error.message.contains("record the pod VM"), "{}", error.message);
    node.wait_empty().await;
    assert!(
        !node.world.operations().iter().any(|o| o.contains("run_instance")),
        "{:?}",
        node.world.operations()
    );
}

#[tokio::test]
async fn a_start_during_which_the_cluster_is_away_goes_on_when_it_is_back() {
    let server = Server::start().await;
    let node = node(&server).await;
    node.create("s1").await.unwrap();
    server.fault(Method::POST, "/peerpods", Fault::Code(503), 3);
    node.start("s1").await.unwrap();
    assert_eq!(server.all(ALL).len(), 1);
}

#[tokio::test]
async fn nobody_waits_for_an_event() {
    let server = Server::start().await;
    let node = node(&server).await;
    server.fault(Method::POST, "/events", Fault::Hang, None);
    node.create("s1").await.unwrap();
    let begun = Instant::now();
    node.start("s1").await.unwrap();
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_later_sandbox_of_a_pod_has_the_higher_order() {
    let server = Server::start().await;
    let node = node(&server).await;
    for id in ["s1", "s2"] {
        node.create(id).await.unwrap();
        node.start(id).await.unwrap();
    }
    let order = |id: &str| {
        let records = server.all(ALL);
        let record = records.iter().find(|record| record["spec"]["sandboxID"] == id).unwrap();
        record["metadata"]["annotations"]["peer.pod/order"].as_str().unwrap().parse::<u64>().unwrap()
    };
    // Within one second, which is all that the server's own times tell.
    assert!(order("s1") < order("s2"), "{} {}", order("s1"), order("s2"));
}
