//! The task that owns one sandbox: its start, and its end.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use cloud_providers::{Error, ErrorKind, Instance, OpContext, Ownership, Record, Resource, Retry};
use peerpod_gateway::{ProxySpec, ProxyState, TlsSpec};
use peerpod_net::worker::TunnelSpec;
use peerpod_proto::{Code, Status};

use super::{Phase, Sandbox, Shared};
use crate::{
    cluster::SandboxRef,
    files,
    metrics::StartPhase,
    status,
    store::{SandboxRecord, lock},
};

/// Bounds of the pause between two attempts to delete.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long one attempt to delete may take.
const DELETE_LIMIT: Duration = Duration::from_secs(600);
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
        let begun = match phase {
            Phase::Planned => self.planned(&sandbox).await,
            Phase::Ready => {
                self.reattach(&sandbox).await;
                sandbox.cancel.cancelled().await;
                true
            }
            // The daemon ended in the middle, and with it the shim's StartVM: nobody would use the result.
            _ => {
                sandbox.cancel.cancel();
                true
            }
        };
        self.stop(&sandbox, begun).await;
        lock(&self.table).remove(&sandbox.id);
        self.parts.metrics.sandboxes.dec();
        sandbox.state.send_modify(|s| s.phase = Phase::Gone);
        self.changed.send_modify(|n| *n += 1);
        tracing::info!(sandbox_id = %sandbox.id, "sandbox is gone");
    }

    /// Waits for StartVM, starts, and stays until the end is told. Returns whether a start began.
    async fn planned(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> bool {
        let begun = tokio::select! {
            biased;
            () = sandbox.cancel.cancelled() => false,
            () = sandbox.start.notified() => true,
            // A shim that died in between sends no StopVM; its connection tells nothing, since the Go shim makes one for
            // each call.
            () = tokio::time::sleep(PLANNED_LIMIT) => {
                tracing::warn!(sandbox_id = %sandbox.id, limit = ?PLANNED_LIMIT, "no StartVM came: the planned sandbox is undone");
                false
            }
        };
        if begun {
            // A task of its own, so that a panic in a step ends this sandbox's start and nothing else.
            let mut start = tokio::spawn(self.clone().start(sandbox.clone()));
            let ended = tokio::select! {
                ended = &mut start => ended,
                () = overdue(sandbox) => {
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
                Ok(()) => sandbox.cancel.cancelled().await,
                Err(status) => {
                    sandbox.state.send_modify(|s| s.failure = Some(status));
                    sandbox.cancel.cancel();
                }
            }
        }
        begun
    }

    /// Takes the steps from Launching to Ready. What was made is undone by [`Shared::stop`], not here.
    async fn start(self: Arc<Self>, sandbox: Arc<Sandbox>) -> Result<(), Status> {
        let record = self.enter(&sandbox, Phase::Launching, |_| {}).await?;
        let reference = reference(&record);
        self.parts
            .cluster
            .claim(&reference)
            .await
            .map_err(|e| status::internal("record the pod VM in the cluster", &e))?;

        let started = Instant::now();
        let recorder = Arc::new(Recorder { shared: self.clone(), sandbox: sandbox.clone() });
        let ctx = OpContext::new().with_cancel(sandbox.cancel.clone()).with_record(recorder);
        let instance = self.parts.provider.create_instance(&ctx, &record.request).await;
        let instance = instance.map_err(|e| {
            self.parts.metrics.failure("create_instance", e.kind().label());
            status::of_provider("create the instance", &e)
        })?;
        self.step(&sandbox, StartPhase::Create, started);
        let record = self.enter(&sandbox, Phase::Launched, |r| r.instance = Some(instance.clone())).await?;
        sandbox.state.send_modify(|s| s.instance_id = Some(instance.id.to_string()));
        self.changed.send_modify(|n| *n += 1);
        if let Err(error) = self.parts.cluster.bind(&reference, instance.id.as_str()).await {
            return Err(status::internal("record the instance in the cluster", &error));
        }

        let started = Instant::now();
        let peer = tunnel_peer(&record, &instance)?;
        let tunnel = TunnelSpec::new(record.tunnel_id, record.tunnel_port, peer, &record.pod_interface);
        let joined = self.parts.network.connect(Path::new(&record.netns), &tunnel).await;
        joined.map_err(|e| status::of_network("join the tunnel to the instance", &e))?;
        self.step(&sandbox, StartPhase::Tunnel, started);

        let started = Instant::now();
        let spec = self.proxy_spec(&record, &instance);
        let gateway = &self.parts.gateway;
        gateway.register(spec).await.map_err(|e| status::of_gateway("serve the agent socket", e))?;
        self.enter(&sandbox, Phase::Connected, |_| {}).await?;
        let ready = gateway.wait_ready(&sandbox.id, sandbox.cancel.clone()).await;
        if ready.is_err() && sandbox.cancel.is_cancelled() {
            self.tell_what_is_dialled(&sandbox.id).await;
        }
        ready.map_err(|e| status::of_gateway("reach the forwarder of the guest", e))?;
        self.step(&sandbox, StartPhase::Connect, started);
        self.enter(&sandbox, Phase::Ready, |_| {}).await?;
        Ok(())
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

    /// Undoes everything, as often as it takes, and forgets the sandbox only then.
    async fn stop(&self, sandbox: &Arc<Sandbox>, begun: bool) {
        let record = lock(&sandbox.record).clone();
        if let Err(status) = self.enter(sandbox, Phase::Stopping, |_| {}).await {
            tracing::warn!(sandbox_id = %sandbox.id, error = %status.message, "stopping although the record could not be kept");
        }
        // Side by side: a gateway that does not answer must not keep a VM that is paid for.
        let on_node = async {
            let _serving = sandbox.serving.lock().await;
            if let Err(error) = self.parts.gateway.unregister(&sandbox.id).await {
                tracing::warn!(sandbox_id = %sandbox.id, %error, "the agent socket could not be closed");
            }
            self.remove_tunnel(&record).await;
            if let Err(error) = files::remove(&self.parts.config.pods_dir, &sandbox.id) {
                tracing::warn!(sandbox_id = %sandbox.id, %error, "the folder of the sandbox could not be removed");
            }
        };
        let in_cloud = async {
            if !begun {
                return;
            }
            self.parts.metrics.deletions_pending.inc();
            self.until_done(sandbox, "delete the instance", || self.delete(sandbox)).await;
            self.parts.metrics.deletions_pending.dec();
            let reference = reference(&record);
            self.until_done(sandbox, "release the record in the cluster", || async {
                let released = self.parts.cluster.release(&reference).await;
                released.map_err(|e| Error::new(ErrorKind::Transient, format!("{e:#}")))
            })
            .await;
        };
        tokio::join!(on_node, in_cloud);
        self.until_done(sandbox, "forget the sandbox", || async {
            let removed = self.parts.store.remove(&sandbox.id).await;
            removed.map_err(|e| Error::new(ErrorKind::Transient, format!("{e:#}")))
        })
        .await;
    }

    /// Deletes the instance, or whatever the token has when no instance is known.
    async fn delete(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let record = lock(&sandbox.record).clone();
        let ctx = OpContext::new().with_timeout(DELETE_LIMIT);
        let owned = Ownership::Tagged(self.parts.scope.clone());
        let provider = &self.parts.provider;
        if let Some(instance) = &record.instance {
            provider.delete_instance(&ctx, &instance.id, &owned).await?;
            tracing::info!(sandbox_id = %sandbox.id, instance_id = %instance.id, "instance is deleted");
            return Ok(());
        }
        if self.capabilities.release {
            return provider.release(&ctx, &record.request.token).await;
        }
        // A provider without `release` reported each resource before its next call.
        for resource in record.resources.iter().filter(|r| r.kind == Resource::INSTANCE) {
            provider.delete_instance(&ctx, &cloud_providers::InstanceId::new(&resource.id), &owned).await?;
        }
        Ok(())
    }

    /// Repeats `attempt` with growing pauses until it succeeds.
    async fn until_done<F, Fut>(&self, sandbox: &Sandbox, what: &str, mut attempt: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<(), Error>>,
    {
        let mut pause = RETRY_MIN;
        let mut tries = 0u32;
        loop {
            let Err(error) = attempt().await else { return };
            tries += 1;
            self.parts.metrics.deletions_failed.inc();
            tracing::error!(sandbox_id = %sandbox.id, tries, kind = %error.kind(), error = %error.report(), "cannot {what}, trying again");
            // Half of the pause is random, so that the deletions of many sandboxes spread out.
            let mut wait = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            if let Retry::After { delay } = error.retry() {
                wait = wait.max(delay);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Removes the tunnel of a sandbox and returns its id.
    pub(super) async fn remove_tunnel(&self, record: &SandboxRecord) {
        let report =
            self.parts.network.teardown(Path::new(&record.netns), record.tunnel_id, record.tunnel_port).await;
        if !report.is_complete() {
            let problems = report.problems().iter().map(|e| e.chain()).collect::<Vec<_>>().join("; ");
            tracing::warn!(sandbox_id = %record.id, problems, "the tunnel could not be removed completely");
        }
        self.tunnel_ids.give_back(record.tunnel_id);
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
            record.phase = phase;
            change(&mut record);
            record.clone()
        };
        self.parts
            .store
            .put(&record)
            .await
            .map_err(|e| status::internal("keep the record of the sandbox", &e))?;
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
async fn overdue(sandbox: &Sandbox) {
    sandbox.cancel.cancelled().await;
    tokio::time::sleep(CANCEL_LIMIT).await;
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
