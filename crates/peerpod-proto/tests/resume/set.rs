//! A guest, a proxy that breaks its link, and a gateway.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::peer::{self, LevelRequest, LevelResponse};
use peerpod_proto::relay::{
    BoxedStream, Dial, DialError, InterceptContext, Interceptor, Introduction, LinkState, PassThrough, Relay,
    RelayOptions, Rewrite, SESSION_ID_LEN, SessionOptions,
};
use peerpod_proto::server::{decode, encode};
use peerpod_proto::{CallContext, Client, Server, Service, Status};
use test_support::FaultProxy;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::common::within;

/// An agent that counts what it is asked, and whose streams are numbers in a row.
#[derive(Default)]
pub(crate) struct Agent {
    /// How often each request was carried out.
    pub(crate) seen: Mutex<HashMap<Bytes, u64>>,
    /// How far each stream was read and written.
    pub(crate) read: Mutex<HashMap<Bytes, u64>>,
    pub(crate) written: Mutex<HashMap<Bytes, Vec<u8>>>,
    pub(crate) waits: AtomicUsize,
    pub(crate) exit: Notify,
}

/// What a stream has at an offset.
pub(crate) fn generated(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[async_trait::async_trait]
impl Service for Agent {
    async fn call(&self, _: CallContext, _: &str, called: &str, payload: Bytes) -> Result<Bytes, Status> {
        match called {
            // Payload: name of the stream, length in bytes.
            method::READ_STDOUT => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                let (name, length) = text.split_once(' ').unwrap();
                let length = length.parse().unwrap();
                let mut read = self.read.lock().unwrap();
                let offset = read.entry(Bytes::copy_from_slice(name.as_bytes())).or_default();
                let bytes = generated(*offset, length);
                *offset += length as u64;
                Ok(bytes.into())
            }
            method::WRITE_STDIN => {
                let name = payload.slice(..4);
                self.written.lock().unwrap().entry(name).or_default().extend_from_slice(&payload[4..]);
                Ok(Bytes::new())
            }
            method::WAIT_PROCESS => {
                self.waits.fetch_add(1, Ordering::SeqCst);
                self.exit.notified().await;
                Ok("exit code".into())
            }
            "Hang" => {
                *self.seen.lock().unwrap().entry(payload).or_default() += 1;
                std::future::pending().await
            }
            "Slow" => {
                self.waits.fetch_add(1, Ordering::SeqCst);
                self.exit.notified().await;
                Ok(payload)
            }
            _ => {
                *self.seen.lock().unwrap().entry(payload.clone()).or_default() += 1;
                Ok(payload)
            }
        }
    }
}

/// Reaches a service within this process.
pub(crate) struct Local {
    pub(crate) agent: Arc<Agent>,
    pub(crate) cut: Mutex<CancellationToken>,
}

impl Local {
    pub(crate) fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

#[async_trait::async_trait]
impl Dial for Local {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        let (near, far) = tokio::io::duplex(256 << 10);
        let server = Server::new(Arc::clone(&self.agent) as _).with_grace(Duration::ZERO);
        let cut = self.cut.lock().unwrap().clone();
        tokio::spawn(async move {
            let never = CancellationToken::new();
            cut.run_until_cancelled(server.serve_connection(far, None, &never)).await;
        });
        Ok(Box::new(near))
    }

    fn peer(&self) -> String {
        "the agent".to_owned()
    }
}

/// Answers the question about levels as the forwarder does.
pub(crate) struct Levels(pub(crate) u32, pub(crate) u32);

#[async_trait::async_trait]
impl Interceptor for Levels {
    fn wants(&self, service: &str, _: &str) -> bool {
        service == peer::SERVICE
    }

    async fn rewrite(
        &self,
        _: InterceptContext,
        _: &str,
        _: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        decode::<LevelRequest>(payload)?;
        let (min_level, max_level) = (self.0, self.1);
        Ok(Rewrite::Reply(encode(&LevelResponse { min_level, max_level, ..Default::default() })))
    }
}

/// The relay in the guest.
pub(crate) struct Forwarder {
    pub(crate) relay: Relay,
    pub(crate) address: SocketAddr,
    pub(crate) local: Arc<Local>,
    pub(crate) owner: Arc<Mutex<Option<Bytes>>>,
    pub(crate) stop: CancellationToken,
}

impl Forwarder {
    pub(crate) async fn start(agent: &Arc<Agent>, sessions: Option<SessionOptions>) -> Self {
        Self::of_levels(agent, sessions, Levels(peer::MIN_LEVEL, peer::MAX_LEVEL)).await
    }

    pub(crate) async fn of_levels(
        agent: &Arc<Agent>,
        sessions: Option<SessionOptions>,
        levels: Levels,
    ) -> Self {
        let local = Arc::new(Local { agent: Arc::clone(agent), cut: Mutex::default() });
        let mut options = RelayOptions::default().with_adopt_waiting_calls(true);
        options.sessions = sessions;
        let relay = Relay::new(Arc::clone(&local) as _, Arc::new(levels), options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, owner) = (CancellationToken::new(), Arc::<Mutex<Option<Bytes>>>::default());
        let (serving, stopping, owners) = (relay.clone(), stop.clone(), Arc::clone(&owner));
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stopping.run_until_cancelled(listener.accept()).await {
                stream.set_nodelay(true).unwrap();
                let (relay, owner) = (serving.clone(), owners.lock().unwrap().clone());
                tokio::spawn(async move { relay.serve_peer(stream, owner).await });
            }
        });
        Self { relay, address, local, owner, stop }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.cancel();
        self.relay.stop();
    }
}

pub(crate) struct Tcp(SocketAddr);

#[async_trait::async_trait]
impl Dial for Tcp {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        let again = |error| DialError::again(Duration::from_millis(5), error);
        let stream = TcpStream::connect(self.0).await.map_err(again)?;
        stream.set_nodelay(true).map_err(again)?;
        Ok(Box::new(stream))
    }

    fn peer(&self) -> String {
        format!("the guest at {}", self.0)
    }
}

pub(crate) fn session_id() -> Option<[u8; SESSION_ID_LEN]> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; SESSION_ID_LEN];
    id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::SeqCst).to_be_bytes());
    Some(id)
}

pub(crate) fn gateway(address: SocketAddr) -> Relay {
    let introduction = Introduction::new("gateway", "0", session_id);
    let options = RelayOptions::default().with_introduction(introduction);
    Relay::new(Arc::new(Tcp(address)), Arc::new(PassThrough), options)
}

pub(crate) fn shim(relay: &Relay) -> Client {
    let (near, far) = tokio::io::duplex(256 << 10);
    let relay = relay.clone();
    tokio::spawn(async move { relay.serve(far).await });
    Client::connect(near)
}

/// Guest, proxy and gateway with a session between them.
pub(crate) struct Set {
    pub(crate) agent: Arc<Agent>,
    pub(crate) forwarder: Forwarder,
    pub(crate) proxy: FaultProxy,
    pub(crate) gateway: Relay,
}

impl Set {
    pub(crate) async fn new() -> Self {
        Self::with(Some(SessionOptions::default())).await
    }

    pub(crate) async fn with(sessions: Option<SessionOptions>) -> Self {
        let agent = Arc::<Agent>::default();
        let forwarder = Forwarder::start(&agent, sessions).await;
        Self::over(agent, forwarder).await
    }

    pub(crate) async fn over(agent: Arc<Agent>, forwarder: Forwarder) -> Self {
        let proxy = FaultProxy::start(forwarder.address).await.unwrap();
        let gateway = gateway(proxy.address());
        let mut level = gateway.peer_level();
        within(level.wait_for(Option::is_some)).await.unwrap();
        Self { agent, forwarder, proxy, gateway }
    }

    /// Waits until the link stands again, and returns whether its calls go on.
    pub(crate) async fn back(&self, connection: u64) -> bool {
        let mut state = self.gateway.state();
        let connected = |state: &LinkState| matches!(state, LinkState::Connected { connections, .. } if *connections >= connection);
        let state = within(state.wait_for(connected)).await.unwrap();
        matches!(*state, LinkState::Connected { resumed: true, .. })
    }

    pub(crate) async fn lost(&self) {
        let mut state = self.gateway.state();
        within(state.wait_for(|state| matches!(state, LinkState::Connecting { .. }))).await.unwrap();
    }
}

pub(crate) fn call(
    client: &Client,
    called: &'static str,
    payload: impl Into<Bytes>,
) -> tokio::task::JoinHandle<Result<Bytes, Status>> {
    call_for(client, called, payload, None)
}

pub(crate) fn call_for(
    client: &Client,
    called: &'static str,
    payload: impl Into<Bytes>,
    time: Option<Duration>,
) -> tokio::task::JoinHandle<Result<Bytes, Status>> {
    let (client, payload) = (client.clone(), payload.into());
    tokio::spawn(async move { client.request(agent::SERVICE, called, payload, time, Vec::new()).await })
}
