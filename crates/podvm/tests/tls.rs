//! The forwarder as a server of clients that are not its node, and of certificates that are replaced while it runs.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{Certificates, Guest, LIMIT, SERVER_NAME};
use peerpod_proto::messages::agent;
use peerpod_proto::tls::{self, TlsConnector};
use peerpod_proto::{Client, Status};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion, version};
use tokio_rustls::client::TlsStream;

/// A certificate and its key, as PEM.
#[derive(Clone)]
struct Pair {
    cert: String,
    key: String,
}

/// An operator's CA.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose, years: (i32, i32)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = vec![rcgen::SanType::DnsName(SERVER_NAME.try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { cert, key: key.serialize_pem() }
    }

    fn client(&self) -> Pair {
        self.sign(ExtendedKeyUsagePurpose::ClientAuth, (2020, 2100))
    }

    fn server(&self) -> Pair {
        self.sign(ExtendedKeyUsagePurpose::ServerAuth, (2020, 2100))
    }
}

/// A client that trusts `ca`, shows `identity` and keeps sessions, as a thief of them would.
fn connector(
    ca: &str,
    identity: Option<&Pair>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(tls::provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    config
}

const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

async fn shake(
    guest: &Guest,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, guest.network.connect(15150).unwrap()).await
}

async fn check(client: &Client) -> Result<Bytes, Status> {
    client.request(agent::SERVICE, "Check", Bytes::new(), Some(LIMIT), Vec::new()).await
}

/// Whether the agent answers a client; in TLS 1.3 a refusal comes with the first call.
async fn is_served(guest: &Guest, config: ClientConfig) -> bool {
    match shake(guest, &Arc::new(config)).await {
        Err(_) => false,
        Ok(stream) => check(&Client::connect(stream)).await.is_ok(),
    }
}

/// A guest whose certificates are files of an operator.
struct Operated {
    guest: Guest,
    ca: Authority,
}

impl Operated {
    fn new() -> Self {
        let operated = Self { guest: Guest::new(), ca: Authority::new() };
        operated.write("tls.crt", &operated.ca.pem, &operated.ca.server());
        operated.guest.configure(&serde_json::json!({ "pod-network": common::pod_network() }));
        operated
    }

    /// Lays out a folder as the kubelet does, and exchanges the link to it.
    fn write(&self, _: &str, ca: &str, server: &Pair) {
        let at = |name: &str| self.guest.dir.path().join(name);
        let version = test_support::unique("v");
        fs::create_dir(at(&version)).unwrap();
        for (name, content) in [("ca.crt", ca), ("tls.crt", &server.cert), ("tls.key", &server.key)] {
            fs::write(at(&version).join(name), content).unwrap();
            if fs::symlink_metadata(at(name)).is_err() {
                std::os::unix::fs::symlink(Path::new("..data").join(name), at(name)).unwrap();
            }
        }
        std::os::unix::fs::symlink(&version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    }

    fn start(&self) -> test_support::ProcessGuard {
        let path = |name: &str| self.guest.dir.path().join(name).to_string_lossy().into_owned();
        self.guest.start(&[
            "-ca-cert-file",
            &path("ca.crt"),
            "-cert-file",
            &path("tls.crt"),
            "-cert-key",
            &path("tls.key"),
        ])
    }
}

#[tokio::test]
async fn hostile_clients_are_refused_and_the_log_names_the_cause() {
    let operated = Operated::new();
    let (guest, ca) = (&operated.guest, &operated.ca);
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut forwarder = operated.start();
    assert!(is_served(guest, connector(&ca.pem, Some(&ca.client()), BOTH)).await);
    let asked = guest.agent.calls.lock().unwrap().len();

    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    let (another, own) = (Authority::new(), Certificates::new());
    let of_another_sandbox = Pair { cert: own.client_cert, key: own.client_key };
    let cases = [
        ("no certificate", None),
        ("unknown issuer", Some(another.client())),
        ("unknown issuer", Some(of_another_sandbox)),
        ("expired", Some(ca.sign(usage.clone(), (2001, 2002)))),
        ("not yet valid", Some(ca.sign(usage, (2090, 2091)))),
        ("wrong purpose", Some(ca.server())),
    ];
    for versions in [BOTH, &[&version::TLS12]] {
        for (cause, identity) in &cases {
            // From here on, so that an earlier refusal is not taken for this one.
            let before = forwarder.output().matches(cause).count();
            let config = connector(&ca.pem, identity.as_ref(), versions);
            assert!(!is_served(guest, config).await, "{cause} was served");
            let told = || (forwarder.output().matches(cause).count() > before).then_some(());
            test_support::wait_for(cause, LIMIT, told).unwrap();
        }
    }
    assert_eq!(guest.agent.calls.lock().unwrap().len(), asked, "none of them reached the agent");
    assert!(is_served(guest, connector(&ca.pem, Some(&ca.client()), BOTH)).await);
    assert!(forwarder.terminate(LIMIT).unwrap().success());
}

#[tokio::test]
async fn no_session_is_kept_so_none_can_be_replayed() {
    let operated = Operated::new();
    let (guest, ca) = (&operated.guest, &operated.ca);
    let _agent = guest.agent.serve(&guest.agent_socket());
    let _forwarder = operated.start();
    for versions in [BOTH, &[&version::TLS12]] {
        let config = Arc::new(connector(&ca.pem, Some(&ca.client()), versions));
        for _ in 0..3 {
            let mut stream = shake(guest, &config).await.unwrap();
            let connection = stream.get_mut().1;
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
            assert!(connection.early_data().is_none() && !connection.is_early_data_accepted());
            // A ticket would come before the first answer.
            let name = "ask";
            let client = Client::connect(stream);
            check(&client).await.unwrap_or_else(|status| panic!("{name}: {status}"));
        }
        // Whoever has the sessions and no certificate has nothing.
        let mut thief = connector(&ca.pem, None, versions);
        thief.resumption = config.resumption.clone();
        assert!(!is_served(guest, thief).await);
    }
}

#[tokio::test]
async fn a_session_of_another_sandboxs_guest_opens_nothing_here() {
    let operated = Operated::new();
    let (guest, ca) = (&operated.guest, &operated.ca);
    let _agent = guest.agent.serve(&guest.agent_socket());
    let _forwarder = operated.start();
    // Another guest, of the same CA and name, that gives tickets and asks nobody for a certificate.
    let pair = ca.server();
    let generous = rustls::ServerConfig::builder_with_provider(Arc::new(tls::provider()))
        .with_protocol_versions(BOTH)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(connector(&ca.pem, None, BOTH));
    let acceptor = tls::TlsAcceptor::from(Arc::new(generous));
    for round in 0..2 {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn({
            let acceptor = acceptor.clone();
            async move {
                use tokio::io::AsyncWriteExt;
                let mut stream = acceptor.accept(theirs).await.unwrap();
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut stream = TlsConnector::from(Arc::clone(&config)).connect(name, ours).await.unwrap();
        tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap();
        let expected = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected), "the thief has a session");
        serving.await.unwrap();
    }
    assert!(!is_served(guest, ClientConfig::clone(&config)).await);
    assert!(guest.agent.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn replaced_certificates_are_used_for_the_next_client_and_broken_ones_are_told() {
    let operated = Operated::new();
    let (guest, old) = (&operated.guest, &operated.ca);
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut forwarder = operated.start();
    let before = Client::connect(
        shake(guest, &Arc::new(connector(&old.pem, Some(&old.client()), BOTH))).await.unwrap(),
    );
    check(&before).await.unwrap();

    let new = Authority::new();
    operated.write("tls.crt", &new.pem, &new.server());
    assert!(is_served(guest, connector(&new.pem, Some(&new.client()), BOTH)).await);
    assert!(!is_served(guest, connector(&new.pem, Some(&old.client()), BOTH)).await);
    assert!(!is_served(guest, connector(&old.pem, Some(&old.client()), BOTH)).await);
    check(&before).await.unwrap();

    // A key of another certificate, and no PEM at all.
    let mixed = Pair { cert: new.server().cert, key: new.server().key };
    for broken in [mixed, Pair { cert: "half a file".into(), key: String::new() }] {
        operated.write("tls.crt", &new.pem, &broken);
        assert!(is_served(guest, connector(&new.pem, Some(&new.client()), BOTH)).await);
    }
    forwarder.wait_for_output("the earlier ones stay in use", LIMIT).unwrap();
    assert!(!forwarder.output().contains("PRIVATE KEY"));

    // Plain files in place of the links, by a rename.
    let newest = Authority::new();
    let server = newest.server();
    for (name, content) in [("tls.key", &server.key), ("tls.crt", &server.cert), ("ca.crt", &newest.pem)] {
        let fresh = guest.dir.path().join("fresh");
        fs::write(&fresh, content).unwrap();
        fs::rename(&fresh, guest.dir.path().join(name)).unwrap();
    }
    assert!(is_served(guest, connector(&newest.pem, Some(&newest.client()), BOTH)).await);
}

#[tokio::test]
async fn the_nodes_profile_decides_what_a_client_may_speak() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let certificates = &guest.certificates;
    let identity = Pair { cert: certificates.client_cert.clone(), key: certificates.client_key.clone() };
    let mut apf = certificates.apf();
    apf["tls-min-version"] = "VersionTLS13".into();
    guest.configure(&apf);
    let mut forwarder = guest.start(&[]);
    let only12: &[&SupportedProtocolVersion] = &[&version::TLS12];
    assert!(!is_served(&guest, connector(&certificates.ca, Some(&identity), only12)).await);
    forwarder.wait_for_output("no common version or cipher suite", LIMIT).unwrap();
    assert!(is_served(&guest, connector(&certificates.ca, Some(&identity), BOTH)).await);
    forwarder.terminate(LIMIT).unwrap();

    apf["tls-min-version"] = "VersionTLS12".into();
    apf["tls-cipher-suites"] = serde_json::json!(["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"]);
    guest.configure(&apf);
    let _forwarder = guest.start(&[]);
    let config = Arc::new(connector(&certificates.ca, Some(&identity), only12));
    let stream = shake(&guest, &config).await.unwrap();
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
}
