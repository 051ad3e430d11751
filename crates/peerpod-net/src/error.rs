//! What can go wrong, with a kind to act on and a text that names the thing to mend.

use std::error::Error as StdError;
use std::fmt;

/// Says what a caller can do about a [`NetError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetErrorKind {
    /// The network namespace is not there, or the path is not a network namespace.
    NetnsMissing,
    /// A namespace has no default route, so its primary interface is unknown.
    NoDefaultRoute,
    /// An interface has no address of the needed family.
    NoAddress,
    /// A pod interface has several addresses where exactly one can be carried.
    ManyAddresses,
    /// A named interface is not there.
    NoInterface,
    /// A name that the tunnel device needs belongs to something that is not ours.
    NameTaken,
    /// Another tunnel of this node uses the id: take the next one.
    IdInUse,
    /// The id does not fit into 24 bits, or is 0.
    IdOutOfRange,
    /// A value that was handed in cannot be used.
    InvalidInput,
    /// The request needs something that cannot be had here, such as IPv6 over a link too small for it.
    Unsupported,
    /// The caller cancelled.
    Cancelled,
    /// Something that was waited for did not come.
    TimedOut,
    /// The kernel refused a step.
    Kernel,
    /// A thread, file or socket could not be used.
    System,
}

/// A failed step: its kind, a sentence with the values that matter, and the cause as `source`.
#[derive(Debug)]
pub struct NetError {
    kind: NetErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl NetError {
    /// Makes an error without a cause. Public for doubles of this crate's functions.
    pub fn new(kind: NetErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> NetErrorKind {
        self.kind
    }

    /// The message followed by those of all causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for NetError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_the_step_and_its_cause() {
        let error = NetError::new(NetErrorKind::System, "cannot open /run/netns/x")
            .with_source(std::io::Error::other("no room"));
        assert_eq!(error.to_string(), "cannot open /run/netns/x");
        assert_eq!(error.chain(), "cannot open /run/netns/x: no room");
    }
}
