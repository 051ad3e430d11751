//! What a daemon does at its start with the records of the one before.
//!
//! | record | what becomes of it |
//! |---|---|
//! | Planned | waits for StartVM as before |
//! | Launching, Launched, Connected | undone: the shim's call ended with the earlier daemon |
//! | Ready | kept: tunnel repaired, agent socket served under the same path |
//! | Stopping | its deletion goes on |

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use peerpod_gateway::GatewayErrorKind;
use peerpod_net::{NetErrorKind, worker::TunnelSpec};

use super::{
    AwaitPoint, Phase, Sandbox, Sandboxes, Shared,
    life::{NODE_LIMIT, bounded},
    peer::tunnel_peer,
};
use crate::{hooks::Protection, store::lock};

/// Bounds of the pause between two attempts to serve a restored sandbox.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What was found at the start, by what becomes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// Wait for StartVM.
    pub planned: usize,
    /// Serve a pod.
    pub ready: usize,
    /// Are undone, or their deletion goes on.
    pub leaving: usize,
}

impl Sandboxes {
    /// Takes on every sandbox of the store. Call it once, before calls are served.
    ///
    /// # Errors
    ///
    /// When the store cannot be read; then nothing is taken on.
    pub async fn restore(&self) -> anyhow::Result<Restored> {
        let mut records = self.0.parts.store.list().await?;
        records.sort_by(|a, b| (a.created_unix, &a.id).cmp(&(b.created_unix, &b.id)));
        let mut restored = Restored::default();
        for record in records {
            match record.phase {
                Phase::Planned => restored.planned += 1,
                Phase::Ready => restored.ready += 1,
                _ => restored.leaving += 1,
            }
            tracing::info!(sandbox_id = %record.id, pod = %record.pod_name, phase = ?record.phase, "an earlier daemon's sandbox is taken on");
            if self.0.parts.hooks.has(Protection::ClaimTunnelIds) {
                self.0.tunnel_ids.claim(record.tunnel_id);
            }
            self.0.adopt(record);
        }
        Ok(restored)
    }

    /// Serves all running sandboxes again, after the gateway forgot them.
    pub async fn reattach(&self) {
        let running: Vec<Arc<Sandbox>> = lock(&self.0.table)
            .values()
            .filter(|s| s.state.borrow().phase == Phase::Ready && !s.cancel.is_cancelled())
            .cloned()
            .collect();
        for sandbox in running {
            let shared = self.0.clone();
            self.0.tasks.spawn(async move { shared.reattach(&sandbox).await });
        }
    }
}

impl Shared {
    /// Serves a sandbox again whose guest runs: its tunnel and its agent socket.
    ///
    /// What fails is tried again until the sandbox is stopped: a gateway that comes up later than this daemon must not
    /// cost a pod.
    pub(super) async fn reattach(&self, sandbox: &Arc<Sandbox>) {
        let begun = Instant::now();
        let mut pause = RETRY_MIN;
        loop {
            // Not dropped in the middle: a step that goes on by itself would make again what the end has taken down.
            self.parts.hooks.at(AwaitPoint::Reattach, &sandbox.id).await;
            let reason = {
                let _serving = match self.parts.hooks.has(Protection::ServingTurns) {
                    true => Some(sandbox.serving.lock().await),
                    false => None,
                };
                if sandbox.cancel.is_cancelled() {
                    return;
                }
                match self.try_reattach(sandbox).await {
                    Ok(()) => break,
                    Err(reason) => reason,
                }
            };
            tracing::error!(sandbox_id = %sandbox.id, reason, "a running sandbox cannot be served yet, trying again");
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = sandbox.cancel.cancelled() => return,
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
        tracing::info!(sandbox_id = %sandbox.id, elapsed = ?begun.elapsed(), "a running sandbox is served again");
    }

    async fn try_reattach(&self, sandbox: &Sandbox) -> Result<(), String> {
        let record = lock(&sandbox.record).clone();
        let instance = record.instance.as_ref().ok_or("its record names no instance")?;
        let peer = tunnel_peer(&record, instance).map_err(|status| status.message)?;
        let tunnel = TunnelSpec::new(record.tunnel_id, record.tunnel_port, peer, &record.pod_interface);
        let join = self.parts.network.connect(Path::new(&record.netns), &tunnel);
        let joined = bounded("the tunnel", NODE_LIMIT, join).await.map_err(|status| status.message)?;
        // The agent is served also where the pod's network is broken: its logs and its end go that way.
        let network = match joined {
            Err(error) if error.kind() == NetErrorKind::NetnsMissing => {
                tracing::warn!(sandbox_id = %sandbox.id, error = error.chain(), "a running sandbox has no tunnel any more");
                Ok(())
            }
            joined => joined.map_err(|error| format!("the tunnel: {}", error.chain())),
        };
        let register = self.parts.gateway.register(self.proxy_spec(&record, instance));
        match bounded("the agent socket", NODE_LIMIT, register).await.map_err(|status| status.message)? {
            Ok(()) => {}
            // It serves the sandbox already, with the options of an earlier daemon.
            Err(error) if error.kind() == GatewayErrorKind::Conflict => {
                tracing::warn!(sandbox_id = %sandbox.id, %error, "the gateway keeps serving the sandbox as an earlier daemon told it")
            }
            Err(error) => return Err(format!("the agent socket: {error}")),
        }
        network
    }
}
