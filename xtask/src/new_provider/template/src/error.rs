//! Decides kind and retry of the cloud's errors.

use std::time::Duration;

use cloud_providers::{Error, ErrorKind, Retry};

/// Decides what an error code of the cloud means: one line for each code, `None` for one that is not known.
///
/// Write the codes of the cloud's documentation here. The retry is the one that fits the kind in most cases, unless a
/// line says otherwise.
fn classify(code: &str) -> Option<(ErrorKind, Option<Retry>)> {
    Some(match code {
        "Unauthorized" => (ErrorKind::Auth, None),
        "Forbidden" => (ErrorKind::Permission, None),
        "NotFound" => (ErrorKind::NotFound, None),
        _ => return None,
    })
}

/// Describes a call that the cloud refused: by its HTTP status, the code and message of its answer, and the time after
/// which the cloud wants to be asked again, if it named one.
pub(crate) fn refused(status: u16, code: &str, message: &str, after: Option<Duration>) -> Error {
    // The code decides; the status is what is left for codes that nobody has written down.
    let (kind, retry) = classify(code).unwrap_or_else(|| (kind_of_status(status), None));
    let error = Error::new(kind, "the cloud refused the call").with("status", status).with_cloud(code, message);
    match after.map(|delay| Retry::After { delay }).or(retry) {
        Some(retry) => error.with_retry(retry),
        None => error,
    }
}

fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Auth,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        429 => ErrorKind::Throttled,
        408 | 500.. => ErrorKind::Transient,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_decides_and_else_the_status() {
        assert_eq!(*refused(400, "Forbidden", "no", None).kind(), ErrorKind::Permission);
        let error = refused(503, "NeverSeen", "later", None);
        assert_eq!(*error.kind(), ErrorKind::Transient);
        assert_eq!((error.code(), error.cloud_message()), (Some("NeverSeen"), Some("later")));
        assert!(matches!(error.retry(), Retry::After { .. }));
        assert_eq!(*refused(418, "", "", None).kind(), ErrorKind::Internal);
    }

    #[test]
    fn the_delay_of_the_cloud_is_kept() {
        let delay = Duration::from_secs(7);
        assert_eq!(refused(429, "", "", Some(delay)).retry(), Retry::After { delay });
    }
}
