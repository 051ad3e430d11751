//! A guest of one test: namespaces, certificates, an agent that remembers.

#![allow(dead_code, reason = "each test program uses its part")]

use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use peerpod_proto::server::CallContext;
use peerpod_proto::tls::{self, TlsConnector, TlsProfile};
use peerpod_proto::{Client, Server, Service, Status};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use test_support::{Netns, ProcessGuard};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const GUEST_IP: &str = "10.77.0.2";
pub(crate) const NODE_IP: &str = "10.77.0.1";
pub(crate) const POD_IP: &str = "10.244.1.23";
pub(crate) const SERVER_NAME: &str = "podvm-p-01234567";

/// Node and guest with a link between them, and the pod's namespace of the guest.
pub(crate) struct Network {
    pub(crate) node: Netns,
    pub(crate) guest: Netns,
    pub(crate) podns: Netns,
}

impl Network {
    pub(crate) fn new() -> Self {
        let (node, guest) = (Netns::unique("node").unwrap(), Netns::unique("guest").unwrap());
        node.veth("eth0", &guest, "eth0").unwrap();
        node.ip(&["addr", "add", &format!("{NODE_IP}/24"), "dev", "eth0"]).unwrap();
        guest.ip(&["addr", "add", &format!("{GUEST_IP}/24"), "dev", "eth0"]).unwrap();
        guest.default_route(NODE_IP.parse::<IpAddr>().unwrap()).unwrap();
        Self { node, guest, podns: Netns::unique("podns").unwrap() }
    }

    /// Connects from the node to the forwarder.
    pub(crate) fn connect(&self, port: u16) -> anyhow::Result<tokio::net::TcpStream> {
        let stream = self.node.run(move || Ok(TcpStream::connect((GUEST_IP, port))?))?;
        stream.set_nonblocking(true)?;
        Ok(tokio::net::TcpStream::from_std(stream)?)
    }

    /// Whether the pod's interface is there with its address.
    pub(crate) fn pod_is_up(&self) -> bool {
        self.podns.ip(&["-4", "addr", "show", "dev", "eth0"]).is_ok_and(|text| text.contains(POD_IP))
    }
}

/// What the daemon would put into `apf.json`.
pub(crate) fn pod_network() -> serde_json::Value {
    json!({
        "podip": format!("{POD_IP}/24"),
        "pod-hw-addr": "6a:1b:2c:3d:4e:5f",
        "interface": "eth0",
        "worker-node-ip": format!("{NODE_IP}/24"),
        "tunnel-type": "vxlan",
        "routes": [
            {"dst": "", "gw": "10.244.1.1", "dev": "eth0", "protocol": "boot"},
            {"dst": "10.244.1.0/24", "gw": "", "dev": "eth0", "protocol": "kernel", "scope": "link"},
        ],
        "neighbors": null,
        "mtu": 1450,
        "index": 0,
        "vxlan-port": 4789,
        "vxlan-id": 555_000,
        "dedicated": false,
        "external-net-via-pod-vm": false,
    })
}

/// Certificates as the daemon makes them: the client's is its own authority.
pub(crate) struct Certificates {
    pub(crate) ca: String,
    pub(crate) server_cert: String,
    pub(crate) server_key: String,
    pub(crate) client_cert: String,
    pub(crate) client_key: String,
}

fn params(organisation: &str, usage: ExtendedKeyUsagePurpose, ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.is_ca = ca;
    params
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let key = || KeyPair::generate().unwrap();
        let (ca_key, server_key, client_key) = (key(), key(), key());
        let server_usage = ExtendedKeyUsagePurpose::ServerAuth;
        let ca_params = params(
            "agent-protocol-forwarder",
            server_usage.clone(),
            IsCa::Ca(BasicConstraints::Unconstrained),
        );
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca_params, ca_key);
        let mut server = params("agent-protocol-forwarder", server_usage, IsCa::ExplicitNoCa);
        server.subject_alt_names = vec![rcgen::SanType::DnsName(SERVER_NAME.try_into().unwrap())];
        let server_cert = server.signed_by(&server_key, &issuer).unwrap();
        let client = params("cloud-api-adaptor", ExtendedKeyUsagePurpose::ClientAuth, IsCa::ExplicitNoCa);
        let client_cert = client.self_signed(&client_key).unwrap();
        Self {
            ca: ca.pem(),
            server_cert: server_cert.pem(),
            server_key: server_key.serialize_pem(),
            client_cert: client_cert.pem(),
            client_key: client_key.serialize_pem(),
        }
    }

    /// The configuration that carries the server's side of them.
    pub(crate) fn apf(&self) -> serde_json::Value {
        json!({
            "pod-network": pod_network(),
            "pod-namespace": "default",
            "pod-name": "p",
            "tls-server-key": self.server_key,
            "tls-server-cert": self.server_cert,
            "tls-client-ca": self.client_cert,
        })
    }

    /// Speaks TLS as the daemon does.
    pub(crate) async fn client(&self, stream: tokio::net::TcpStream) -> anyhow::Result<Client> {
        Ok(Client::connect(self.stream(stream).await?))
    }

    /// Shakes hands as the daemon does.
    pub(crate) async fn stream(
        &self,
        stream: tokio::net::TcpStream,
    ) -> anyhow::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let config = tls::client_config(
            self.ca.as_bytes(),
            self.client_cert.as_bytes(),
            self.client_key.as_bytes(),
            &TlsProfile::default(),
        )?;
        let name = rustls::pki_types::ServerName::try_from(SERVER_NAME)?;
        Ok(TlsConnector::from(config).connect(name, stream).await?)
    }
}

/// An agent that remembers what it was asked and echoes it.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) calls: Mutex<Vec<(String, Bytes)>>,
}

#[async_trait]
impl Service for Recorder {
    async fn call(&self, _: CallContext, _: &str, method: &str, payload: Bytes) -> Result<Bytes, Status> {
        self.calls.lock().unwrap().push((method.to_owned(), payload.clone()));
        Ok(payload)
    }
}

impl Recorder {
    pub(crate) fn last(&self) -> (String, Bytes) {
        self.calls.lock().unwrap().last().cloned().expect("nothing was asked")
    }

    /// Serves at a socket until the token is cancelled.
    pub(crate) fn serve(self: &Arc<Self>, socket: &Path) -> CancellationToken {
        let stop = CancellationToken::new();
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let server = Server::new(self.clone()).with_grace(Duration::ZERO);
        tokio::spawn({
            let stop = stop.clone();
            async move { server.serve_unix(listener, stop).await }
        });
        stop
    }
}

/// The forwarder as a program in the guest.
pub(crate) struct Guest {
    pub(crate) network: Network,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) certificates: Certificates,
    pub(crate) agent: Arc<Recorder>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let guest = Self {
            network: Network::new(),
            dir: tempfile::tempdir().unwrap(),
            certificates: Certificates::new(),
            agent: Arc::default(),
        };
        guest.configure(&guest.certificates.apf());
        guest
    }

    pub(crate) fn configure(&self, apf: &serde_json::Value) {
        std::fs::write(self.config(), apf.to_string()).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("apf.json")
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.network.guest.command(env!("CARGO_BIN_EXE_agent-protocol-forwarder"));
        command.arg("-config").arg(self.config());
        command.arg("-kata-agent-socket").arg(self.agent_socket());
        command.arg("-pod-namespace").arg(self.network.podns.path());
        command.args(args);
        command
    }

    /// Starts the forwarder and waits until it listens.
    pub(crate) fn start(&self, args: &[&str]) -> ProcessGuard {
        let log = self.dir.path().join(test_support::unique("log"));
        let mut process = ProcessGuard::spawn("forwarder", &mut self.command(args), &log).unwrap();
        process.wait_for_output("listening", LIMIT).unwrap();
        process
    }

    pub(crate) async fn client(&self) -> Client {
        self.certificates.client(self.network.connect(15150).unwrap()).await.unwrap()
    }
}
