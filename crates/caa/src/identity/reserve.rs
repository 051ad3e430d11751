//! Keys and certificates that are ready before a sandbox asks for them.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use super::{CUSTOM_SERVER_NAME, CustomTls, Identity, SERVER_ORGANIZATION, key, params, self_signed_client};

/// What was made longer ago, by the clock of the certificates, is not used: that clock may have been set since.
const FRESH: Duration = Duration::from_secs(3600);

/// All of an identity that does not depend on its sandbox.
struct Prepared {
    made: SystemTime,
    client: (String, String),
    ca: String,
    issuer: Issuer<'static, KeyPair>,
    server_key: KeyPair,
}

impl Prepared {
    fn new() -> Result<Self> {
        let made = SystemTime::now();
        let client = self_signed_client()?;
        let ca_key = key()?;
        let mut ca: CertificateParams =
            params(SERVER_ORGANIZATION, None, ExtendedKeyUsagePurpose::ServerAuth)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).context("sign the CA of the sandbox")?.pem();
        Ok(Self { made, client, ca: ca_pem, issuer: Issuer::new(ca, ca_key), server_key: key()? })
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        now.duration_since(self.made).is_ok_and(|age| age < FRESH)
    }

    fn finish(self, instance_name: &str, custom: &CustomTls) -> Result<Identity> {
        let (client_cert, client_key) = custom.client.clone().unwrap_or(self.client);
        if let Some(ca) = &custom.ca {
            return Ok(Identity {
                ca: ca.clone(),
                client_cert,
                client_key,
                server_cert: None,
                server_key: None,
                client_ca: None,
                server_name: CUSTOM_SERVER_NAME.into(),
            });
        }
        // A sandbox id may leave a dash at the end of the name, which a DNS name cannot have. Both the certificate and the
        // name to check come from here, so the shorter one serves.
        let server_name = instance_name.trim_end_matches('-');
        let mut server = params(SERVER_ORGANIZATION, Some(server_name), ExtendedKeyUsagePurpose::ServerAuth)?;
        server.is_ca = IsCa::ExplicitNoCa;
        server.use_authority_key_identifier_extension = true;
        server.subject_alt_names =
            vec![SanType::DnsName(server_name.try_into().context("the instance name is no DNS name")?)];
        let signed = server.signed_by(&self.server_key, &self.issuer);
        let server_cert = signed.context("sign the guest's certificate")?.pem();
        Ok(Identity {
            ca: self.ca,
            client_ca: Some(client_cert.clone()),
            client_cert,
            client_key,
            server_cert: Some(server_cert),
            server_key: Some(self.server_key.serialize_pem()),
            server_name: server_name.to_owned(),
        })
    }
}

impl Identity {
    /// Makes the identity of the sandbox whose instance is called `instance_name`.
    ///
    /// # Errors
    ///
    /// When a key or certificate cannot be made.
    pub fn generate(instance_name: &str, custom: &CustomTls) -> Result<Self> {
        Prepared::new()?.finish(instance_name, custom)
    }
}

/// Has keys and certificates of the next sandbox ready, made by a thread of its own while nobody waits.
///
/// The first random number of a process takes the cryptographic library tens of milliseconds; that is over, too, when
/// the first sandbox comes.
pub struct Reserve {
    ready: Mutex<Receiver<Prepared>>,
}

impl Reserve {
    /// Begins to make the first.
    pub fn new() -> Self {
        let (give, ready) = sync_channel(1);
        let make = move || {
            // The thread ends with the reserve. It ends, too, when nothing can be made: who asks makes its own then,
            // and gets the error.
            while let Ok(prepared) = Prepared::new() {
                if give.send(prepared).is_err() {
                    break;
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("identities".into()).spawn(make) {
            tracing::warn!(%error, "no thread makes certificates ahead: each start makes its own");
        }
        Self { ready: Mutex::new(ready) }
    }

    /// As [`Identity::generate`], from what is ready; made at once when nothing is.
    ///
    /// # Errors
    ///
    /// As [`Identity::generate`].
    pub fn identity(&self, instance_name: &str, custom: &CustomTls) -> Result<Identity> {
        match self.take(SystemTime::now()) {
            Some(prepared) => prepared.finish(instance_name, custom),
            None => Identity::generate(instance_name, custom),
        }
    }

    fn take(&self, now: SystemTime) -> Option<Prepared> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.try_iter().find(|prepared| prepared.is_fresh(now))
    }
}

impl Default for Reserve {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Reserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserve").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until one is ready, and takes it.
    fn ready(reserve: &Reserve) -> Prepared {
        reserve.ready.lock().unwrap().recv().unwrap()
    }

    #[test]
    fn what_is_ready_is_given_once_and_made_anew() {
        let reserve = Reserve::new();
        let (first, second) = (ready(&reserve), ready(&reserve));
        assert_ne!(first.ca, second.ca);
        assert_ne!(first.client, second.client);
        let identity = first.finish("podvm-a-b", &CustomTls::default()).unwrap();
        assert_eq!(identity.server_name, "podvm-a-b");
        // A burst that empties it is served all the same.
        let many: Vec<Identity> =
            (0..8).map(|_| reserve.identity("podvm-x-y", &CustomTls::default()).unwrap()).collect();
        let different: std::collections::BTreeSet<&str> = many.iter().map(|made| made.ca.as_str()).collect();
        assert_eq!(different.len(), many.len());
    }

    #[test]
    fn what_was_made_before_the_clock_was_set_is_not_used() {
        let prepared = Prepared::new().unwrap();
        assert!(prepared.is_fresh(prepared.made + Duration::from_secs(60)));
        assert!(!prepared.is_fresh(prepared.made + FRESH));
        assert!(!prepared.is_fresh(prepared.made - Duration::from_secs(60)));
        let reserve = Reserve::new();
        // Waits until there is something that could be taken wrongly.
        drop(ready(&reserve));
        assert!(reserve.take(SystemTime::now() + 2 * FRESH).is_none());
    }
}
