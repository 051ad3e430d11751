use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use rustls::{NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const NAME: &str = "podvm-nginx-7c6d-01234567";

/// The three certificates as the existing programs make them.
struct Pki {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn params(organization: &str, purpose: ExtendedKeyUsagePurpose, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![purpose];
    params.is_ca = is_ca;
    params
}

fn pki() -> Pki {
    let ca_key = KeyPair::generate().unwrap();
    let ca = params(
        "agent-protocol-forwarder",
        ExtendedKeyUsagePurpose::ServerAuth,
        IsCa::Ca(BasicConstraints::Unconstrained),
    );
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);

    let server_key = KeyPair::generate().unwrap();
    let mut server =
        params("agent-protocol-forwarder", ExtendedKeyUsagePurpose::ServerAuth, IsCa::ExplicitNoCa);
    server.distinguished_name.push(DnType::CommonName, NAME);
    server.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into().unwrap())];
    server.use_authority_key_identifier_extension = true;
    let server_pem = server.signed_by(&server_key, &issuer).unwrap().pem();

    let client_key = KeyPair::generate().unwrap();
    let client = params("cloud-api-adaptor", ExtendedKeyUsagePurpose::ClientAuth, IsCa::ExplicitNoCa);
    let client_pem = client.self_signed(&client_key).unwrap().pem();
    Pki {
        ca: ca_pem,
        server: (server_pem, server_key.serialize_pem()),
        client: (client_pem, client_key.serialize_pem()),
    }
}

fn server(pki: &Pki, profile: &TlsProfile) -> TlsAcceptor {
    let (cert, key) = &pki.server;
    server_config(cert.as_bytes(), key.as_bytes(), pki.client.0.as_bytes(), profile).unwrap().into()
}

fn client(ca: &str, identity: &(String, String), profile: &TlsProfile) -> TlsConnector {
    let (cert, key) = identity;
    client_config(ca.as_bytes(), cert.as_bytes(), key.as_bytes(), profile).unwrap().into()
}

/// A client that knows TLS 1.2 only.
fn old_client(pki: &Pki) -> TlsConnector {
    let (cert, key) = &pki.client;
    let (chain, key) = identity(cert.as_bytes(), key.as_bytes(), "certificate", "key").unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_root_certificates(roots(pki.ca.as_bytes(), "CA").unwrap())
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config).into()
}

struct Outcome {
    version: ProtocolVersion,
    group: NamedGroup,
    suite: String,
}

/// Shakes hands over a pipe and sends one byte each way, so that a late refusal shows too.
async fn handshake(acceptor: TlsAcceptor, connector: TlsConnector, name: &str) -> Result<Outcome, String> {
    let (ours, theirs) = tokio::io::duplex(16 << 10);
    let serving = tokio::spawn(async move {
        let mut stream = acceptor.accept(theirs).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let calling = async {
        let mut stream = connector.connect(name, ours).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        assert_eq!(stream.read_u8().await?, 7);
        let session = stream.get_ref().1;
        Ok::<_, std::io::Error>(Outcome {
            version: session.protocol_version().unwrap(),
            group: session.negotiated_key_exchange_group().unwrap().name(),
            suite: session.negotiated_cipher_suite().unwrap().suite().as_str().unwrap().to_owned(),
        })
    };
    let outcome = tokio::time::timeout(Duration::from_secs(20), calling).await.expect("the handshake ends");
    serving.abort();
    outcome.map_err(|error| crate::chain(&error))
}

fn has_the_shape_of_existing_clients(pem: &str) -> bool {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    let usage = certificate.key_usage().unwrap().unwrap();
    constraints.critical
        && !constraints.value.ca
        && usage.critical
        && usage.value.digital_signature()
        && usage.value.key_cert_sign()
        && certificate.extended_key_usage().unwrap().unwrap().value.client_auth
        && certificate.issuer() == certificate.subject()
}

#[tokio::test]
async fn a_self_signed_client_leaf_is_accepted_as_its_own_ca() {
    let pki = pki();
    assert!(
        has_the_shape_of_existing_clients(&pki.client.0),
        "the test certificate has the shape of the existing ones"
    );
    let profile = TlsProfile::default();
    let outcome =
        handshake(server(&pki, &profile), client(&pki.ca, &pki.client, &profile), NAME).await.unwrap();
    assert_eq!(outcome.version, ProtocolVersion::TLSv1_3);
    assert_eq!(outcome.group, NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn another_client_is_refused_although_its_subject_is_the_same() {
    let (ours, other) = (pki(), pki());
    let profile = TlsProfile::default();
    let result = handshake(server(&ours, &profile), client(&ours.ca, &other.client, &profile), NAME).await;
    assert!(result.is_err());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let pki = pki();
    let profile = TlsProfile::default();
    let roots = roots(pki.ca.as_bytes(), "CA").unwrap();
    let config = ClientConfig::builder_with_provider(profile.provider())
        .with_protocol_versions(profile.versions())
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(handshake(server(&pki, &profile), Arc::new(config).into(), NAME).await.is_err());
}

#[tokio::test]
async fn a_server_of_another_ca_or_name_is_refused() {
    let (pki, other) = (pki(), pki());
    let profile = TlsProfile::default();
    let wrong_ca = handshake(server(&pki, &profile), client(&other.ca, &pki.client, &profile), NAME).await;
    assert!(wrong_ca.is_err());
    let wrong_name =
        handshake(server(&pki, &profile), client(&pki.ca, &pki.client, &profile), "podvm-other").await;
    assert!(wrong_name.err().unwrap().contains("podvm-other"));
}

#[tokio::test]
async fn the_chosen_suite_is_used_with_tls12() {
    let pki = pki();
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let profile = TlsProfile::parse("VersionTLS12", &[suite]).unwrap();
    let outcome = handshake(server(&pki, &profile), old_client(&pki), NAME).await.unwrap();
    assert_eq!((outcome.version, outcome.suite.as_str()), (ProtocolVersion::TLSv1_2, suite));
}

#[tokio::test]
async fn tls12_is_refused_where_tls13_is_required() {
    let pki = pki();
    let strict = TlsProfile::parse("VersionTLS13", &[""]).unwrap();
    assert!(handshake(server(&pki, &strict), old_client(&pki), NAME).await.is_err());
    let outcome =
        handshake(server(&pki, &strict), client(&pki.ca, &pki.client, &strict), NAME).await.unwrap();
    assert_eq!(outcome.version, ProtocolVersion::TLSv1_3);
}

#[test]
fn profiles_name_the_option_to_mend() {
    let none: [&str; 0] = [];
    for old in ["VersionTLS10", "VersionTLS11", "1.3"] {
        let error = TlsProfile::parse(old, &none).unwrap_err().to_string();
        assert!(error.contains(old) && error.contains("TLS_MIN_VERSION"), "{error}");
    }
    let error = TlsProfile::parse("", &["TLS_RSA_WITH_RC4_128_SHA"]).unwrap_err().to_string();
    assert!(error.contains("TLS_RSA_WITH_RC4_128_SHA") && error.contains("TLS_CIPHER_SUITES"), "{error}");
    let suite = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    assert!(matches!(TlsProfile::parse("VersionTLS13", &[suite]), Err(TlsError::CipherSuitesWithTls13)));
    assert_eq!(
        TlsProfile::parse("", &[" TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305 ", ""]).unwrap(),
        TlsProfile::parse("VersionTLS12", &["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]).unwrap()
    );
}

#[test]
fn suites_that_are_not_offered_any_more_are_left_out_of_a_list() {
    let (old, new) = ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    assert_eq!(TlsProfile::parse("", &[old, new]).unwrap(), TlsProfile::parse("", &[new]).unwrap());
    assert!(matches!(TlsProfile::parse("", &[old]), Err(TlsError::CipherSuite { .. })));
}

#[test]
fn suites_of_tls13_alone_leave_tls12_out() {
    let only = TlsProfile::parse("", &["TLS_AES_128_GCM_SHA256"]).unwrap();
    let none: [&str; 0] = [];
    assert_eq!(only, TlsProfile::parse("VersionTLS13", &none).unwrap());
}

#[test]
fn damaged_parts_are_named() {
    let pki = pki();
    let (cert, key) = (pki.client.0.as_bytes(), pki.client.1.as_bytes());
    let profile = TlsProfile::default();
    let error =
        |ca: &[u8], cert: &[u8], key: &[u8]| client_config(ca, cert, key, &profile).unwrap_err().to_string();
    assert!(error(b"", cert, key).contains("CA certificate for servers"));
    assert!(error(pki.ca.as_bytes(), b"x", key).contains("client certificate"));
    assert!(error(pki.ca.as_bytes(), cert, b"x").contains("client key"));
    assert!(error(pki.ca.as_bytes(), cert, pki.server.1.as_bytes()).contains("client certificate and key"));
    assert!(server_config(cert, key, b"", &profile).unwrap_err().to_string().contains("for clients"));
}

#[test]
fn the_post_quantum_group_comes_first() {
    assert_eq!(provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
}
