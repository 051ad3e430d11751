//! How errors of the parts become the status that a shim prints in the pod's event.

use cloud_providers::ErrorKind;
use peerpod_gateway::GatewayError;
use peerpod_net::{NetError, NetErrorKind};
use peerpod_proto::{Code, Status};

/// Maps an error of a provider. The cloud's own code and message stay in the text.
pub fn of_provider(step: &str, error: &cloud_providers::Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Config | ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::Auth => Code::Unauthenticated,
        ErrorKind::Permission => Code::PermissionDenied,
        ErrorKind::Quota | ErrorKind::Capacity { .. } => Code::ResourceExhausted,
        ErrorKind::Throttled | ErrorKind::Transient => Code::Unavailable,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::AlreadyExists,
        ErrorKind::Cancelled => Code::Canceled,
        _ => Code::Internal,
    };
    Status::new(code, format!("{step}: {}", error.report()))
}

/// Maps an error of the network.
pub fn of_network(step: &str, error: &NetError) -> Status {
    let code = match error.kind() {
        NetErrorKind::NetnsMissing | NetErrorKind::InvalidInput => Code::InvalidArgument,
        NetErrorKind::NoDefaultRoute
        | NetErrorKind::NoAddress
        | NetErrorKind::ManyAddresses
        | NetErrorKind::NoInterface
        | NetErrorKind::NameTaken
        | NetErrorKind::Unsupported => Code::FailedPrecondition,
        NetErrorKind::IdInUse | NetErrorKind::IdOutOfRange => Code::ResourceExhausted,
        NetErrorKind::Cancelled => Code::Canceled,
        NetErrorKind::TimedOut => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    Status::new(code, format!("{step}: {}", error.chain()))
}

/// Maps an error of the gateway.
pub fn of_gateway(step: &str, error: GatewayError) -> Status {
    let mut status = Status::from(error);
    status.message = format!("{step}: {}", status.message);
    status
}

/// Maps any other error: ours.
pub fn internal(step: &str, error: &anyhow::Error) -> Status {
    Status::new(Code::Internal, format!("{step}: {error:#}"))
}

/// Maps an error of a file; a full disk gets a code of its own.
pub fn of_file(step: &str, error: &std::io::Error) -> Status {
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    Status::new(if full { Code::ResourceExhausted } else { Code::Internal }, format!("{step}: {error}"))
}
