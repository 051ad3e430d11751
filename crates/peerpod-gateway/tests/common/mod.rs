//! A guest for tests: a TLS acceptor in front of a small agent, with certificates made on the spot.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peerpod_gateway::{ProxySpec, TlsSpec};
use peerpod_proto::messages::{agent, peer};
use peerpod_proto::server::encode;
use peerpod_proto::tls::{self, TlsAcceptor, TlsProfile};
use peerpod_proto::{CallContext, Client, Server, Service, Status};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The name the guest's certificate carries.
pub const NAME: &str = "podvm-nginx-7c6d-01234567";

/// Fails the test when something takes for ever.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it ends in time")
}

/// Waits for a state.
pub async fn wait_for(what: &str, mut state: impl FnMut() -> bool) {
    test_support::wait_for_async(what, LIMIT, || std::future::ready(state().then_some(()))).await.unwrap();
}

/// Certificates shaped like those of the existing programs.
pub struct Pki {
    pub ca: String,
    pub server: (String, String),
    pub client: (String, String),
}

/// When the certificate of the guest is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    Now,
    Past,
}

impl Pki {
    pub fn new(valid: Valid) -> Self {
        let params = |organization: &str, purpose, is_ca| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, organization);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
            params.extended_key_usages = vec![purpose];
            params.is_ca = is_ca;
            params
        };
        let ca_key = KeyPair::generate().unwrap();
        let is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params("agent-protocol-forwarder", ExtendedKeyUsagePurpose::ServerAuth, is_ca);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let server_key = KeyPair::generate().unwrap();
        let mut server =
            params("agent-protocol-forwarder", ExtendedKeyUsagePurpose::ServerAuth, IsCa::ExplicitNoCa);
        server.distinguished_name.push(DnType::CommonName, NAME);
        server.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into().unwrap())];
        if valid == Valid::Past {
            server.not_before = rcgen::date_time_ymd(2001, 1, 1);
            server.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let server_pem = server.signed_by(&server_key, &issuer).unwrap().pem();
        let client_key = KeyPair::generate().unwrap();
        let client = params("cloud-api-adaptor", ExtendedKeyUsagePurpose::ClientAuth, IsCa::ExplicitNoCa);
        let client_pem = client.self_signed(&client_key).unwrap().pem();
        Self {
            ca: ca_pem,
            server: (server_pem, server_key.serialize_pem()),
            client: (client_pem, client_key.serialize_pem()),
        }
    }

    /// What the node is told.
    pub fn spec(&self) -> TlsSpec {
        TlsSpec::new(&self.ca, &self.client.0, self.client.1.as_str(), NAME)
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        let (cert, key) = &self.server;
        let profile = TlsProfile::default();
        tls::server_config(cert.as_bytes(), key.as_bytes(), self.client.0.as_bytes(), &profile)
            .unwrap()
            .into()
    }
}

/// The agent in the guest.
#[derive(Default)]
pub struct Agent {
    pub created: std::sync::Mutex<Vec<Bytes>>,
    pub running: AtomicUsize,
    pub waits: AtomicUsize,
    pub knows_levels: AtomicBool,
    pub exit: Notify,
}

#[async_trait::async_trait]
impl Service for Agent {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        if service == peer::SERVICE && self.knows_levels.load(Ordering::SeqCst) {
            return Ok(encode(&peer::LevelResponse { max_level: 1, ..Default::default() }));
        }
        if service != agent::SERVICE {
            return Err(Status::unknown_service(service));
        }
        match method {
            "Echo" => Ok(payload),
            agent::method::CREATE_CONTAINER => {
                self.created.lock().unwrap().push(payload);
                Ok(Bytes::new())
            }
            agent::method::WAIT_PROCESS => {
                self.waits.fetch_add(1, Ordering::SeqCst);
                self.running.fetch_add(1, Ordering::SeqCst);
                let result = tokio::select! {
                    () = self.exit.notified() => Ok(encode(&agent::WaitProcessResponse { status: 7 })),
                    () = ctx.cancel.cancelled() => Err(Status::closed()),
                };
                self.running.fetch_sub(1, Ordering::SeqCst);
                result
            }
            unknown => Err(Status::unknown_method(unknown)),
        }
    }
}

/// A guest that listens, with or without TLS.
pub struct Guest {
    pub agent: Arc<Agent>,
    pub address: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    cut: Arc<std::sync::Mutex<CancellationToken>>,
    stop: CancellationToken,
}

impl Guest {
    pub async fn start(acceptor: Option<TlsAcceptor>) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), acceptor).await
    }

    pub async fn listen(address: SocketAddr, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let guest = Self {
            agent: Arc::default(),
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            cut: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (agent, accepted) = (Arc::clone(&guest.agent), Arc::clone(&guest.accepted));
        let (cut, stop) = (Arc::clone(&guest.cut), guest.stop.clone());
        tokio::spawn(async move {
            loop {
                let tcp = tokio::select! {
                    connection = listener.accept() => connection.unwrap().0,
                    () = stop.cancelled() => return,
                };
                accepted.fetch_add(1, Ordering::SeqCst);
                let (server, acceptor) = (Server::new(Arc::clone(&agent) as _), acceptor.clone());
                let cut = cut.lock().unwrap().clone();
                let serving = async move {
                    let never = CancellationToken::new();
                    match acceptor {
                        None => server.serve_connection(tcp, None, &never).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(tcp).await {
                                server.serve_connection(stream, None, &never).await;
                            }
                        }
                    }
                };
                tokio::spawn(async move { cut.run_until_cancelled(serving).await });
            }
        });
        guest
    }

    /// Cuts all connections; new ones are accepted.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut();
    }
}

/// A directory for sockets.
pub struct Pods(pub TempDir);

impl Pods {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn socket(&self, sandbox: &str) -> PathBuf {
        self.0.path().join(sandbox).join("agent.ttrpc")
    }

    pub fn spec(&self, sandbox: &str, guest: SocketAddr) -> ProxySpec {
        ProxySpec::new(sandbox, self.socket(sandbox), [guest.to_string()])
    }

    pub async fn shim(&self, sandbox: &str) -> Client {
        Client::connect_unix(self.socket(sandbox)).await.expect("the agent socket is there")
    }
}

pub async fn call(client: &Client, method: &str, payload: impl Into<Bytes>) -> Result<Bytes, Status> {
    within(client.request(agent::SERVICE, method, payload.into(), None, Vec::new())).await
}

pub async fn echo(client: &Client, text: &'static str) {
    assert_eq!(call(client, "Echo", text).await.unwrap(), text);
}

/// An address at which nobody listens: its host is used by this test only, so nobody takes the port meanwhile.
pub async fn free_address() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::SeqCst) as u8;
    let host = std::net::Ipv4Addr::new(127, 1 + (high & 0x7f), low, number);
    TcpListener::bind((host, 0)).await.unwrap().local_addr().unwrap()
}
