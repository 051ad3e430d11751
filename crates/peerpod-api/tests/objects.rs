//! The objects on a real API server: both definitions, both controllers, conflicts, and the end of their pod.

use std::time::Duration;

use cloud_providers::{InstanceId, Scope, Token};
use peerpod_api::{
    Claim, Facts, Gone, PeerPod, PeerPodSpec, Placement, PodOwner, Stage, crd, names, rules, writes,
};
use serde_json::{Value, json};
use test_support::{
    Answer, ClusterOptions, ExistingController, RealCluster, existing_definition, existing_peer_pod, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
const PODS: &str = "/api/v1/namespaces/default/pods";
const OBJECTS: &str = "/apis/confidentialcontainers.org/v1alpha1/namespaces/default/peerpods";
const MERGE: &str = "application/merge-patch+json";

fn cluster(definition: Value) -> RealCluster {
    ClusterOptions::default().with_definitions([definition]).start().unwrap()
}

fn ours() -> Value {
    serde_json::to_value(crd()).unwrap()
}

fn pod(cluster: &RealCluster, name: &str) -> Value {
    let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "none"}]}});
    cluster.create(PODS, &pod).unwrap()
}

fn claim(pod: &Value, sandbox: &str, order: u64) -> Claim {
    let text = |key: &str| pod["metadata"][key].as_str().unwrap();
    let token = Token::new(Scope::Cluster("c1".into()), sandbox, 1);
    let mut claim = Claim::new(sandbox, token, PodOwner::new(text("namespace"), text("name"), text("uid")));
    claim.provider = "local".into();
    claim.node = Some("node-1".into());
    claim.instance_name = Some(format!("podvm-{}-{sandbox}", text("name")));
    claim.profile = Some("gpu".into());
    claim.order = Some(order);
    claim
}

fn create(cluster: &RealCluster, object: &PeerPod) -> PeerPod {
    typed(cluster.create(OBJECTS, &serde_json::to_value(object).unwrap()).unwrap())
}

fn typed(object: Value) -> PeerPod {
    serde_json::from_value(object).unwrap()
}

fn one(object: &PeerPod) -> String {
    format!("{OBJECTS}/{}", object.metadata.name.as_deref().unwrap())
}

fn read(cluster: &RealCluster, object: &PeerPod) -> Option<PeerPod> {
    cluster.get(&one(object)).unwrap().map(typed)
}

fn patch(cluster: &RealCluster, object: &PeerPod, patch: &Value) -> Answer {
    cluster.request("PATCH", &one(object), Some((MERGE, patch))).unwrap()
}

fn bind(cluster: &RealCluster, object: &PeerPod, id: &str) -> PeerPod {
    let placement: Placement = serde_json::from_value(json!({"zone": "z1"})).unwrap();
    let wanted = writes::bind(object, &InstanceId::new(id), &placement).expect("the id is new");
    typed(patch(cluster, object, &wanted).ok().unwrap())
}

/// Deletes the pod and waits until the garbage collector asked for the end of the object.
fn end_pod(cluster: &RealCluster, name: &str, object: &PeerPod) -> PeerPod {
    cluster.delete(&format!("{PODS}/{name}")).unwrap();
    let ending = || read(cluster, object).filter(rules::is_deleting);
    wait_for("the collector to delete what the pod owned", LIMIT, ending).unwrap()
}

fn release(cluster: &RealCluster, object: &PeerPod) {
    let wanted = writes::release(object).expect("it has a finalizer of ours");
    patch(cluster, object, &wanted).ok().unwrap();
}

/// The life of one sandbox, and what is read back at each step.
fn life(cluster: &RealCluster, name: &str) {
    let owner = pod(cluster, name);
    let claim = claim(&owner, &format!("sandbox-{name}"), 7);
    let early = create(cluster, &writes::early(&claim));
    assert_eq!(rules::stage(&early), Stage::Intent);
    let facts = Facts::of(&early);
    assert_eq!(facts.token.as_ref(), Some(&claim.token));
    assert_eq!(facts.sandbox.as_deref(), Some(claim.sandbox.as_str()));
    assert_eq!((facts.node.as_deref(), facts.profile.as_deref()), (Some("node-1"), Some("gpu")));
    assert_eq!((facts.pod, facts.order), (Some(claim.pod.clone()), Some(7)));
    assert_eq!(writes::claim_again(&early, &claim), None, "a restarted daemon finds all that it would write");
    let bound = bind(cluster, &early, "i-1");
    let facts = Facts::of(&bound);
    assert_eq!(rules::stage(&bound), Stage::Bound);
    assert_eq!(facts.instance, Some(InstanceId::new("i-1")));
    assert_eq!(facts.placement.and_then(|placement| placement.zone).as_deref(), Some("z1"));
    assert_eq!(facts.token.as_ref(), Some(&claim.token));
    let ending = end_pod(cluster, name, &bound);
    assert!(rules::may_finalizer_go(&ending, &Gone::instance(InstanceId::new("i-1"))));
    release(cluster, &ending);
    assert_eq!(read(cluster, &ending), None);
}

#[test]
fn the_life_of_a_sandbox_is_the_same_with_an_older_definition_and_over_the_change_to_ours() {
    let cluster = cluster(existing_definition());
    life(&cluster, "older");
    let before = create(&cluster, &writes::early(&claim(&pod(&cluster, "over"), "sandbox-over", 8)));
    assert_eq!((before.spec.token.as_deref(), before.spec.sandbox_id.as_deref()), (None, None), "pruned");
    cluster.define(&ours()).unwrap();
    let after = read(&cluster, &before).expect("it stays");
    assert_eq!(Facts::of(&after), Facts::of(&before));
    let bound = bind(&cluster, &after, "i-over");
    assert_eq!(Facts::of(&bound).instance, Some(InstanceId::new("i-over")));
    life(&cluster, "newer");
    // The sandbox is a field now, and an object that the existing daemon writes is taken as it is.
    let stored = create(&cluster, &writes::early(&claim(&pod(&cluster, "full"), "sandbox-full", 9)));
    assert_eq!(stored.spec.sandbox_id.as_deref(), Some("sandbox-full"));
    let old = existing_peer_pod(&pod(&cluster, "foreign"), "local", "i-foreign", "b4x7z");
    let stored = cluster.create(OBJECTS, &old).unwrap();
    assert_eq!(stored["spec"], old["spec"]);
    assert_eq!(Facts::of(&typed(stored)).instance, Some(InstanceId::new("i-foreign")));
}

#[test]
fn a_write_on_what_was_read_too_early_or_on_another_object_of_the_same_name_is_refused() {
    let cluster = cluster(ours());
    let claim = claim(&pod(&cluster, "web"), "s1", 1);
    let early = create(&cluster, &writes::early(&claim));
    cluster.merge(&one(&early), &json!({"metadata": {"labels": {"somebody": "else"}}})).unwrap();
    let stale = writes::bind(&early, &InstanceId::new("i-1"), &Placement::default()).unwrap();
    assert_eq!(patch(&cluster, &early, &stale).status, 409);
    let now = read(&cluster, &early).unwrap();
    assert_eq!(Facts::of(&now).instance, None, "nothing of it was written");
    let again = cluster.request("POST", OBJECTS, Some(("application/json", &json!(writes::early(&claim)))));
    assert_eq!(again.unwrap().status, 409, "a sandbox has one object");
    release(&cluster, &now);
    cluster.delete(&one(&now)).unwrap();
    let again = create(&cluster, &writes::early(&claim));
    assert_ne!(again.metadata.uid, early.metadata.uid);
    let mut other = writes::bind(&now, &InstanceId::new("i-1"), &Placement::default()).unwrap();
    assert_eq!(patch(&cluster, &again, &other).status, 409);
    // Also without a version, the UID alone tells them apart; a server has another code for that.
    other["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(patch(&cluster, &again, &other).status, 422);
}

#[test]
fn a_condition_is_written_beside_the_spec_and_an_older_definition_drops_it() {
    let cluster = cluster(existing_definition());
    let object = create(&cluster, &writes::early(&claim(&pod(&cluster, "web"), "s1", 1)));
    let status = json!({"status": {"observedGeneration": 1, "conditions": [{
        "type": peerpod_api::object::condition::DELETION_PENDING, "status": "True", "reason": "throttled",
        "message": "the cloud is busy", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}, "spec": {"instanceID": "not-by-this-way"}});
    let write = || {
        let answer = cluster.request("PATCH", &format!("{}/status", one(&object)), Some((MERGE, &status)));
        typed(answer.unwrap().ok().unwrap())
    };
    let conditions = |object: &PeerPod| object.status.clone().unwrap_or_default().conditions;
    assert!(conditions(&write()).is_empty());
    cluster.define(&ours()).unwrap();
    // The server follows a new definition a moment after it says so.
    let kept = || Some(write()).filter(|written| !conditions(written).is_empty());
    let written = wait_for("the condition to be kept", LIMIT, kept).unwrap();
    assert_eq!(conditions(&written)[0].reason, "throttled");
    assert_eq!(written.spec.instance_id, None);
}

#[test]
fn the_existing_controller_never_sees_an_empty_id_and_takes_over_where_ours_leaves() {
    for definition in [existing_definition(), ours()] {
        let cluster = cluster(definition);
        let mut existing = ExistingController::default();
        // A pod that ends before there is an instance: the intent stays for who knows it.
        let early = create(&cluster, &writes::early(&claim(&pod(&cluster, "early"), "s1", 1)));
        existing.reconcile(&cluster).unwrap();
        let ending = end_pod(&cluster, "early", &early);
        existing.reconcile(&cluster).unwrap();
        let now = read(&cluster, &ending).expect("the intent keeps it");
        assert!(existing.deleted.is_empty(), "{existing:?}");
        release(&cluster, &now);
        // One that ends later: between whichever steps the existing controller looks, it sees no id or the right one.
        let early = create(&cluster, &writes::early(&claim(&pod(&cluster, "late"), "s2", 2)));
        existing.reconcile(&cluster).unwrap();
        let bound = bind(&cluster, &early, "i-2");
        existing.reconcile(&cluster).unwrap();
        assert!(existing.deleted.is_empty() && existing.superseded.is_empty(), "{existing:?}");
        end_pod(&cluster, "late", &bound);
        existing.reconcile(&cluster).unwrap();
        assert_eq!(existing.deleted, ["i-2"]);
        assert_eq!(
            read(&cluster, &bound),
            None,
            "nothing of ours keeps what the existing controller finished"
        );
        // The id comes to be known while the pod ends.
        let early = create(&cluster, &writes::early(&claim(&pod(&cluster, "midst"), "s3", 3)));
        let ending = end_pod(&cluster, "midst", &early);
        let late = writes::bind(&ending, &InstanceId::new("i-3"), &Placement::default()).unwrap();
        // A server takes no new finalizer once an object is being deleted: the intent and the token are what is left.
        assert_eq!(patch(&cluster, &ending, &late).status, 422);
        existing.reconcile(&cluster).unwrap();
        assert_eq!(existing.deleted, ["i-2"]);
        let left = read(&cluster, &ending).unwrap();
        assert_eq!(rules::stage(&left), Stage::Intent);
        assert!(Facts::of(&left).token.is_some());
    }
}

#[test]
fn the_sandboxes_of_one_pod_are_told_apart_among_objects_of_both_daemons() {
    let cluster = cluster(ours());
    let owner = pod(&cluster, "db-0");
    let first = typed(cluster.create(OBJECTS, &existing_peer_pod(&owner, "local", "i-1", "bcdfg")).unwrap());
    let made = |object: &PeerPod| object.metadata.creation_timestamp.clone().map(|time| time.0);
    // The server's times are whole seconds.
    wait_for("the server's clock", LIMIT, || {
        let probe = create(&cluster, &PeerPod::new("default", "probe", PeerPodSpec::default()));
        cluster.delete(&one(&probe)).unwrap();
        (made(&probe) > made(&first)).then_some(())
    })
    .unwrap();
    let second = create(&cluster, &writes::early(&claim(&owner, "s2", 2)));
    let third = create(&cluster, &writes::early(&claim(&owner, "s3", 3)));
    assert!(rules::is_superseded(&first, &second) && !rules::is_superseded(&second, &first));
    assert!(rules::is_superseded(&second, &third) && !rules::is_superseded(&third, &second));
    assert_ne!(second.metadata.name, third.metadata.name);
    assert_eq!(second.metadata.name, Some(names::object_name("db-0", "s2")));
}
