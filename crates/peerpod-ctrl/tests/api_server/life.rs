//! One record at a time: both definitions, both daemons, a change of the leader, conflicts, a server that is killed.

use std::time::Duration;

use cloud_providers::scripted::{Fault, World};
use cloud_providers::{Error, ErrorKind};
use peerpod_api::{crd, writes};
use serde_json::json;
use test_support::{Part, Request, existing_definition, existing_peer_pod, wait_for};
use tokio::task::block_in_place;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn records_of_both_daemons_are_finished_with_either_definition() {
    for definition in [existing_definition(), serde_json::to_value(crd()).unwrap()] {
        let (cluster, world) = (block_in_place(|| cluster(definition)), World::new());
        let cloud = Watched::new(&world, 0, 1);
        let controller = Controller::start(&cluster, "one", &cloud).await;
        // One of the existing daemon: an id, and a name that says whose it is.
        let foreign = pod(&cluster, "foreign");
        let id = world.add("instance", "podvm-foreign-0a1b2c3d", &[]);
        cluster.create(OBJECTS, &existing_peer_pod(&foreign, PROVIDER, &id, "b4x7z")).unwrap();
        // One of ours; and one whose daemon was lost before the id was known.
        let ours = sandbox(&cluster, &cloud, &pod(&cluster, "ours"), "s1", 1).await;
        let early = claim(&scope(&cluster), &pod(&cluster, "early"), "s2", 2);
        cluster.create(OBJECTS, &json!(writes::early(&early))).unwrap();
        instance(&cloud, &early).await;
        assert!(world.resources().len() >= 3);
        cluster.delete(&format!("{PODS}/ours")).unwrap();
        block_in_place(|| {
            wait_for("the record of ours to go", LIMIT, || {
                cluster.get(&one(&ours)).ok()?.is_none().then_some(())
            })
        })
        .unwrap();
        assert_eq!(cluster.list(OBJECTS).unwrap().len(), 2, "living pods keep their records");
        for name in ["foreign", "early"] {
            cluster.delete(&format!("{PODS}/{name}")).unwrap();
        }
        block_in_place(|| until_empty(&cluster, &world, LIMIT));
        assert_eq!(cloud.twice(), 0);
        controller.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_controller_takes_over_when_the_leader_dies_and_when_it_ends() {
    let (cluster, world) = (block_in_place(|| cluster(serde_json::to_value(crd()).unwrap())), World::new());
    let cloud = Watched::new(&world, 0, 1);
    let first = Controller::start(&cluster, "one", &cloud).await;
    let second = Controller::start(&cluster, "two", &cloud).await;
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    let lease = format!("{leases}/{}", peerpod_api::names::LEADER_LEASE);
    let leads = |who: &str| {
        let holder = || cluster.get(&lease).ok()??["spec"]["holderIdentity"].as_str().map(str::to_owned);
        let found = block_in_place(|| {
            wait_for("a leader", LIMIT, || holder().filter(|it| who.is_empty() || it == who))
        });
        found.unwrap()
    };
    let leader = leads("");
    let (leading, waiting, heir) =
        if leader == "one" { (first, second, "two") } else { (second, first, "one") };
    // A deletion is under way when the leader dies.
    cloud_hangs(&world);
    sandbox(&cluster, &cloud, &pod(&cluster, "web"), "s1", 1).await;
    cluster.delete(&format!("{PODS}/web")).unwrap();
    block_in_place(|| wait_for("the deletion to begin", LIMIT, || (cloud.calls().0 > 0).then_some(())))
        .unwrap();
    leading.kill().await;
    world.clear_faults();
    leads(heir);
    block_in_place(|| until_empty(&cluster, &world, LIMIT));
    assert_eq!(cloud.twice(), 0);
    // One that is asked to end gives the lease back, and nobody waits for it to run out.
    let third = Controller::start(&cluster, "three", &cloud).await;
    waiting.end().await;
    leads("three");
    third.end().await;
}

fn cloud_hangs(world: &World) {
    world.script(Fault::on("terminate_instance").forever().hang_before());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_others_change_all_the_while_is_finished_and_keeps_their_finalizers() {
    let (cluster, world) = (block_in_place(|| cluster(serde_json::to_value(crd()).unwrap())), World::new());
    let cloud = Watched::new(&world, 0, 1);
    let controller = Controller::start(&cluster, "one", &cloud).await;
    let object = sandbox(&cluster, &cloud, &pod(&cluster, "web"), "s1", 1).await;
    let finalizers = json!(["others.example/keeps", peerpod_api::names::FINALIZER]);
    cluster.merge(&one(&object), &json!({"metadata": {"finalizers": finalizers}})).unwrap();
    cluster.delete(&format!("{PODS}/web")).unwrap();
    let mut round = 0;
    let left = block_in_place(|| {
        wait_for("our finalizer to go", LIMIT, || {
            round += 1;
            let label = json!({"metadata": {"labels": {"others.example/round": round.to_string()}}});
            let changed = cluster.merge(&one(&object), &label).ok()?;
            let finalizers = changed["metadata"]["finalizers"].as_array()?.clone();
            (finalizers.len() == 1).then_some(finalizers)
        })
    });
    assert_eq!(left.unwrap(), ["others.example/keeps"]);
    assert!(world.resources().is_empty());
    cluster.merge(&one(&object), &json!({"metadata": {"finalizers": null}})).unwrap();
    block_in_place(|| until_empty(&cluster, &world, LIMIT));
    controller.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_fails_is_told_on_the_record_and_to_the_pod_and_survives_a_dead_server() {
    let mut cluster = block_in_place(|| cluster(serde_json::to_value(crd()).unwrap()));
    let world = World::new();
    let cloud = Watched::new(&world, 0, 1);
    let controller = Controller::start(&cluster, "one", &cloud).await;
    let object = sandbox(&cluster, &cloud, &pod(&cluster, "web"), "s1", 1).await;
    let down = Error::new(ErrorKind::Transient, "the cloud is down");
    world.script(Fault::on("terminate_instance").forever().before(down));
    cluster.delete(&format!("{PODS}/web")).unwrap();
    let told = || {
        let object = cluster.get(&one(&object)).ok()??;
        let conditions = object["status"]["conditions"].as_array()?.clone();
        conditions
            .iter()
            .any(|c| c["message"].as_str().is_some_and(|m| m.contains("the cloud is down")))
            .then_some(())
    };
    block_in_place(|| wait_for("the condition", LIMIT, told)).unwrap();
    let event = || {
        let events = cluster.list("/api/v1/namespaces/default/events").ok()?;
        events
            .iter()
            .any(|e| e["message"].as_str().is_some_and(|m| m.contains("the cloud is down")))
            .then_some(())
    };
    block_in_place(|| wait_for("the Event", LIMIT, event)).unwrap();
    block_in_place(|| cluster.kill(Part::ApiServer)).unwrap();
    world.clear_faults();
    // The cloud is asked again while nobody can be told.
    block_in_place(|| {
        wait_for("the instance to go or the server to be back", Duration::from_secs(20), || {
            world.resources().is_empty().then_some(())
        })
    })
    .ok();
    block_in_place(|| cluster.start_again(Part::ApiServer)).unwrap();
    block_in_place(|| until_empty(&cluster, &world, LIMIT));
    controller.end().await;
    let asked = cluster.requests_of(NAMESPACE, peerpod_api::names::CONTROLLER).unwrap();
    // A server that was just started refuses some of what it allows a moment later.
    let right = |one: &Request| (one.verb.clone(), one.resource.clone());
    let allowed: Vec<_> = asked.keys().filter(|one| one.allowed).map(right).collect();
    let missing: Vec<_> = asked.keys().filter(|one| !one.allowed && !allowed.contains(&right(one))).collect();
    assert!(missing.is_empty(), "rights that the roles lack: {missing:?}");
}
