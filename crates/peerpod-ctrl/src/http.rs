//! Probes and metrics over HTTP.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, sweep::Report};

/// A loop that stands still for so long does so for good.
const STANDSTILL: Duration = Duration::from_secs(60);

/// What probes ask for.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    /// Turns of the loop at the last change, and when that was.
    beats: Mutex<(u64, Instant)>,
    ready: watch::Sender<Result<(), String>>,
}

impl Health {
    /// Begins as not ready.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let ready = watch::Sender::new(Err("the API server was not asked yet".to_owned()));
        Arc::new(Self { metrics, beats: Mutex::new((0, Instant::now())), ready })
    }

    /// Sets whether it is ready, or why not.
    pub fn set_ready(&self, ready: Result<(), String>) {
        drop(self.ready.send_replace(ready));
    }

    /// Whether the loop turns, as far as it has to: one that does not lead has none.
    pub fn alive(&self) -> Result<(), String> {
        let turns = self.metrics.beats();
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        if beats.0 != turns || self.metrics.leader.get() == 0 {
            *beats = (turns, Instant::now());
        }
        match beats.1.elapsed() {
            still if still > STANDSTILL => Err(format!("the loop stands still for {still:?}")),
            _ => Ok(()),
        }
    }

    /// Whether it is ready.
    pub fn ready(&self) -> Result<(), String> {
        self.ready.borrow().clone()
    }
}

/// Binds an address.
///
/// # Errors
///
/// When the address is not of this machine or somebody has it.
pub async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("-{flag}: bind {address}"))
}

fn answer(result: Result<(), String>) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

/// Answers `/healthz` and `/readyz` until `stop` fires.
pub async fn serve_health(listener: TcpListener, health: Arc<Health>, stop: CancellationToken) {
    let (alive, ready) = (health.clone(), health);
    let router = Router::new()
        .route("/healthz", get(move || async move { answer(alive.alive()) }))
        .route("/readyz", get(move || async move { answer(ready.ready()) }));
    serve(listener, router, stop).await;
}

/// Answers `/metrics`, and `/sweep` with the report of the last sweep as JSON, until `stop` fires.
pub async fn serve_metrics(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    stop: CancellationToken,
) {
    let text = move || async move {
        (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            metrics.text(),
        )
    };
    let report = move || async move {
        let report = reports.borrow().clone();
        match report.as_deref().map(serde_json::to_string) {
            Some(Ok(json)) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], json),
            _ => (
                StatusCode::NOT_FOUND,
                [(header::CONTENT_TYPE, "text/plain")],
                "no sweep has ended yet: only the leader sweeps\n".to_owned(),
            ),
        }
    };
    let router = Router::new().route("/metrics", get(text)).route("/sweep", get(report));
    serve(listener, router, stop).await;
}

async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "an HTTP server ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_stands_still_is_not_alive_and_a_candidate_is() {
        let metrics = Metrics::new();
        let health = Health::new(metrics.clone());
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(health.alive().is_ok(), "it does not lead");
        metrics.leader.set(1);
        metrics.beat();
        assert!(health.alive().is_ok());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(health.alive().is_err());
        metrics.beat();
        assert!(health.alive().is_ok());
        assert!(health.ready().is_err());
        health.set_ready(Ok(()));
        assert!(health.ready().is_ok());
    }
}
