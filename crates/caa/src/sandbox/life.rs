//! The task that owns one sandbox: its start, and its end.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Ownership, Record, Resource, Retry,
};
use peerpod_gateway::{ProxySpec, ProxyState, TlsSpec};
use peerpod_net::worker::TunnelSpec;
use peerpod_proto::{Code, Status};

use super::{AwaitPoint, Phase, Sandbox, Shared, machine::Step};
use crate::{
    cluster::SandboxRef,
    files,
    hooks::{Hooks, Protection},
    metrics::StartPhase,
    status,
    store::{SandboxRecord, lock},
};

/// Bounds of the pause between two attempts to delete.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long one attempt to delete may take.
const DELETE_LIMIT: Duration = Duration::from_secs(600);
/// How long the provider may take to make an instance, and how long a start waits for its turn to ask it.
const CREATE_LIMIT: Duration = Duration::from_secs(900);
/// How long the kernel, the gateway or the cluster may take over one request.
pub(super) const NODE_LIMIT: Duration = Duration::from_secs(30);
/// How much longer than `-proxy-timeout`, which it watches itself, the gateway may take to say that a guest is not reached.
const READY_SLACK: Duration = Duration::from_secs(30);
/// How long the gateway may take to say how far a guest was reached; the undoing waits for it.
const LIST_LIMIT: Duration = Duration::from_secs(1);

/// How long a planned sandbox waits for its StartVM, which shims send right after CreateVM.
const PLANNED_LIMIT: Duration = Duration::from_secs(600);

/// How long a cancelled start may take to undo itself; a dropped call leaves only what it recorded.
const CANCEL_LIMIT: Duration = Duration::from_secs(300);

impl Shared {
    /// Lives one sandbox from where its record stands to Gone.
    pub(super) async fn life(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        let phase = lock(&sandbox.record).phase;
        match phase {
            Phase::Planned => self.planned(&sandbox).await,
            Phase::Ready => {
                self.reattach(&sandbox).await;
                self.ready(&sandbox).await;
            }
            // The daemon ended in the middle, and with it the shim's StartVM: nobody would use the result.
            _ => sandbox.cancel.cancel(),
        }
        self.stop(&sandbox).await;
        lock(&self.table).remove(&sandbox.id);
        self.parts.metrics.sandboxes.dec();
        sandbox.state.send_modify(|s| s.phase = Phase::Gone);
        self.changed.send_modify(|n| *n += 1);
        tracing::info!(sandbox_id = %sandbox.id, "sandbox is gone");
    }

    /// Waits for StartVM, starts, and stays until the end is told.
    async fn planned(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let hooks = &self.parts.hooks;
        hooks.at(AwaitPoint::Planned, &sandbox.id).await;
        // A shim that died in between sends no StopVM; its connection tells nothing, since the Go shim makes one for
        // each call.
        let forgotten = async {
            if !hooks.has(Protection::PlannedLimit) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(PLANNED_LIMIT).await;
        };
        let begun = tokio::select! {
            biased;
            () = sandbox.cancel.cancelled() => false,
            () = sandbox.start.notified() => true,
            () = forgotten => {
                tracing::warn!(sandbox_id = %sandbox.id, limit = ?PLANNED_LIMIT, "no StartVM came: the planned sandbox is undone");
                false
            }
        };
        if !begun {
            return;
        }
        // A task of its own, so that a panic in a step ends this sandbox's start and nothing else.
        let mut start = tokio::spawn(self.clone().start(sandbox.clone()));
        let ended = tokio::select! {
            biased;
            ended = &mut start => ended,
            () = overdue(sandbox, hooks) => {
                tracing::error!(sandbox_id = %sandbox.id, limit = ?CANCEL_LIMIT, "a step of the start ignores its cancellation: it is dropped, and what it recorded is undone");
                start.abort();
                start.await
            }
        };
        let outcome = ended.unwrap_or_else(|error| {
            let what = if error.is_panic() { "panicked" } else { "did not end when it was cancelled" };
            Err(Status::new(Code::Internal, format!("a step of the start {what}")))
        });
        match outcome {
            Ok(()) => self.ready(sandbox).await,
            Err(status) => {
                sandbox.state.send_modify(|s| s.failure = Some(status));
                sandbox.cancel.cancel();
            }
        }
    }

    /// Stays until the end is told.
    async fn ready(&self, sandbox: &Sandbox) {
        self.parts.hooks.at(AwaitPoint::Ready, &sandbox.id).await;
        sandbox.cancel.cancelled().await;
    }

    /// Takes the steps from Launching to Ready. What was made is taken back by [`Shared::stop`], not here.
    async fn start(self: Arc<Self>, sandbox: Arc<Sandbox>) -> Result<(), Status> {
        let record = self.enter(&sandbox, Phase::Launching, |_| {}).await?;
        let reference = reference(&record);
        bounded("record the pod VM in the cluster", NODE_LIMIT, self.parts.cluster.claim(&reference))
            .await?
            .map_err(|e| status::internal("record the pod VM in the cluster", &e))?;

        let started = Instant::now();
        let instance = self.launch(&sandbox, &record.request).await?;
        self.step(&sandbox, StartPhase::Create, started);
        let record = self.enter(&sandbox, Phase::Launched, |r| r.instance = Some(instance.clone())).await?;
        sandbox.state.send_modify(|s| s.instance_id = Some(instance.id.to_string()));
        self.changed.send_modify(|n| *n += 1);
        bounded(
            "record the instance in the cluster",
            NODE_LIMIT,
            self.parts.cluster.bind(&reference, instance.id.as_str()),
        )
        .await?
        .map_err(|e| status::internal("record the instance in the cluster", &e))?;

        let started = Instant::now();
        let peer = tunnel_peer(&record, &instance)?;
        let tunnel = TunnelSpec::new(record.tunnel_id, record.tunnel_port, peer, &record.pod_interface);
        let join = self.parts.network.connect(Path::new(&record.netns), &tunnel);
        bounded("join the tunnel to the instance", NODE_LIMIT, join)
            .await?
            .map_err(|e| status::of_network("join the tunnel to the instance", &e))?;
        self.step(&sandbox, StartPhase::Tunnel, started);

        let started = Instant::now();
        let spec = self.proxy_spec(&record, &instance);
        let gateway = &self.parts.gateway;
        bounded("serve the agent socket", NODE_LIMIT, gateway.register(spec))
            .await?
            .map_err(|e| status::of_gateway("serve the agent socket", e))?;
        self.enter(&sandbox, Phase::Connected, |_| {}).await?;
        let limit = self.parts.config.proxy_timeout + READY_SLACK;
        let wait = gateway.wait_ready(&sandbox.id, sandbox.cancel.clone());
        let ready = bounded("reach the forwarder of the guest", limit, wait).await?;
        if ready.is_err() && sandbox.cancel.is_cancelled() {
            self.tell_what_is_dialled(&sandbox.id).await;
        }
        ready.map_err(|e| status::of_gateway("reach the forwarder of the guest", e))?;
        self.step(&sandbox, StartPhase::Connect, started);
        self.enter(&sandbox, Phase::Ready, |_| {}).await?;
        Ok(())
    }

    /// Asks the provider for the instance when it is the sandbox's turn.
    async fn launch(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        request: &CreateRequest,
    ) -> Result<Instance, Status> {
        let hooks = &self.parts.hooks;
        let turn = async {
            hooks.at(AwaitPoint::Turn, &sandbox.id).await;
            self.creates.acquire().await
        };
        let turn = sandbox.cancel.run_until_cancelled(turn);
        // Held until the provider has answered.
        let Some(_turn) =
            bounded("wait for the turn to ask the cloud (-create-concurrency)", CREATE_LIMIT, turn).await?
        else {
            return Err(Status::new(Code::Canceled, "the sandbox was stopped while it waited for its turn"));
        };
        let create = async {
            let recorder = Arc::new(Recorder { shared: self.clone(), sandbox: sandbox.clone() });
            let ctx = OpContext::new()
                .with_cancel(sandbox.cancel.clone())
                .with_timeout(CREATE_LIMIT)
                .with_record(recorder);
            let mut request = std::borrow::Cow::Borrowed(request);
            if !hooks.has(Protection::Token) {
                request.to_mut().token.attempt += 1;
            }
            sandbox.unanswered.store(true, Ordering::Relaxed);
            let created = self.parts.provider.create_instance(&ctx, &request).await;
            // A create that fails leaves nothing, or says what it left.
            let clean = created.as_ref().is_err_and(|e| e.leftovers().is_empty());
            sandbox.unanswered.store(!clean, Ordering::Relaxed);
            created.map_err(|e| {
                self.parts.metrics.failure("create_instance", e.kind().label());
                status::of_provider("create the instance", &e)
            })
        };
        if !hooks.has(Protection::DropOverdue) {
            return create.await;
        }
        // The provider watches the deadline itself; one that does not is dropped once undoing has had its time, too.
        bounded("create the instance", CREATE_LIMIT + CANCEL_LIMIT, create).await?
    }

    /// Logs how far a guest was reached. A shim's time is often over before ours, and then this alone says why.
    async fn tell_what_is_dialled(&self, id: &str) {
        let list = tokio::time::timeout(LIST_LIMIT, self.parts.gateway.list()).await;
        let status = list.ok().and_then(Result::ok).into_iter().flatten().find(|s| s.sandbox_id == id);
        if let Some(ProxyState::Connecting { attempts, error, .. }) = status.map(|s| s.state) {
            let error = error.as_deref().unwrap_or("no attempt has ended yet");
            tracing::warn!(
                sandbox_id = id,
                attempts,
                error,
                "the guest was not reached before the start was cancelled"
            );
        }
    }

    /// Takes everything back, as often as it takes, and forgets the sandbox only then.
    async fn stop(&self, sandbox: &Arc<Sandbox>) {
        let in_cloud = lock(&sandbox.record).phase.may_have_instance();
        self.parts.hooks.at(AwaitPoint::Stopping, &sandbox.id).await;
        if let Err(status) = self.enter(sandbox, Phase::Stopping, |_| {}).await {
            tracing::warn!(sandbox_id = %sandbox.id, error = %status.message, "stopping although the record could not be kept");
        }
        // Side by side: a gateway that does not answer must not keep a VM that is paid for.
        let on_node = async {
            let _serving = match self.parts.hooks.has(Protection::ServingTurns) {
                true => Some(sandbox.serving.lock().await),
                false => None,
            };
            for step in [Step::Proxy, Step::Tunnel, Step::Folder] {
                self.take_back(sandbox, step).await;
            }
        };
        let in_cloud = async {
            if !in_cloud {
                return;
            }
            self.parts.metrics.deletions_pending.inc();
            self.take_back(sandbox, Step::Instance).await;
            self.parts.metrics.deletions_pending.dec();
            self.take_back(sandbox, Step::Claim).await;
        };
        tokio::join!(on_node, in_cloud);
        self.parts.hooks.at(AwaitPoint::Forget, &sandbox.id).await;
        self.take_back(sandbox, Step::Record).await;
        self.tunnel_ids.give_back(lock(&sandbox.record).tunnel_id);
    }

    /// Takes one step back. Nothing to take back is fine.
    async fn try_back(&self, sandbox: &Sandbox, step: Step) -> Result<(), Error> {
        let record = lock(&sandbox.record).clone();
        let parts = &self.parts;
        let limit = match step {
            Step::Instance => CREATE_LIMIT + DELETE_LIMIT + CANCEL_LIMIT,
            _ => NODE_LIMIT,
        };
        let transient = |error: anyhow::Error| Error::new(ErrorKind::Transient, format!("{error:#}"));
        let back = async {
            match step {
                Step::Record => parts.store.remove(&sandbox.id).await.map_err(transient),
                Step::Tunnel => {
                    let netns = Path::new(&record.netns);
                    let report = parts.network.teardown(netns, record.tunnel_id, record.tunnel_port).await;
                    let problems = report.problems().iter().map(|e| e.chain()).collect::<Vec<_>>();
                    if problems.is_empty() {
                        return Ok(());
                    }
                    Err(Error::new(ErrorKind::Transient, problems.join("; ")))
                }
                Step::Folder => files::remove(&parts.config.pods_dir, &sandbox.id)
                    .map_err(|e| Error::new(ErrorKind::Transient, e.to_string())),
                Step::Claim => parts.cluster.release(&reference(&record)).await.map_err(transient),
                Step::Instance => self.delete(sandbox, &record).await,
                Step::Proxy => parts.gateway.unregister(&sandbox.id).await.map_err(|e| transient(e.into())),
            }
        };
        if step == Step::Instance && !parts.hooks.has(Protection::DropOverdue) {
            return back.await;
        }
        let late = |_| {
            Error::new(ErrorKind::Transient, "no answer came in time").with("waited", format!("{limit:?}"))
        };
        tokio::time::timeout(limit, back).await.map_err(late)?
    }

    /// Deletes the instance, or whatever the token has when no instance is known.
    async fn delete(&self, sandbox: &Sandbox, record: &SandboxRecord) -> Result<(), Error> {
        let ctx = OpContext::new().with_timeout(DELETE_LIMIT);
        // Its own: the cluster id of this daemon may be another one by now.
        let owned = Ownership::Tagged(record.request.token.scope.clone());
        let provider = &self.parts.provider;
        if let Some(instance) = &record.instance {
            provider.delete_instance(&ctx, &instance.id, &owned).await?;
            tracing::info!(sandbox_id = %sandbox.id, instance_id = %instance.id, "instance is deleted");
            return Ok(());
        }
        if self.capabilities.release {
            return provider.release(&ctx, &record.request.token).await;
        }
        // A provider without `release` reported each resource before its next call. What it did not report any more, and
        // what has no instance to go with, is found by the same request once more: it gives the instance of its token.
        let mut instances: Vec<InstanceId> = record
            .resources
            .iter()
            .filter(|r| r.kind == Resource::INSTANCE)
            .map(|r| InstanceId::new(&r.id))
            .collect();
        if instances.is_empty() && sandbox.unanswered.load(Ordering::Relaxed) {
            let again = OpContext::new().with_timeout(CREATE_LIMIT);
            instances.push(provider.create_instance(&again, &record.request).await?.id);
        }
        for id in instances {
            provider.delete_instance(&ctx, &id, &owned).await?;
        }
        Ok(())
    }

    /// Takes one step back, with growing pauses between the attempts, until that succeeds.
    async fn take_back(&self, sandbox: &Sandbox, step: Step) {
        let mut pause = RETRY_MIN;
        let mut tries = 0u32;
        loop {
            let Err(error) = self.try_back(sandbox, step).await else {
                sandbox.state.send_modify(|s| drop(s.trouble.remove(step.way_back())));
                return;
            };
            tries += 1;
            self.parts.metrics.deletions_failed.inc();
            let trouble = format!("cannot {} (tried {tries} times): {}", step.way_back(), error.report());
            sandbox.state.send_modify(|s| drop(s.trouble.insert(step.way_back(), trouble)));
            tracing::error!(sandbox_id = %sandbox.id, tries, kind = %error.kind(), error = %error.report(), "cannot {}, trying again", step.way_back());
            if !self.parts.hooks.has(Protection::UntilGone) {
                return;
            }
            self.parts.hooks.at(AwaitPoint::Again, &sandbox.id).await;
            let mut wait = pause.mul_f64(0.5 + jitter(&sandbox.id, tries) / 2.0);
            if let Retry::After { delay } = error.retry() {
                wait = wait.max(delay);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Changes the record, keeps it, and then shows the new phase.
    async fn enter(
        &self,
        sandbox: &Sandbox,
        phase: Phase,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<SandboxRecord, Status> {
        let record = {
            let mut record = lock(&sandbox.record);
            debug_assert!(record.phase.leads_to(phase), "{:?} does not lead to {phase:?}", record.phase);
            record.phase = phase;
            change(&mut record);
            record.clone()
        };
        let hooks = &self.parts.hooks;
        hooks.at(AwaitPoint::Enter, &sandbox.id).await;
        if hooks.has(Protection::JournalBeforeCall) || phase != Phase::Launching {
            bounded("keep the record of the sandbox", NODE_LIMIT, self.parts.store.put(&record))
                .await?
                .map_err(|e| status::internal("keep the record of the sandbox", &e))?;
        }
        sandbox.state.send_modify(|s| s.phase = phase);
        Ok(record)
    }

    fn step(&self, sandbox: &Sandbox, phase: StartPhase, started: Instant) {
        let elapsed = started.elapsed();
        self.parts.metrics.phase(phase, elapsed);
        tracing::info!(sandbox_id = %sandbox.id, phase = phase.label(), elapsed_ms = elapsed.as_secs_f64() * 1e3, "phase of the start is done");
    }

    pub(super) fn proxy_spec(&self, record: &SandboxRecord, instance: &Instance) -> ProxySpec {
        let config = &self.parts.config;
        let port = config.forwarder_port;
        let target = instance.addresses.iter().take(1).map(|ip| SocketAddr::new(*ip, port).to_string());
        let spec = ProxySpec::new(&record.id, files::agent_socket(&config.pods_dir, &record.id), target)
            .with_connect_timeout(config.proxy_timeout)
            .with_direct_volumes(&self.parts.direct_volumes)
            .with_volumes(record.volumes.clone());
        match &record.identity {
            None => spec,
            Some(id) => spec.with_tls(
                TlsSpec::new(&id.ca, &id.client_cert, id.client_key.clone(), &id.server_name)
                    .with_profile(&config.tls_min_version, config.tls_cipher_suites.clone()),
            ),
        }
    }
}

/// Ends when a cancelled start has had all the time that undoing may take.
async fn overdue(sandbox: &Sandbox, hooks: &Hooks) {
    if !hooks.has(Protection::DropOverdue) {
        return std::future::pending().await;
    }
    sandbox.cancel.cancelled().await;
    tokio::time::sleep(CANCEL_LIMIT).await;
}

/// Gives up on what does not answer.
pub(super) async fn bounded<T>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| Status::new(Code::DeadlineExceeded, format!("{what}: no answer came within {limit:?}")))
}

/// A number from 0 to 1 that differs between sandboxes and attempts, so that the deletions of many spread out, and is the
/// same whenever the same is repeated.
fn jitter(id: &str, tries: u32) -> f64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (id, tries).hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// Writes each resource into the sandbox's record before the provider goes on.
struct Recorder {
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
}

#[async_trait]
impl Record for Recorder {
    async fn record(&self, resource: &Resource) -> Result<(), Error> {
        let record = {
            let mut record = lock(&self.sandbox.record);
            record.resources.push(resource.clone());
            record.clone()
        };
        let hooks = &self.shared.parts.hooks;
        hooks.at(AwaitPoint::Recorded, &self.sandbox.id).await;
        let kept = self.shared.parts.store.put(&record).await;
        kept.map_err(|e| Error::internal(format!("the record of the sandbox could not be kept: {e:#}")))
    }
}

/// The instance's end of the tunnel: its first address, or its second one over a dedicated interface.
pub(super) fn tunnel_peer(record: &SandboxRecord, instance: &Instance) -> Result<IpAddr, Status> {
    let wanted = usize::from(record.dedicated);
    instance.addresses.get(wanted).copied().ok_or_else(|| {
        let which =
            if record.dedicated { "no second address for the dedicated interface" } else { "no address" };
        Status::new(Code::FailedPrecondition, format!("instance {} has {which}", instance.id))
    })
}

fn reference(record: &SandboxRecord) -> SandboxRef {
    let mut reference = SandboxRef::new(&record.id, &record.pod_name, &record.pod_namespace);
    reference.token = record.request.token.to_string();
    reference.instance_name.clone_from(&record.instance_name);
    reference
}
