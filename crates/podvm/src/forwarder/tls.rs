//! The TLS of the forwarder: from `apf.json`, or from files that are followed when they are replaced.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use peerpod_proto::tls::{self, Rotating, TlsAcceptor, TlsProfile};
use zeroize::Zeroizing;

use super::config::{ApfConfig, Options};
use crate::paths::Paths;

/// Makes the TLS of this server; `None` when TLS is switched off.
///
/// # Errors
///
/// Without a CA for clients: the agent would obey everyone who reaches the port. Also for incomplete or unreadable
/// certificates, and for a profile that is not offered.
pub fn server_tls(options: &Options, config: &ApfConfig, root: &Paths) -> Result<Option<ServerTls>> {
    if options.disable_tls {
        if let Some(device) = confidential_device(root) {
            bail!("{} says that this VM is confidential: -disable-tls is refused", device.display());
        }
        return Ok(None);
    }
    let mut paths = Vec::new();
    let mut file = |path: &Path| {
        paths.push(path.to_owned());
        Source::File(paths.len() - 1)
    };
    let text = |pem: &str| Source::Text(pem.as_bytes().to_vec().into());
    let ca = match (&options.ca_cert_file, &config.tls_client_ca) {
        (Some(path), _) => file(path),
        (None, Some(pem)) if !pem.trim().is_empty() => text(pem),
        _ => bail!(
            "no CA certificate for clients: anyone could drive the agent (set -ca-cert-file, or tls-client-ca in {})",
            options.config.display()
        ),
    };
    let (cert, key) = match (&options.cert_file, &options.cert_key) {
        (Some(cert), Some(key)) => (file(cert), file(key)),
        (None, None) => match (&config.tls_server_cert, &config.tls_server_key) {
            (Some(cert), Some(key)) => (text(cert), text(key)),
            _ => bail!(
                "no server certificate (set -cert-file and -cert-key, or tls-server-cert and tls-server-key in {})",
                options.config.display()
            ),
        },
        _ => bail!("-cert-file and -cert-key must be set together"),
    };
    let suites = config.tls_cipher_suites.as_deref().unwrap_or_default();
    let profile = TlsProfile::parse(config.tls_min_version.as_deref().unwrap_or_default(), suites)?;
    let parts = Parts { ca, cert, key, profile };
    let files = Rotating::new(paths, |contents| parts.acceptor(contents))
        .context("certificates (set -ca-cert-file, -cert-file and -cert-key)")?;
    Ok(Some(ServerTls { files, parts }))
}

/// The TLS of this server, as its certificates are at the moment.
pub struct ServerTls {
    files: Rotating<TlsAcceptor>,
    parts: Parts,
}

impl ServerTls {
    /// What shakes hands with the next client. Files that were replaced since are taken up here; while they cannot be
    /// used, the earlier ones are.
    pub fn acceptor(&self) -> TlsAcceptor {
        let (acceptor, _) = self.files.current(|contents| self.parts.acceptor(contents));
        TlsAcceptor::clone(&acceptor)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// Where each part comes from.
struct Parts {
    ca: Source,
    cert: Source,
    key: Source,
    profile: TlsProfile,
}

enum Source {
    /// The content of the file of that number.
    File(usize),
    Text(Zeroizing<Vec<u8>>),
}

impl Parts {
    fn acceptor(&self, contents: &[Zeroizing<Vec<u8>>]) -> Result<TlsAcceptor> {
        let of = |source: &Source| match source {
            Source::File(number) => contents[*number].clone(),
            Source::Text(text) => text.clone(),
        };
        Ok(tls::server_config(&of(&self.cert), &of(&self.key), &of(&self.ca), &self.profile)?.into())
    }
}

/// A device that only confidential guests have. Guests whose hypervisor hides it are not recognised.
fn confidential_device(root: &Paths) -> Option<PathBuf> {
    ["/dev/sev-guest", "/dev/tdx_guest", "/dev/nsm"]
        .map(|path| root.at(path))
        .into_iter()
        .find(|path| path.exists())
}
