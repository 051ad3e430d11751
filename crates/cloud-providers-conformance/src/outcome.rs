//! How a step of a case ends when it does not go on.

use std::fmt;

/// What a harness gives, or why it does not.
pub type Offer<T> = Result<T, Obstacle>;

/// Why a step did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The harness or the provider has no such capability, named here. The case is skipped.
    Unsupported(String),
    /// Something went wrong. The case fails.
    Failed(String),
}

impl Obstacle {
    /// Names a capability that is not there, such as `faults` or `volumes`.
    pub fn unsupported(capability: impl Into<String>) -> Self {
        Self::Unsupported(capability.into())
    }

    /// Says what went wrong.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::Failed(what.into())
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(capability) => write!(f, "needs {capability}"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

/// Every error becomes a failure with its chain of causes, so that a harness uses `?`.
impl<E: std::error::Error> From<E> for Obstacle {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        Self::Failed(text)
    }
}
