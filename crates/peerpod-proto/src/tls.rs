//! TLS between node and guest: mutual, with certificates for each sandbox.
//!
//! The provider is always aws-lc-rs, named explicitly, and offers X25519MLKEM768 first, as the existing programs
//! do among themselves.

mod explain;
mod files;

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion, version,
};

pub use explain::{explain, explain_io};
pub use files::Rotating;
pub use tokio_rustls::{TlsAcceptor, TlsConnector};

static ONLY_TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];
static BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// Suites that Go still offers and this library does not: they are open to attacks on their padding.
const NOT_OFFERED: [&str; 4] = [
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
];

/// What may go wrong on the way to a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The profile names a version that is not offered.
    #[error(
        "unsupported TLS version {value:?} (supported: VersionTLS12, VersionTLS13, set: TLS_MIN_VERSION)"
    )]
    Version {
        /// The value as it was given.
        value: String,
    },
    /// The profile names a cipher suite that does not exist here.
    #[error("unsupported TLS cipher suite {value:?} (supported: {supported}, set: TLS_CIPHER_SUITES)")]
    CipherSuite {
        /// The value as it was given.
        value: String,
        /// The names that are known.
        supported: String,
    },
    /// Cipher suites can be chosen for TLS 1.2 only.
    #[error(
        "TLS_CIPHER_SUITES cannot be set when TLS_MIN_VERSION is VersionTLS13 (cipher suites of TLS 1.3 are fixed)"
    )]
    CipherSuitesWithTls13,
    /// A certificate or key is no PEM, or holds none.
    #[error("{what} is not usable as PEM: {reason}")]
    Pem {
        /// What it is for.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The parts do not make a configuration.
    #[error("{what} cannot be used: {reason}")]
    Config {
        /// What it is for.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// The oldest version that is accepted, and the cipher suites of TLS 1.2.
///
/// The default accepts TLS 1.2 and 1.3 with all suites that are considered safe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsProfile {
    tls13_only: bool,
    /// Suites of TLS 1.2 in the order given; all when empty.
    suites: Vec<rustls::CipherSuite>,
}

impl TlsProfile {
    /// Parses the options `TLS_MIN_VERSION` (`VersionTLS12`, `VersionTLS13` or empty) and `TLS_CIPHER_SUITES`
    /// (names as Go and IANA write them; surrounding blanks and empty names do not matter, and the suites of TLS
    /// 1.3 are always offered).
    ///
    /// # Errors
    ///
    /// When a version or a suite is not offered, and when suites are named for TLS 1.3, which has a fixed set.
    pub fn parse<S: AsRef<str>>(min_version: &str, cipher_suites: &[S]) -> Result<Self, TlsError> {
        let tls13_only = match min_version.trim() {
            "" | "VersionTLS12" => false,
            "VersionTLS13" => true,
            value => return Err(TlsError::Version { value: value.to_owned() }),
        };
        let (mut suites, mut fixed, mut refused) = (Vec::new(), false, None);
        for name in cipher_suites.iter().map(|name| name.as_ref().trim()).filter(|name| !name.is_empty()) {
            if tls13_only {
                return Err(TlsError::CipherSuitesWithTls13);
            }
            match suite(name) {
                Some(suite) if suite.tls13().is_some() => fixed = true,
                Some(suite) => suites.push(suite.suite()),
                None if NOT_OFFERED.contains(&name) => refused = Some(name),
                None => return Err(cipher_suite_error(name)),
            }
        }
        match refused {
            Some(name) if suites.is_empty() => return Err(cipher_suite_error(name)),
            Some(name) => {
                tracing::warn!(name, "a TLS cipher suite is left out: it is no longer considered safe")
            }
            None => {}
        }
        // Who names suites of TLS 1.3 only leaves none for 1.2.
        let tls13_only = tls13_only || (fixed && suites.is_empty());
        Ok(Self { tls13_only, suites })
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        if self.tls13_only { ONLY_TLS13 } else { BOTH }
    }

    fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = provider();
        if !self.suites.is_empty() {
            let fixed = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some());
            let chosen = self.suites.iter().filter_map(|name| find(&provider, *name));
            provider.cipher_suites = fixed.copied().chain(chosen).collect();
        }
        Arc::new(provider)
    }
}

/// The cryptography all our programs use.
pub fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// Draws a first random number, which costs tens of milliseconds once in every process. Call it at the start,
/// off the path of the first sandbox.
pub fn warm_up() {
    let mut byte = [0];
    // A random source that does not work shows again, with an error, at the first handshake.
    if provider().secure_random.fill(&mut byte).is_err() {
        tracing::warn!("the random source gives nothing");
    }
}

/// Makes the configuration of the node's end: shows its certificate and accepts servers of one CA.
///
/// # Errors
///
/// When a part is no PEM, or the key does not fit.
pub fn client_config(
    ca_pem: &[u8],
    cert_pem: &[u8],
    key_pem: &[u8],
    profile: &TlsProfile,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = profile.provider();
    let roots = Arc::new(roots(ca_pem, "CA certificate for servers")?);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| config_error("CA certificate for servers", error))?;
    let (chain, key) = identity(cert_pem, key_pem, "client certificate", "client key")?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(profile.versions())
        .map_err(|error| config_error("TLS profile", error))?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(|error| config_error("client certificate and key", error))?;
    // A sandbox has one connection, so a session to resume would never be used.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Makes the configuration of the guest's end: requires a client certificate that `client_ca_pem` vouches for.
///
/// The existing programs give their self-signed client certificate itself as the CA, although it is none; it is
/// accepted as such.
///
/// Every connection is a full handshake: no session is kept and no ticket given, so that each one shows a certificate
/// that is good at that moment, and nothing stolen can be replayed. Data before the handshake is not taken.
///
/// # Errors
///
/// When a part is no PEM, or the key does not fit.
pub fn server_config(
    cert_pem: &[u8],
    key_pem: &[u8],
    client_ca_pem: &[u8],
    profile: &TlsProfile,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = profile.provider();
    let roots = Arc::new(roots(client_ca_pem, "CA certificate for clients")?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| config_error("CA certificate for clients", error))?;
    let (chain, key) = identity(cert_pem, key_pem, "server certificate", "server key")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(profile.versions())
        .map_err(|error| config_error("TLS profile", error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| config_error("server certificate and key", error))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn roots(pem: &[u8], what: &'static str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, what)? {
        roots.add(certificate).map_err(|error| config_error(what, error))?;
    }
    Ok(roots)
}

fn identity(
    cert_pem: &[u8],
    key_pem: &[u8],
    cert: &'static str,
    key: &'static str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(cert_pem, cert)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|error| TlsError::Pem { what: key, reason: error.to_string() })?;
    Ok((chain, key))
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem_error = |reason: String| TlsError::Pem { what, reason };
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem_error(error.to_string()))?;
    if certificates.is_empty() {
        return Err(pem_error("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

fn config_error(what: &'static str, error: impl std::fmt::Display) -> TlsError {
    TlsError::Config { what, reason: error.to_string() }
}

/// The suite of a name. Go's names are IANA's, except that two lack their hash.
fn suite(name: &str) -> Option<SupportedCipherSuite> {
    let iana = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    };
    provider().cipher_suites.into_iter().find(|suite| iana_name(suite).as_deref() == Some(iana))
}

/// The name of a suite as IANA writes it; rustls shortens those of TLS 1.3.
fn iana_name(suite: &SupportedCipherSuite) -> Option<String> {
    Some(suite.suite().as_str()?.replacen("TLS13_", "TLS_", 1))
}

fn cipher_suite_error(value: &str) -> TlsError {
    let supported = provider().cipher_suites.iter().filter_map(iana_name).collect::<Vec<_>>().join(", ");
    TlsError::CipherSuite { value: value.to_owned(), supported }
}

fn find(provider: &CryptoProvider, name: rustls::CipherSuite) -> Option<SupportedCipherSuite> {
    provider.cipher_suites.iter().find(|suite| suite.suite() == name).copied()
}

#[cfg(test)]
mod tests;
