//! The operator's certificates, in files that are replaced while the daemon runs.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use peerpod_proto::tls::{Rotating, TlsProfile, client_config};
use zeroize::Zeroizing;

use super::self_signed_client;

/// Certificates that the operator gave, as they were when they were read.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CustomTls {
    /// `--ca-cert-file`: the guests' own certificates are signed by it.
    pub ca: Option<String>,
    /// `--cert-file` and `--cert-key`.
    pub client: Option<(String, String)>,
}

impl std::fmt::Debug for CustomTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CustomTls")
            .field("ca", &self.ca.is_some())
            .field("client", &self.client.is_some())
            .finish()
    }
}

/// The files of the operator's certificates, where there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomFiles {
    /// `--ca-cert-file`.
    pub ca: Option<PathBuf>,
    /// `--cert-file` and `--cert-key`.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl CustomFiles {
    fn paths(&self) -> Vec<PathBuf> {
        let client = self.client.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(client).cloned().collect()
    }

    /// Makes certificates of what the files of [`CustomFiles::paths`] hold.
    fn make<C: AsRef<[u8]>>(&self, contents: impl IntoIterator<Item = C>) -> Result<CustomTls> {
        let mut texts = contents.into_iter().zip(self.paths()).map(|(content, path)| {
            let text =
                String::from_utf8(content.as_ref().to_vec()).ok().filter(|text| text.contains("-----BEGIN "));
            text.with_context(|| format!("{} holds no PEM text", path.display()))
        });
        let mut next = || texts.next().context("a file is missing").flatten();
        let ca = self.ca.is_some().then(&mut next).transpose()?;
        let client = match &self.client {
            Some(_) => Some((next()?, next()?)),
            None => None,
        };
        let made = CustomTls { ca, client };
        made.check()?;
        Ok(made)
    }
}

impl CustomTls {
    /// Finds parts that cannot be used, and a key that is another certificate's.
    ///
    /// # Errors
    ///
    /// What is wrong, naming the part.
    pub fn check(&self) -> Result<()> {
        let made;
        let (cert, key) = match &self.client {
            Some(pair) => pair,
            None if self.ca.is_none() => return Ok(()),
            None => {
                made = self_signed_client()?;
                &made
            }
        };
        let ca = self.ca.as_ref().unwrap_or(cert);
        client_config(ca.as_bytes(), cert.as_bytes(), key.as_bytes(), &TlsProfile::default())?;
        Ok(())
    }
}

/// The operator's certificates at every moment: the files are followed when they are replaced.
pub struct Certificates {
    files: CustomFiles,
    kept: CustomTls,
    rotating: Mutex<Option<Rotating<CustomTls>>>,
}

impl Certificates {
    /// Begins with what was read from the files at the start.
    pub fn new(files: CustomFiles, kept: CustomTls) -> Self {
        Self { files, kept, rotating: Mutex::new(None) }
    }

    /// Whether the operator gave any.
    pub fn are_given(&self) -> bool {
        self.files != CustomFiles::default()
    }

    /// The certificates of the moment; the earlier ones while the files hold what cannot be used, which is told.
    pub fn current(&self) -> CustomTls {
        if !self.are_given() {
            return self.kept.clone();
        }
        let make = |contents: &[Zeroizing<Vec<u8>>]| self.files.make(contents);
        let mut rotating = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        if rotating.is_none() {
            match Rotating::new(self.files.paths(), make) {
                Ok(made) => *rotating = Some(made),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the certificates cannot be read any more, and those of the start stay in use"
                    );
                    return self.kept.clone();
                }
            }
        }
        match &*rotating {
            Some(rotating) => CustomTls::clone(&rotating.current(make).0),
            None => self.kept.clone(),
        }
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pair() -> (String, String) {
        self_signed_client().unwrap()
    }

    #[test]
    fn replaced_files_are_used_and_a_pair_that_does_not_fit_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |(cert, key): &(String, String)| {
            fs::write(at("tls.crt"), cert).unwrap();
            fs::write(at("tls.key"), key).unwrap();
        };
        let (first, second) = (pair(), pair());
        write(&first);
        let files = CustomFiles { ca: None, client: Some((at("tls.crt"), at("tls.key"))) };
        let kept = CustomTls { ca: None, client: Some(first.clone()) };
        let certificates = Certificates::new(files, kept.clone());
        assert_eq!(certificates.current(), kept);
        // Half of a replacement.
        fs::write(at("tls.crt"), &second.0).unwrap();
        assert_eq!(certificates.current(), kept);
        fs::write(at("tls.key"), &second.1).unwrap();
        assert_eq!(certificates.current().client, Some(second.clone()));
        fs::remove_file(at("tls.key")).unwrap();
        assert_eq!(certificates.current().client, Some(second));
        write(&first);
        assert_eq!(certificates.current(), kept);
    }

    #[test]
    fn files_that_are_gone_right_after_the_start_leave_what_was_read() {
        let kept = CustomTls { ca: Some(pair().0), client: None };
        let files = CustomFiles { ca: Some("/nonexistent/ca.crt".into()), client: None };
        assert_eq!(Certificates::new(files, kept.clone()).current(), kept);
    }

    #[test]
    fn without_files_there_is_nothing_to_follow() {
        let certificates = Certificates::new(CustomFiles::default(), CustomTls::default());
        assert!(!certificates.are_given());
        assert_eq!(certificates.current(), CustomTls::default());
    }
}
