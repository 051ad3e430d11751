//! Secrets go in by every way there is, and come out by none.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use caa::{
    annotations::keys,
    cluster::{ClusterRecord, NoCluster, SandboxRef},
    diagnose,
    identity::{CustomTls, Identity},
    journal::Journal,
    service::NodeService,
    store::{MemoryStore, SandboxStore},
    trace::Traces,
};
use cloud_providers::scripted::{Fault, ScriptedProvider, World};
use peerpod_gateway::{GatewayError, GatewayErrorKind};
use peerpod_proto::Server;
use test_support::{Canaries, ShimPlayer};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{Layer as _, filter::LevelFilter, fmt, layer::SubscriberExt as _};

use crate::{
    fakes::{Node, SOON},
    levels::Log,
};

/// A cluster with a pull secret.
struct Secrets(String);

#[async_trait]
impl ClusterRecord for Secrets {
    async fn pod_uid(&self, namespace: &str, name: &str) -> anyhow::Result<Option<String>> {
        NoCluster.pod_uid(namespace, name).await
    }

    async fn pull_secrets(&self, _: &str, _: &str) -> anyhow::Result<Option<String>> {
        Ok(Some(self.0.clone()))
    }

    async fn claim(&self, sandbox: &SandboxRef) -> anyhow::Result<()> {
        NoCluster.claim(sandbox).await
    }

    async fn bind(&self, sandbox: &SandboxRef, instance_id: &str) -> anyhow::Result<()> {
        NoCluster.bind(sandbox, instance_id).await
    }

    async fn release(&self, sandbox: &SandboxRef) -> anyhow::Result<()> {
        NoCluster.release(sandbox).await
    }
}

fn init_data(canary: &str) -> String {
    format!(
        "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = \"\"\"\n[token_configs]\nsecret = '{canary}'\n\"\"\"\n"
    )
}

/// Everything that people, and whoever follows a trace, may see of a node.
async fn seen(node: &Node) -> Vec<(&'static str, Vec<u8>)> {
    let records = node.store.list().await.unwrap();
    vec![
        ("caactl list --json", json(&node.sandboxes.list())),
        ("caactl journal", json(&node.sandboxes.journal().await.unwrap())),
        ("the diagnosis", json(&node.sandboxes.diagnosis("").await)),
        ("the metrics", node.metrics.text().into_bytes()),
        ("the debug form of the records", format!("{records:?} {records:#?}").into_bytes()),
        ("the debug form of the options", format!("{:?}", node.config).into_bytes()),
        ("the debug form of what the gateway is told", format!("{:?}", node.gateway.specs).into_bytes()),
    ]
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Adds the keys that were made meanwhile.
async fn add_keys(canaries: &mut Canaries, node: &Node) {
    for record in node.store.list().await.unwrap() {
        let identity = record.identity.unwrap();
        canaries.add_pem("the node's key", &identity.client_key);
        if let Some(key) = &identity.server_key {
            canaries.add_pem("the guest's key", key);
        }
    }
}

#[tokio::test]
async fn no_secret_of_a_life_is_in_anything_that_people_see() {
    let mut canaries = Canaries::new();
    let auth = canaries.plant("an image pull secret");
    let auth = format!("{{\"auths\":{{\"registry\":{{\"auth\":\"{auth}\"}}}}}}");
    let of_pod = init_data(&canaries.plant("init-data of the pod"));
    let of_node = init_data(&canaries.plant("init-data of the node"));

    let log = Log::default();
    let (text, json) = (log.clone(), log.clone());
    let lines = fmt::layer().with_ansi(false).with_writer(move || text.clone());
    let lines_of_json = fmt::layer().json().flatten_event(true).with_writer(move || json.clone());
    let world = World::new();
    let node = Node::made_of(
        world.clone(),
        Arc::new(ScriptedProvider::new(&world)),
        &[("INITDATA", of_node.as_str())],
        Arc::new(Secrets(auth)),
        Arc::new(MemoryStore::default()),
    );
    let subscriber = tracing_subscriber::registry()
        .with(Traces::default().with_filter(LevelFilter::INFO))
        .with(node.config.recent.layer())
        .with(lines)
        .with(lines_of_json);
    let _guard = tracing::subscriber::set_default(subscriber);

    let mut pod = ShimPlayer::annotations("web");
    node.create_with("s1", &pod, "/fake/netns").await.unwrap();
    pod.insert(keys::INIT_DATA.into(), of_pod.clone());
    node.create_with("s2", &pod, "/fake/netns").await.unwrap();
    add_keys(&mut canaries, &node).await;
    // That of the one that will fail.
    let user_data = node.store.list().await.unwrap()[1].request.user_data.as_bytes().to_vec();
    assert!(canaries.found_in(&user_data).len() >= 3, "the secrets did go in");
    let mut all = seen(&node).await;

    node.start("s1").await.unwrap();
    all.extend(seen(&node).await);
    // One that fails, whose guest prints all that it was given.
    world.set_console([b"the guest begins\n".as_slice(), &user_data, b"\nand fails\n"].concat());
    *node.gateway.failure.lock().unwrap() = Some(GatewayError::new(GatewayErrorKind::Tls, "refused"));
    let error = node.start("s2").await.unwrap_err();
    all.push(("the status of a failed start", error.message.into_bytes()));
    all.extend(seen(&node).await);
    let past = node.config.recent.of("s2").unwrap();
    assert!(past.console.unwrap().text().contains("and fails"), "the console is kept");

    // What cannot be read is not quoted.
    let broken = of_pod.replace("algorithm", "algorithm = = ");
    pod.insert(keys::INIT_DATA.into(), broken);
    let error = node.create_with("s3", &pod, "/fake/netns").await.unwrap_err();
    all.push(("the status of init-data that does not parse", error.message.into_bytes()));
    world.script(Fault::on("terminate_instance").lost_reply());
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    all.extend(seen(&node).await);

    all.push(("the log", log.bytes()));
    for (what, bytes) in all {
        assert!(!bytes.is_empty(), "{what} is empty");
        canaries.assert_not_in(what, bytes);
    }
}

#[tokio::test]
async fn a_key_of_the_operator_is_nowhere_either() {
    let dir = tempfile::tempdir().unwrap();
    let made = Identity::generate("podvm-x-y", &CustomTls::default()).unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (write("cert", &made.client_cert), write("key", &made.client_key));
    let mut canaries = Canaries::new();
    canaries.add_pem("the operator's key", &made.client_key);
    let (log, _guard) = Log::begin();
    let world = World::new();
    let env = [("CERT_FILE", cert.as_str()), ("CERT_KEY", key.as_str())];
    let node = Node::with_provider(world.clone(), Arc::new(ScriptedProvider::new(&world)), &env);
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    for (what, bytes) in seen(&node).await {
        canaries.assert_not_in(what, bytes);
    }
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    canaries.assert_not_in("the log", log.bytes());
}

/// The files of a bundle by name.
fn files(path: &Path) -> std::collections::BTreeMap<String, String> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()));
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().strip_prefix("peerpod-diagnose").unwrap().display().to_string();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

fn request(dir: &Path, sandbox: Option<&str>, name: &str) -> diagnose::Request {
    diagnose::Request {
        sandbox: sandbox.map(str::to_owned),
        socket: dir.join("daemon.sock"),
        gateway: dir.join("gateway.sock"),
        state_dirs: vec![dir.join("nowhere"), dir.join("state")],
        output: Some(dir.join(name)),
    }
}

#[tokio::test]
async fn a_bundle_tells_why_a_start_failed_after_everything_was_taken_back() {
    let mut canaries = Canaries::new();
    let auth = canaries.plant("an image pull secret");
    let world = World::new();
    world.set_console("kernel panic: no root\n");
    let node = Node::in_cluster(
        world.clone(),
        Arc::new(ScriptedProvider::new(&world)),
        &[],
        Arc::new(Secrets(format!("{{\"auths\":\"{auth}\"}}"))),
    );
    let subscriber = tracing_subscriber::registry().with(node.config.recent.layer());
    let _guard = tracing::subscriber::set_default(subscriber);
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join("daemon.sock")).unwrap();
    let server = Server::new(Arc::new(NodeService::new(node.sandboxes.clone())));
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { server.serve_unix(listener, stop).await }
    });

    node.create("alive-1").await.unwrap();
    node.start("alive-1").await.unwrap();
    *node.gateway.failure.lock().unwrap() =
        Some(GatewayError::new(GatewayErrorKind::Timeout, "nobody answers"));
    node.create("failed-1").await.unwrap();
    let error = node.start("failed-1").await.unwrap_err();
    assert!(error.message.ends_with("the end of the guest's console is in the log of the node"), "{error:?}");
    assert!(!error.message.contains("panic"), "no more than a hint: {error:?}");
    add_keys(&mut canaries, &node).await;
    let gone = test_support::wait_for_async("the failed one to be gone", SOON, || async {
        (node.sandboxes.list().len() == 1).then_some(())
    });
    gone.await.unwrap();

    let (path, summary) = diagnose::run(request(dir.path(), None, "all.tar.gz")).await.unwrap();
    canaries.assert_not_in("the bundle", std::fs::read(&path).unwrap());
    let all = files(&path);
    for (name, part) in [
        ("README.txt", "Missing, and why"),
        ("daemon.json", "\"-proxy-timeout\": \"5m0s\""),
        ("daemon.json", "\"version\""),
        (
            "metrics.txt",
            "peerpod_start_failures_total{provider=\"scripted\",phase=\"connect\",kind=\"deadline_exceeded\"} 1",
        ),
        ("sandboxes/failed-1/log.txt", "nobody answers"),
        ("sandboxes/failed-1/log.txt", "phase=\"create\""),
        ("sandboxes/failed-1/console.txt", "kernel panic: no root"),
        ("sandboxes/alive-1/record.json", "\"tls_server_name\""),
        ("sandboxes/alive-1/state.json", "\"ready\""),
        ("node/network.txt", "== /proc/net/dev"),
        ("node/machine.txt", "== /proc/sys/kernel/osrelease"),
        ("versions.txt", "caactl"),
    ] {
        let text = all.get(name).unwrap_or_else(|| panic!("{name} is missing in {:?}", all.keys()));
        assert!(text.contains(part), "{part} is missing in {name}: {text}");
    }
    for part in ["alive-1: the network namespace cannot be entered", "failed-1: its record and network"] {
        assert!(summary.contains(part), "{part} is missing in {summary}");
    }

    let one = diagnose::run(request(dir.path(), Some("fail"), "one.tar.gz")).await.unwrap().0;
    assert!(files(&one).keys().all(|name| !name.contains("alive")));
    let unknown = diagnose::run(request(dir.path(), Some("x"), "none.tar.gz")).await.unwrap_err();
    assert!(unknown.to_string().contains("nobody knows a sandbox"), "{unknown:#}");
    assert!(!dir.path().join("none.tar.gz").exists());
    stop.cancel();
    serving.await.unwrap();
    node.sandboxes.stop_vm("alive-1").await;
    node.wait_empty().await;
}

#[tokio::test]
async fn without_a_daemon_a_bundle_has_what_is_on_the_disk_and_says_what_is_missing() {
    let mut canaries = Canaries::new();
    let node = Node::new();
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("state")).await.unwrap();
    for record in node.store.list().await.unwrap() {
        journal.put(&record).await.unwrap();
    }
    drop(journal);
    add_keys(&mut canaries, &node).await;
    let on_disk = std::fs::read(dir.path().join("state").join(caa::journal::FILE)).unwrap();
    assert!(!canaries.found_in(&on_disk).is_empty(), "the journal has the keys");
    let (path, summary) = diagnose::run(request(dir.path(), Some("s1"), "dead.tar.gz")).await.unwrap();
    canaries.assert_not_in("the bundle", std::fs::read(&path).unwrap());
    assert!(files(&path)["sandboxes/s1/record.json"].contains("\"phase\": \"ready\""));
    for part in ["no daemon answers at", "journalctl", "nowhere", "s1: its recent log"] {
        assert!(summary.contains(part), "{part} is missing in {summary}");
    }
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}
