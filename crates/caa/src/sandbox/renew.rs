//! Running sandboxes follow the operator's certificates.

use std::{sync::Arc, time::Duration};

use peerpod_gateway::GatewayErrorKind;
use peerpod_proto::Status;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{
    Phase, Sandbox, Sandboxes, Shared,
    life::{NODE_LIMIT, bounded},
};
use crate::store::{SandboxRecord, lock};

/// How often the files are looked at for the sake of running sandboxes; new ones look themselves.
const LOOK_EVERY: Duration = Duration::from_secs(3);

impl Sandboxes {
    /// Gives running sandboxes the operator's certificates whenever they were replaced, until `stop` fires.
    pub async fn follow_certificates(self, stop: CancellationToken) {
        if !self.0.certificates.are_given() {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.renew_certificates().await;
        }
    }

    /// Gives running sandboxes the operator's certificates of the moment, for the next time their guests are dialled.
    ///
    /// Guests whose own certificates are ours keep what they were told at their start.
    pub async fn renew_certificates(&self) {
        let running: Vec<Arc<Sandbox>> =
            lock(&self.0.table).values().filter(|s| is_served(s)).cloned().collect();
        for sandbox in running {
            if let Err(reason) = self.0.renew(&sandbox).await {
                tracing::warn!(
                    sandbox_id = %sandbox.id,
                    reason,
                    "a running sandbox keeps its earlier certificates: its guest is lost when they expire and the connection breaks"
                );
            }
        }
    }
}

fn is_served(sandbox: &Sandbox) -> bool {
    matches!(sandbox.state.borrow().phase, Phase::Connected | Phase::Ready) && !sandbox.cancel.is_cancelled()
}

impl Shared {
    async fn renew(&self, sandbox: &Sandbox) -> Result<(), String> {
        // What ends the sandbox waits for this, and this does not serve again what was ended.
        let _serving = sandbox.serving.lock().await;
        if !is_served(sandbox) {
            return Ok(());
        }
        let custom = self.certificates.current();
        let (renewed, before) = {
            let mut record = lock(&sandbox.record);
            let before = record.identity.clone();
            if !record.identity.as_mut().is_some_and(|identity| identity.renew(&custom)) {
                return Ok(());
            }
            (record.clone(), before)
        };
        let told = self.tell_renewed(&renewed).await;
        match &told {
            Ok(()) => tracing::info!(sandbox_id = %sandbox.id, "the certificates of the sandbox are renewed"),
            // Tried again at the next look.
            Err(Told::Later(_)) => lock(&sandbox.record).identity = before,
            Err(Told::Never(_)) => {}
        }
        told.map_err(|(Told::Later(reason) | Told::Never(reason))| reason)
    }

    async fn tell_renewed(&self, record: &SandboxRecord) -> Result<(), Told> {
        let later = |status: Status| Told::Later(status.message);
        let put = self.parts.store.put(record);
        let kept = bounded("keep the record of the sandbox", NODE_LIMIT, put).await.map_err(later)?;
        kept.map_err(|error| Told::Later(format!("the journal: {error:#}")))?;
        let Some(instance) = &record.instance else { return Ok(()) };
        let register = self.parts.gateway.register(self.proxy_spec(record, instance));
        match bounded("tell the gateway", NODE_LIMIT, register).await.map_err(later)? {
            Ok(()) => Ok(()),
            // One of an earlier version cannot; a gateway that is started anew reads the record.
            Err(error) if error.kind() == GatewayErrorKind::Conflict => {
                Err(Told::Never(format!("the gateway: {error}")))
            }
            Err(error) => Err(Told::Later(format!("the gateway: {error}"))),
        }
    }
}

/// Why a renewed identity is not in use.
enum Told {
    /// It may be at the next look.
    Later(String),
    /// Not before the gateway is started anew.
    Never(String),
}
