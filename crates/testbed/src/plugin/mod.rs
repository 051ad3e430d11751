//! A testbed as an executable: JSON over standard streams, one object a line.
//!
//! [`Executable`] is the end of the program that needs machines, [`serve()`] and [`main()`] the end of the provider. The
//! messages are described for writers in any language in the book, on the page "A provider as an executable".

mod fault;
mod lines;
mod message;
mod process;
mod remote;
mod serve;

use std::time::Duration;

pub use message::{CallContext, Hello, Method, Opened, Params, ToHost, ToProvider};
pub use remote::Executable;
pub(crate) use remote::Started;
pub use serve::{Served, main, serve};

/// Every version of the protocol that this end speaks.
pub const VERSIONS: &[u32] = &[1];

/// The bounds on an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How long it may take to say hello.
    pub hello: Duration,
    /// How long it may take to read what is said to it.
    pub open: Duration,
    /// How long a call may take to undo what it made, once it was cancelled.
    pub cancel: Duration,
    /// How long the program may take to end, once it was told to, before it is killed.
    pub end: Duration,
    /// The longest line in bytes.
    pub line: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            open: Duration::from_secs(60),
            cancel: Duration::from_secs(300),
            end: Duration::from_secs(5),
            line: 16 << 20,
        }
    }
}
