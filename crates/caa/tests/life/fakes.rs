//! A network and a gateway in memory, which record what they were asked and fail as told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use caa::{
    cluster::{ClusterRecord, NoCluster},
    config::{DaemonConfig, OPTIONS},
    hooks::Hooks,
    metrics::Metrics,
    network::Network,
    sandbox::{Parts, Sandboxes},
    store::{MemoryStore, SandboxStore},
};
use cloud_providers::{
    MapEnv, Provider, Scope, Settings,
    scripted::{ScriptedProvider, World},
};
use peerpod_gateway::{AgentProxies, GatewayError, GatewayErrorKind, ProxySpec, ProxyStatus, ReadyInfo};
use peerpod_net::{Family, NetError, NetErrorKind, PodNetwork, TeardownReport, worker::TunnelSpec};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Longest wait of a test for something that comes at once when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Remembers reserved ids; `foreign` ids belong to somebody else.
#[derive(Default)]
pub(crate) struct FakeNetwork {
    pub reserved: Mutex<BTreeSet<u32>>,
    pub connected: Mutex<BTreeMap<u32, TunnelSpec>>,
    pub foreign: Mutex<BTreeSet<u32>>,
    /// Inspections that began.
    pub inspected: Mutex<u32>,
    /// Inspections wait until this fires.
    pub gate: Mutex<Option<CancellationToken>>,
}

#[async_trait]
impl Network for FakeNetwork {
    async fn inspect(&self, netns: &Path) -> Result<PodNetwork, NetError> {
        *self.inspected.lock().unwrap() += 1;
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.cancelled().await;
        }
        if !netns.starts_with("/fake") {
            // The real function makes the real error.
            return peerpod_net::inspect(netns, &peerpod_net::InspectOptions::default()).await;
        }
        Ok(serde_json::from_value(serde_json::json!({
            "podip": "10.244.1.2/24", "pod-hw-addr": "02:00:00:00:00:02", "interface": "eth0",
            "worker-node-ip": "192.0.2.1/24", "worker-addresses": ["192.0.2.1"], "tunnel-type": "vxlan", "mtu": 1450,
            "routes": [{"dst": "", "gw": "10.244.1.1", "dev": "eth0", "protocol": "boot"}],
        }))
        .unwrap())
    }

    async fn reserve(&self, netns: &Path, id: u32, port: u16, _: Family) -> Result<(), NetError> {
        if self.foreign.lock().unwrap().contains(&id) {
            return Err(NetError::new(NetErrorKind::IdInUse, format!("id {id} is in use on port {port}")));
        }
        assert!(
            self.reserved.lock().unwrap().insert(id),
            "id {id} was given out twice, for {}",
            netns.display()
        );
        Ok(())
    }

    async fn connect(&self, _: &Path, spec: &TunnelSpec) -> Result<(), NetError> {
        self.connected.lock().unwrap().insert(spec.vni, spec.clone());
        Ok(())
    }

    async fn teardown(&self, _: &Path, id: u32, _: u16) -> TeardownReport {
        self.reserved.lock().unwrap().remove(&id);
        self.connected.lock().unwrap().remove(&id);
        TeardownReport::default()
    }
}

/// Answers for guests: ready at once, unless told otherwise for all.
#[derive(Default)]
pub(crate) struct FakeGateway {
    pub specs: Mutex<HashMap<String, ProxySpec>>,
    pub failure: Mutex<Option<GatewayError>>,
    pub silent: Mutex<bool>,
    pub panics: Mutex<bool>,
    /// Registering fails as with a gateway that is out of reach.
    pub refuses: Mutex<bool>,
    /// Unregistering takes as long as a gateway that is gone is waited for.
    pub hangs: Mutex<bool>,
    /// Sandboxes whose shim kept its connection and lost it.
    pub closed: Mutex<BTreeSet<String>>,
    /// Sandboxes whose guest is not reached.
    pub unreached: Mutex<BTreeSet<String>>,
    /// Every key that was ever told.
    pub keys: Mutex<Vec<String>>,
}

#[async_trait]
impl AgentProxies for FakeGateway {
    async fn register(&self, spec: ProxySpec) -> Result<(), GatewayError> {
        assert!(!*self.panics.lock().unwrap(), "the gateway panics as told");
        if *self.refuses.lock().unwrap() {
            return Err(GatewayError::new(GatewayErrorKind::Unavailable, "no gateway answers"));
        }
        let keys = spec.tls.iter().map(|tls| tls.key_pem.expose().to_owned());
        self.keys.lock().unwrap().extend(keys);
        self.specs.lock().unwrap().insert(spec.sandbox_id.clone(), spec);
        Ok(())
    }

    async fn wait_ready(&self, _: &str, cancel: CancellationToken) -> Result<ReadyInfo, GatewayError> {
        if *self.silent.lock().unwrap() {
            cancel.cancelled().await;
            return Err(GatewayError::new(GatewayErrorKind::Cancelled, "cancelled"));
        }
        match self.failure.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => Ok(serde_json::from_value(serde_json::json!({
                "connected_at": SystemTime::now(), "waited": Duration::ZERO, "attempts": 1, "target": "fake",
            }))
            .unwrap()),
        }
    }

    async fn unregister(&self, id: &str) -> Result<(), GatewayError> {
        if *self.hangs.lock().unwrap() {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        self.specs.lock().unwrap().remove(id);
        self.unreached.lock().unwrap().remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ProxyStatus>, GatewayError> {
        let status = |id: &String| {
            let status = serde_json::json!({
                "sandbox_id": id, "socket": "/fake", "fronts": 2,
                "registered_at": SystemTime::now(), "peer_level": null,
                "state": {"state": "connecting", "attempts": 1, "error": null, "reconnect": true},
            });
            serde_json::from_value(status).unwrap()
        };
        Ok(self.unreached.lock().unwrap().iter().map(status).collect())
    }

    async fn closed_shims(&self) -> Result<BTreeSet<String>, GatewayError> {
        Ok(self.closed.lock().unwrap().clone())
    }
}

/// A node whose network and guests are fakes and whose cloud is scripted.
pub(crate) struct Node {
    pub sandboxes: Sandboxes,
    pub world: World,
    pub network: Arc<FakeNetwork>,
    pub gateway: Arc<FakeGateway>,
    pub metrics: Arc<Metrics>,
    pub config: Arc<DaemonConfig>,
    pub store: Arc<dyn SandboxStore>,
    pub dir: TempDir,
    parts: Parts,
}

impl Node {
    pub(crate) fn new() -> Self {
        let world = World::new();
        Self::with_provider(world.clone(), Arc::new(ScriptedProvider::new(&world)), &[])
    }

    pub(crate) fn with_provider(world: World, provider: Arc<dyn Provider>, env: &[(&str, &str)]) -> Self {
        Self::in_cluster(world, provider, env, Arc::new(NoCluster))
    }

    pub(crate) fn with_store(store: Arc<dyn SandboxStore>) -> Self {
        let world = World::new();
        Self::made_of(world.clone(), Arc::new(ScriptedProvider::new(&world)), &[], Arc::new(NoCluster), store)
    }

    pub(crate) fn in_cluster(
        world: World,
        provider: Arc<dyn Provider>,
        env: &[(&str, &str)],
        cluster: Arc<dyn ClusterRecord>,
    ) -> Self {
        Self::made_of(world, provider, env, cluster, Arc::new(MemoryStore::default()))
    }

    /// A node whose provider is counted by what counts the node.
    pub(crate) fn counting(world: World, provider: Arc<dyn Provider>, metrics: Arc<Metrics>) -> Self {
        let mut node = Self::with_provider(world, provider, &[]);
        node.parts.metrics = metrics.clone();
        node.metrics = metrics;
        node.sandboxes = Sandboxes::new(node.parts.clone());
        node
    }

    pub(crate) fn made_of(
        world: World,
        provider: Arc<dyn Provider>,
        env: &[(&str, &str)],
        cluster: Arc<dyn ClusterRecord>,
        store: Arc<dyn SandboxStore>,
    ) -> Self {
        listen();
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        let env = MapEnv::new([("PODS_DIR", pods.to_str().unwrap())].iter().chain(env).copied());
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&env);
        let (config, problems) = DaemonConfig::check(&settings.parse().unwrap(), &env);
        assert!(problems.is_empty(), "{problems:?}");
        let (network, gateway) = (Arc::new(FakeNetwork::default()), Arc::new(FakeGateway::default()));
        let metrics = Metrics::new("scripted");
        let config = Arc::new(config);
        let parts = Parts {
            config: config.clone(),
            provider,
            gateway: gateway.clone(),
            store: store.clone(),
            cluster,
            network: network.clone(),
            metrics: metrics.clone(),
            scope: Scope::Cluster("test".into()),
            direct_volumes: dir.path().join("direct-volumes"),
            hooks: Hooks::default(),
        };
        let sandboxes = Sandboxes::new(parts.clone());
        Self { sandboxes, world, network, gateway, metrics, config, store, dir, parts }
    }

    /// Has another daemon, which belongs to `scope`, take the sandboxes on.
    pub(crate) async fn follow_in(&mut self, scope: Scope) {
        self.sandboxes = Sandboxes::new(Parts { scope, ..self.parts.clone() });
        self.sandboxes.restore().await.unwrap();
    }

    pub(crate) async fn create(&self, id: &str) -> Result<std::path::PathBuf, peerpod_proto::Status> {
        self.create_with(id, &test_support::ShimPlayer::annotations("web"), "/fake/netns").await
    }

    pub(crate) async fn create_with(
        &self,
        id: &str,
        annotations: &HashMap<String, String>,
        netns: &str,
    ) -> Result<std::path::PathBuf, peerpod_proto::Status> {
        self.sandboxes.create_vm(id, annotations, netns, &CancellationToken::new()).await
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), peerpod_proto::Status> {
        self.sandboxes.start_vm(id, &CancellationToken::new()).await
    }

    /// What is left of all sandboxes, in words; empty when nothing is.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.world.resources().iter().map(|r| format!("cloud: {}", r.resource)).collect();
        left.extend(self.network.reserved.lock().unwrap().iter().map(|id| format!("tunnel {id}")));
        left.extend(self.gateway.specs.lock().unwrap().keys().map(|id| format!("agent socket of {id}")));
        left.extend(self.sandboxes.list().iter().map(|s| format!("sandbox {} is {:?}", s.id, s.phase)));
        if let Ok(entries) = std::fs::read_dir(self.dir.path().join("pods")) {
            left.extend(entries.flatten().map(|e| format!("folder {}", e.path().display())));
        }
        left
    }

    pub(crate) async fn wait_empty(&self) {
        let empty = test_support::wait_for_async("nothing to be left", SOON, || async {
            self.leftovers().is_empty().then_some(())
        });
        if let Err(error) = empty.await {
            panic!("{error:#}: {:?}", self.leftovers());
        }
    }
}

/// Lets somebody listen to every place in the code that says something.
///
/// Whether anybody does is found out when a place is first passed. A test that begins its own log at that very moment, on
/// another thread, would be overlooked from then on; so there is a listener before anything is said.
pub(crate) fn listen() {
    static LISTENER: std::sync::Once = std::sync::Once::new();
    LISTENER.call_once(|| {
        tracing::subscriber::set_global_default(tracing_subscriber::registry()).expect("it is the only one");
    });
}
