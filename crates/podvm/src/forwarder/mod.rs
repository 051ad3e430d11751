//! Serves the agent of this VM to the node, over mutual TLS.
//!
//! [`Forwarder::start`] reads the configuration, joins the pod's network and listens; [`Forwarder::run`] forwards
//! until it is told to stop and then takes down what it set up.

mod agent;
mod binds;
mod config;
#[cfg(test)]
mod fuzz;
mod intercept;
mod tls;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use peerpod_net::{PodNetwork, guest};
use peerpod_proto::relay::{BoxedStream, Relay, RelayOptions, SessionOptions};
use peerpod_proto::tls::{TlsAcceptor, explain_io, warm_up};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{ApfConfig, BIND_SOURCE_DIRS, Options};
pub use tls::{ServerTls, server_tls};

use crate::paths::{self, Paths};
use crate::volumes::{MountLayer, Patience, Volumes};

/// How long a call waits for an agent that is not there yet.
const AGENT_WITHIN: Duration = Duration::from_secs(150);
/// Bound of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; peers that never finish one cannot use up more than this.
const HANDSHAKES: usize = 64;
/// Bound of a peer's silence to what was sent, so that a node that is gone is noticed.
const PEER_SILENT: Duration = Duration::from_secs(30);
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 128;

/// A forwarder that listens.
pub struct Forwarder {
    listener: TcpListener,
    tls: Option<ServerTls>,
    relay: Relay,
    volumes: Arc<Volumes>,
    pod_namespace: PathBuf,
    network: PodNetwork,
}

impl Forwarder {
    /// Reads the configuration, sets up the pod's network, and listens.
    ///
    /// # Errors
    ///
    /// A configuration that cannot be used is told before anything is changed. When the network cannot be set up or
    /// the address cannot be listened on, everything done so far is undone.
    pub async fn start(
        options: &Options,
        root: Paths,
        layer: Arc<dyn MountLayer>,
        patience: Patience,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let config = ApfConfig::load(&options.config)?;
        let tls = server_tls(options, &config, &root)?;
        if tls.is_none() {
            warn!("TLS is switched off: whoever reaches the port drives the agent");
        }
        let address = listen_address(&options.listen)?;
        let network = config.pod_network.clone().context("pod-network is missing")?;
        info!(pod = config.pod_name, namespace = config.pod_namespace, "joining the pod's network");
        // The first random number costs tens of milliseconds; it is drawn while the network is set up.
        let warm = tokio::task::spawn_blocking(warm_up);
        guest::setup(&options.pod_namespace, &network, options.host_interface.as_deref(), cancel)
            .await
            .context("set up the pod's network")?;
        warm.await?;
        let listener = match listen(address) {
            Ok(listener) => listener,
            Err(error) => {
                take_down(&options.pod_namespace, &network).await;
                return Err(error).with_context(|| format!("listen on {address} (set -listen)"));
            }
        };
        let volumes = Arc::new(Volumes::new(layer, root.at(paths::CLOUD_VOLUMES_DIR), patience));
        let interceptor = Arc::new(intercept::Guest {
            netns: options.pod_namespace.to_string_lossy().into_owned(),
            root,
            bind_source_dirs: options.bind_source_dirs.clone(),
            volumes: volumes.clone(),
        });
        let dial = Arc::new(agent::AgentDial::new(&options.agent_socket, &options.config));
        // The node's end reconnects after a cut. A gateway of this version goes on with its session; one of the version
        // before asks again for what it waits for.
        let mut relay_options =
            RelayOptions::default().with_first_connect_wait(AGENT_WITHIN).with_adopt_waiting_calls(true);
        if !options.link_grace.is_zero() {
            relay_options =
                relay_options.with_sessions(SessionOptions::default().with_grace(options.link_grace));
        }
        let relay = Relay::new(dial, interceptor, relay_options);
        info!(address = %listener.local_addr()?, "listening");
        Ok(Self { listener, tls, relay, volumes, pod_namespace: options.pod_namespace.clone(), network })
    }

    /// The address listened on.
    ///
    /// # Errors
    ///
    /// When the system does not tell it.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Forwards until `stop` is cancelled, then stops listening, unmounts the cloud volumes and takes down the
    /// network.
    pub async fn run(self, stop: CancellationToken) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            // Peers that stay silent may hold all permits for a while; stopping does not wait for them.
            let permit = tokio::select! {
                permit = handshakes.clone().acquire_owned() => permit,
                () = stop.cancelled() => break,
            };
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    let tls = self.tls.as_ref().map(ServerTls::acceptor);
                    let relay = self.relay.clone();
                    tokio::spawn(async move {
                        match handshake(stream, tls).await {
                            Ok((stream, certificate)) => {
                                drop(permit);
                                info!(%peer, "peer connected");
                                relay.serve_peer(stream, certificate).await;
                                info!(%peer, "peer is gone");
                            }
                            Err(error) => warn!(%peer, error = format!("{error:#}"), "peer refused"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        self.relay.shutdown().await;
        let failed = self.volumes.unmount_all().await;
        let complete = take_down(&self.pod_namespace, &self.network).await;
        info!(volumes_left = failed, network_down = complete, "stopped");
    }
}

async fn take_down(podns: &Path, network: &PodNetwork) -> bool {
    let report = guest::teardown(podns, network).await;
    for problem in report.problems() {
        warn!(error = problem.chain(), "the pod's network is not completely taken down");
    }
    report.is_complete()
}

/// Returns the connection and the certificate of the peer, by which its session is known to be its own.
async fn handshake(stream: TcpStream, tls: Option<TlsAcceptor>) -> Result<(BoxedStream, Option<Bytes>)> {
    prepare(&stream).context("set socket options")?;
    match tls {
        None => Ok((Box::new(stream), None)),
        Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(accepted) => {
                let accepted = accepted.map_err(|error| match explain_io(&error) {
                    Some(cause) => anyhow!("TLS handshake: {cause}"),
                    None => anyhow!(error).context("TLS handshake"),
                })?;
                let certificates = accepted.get_ref().1.peer_certificates().unwrap_or_default();
                let certificate = certificates.first().context("the peer shows no certificate")?;
                let certificate = Bytes::copy_from_slice(certificate);
                Ok((Box::new(accepted), Some(certificate)))
            }
            Err(_) => bail!("no TLS handshake within {} s", HANDSHAKE.as_secs()),
        },
    }
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &15)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &(PEER_SILENT.as_millis() as u32))?;
    Ok(())
}

/// Reads `host:port`; no host means every address, as Go has it.
fn listen_address(text: &str) -> Result<SocketAddr> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().with_context(|| format!("{text:?} is not an address and port (set -listen)"))
}

/// Listens at every address of both families where the address is that of every one: a node may reach its guests by
/// either.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()))) {
            // A guest without IPv6.
            Err(error) if address.is_ipv4() && error.kind() != std::io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    bind(address)
}

/// A forwarder that is started again finds connections of its predecessor in the port's way without the option.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        // Whatever the system's default is.
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_go_reads_them() {
        assert_eq!(listen_address("0.0.0.0:15150").unwrap().port(), 15150);
        assert!(listen_address(":15150").unwrap().ip().is_unspecified());
        assert!(listen_address("[::1]:1").unwrap().is_ipv6());
        let error = listen_address("15150").unwrap_err().to_string();
        assert!(error.contains("-listen"), "{error}");
    }
}
