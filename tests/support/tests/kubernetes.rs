//! The cluster for tests does what tests of the controller rely on.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_support::{ClusterOptions, Netns, Part, RealCluster, processes_matching, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const PODS: &str = "/api/v1/namespaces/default/pods";
const THINGS: &str = "/apis/tests.example/v1/namespaces/default/things";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.tests.example"},
        "spec": {
            "group": "tests.example",
            "names": {"kind": "Thing", "plural": "things", "singular": "thing"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"kept": {"type": "string"}}},
                }}},
            }],
        },
    })
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "none"}]}})
}

fn thing_of(name: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "tests.example/v1",
        "kind": "Thing",
        "metadata": {
            "name": name,
            "finalizers": ["tests.example/finalizer"],
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"kept": "yes", "pruned": "no"},
    })
}

#[test]
fn objects_of_a_gone_owner_are_collected_also_after_every_part_was_killed() {
    let begun = Instant::now();
    let mut cluster = ClusterOptions::default().with_definitions([definition()]).start().unwrap();
    println!("ready after {:.1} s", begun.elapsed().as_secs_f64());
    for round in 0..2 {
        let name = format!("p{round}");
        let owner = cluster.create(PODS, &pod(&name)).unwrap();
        let made = cluster.create(THINGS, &thing_of(&name, &owner)).unwrap();
        assert_eq!(made["spec"], json!({"kept": "yes"}), "fields that the definition lacks are pruned");
        cluster.delete(&format!("{PODS}/{name}")).unwrap();
        let one = format!("{THINGS}/{name}");
        wait_for("the collector to delete what the pod owned", LIMIT, || {
            let thing = cluster.get(&one).unwrap().expect("its finalizer keeps it");
            thing["metadata"]["deletionTimestamp"].is_string().then_some(())
        })
        .unwrap();
        cluster.merge(&one, &json!({"metadata": {"finalizers": null}})).unwrap();
        assert!(cluster.get(&one).unwrap().is_none());
        if round == 0 {
            cluster.create(PODS, &pod("stays")).unwrap();
            for part in [Part::ApiServer, Part::Etcd, Part::ControllerManager] {
                cluster.kill(part).unwrap();
                assert!(cluster.kill(part).is_err(), "{part:?} was killed");
            }
            assert!(cluster.get(PODS).is_err(), "nobody answers");
            for part in Part::ALL {
                cluster.start_again(part).unwrap();
            }
            assert!(cluster.get(&format!("{PODS}/stays")).unwrap().is_some());
        }
    }
    cluster.pause(Part::ApiServer).unwrap();
    let hangs = cluster.command("curl").args(["-sk", "-m", "1", &cluster.url()]).output().unwrap();
    assert_eq!(hangs.status.code(), Some(28), "a stopped server takes a connection and says nothing");
    cluster.resume(Part::ApiServer).unwrap();
    cluster.wait_until_served(Part::ApiServer).unwrap();
    let dir = cluster.dir().to_owned();
    let url = cluster.url();
    let address = url.trim_start_matches("https://").split(':').next().unwrap().to_owned();
    assert!(!processes_matching(&address).is_empty());
    drop(cluster);
    assert!(processes_matching(&address).is_empty() && !dir.exists());
}

#[test]
fn in_a_namespace_a_service_account_may_do_what_its_role_says_and_no_more() {
    let netns = Netns::unique("ppk8s").unwrap();
    netns.ip(&["addr", "add", "192.0.2.5/32", "dev", "lo"]).unwrap();
    let cluster =
        ClusterOptions::default().in_netns(&netns, Ipv4Addr::new(192, 0, 2, 5).into()).start().unwrap();
    let token = cluster.token_of("default", "reader").unwrap();
    let status = |method: &str, path: &str| cluster.request_as(&token, method, path, None).unwrap().status;
    assert_eq!(status("GET", PODS), 403);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
    });
    cluster.create(&format!("{rbac}/clusterroles"), &role).unwrap();
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}],
    });
    cluster.create(&format!("{rbac}/clusterrolebindings"), &binding).unwrap();
    wait_for("the role to take effect", LIMIT, || (status("GET", PODS) == 200).then_some(())).unwrap();
    assert_eq!(status("DELETE", &format!("{PODS}/none")), 403);
    assert_eq!(cluster.request_as("wrong", "GET", PODS, None).unwrap().status, 401);
    // Both name the server as a client that checks its certificate reaches it.
    let text = std::fs::read_to_string(cluster.kubeconfig_of("default", "reader").unwrap()).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["clusters"][0]["cluster"]["server"], cluster.url());
    assert_ne!(config["users"][0]["user"]["token"], cluster.token());
}

#[test]
fn two_clusters_run_beside_each_other() {
    let (one, two) = (RealCluster::start().unwrap(), RealCluster::start().unwrap());
    assert_ne!(one.url(), two.url());
    one.create(PODS, &pod("only-here")).unwrap();
    assert!(two.list(PODS).unwrap().is_empty());
    assert_eq!(two.request_as(one.token(), "GET", PODS, None).unwrap().status, 401);
}
