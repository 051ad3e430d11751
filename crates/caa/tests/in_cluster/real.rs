//! The same against a real API server: with its own rules for patches, finalizers, owners, rights and credentials.

use std::{sync::Arc, time::Duration};

use caa::{
    cluster::{ClusterRecord, Notice, PodRef, SandboxRef},
    kubernetes::{
        Kubernetes, Side,
        api::{Api, ApiError, ApiResult},
        client::KubeApi,
        connect::Source,
        resource::{Offered, Resource},
    },
};
use cloud_providers::MapEnv;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Event};
use peerpod_api::{
    Claim, Facts, PeerPod, PodOwner, Stage,
    install::{Place, Program, RULES, Rule},
    names, rules, writes,
};
use serde_json::{Value, json};
use test_support::{ClusterOptions, Part, RealCluster, wait_for};
use tokio::runtime::Runtime;

use crate::server::identity;

const LIMIT: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "peer-pods";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const RECORDS: &str = "/apis/confidentialcontainers.org/v1alpha1/namespaces/default/peerpods";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// What the service account of the existing daemon may do.
const EXISTING: &[Rule] = &[
    right("", "pods", &["get", "list"]),
    right("", "secrets", &["get", "list"]),
    right("", "serviceaccounts", &["get", "list"]),
    right("confidentialcontainers.org", "peerpods", &["create", "patch", "update"]),
    right("", "nodes", &["get", "patch"]),
    right("", "nodes/status", &["patch"]),
];

const fn right(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Rule {
    let (program, place) = (Program::Daemon, Place::Everywhere);
    Rule { program, place, group, resource, objects: &[], verbs, why: "" }
}

fn ours() -> Vec<Rule> {
    RULES.iter().filter(|rule| rule.program == Program::Daemon).copied().collect()
}

/// A cluster with a definition of records, a node and the daemon's namespace.
fn cluster(definition: Value) -> RealCluster {
    let cluster = ClusterOptions::default().with_definitions([definition]).start().unwrap();
    cluster.create("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}})).unwrap();
    cluster.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).unwrap();
    cluster
}

fn current() -> Value {
    serde_json::to_value(peerpod_api::crd()).unwrap()
}

/// The existing definition, which knows two fields.
fn older() -> Value {
    let mut definition = current();
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    schema["spec"]["properties"] =
        json!({"cloudProvider": {"type": "string"}, "instanceID": {"type": "string"}});
    schema["status"]["properties"] = json!({"cleand": {"type": "boolean"}});
    definition["spec"]["versions"][0].as_object_mut().unwrap().remove("additionalPrinterColumns");
    definition
}

fn pod(cluster: &RealCluster, name: &str) -> String {
    let spec = json!({"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]});
    let pod = cluster.create(PODS, &json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Gives exactly these rights to a service account, and returns a client with its credentials.
fn client(cluster: &RealCluster, runtime: &Runtime, account: &str, rights: &[Rule]) -> Arc<KubeApi> {
    let path = cluster.kubeconfig_of(NAMESPACE, account).unwrap();
    for place in [Place::Everywhere, Place::Own] {
        let own = format!("{RBAC}/namespaces/{NAMESPACE}");
        let (kind, roles, bindings) = match place {
            Place::Everywhere => {
                ("ClusterRole", format!("{RBAC}/clusterroles"), format!("{RBAC}/clusterrolebindings"))
            }
            Place::Own => ("Role", format!("{own}/roles"), format!("{own}/rolebindings")),
        };
        let rules: Vec<Value> = rights.iter().filter(|right| right.place == place).map(policy).collect();
        cluster.create(&roles, &json!({"metadata": {"name": account}, "rules": rules})).unwrap();
        let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE});
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": account});
        let binding = json!({"metadata": {"name": account}, "roleRef": role, "subjects": [subject]});
        cluster.create(&bindings, &binding).unwrap();
    }
    let source = Source::find(Some(path.to_str().unwrap().to_owned()), &MapEnv::default()).unwrap();
    Arc::new(KubeApi::new(runtime.block_on(source.client()).unwrap()))
}

fn policy(right: &Rule) -> Value {
    let mut rule = json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": right.verbs});
    if !right.objects.is_empty() {
        rule["resourceNames"] = json!(right.objects);
    }
    rule
}

fn sandbox(id: &str, pod: &str) -> SandboxRef {
    let mut sandbox = SandboxRef::new(id, pod, "default");
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

fn record(cluster: &RealCluster, sandbox: &SandboxRef) -> Option<PeerPod> {
    let name = names::object_name(&sandbox.pod_name, &sandbox.sandbox_id);
    let found = cluster.get(&format!("{RECORDS}/{name}")).unwrap();
    found.map(|value| serde_json::from_value(value).unwrap())
}

/// What the existing controller does with a record, by its documented rules; says what it would delete.
fn existing_controller(record: &PeerPod) -> Option<String> {
    let finalizers = record.metadata.finalizers.as_deref().unwrap_or_default();
    let acts =
        record.metadata.deletion_timestamp.is_some() && finalizers.contains(&"peer.pod/finalizer".to_owned());
    acts.then(|| record.spec.instance_id.clone().unwrap_or_default())
}

#[test]
fn records_live_and_go_under_both_definitions_and_both_sets_of_rights() {
    let runtime = Runtime::new().unwrap();
    let mut cluster = cluster(older());
    for (account, rights) in [("existing", EXISTING), ("ours", &ours())] {
        let api = client(&cluster, &runtime, account, rights);
        let records = {
            let _context = runtime.enter();
            Kubernetes::new(api, identity("daemon-1"))
        };
        for (kind, definition) in [("older", older()), ("current", current())] {
            cluster.define(&definition).unwrap();
            let name = format!("{account}-{kind}");
            let uid = pod(&cluster, &name);
            let (first, second) =
                (sandbox(&format!("{name}-1"), &name), sandbox(&format!("{name}-2"), &name));
            runtime.block_on(async {
                for _ in 0..2 {
                    records.claim(&first).await.unwrap();
                }
                let early = record(&cluster, &first).unwrap();
                assert_eq!(rules::stage(&early), Stage::Intent);
                assert_eq!(existing_controller(&early), None);
                let facts = Facts::of(&early);
                assert_eq!(
                    (facts.sandbox.as_ref(), facts.order),
                    (Some(&first.sandbox_id), Some(7)),
                    "{name}"
                );
                assert_eq!(facts.pod.unwrap().uid, uid);
                assert_eq!(
                    early.spec.sandbox_id.is_some(),
                    kind == "current",
                    "an older definition prunes it"
                );
                for _ in 0..2 {
                    records.bind(&first, "i-1").await.unwrap();
                }
                records.claim(&second).await.unwrap();
                records.release(&bound(&first, "i-1")).await.unwrap();
            });
            let left = record(&cluster, &first);
            match account {
                // It goes with the pod, since nobody else may delete it.
                "existing" => assert_eq!(rules::stage(&left.unwrap()), Stage::Done),
                _ => assert_eq!(left, None),
            }
            assert_eq!(
                rules::stage(&record(&cluster, &second).unwrap()),
                Stage::Intent,
                "the other one stays"
            );
            // The pod goes during the start of its second sandbox.
            cluster.delete(&format!("{PODS}/{name}")).unwrap();
            let deleting = || rules::is_deleting(&record(&cluster, &second)?).then_some(());
            wait_for("the collector to delete what the pod owned", LIMIT, deleting).unwrap();
            assert_eq!(existing_controller(&record(&cluster, &second).unwrap()), None, "there is no id yet");
            let error = runtime.block_on(records.bind(&second, "i-2")).unwrap_err().to_string();
            assert!(error.contains("deleted while its VM was made"), "{error}");
            runtime.block_on(records.release(&bound(&second, "i-2"))).unwrap();
            assert_eq!(record(&cluster, &second), None);
            wait_for("the record that waits for the pod", LIMIT, || {
                record(&cluster, &first).is_none().then_some(())
            })
            .unwrap();
        }
    }
    // A cluster that is away for a moment, in the middle of a start.
    let api = client(&cluster, &runtime, "later", &ours());
    let _context = runtime.enter();
    let records = Arc::new(Kubernetes::new(api, identity("daemon-1")));
    pod(&cluster, "late");
    cluster.kill(Part::ApiServer).unwrap();
    let claim = runtime.spawn({
        let (records, sandbox) = (records.clone(), sandbox("late-1", "late"));
        async move { records.claim(&sandbox).await }
    });
    cluster.start_again(Part::ApiServer).unwrap();
    // Where the machine is so slow that the start gave up, the next one succeeds.
    if runtime.block_on(claim).unwrap().is_err() {
        runtime.block_on(records.claim(&sandbox("late-1", "late"))).unwrap();
    }
    assert!(record(&cluster, &sandbox("late-1", "late")).is_some());
}

#[test]
fn the_existing_controller_finds_every_id_that_it_asks_for() {
    let runtime = Runtime::new().unwrap();
    let cluster = cluster(older());
    let api = client(&cluster, &runtime, "daemon", EXISTING);
    let _context = runtime.enter();
    let records = Kubernetes::new(api, identity("daemon-1"));
    pod(&cluster, "web");
    let s1 = sandbox("s1", "web");
    runtime.block_on(async {
        records.claim(&s1).await.unwrap();
        records.bind(&s1, "i-1").await.unwrap();
    });
    cluster.delete(&format!("{PODS}/web")).unwrap();
    let asked =
        wait_for("the existing controller's turn", LIMIT, || existing_controller(&record(&cluster, &s1)?));
    assert_eq!(asked.unwrap(), "i-1");
    // It deletes the VM, and then its finalizer: nothing of ours holds the object.
    let name = names::object_name("web", "s1");
    cluster.merge(&format!("{RECORDS}/{name}"), &json!({"metadata": {"finalizers": null}})).unwrap();
    assert_eq!(record(&cluster, &s1), None);
    runtime.block_on(records.release(&bound(&s1, "i-1"))).unwrap();
}

#[test]
fn the_node_offers_in_the_name_of_one_daemon_and_people_are_told() {
    let runtime = Runtime::new().unwrap();
    let cluster = cluster(current());
    let api = client(&cluster, &runtime, "daemon", &ours());
    let offered = || {
        let node = cluster.get("/api/v1/nodes/n1").unwrap().unwrap();
        let owner = node["metadata"]["annotations"][names::RESOURCE_OWNER].clone();
        (owner, node["status"]["capacity"][names::EXTENDED_RESOURCE].clone())
    };
    let resource = |owner: &str| Resource::new(api.clone(), identity(owner), 10);
    runtime.block_on(async {
        let (old, new) = (resource("old"), resource("new"));
        assert_eq!(old.offer(true).await.unwrap(), Offered::Ours);
        assert_eq!(offered(), (json!("old"), json!("10")));
        assert_eq!(new.offer(true).await.unwrap(), Offered::Ours);
        assert_eq!(old.offer(false).await.unwrap(), Offered::Taken);
        old.withdraw().await.unwrap();
        assert_eq!(offered(), (json!("new"), json!("10")));
        new.withdraw().await.unwrap();
        assert_eq!(offered().1, Value::Null);

        // As a pod is told: an address, a port, and files.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), cluster.token_of(NAMESPACE, "daemon").unwrap()).unwrap();
        std::fs::copy(cluster.ca_file(), folder.path().join("ca.crt")).unwrap();
        let url = cluster.url();
        let (host, port) = url.trim_start_matches("https://").split_once(':').unwrap();
        let (host, port) = (host.to_owned(), port.to_owned());
        let source = Source::Pod { host, port, credentials: folder.path().to_owned() };
        let side = Side::new(Arc::new(KubeApi::new(source.client().await.unwrap())), identity("new"));
        let uid = cluster.get("/api/v1/namespaces/kube-system").unwrap().unwrap()["metadata"]["uid"].clone();
        assert_eq!(json!(side.cluster_id(false).await.unwrap()), uid);

        let uid = pod(&cluster, "web");
        let records = Kubernetes::new(api.clone(), identity("new"));
        assert_eq!(records.pod_uid("default", "web").await.unwrap(), Some(uid.clone()));
        let asked = ["web", "away"].map(|name| PodRef::new(name, name, "default", Some(uid.clone())));
        assert_eq!(
            records.gone_pods(&asked).await.unwrap().unwrap().into_iter().collect::<Vec<_>>(),
            ["away"]
        );
        let mut told = sandbox("s1", "web");
        told.pod_uid = Some(uid.clone());
        records.tell(&told, Notice::start_failed("no capacity (InsufficientInstanceCapacity)"));
        let events = format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid%3D{uid}");
        let seen = tokio::task::block_in_place(|| {
            wait_for("the Event on the pod", LIMIT, || cluster.list(&events).unwrap().pop())
        });
        assert_eq!(seen.unwrap()["reason"], "PodVMStartFailed");
    });
}

/// Asks for everything that the daemon asks for, and returns what it may not.
async fn forbidden(api: &dyn Api, round: usize) -> Vec<&'static str> {
    let mut missing = Vec::new();
    // Refused for another reason is a right that is there.
    let mut ask = |what, answer: ApiResult<()>| {
        if matches!(answer, Err(ApiError::Forbidden(_))) {
            missing.push(what);
        }
    };
    let owner = PodOwner::new("default", "web", "uid-1");
    let token = format!("cluster:c1/s{round}/1").parse().unwrap();
    let early = writes::early(&Claim::new(format!("s{round}"), token, owner));
    let name = early.metadata.name.clone().unwrap();
    let named = |name: &str, namespace: &str| json!({"metadata": {"name": name, "namespace": namespace}});
    let mut event = named(&format!("e{round}"), "default");
    event["involvedObject"] = json!({"namespace": "default", "kind": "Pod", "name": "web"});
    let event: Event = serde_json::from_value(event).unwrap();
    let lease: Lease = serde_json::from_value(named(&format!("l{round}"), NAMESPACE)).unwrap();
    ask("get pods", api.pod("default", "web").await.map(drop));
    ask("list pods", api.pods_of_node("n1").await.map(drop));
    ask("get serviceaccounts", api.service_account("default", "default").await.map(drop));
    ask("get secrets", api.secret("default", "none").await.map(drop));
    ask("get namespaces", api.namespace_uid("kube-system").await.map(drop));
    ask("get nodes", api.node("n1").await.map(drop));
    ask("patch nodes/status", api.merge_node_status("n1", &json!({})).await);
    ask("create events", api.create_event(&event).await);
    ask("patch events", api.patch_event("default", &format!("e{round}"), &json!({"count": 2})).await);
    ask("create peerpods", api.create_record(&early).await);
    ask(
        "patch peerpods",
        api.patch_record("default", &name, &json!({"metadata": {"finalizers": null}})).await,
    );
    ask("delete peerpods", api.delete_record("default", &name, "").await);
    ask("leases", api.put_lease(&lease).await);
    missing
}

#[test]
fn the_daemon_has_every_right_that_it_uses_and_uses_every_right_that_it_has() {
    let runtime = Runtime::new().unwrap();
    let cluster = cluster(current());
    pod(&cluster, "web");
    let all = client(&cluster, &runtime, "all", &ours());
    // Roles reach the server's cache a moment after they were made.
    let none = || runtime.block_on(forbidden(&*all, 0)).is_empty().then_some(());
    wait_for("all rights", LIMIT, none).unwrap();
    for (number, taken) in ours().iter().enumerate() {
        let rest: Vec<Rule> = ours().into_iter().filter(|right| right != taken).collect();
        let api = client(&cluster, &runtime, &format!("without-{number}"), &rest);
        let misses = || {
            let missing = runtime.block_on(forbidden(&*api, number + 1));
            let only = !missing.is_empty() && missing.iter().all(|what| what.ends_with(taken.resource));
            only.then_some(missing)
        };
        let missing = wait_for(&format!("what needs {}", taken.resource), LIMIT, misses).unwrap();
        println!("without {}: {missing:?}", taken.resource);
    }
}
