//! Words for refused handshakes: what is wrong, and on whose side.

use rustls::{AlertDescription, CertificateError, Error};

/// Says why a handshake failed, beginning with the cause: `expired`, `not yet valid`, `unknown issuer`, `wrong name`,
/// `no certificate`, `no common version or cipher suite`, or the library's own words.
///
/// An alert is what the other side says of us: it saw the cause, and its log has the details.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => format!("{}: {error}", of_certificate(reason)),
        Error::NoCertificatesPresented => format!("no certificate: {error}"),
        Error::PeerIncompatible(_) => format!(
            "no common version or cipher suite: {error} (see TLS_MIN_VERSION and TLS_CIPHER_SUITES on the node)"
        ),
        Error::AlertReceived(alert) => format!("{} (alert {alert:?})", of_alert(*alert)),
        other => other.to_string(),
    }
}

/// The same of the error of a stream; `None` when it is not about TLS but the connection broke.
pub fn explain_io(error: &std::io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<Error>().map(explain)
}

fn of_certificate(reason: &CertificateError) -> &'static str {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "expired: the peer's certificate is past its time"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "not yet valid: the peer's certificate begins later, or a clock is wrong"
        }
        CertificateError::UnknownIssuer => {
            "unknown issuer: the peer's certificate is not from the CA that is trusted here"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "wrong name: the peer's certificate is another's"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "wrong purpose: a client shows a server's certificate, or the other way round"
        }
        // The CAs of all sandboxes have one name, so this is what a certificate of another one looks like.
        CertificateError::BadSignature => {
            "unknown issuer: the peer's certificate names the CA that is trusted here, which did not sign it"
        }
        _ => "bad certificate",
    }
}

fn of_alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => {
            "unknown issuer: the peer does not trust the CA of the certificate it was shown"
        }
        AlertDescription::DecryptError => {
            "unknown issuer: the peer trusts a CA of that name, which did not sign the certificate it was shown"
        }
        AlertDescription::CertificateExpired => {
            "expired: the peer says that the certificate it was shown is past its time, or not yet valid"
        }
        AlertDescription::CertificateRequired => "no certificate: the peer wants one and was shown none",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => "the peer does not accept the certificate it was shown",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "no common version or cipher suite: see TLS_MIN_VERSION and TLS_CIPHER_SUITES on the node"
        }
        _ => "the peer ended the handshake",
    }
}
