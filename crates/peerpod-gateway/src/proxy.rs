//! One sandbox: its socket, its relay, and what is known of its guest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::unistd::geteuid;
use peerpod_proto::relay::{Introduction, LinkState, RelayOptions, SESSION_ID_LEN};
use peerpod_proto::{Relay, tls};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::dial::GuestDial;
use crate::error::{GatewayError, GatewayErrorKind};
use crate::gateway::Socket;
use crate::rewrite::NodeRewrite;
use crate::spec::{ProxySpec, ProxyState, ProxyStatus, ReadyInfo, TlsSpec};
use crate::thread::OwnThread;

/// How long a new connection may stay silent before it is taken for accepted. Every forwarder answers the first
/// question, about levels, at once.
const SIGN_TIME: Duration = Duration::from_millis(250);

/// The pause after a connection could not be accepted, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The proxy of one sandbox.
pub(crate) struct Proxy {
    spec: ProxySpec,
    /// The identity shown to the guest, which is renewed when the node's certificates are.
    identity: Mutex<Option<TlsSpec>>,
    dial: Arc<GuestDial>,
    relay: Relay,
    socket: Mutex<Option<Socket>>,
    registered: Instant,
    registered_at: SystemTime,
    /// Ends the tasks of this proxy.
    stop: CancellationToken,
    /// Where they run, when not where the gateway does.
    thread: Mutex<Option<Arc<OwnThread>>>,
}

/// A proxy whose specification is checked and which has no socket yet.
pub(crate) struct Prepared {
    spec: ProxySpec,
    dial: GuestDial,
}

impl Prepared {
    pub(crate) fn spec(&self) -> &ProxySpec {
        &self.spec
    }

    /// Starts to accept and to dial.
    pub(crate) fn start(self, mut socket: Socket, thread: Option<Arc<OwnThread>>) -> Arc<Proxy> {
        // All that is started below runs there.
        let handle = thread.as_ref().map(|thread| thread.handle().clone());
        let _entered = handle.as_ref().map(Handle::enter);
        let dial = Arc::new(self.dial);
        let rewrite = Arc::new(NodeRewrite::new(&self.spec));
        let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let options = RelayOptions::default()
            .with_first_connect_wait(self.spec.connect_timeout)
            .with_introduction(Introduction::new(name, version, session_id));
        let relay = Relay::new(Arc::clone(&dial) as _, rewrite, options);
        // Of no other span: the call by which it came ends long before.
        let span = info_span!(parent: None, "guest", trace = self.spec.trace);
        let stop = CancellationToken::new();
        if let Some(listener) = socket.take_listener() {
            let accept = accept(listener, relay.clone(), self.spec.sandbox_id.clone());
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(accept).await }.instrument(span.clone()));
        }
        let watching = watch_link(relay.clone(), self.spec.sandbox_id.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(watching).await }.instrument(span));
        Arc::new(Proxy {
            identity: Mutex::new(self.spec.tls.clone()),
            spec: self.spec,
            dial,
            relay,
            socket: Mutex::new(Some(socket)),
            registered: Instant::now(),
            registered_at: SystemTime::now(),
            stop,
            thread: Mutex::new(thread),
        })
    }
}

impl Proxy {
    /// Checks a specification.
    pub(crate) fn prepare(spec: ProxySpec) -> Result<Prepared, GatewayError> {
        Ok(Prepared { dial: GuestDial::new(&spec)?, spec })
    }

    pub(crate) fn spec(&self) -> &ProxySpec {
        &self.spec
    }

    /// Whether another registration is this one, or this one with a renewed identity for a guest of the same name. That
    /// one is used from the next connection on.
    pub(crate) fn takes(&self, other: &ProxySpec) -> Result<bool, GatewayError> {
        let renewed = ProxySpec { tls: self.spec.tls.clone(), ..other.clone() };
        let mut identity = self.identity();
        match (&*identity, &other.tls) {
            _ if !self.spec.same_as(&renewed) => Ok(false),
            (ours, theirs) if ours == theirs => Ok(true),
            (Some(ours), Some(theirs)) if ours.server_name == theirs.server_name => {
                self.dial.renew(theirs)?;
                *identity = Some(theirs.clone());
                info!(sandbox_id = %self.spec.sandbox_id, "the TLS identity of the sandbox is renewed");
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn identity(&self) -> MutexGuard<'_, Option<TlsSpec>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the guest is connected and has not refused us right away.
    pub(crate) async fn wait_ready(&self) -> Result<ReadyInfo, GatewayError> {
        let mut states = self.relay.state();
        loop {
            let state = states.borrow_and_update().clone();
            match state {
                LinkState::Connected { since, attempts, .. } => {
                    if self.no_refusal(&mut states).await {
                        let waited = since.duration_since(self.registered);
                        let connected_at = self.registered_at + waited;
                        let target = self.dial.target();
                        return Ok(ReadyInfo { connected_at, waited, attempts, target });
                    }
                    continue;
                }
                LinkState::Failed { error, .. } => {
                    return Err(GatewayError::new(self.dial.failure(), error));
                }
                LinkState::Closed => return Err(GatewayError::not_found(&self.spec.sandbox_id)),
                _ => {}
            }
            if states.changed().await.is_err() {
                let message = "the relay of the sandbox ended; the log has the details";
                return Err(GatewayError::new(GatewayErrorKind::Internal, message));
            }
        }
    }

    /// Waits for a sign that the guest accepts us. Returns false when the connection breaks instead.
    async fn no_refusal(&self, states: &mut watch::Receiver<LinkState>) -> bool {
        if !self.dial.uses_tls() {
            return true;
        }
        let mut confirmed = self.dial.confirmed();
        let sign = timeout(SIGN_TIME, confirmed.wait_for(|seen| *seen));
        tokio::select! {
            _ = sign => true,
            changed = states.changed() => {
                changed.is_ok() && matches!(*states.borrow(), LinkState::Connected { .. })
            }
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<Arc<OwnThread>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> ProxyStatus {
        let state = match self.relay.state().borrow().clone() {
            LinkState::Connecting { attempts, error, reconnect } => {
                ProxyState::Connecting { attempts, error, reconnect }
            }
            LinkState::Connected { connections, .. } => {
                ProxyState::Connected { target: self.dial.target(), connections }
            }
            LinkState::Failed { error, .. } => ProxyState::Failed { error },
            _ => ProxyState::Closed,
        };
        ProxyStatus {
            sandbox_id: self.spec.sandbox_id.clone(),
            socket: self.spec.socket.clone(),
            state,
            registered_at: self.registered_at,
            fronts: self.relay.fronts(),
            peer_level: *self.relay.peer_level().borrow(),
        }
    }

    /// Ends the backend, then the fronts, then removes the socket file.
    pub(crate) async fn end(&self) -> Result<(), GatewayError> {
        self.stop.cancel();
        self.relay.shutdown().await;
        drop(self.thread().take());
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        socket.map_or(Ok(()), |socket| socket.remove())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Connections that are being served hold on to the relay, so it has to be told.
        self.stop.cancel();
        self.relay.stop();
        if let Some(thread) = self.thread().take() {
            let relay = self.relay.clone();
            // Callers are told before the thread goes.
            let handle = thread.handle().clone();
            handle.spawn(async move {
                relay.shutdown().await;
                drop(thread);
            });
        }
    }
}

/// Accepts the connections of shims. They belong to root, as do we; in tests they belong to the same user.
async fn accept(listener: UnixListener, relay: Relay, sandbox_id: String) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%sandbox_id, %error, "a connection to the agent socket cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(reason) = admit(&stream) {
            warn!(%sandbox_id, reason, "a client of the agent socket is refused");
            continue;
        }
        let relay = relay.clone();
        tokio::spawn(async move { relay.serve_unix(stream).await });
    }
}

fn admit(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?;
    if is_admitted(peer.uid(), geteuid().as_raw()) {
        return Ok(());
    }
    Err(format!("user {} is not root", peer.uid()))
}

fn is_admitted(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

/// Makes the id of a session: whoever knows it and has our certificate can take its calls.
fn session_id() -> Option<[u8; SESSION_ID_LEN]> {
    let mut id = [0; SESSION_ID_LEN];
    match tls::provider().secure_random.fill(&mut id) {
        Ok(()) => Some(id),
        Err(error) => {
            warn!(?error, "no random numbers: the calls of a sandbox do not outlive its connection");
            None
        }
    }
}

/// Logs what becomes of the connection to the guest.
async fn watch_link(relay: Relay, sandbox_id: String) {
    let mut states = relay.state();
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            LinkState::Connected { attempts, connections, resumed, .. } => {
                info!(%sandbox_id, attempts, connections, resumed, "guest is connected");
            }
            LinkState::Connecting { attempts: 0, reconnect: true, .. } => {
                warn!(%sandbox_id, "connection to the guest is lost, dialling again");
            }
            LinkState::Connecting { attempts, error, .. } => {
                debug!(%sandbox_id, attempts, ?error, "dialling")
            }
            LinkState::Failed { error, .. } => warn!(%sandbox_id, error, "guest cannot be reached"),
            _ => {}
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_are_admitted() {
        for (uid, own, admitted) in [(0, 0, true), (0, 1000, true), (1000, 1000, true), (1000, 0, false)] {
            assert_eq!(is_admitted(uid, own), admitted, "user {uid} at a gateway of user {own}");
        }
    }
}
