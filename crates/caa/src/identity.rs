//! TLS identities: a CA, a server and a client certificate for each sandbox.
//!
//! The certificates look as the existing programs make them, because either end may be one of theirs: ECDSA P-256,
//! `certSign` on every one, a client leaf that signs itself and that the guest pins as its client CA.

mod files;
mod reserve;

use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use serde::{Deserialize, Serialize};

pub use files::{Certificates, CustomFiles, CustomTls};
pub use reserve::Reserve;

const CLIENT_ORGANIZATION: &str = "cloud-api-adaptor";
const SERVER_ORGANIZATION: &str = "agent-protocol-forwarder";
/// The server name of guests whose certificate the operator gave.
pub const CUSTOM_SERVER_NAME: &str = "podvm-server";
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
const VALIDITY: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// Both ends' keys and certificates of one sandbox, PEM text. It is stored, so that a restarted daemon still fits.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// CA that the node trusts.
    pub ca: String,
    /// Certificate that the node shows.
    pub client_cert: String,
    /// Its key.
    pub client_key: String,
    /// Certificate of the guest, `None` when the operator's image brings its own.
    pub server_cert: Option<String>,
    /// Its key.
    pub server_key: Option<String>,
    /// What the guest trusts, `None` when the operator's image brings its own.
    pub client_ca: Option<String>,
    /// Name that the guest's certificate must carry.
    pub server_name: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Identity {
    /// Takes up the operator's certificates of the moment; whether that changed anything.
    ///
    /// Only where the guest's own come from the operator, too. Another guest was told at its start which certificate
    /// to expect, so it keeps that, whatever becomes of the files.
    pub fn renew(&mut self, custom: &CustomTls) -> bool {
        let Some(ca) = &custom.ca else { return false };
        if self.client_ca.is_some() || self.server_cert.is_some() {
            return false;
        }
        let mut renewed = self.clone();
        renewed.ca.clone_from(ca);
        if let Some((cert, key)) = &custom.client {
            renewed.client_cert.clone_from(cert);
            renewed.client_key.clone_from(key);
        }
        let parts = |id: &Self| (id.ca.clone(), id.client_cert.clone(), id.client_key.clone());
        let changed = parts(&renewed) != parts(self);
        *self = renewed;
        changed
    }
}

fn self_signed_client() -> Result<(String, String)> {
    let key = key()?;
    let mut client = params(CLIENT_ORGANIZATION, None, ExtendedKeyUsagePurpose::ClientAuth)?;
    client.is_ca = IsCa::ExplicitNoCa;
    Ok((client.self_signed(&key).context("sign the node's certificate")?.pem(), key.serialize_pem()))
}

fn key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")
}

fn params(
    organization: &str,
    common_name: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organization);
    if let Some(common_name) = common_name {
        name.push(DnType::CommonName, common_name);
    }
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![usage];
    // 127 random bits: positive in DER without a leading zero byte.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x01;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = std::time::SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use x509_parser::{pem::parse_x509_pem, prelude::*};

    use super::*;

    fn read(pem: &str, check: impl FnOnce(&X509Certificate<'_>)) {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        check(&pem.parse_x509().unwrap());
    }

    #[test]
    fn certificates_look_as_the_existing_programs_make_them() {
        let identity = Identity::generate("podvm-web-01234567", &CustomTls::default()).unwrap();
        for (pem, subject, is_ca) in [
            (&identity.ca, "O=agent-protocol-forwarder", true),
            (&identity.client_cert, "O=cloud-api-adaptor", false),
            (
                identity.server_cert.as_ref().unwrap(),
                "O=agent-protocol-forwarder, CN=podvm-web-01234567",
                false,
            ),
        ] {
            read(pem, |cert| {
                assert_eq!(cert.subject().to_string(), subject);
                assert_eq!(cert.is_ca(), is_ca);
                assert!(cert.basic_constraints().unwrap().unwrap().critical);
                let usage = cert.key_usage().unwrap().unwrap().value;
                assert!(usage.digital_signature() && usage.key_cert_sign());
                let extended = cert.extended_key_usage().unwrap().unwrap().value;
                assert_eq!(extended.client_auth, subject == "O=cloud-api-adaptor");
                let (from, to) =
                    (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
                assert_eq!(to - from, (VALIDITY + CLOCK_SKEW).as_secs().cast_signed());
            });
        }
        assert_eq!(identity.client_ca.as_deref(), Some(identity.client_cert.as_str()));
        read(identity.server_cert.as_ref().unwrap(), |cert| {
            let names = cert.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names, [GeneralName::DNSName("podvm-web-01234567")]);
        });
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_name_that_ends_in_a_dash_is_made_a_dns_name() {
        let identity = Identity::generate("podvm-web-sandbox-", &CustomTls::default()).unwrap();
        assert_eq!(identity.server_name, "podvm-web-sandbox");
    }

    #[test]
    fn only_a_guest_with_certificates_of_the_operator_follows_them() {
        let (old, new) = (Identity::generate("podvm-a-b", &CustomTls::default()).unwrap(), "CA 2".to_owned());
        let custom = |ca: &str| CustomTls {
            ca: Some(ca.into()),
            client: Some((old.client_cert.clone(), old.client_key.clone())),
        };
        let mut theirs = Identity::generate("podvm-x-y", &custom("CA 1")).unwrap();
        assert!(!theirs.renew(&custom("CA 1")));
        assert!(theirs.renew(&custom(&new)));
        assert_eq!((theirs.ca.as_str(), theirs.server_name.as_str()), ("CA 2", CUSTOM_SERVER_NAME));
        // Without a CA in the files, and for a guest that trusts the certificate it was given at its start.
        assert!(!theirs.renew(&CustomTls::default()));
        let mut own = old.clone();
        assert!(!own.renew(&custom(&new)));
        assert_eq!(own.ca, old.ca);
    }

    #[test]
    fn a_ca_of_the_operator_sends_the_guest_no_certificates() {
        let custom = CustomTls { ca: Some("CA".into()), client: None };
        let identity = Identity::generate("podvm-x-y", &custom).unwrap();
        assert_eq!(identity.server_name, CUSTOM_SERVER_NAME);
        assert!(identity.server_cert.is_none() && identity.client_ca.is_none());
    }
}
