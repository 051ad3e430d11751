//! Reaching the guest: short attempts in quick succession, TLS, and a clear end where it makes no sense to go on.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use peerpod_proto::relay::{BoxedStream, Dial, DialError, Stream};
use peerpod_proto::tls::{self, TlsConnector, TlsProfile};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::error::{GatewayError, GatewayErrorKind};
use crate::spec::{ProxySpec, TlsSpec};

/// How long one attempt may take; the network's way there and back is shorter.
const CONNECT_TIME: Duration = Duration::from_secs(1);

/// A lost SYN is sent again by the kernel after a second, and then at growing intervals. So a further one is sent beside
/// those that have no answer yet, which finds a machine that has just come up much sooner.
const NEXT_SYN: Duration = Duration::from_millis(150);

/// The pause after nothing was answered at all; the next packet goes out in time.
const SILENT_PAUSE: Duration = Duration::from_millis(20);

/// The machine is up and its forwarder about to listen, so asking often costs little and saves time.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// From when on the forwarder is taken to be a slow one, for which asking so often costs too much.
const REFUSED_SOON: Duration = Duration::from_secs(1);

/// The pause then.
const REFUSED_PAUSE_LATER: Duration = Duration::from_millis(40);

/// The pause after any other failure.
const PAUSE: Duration = Duration::from_millis(200);

/// How long TLS may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// After so many refusals in a row, certificates are taken to be wrong for good.
const TLS_TRIES: u32 = 5;

/// The pause after a refusal for the sake of certificates, once the guest has been connected.
const TLS_PAUSE_LATER: Duration = Duration::from_secs(2);

/// Keepalive finds a dead guest on an idle connection, the user timeout one that does not acknowledge.
const KEEPALIVE_IDLE: u32 = 10;
const KEEPALIVE_INTERVAL: u32 = 5;
const KEEPALIVE_COUNT: u32 = 4;
const USER_TIMEOUT_MS: u32 = 30_000;

/// Dials the guest of one sandbox.
pub(crate) struct GuestDial {
    targets: Vec<String>,
    /// Replaced when the node's certificates are.
    tls: RwLock<Option<Arc<Tls>>>,
    deadline: Instant,
    connect_timeout: Duration,
    next_target: AtomicU32,
    refusals: AtomicU32,
    was_confirmed: AtomicBool,
    state: Mutex<State>,
    confirmed: watch::Sender<bool>,
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

#[derive(Default)]
struct State {
    target: String,
    /// What the current connection has shown.
    sign: Arc<Sign>,
    last_error: Option<String>,
    failure: Option<GatewayErrorKind>,
}

impl GuestDial {
    /// Checks the addresses and certificates of a specification.
    pub(crate) fn new(spec: &ProxySpec) -> Result<Self, GatewayError> {
        if spec.targets.is_empty() {
            return Err(GatewayError::invalid("the specification names no target address"));
        }
        for target in &spec.targets {
            let port = target.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                let message = format!("target address {target:?} is not of the form host:port");
                return Err(GatewayError::invalid(message));
            }
        }
        Ok(Self {
            targets: spec.targets.clone(),
            tls: RwLock::new(spec.tls.as_ref().map(Tls::new).transpose()?.map(Arc::new)),
            deadline: Instant::now() + spec.connect_timeout,
            connect_timeout: spec.connect_timeout,
            next_target: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            was_confirmed: AtomicBool::new(false),
            state: Mutex::default(),
            confirmed: watch::Sender::new(false),
        })
    }

    /// The address of the current connection, or of the last one.
    pub(crate) fn target(&self) -> String {
        self.state().target.clone()
    }

    /// Why the guest is dialled no more.
    pub(crate) fn failure(&self) -> GatewayErrorKind {
        self.state().failure.unwrap_or(GatewayErrorKind::Internal)
    }

    /// Whether the guest has sent something over the current connection. With TLS 1.3 a client learns only after
    /// the handshake that its certificate is refused, so the first byte is the sign that it is not.
    pub(crate) fn confirmed(&self) -> watch::Receiver<bool> {
        self.confirmed.subscribe()
    }

    /// Whether there is a sign to wait for.
    pub(crate) fn uses_tls(&self) -> bool {
        self.tls().is_some()
    }

    /// Shows another identity to the guest from the next connection on.
    pub(crate) fn renew(&self, spec: &TlsSpec) -> Result<(), GatewayError> {
        let tls = Arc::new(Tls::new(spec)?);
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(tls);
        self.refusals.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn attempt(&self) -> Result<BoxedStream, Failure> {
        let index = self.next_target.fetch_add(1, Ordering::Relaxed) as usize % self.targets.len();
        let target = &self.targets[index];
        let tcp = match timeout(CONNECT_TIME, connect(target)).await {
            Ok(connected) => connected.map_err(|error| Failure::tcp(target, &error))?,
            Err(_) => {
                let text = format!("{target} does not answer");
                return Err(Failure { kind: FailureKind::Silent, text });
            }
        };
        prepare(&tcp).map_err(|error| Failure::tcp(target, &error))?;
        let sign = Arc::new(Sign::new(self.confirmed.clone()));
        let stream: BoxedStream = match self.tls() {
            None => Box::new(Watched { inner: tcp, sign: Arc::clone(&sign) }),
            Some(tls) => {
                let stream = tls.shake_hands(target, tcp).await?;
                Box::new(Watched { inner: stream, sign: Arc::clone(&sign) })
            }
        };
        self.confirmed.send_replace(false);
        let mut state = self.state();
        state.target.clone_from(target);
        state.sign = sign;
        Ok(stream)
    }

    /// What an attempt that failed means for the next one.
    fn judge(&self, failure: Failure) -> DialError {
        let text = failure.text;
        self.state().last_error = Some(text.clone());
        let connected_before = self.was_confirmed.load(Ordering::Relaxed);
        match failure.kind {
            FailureKind::Tls => {
                let refusals = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
                if connected_before {
                    return DialError::again(TLS_PAUSE_LATER, text);
                }
                if refusals >= TLS_TRIES {
                    return self.give_up(GatewayErrorKind::Tls, text);
                }
                DialError::again(PAUSE, text)
            }
            FailureKind::Refused => {
                let left = self.deadline.saturating_duration_since(Instant::now());
                let waited = self.connect_timeout.saturating_sub(left);
                let soon = connected_before || waited < REFUSED_SOON;
                DialError::again(if soon { REFUSED_PAUSE } else { REFUSED_PAUSE_LATER }, text)
            }
            FailureKind::Silent => DialError::again(SILENT_PAUSE, text),
            FailureKind::Later => DialError::again(PAUSE, text),
        }
    }

    fn give_up(&self, kind: GatewayErrorKind, text: String) -> DialError {
        self.state().failure = Some(kind);
        DialError::permanent(text)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Dial for GuestDial {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        // A connection that the guest closed before it sent anything was refused after the handshake.
        let refused = self.tls().and_then(|tls| self.state().sign.take_refusal(&tls.name));
        if let Some(text) = refused {
            return Err(self.judge(Failure { kind: FailureKind::Tls, text }));
        }
        let connected_before = self.was_confirmed.load(Ordering::Relaxed);
        if !connected_before && Instant::now() >= self.deadline {
            let last = self.state().last_error.clone();
            let text = format!(
                "no connection to the guest at {} within {:?}: {}",
                self.targets.join(", "),
                self.connect_timeout,
                last.as_deref().unwrap_or("no attempt was made"),
            );
            return Err(self.give_up(GatewayErrorKind::Timeout, text));
        }
        self.attempt().await.map_err(|failure| self.judge(failure))
    }

    fn peer(&self) -> String {
        format!("the guest at {}", self.targets.join(", "))
    }

    fn lost(&self) {
        let sign = Arc::clone(&self.state().sign);
        if sign.seen() || !self.uses_tls() {
            self.was_confirmed.store(true, Ordering::Relaxed);
            self.refusals.store(0, Ordering::Relaxed);
        } else {
            sign.closed_early();
        }
    }
}

impl Tls {
    fn new(spec: &TlsSpec) -> Result<Self, GatewayError> {
        let invalid = |error: tls::TlsError| GatewayError::invalid(error.to_string());
        let profile = TlsProfile::parse(&spec.min_version, &spec.cipher_suites).map_err(invalid)?;
        let config = tls::client_config(
            spec.ca_pem.as_bytes(),
            spec.cert_pem.as_bytes(),
            spec.key_pem.expose().as_bytes(),
            &profile,
        )
        .map_err(invalid)?;
        let name = ServerName::try_from(spec.server_name.clone()).map_err(|_| {
            GatewayError::invalid(format!("server name {:?} is no valid name", spec.server_name))
        })?;
        Ok(Self { connector: config.into(), name })
    }

    async fn shake_hands(
        &self,
        target: &str,
        tcp: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Failure> {
        let handshake = self.connector.connect(self.name.clone(), tcp);
        let error = match timeout(HANDSHAKE_TIME, handshake).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => return Err(Failure::later(format!("{target} does not finish the TLS handshake"))),
        };
        Err(match tls::explain_io(&error) {
            Some(reason) => Failure { kind: FailureKind::Tls, text: refusal(&self.name, &reason) },
            None => Failure::later(format!("TLS handshake with {target} broke off: {error}")),
        })
    }
}

fn refusal(name: &ServerName<'_>, reason: &str) -> String {
    format!("TLS with the guest {} failed: {reason}", name.to_str())
}

struct Failure {
    kind: FailureKind,
    text: String,
}

enum FailureKind {
    /// Nobody listens yet.
    Refused,
    /// Certificates or versions do not fit.
    Tls,
    /// Packets get no answer.
    Silent,
    /// Anything else that may pass.
    Later,
}

impl Failure {
    fn later(text: String) -> Self {
        Self { kind: FailureKind::Later, text }
    }

    fn tcp(target: &str, error: &io::Error) -> Self {
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        let kind = if refused { FailureKind::Refused } else { FailureKind::Later };
        Self { kind, text: format!("connection to {target} failed: {error}") }
    }
}

/// Connects with one packet after another, and takes the first connection, or the first refusal.
async fn connect(target: &str) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    loop {
        let target = target.to_owned();
        attempts.spawn(async move { TcpStream::connect(target).await });
        if let Ok(Some(first)) = timeout(NEXT_SYN, attempts.join_next()).await {
            return first.unwrap_or_else(|broken| Err(io::Error::other(broken)));
        }
    }
}

/// Sets up a connection so that small frames go at once and a dead guest is noticed.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = tcp.as_fd();
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    setsockopt(&socket, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS)?;
    Ok(())
}

/// What a connection has shown of the guest.
#[derive(Debug, Default)]
struct Sign {
    seen: AtomicBool,
    refusal: Mutex<Option<String>>,
    confirmed: Option<watch::Sender<bool>>,
}

impl Sign {
    fn new(confirmed: watch::Sender<bool>) -> Self {
        Self { confirmed: Some(confirmed), ..Self::default() }
    }

    fn seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    fn note_byte(&self) {
        if !self.seen.swap(true, Ordering::Relaxed)
            && let Some(confirmed) = &self.confirmed
        {
            confirmed.send_replace(true);
        }
    }

    fn note_error(&self, error: &io::Error) {
        if !self.seen()
            && let Some(reason) = tls::explain_io(error)
        {
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        }
    }

    /// The connection ended before it brought anything.
    fn closed_early(&self) {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.get_or_insert_with(|| {
            "the guest closed the connection right after the handshake, as it does when it does not accept the \
             client certificate"
                .to_owned()
        });
    }

    fn take_refusal(&self, name: &ServerName<'_>) -> Option<String> {
        let reason = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(refusal(name, &reason))
    }
}

/// A connection that notes the first thing it brings.
struct Watched<S> {
    inner: S,
    sign: Arc<Sign>,
}

impl<S: Stream> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        match &result {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => self.sign.note_byte(),
            Poll::Ready(Err(error)) => self.sign.note_error(error),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        result
    }
}

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_dead_guest_is_noticed_within_half_a_minute() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&tcp).unwrap();
        assert!(tcp.nodelay().unwrap());
        let socket = tcp.as_fd();
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        let idle = getsockopt(&socket, sockopt::TcpKeepIdle).unwrap();
        let interval = getsockopt(&socket, sockopt::TcpKeepInterval).unwrap();
        let count = getsockopt(&socket, sockopt::TcpKeepCount).unwrap();
        assert!(idle + interval * count <= 30, "an idle connection");
        assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout).unwrap(), 30_000, "a busy one");
    }

    /// A listener whose queue is full drops packets, as clouds do while a machine is not up.
    #[tokio::test]
    async fn a_guest_that_does_not_answer_costs_a_second_an_attempt() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            queued.push(connected.unwrap());
            assert!(queued.len() < 100, "the queue of a listener is short");
        }
        let spec = ProxySpec::new("s", "/run/x", [address.to_string()])
            .with_connect_timeout(Duration::from_millis(1_100));
        let dial = GuestDial::new(&spec).unwrap();
        let error = dial.dial().await.err().expect("nobody answers");
        assert_eq!(error.retry, Some(SILENT_PAUSE));
        assert!(error.to_string().contains("does not answer"), "{error}");
        tokio::time::sleep_until(dial.deadline).await;
        let error = dial.dial().await.err().expect("time is over");
        assert_eq!((error.retry, dial.failure()), (None, GatewayErrorKind::Timeout));
        assert!(error.to_string().contains("within 1.1s") && error.to_string().contains("does not answer"));
    }
}
