//! The start-up probe and the metrics, over HTTP.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use tokio::net::{TcpListener, TcpSocket, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Binds an address that two daemons may share while one follows the other.
///
/// # Errors
///
/// When the address is not of this machine or belongs to another program.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseport(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("bind {address}"))?;
    socket.listen(128).with_context(|| format!("listen on {address}"))
}

/// Answers `/startup` while `socket` accepts connections, and `/metrics`, until `stop` fires.
///
/// The probe looks at the socket alone. The health of pods says nothing about the daemon: a probe that waited for them
/// would have the daemon killed, and every pod with it, for one pod that crashes.
pub async fn serve(listener: TcpListener, socket: PathBuf, metrics: Arc<Metrics>, stop: CancellationToken) {
    let startup = move || async move {
        match UnixStream::connect(&socket).await {
            Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}\n", socket.display())),
        }
    };
    let text = move || async move {
        (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            metrics.text(),
        )
    };
    let router = Router::new().route("/startup", get(startup)).route("/metrics", get(text));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the HTTP server for probe and metrics ended");
    }
}
