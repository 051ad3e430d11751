//! The node's offer, its Lease and the cluster's id.

use axum::http::Method;
use caa::kubernetes::resource::{Offered, Resource};
use serde_json::{Value, json};
use std::sync::Arc;
use test_support::wait_for_async;
use tokio_util::sync::CancellationToken;

use crate::{
    fakes::SOON,
    server::{Fault, Server, identity},
};

const NODE: &str = "/api/v1/nodes/n1";

fn resource(server: &Server, owner: &str) -> Resource {
    Resource::new(Arc::new(server.api()), identity(owner), 10)
}

fn offer(server: &Server) -> (Value, Value) {
    let node = server.get(NODE).unwrap();
    let owner = node["metadata"]["annotations"]["kata.peerpods.io/caa-owner"].clone();
    (owner, node["status"]["capacity"]["kata.peerpods.io/vm"].clone())
}

async fn waited(server: &Server, what: &str, wanted: (Value, Value)) {
    wait_for_async(what, SOON, || async { (offer(server) == wanted).then_some(()) }).await.unwrap();
}

fn node(server: &Server) {
    server.put(NODE, json!({"status": {"capacity": {"cpu": "4"}}}));
}

#[tokio::test]
async fn number_and_owner_are_written_by_one_patch_and_taken_back() {
    let server = Server::start().await;
    node(&server);
    let resource = resource(&server, "a");
    assert_eq!(resource.offer(true).await.unwrap(), Offered::Ours);
    assert_eq!(offer(&server), (json!("a"), json!("10")));
    assert_eq!(server.count("PATCH"), 1);
    assert_eq!(resource.offer(false).await.unwrap(), Offered::Ours);
    assert_eq!(server.count("PATCH"), 1, "nothing has to be changed");
    resource.withdraw().await.unwrap();
    assert_eq!(offer(&server), (json!("a"), Value::Null));
    assert_eq!(server.get(NODE).unwrap()["status"]["capacity"]["cpu"], "4");
    resource.withdraw().await.expect("a second time is fine");
}

#[tokio::test]
async fn a_daemon_takes_over_at_its_start_and_gives_way_later() {
    let server = Server::start().await;
    node(&server);
    let (old, new) = (resource(&server, "old"), resource(&server, "new"));
    old.offer(true).await.unwrap();
    new.offer(true).await.unwrap();
    assert_eq!(old.offer(false).await.unwrap(), Offered::Taken);
    old.withdraw().await.unwrap();
    assert_eq!(offer(&server), (json!("new"), json!("10")), "what another one offers stays");
}

#[tokio::test]
async fn a_node_that_changed_in_between_is_read_again() {
    let server = Server::start().await;
    node(&server);
    server.fault(Method::PATCH, NODE, Fault::Code(409), 1);
    let resource = resource(&server, "a");
    assert!(resource.offer(true).await.unwrap_err().is_passing());
    assert_eq!(resource.offer(true).await.unwrap(), Offered::Ours);
}

#[tokio::test]
async fn the_offer_comes_also_after_a_cluster_that_was_away_and_goes_with_the_daemon() {
    let server = Server::start().await;
    server.fault(Method::GET, NODE, Fault::Code(503), 2);
    let kept = server.side("a").offer(10).unwrap();
    node(&server);
    waited(&server, "the offer", (json!("a"), json!("10"))).await;
    kept.end(true).await.unwrap();
    assert_eq!(offer(&server), (json!("a"), Value::Null));
}

#[tokio::test]
async fn a_daemon_that_is_followed_leaves_the_offer() {
    let server = Server::start().await;
    node(&server);
    let kept = server.side("a").offer(10).unwrap();
    waited(&server, "the offer", (json!("a"), json!("10"))).await;
    kept.end(false).await.unwrap();
    assert_eq!(offer(&server), (json!("a"), json!("10")));
}

#[tokio::test]
async fn below_zero_nothing_is_offered() {
    let server = Server::start().await;
    assert!(server.side("a").offer(-1).is_none());
    assert!(server.side("a").offer(0).is_some(), "none is a number, too");
}

#[tokio::test]
async fn the_lease_tells_who_lives_on_which_node() {
    let server = Server::start().await;
    let stop = CancellationToken::new();
    let task = server.side("a").keep_lease(stop.clone());
    let path = "/apis/coordination.k8s.io/v1/namespaces/peer-pods/leases/cloud-api-adaptor-n1";
    let lease = wait_for_async("the Lease", SOON, || async { server.get(path) }).await.unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "a");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["labels"]["app.kubernetes.io/managed-by"], "cloud-api-adaptor");
    assert_eq!(lease["metadata"]["labels"]["peer.pod/node"], "n1");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn the_clusters_id_is_the_uid_of_kube_system() {
    let server = Server::start().await;
    server.put("/api/v1/namespaces/kube-system", json!({"metadata": {"uid": "cluster-uid"}}));
    let side = server.side("a");
    assert_eq!(side.cluster_id(false).await.unwrap().as_deref(), Some("cluster-uid"));
    server.fault(Method::GET, "/api/v1/namespaces/kube-system", Fault::Code(403), None);
    assert_eq!(
        side.cluster_id(false).await.unwrap(),
        None,
        "without the right the node has an id of its own"
    );
}
