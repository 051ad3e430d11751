//! Decides kind and retry of libvirt's errors.

use std::time::Duration;

use cloud_providers::{Error, ErrorKind, Retry};
use virt::error::{Error as VirtError, ErrorDomain, ErrorNumber};

/// Describes a failed step with the kind and retry rule that fit libvirt's error.
pub(crate) fn virt_error(operation: &str, what: &str, error: &VirtError) -> Error {
    let (kind, retry) = classify(error.code(), error.domain(), error.message());
    let made = Error::new(kind, what)
        .with_retry(retry)
        .with_operation(operation)
        .with_cloud(format!("{:?}/{:?}", error.code(), error.domain()), error.message());
    match mend(error.message()) {
        Some(mend) => made.with("mend", mend),
        None => made,
    }
}

/// Describes a library of libvirt that cannot be used on this host.
pub(crate) fn no_library(name: &str, what: &str, error: libloading::Error) -> Error {
    Error::new(ErrorKind::Config, what)
        .with("library", name)
        .with("install", "libvirt 6.0 or later: libvirt0 on Debian and Ubuntu, libvirt-libs elsewhere")
        .with_source(error)
}

/// Says what to do about messages of libvirt that name the thing and not the way.
fn mend(message: &str) -> Option<&'static str> {
    let says = |part: &str| message.contains(part);
    if !says("is not active") {
        return None;
    }
    if says("storage pool '") {
        return Some("virsh pool-start, or set LIBVIRT_POOL");
    }
    says("network '").then_some("virsh net-start, or set LIBVIRT_NET")
}

/// Returns whether `error` says that the thing asked for does not exist.
pub(crate) fn is_missing(error: &VirtError) -> bool {
    matches!(
        error.code(),
        ErrorNumber::NoDomain
            | ErrorNumber::NoStorageVolume
            | ErrorNumber::NoStoragePool
            | ErrorNumber::NoNetwork
            | ErrorNumber::NoDomainMetadata
    )
}

/// Decides what kind of thing went wrong and what the caller does next.
///
/// libvirt's codes are coarse: many different things are `InternalError` or `OperationFailed`. Where the code says
/// nothing, known parts of the message decide; they have been the same since libvirt 1.0.
pub(crate) fn classify(code: ErrorNumber, domain: ErrorDomain, message: &str) -> (ErrorKind, Retry) {
    let soon = |kind: ErrorKind| (kind, Retry::After { delay: Duration::from_millis(500) });
    let never = |kind: ErrorKind| (kind, Retry::Never);
    let capacity = || (ErrorKind::Capacity { zone: None, instance_type: None }, Retry::Elsewhere);
    let says = |part: &str| message.contains(part);
    if says("No space left on device") || says("Cannot allocate memory") || says("cannot set up guest memory")
    {
        return capacity();
    }
    // A call over SSH reports what ssh printed, whatever the code.
    if says("Permission denied (publickey") || says("Host key verification failed") {
        return never(ErrorKind::Auth);
    }
    // A QEMU that waits for its storage cannot be killed until that answers.
    if says("Device or resource busy") {
        return soon(ErrorKind::Transient);
    }
    match code {
        ErrorNumber::NoDomain
        | ErrorNumber::NoStorageVolume
        | ErrorNumber::NoStoragePool
        | ErrorNumber::NoNetwork
        | ErrorNumber::NoDomainMetadata => never(ErrorKind::NotFound),
        ErrorNumber::DomExist | ErrorNumber::StorageVolExist | ErrorNumber::NetworkExist => {
            never(ErrorKind::Conflict)
        }
        ErrorNumber::AuthFailed | ErrorNumber::AuthCancelled | ErrorNumber::AuthUnavailable => {
            never(ErrorKind::Auth)
        }
        ErrorNumber::OperationDenied | ErrorNumber::AccessDenied => never(ErrorKind::Permission),
        ErrorNumber::NoSupport
        | ErrorNumber::ConfigUnsupported
        | ErrorNumber::ArgumentUnsupported
        | ErrorNumber::OperationUnsupported
        | ErrorNumber::CpuIncompatible => never(ErrorKind::Unsupported),
        // A name that does not resolve is a typo more often than a fault of the resolver.
        ErrorNumber::UnknownHost => never(ErrorKind::Config),
        ErrorNumber::NoConnect if says("no connection driver available") => never(ErrorKind::Config),
        ErrorNumber::InvalidArg if domain == ErrorDomain::Uri => never(ErrorKind::Config),
        ErrorNumber::XmlError | ErrorNumber::XmlDetail | ErrorNumber::XmlInvalidSchema => {
            never(ErrorKind::Internal)
        }
        ErrorNumber::NoMemory => capacity(),
        ErrorNumber::OperationTimeout
        | ErrorNumber::OperationAborted
        | ErrorNumber::ResourceBusy
        | ErrorNumber::AgentUnresponsive
        | ErrorNumber::AgentUnsynced
        | ErrorNumber::AgentCommandTimeout
        | ErrorNumber::NoConnect
        | ErrorNumber::InvalidConn
        | ErrorNumber::NoServer
        | ErrorNumber::NoClient
        | ErrorNumber::Rpc
        | ErrorNumber::GnutlsError => soon(ErrorKind::Transient),
        // The socket of a daemon that does not run, and refused or broken connections.
        ErrorNumber::SystemError if domain == ErrorDomain::Rpc && says("Permission denied") => {
            never(ErrorKind::Permission)
        }
        ErrorNumber::SystemError if says("Permission denied") || says("Operation not permitted") => {
            never(ErrorKind::Permission)
        }
        ErrorNumber::SystemError if domain == ErrorDomain::Rpc => soon(ErrorKind::Transient),
        ErrorNumber::InternalError if domain == ErrorDomain::Rpc => soon(ErrorKind::Transient),
        // `network 'x' is not active`, `storage pool 'x' is not active`: somebody has to start it.
        ErrorNumber::OperationInvalid if says("is not active") => never(ErrorKind::Config),
        ErrorNumber::OperationFailed if says("already exists") => never(ErrorKind::Conflict),
        // Another job holds the domain, or a volume is still being made.
        ErrorNumber::OperationInvalid if says("is still being allocated") || says("another job") => {
            soon(ErrorKind::Transient)
        }
        _ => never(ErrorKind::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_libvirt_says_what_to_do() {
        use ErrorDomain as D;
        use ErrorNumber as N;
        for (code, domain, message, kind, again) in [
            (N::NoDomain, D::Qemu, "Domain not found", "not_found", false),
            (N::NoStorageVolume, D::Storage, "no storage vol with matching name", "not_found", false),
            (N::NoStoragePool, D::Storage, "Storage pool not found", "not_found", false),
            (N::NoNetwork, D::Network, "Network not found", "not_found", false),
            (N::StorageVolExist, D::Storage, "storage volume name 'x' already in use", "conflict", false),
            (
                N::OperationFailed,
                D::None,
                "operation failed: domain 'x' already exists with uuid y",
                "conflict",
                false,
            ),
            (N::AuthFailed, D::Rpc, "authentication failed", "auth", false),
            (
                N::SystemError,
                D::Rpc,
                "Cannot recv data: Permission denied (publickey,password).",
                "auth",
                false,
            ),
            (N::SystemError, D::Rpc, "Cannot recv data: Host key verification failed.", "auth", false),
            (
                N::SystemError,
                D::Rpc,
                "Failed to connect socket to '/run/libvirt/libvirt-sock': No such file or directory",
                "transient",
                true,
            ),
            (
                N::SystemError,
                D::Rpc,
                "Failed to connect socket to '/run/libvirt/libvirt-sock': Permission denied",
                "permission",
                false,
            ),
            (N::InternalError, D::Rpc, "internal error: client socket is closed", "transient", true),
            (N::SystemError, D::Storage, "cannot fill file: No space left on device", "capacity", false),
            (
                N::InternalError,
                D::Qemu,
                "process exited: cannot set up guest memory 'pc.ram': Cannot allocate memory",
                "capacity",
                false,
            ),
            (N::NoConnect, D::None, "no connection driver available for lala:///system", "config", false),
            (N::OperationInvalid, D::Network, "network 'default' is not active", "config", false),
            (N::OperationTimeout, D::Qemu, "cannot acquire state change lock", "transient", true),
            (
                N::SystemError,
                D::Qemu,
                "Failed to terminate process 7 with SIGKILL: Device or resource busy",
                "transient",
                true,
            ),
            (N::NoSupport, D::Test, "this function is not supported", "unsupported", false),
            (N::OperationDenied, D::None, "read only access prevents", "permission", false),
            (N::ConfigUnsupported, D::Qemu, "CPU mode is not supported", "unsupported", false),
            (N::XmlError, D::Domain, "missing name", "internal", false),
            (N::InternalError, D::Qemu, "qemu unexpectedly closed the monitor", "internal", false),
        ] {
            let (found, retry) = classify(code, domain, message);
            assert_eq!(found.label(), kind, "{message}");
            assert_eq!(matches!(retry, Retry::After { .. }), again, "{message}");
        }
    }

    #[test]
    fn what_is_not_started_is_named_with_the_way_to_start_it() {
        assert!(mend("storage pool 'default' is not active").is_some_and(|m| m.contains("pool-start")));
        assert!(mend("network 'default' is not active").is_some_and(|m| m.contains("net-start")));
        assert_eq!(mend("domain is not active"), None);
    }

    #[test]
    fn an_error_keeps_the_words_of_libvirt() {
        crate::client::start_event_loop().unwrap();
        let conn = virt::connect::Connect::open(Some("test:///default")).unwrap();
        let error = virt::domain::Domain::lookup_by_name(&conn, "nobody").unwrap_err();
        assert!(is_missing(&error));
        let ours = virt_error("virDomainLookupByName", "cannot find the domain", &error);
        assert_eq!(ours.kind().label(), "not_found");
        assert_eq!(ours.operation(), Some("virDomainLookupByName"));
        assert!(ours.code().unwrap().starts_with("NoDomain/"), "{ours}");
        assert!(ours.to_string().contains("Domain not found"), "{ours}");
    }
}
