//! Decides kind and retry of system errors.

use std::{io, path::Path};

use cloud_providers::{Error, ErrorKind};
use nix::errno::Errno;

/// Describes a failed step with the kind that fits the system's error.
pub(crate) fn io_error(what: impl Into<String>, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let described = Error::new(kind(&error), what);
    let described = match error.raw_os_error() {
        Some(number) => described.with_code(format!("{:?}", Errno::from_raw(number))),
        None => described,
    };
    described.with_source(error)
}

/// Describes a failed step on a path.
pub(crate) fn path_error(what: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    io_error(what, error).with("path", path.display())
}

fn kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Permission,
        // Memory, disk, process and file limits: another host may have room.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => capacity(),
        _ => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => ErrorKind::Permission,
            // A link or a folder that somebody else made under a name of ours.
            Some(Errno::EEXIST) => ErrorKind::Conflict,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN | Errno::ENOMEM | Errno::EUSERS) => capacity(),
            Some(Errno::EINTR) => ErrorKind::Transient,
            _ => ErrorKind::Internal,
        },
    }
}

fn capacity() -> ErrorKind {
    ErrorKind::Capacity { zone: None, instance_type: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_lack_of_capacity_and_a_refusal_is_lack_of_permission() {
        let full = io_error("cannot write", Errno::ENOSPC);
        assert_eq!(full.kind().label(), "capacity");
        let refused = io_error("cannot mount", Errno::EPERM);
        assert_eq!(*refused.kind(), ErrorKind::Permission);
        assert_eq!(full.code(), Some("ENOSPC"));
        let taken = io_error("cannot make the link", Errno::EEXIST);
        assert_eq!(*taken.kind(), ErrorKind::Conflict);
        assert_eq!(io_error("cannot fork", Errno::EAGAIN).kind().label(), "capacity");
    }
}
