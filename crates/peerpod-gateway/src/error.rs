//! What can go wrong with a sandbox's connection.

use std::path::Path;

use peerpod_proto::{Code, Status};

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GatewayErrorKind {
    /// The specification cannot be right.
    Invalid,
    /// The sandbox is registered with another specification.
    Conflict,
    /// A live program listens at the socket path.
    SocketInUse,
    /// The sandbox is not registered, or was unregistered meanwhile.
    NotFound,
    /// The guest and the gateway do not accept each other's certificates.
    Tls,
    /// The guest was not reached in time.
    Timeout,
    /// The caller gave up.
    Cancelled,
    /// The gateway process cannot be reached, or speaks no common level.
    Unavailable,
    /// The system refused something.
    Internal,
}

impl GatewayErrorKind {
    const ALL: [(Self, Code); 9] = [
        (Self::Invalid, Code::InvalidArgument),
        (Self::Conflict, Code::AlreadyExists),
        (Self::SocketInUse, Code::FailedPrecondition),
        (Self::NotFound, Code::NotFound),
        (Self::Tls, Code::Unauthenticated),
        (Self::Timeout, Code::DeadlineExceeded),
        (Self::Cancelled, Code::Canceled),
        (Self::Unavailable, Code::Unavailable),
        (Self::Internal, Code::Internal),
    ];

    fn code(self) -> Code {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(Code::Internal, |(_, code)| *code)
    }

    fn from_code(code: Code) -> Self {
        Self::ALL.iter().find(|(_, known)| *known == code).map_or(Self::Internal, |(kind, _)| *kind)
    }
}

/// An error of the gateway. It crosses the control socket unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GatewayError {
    kind: GatewayErrorKind,
    message: String,
}

impl GatewayError {
    /// Makes an error.
    pub fn new(kind: GatewayErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> GatewayErrorKind {
        self.kind
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(GatewayErrorKind::Invalid, message)
    }

    pub(crate) fn not_found(sandbox_id: &str) -> Self {
        Self::new(GatewayErrorKind::NotFound, format!("sandbox {sandbox_id} is not registered"))
    }

    pub(crate) fn io(step: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(GatewayErrorKind::Internal, format!("{step} {} failed: {error}", path.display()))
    }
}

impl From<GatewayError> for Status {
    fn from(error: GatewayError) -> Self {
        Self::new(error.kind.code(), error.message)
    }
}

impl From<Status> for GatewayError {
    fn from(status: Status) -> Self {
        Self::new(GatewayErrorKind::from_code(status.code()), status.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_control_socket() {
        for (kind, _) in GatewayErrorKind::ALL {
            let error = GatewayError::new(kind, "what to mend");
            assert_eq!(GatewayError::from(Status::from(error.clone())), error);
        }
    }
}
