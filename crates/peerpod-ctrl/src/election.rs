//! Leader election by a Lease, as the existing controller does it and with the same name: of both, and of any number of
//! ours, one works at a time.
//!
//! Nobody compares clocks. A candidate takes the Lease once it saw it unchanged for as long as the Lease says. The leader
//! counts from the moment at which it *sent* its last renewal that succeeded, and ends its work well before that time is
//! over: the others saw that renewal later than it was sent.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{ClusterError, Result},
    hooks::{Hooks, SafetyKey},
    metrics::Metrics,
};

/// A Lease as the cluster has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseState {
    /// Who holds it; empty when nobody does.
    pub holder: String,
    /// For how long, in whole seconds.
    pub seconds: u64,
    /// How often it went from one to another.
    pub transitions: i32,
    /// Version of the object; empty for one that is not there yet. It changes with each renewal.
    pub version: String,
}

/// Keeps the Lease.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Reads it from the API server itself. `None` when it is not there.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    async fn read(&self) -> Result<Option<LeaseState>>;

    /// Writes it with the time of now, provided that it has the version of `lease` still, and returns what was written.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Conflict`] when somebody else wrote it.
    async fn write(&self, lease: &LeaseState) -> Result<LeaseState>;
}

/// How long everything takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ElectionSettings {
    /// Who this is; no other process may have the same.
    pub identity: String,
    /// How long a Lease holds without renewal.
    pub lease: Duration,
    /// The leader ends its work when no renewal succeeded for so long.
    pub renew_deadline: Duration,
    /// The pause between two attempts.
    pub retry: Duration,
}

impl ElectionSettings {
    /// The times of the existing controller.
    pub fn new(identity: impl Into<String>) -> Self {
        Self {
            identity: identity.into(),
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    /// How long work may take to end: it is over a second before the Lease may be another's.
    fn end_limit(&self) -> Duration {
        self.lease.saturating_sub(self.renew_deadline).saturating_sub(Duration::from_secs(1))
    }
}

/// Takes part in elections until `stop` fires, and runs `work` while it leads.
///
/// `work` gets a token that fires when it has to end. What ignores it is dropped before the Lease may be another's.
pub async fn take_part<W, F>(
    leases: Arc<dyn Leases>,
    settings: ElectionSettings,
    metrics: Arc<Metrics>,
    hooks: Hooks,
    stop: CancellationToken,
    work: W,
) where
    W: Fn(CancellationToken) -> F,
    F: Future<Output = ()>,
{
    let mut elector = Elector { leases, settings, seen: None };
    while !stop.is_cancelled() {
        let Some((held, sent)) = elector.acquire(&stop).await else { return };
        tracing::info!(identity = elector.settings.identity, "this controller leads");
        metrics.leader.set(1);
        let end = CancellationToken::new();
        let mut work = Box::pin(work(end.clone()));
        let mut held = held;
        let finished = {
            let renewing = elector.keep(&mut held, sent, &stop, hooks.has(SafetyKey::StopBeforeLease));
            tokio::pin!(renewing);
            tokio::select! {
                biased;
                () = &mut work => true,
                () = &mut renewing => false,
            }
        };
        end.cancel();
        let limit = elector.settings.end_limit();
        if !finished && tokio::time::timeout(limit, &mut work).await.is_err() {
            tracing::warn!("the work of the leader did not end in time and is dropped");
        }
        drop(work);
        metrics.leader.set(0);
        if stop.is_cancelled() || finished {
            elector.give_back(held).await;
            return;
        }
        tracing::warn!(identity = elector.settings.identity, "this controller leads no more");
    }
}

struct Elector {
    leases: Arc<dyn Leases>,
    settings: ElectionSettings,
    /// What was seen last, and when it was seen first.
    seen: Option<(LeaseState, Instant)>,
}

impl Elector {
    /// Waits for the Lease. Returns it with the moment at which it was asked for, or nothing at the end.
    async fn acquire(&mut self, stop: &CancellationToken) -> Option<(LeaseState, Instant)> {
        loop {
            let attempt = tokio::time::timeout(self.settings.renew_deadline, self.try_acquire());
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                result = attempt => result.unwrap_or_else(|_| Err(ClusterError::Unavailable("no answer in time".into()))),
            };
            match result {
                Ok(Some(held)) => return Some(held),
                Ok(None) | Err(ClusterError::Conflict) => {}
                Err(error) => tracing::warn!(%error, "the Lease cannot be taken"),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(self.settings.retry) => {}
            }
        }
    }

    async fn try_acquire(&mut self) -> Result<Option<(LeaseState, Instant)>> {
        let found = self.leases.read().await?;
        let mut wanted = found.clone().unwrap_or_default();
        if let Some(found) = found {
            let since = match &self.seen {
                Some((seen, since)) if *seen == found => *since,
                _ => {
                    let now = Instant::now();
                    self.seen = Some((found.clone(), now));
                    now
                }
            };
            let held = !found.holder.is_empty() && found.holder != self.settings.identity;
            if held && since.elapsed() < Duration::from_secs(found.seconds.max(1)) {
                return Ok(None);
            }
            wanted.transitions += i32::from(found.holder != self.settings.identity);
        }
        wanted.holder.clone_from(&self.settings.identity);
        wanted.seconds = self.settings.lease.as_secs();
        let sent = Instant::now();
        Ok(Some((self.leases.write(&wanted).await?, sent)))
    }

    /// Renews the Lease until it cannot be, or `stop` fires.
    async fn keep(&self, held: &mut LeaseState, sent: Instant, stop: &CancellationToken, ends: bool) {
        let mut last = sent;
        loop {
            let deadline = last + self.settings.renew_deadline;
            let pause = tokio::time::sleep(self.settings.retry);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(deadline), if ends => return,
                () = pause => {}
            }
            let asked = Instant::now();
            let renewal = async {
                match self.leases.write(held).await {
                    // Our own renewal whose reply was lost, or somebody else's.
                    Err(ClusterError::Conflict) => {
                        let found = self.leases.read().await?;
                        let found = found.filter(|l| l.holder == self.settings.identity);
                        let found = found.ok_or(ClusterError::Conflict)?;
                        self.leases.write(&found).await
                    }
                    other => other,
                }
            };
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(deadline), if ends => return,
                result = renewal => result,
            };
            match result {
                Ok(lease) => (*held, last) = (lease, asked),
                Err(ClusterError::Conflict) if ends => {
                    tracing::warn!("somebody else has the Lease");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the Lease cannot be renewed, trying again"),
            }
        }
    }

    /// Lets the next one begin at once.
    async fn give_back(&self, mut held: LeaseState) {
        (held.holder, held.seconds) = (String::new(), 1);
        match tokio::time::timeout(self.settings.retry, self.leases.write(&held)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the Lease is not given back and will run out"),
            Err(_) => tracing::debug!("the Lease is not given back and will run out"),
        }
    }
}

#[cfg(test)]
mod tests;
