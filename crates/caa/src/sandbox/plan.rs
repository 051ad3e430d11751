//! CreateVM: everything that can be decided and checked before a machine is asked for.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Instant,
};

use cloud_providers::{
    Confidential, CreateRequest, NetworkRequest, Token, Unit, VolumeRequest, names::instance_name,
    secrecy::ExposeSecret,
};
use peerpod_gateway::VolumeEntry;
use peerpod_net::{NetErrorKind, PodNetwork};
use peerpod_proto::{Code, Status};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Phase, Sandbox, Sandboxes, Shared, State, code_label,
    life::{NODE_LIMIT, bounded},
};
use crate::{
    annotations::{PodRequest, check_sandbox_id, keys},
    files,
    hooks::Protection,
    identity::Identity,
    init_data,
    metrics::StartPhase,
    status,
    store::{SandboxRecord, lock},
    trace::{self, TraceContext},
    user_data::GuestFiles,
    volumes,
};

/// How many ids that others use are passed over before the node is taken to be in disorder.
const ID_TRIES: usize = 1024;
/// The most characters of an instance name, where the provider has no narrower limit.
const NAME_MAX: usize = 63;

impl Sandboxes {
    /// Plans a sandbox and returns the path at which its agent will answer.
    ///
    /// Nothing is made in the cloud. What was made on the node is undone when a later step fails.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what the shim sent, `AlreadyExists` for an id in use, `FailedPrecondition` for what the node
    /// or the pod's network lacks; the message names the thing to mend.
    pub async fn create_vm(
        &self,
        id: &str,
        annotations: &HashMap<String, String>,
        netns: &str,
        caller: &CancellationToken,
    ) -> Result<PathBuf, Status> {
        let origin = trace::origin().unwrap_or_else(TraceContext::fresh);
        let span = trace::below!(
            origin,
            "CreateVM",
            sandbox_id = id,
            node = self.0.parts.config.node_name,
            pod = annotations.get(keys::SANDBOX_NAME),
            namespace = annotations.get(keys::SANDBOX_NAMESPACE),
        );
        let planned = async {
            let started = Instant::now();
            let result = self.plan(id, annotations, netns, caller).await;
            let metrics = &self.0.parts.metrics;
            match &result {
                Ok(_) => metrics.phase(StartPhase::CreateVm, started.elapsed()),
                Err(status) => {
                    metrics.failure("create_vm", code_label(status.code()));
                    tracing::error!(sandbox_id = id, error = %status.message, "CreateVM failed");
                }
            }
            result
        };
        let result = planned.instrument(span.clone()).await;
        if let Err(status) = &result {
            trace::failed(&span, &status.message);
        }
        result
    }

    async fn plan(
        &self,
        id: &str,
        annotations: &HashMap<String, String>,
        netns: &str,
        caller: &CancellationToken,
    ) -> Result<PathBuf, Status> {
        let shared = &self.0;
        check_sandbox_id(id)?;
        if shared.closing.is_cancelled() {
            return Err(Status::new(Code::Unavailable, "the daemon is shutting down"));
        }
        let pod = PodRequest::parse(annotations)?;
        if netns.is_empty() {
            return Err(Status::invalid_argument(
                "networkNamespacePath is empty: the pod has no network namespace to join",
            ));
        }
        let mut claim = Claim::new(shared, id)?;
        if let Err(error) = shared.parts.store.room().await {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("the node takes on no new sandbox: {error:#}"),
            ));
        }
        let inspect = async {
            let inspect = shared.parts.network.inspect(Path::new(netns));
            let network = bounded("inspect the pod's network", NODE_LIMIT, inspect).await?;
            network.map_err(|e| status::of_network("inspect the pod's network", &e))
        };
        let mut network = shared.phase(id, StartPhase::Inspect, inspect).await?;
        if !shared.capabilities.isolation {
            // Instances of this host are reached over a bridge that the provider may make with the first of them, so
            // the address that packets will come from may not be there yet.
            network.worker_addresses.clear();
        }
        let prepare = async {
            let mut draft = Draft::new(shared, id, pod, netns, network).await?;
            draft.reserve(shared, &mut claim).await?;
            Ok(draft)
        };
        let draft = shared.phase(id, StartPhase::Prepare, prepare).await?;

        let socket = files::agent_socket(&shared.parts.config.pods_dir, id);
        if let Err(error) = files::create(&shared.parts.config.pods_dir, id, &draft.apf) {
            let folder = shared.parts.config.pods_dir.join(id);
            return Err(status::of_file(
                &format!("write the files of the sandbox to {}", folder.display()),
                &error,
            ));
        }
        if !claim.keep(caller) {
            return Err(Status::new(
                Code::Canceled,
                "the sandbox was stopped, or its caller went away, during CreateVM",
            ));
        }
        Ok(socket)
    }
}

/// Holds a sandbox id while it is planned: a second CreateVM of the same id does nothing, and a StopVM is not lost.
///
/// Whatever ends the planning, an error or a panic, what is in the journal by then gets a task that takes it back.
struct Claim<'a> {
    shared: &'a Arc<Shared>,
    id: String,
    stopped: CancellationToken,
    /// What the journal has.
    record: Option<SandboxRecord>,
}

impl<'a> Claim<'a> {
    fn new(shared: &'a Arc<Shared>, id: &str) -> Result<Self, Status> {
        let table = lock(&shared.table);
        let mut planning = lock(&shared.planning);
        let taken = table.contains_key(id) || planning.contains_key(id);
        if taken && shared.parts.hooks.has(Protection::OnePerId) {
            return Err(Status::new(Code::AlreadyExists, format!("sandbox {id:?} exists already")));
        }
        shared.check_limit(&table, &planning)?;
        let stopped = CancellationToken::new();
        planning.insert(id.to_owned(), stopped.clone());
        Ok(Self { shared, id: id.to_owned(), stopped, record: None })
    }

    /// Turns the plan into a sandbox. Returns whether it may live; otherwise it is on its way out already.
    fn keep(mut self, caller: &CancellationToken) -> bool {
        let Some(record) = self.record.take() else { return false };
        tracing::info!(
            sandbox_id = %record.id,
            pod = %record.pod_name,
            namespace = %record.pod_namespace,
            instance = %record.instance_name,
            tunnel_id = record.tunnel_id,
            "sandbox is planned"
        );
        let sandbox = self.shared.adopt(record);
        let unwanted =
            self.stopped.is_cancelled() || caller.is_cancelled() || self.shared.closing.is_cancelled();
        if unwanted {
            sandbox.cancel.cancel();
        }
        !unwanted
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.shared.adopt(record).cancel.cancel();
        }
        lock(&self.shared.planning).remove(&self.id);
    }
}

impl Shared {
    /// Refuses what is over `-peerpods-limit-per-node`. The scheduler keeps to it where a cluster advertises it; a node
    /// without one, or pods that were bound to it by name, meet it here.
    ///
    /// Both are locked by the caller until the one that asks is among them, so that of two for the last place one has it.
    fn check_limit(
        &self,
        table: &BTreeMap<String, Arc<Sandbox>>,
        planning: &BTreeMap<String, CancellationToken>,
    ) -> Result<(), Status> {
        let Ok(limit) = usize::try_from(self.parts.config.limit) else { return Ok(()) };
        let staying = table.values().filter(|s| !s.cancel.is_cancelled()).count();
        // For a moment one is in both.
        let held = staying + planning.keys().filter(|id| !table.contains_key(*id)).count();
        if held >= limit {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("this node holds {held} pod VMs and may hold {limit}: see -peerpods-limit-per-node"),
            ));
        }
        Ok(())
    }

    /// Returns a number above those of all sandboxes that are known: milliseconds since 1970, unless the clock was set back.
    ///
    /// By it the controller tells the later one of two sandboxes of a pod, which are on one node.
    fn next_order(&self) -> u64 {
        let now = self.parts.hooks.unix_now().saturating_mul(1000);
        let mut last = lock(&self.last_order);
        *last = now.max(last.saturating_add(1));
        *last
    }

    /// Enters a sandbox into the table and starts the task that owns it from where its record stands.
    pub(super) fn adopt(self: &Arc<Self>, record: SandboxRecord) -> Arc<Sandbox> {
        let instance_id = record.instance.as_ref().map(|i| i.id.to_string());
        // An earlier daemon may have ended while the provider was at work.
        let unanswered = AtomicBool::new(record.phase.may_have_instance());
        let state = State { phase: record.phase, failure: None, instance_id, trouble: BTreeMap::new() };
        {
            let mut last = lock(&self.last_order);
            *last = (*last).max(record.order.unwrap_or_default());
        }
        let mut sequence = 0;
        self.changed.send_modify(|n| {
            *n += 1;
            sequence = *n;
        });
        let sandbox = Arc::new(Sandbox {
            id: record.id.clone(),
            sequence,
            record: Mutex::new(record),
            state: watch::Sender::new(state),
            start: Notify::new(),
            answer_by: std::sync::OnceLock::new(),
            cancel: CancellationToken::new(),
            unanswered,
            serving: tokio::sync::Mutex::default(),
            trace: Mutex::new(trace::current().unwrap_or_else(TraceContext::fresh)),
            start_span: Mutex::new(None),
        });
        lock(&self.table).insert(sandbox.id.clone(), sandbox.clone());
        self.parts.metrics.sandboxes.inc();
        self.tasks.spawn(self.clone().life(sandbox.clone()));
        sandbox
    }
}

/// A sandbox on its way to a record.
struct Draft {
    id: String,
    pod: PodRequest,
    pod_uid: Option<String>,
    netns: String,
    network: PodNetwork,
    instance_name: String,
    identity: Option<Identity>,
    init_data: Option<String>,
    auth_json: Option<String>,
    volumes: Vec<VolumeEntry>,
    apf: String,
}

impl Draft {
    async fn new(
        shared: &Shared,
        id: &str,
        pod: PodRequest,
        netns: &str,
        network: PodNetwork,
    ) -> Result<Self, Status> {
        let config = &shared.parts.config;
        let max = shared.capabilities.name_limit.unwrap_or(NAME_MAX).min(NAME_MAX);
        let name =
            instance_name(&pod.name, id, max).map_err(|e| status::of_provider("name the instance", &e))?;
        // The TLS name follows the rule for 63 characters, whatever the provider's own limit is.
        let server_name =
            instance_name(&pod.name, id, NAME_MAX).map_err(|e| status::of_provider("name the guest", &e))?;
        let confidential = matches!(pod.spec.confidential, Confidential::Yes | Confidential::Type(_));
        if config.disable_tls && confidential {
            return Err(Status::new(
                Code::FailedPrecondition,
                "-disable-tls is refused for a confidential VM: remove it",
            ));
        }
        let made = shared.reserve.as_ref().map(|r| r.identity(&server_name, &shared.certificates.current()));
        let identity = made.transpose().map_err(|e| status::internal("make the TLS identity", &e))?;
        let init_data =
            match pod.init_data.as_deref().or(config.init_data.as_ref().map(ExposeSecret::expose_secret)) {
                None => None,
                Some(text) => Some(
                    init_data::encode_checked(text)
                        .map_err(|e| Status::invalid_argument(format!("init-data of the pod: {e}")))?,
                ),
            };
        let cluster = &shared.parts.cluster;
        let pod_uid = match pod.uid.clone() {
            Some(uid) => Some(uid),
            None => bounded("look up the pod", NODE_LIMIT, cluster.pod_uid(&pod.namespace, &pod.name))
                .await?
                .map_err(|e| status::internal("look up the pod", &e))?,
        };
        let volumes = pod_uid
            .as_deref()
            .map(|uid| volumes::table(&shared.parts.direct_volumes, uid))
            .unwrap_or_default();
        let secrets =
            bounded("read image pull secrets", NODE_LIMIT, cluster.pull_secrets(&pod.namespace, &pod.name));
        let secrets = secrets.await.map_err(|status| anyhow::anyhow!(status.message)).and_then(|read| read);
        let auth_json = secrets.unwrap_or_else(|error| {
            tracing::warn!(sandbox_id = id, error = %format!("{error:#}"), "image pull secrets cannot be read: the pod starts without");
            None
        });
        Ok(Self {
            id: id.to_owned(),
            pod_uid,
            netns: netns.to_owned(),
            network,
            instance_name: name,
            identity,
            init_data,
            auth_json,
            volumes,
            apf: String::new(),
            pod,
        })
    }

    /// Takes tunnel ids until the kernel has one free, and keeps the record of the sandbox before each try.
    async fn reserve(&mut self, shared: &Shared, claim: &mut Claim<'_>) -> Result<(), Status> {
        let port = shared.parts.config.vxlan_port;
        for _ in 0..ID_TRIES {
            let id = shared
                .tunnel_ids
                .take()
                .ok_or_else(|| Status::new(Code::ResourceExhausted, "all tunnel ids are taken"))?;
            let record = match self.record(shared, id, port) {
                Ok(record) => record,
                Err(status) => {
                    shared.tunnel_ids.give_back(id);
                    return Err(status);
                }
            };
            // Before the journal has it: a write that failed may have come through all the same.
            claim.record = Some(record.clone());
            bounded("keep the record of the sandbox", NODE_LIMIT, shared.parts.store.put(&record))
                .await?
                .map_err(|e| status::internal("keep the record of the sandbox", &e))?;
            let underlay = self.network.underlay();
            let reserve = shared.parts.network.reserve(Path::new(&self.netns), id, port, underlay);
            match bounded("reserve a tunnel", NODE_LIMIT, reserve).await? {
                Ok(()) => return Ok(()),
                // Something else on this node has it: leave it taken, so that nobody tries it again.
                Err(error)
                    if error.kind() == NetErrorKind::IdInUse
                        && shared.parts.hooks.has(Protection::NextTunnelId) =>
                {
                    tracing::info!(tunnel_id = id, "tunnel id is in use, trying the next")
                }
                Err(error) => return Err(status::of_network("reserve a tunnel", &error)),
            }
        }
        Err(Status::new(
            Code::ResourceExhausted,
            format!("{ID_TRIES} tunnel ids in a row are in use by others on this node: set -vxlan-min-id"),
        ))
    }

    fn record(&mut self, shared: &Shared, tunnel_id: u32, port: u16) -> Result<SandboxRecord, Status> {
        let config = &shared.parts.config;
        self.network.vxlan_id = tunnel_id;
        self.network.vxlan_port = port;
        self.network.index = tunnel_id - shared.tunnel_ids.min();
        let files = GuestFiles {
            network: &self.network,
            pod_name: &self.pod.name,
            pod_namespace: &self.pod.namespace,
            identity: self.identity.as_ref(),
            tls_min_version: &config.tls_min_version,
            tls_cipher_suites: &config.tls_cipher_suites,
            auth_json: self.auth_json.as_deref(),
            init_data: self.init_data.as_deref(),
            scratch_space: config.scratch_space,
        };
        let (user_data, apf) = files.user_data().map_err(|e| status::internal("write the user data", &e))?;
        self.apf = apf;
        let token = Token::new(shared.parts.scope.clone(), &self.id, 1);
        let unit = Unit { id: self.id.clone(), name_hint: self.pod.name.clone() };
        let mut spec = self.pod.spec.clone();
        spec.volumes = self.volumes.iter().map(|v| VolumeRequest::new(&v.disk_id)).collect();
        let mut request =
            CreateRequest::new(token, unit, &config.node_name).with_spec(spec).with_user_data(user_data);
        if config.external_network {
            request.networks = vec![NetworkRequest::default(), NetworkRequest::default()];
        }
        request.check(&shared.capabilities).map_err(|e| status::of_provider("ask for the instance", &e))?;
        Ok(SandboxRecord {
            id: self.id.clone(),
            pod_name: self.pod.name.clone(),
            pod_namespace: self.pod.namespace.clone(),
            pod_uid: self.pod_uid.clone(),
            netns: self.netns.clone(),
            instance_name: self.instance_name.clone(),
            tunnel_id,
            tunnel_port: port,
            pod_interface: self.network.interface.clone(),
            dedicated: self.network.dedicated,
            underlay: Some(self.network.underlay()),
            volumes: self.volumes.clone(),
            phase: Phase::Planned,
            request,
            identity: self.identity.clone(),
            instance: None,
            resources: Vec::new(),
            created_unix: shared.parts.hooks.unix_now(),
            order: Some(shared.next_order()),
            shim: None,
        })
    }
}
