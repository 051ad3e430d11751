//! Controllers over a real API server and a cloud in memory, with exactly the rights of the installation.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cloud_providers::scripted::{ScriptedProvider, World};
use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, InstanceId, MapEnv, OpContext, OwnedList,
    Ownership, Provider, Result, Scope, Token, Unit,
};
use peerpod_api::{Claim, PeerPod, PodOwner, install, names, writes};
use peerpod_ctrl::controller;
use peerpod_ctrl::election::{self, ElectionSettings};
use peerpod_ctrl::hooks::Hooks;
use peerpod_ctrl::kubernetes::{Connection, KubeCluster, KubeLease};
use peerpod_ctrl::metrics::Metrics;
use peerpod_ctrl::providers::Fixed;
use peerpod_ctrl::settings::Settings;
use peerpod_ctrl::work::Parts;
use serde_json::{Value, json};
use test_support::{ClusterOptions, RealCluster, wait_for};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const LIMIT: Duration = Duration::from_secs(120);
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const OBJECTS: &str = "/apis/confidentialcontainers.org/v1alpha1/namespaces/default/peerpods";
pub(crate) const NAMESPACE: &str = names::DEFAULT_NAMESPACE;
pub(crate) const PROVIDER: &str = "scripted";

/// The cloud, which sees whether anything is asked for twice at the same time, and fails some calls.
#[derive(Clone, Debug)]
pub(crate) struct Watched(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: ScriptedProvider,
    at_it: Mutex<BTreeSet<String>>,
    twice: AtomicUsize,
    calls: AtomicUsize,
    failed: AtomicUsize,
    random: AtomicU64,
    /// Calls of a hundred that fail, half of them after they were done.
    percent: u64,
}

impl Watched {
    pub(crate) fn new(world: &World, percent: u64, seed: u64) -> Self {
        Self(Arc::new(Inner {
            provider: ScriptedProvider::new(world),
            at_it: Mutex::default(),
            twice: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            random: AtomicU64::new(seed | 1),
            percent,
        }))
    }

    /// Deletions of what was being deleted already.
    pub(crate) fn twice(&self) -> usize {
        self.0.twice.load(Ordering::SeqCst)
    }

    /// Deletions, and those that failed.
    pub(crate) fn calls(&self) -> (usize, usize) {
        (self.0.calls.load(Ordering::SeqCst), self.0.failed.load(Ordering::SeqCst))
    }

    fn random(&self) -> u64 {
        let next = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            Some(x ^ (x << 17))
        };
        self.0.random.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or_default()
    }

    async fn once(&self, what: String, work: impl Future<Output = Result<()>>) -> Result<()> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if !self.0.at_it.lock().unwrap().insert(what.clone()) {
            self.0.twice.fetch_add(1, Ordering::SeqCst);
        }
        // A controller that is dropped is at nothing any more.
        let _done = scopeguard(|| {
            self.0.at_it.lock().unwrap().remove(&what);
        });
        let fate = self.random() % 200;
        let fails = |why: &str| {
            self.0.failed.fetch_add(1, Ordering::SeqCst);
            Err(Error::new(ErrorKind::Transient, why))
        };
        if fate < self.0.percent {
            return fails("the cloud did not take the call");
        }
        work.await?;
        if fate < 2 * self.0.percent {
            return fails("the answer was lost");
        }
        Ok(())
    }
}

struct Guard<F: FnMut()>(F);

impl<F: FnMut()> Drop for Guard<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn scopeguard<F: FnMut()>(end: F) -> Guard<F> {
    Guard(end)
}

#[async_trait]
impl Provider for Watched {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        self.0.provider.create_instance(ctx, request).await
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        self.once(id.to_string(), self.0.provider.delete_instance(ctx, id, ownership)).await
    }

    async fn teardown(&self) -> Result<()> {
        self.0.provider.teardown().await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        self.0.provider.list_owned(ctx, scope).await
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        self.once(token.to_string(), self.0.provider.release(ctx, token)).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.provider.capabilities()
    }
}

/// Starts an API server with an installation.
pub(crate) fn cluster(definition: Value) -> RealCluster {
    let cluster = ClusterOptions::default().with_definitions([definition]).with_audit().start().unwrap();
    cluster.create("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}})).unwrap();
    for file in
        install::files(NAMESPACE, names::CONTROLLER).into_iter().filter(|file| file.name != "crd.yaml")
    {
        cluster.apply_text(&file.text()).unwrap();
    }
    cluster
}

pub(crate) fn scope(cluster: &RealCluster) -> Scope {
    let namespace = cluster.get("/api/v1/namespaces/kube-system").unwrap().unwrap();
    Scope::Cluster(namespace["metadata"]["uid"].as_str().unwrap().into())
}

/// A controller that takes part in elections.
pub(crate) struct Controller {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Controller {
    pub(crate) async fn start(cluster: &RealCluster, identity: &str, cloud: &Watched) -> Self {
        let kubeconfig = cluster.kubeconfig_of(NAMESPACE, names::CONTROLLER).unwrap();
        let env = MapEnv::new([("PEERPODS_NAMESPACE", NAMESPACE)]);
        // As the program does at its start; the second time it is there already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let connection = Connection::find(Some(kubeconfig.display().to_string()), &env).await.unwrap();
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let provider: Arc<dyn Provider> = Arc::new(cloud.clone());
        let parts = Parts {
            cluster: Arc::new(KubeCluster::new(&connection)),
            providers: Arc::new(Fixed::new([(PROVIDER, provider)])),
            metrics: metrics.clone(),
            hooks: Hooks::default(),
        };
        let mut settings = Settings::new(scope(cluster));
        // No daemon runs here, and nothing is to be waited for.
        settings.daemon_grace = Duration::from_millis(100);
        let work = move |end| controller::run(parts.clone(), settings.clone(), end);
        let leases = Arc::new(KubeLease::new(&connection));
        let election = ElectionSettings::new(identity);
        let running = election::take_part(leases, election, metrics, Hooks::default(), stop.clone(), work);
        Self { stop, task: tokio::spawn(running) }
    }

    /// Ends as a crash does: nothing is given back.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends as it is asked to.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub(crate) fn pod(cluster: &RealCluster, name: &str) -> Value {
    let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "none"}]}});
    cluster.create(PODS, &pod).unwrap()
}

/// Returns what a daemon claims for a sandbox of a pod.
pub(crate) fn claim(scope: &Scope, pod: &Value, sandbox: &str, order: u64) -> Claim {
    let text = |key: &str| pod["metadata"][key].as_str().unwrap();
    let owner = PodOwner::new(text("namespace"), text("name"), text("uid"));
    let mut claim = Claim::new(sandbox, Token::new(scope.clone(), sandbox, 1), owner);
    (claim.provider, claim.order) = (PROVIDER.into(), Some(order));
    claim
}

/// Makes the instance of a sandbox.
pub(crate) async fn instance(cloud: &Watched, claim: &Claim) -> InstanceId {
    let unit = Unit { id: claim.sandbox.clone(), name_hint: claim.pod.name.clone() };
    let request = CreateRequest::new(claim.token.clone(), unit, "node-1");
    cloud.create_instance(&OpContext::new(), &request).await.unwrap().id
}

/// What a daemon does for a sandbox: the early object, the instance, the patch.
pub(crate) async fn sandbox(
    cluster: &RealCluster,
    cloud: &Watched,
    pod: &Value,
    sandbox: &str,
    order: u64,
) -> PeerPod {
    let claim = claim(&scope(cluster), pod, sandbox, order);
    let early: PeerPod =
        serde_json::from_value(cluster.create(OBJECTS, &json!(writes::early(&claim))).unwrap()).unwrap();
    let id = instance(cloud, &claim).await;
    let patch = writes::bind(&early, &id, &peerpod_api::Placement::default()).unwrap();
    serde_json::from_value(cluster.merge(&one(&early), &patch).unwrap()).unwrap()
}

pub(crate) fn one(object: &PeerPod) -> String {
    format!("{OBJECTS}/{}", object.metadata.name.as_deref().unwrap())
}

/// Waits until nothing is left in the cluster and in the cloud.
pub(crate) fn until_empty(cluster: &RealCluster, world: &World, limit: Duration) {
    wait_for("all records and instances to go", limit, || {
        let objects = cluster.list(OBJECTS).ok()?;
        (objects.is_empty() && world.resources().is_empty()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", cluster.list(OBJECTS), world.resources()));
}
