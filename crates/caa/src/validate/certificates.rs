//! The operator's certificates and their key.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::SystemTime};

use cloud_providers::{Finding, Values};
use x509_parser::{certificate::X509Certificate, pem::Pem};

use super::checks::CERTIFICATES;
use crate::config::DaemonConfig;

/// How long before its end a certificate is warned about, in seconds.
const SOON: i64 = 14 * 24 * 3600;

const CA: (&str, &str) = ("ca-cert-file", "-ca-cert-file or CACERT_FILE");
const CERT: (&str, &str) = ("cert-file", "-cert-file or CERT_FILE");
const KEY: (&str, &str) = ("cert-key", "-cert-key or CERT_KEY");

/// Looks at what the settings did not: validity, use, and who may read the key.
pub(super) fn look(config: &DaemonConfig, values: &Values) -> Vec<Finding> {
    let path = |(flag, _): (&str, &str)| values.optional(flag);
    if [CA, CERT, KEY].into_iter().all(|option| path(option).is_none()) {
        return Vec::new();
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let mut findings = Vec::new();
    if let (Some(path), Some(text)) = (path(CA), &config.custom_tls.ca) {
        each(CA.1, &path, text, &mut findings, |certificate| valid(certificate, now));
    }
    if let (Some(path), Some((cert, _))) = (path(CERT), &config.custom_tls.client) {
        let mut first = true;
        each(CERT.1, &path, cert, &mut findings, |certificate| {
            let leaf = std::mem::take(&mut first);
            valid(certificate, now).or_else(|| (leaf && !for_clients(certificate)).then(not_for_clients))
        });
    }
    if let Some(path) = path(KEY) {
        findings.extend(private(Path::new(&path), config.in_cluster));
    }
    if path(CA).is_some() && path(CERT).is_none() {
        findings.push(
            Finding::warning(
                CERTIFICATES,
                "guests have certificates of their own (-ca-cert-file), and this node shows them one that is made for \
                 each sandbox, which none of them knows",
            )
            .with_option(format!("{}, {}", CERT.1, KEY.1))
            .with_remedy("give the certificate whose CA is in the guests' image"),
        );
    }
    // What could not be read is told by the settings.
    let read = path(CA).is_some() == config.custom_tls.ca.is_some()
        && [CERT, KEY].into_iter().all(|option| path(option).is_some() == config.custom_tls.client.is_some());
    if findings.is_empty() && read {
        findings.push(Finding::ok(CERTIFICATES, "they are valid, fit, and their key is private"));
    }
    findings
}

/// What is wrong, whether it fails, and what to do.
type Problem = (String, bool, &'static str);

fn each(
    option: &str,
    path: &str,
    text: &str,
    findings: &mut Vec<Finding>,
    mut look: impl FnMut(&X509Certificate<'_>) -> Option<Problem>,
) {
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let problem = match &pem {
            Err(error) => Some((format!("it is not PEM: {error}"), true, "write it as PEM")),
            // A key beside its certificate, or parameters of a curve.
            Ok(pem) if pem.label != "CERTIFICATE" => None,
            Ok(pem) => match pem.parse_x509() {
                Err(error) => Some((format!("it holds no certificate: {error}"), true, "give a certificate")),
                Ok(certificate) => look(&certificate).map(|(what, fails, remedy)| {
                    (format!("the certificate of {} {what}", certificate.subject()), fails, remedy)
                }),
            },
        };
        if let Some((what, fails, remedy)) = problem {
            let detail = format!("{path}: {what}");
            let finding = match fails {
                true => Finding::failed(CERTIFICATES, detail),
                false => Finding::warning(CERTIFICATES, detail),
            };
            findings.push(finding.with_option(option).with_remedy(remedy));
        }
    }
}

fn valid(certificate: &X509Certificate<'_>, now: i64) -> Option<Problem> {
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if now < from {
        let what = format!("is not valid before {}", validity.not_before);
        return Some((what, true, "look at the clocks of this node and of who issued it, or wait"));
    }
    if now > until {
        return Some((format!("has expired: {}", validity.not_after), true, "issue a new one"));
    }
    let days = (until - now) / (24 * 3600);
    (until - now < SOON)
        .then(|| (format!("expires in {days} days: {}", validity.not_after), false, "issue a new one"))
}

fn for_clients(certificate: &X509Certificate<'_>) -> bool {
    match certificate.extended_key_usage() {
        Ok(Some(usage)) => usage.value.client_auth || usage.value.any,
        _ => true,
    }
}

fn not_for_clients() -> Problem {
    let what = "is not for clients (extended key usage): every guest refuses it".to_owned();
    (what, true, "issue one with the usage clientAuth")
}

/// Whether the key can be read by others. In a container nobody else sees it, whatever its mode.
fn private(path: &Path, in_cluster: bool) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.mode() & 0o777;
    (mode & 0o077 != 0 && !in_cluster).then(|| {
        Finding::warning(CERTIFICATES, format!("{} can be read by others (mode {mode:o})", path.display()))
            .with_option(KEY.1)
            .with_remedy(format!("chmod 600 {}", path.display()))
    })
}
