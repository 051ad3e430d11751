//! Many records at once.

use std::time::{Duration, Instant};

use cloud_providers::scripted::World;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use peerpod_api::{PeerPod, crd, names};
use serde_json::json;
use test_support::{ClusterClient, wait_for};
use tokio::task::block_in_place;

use crate::bench::*;

/// `PEERPOD_SCALE` asks for another number; the long run of the tests has 5,000.
fn wanted() -> usize {
    std::env::var("PEERPOD_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

/// The most memory this process had, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_many_records_goes_with_a_fifth_of_the_calls_failing_and_none_is_deleted_twice_at_once()
{
    let count = wanted();
    let (cluster, world) = (block_in_place(|| cluster(serde_json::to_value(crd()).unwrap())), World::new());
    let seed = u64::from(std::process::id());
    let cloud = Watched::new(&world, 20, seed);
    let owner = pod(&cluster, "gone");
    println!("{count} records, a fifth of the calls to the cloud fail, seed {seed}");
    let scope = scope(&cluster);
    let mut objects = Vec::new();
    for index in 0..count {
        // Names have the first eight characters of the sandbox.
        let claim = claim(&scope, &owner, &format!("{index:08}"), index as u64);
        let id = instance(&cloud, &claim).await;
        let mut object = peerpod_api::writes::early(&claim);
        object.spec.instance_id = Some(id.to_string());
        object.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
        // The pod goes once, and the collector is not what is measured.
        object.metadata.owner_references = None;
        objects.push(object);
    }
    let client: ClusterClient = (*cluster).clone();
    let make = |object: PeerPod| {
        let client = client.clone();
        tokio::task::spawn_blocking(move || client.create(OBJECTS, &json!(object)).map(drop))
    };
    let made = stream::iter(objects.into_iter().map(make).collect::<Vec<_>>()).buffer_unordered(8);
    made.map(|done| done.unwrap()).try_collect::<Vec<()>>().await.unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    let controller = Controller::start(&cluster, "one", &cloud).await;
    let begun = Instant::now();
    // One request for so many may take longer than a client waits; what it marked by then stays marked.
    let all = || cluster.request("DELETE", OBJECTS, None).ok()?.ok().ok();
    block_in_place(|| wait_for("the deletion of all to be taken", Duration::from_secs(600), all)).unwrap();
    block_in_place(|| {
        wait_for("all instances and records to go", Duration::from_secs(1800), || {
            let some = cluster.get(&format!("{OBJECTS}?limit=1")).ok()??;
            (some["items"].as_array()?.is_empty() && world.resources().is_empty()).then_some(())
        })
    })
    .unwrap();
    let took = begun.elapsed();
    controller.end().await;
    let (calls, failed) = cloud.calls();
    let asked = cluster.requests_of(NAMESPACE, names::CONTROLLER).unwrap();
    let kinds: Vec<String> =
        asked.iter().map(|(one, n)| format!("{} {} {n}", one.verb, one.resource)).collect();
    println!(
        "{count} records gone in {:.0} s; for each {:.2} calls to the cloud ({:.0} % failed) and {:.2} requests to \
         the API server ({}); memory {before} → {} MiB at most",
        took.as_secs_f64(),
        calls as f64 / count as f64,
        100.0 * failed as f64 / calls as f64,
        asked.values().sum::<usize>() as f64 / count as f64,
        kinds.join(", "),
        peak(),
    );
    assert_eq!(cloud.twice(), 0, "deleted twice at the same time");
    assert!(calls >= count && failed > 0);
}
