//! Records of sandboxes.

use axum::http::Method;
use caa::cluster::{ClusterRecord, SandboxRef};
use peerpod_api::{Facts, PeerPod, Stage, names, rules};
use serde_json::{Value, json};

use crate::server::{Fault, RECORDS, Server};

fn sandbox(id: &str, pod: &str) -> SandboxRef {
    let mut sandbox = SandboxRef::new(id, pod, "shop");
    sandbox.token = format!("cluster:c1/{id}/1");
    sandbox.instance_name = format!("podvm-{pod}-{id}");
    sandbox.order = Some(7);
    sandbox
}

fn bound(sandbox: &SandboxRef, instance: &str) -> SandboxRef {
    let mut sandbox = sandbox.clone();
    sandbox.instance_id = Some(instance.into());
    sandbox
}

fn path(sandbox: &SandboxRef) -> String {
    format!("{RECORDS}/{}", names::object_name(&sandbox.pod_name, &sandbox.sandbox_id))
}

fn record(server: &Server, sandbox: &SandboxRef) -> Option<PeerPod> {
    server.get(&path(sandbox)).map(|value| serde_json::from_value(value).unwrap())
}

#[tokio::test]
async fn the_record_is_there_before_the_vm_and_one_patch_binds_it() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, mut s1) = (server.record(), sandbox("s1", "web"));
    cluster.claim(&s1).await.unwrap();
    let early = record(&server, &s1).unwrap();
    assert_eq!(rules::stage(&early), Stage::Intent);
    assert_eq!(early.spec.instance_id, None);
    let facts = Facts::of(&early);
    assert_eq!(facts.pod.unwrap().uid, "uid-web");
    assert_eq!((facts.provider.as_deref(), facts.node.as_deref()), (Some("scripted"), Some("n1")));
    assert_eq!(facts.profile.as_deref(), Some("eu"));
    assert_eq!((facts.sandbox.as_deref(), facts.order), (Some("s1"), Some(7)));

    s1.instance_type = Some("m6a.large".into());
    cluster.bind(&s1, "i-1").await.unwrap();
    let after = record(&server, &s1).unwrap();
    assert_eq!(rules::stage(&after), Stage::Bound);
    assert_eq!(
        after.metadata.finalizers.unwrap(),
        [names::FINALIZER],
        "none of ours stays for an existing controller"
    );
    assert_eq!(after.spec.instance_id.as_deref(), Some("i-1"));
    assert_eq!(after.spec.placement.unwrap().instance_type.as_deref(), Some("m6a.large"));
    assert_eq!(server.count("PATCH"), 1);

    cluster.release(&bound(&s1, "i-1")).await.unwrap();
    assert_eq!(record(&server, &s1), None);
    cluster.release(&bound(&s1, "i-1")).await.expect("a second release is fine");
}

#[tokio::test]
async fn an_older_definition_and_the_rights_of_the_existing_daemon_are_enough() {
    let server = Server::start().await;
    server.with_older_definition();
    server.pod("web", "uid-web");
    for (method, what) in [(Method::GET, "/peerpods"), (Method::DELETE, "/peerpods")] {
        server.fault(method, what, Fault::Code(403), None);
    }
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    for _ in 0..2 {
        cluster.claim(&s1).await.unwrap();
        cluster.bind(&s1, "i-1").await.unwrap();
    }
    let object = record(&server, &s1).unwrap();
    assert_eq!(object.spec.sandbox_id, None, "it was pruned");
    let facts = Facts::of(&object);
    assert_eq!((facts.sandbox.as_deref(), facts.instance.unwrap().as_str()), (Some("s1"), "i-1"));
    cluster.release(&bound(&s1, "i-1")).await.unwrap();
    assert_eq!(rules::stage(&record(&server, &s1).unwrap()), Stage::Done, "it goes with the pod");
}

#[tokio::test]
async fn a_lost_answer_leaves_one_record_that_says_the_same() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    server.fault(Method::POST, "/peerpods", Fault::LostReply, 1);
    cluster.claim(&s1).await.unwrap();
    server.fault(Method::PATCH, "/peerpods", Fault::LostReply, 1);
    cluster.bind(&s1, "i-1").await.unwrap();
    assert_eq!(server.all(RECORDS).len(), 1);
    assert_eq!(rules::stage(&record(&server, &s1).unwrap()), Stage::Bound);
    server.fault(Method::PATCH, "/peerpods", Fault::LostReply, 1);
    server.fault(Method::DELETE, "/peerpods", Fault::LostReply, 1);
    cluster.release(&bound(&s1, "i-1")).await.unwrap();
    assert_eq!(server.all(RECORDS), Vec::<Value>::new());
}

#[tokio::test]
async fn two_sandboxes_of_one_pod_have_a_record_each_and_are_released_alone() {
    let server = Server::start().await;
    server.pod("db-0", "uid-1");
    let (cluster, first, second) = (server.record(), sandbox("s1", "db-0"), sandbox("s2", "db-0"));
    for (sandbox, id) in [(&first, "i-1"), (&second, "i-2")] {
        cluster.claim(sandbox).await.unwrap();
        cluster.bind(sandbox, id).await.unwrap();
    }
    // Nobody has to know the pod for that: it may be gone.
    server.remove("/api/v1/namespaces/shop/pods/db-0");
    cluster.release(&bound(&first, "i-1")).await.unwrap();
    assert_eq!(record(&server, &first), None);
    let other = record(&server, &second).unwrap();
    assert_eq!((rules::stage(&other), other.spec.instance_id.as_deref()), (Stage::Bound, Some("i-2")));
}

#[tokio::test]
async fn a_release_leaves_the_finalizers_of_others_and_what_they_hold() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    cluster.claim(&s1).await.unwrap();
    cluster.bind(&s1, "i-1").await.unwrap();
    server.change(&path(&s1), |object| {
        object["metadata"]["finalizers"].as_array_mut().unwrap().insert(0, "backup/x".into())
    });
    cluster.release(&bound(&s1, "i-1")).await.unwrap();
    let object = record(&server, &s1).unwrap();
    assert_eq!(object.metadata.finalizers.unwrap(), ["backup/x"]);
    assert!(object.metadata.deletion_timestamp.is_some(), "it goes when the other one is done");
}

#[tokio::test]
async fn a_record_that_names_another_instance_is_not_released() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    cluster.claim(&s1).await.unwrap();
    cluster.bind(&s1, "i-1").await.unwrap();
    let mut other = bound(&s1, "i-2");
    other.token = "cluster:c1/s1/2".into();
    let error = format!("{:#}", cluster.release(&other).await.unwrap_err());
    assert!(error.contains("names instance i-1"), "{error}");
    assert_eq!(rules::stage(&record(&server, &s1).unwrap()), Stage::Bound);
}

#[tokio::test]
async fn somebody_elses_change_in_between_is_read_again() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    cluster.claim(&s1).await.unwrap();
    server.fault(Method::PATCH, "/peerpods", Fault::Code(409), 2);
    cluster.bind(&s1, "i-1").await.unwrap();
    assert_eq!(server.count("PATCH"), 3);
    assert_eq!(server.count("GET /apis"), 3, "read anew each time");
}

#[tokio::test]
async fn the_longest_names_of_pods_have_records() {
    let server = Server::start().await;
    let pod = format!("{}.x", "a".repeat(251));
    server.pod(&pod, "uid-long");
    server.record().claim(&sandbox("s1", &pod)).await.unwrap();
    let name = server.all(RECORDS)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.len() <= 253, "{name}");
}

#[tokio::test]
async fn a_cluster_without_the_definition_has_no_records_and_starts_go_on() {
    let server = Server::start().await;
    server.without("peerpods");
    server.pod("web", "uid-web");
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    cluster.claim(&s1).await.unwrap();
    cluster.bind(&s1, "i-1").await.unwrap();
    cluster.release(&bound(&s1, "i-1")).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_recorded_says_why_and_makes_no_vm() {
    let server = Server::start().await;
    let cluster = server.record();
    let error =
        async |id: &str, pod: &str| format!("{:#}", cluster.claim(&sandbox(id, pod)).await.unwrap_err());
    assert!(error("s1", "gone").await.contains("pod shop/gone is not in the cluster"));
    server.pod("web", "uid-web");
    server.fault(Method::POST, "/peerpods", Fault::Code(403), 1);
    assert!(error("s1", "web").await.contains("a right is missing"));
    // Somebody deleted the pod in the meantime, and the sandbox is the same.
    cluster.claim(&sandbox("s1", "web")).await.unwrap();
    let s1 = sandbox("s1", "web");
    server
        .change(&path(&s1), |object| object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    assert!(error("s1", "web").await.contains("being deleted"));
    let error = format!("{:#}", cluster.bind(&s1, "i-1").await.unwrap_err());
    assert!(error.contains("deleted while its VM was made"), "{error}");
    cluster.release(&s1).await.unwrap();
    assert_eq!(record(&server, &s1), None, "the last finalizer was ours");
    let error = format!("{:#}", cluster.bind(&s1, "i-1").await.unwrap_err());
    assert!(error.contains("is gone"), "{error}");
}

#[tokio::test]
async fn an_object_of_another_sandbox_under_the_name_is_left_alone() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, s1) = (server.record(), sandbox("s1", "web"));
    server.put(
        &path(&s1),
        json!({"spec": {"instanceID": "i-9"}, "metadata": {"finalizers": ["peer.pod/finalizer"]}}),
    );
    for error in [cluster.claim(&s1).await, cluster.bind(&s1, "i-1").await, cluster.release(&s1).await] {
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("is of another sandbox"), "{error}");
    }
    assert_eq!(record(&server, &s1).unwrap().spec.instance_id.as_deref(), Some("i-9"));
}

#[tokio::test]
async fn a_later_attempt_of_the_same_sandbox_takes_its_record() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let (cluster, mut s1) = (server.record(), sandbox("s1", "web"));
    cluster.claim(&s1).await.unwrap();
    s1.token = "cluster:c1/s1/2".into();
    cluster.claim(&s1).await.unwrap();
    assert_eq!(Facts::of(&record(&server, &s1).unwrap()).token.unwrap().attempt, 2);
    assert_eq!(server.all(RECORDS).len(), 1);
}
