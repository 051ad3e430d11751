//! The task that owns one sandbox: its start, and its end.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Ownership, Record, Resource, Retry,
};
use peerpod_gateway::{ProxySpec, ProxyState, TlsSpec};
use peerpod_net::worker::TunnelSpec;
use peerpod_proto::{Code, Status};

use tracing::Instrument as _;

use super::{
    ANSWER_TIME, AwaitPoint, Phase, Sandbox, Shared, machine::Step, peer::tunnel_peer, phase::StepError,
};
use crate::{
    cluster::{Notice, SandboxRef},
    files,
    hooks::{Hooks, Protection},
    metrics::StartPhase,
    status,
    store::{SandboxRecord, lock},
    trace,
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

/// The same where a caller waits for it.
const TOO_LATE_LIMIT: Duration = Duration::from_millis(100);

/// How long a planned sandbox waits for its StartVM, which shims send right after CreateVM.
const PLANNED_LIMIT: Duration = Duration::from_secs(600);

/// After which time the people of a pod are told what its start waits for.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let span = trace::below!(*lock(&sandbox.trace), "teardown", sandbox_id = sandbox.id);
        self.stop(&sandbox).instrument(span).await;
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
        let span = lock(&sandbox.start_span).take().unwrap_or_else(tracing::Span::none);
        let mut start = tokio::spawn(self.clone().start(sandbox.clone()).instrument(span));
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
            Err(mut status) => {
                // Before it is taken back, and with it what the guest said.
                if self.read_console(sandbox).await {
                    status.message += "; the end of the guest's console is in the log of the node";
                }
                // Whoever cancelled it knows, and nobody else wants to.
                if !sandbox.cancel.is_cancelled() {
                    self.tell(sandbox, Notice::start_failed(&status.message));
                }
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
        let id = sandbox.id.as_str();
        let cluster = &self.parts.cluster;
        let claim = async {
            let record = self.enter(&sandbox, Phase::Launching, |_| {}).await?;
            let step = "record the pod VM in the cluster";
            let claimed = bounded(step, NODE_LIMIT, cluster.claim(&reference_of(&record))).await?;
            claimed.map_err(|e| status::internal(step, &e))?;
            Ok(record)
        };
        let record = self.phase(id, StartPhase::Claim, claim).await?;

        let create = self.launch(&sandbox, &record.request);
        let instance = self.phase_of(id, StartPhase::Create, create).await?;
        tracing::Span::current().record("instance_id", instance.id.as_str());
        let bind = async {
            let record =
                self.enter(&sandbox, Phase::Launched, |r| r.instance = Some(instance.clone())).await?;
            let reference = reference_of(&record);
            let created = Notice::created(instance.id.as_str(), instance.instance_type.as_deref());
            cluster.tell(&reference, created);
            sandbox.state.send_modify(|s| s.instance_id = Some(instance.id.to_string()));
            self.changed.send_modify(|n| *n += 1);
            let step = "record the instance in the cluster";
            let bound = bounded(step, NODE_LIMIT, cluster.bind(&reference, instance.id.as_str())).await?;
            bound.map_err(|e| status::internal(step, &e))?;
            Ok(record)
        };
        let record = self.phase(id, StartPhase::Bind, bind).await?;

        let join = async {
            let peer = tunnel_peer(&record, &instance)?;
            let tunnel = TunnelSpec::new(record.tunnel_id, record.tunnel_port, peer, &record.pod_interface);
            let join = self.parts.network.connect(Path::new(&record.netns), &tunnel);
            let step = "join the tunnel to the instance";
            bounded(step, NODE_LIMIT, join).await?.map_err(|e| status::of_network(step, &e))
        };
        self.phase(id, StartPhase::Tunnel, join).await?;

        let connect = async {
            let here = trace::current().map(|context| context.to_string());
            let spec = self.proxy_spec(&record, &instance).with_trace(here);
            let gateway = &self.parts.gateway;
            bounded("serve the agent socket", NODE_LIMIT, gateway.register(spec))
                .await?
                .map_err(|e| status::of_gateway("serve the agent socket", e))?;
            // Not for the journal: Launched says already that there may be a tunnel and an agent socket, and what is
            // taken back of the two phases is the same.
            set_phase(&mut lock(&sandbox.record), Phase::Connected);
            sandbox.state.send_modify(|s| s.phase = Phase::Connected);
            let limit = self.parts.config.proxy_timeout + READY_SLACK;
            let wait = gateway.wait_ready(id, sandbox.cancel.clone());
            let waits = "the pod VM was started a minute ago, and its forwarder is not reached yet";
            let ready =
                bounded("reach the forwarder of the guest", limit, self.telling(&sandbox, waits, wait))
                    .await?;
            if ready.is_err() && sandbox.cancel.is_cancelled() {
                self.tell_what_is_dialled(id).await;
            }
            ready.map_err(|e| status::of_gateway("reach the forwarder of the guest", e))
        };
        self.phase(id, StartPhase::Connect, connect).await?;
        self.enter(&sandbox, Phase::Ready, |_| {}).await?;
        Ok(())
    }

    /// Asks the provider for the instance when it is the sandbox's turn.
    async fn launch(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        request: &CreateRequest,
    ) -> Result<Instance, StepError> {
        let hooks = &self.parts.hooks;
        let turn = async {
            hooks.at(AwaitPoint::Turn, &sandbox.id).await;
            self.creates.acquire().await
        };
        if self.creates.available_permits() == 0 {
            let waits = "the node asks the cloud for as many instances as it may (-create-concurrency): the start waits for its turn";
            self.tell(sandbox, Notice::waiting(waits));
        }
        let turn = sandbox.cancel.run_until_cancelled(turn);
        // Held until the provider has answered.
        let Some(_turn) =
            bounded("wait for the turn to ask the cloud (-create-concurrency)", CREATE_LIMIT, turn).await?
        else {
            return Err(
                Status::new(Code::Canceled, "the sandbox was stopped while it waited for its turn").into()
            );
        };
        let create = async {
            let recorder = Arc::new(Recorder { shared: self.clone(), sandbox: sandbox.clone() });
            let ctx = OpContext::new()
                .with_cancel(sandbox.cancel.clone())
                .with_timeout(create_limit(sandbox))
                .with_record(recorder);
            let mut request = std::borrow::Cow::Borrowed(request);
            if !hooks.has(Protection::Token) {
                request.to_mut().token.attempt += 1;
            }
            sandbox.unanswered.store(true, Ordering::Relaxed);
            let waits = "the cloud was asked for the instance a minute ago and has not given it yet";
            let created =
                self.telling(sandbox, waits, self.parts.provider.create_instance(&ctx, &request)).await;
            // A create that fails leaves nothing, or says what it left.
            let clean = created.as_ref().is_err_and(|e| e.leftovers().is_empty());
            sandbox.unanswered.store(!clean, Ordering::Relaxed);
            created.map_err(|e| {
                let kind = e.kind().label();
                self.parts.metrics.failure("create_instance", kind);
                let mut status = status::of_provider("create the instance", &without_secrets(sandbox, e));
                // Nobody cancelled it, so it was the end of the caller's time.
                if status.code() == Code::Canceled && !sandbox.cancel.is_cancelled() {
                    status.code = Code::DeadlineExceeded as i32;
                }
                StepError { status, kind }
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
        if let Some((attempts, error)) = self.dialled(id, LIST_LIMIT).await {
            tracing::warn!(
                sandbox_id = id,
                attempts,
                error,
                "the guest was not reached before the start was cancelled"
            );
        }
    }

    /// Returns how often a guest was dialled in vain, and how the last attempt ended.
    async fn dialled(&self, id: &str, limit: Duration) -> Option<(u64, String)> {
        let list = tokio::time::timeout(limit, self.parts.gateway.list()).await;
        let status = list.ok().and_then(Result::ok).into_iter().flatten().find(|s| s.sandbox_id == id)?;
        match status.state {
            ProxyState::Connecting { attempts, error, .. } => {
                Some((attempts, error.unwrap_or_else(|| "no attempt has ended yet".to_owned())))
            }
            _ => None,
        }
    }

    /// Says what a start was at when its caller's time was over.
    pub(super) async fn too_late(&self, sandbox: &Sandbox, time: Duration) -> Status {
        let phase = sandbox.state.borrow().phase;
        let at = match phase {
            Phase::Planned | Phase::Launching => "create the instance: the cloud has not given it".to_owned(),
            Phase::Launched => "join the tunnel to the instance: it is not made".to_owned(),
            _ => {
                let dialled = self.dialled(&sandbox.id, TOO_LATE_LIMIT).await;
                let tried = dialled.map(|(attempts, error)| format!(", dialled {attempts} times: {error}"));
                format!("reach the forwarder of the guest: it does not answer{}", tried.unwrap_or_default())
            }
        };
        Status::new(
            Code::DeadlineExceeded,
            format!("{at} (the shim waits for {time:.0?}: see its timeouts, and the guest's console)"),
        )
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
                Step::Claim => parts.cluster.release(&reference_of(&record)).await.map_err(transient),
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
        let reported = record.resources.iter().filter(|r| r.kind == Resource::INSTANCE);
        for id in reported.map(|r| InstanceId::new(&r.id)) {
            provider.delete_instance(&ctx, &id, &owned).await?;
        }
        // Of a creation that was tried twice the instance may be the first try's, which is gone: what was reported after
        // it is the second one's.
        let is_last = record.resources.last().is_some_and(|r| r.kind == Resource::INSTANCE);
        if !is_last && sandbox.unanswered.load(Ordering::Relaxed) {
            let again = OpContext::new().with_timeout(CREATE_LIMIT);
            let instance = provider.create_instance(&again, &record.request).await?;
            provider.delete_instance(&ctx, &instance.id, &owned).await?;
        }
        Ok(())
    }

    /// Takes one step back, with growing pauses between the attempts, until that succeeds.
    async fn take_back(&self, sandbox: &Sandbox, step: Step) {
        let span = tracing::info_span!("undo", step = step.way_back(), tries = tracing::field::Empty);
        self.take_back_in(sandbox, step).instrument(span).await;
    }

    async fn take_back_in(&self, sandbox: &Sandbox, step: Step) {
        let mut pause = RETRY_MIN;
        let mut tries = 0u32;
        loop {
            let Err(error) = self.try_back(sandbox, step).await else {
                sandbox.state.send_modify(|s| drop(s.trouble.remove(step.way_back())));
                if tries > 0 {
                    tracing::Span::current().record("tries", tries);
                }
                if tries > 0 && step == Step::Instance {
                    self.tell(sandbox, Notice::deleted(tries));
                }
                return;
            };
            tries += 1;
            self.parts.metrics.deletions_failed.inc();
            let trouble = format!("cannot {} (tried {tries} times): {}", step.way_back(), error.report());
            if step == Step::Instance {
                self.tell(sandbox, Notice::deletion_pending(&trouble));
            }
            sandbox.state.send_modify(|s| drop(s.trouble.insert(step.way_back(), trouble)));
            tracing::warn!(sandbox_id = %sandbox.id, tries, kind = %error.kind(), error = %error.report(), "cannot {}, trying again", step.way_back());
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
            set_phase(&mut record, phase);
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

    /// Waits for a step of the start, and tells the people of the pod when it takes long.
    async fn telling<T>(&self, sandbox: &Sandbox, waits: &str, step: impl Future<Output = T>) -> T {
        let mut step = std::pin::pin!(step);
        match tokio::time::timeout(PATIENCE, &mut step).await {
            Ok(done) => done,
            Err(_) => {
                self.tell(sandbox, Notice::waiting(waits));
                step.await
            }
        }
    }

    /// Tells the people of the sandbox's pod.
    pub(super) fn tell(&self, sandbox: &Sandbox, notice: Notice) {
        let reference = reference_of(&lock(&sandbox.record));
        self.parts.cluster.tell(&reference, notice);
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

fn set_phase(record: &mut SandboxRecord, phase: Phase) {
    debug_assert!(record.phase.leads_to(phase), "{:?} does not lead to {phase:?}", record.phase);
    record.phase = phase;
}

/// Ends when a cancelled start has had all the time that undoing may take.
async fn overdue(sandbox: &Sandbox, hooks: &Hooks) {
    if !hooks.has(Protection::DropOverdue) {
        return std::future::pending().await;
    }
    sandbox.cancel.cancelled().await;
    tokio::time::sleep(CANCEL_LIMIT).await;
}

/// How long the provider may take: less where the caller does not wait as long, so that the cloud's own words are its answer.
fn create_limit(sandbox: &Sandbox) -> Duration {
    let answer_by = sandbox.answer_by.get().copied().flatten();
    let left = answer_by.map(|by| by.saturating_duration_since(tokio::time::Instant::now()));
    left.map_or(CREATE_LIMIT, |left| (left - ANSWER_TIME.min(left / 10)).min(CREATE_LIMIT))
}

/// Takes out of an error what a cloud may quote of the request: the user data, and the keys in it.
fn without_secrets(sandbox: &Sandbox, error: Error) -> Error {
    let record = lock(&sandbox.record);
    let user_data = record.request.user_data.as_bytes();
    let keys = record.identity.iter().flat_map(|id| [Some(&id.client_key), id.server_key.as_ref()]);
    let keys = keys.flatten().cloned();
    let texts = [String::from_utf8_lossy(user_data).into_owned(), STANDARD.encode(user_data)];
    texts.into_iter().chain(keys).fold(error, |error, secret| error.redact(secret.trim()))
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
        self.record_all(std::slice::from_ref(resource)).await
    }

    async fn record_all(&self, resources: &[Resource]) -> Result<(), Error> {
        let record = {
            let mut record = lock(&self.sandbox.record);
            record.resources.extend_from_slice(resources);
            record.clone()
        };
        let hooks = &self.shared.parts.hooks;
        hooks.at(AwaitPoint::Recorded, &self.sandbox.id).await;
        let kept = self.shared.parts.store.put(&record).await;
        kept.map_err(|e| Error::internal(format!("the record of the sandbox could not be kept: {e:#}")))
    }
}

pub(super) fn reference_of(record: &SandboxRecord) -> SandboxRef {
    let mut reference = SandboxRef::new(&record.id, &record.pod_name, &record.pod_namespace);
    reference.token = record.request.token.to_string();
    reference.instance_name.clone_from(&record.instance_name);
    reference.pod_uid.clone_from(&record.pod_uid);
    reference.order = record.order;
    if let Some(instance) = &record.instance {
        reference.instance_id = Some(instance.id.to_string());
        reference.instance_type.clone_from(&instance.instance_type);
    }
    reference
}
