//! The gateway as a client of guests that are not what they say they are, with real handshakes over loopback.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerpod_gateway::{AgentProxies, Gateway, GatewayErrorKind, ProxyState, TlsSpec};
use peerpod_proto::tls::{self, TlsAcceptor, TlsProfile};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use common::{Guest, NAME, Pki, Pods, Valid, echo, wait_for, within};

/// The authority of one sandbox, which signs for its guest.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
type Pair = (String, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into().unwrap())];
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn client() -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn spec(authority: &Authority, client: &Pair) -> TlsSpec {
    TlsSpec::new(&authority.pem, &client.0, client.1.as_str(), NAME)
}

fn acceptor(server: &Pair, client: &Pair, profile: &TlsProfile) -> TlsAcceptor {
    tls::server_config(server.0.as_bytes(), server.1.as_bytes(), client.0.as_bytes(), profile).unwrap().into()
}

/// Dials a guest once it is registered, and says why it was given up.
async fn refusal(what: &str, server: TlsAcceptor, tls: TlsSpec) -> String {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(Some(server)).await;
    gateway.register(pods.spec("s1", guest.address).with_tls(tls)).await.unwrap();
    let ready = within(gateway.wait_ready("s1", CancellationToken::new())).await;
    let error = ready.err().unwrap_or_else(|| panic!("{what} was accepted"));
    assert_eq!(error.kind(), GatewayErrorKind::Tls, "{what}: {error}");
    assert!(matches!(gateway.list().await.unwrap()[0].state, ProxyState::Failed { .. }), "{what}");
    assert!(guest.agent.created.lock().unwrap().is_empty(), "{what}: nothing was asked of it");
    error.to_string()
}

#[tokio::test]
async fn guests_with_a_bad_certificate_are_refused_with_the_cause() {
    let (ours, others, client) = (Authority::new(), Authority::new(), client());
    let profile = TlsProfile::default();
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    let cases: [(&str, Pair, &str); 6] = [
        ("a guest of another sandbox, by its CA", others.sign(|_| {}), "unknown issuer"),
        (
            "a guest of another sandbox, by its name",
            ours.sign(|params| {
                params.subject_alt_names =
                    vec![rcgen::SanType::DnsName("podvm-other-89abcdef".try_into().unwrap())];
            }),
            "wrong name",
        ),
        (
            "an expired certificate",
            ours.sign(|params| (params.not_before, params.not_after) = (year(2001), year(2002))),
            "expired",
        ),
        (
            "a certificate of the future",
            ours.sign(|params| (params.not_before, params.not_after) = (year(2090), year(2091))),
            "not yet valid",
        ),
        (
            "a certificate for clients",
            ours.sign(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "wrong purpose",
        ),
        (
            "the node's own certificate",
            (client.0.clone(), client.1.clone()),
            // It is another's before it is anything else.
            "invalid peer certificate",
        ),
    ];
    for (what, server, cause) in cases {
        let text = refusal(what, acceptor(&server, &client, &profile), spec(&ours, &client)).await;
        assert!(text.contains(cause) && text.contains(NAME), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_guest_that_refuses_us_is_believed_and_the_cause_is_told() {
    let (ours, us, another) = (Authority::new(), client(), client());
    let server = ours.sign(|_| {});
    let text = refusal(
        "the certificate of another node",
        acceptor(&server, &another, &TlsProfile::default()),
        spec(&ours, &us),
    )
    .await;
    assert!(text.contains("unknown issuer") && text.contains("alert"), "{text}");
}

#[tokio::test]
async fn a_guest_below_the_least_version_is_refused() {
    let (ours, client) = (Authority::new(), client());
    let (cert, key) = ours.sign(|_| {});
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let strict = spec(&ours, &client).with_profile("VersionTLS13", Vec::new());
    let text = refusal("TLS 1.2", Arc::clone(&config).into(), strict).await;
    assert!(text.contains("no common version or cipher suite") && text.contains("TLS_MIN_VERSION"), "{text}");

    // A suite that this guest, whose key is of ECDSA, has no certificate for.
    let suites = vec!["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned()];
    let narrow = spec(&ours, &client).with_profile("VersionTLS12", suites);
    let text = refusal("a suite that does not fit", config.into(), narrow).await;
    assert!(text.contains("no common version or cipher suite"), "{text}");
}

#[tokio::test]
async fn a_listener_without_tls_is_never_taken_for_a_guest() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let guest = Guest::start(None).await;
    let tls = spec(&Authority::new(), &client());
    let spec = pods.spec("s1", guest.address).with_tls(tls);
    gateway.register(spec.with_connect_timeout(std::time::Duration::from_secs(2))).await.unwrap();
    let error = within(gateway.wait_ready("s1", CancellationToken::new())).await.unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
    assert!(guest.agent.created.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_renewed_identity_is_shown_from_the_next_connection_on() {
    let (old, new, pods, gateway) = (Pki::new(Valid::Now), Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let guest = Guest::start(Some(old.acceptor())).await;
    gateway.register(pods.spec("s1", guest.address).with_tls(old.spec())).await.unwrap();
    let shim = pods.shim("s1").await;
    echo(&shim, "with the old one").await;

    gateway.register(pods.spec("s1", guest.address).with_tls(new.spec())).await.unwrap();
    echo(&shim, "over the connection that stands").await;
    // The guest's certificates were exchanged too, and then the link broke.
    let address = guest.address;
    drop(guest);
    wait_for("the port to be free", || std::net::TcpListener::bind(address).is_ok()).await;
    let guest = Guest::listen(address, Some(new.acceptor())).await;
    echo(&shim, "with the new one").await;
    let connected = || guest.accepted.load(Ordering::SeqCst) >= 1;
    wait_for("the guest to be dialled again", connected).await;
    // The same again is the registration that stands.
    gateway.register(pods.spec("s1", address).with_tls(new.spec())).await.unwrap();
}

#[tokio::test]
async fn an_identity_for_a_guest_of_another_name_is_a_conflict() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let guest = Guest::start(Some(pki.acceptor())).await;
    let spec = pods.spec("s1", guest.address);
    gateway.register(spec.clone().with_tls(pki.spec())).await.unwrap();
    let mut another = pki.spec();
    another.server_name = "podvm-other-89abcdef".into();
    let mut broken = pki.spec();
    broken.cert_pem = "nothing".into();
    for (tls, kind) in [
        (Some(another), GatewayErrorKind::Conflict),
        (None, GatewayErrorKind::Conflict),
        (Some(broken), GatewayErrorKind::Invalid),
    ] {
        let mut spec = spec.clone();
        spec.tls = tls;
        assert_eq!(gateway.register(spec).await.unwrap_err().kind(), kind);
    }
    echo(&pods.shim("s1").await, "nothing changed").await;
}
