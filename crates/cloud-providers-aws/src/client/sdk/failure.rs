//! What the SDK tells of a call that failed, in the provider's errors.

use std::{error::Error as StdError, time::Duration};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use cloud_providers::{Error, ErrorKind};

use crate::error::{Answer, lost, refused};

/// The most characters of an answer that is no answer of EC2 which go into an error.
const EXCERPT: usize = 200;

/// Describes why `operation` failed.
pub(super) fn describe<E>(operation: &str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + RequestId + StdError + Send + Sync + 'static,
{
    if let Some(found) = find::<CredentialsError>(&error) {
        return without_credentials(operation, found);
    }
    match &error {
        SdkError::ServiceError(answer) => {
            let (raw, err) = (answer.raw(), answer.err());
            if err.code().is_none() && raw.status().is_success() {
                // Whoever wrote this, EC2 may have done what it was asked, and an empty list is not what it says.
                let said = excerpt(raw.body().bytes());
                return lost(operation, Told(format!("the answer is not one of EC2: {said:?}")));
            }
            let (excerpt, body_id);
            let (code, message) = match (err.code(), err.message()) {
                (Some(code), message) => (code, message.unwrap_or_default()),
                // A proxy on the way or a fault of the service: what it says is all there is to show.
                (None, _) => {
                    excerpt = self::excerpt(raw.body().bytes());
                    ("", excerpt.as_str())
                }
            };
            // The header is not on every answer, and the SDK does not read the id that is in the body.
            body_id = request_id(raw.body().bytes());
            refused(
                operation,
                Answer {
                    status: raw.status().as_u16(),
                    code,
                    message,
                    request_id: err.request_id().or(body_id.as_deref()),
                    retry_after: raw.headers().get("retry-after").and_then(retry_after),
                },
            )
        }
        SdkError::ConstructionFailure(_) => Error::internal("the call cannot be put together")
            .with_operation(operation)
            .with_source(Told(tell(&error))),
        _ => lost(operation, Told(tell(&error))),
    }
}

/// Reads the id of the request out of the body of an error.
fn request_id(body: Option<&[u8]>) -> Option<String> {
    let text = std::str::from_utf8(body?).ok()?;
    let (_, rest) = text.split_once("<RequestID>").or_else(|| text.split_once("<RequestId>"))?;
    let (id, _) = rest.split_once("</")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    Some(id.trim().to_owned()).filter(|id| !id.is_empty() && id.len() <= 64 && id.chars().all(plain))
}

/// Reads `Retry-After`: seconds, as EC2 sends it; a date would need the server's clock.
fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Describes a call for which no credentials could be had, or which the source of credentials refused.
fn without_credentials(operation: &str, error: &CredentialsError) -> Error {
    let (kind, text) = match error {
        CredentialsError::CredentialsNotLoaded(_) => (ErrorKind::Auth, "no source has credentials for AWS"),
        CredentialsError::InvalidConfiguration(_) => {
            (ErrorKind::Config, "the configuration of credentials for AWS is wrong")
        }
        CredentialsError::ProviderTimedOut(_) => {
            (ErrorKind::Transient, "the source of credentials for AWS gave no answer in time")
        }
        CredentialsError::ProviderError(_) if is_passing(error) => {
            (ErrorKind::Transient, "the source of credentials for AWS could not be reached")
        }
        _ => (ErrorKind::Auth, "the source of credentials for AWS refused"),
    };
    let described = Error::new(kind.clone(), text).with_operation(operation).with_source(Told(tell(error)));
    if kind == ErrorKind::Auth {
        described.with("see", "docs/providers/aws.md, credentials")
    } else {
        described
    }
}

/// Whether a source of credentials failed for a reason that passes: no connection, no answer, or a fault of the server.
fn is_passing(error: &CredentialsError) -> bool {
    use aws_sdk_sts::operation::{
        assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    };
    // A role is asked for at STS, whose answers have a code; every other source is a file or a small server.
    fn of_sts<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
        match error {
            SdkError::ServiceError(answer) => {
                let code = answer.err().code().unwrap_or_default();
                let kind = crate::error::classify(code).map(|(kind, _)| kind);
                answer.raw().status().is_server_error()
                    || matches!(kind, Some(ErrorKind::Throttled | ErrorKind::Transient))
                    || code == "IDPCommunicationError"
            }
            _ => true,
        }
    }
    if let Some(error) = find::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>(error) {
        return of_sts(error);
    }
    if let Some(error) = find::<SdkError<AssumeRoleError, HttpResponse>>(error) {
        return of_sts(error);
    }
    // A file that is not there or may not be read stays so; the rest is about connections.
    let stays = [std::io::ErrorKind::NotFound, std::io::ErrorKind::PermissionDenied];
    find::<std::io::Error>(error).is_some_and(|error| !stays.contains(&error.kind()))
}

/// A chain of causes as one text.
#[derive(Debug)]
struct Told(String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Told {}

/// Tells an error with its causes, and without the request, which some texts of the SDK quote whole: user data has keys in it.
fn tell(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let whole = error.to_string();
        let link =
            whole.find("Request {").map_or(whole.as_str(), |at| whole[..at].trim_end_matches(['`', ' ']));
        if !link.is_empty() && !text.ends_with(link) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(link);
        }
        next = error.source();
    }
    text
}

/// Finds a cause of this type in the chain, the error itself included.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Returns the beginning of an answer that is not EC2's XML, in one line.
fn excerpt(body: Option<&[u8]>) -> String {
    let text = String::from_utf8_lossy(body.unwrap_or_default()).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_wait_is_read_in_seconds() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(" 12 "), Some(Duration::from_secs(12)));
        for other in ["", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(retry_after(other), None, "{other}");
        }
    }

    #[test]
    fn the_id_of_a_request_is_read_from_the_body_of_an_error() {
        let read = |text: &str| request_id(Some(text.as_bytes()));
        let body = "<Response><RequestID> ea966190-f9aa-example </RequestID></Response>";
        assert_eq!(read(body).as_deref(), Some("ea966190-f9aa-example"));
        assert_eq!(read("<RequestId>a-1</RequestId>").as_deref(), Some("a-1"));
        for other in ["", "<RequestID>", "<RequestID></RequestID>", "<RequestID>a b</RequestID>"] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(request_id(Some(b"\xff<RequestID>a</RequestID>")), None);
        assert_eq!(request_id(None), None);
    }

    #[test]
    fn a_foreign_answer_is_cut_to_one_short_line() {
        let body = format!("<html>\n  <body>{}</body>", "x".repeat(500));
        let text = excerpt(Some(body.as_bytes()));
        assert!(text.starts_with("<html> <body>xx") && text.len() == EXCERPT, "{text}");
        assert_eq!(excerpt(None), "");
        assert_eq!(excerpt(Some(b"\xff ok")), "\u{fffd} ok");
    }

    #[test]
    fn a_text_that_quotes_the_request_is_cut_before_it() {
        let quoting =
            std::io::Error::other("cannot send to request `Request { body: \"UserData=canary\" }`: bad");
        let outer = CredentialsError::provider_error(quoting);
        let told = tell(&outer);
        assert!(told.contains("cannot send to request") && !told.contains("canary"), "{told}");
    }

    #[test]
    fn sources_of_credentials_fail_in_different_ways() {
        let io = |kind| CredentialsError::provider_error(std::io::Error::from(kind));
        for (error, kind) in [
            (CredentialsError::not_loaded("nothing"), ErrorKind::Auth),
            (CredentialsError::invalid_configuration("a loop"), ErrorKind::Config),
            (CredentialsError::provider_timed_out(Duration::from_secs(5)), ErrorKind::Transient),
            (io(std::io::ErrorKind::ConnectionReset), ErrorKind::Transient),
            (io(std::io::ErrorKind::NotFound), ErrorKind::Auth),
            (io(std::io::ErrorKind::PermissionDenied), ErrorKind::Auth),
            (CredentialsError::provider_error("refused"), ErrorKind::Auth),
            (CredentialsError::unhandled("not UTF-8"), ErrorKind::Auth),
        ] {
            let described = without_credentials("RunInstances", &error);
            assert_eq!(*described.kind(), kind, "{described:?}");
            assert_eq!(described.operation(), Some("RunInstances"));
        }
    }
}
