//! The parts of a simulated daemon: a network, a gateway and a cluster in memory, and a provider over the scripted cloud.
//!
//! What outlives a daemon (tunnels, a gateway of its own process, the cloud) is in [`Outside`]; each daemon has its own
//! view of it, which ends with its life.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use caa::{
    cluster::{ClusterRecord, PodRef, SandboxRef},
    network::Network,
    store::{SandboxRecord, SandboxStore},
};
use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, OwnedList, Ownership,
    Provider, Scope, Token,
    scripted::{Gate, ScriptedProvider},
};
use peerpod_gateway::{AgentProxies, GatewayError, GatewayErrorKind, ProxySpec, ProxyStatus, ReadyInfo};
use peerpod_net::{Family, NetError, NetErrorKind, PodNetwork, TeardownReport, worker::TunnelSpec};
use tokio_util::sync::CancellationToken;

use crate::sim::{Fault, Life, ORPHAN_GRACE, Point, Sim};

const SECOND: Duration = Duration::from_secs(1);
/// Faults of what can fail, hang and be slow.
const REMOTE_FAULTS: [Fault; 4] =
    [Fault::Error, Fault::Hang, Fault::Crash, Fault::Delay(SECOND.saturating_mul(5))];
/// Faults of what is on this node, whose calls the daemon bounds.
const LOCAL_FAULTS: [Fault; 3] = [Fault::Error, Fault::Crash, Fault::Delay(SECOND)];

/// The node and its gateway, as they are.
#[derive(Default)]
pub(crate) struct Outside {
    /// Devices by network namespace, and what they are joined to.
    devices: BTreeMap<PathBuf, (u32, bool)>,
    /// Ids that have rules.
    rules: BTreeSet<u32>,
    /// Ids that somebody else uses.
    pub others: BTreeSet<u32>,
    proxies: BTreeMap<String, ProxySpec>,
    claims: BTreeSet<String>,
}

impl Outside {
    /// What is left of all sandboxes, in words.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let devices =
            self.devices.iter().map(|(netns, (id, _))| format!("tunnel {id} in {}", netns.display()));
        let rules = self.rules.iter().map(|id| format!("rules of tunnel {id}"));
        let proxies = self.proxies.keys().map(|id| format!("agent socket of {id}"));
        let claims = self.claims.iter().map(|id| format!("cluster record of {id}"));
        devices.chain(rules).chain(proxies).chain(claims).collect()
    }

    /// The gateway inside a daemon ends with it.
    pub(crate) fn forget_proxies(&mut self) {
        self.proxies.clear();
    }

    /// A namespace that goes takes its devices along.
    pub(crate) fn remove_netns(&mut self, netns: &Path) {
        self.devices.remove(netns);
    }

    /// Whether the tunnel of a namespace is whole.
    fn is_joined(&self, netns: &Path) -> bool {
        self.devices.get(netns).is_some_and(|(id, joined)| *joined && self.rules.contains(id))
    }
}

/// One daemon's view.
#[derive(Clone)]
pub(crate) struct View {
    pub sim: Sim,
    pub life: Life,
    pub outside: Arc<Mutex<Outside>>,
}

impl View {
    fn outside(&self) -> MutexGuard<'_, Outside> {
        self.outside.lock().unwrap()
    }

    async fn pass(&self, point: Point, subject: &str, kinds: &[Fault]) -> Result<(), ()> {
        self.sim.pass(&self.life, point, subject, kinds).await
    }

    /// Runs `effect` between the two points of an operation on this node.
    async fn around<T, E>(
        &self,
        part: &'static str,
        operation: &'static str,
        subject: &str,
        fail: impl Fn() -> E,
        effect: impl FnOnce(&mut Outside) -> Result<T, E>,
    ) -> Result<T, E> {
        self.pass(Point(part, operation, "before"), subject, &LOCAL_FAULTS).await.map_err(|()| fail())?;
        // Things take time, and others go on meanwhile.
        tokio::time::sleep(self.sim.millis(0..150)).await;
        if self.life.is_over() {
            return std::future::pending().await;
        }
        let result = effect(&mut self.outside());
        self.pass(Point(part, operation, "after"), subject, &LOCAL_FAULTS).await.map_err(|()| fail())?;
        result
    }
}

fn net_error() -> NetError {
    NetError::new(NetErrorKind::Kernel, "scripted failure of the kernel")
}

fn gateway_error() -> GatewayError {
    GatewayError::new(GatewayErrorKind::Unavailable, "scripted failure of the gateway")
}

fn text(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[async_trait]
impl Network for View {
    async fn inspect(&self, netns: &Path) -> Result<PodNetwork, NetError> {
        self.around("network", "inspect", &text(netns), net_error, |_| {
            Ok(serde_json::from_value(serde_json::json!({
                "podip": "10.244.1.2/24", "pod-hw-addr": "02:00:00:00:00:02", "interface": "eth0",
                "worker-node-ip": "192.0.2.1/24", "tunnel-type": "vxlan", "mtu": 1450,
                "routes": [{"dst": "", "gw": "10.244.1.1", "dev": "eth0", "protocol": "boot"}],
            }))
            .unwrap())
        })
        .await
    }

    async fn reserve(&self, netns: &Path, id: u32, port: u16, _: Family) -> Result<(), NetError> {
        self.around("network", "reserve", &text(netns), net_error, |outside| {
            // The kernel's own order: an earlier device of this namespace makes room first.
            outside.devices.remove(netns);
            if outside.others.contains(&id) || outside.devices.values().any(|(used, _)| *used == id) {
                return Err(NetError::new(
                    NetErrorKind::IdInUse,
                    format!("id {id} is in use on port {port}"),
                ));
            }
            outside.devices.insert(netns.to_owned(), (id, false));
            Ok(())
        })
        .await
    }

    async fn connect(&self, netns: &Path, spec: &TunnelSpec) -> Result<(), NetError> {
        if !netns.exists() {
            return Err(NetError::new(NetErrorKind::NetnsMissing, "there is no such namespace"));
        }
        self.around("network", "connect", &text(netns), net_error, |outside| {
            let taken = outside.devices.iter().any(|(other, (id, _))| other != netns && *id == spec.vni);
            if taken {
                return Err(NetError::new(NetErrorKind::IdInUse, format!("id {} is in use", spec.vni)));
            }
            outside.devices.insert(netns.to_owned(), (spec.vni, true));
            outside.rules.insert(spec.vni);
            Ok(())
        })
        .await
    }

    async fn teardown(&self, netns: &Path, id: u32, _: u16) -> TeardownReport {
        let sim = &self.sim;
        let removed = self
            .around("network", "teardown", &text(netns), net_error, |outside| {
                // Rules go by id, whatever namespace the device is in.
                outside.rules.remove(&id);
                if outside.devices.get(netns).is_some_and(|(used, _)| *used == id) {
                    outside.devices.remove(netns);
                }
                let living: Vec<String> =
                    sim.state().pods.iter().filter(|(_, pod)| pod.living).map(|(id, _)| id.clone()).collect();
                Ok(living.into_iter().find(|pod| {
                    let of_pod = netns.with_file_name(pod);
                    outside.devices.contains_key(&of_pod) && !outside.is_joined(&of_pod)
                }))
            })
            .await;
        match removed {
            Ok(broken) => {
                if let Some(pod) = broken {
                    sim.violation(format_args!("the end of {} broke the tunnel of {pod}", text(netns)));
                }
                TeardownReport::default()
            }
            Err(error) => error.into(),
        }
    }
}

#[async_trait]
impl AgentProxies for View {
    async fn register(&self, spec: ProxySpec) -> Result<(), GatewayError> {
        let id = spec.sandbox_id.clone();
        self.around("gateway", "register", &id, gateway_error, |outside| {
            match outside.proxies.get(&spec.sandbox_id) {
                Some(there) if *there != spec => {
                    Err(GatewayError::new(GatewayErrorKind::Conflict, "it is registered otherwise"))
                }
                _ => {
                    outside.proxies.insert(spec.sandbox_id.clone(), spec);
                    Ok(())
                }
            }
        })
        .await
    }

    async fn wait_ready(&self, id: &str, cancel: CancellationToken) -> Result<ReadyInfo, GatewayError> {
        let fail = |()| gateway_error();
        self.pass(Point("gateway", "wait_ready", "before"), id, &LOCAL_FAULTS).await.map_err(fail)?;
        let mute = self.sim.state().pods.get(id).is_some_and(|pod| pod.mute);
        let needs = if mute { SECOND * 300 } else { self.sim.millis(50..4000) };
        let Some(()) = cancel.run_until_cancelled(tokio::time::sleep(needs)).await else {
            return Err(GatewayError::new(GatewayErrorKind::Cancelled, "cancelled"));
        };
        if mute || self.sim.instances(id).is_empty() {
            return Err(GatewayError::new(GatewayErrorKind::Timeout, "the guest does not answer"));
        }
        self.pass(Point("gateway", "wait_ready", "after"), id, &LOCAL_FAULTS).await.map_err(fail)?;
        let ready = serde_json::json!({
            "connected_at": SystemTime::UNIX_EPOCH, "waited": Duration::ZERO, "attempts": 1, "target": "guest",
        });
        Ok(serde_json::from_value(ready).unwrap())
    }

    async fn unregister(&self, id: &str) -> Result<(), GatewayError> {
        self.around("gateway", "unregister", id, gateway_error, |outside| {
            outside.proxies.remove(id);
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<ProxyStatus>, GatewayError> {
        let sim = self.sim.clone();
        self.around("gateway", "list", "", gateway_error, |outside| {
            let state = sim.state();
            let status = |id: &String| {
                let pod = state.pods.get(id);
                let link = match pod.is_some_and(|p| !p.unreachable) {
                    true => serde_json::json!({"state": "connected", "target": "guest", "connections": 1}),
                    false => {
                        serde_json::json!({"state": "connecting", "attempts": 1, "error": null, "reconnect": true})
                    }
                };
                serde_json::from_value(serde_json::json!({
                    "sandbox_id": id, "socket": "agent.ttrpc", "state": link,
                    "registered_at": SystemTime::UNIX_EPOCH,
                    "fronts": usize::from(pod.is_some_and(|p| p.agent_open)), "peer_level": null,
                }))
                .unwrap()
            };
            Ok(outside.proxies.keys().map(status).collect())
        })
        .await
    }

    async fn closed_shims(&self) -> Result<BTreeSet<String>, GatewayError> {
        let sim = self.sim.clone();
        self.around("gateway", "closed_shims", "", gateway_error, |_| {
            let state = sim.state();
            Ok(state.pods.iter().filter(|(_, p)| p.hypervisor_closed).map(|(id, _)| id.clone()).collect())
        })
        .await
    }
}

#[async_trait]
impl ClusterRecord for View {
    async fn pod_uid(&self, _: &str, _: &str) -> anyhow::Result<Option<String>> {
        Ok(None)
    }

    async fn pull_secrets(&self, _: &str, _: &str) -> anyhow::Result<Option<String>> {
        Ok(None)
    }

    async fn gone_pods(&self, pods: &[PodRef]) -> anyhow::Result<Option<BTreeSet<String>>> {
        let sim = self.sim.clone();
        let fail = || anyhow::anyhow!("scripted failure of the cluster");
        self.around("cluster", "gone_pods", "", fail, |_| {
            let state = sim.state();
            let asked = pods.iter().map(|pod| &pod.sandbox_id);
            let gone = asked.filter(|id| state.pods.get(*id).is_some_and(|pod| pod.gone));
            Ok(Some(gone.cloned().collect()))
        })
        .await
    }

    async fn claim(&self, sandbox: &SandboxRef) -> anyhow::Result<()> {
        let fail = || anyhow::anyhow!("scripted failure of the cluster");
        self.around("cluster", "claim", &sandbox.sandbox_id, fail, |outside| {
            outside.claims.insert(sandbox.sandbox_id.clone());
            Ok(())
        })
        .await
    }

    async fn bind(&self, sandbox: &SandboxRef, _: &str) -> anyhow::Result<()> {
        let fail = || anyhow::anyhow!("scripted failure of the cluster");
        self.around("cluster", "bind", &sandbox.sandbox_id, fail, |_| Ok(())).await
    }

    async fn release(&self, sandbox: &SandboxRef) -> anyhow::Result<()> {
        let fail = || anyhow::anyhow!("scripted failure of the cluster");
        self.around("cluster", "release", &sandbox.sandbox_id, fail, |outside| {
            outside.claims.remove(&sandbox.sandbox_id);
            Ok(())
        })
        .await
    }
}

/// The real journal, until the daemon dies.
pub(crate) struct Store<S>(pub S, pub View);

impl<S> Store<S> {
    async fn living(&self) {
        if self.1.life.is_over() {
            std::future::pending::<()>().await;
        }
    }

    /// What would be taken down by the id of one sandbox must not belong to another.
    fn check_tunnel(&self, record: &SandboxRecord) {
        let outside = self.1.outside();
        let own = Path::new(&record.netns);
        let other = outside.devices.iter().find(|(netns, (id, _))| *id == record.tunnel_id && *netns != own);
        if let Some((netns, _)) = other {
            let (id, netns) = (record.tunnel_id, text(netns));
            self.1.sim.violation(format_args!("tunnel id {id} of {netns} is kept for {}, too", record.id));
        }
    }
}

#[async_trait]
impl<S: SandboxStore> SandboxStore for Store<S> {
    async fn room(&self) -> anyhow::Result<()> {
        self.living().await;
        self.0.room().await
    }

    async fn put(&self, record: &SandboxRecord) -> anyhow::Result<()> {
        self.living().await;
        self.check_tunnel(record);
        let result = self.0.put(record).await;
        self.living().await;
        self.1.sim.log(format_args!("journal: {} {:?} {}", record.id, record.phase, outcome(&result)));
        result
    }

    async fn remove(&self, id: &str) -> anyhow::Result<()> {
        self.living().await;
        let result = self.0.remove(id).await;
        self.living().await;
        self.1.sim.log(format_args!("journal: {id} forgotten {}", outcome(&result)));
        result
    }

    async fn list(&self) -> anyhow::Result<Vec<SandboxRecord>> {
        self.living().await;
        self.0.list().await
    }
}

fn outcome(result: &anyhow::Result<()>) -> &'static str {
    if result.is_ok() { "kept" } else { "failed" }
}

/// Stands between a daemon and the cloud.
pub(crate) struct CloudGate(pub View);

fn scripted() -> Error {
    Error::new(ErrorKind::Transient, "scripted failure of the cloud")
}

#[async_trait]
impl Gate for CloudGate {
    async fn before(&self, operation: &'static str, target: &str) -> cloud_providers::Result<()> {
        let point = Point("provider", operation, "before");
        self.0.pass(point, target, &REMOTE_FAULTS).await.map_err(|()| scripted())
    }

    async fn after(&self, operation: &'static str, target: &str) -> cloud_providers::Result<()> {
        let view = &self.0;
        if operation == "terminate_instance" {
            view.check_deletion(target);
        }
        if operation == "run_instance" {
            let pods: Vec<String> = view.sim.state().pods.keys().cloned().collect();
            for id in pods {
                let instances = view.sim.instances(&id);
                if instances.len() > 1 {
                    view.sim
                        .violation(format_args!("sandbox {id} has several VMs: {}", instances.join(", ")));
                }
            }
        }
        let point = Point("provider", operation, "after");
        view.pass(point, target, &REMOTE_FAULTS).await.map_err(|()| scripted())
    }
}

impl View {
    /// An instance was told to go: somebody must have wanted that.
    fn check_deletion(&self, instance: &str) {
        let sim = &self.sim;
        let owner = sim.owner(instance).unwrap_or_default();
        let state = sim.state();
        let living = state.pods.get(&owner).is_some_and(|pod| pod.living);
        let foreign = state.foreign.contains(instance);
        let young = state.orphans.get(instance).is_some_and(|came| came.elapsed() < ORPHAN_GRACE);
        let reported = state.orphans.contains_key(instance) && !sim.profile.delete_orphans;
        drop(state);
        if living {
            sim.violation(format_args!("the VM {instance} of the living pod {owner} is deleted"));
        }
        if foreign {
            sim.violation(format_args!("{instance}, which belongs to somebody else, is deleted"));
        }
        if young || reported {
            sim.violation(format_args!("the orphan {instance} is deleted too early or against the policy"));
        }
    }
}

/// The scripted provider with faults around its operations, and with operations that ignore their end.
pub(crate) struct SimProvider(pub ScriptedProvider, pub View);

impl std::fmt::Debug for SimProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimProvider")
    }
}

impl SimProvider {
    /// A hang here is not answered even when the operation is cancelled.
    async fn pass(
        &self,
        operation: &'static str,
        moment: &'static str,
        subject: &str,
    ) -> cloud_providers::Result<()> {
        let kinds: &[Fault] = match (operation, moment) {
            ("create" | "delete" | "release", _) => &REMOTE_FAULTS,
            _ => &LOCAL_FAULTS,
        };
        let point = Point("provider", operation, moment);
        self.1.pass(point, subject, kinds).await.map_err(|()| scripted())
    }
}

#[async_trait]
impl Provider for SimProvider {
    async fn create_instance(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
    ) -> cloud_providers::Result<Instance> {
        self.pass("create", "before", &request.unit.id).await?;
        let instance = self.0.create_instance(ctx, request).await?;
        match self.pass("create", "after", &request.unit.id).await {
            Ok(()) => Ok(instance),
            // A create that fails leaves nothing.
            Err(error) => {
                let scope = Ownership::Tagged(request.token.scope.clone());
                let undo = ctx.for_undo(SECOND * 300);
                let _ = self.0.delete_instance(&undo, &instance.id, &scope).await;
                Err(error)
            }
        }
    }

    async fn delete_instance(
        &self,
        ctx: &OpContext,
        id: &InstanceId,
        ownership: &Ownership,
    ) -> cloud_providers::Result<()> {
        self.pass("delete", "before", id.as_str()).await?;
        self.0.delete_instance(ctx, id, ownership).await?;
        self.pass("delete", "after", id.as_str()).await
    }

    async fn teardown(&self) -> cloud_providers::Result<()> {
        self.0.teardown().await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> cloud_providers::Result<OwnedList> {
        self.pass("list", "before", "").await?;
        let mut list = self.0.list_owned(ctx, scope).await?;
        // Some clouds lose a page and say so.
        if self.1.sim.state().faults_on && self.1.sim.chance(25) {
            let keep = list.entries.len() / 2;
            list.entries.truncate(keep);
            list.complete = false;
        }
        self.pass("list", "after", "").await?;
        Ok(list)
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> cloud_providers::Result<()> {
        self.pass("release", "before", &token.unit).await?;
        self.0.release(ctx, token).await?;
        self.pass("release", "after", &token.unit).await
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.release = self.1.sim.profile.release;
        capabilities
    }
}
