//! The life of sandboxes.
//!
//! [`machine`] has the phases, the steps and what takes them back; `plan` answers CreateVM, `life` is the task that owns a
//! sandbox, `restore` takes on what an earlier daemon left, `evidence` notices ends that nobody tells.

mod console;
mod evidence;
mod life;
pub mod machine;
mod peer;
mod phase;
mod plan;
mod renew;
mod restore;
mod settle;
mod tunnel_ids;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use cloud_providers::{Capabilities, Provider, Scope};
use peerpod_gateway::{AgentProxies, ShimConnections};
use peerpod_proto::{Code, Status};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    cluster::ClusterRecord,
    config::DaemonConfig,
    hooks::{Hooks, Protection},
    identity::{Certificates, Reserve},
    metrics::{Metrics, StartPhase},
    network::Network,
    store::{SandboxRecord, SandboxStore, ShimProcess, lock},
    trace::{self, TraceContext},
};

pub use machine::{AwaitPoint, Phase};

/// How long StopVM waits for a quick end before it answers; the end goes on afterwards all the same.
const STOP_COURTESY: Duration = Duration::from_millis(50);

/// How long StopVM waits for the journal to know of it. A disk that takes longer must not cost the shim's second.
const STOP_RECORD: Duration = Duration::from_millis(500);

/// How long before its deadline a caller has its answer, at most: a tenth of its time where that is less.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// What a sandbox's watchers see.
#[derive(Clone, Debug)]
struct State {
    phase: Phase,
    failure: Option<Status>,
    instance_id: Option<String>,
    /// What cannot be taken back yet and why, by the words of the step.
    trouble: BTreeMap<&'static str, String>,
}

struct Sandbox {
    id: String,
    sequence: u64,
    record: Mutex<SandboxRecord>,
    state: watch::Sender<State>,
    start: Notify,
    /// When the answer to StartVM has to be there, where the caller said so.
    answer_by: OnceLock<Option<tokio::time::Instant>>,
    cancel: CancellationToken,
    /// Whether the provider may have made something that nobody told us of.
    unanswered: AtomicBool,
    /// Held while a restored sandbox is served again, and while its tunnel and socket are taken down.
    serving: tokio::sync::Mutex<()>,
    /// Where in a trace what comes next belongs.
    trace: Mutex<TraceContext>,
    /// The span of StartVM, until the start takes it.
    start_span: Mutex<Option<tracing::Span>>,
}

/// The parts that sandboxes are made with.
#[derive(Clone)]
pub struct Parts {
    /// The daemon's options.
    pub config: Arc<DaemonConfig>,
    /// Makes instances.
    pub provider: Arc<dyn Provider>,
    /// Owns the agent sockets.
    pub gateway: Arc<dyn AgentProxies>,
    /// Keeps records.
    pub store: Arc<dyn SandboxStore>,
    /// The cluster's side.
    pub cluster: Arc<dyn ClusterRecord>,
    /// The node's network.
    pub network: Arc<dyn Network>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What instances belong to.
    pub scope: Scope,
    /// Where Kata describes direct volumes.
    pub direct_volumes: std::path::PathBuf,
    /// What tests may look at; a daemon that ships has the default.
    pub hooks: Hooks,
}

struct Shared {
    parts: Parts,
    capabilities: Capabilities,
    /// The operator's certificates of the moment.
    certificates: Certificates,
    /// Keys and certificates of the next sandbox; none without TLS.
    reserve: Option<Reserve>,
    table: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    /// Ids between the begin of CreateVM and their entry in the table; the token tells that StopVM came meanwhile.
    planning: Mutex<BTreeMap<String, CancellationToken>>,
    tunnel_ids: tunnel_ids::TunnelIds,
    /// The last number that a sandbox was given, see [`SandboxRecord::order`].
    last_order: Mutex<u64>,
    /// Turns to ask the provider for an instance.
    creates: Semaphore,
    shims: Arc<ShimConnections>,
    changed: watch::Sender<u64>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// All sandboxes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Sandboxes(Arc<Shared>);

/// Who calls StartVM.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The process of the shim, where it is known.
    pub pid: Option<i32>,
    /// Until when it waits for the answer.
    pub deadline: Option<tokio::time::Instant>,
    /// Fires when it hangs up, or no longer waits.
    pub gone: CancellationToken,
}

/// A line of `caactl list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// Sandbox id.
    pub id: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Where it stands.
    pub phase: Phase,
    /// Id of the tunnel.
    pub tunnel_id: u32,
    /// Id of the instance, once known.
    pub instance_id: Option<String>,
    /// Addresses of the instance.
    pub addresses: Vec<std::net::IpAddr>,
    /// Seconds since CreateVM.
    pub age_seconds: u64,
    /// Why it failed.
    pub failure: Option<String>,
    /// What cannot be taken back yet, and why.
    #[serde(default)]
    pub trouble: Option<String>,
}

impl Sandboxes {
    /// Starts without sandboxes.
    pub fn new(parts: Parts) -> Self {
        let capabilities = parts.provider.capabilities();
        let tunnel_ids = tunnel_ids::TunnelIds::new(parts.config.vxlan_min_id);
        let creates = Semaphore::new(parts.config.concurrent_creates);
        let certificates =
            Certificates::new(parts.config.custom_files.clone(), parts.config.custom_tls.clone());
        let reserve = (!parts.config.disable_tls).then(Reserve::new);
        Self(Arc::new(Shared {
            parts,
            capabilities,
            certificates,
            reserve,
            table: Mutex::default(),
            planning: Mutex::default(),
            tunnel_ids,
            last_order: Mutex::default(),
            creates,
            shims: Arc::default(),
            changed: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }))
    }

    /// Starts the instance of a planned sandbox and returns when its agent can be called.
    ///
    /// A second call for the same sandbox waits for the same start. When `caller` fires first (the shim hung up, or its
    /// deadline passed) the start is cancelled and undone.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown sandbox; `FailedPrecondition` for one that is being stopped; otherwise what went wrong,
    /// with the cloud's own words.
    pub async fn start_vm(&self, id: &str, caller: &CancellationToken) -> Result<(), Status> {
        self.start_vm_for(id, &Caller { pid: None, deadline: None, gone: caller.clone() }).await
    }

    /// As [`Sandboxes::start_vm`], for a caller who says more of itself.
    ///
    /// Where it says how long it waits, the start and all its repetitions end a moment before that, so that the answer says
    /// what they ended with.
    ///
    /// # Errors
    ///
    /// As [`Sandboxes::start_vm`].
    pub async fn start_vm_for(&self, id: &str, caller: &Caller) -> Result<(), Status> {
        let sandbox = self.find(id)?;
        let origin = trace::origin().unwrap_or_else(|| *lock(&sandbox.trace));
        let span = {
            let record = lock(&sandbox.record);
            trace::below!(
                origin,
                "StartVM",
                sandbox_id = id,
                node = self.0.parts.config.node_name,
                pod = record.pod_name,
                namespace = record.pod_namespace,
                instance_id = tracing::field::Empty,
            )
        };
        if let Some(context) = trace::context_in(&span) {
            *lock(&sandbox.trace) = context;
        }
        // One that asks again waits for the same start, and its span is no part of it.
        if sandbox.state.borrow().phase == Phase::Planned {
            lock(&sandbox.start_span).get_or_insert_with(|| span.clone());
        }
        let outcome = self.await_start(&sandbox, caller).instrument(span.clone()).await;
        if let Err(status) = &outcome {
            trace::failed(&span, &status.message);
        }
        outcome
    }

    async fn await_start(&self, sandbox: &Sandbox, caller: &Caller) -> Result<(), Status> {
        let id = sandbox.id.as_str();
        let started = Instant::now();
        if let Some(shim) = caller.pid.filter(|pid| *pid > 0).and_then(ShimProcess::look) {
            lock(&sandbox.record).shim.get_or_insert(shim);
        }
        let time =
            caller.deadline.map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
        let answer_by =
            caller.deadline.zip(time).map(|(deadline, time)| deadline - ANSWER_TIME.min(time / 10));
        // The first caller's start is the one that everybody waits for.
        let _ = sandbox.answer_by.set(answer_by);
        let mut state = sandbox.state.subscribe();
        sandbox.start.notify_one();
        let outcome = tokio::select! {
            biased;
            outcome = wait_started(&mut state) => outcome,
            () = caller.gone.cancelled() => {
                sandbox.cancel.cancel();
                tracing::warn!(sandbox_id = id, "the caller of StartVM went away: the start is cancelled and undone");
                Err(Status::new(Code::Canceled, "the caller went away during StartVM"))
            }
            () = until(answer_by) => {
                let status = self.0.too_late(sandbox, time.unwrap_or_default()).await;
                sandbox.cancel.cancel();
                Err(status)
            }
        };
        let metrics = &self.0.parts.metrics;
        match &outcome {
            Ok(()) => {
                metrics.phase(StartPhase::StartVm, started.elapsed());
                tracing::info!(sandbox_id = id, elapsed = ?started.elapsed(), "pod VM is ready");
            }
            Err(status) => {
                metrics.failure("start_vm", code_label(status.code()));
                tracing::error!(sandbox_id = id, error = %status.message, "StartVM failed");
            }
        }
        outcome
    }

    /// Ends a sandbox. Answers at once; the undoing goes on until the cloud says that everything is gone.
    ///
    /// Unknown sandboxes are fine: a shim stops up to three times, and after a failed start too.
    pub async fn stop_vm(&self, id: &str) {
        let known = self.find(id).ok();
        let origin = trace::origin().or_else(|| known.as_ref().map(|sandbox| *lock(&sandbox.trace)));
        let origin = origin.unwrap_or_else(TraceContext::fresh);
        let span = trace::below!(origin, "StopVM", sandbox_id = id);
        // What takes the sandbox down belongs below the call that asked for it.
        if let (Some(sandbox), Some(context)) = (known, trace::context_in(&span)) {
            *lock(&sandbox.trace) = context;
        }
        self.answer_stop(id).instrument(span).await;
    }

    async fn answer_stop(&self, id: &str) {
        // In this order: CreateVM enters the table before it leaves the planning list.
        if let Some(planned) = lock(&self.0.planning).get(id)
            && self.0.parts.hooks.has(Protection::StopWhilePlanned)
        {
            planned.cancel();
        }
        let Ok(sandbox) = self.find(id) else {
            tracing::debug!(sandbox_id = id, "StopVM for a sandbox that is not known: nothing to do");
            return;
        };
        sandbox.cancel.cancel();
        let mut state = sandbox.state.subscribe();
        // A crash after the answer must not forget it. What is being started is undone by the next daemon anyway, and takes
        // its time to end here.
        let phase = state.borrow().phase;
        if matches!(phase, Phase::Planned | Phase::Ready) {
            let kept = state.wait_for(|s| s.phase >= Phase::Stopping);
            if tokio::time::timeout(STOP_RECORD, kept).await.is_err() {
                tracing::warn!(sandbox_id = id, "StopVM is answered before the journal knows of it");
            }
        }
        let gone = state.wait_for(|s| s.phase == Phase::Gone);
        if tokio::time::timeout(STOP_COURTESY, gone).await.is_err() {
            tracing::debug!(sandbox_id = id, "StopVM is answered; the deletion goes on");
        }
    }

    /// Returns the instance id of a pod's newest sandbox; with `wait` as soon as it is known.
    ///
    /// # Errors
    ///
    /// `NotFound`, or `Canceled` when `caller` fires during the wait.
    pub async fn instance_of(
        &self,
        namespace: &str,
        pod: &str,
        wait: bool,
        caller: &CancellationToken,
    ) -> Result<String, Status> {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let newest = lock(&self.0.table)
                .values()
                .filter(|s| {
                    let record = lock(&s.record);
                    record.pod_name == pod && record.pod_namespace == namespace
                })
                .max_by_key(|s| s.sequence)
                .and_then(|s| s.state.borrow().instance_id.clone());
            match newest {
                Some(id) => return Ok(id),
                None if !wait => {
                    return Err(Status::new(
                        Code::NotFound,
                        format!("no instance is known for pod {namespace}/{pod}"),
                    ));
                }
                None => tokio::select! {
                    biased;
                    _ = changed.changed() => {}
                    () = caller.cancelled() => return Err(Status::new(Code::Canceled, "the caller went away")),
                },
            }
        }
    }

    /// Returns all sandboxes, the oldest first.
    pub fn list(&self) -> Vec<SandboxInfo> {
        let mut all: Vec<Arc<Sandbox>> = lock(&self.0.table).values().cloned().collect();
        all.sort_by_key(|s| s.sequence);
        all.iter()
            .map(|sandbox| {
                let record = lock(&sandbox.record);
                let state = sandbox.state.borrow();
                SandboxInfo {
                    id: sandbox.id.clone(),
                    pod_name: record.pod_name.clone(),
                    pod_namespace: record.pod_namespace.clone(),
                    phase: state.phase,
                    tunnel_id: record.tunnel_id,
                    instance_id: state.instance_id.clone(),
                    addresses: record.instance.as_ref().map(|i| i.addresses.clone()).unwrap_or_default(),
                    age_seconds: self.0.parts.hooks.unix_now().saturating_sub(record.created_unix),
                    failure: state.failure.as_ref().map(|s| s.message.clone()),
                    trouble: (!state.trouble.is_empty())
                        .then(|| state.trouble.values().map(String::as_str).collect::<Vec<_>>().join("; ")),
                }
            })
            .collect()
    }

    /// Returns what people may see of the records, the oldest first.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn journal(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut records = self.0.parts.store.list().await?;
        records.sort_by_key(|r| r.created_unix);
        Ok(records.iter().map(SandboxRecord::view).collect())
    }

    /// Returns the tag values of all sandboxes' tokens.
    pub fn tokens(&self) -> std::collections::BTreeSet<String> {
        lock(&self.0.table).values().map(|s| lock(&s.record).request.token.tag_value()).collect()
    }

    /// What everything here is made of.
    pub(crate) fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// What tests may look at.
    pub(crate) fn hooks(&self) -> &Hooks {
        &self.0.parts.hooks
    }

    /// Refuses new sandboxes, stops all, and waits at most `limit` for their end.
    ///
    /// Returns the ids whose end was not reached.
    pub async fn shutdown(&self, limit: Duration) -> Vec<String> {
        self.0.closing.cancel();
        for sandbox in lock(&self.0.table).values() {
            sandbox.cancel.cancel();
        }
        self.0.tasks.close();
        let _ = tokio::time::timeout(limit, self.0.tasks.wait()).await;
        lock(&self.0.table).keys().cloned().collect()
    }

    /// Refuses new sandboxes, ends starts under way, and leaves all others to the next daemon.
    ///
    /// Waits at most `limit` for starts and deletions. Returns the ids of sandboxes that are on their way out and not
    /// gone yet; their deletion goes on with the next daemon.
    pub async fn suspend(&self, limit: Duration) -> Vec<String> {
        self.0.closing.cancel();
        let leaving = || {
            let table = lock(&self.0.table);
            let on_the_way = table.values().filter(|s| {
                let phase = s.state.borrow().phase;
                s.cancel.is_cancelled() || !matches!(phase, Phase::Planned | Phase::Ready)
            });
            on_the_way.cloned().collect::<Vec<_>>()
        };
        for sandbox in leaving() {
            sandbox.cancel.cancel();
        }
        let mut changed = self.0.changed.subscribe();
        let quiet = async { while !leaving().is_empty() && changed.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(limit, quiet).await;
        leaving().iter().map(|s| s.id.clone()).collect()
    }

    fn find(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        lock(&self.0.table).get(id).cloned().ok_or_else(|| {
            Status::new(Code::NotFound, format!("sandbox {id:?} is not known: CreateVM comes first"))
        })
    }
}

/// Waits for a moment; without one for ever, and without a timer.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits until a start ended, one way or the other.
async fn wait_started(state: &mut watch::Receiver<State>) -> Result<(), Status> {
    let ended = state.wait_for(|s| s.failure.is_some() || s.phase >= Phase::Ready).await;
    match ended.as_deref() {
        Ok(State { failure: Some(status), .. }) => Err(status.clone()),
        Ok(State { phase: Phase::Ready, .. }) => Ok(()),
        _ => Err(Status::new(Code::FailedPrecondition, "the sandbox is being stopped")),
    }
}

/// Returns a fixed word for a metric label.
pub(crate) fn code_label(code: Code) -> &'static str {
    match code {
        Code::Canceled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::Unauthenticated => "unauthenticated",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Unavailable => "unavailable",
        _ => "internal",
    }
}
