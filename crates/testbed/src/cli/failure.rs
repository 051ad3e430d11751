//! From an error to an exit code and to what the user does next.

use cloud_providers::{Error, ErrorKind};

use super::exits;

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit code, see `testbed --help`.
    pub(super) code: u8,
    /// What happened.
    pub(super) error: Error,
    /// What to do next.
    pub(super) hint: Option<String>,
    /// It was told already.
    pub(super) silent: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = if error.leftovers().is_empty() { code(error.kind()) } else { exits::LEFT.0 };
        Self { code, error, hint: None, silent: false }
    }
}

fn code(kind: &ErrorKind) -> u8 {
    match kind {
        ErrorKind::Config => exits::WRONG.0,
        ErrorKind::NotFound => exits::MISSING.0,
        ErrorKind::Conflict => exits::HELD.0,
        ErrorKind::Transient | ErrorKind::Throttled => exits::LATER.0,
        ErrorKind::Capacity { .. } | ErrorKind::Quota => exits::FULL.0,
        ErrorKind::Unsupported => exits::CANNOT.0,
        _ => exits::FAILED.0,
    }
}

impl Failure {
    /// Ends with the status of a command that told its own failure.
    pub(super) fn status(code: i32) -> Self {
        let code = u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(exits::FAILED.0);
        Self { code, error: Error::internal("the command failed"), hint: None, silent: true }
    }

    /// Says what to do next.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
