//! What goes wrong, and when.

use cloud_providers::{CancellationToken, Error, ErrorKind};

use crate::error::{self, Answer};

/// What happens to a call.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// It fails and nothing changed.
    Before(Error),
    /// It took effect and the reply is an error.
    After(Error),
    /// It is never answered, and nothing changed.
    HangBefore,
    /// It took effect and is never answered.
    HangAfter,
}

/// One fault. Counting starts when it is given to [`super::World::script`].
#[derive(Clone, Debug)]
pub struct Fault {
    operation: Option<&'static str>,
    nth: usize,
    forever: bool,
    pub(crate) how: How,
    seen: usize,
    pub(crate) told: Option<CancellationToken>,
}

impl Fault {
    /// Starts a fault of the first call of `operation`; without further words the call fails before its effect.
    pub fn on(operation: &'static str) -> Self {
        Self { operation: Some(operation), ..Self::on_call(1) }
    }

    /// Starts a fault of the `nth` call of any kind, from 1.
    pub fn on_call(nth: usize) -> Self {
        let how = How::Before(Error::new(ErrorKind::Transient, "scripted failure"));
        Self { operation: None, nth, forever: false, how, seen: 0, told: None }
    }

    /// Strikes at the `nth` call of the operation, from 1.
    #[must_use]
    pub fn nth(mut self, nth: usize) -> Self {
        self.nth = nth;
        self
    }

    /// Strikes at that call and all later ones.
    #[must_use]
    pub fn forever(mut self) -> Self {
        self.forever = true;
        self
    }

    /// Lets EC2 refuse the call with a code.
    #[must_use]
    pub fn code(mut self, code: &str) -> Self {
        self.how = How::Before(refused("", code, "as the test says"));
        self
    }

    /// Lets the call fail before it changes anything.
    #[must_use]
    pub fn before(mut self, error: Error) -> Self {
        self.how = How::Before(error);
        self
    }

    /// Lets the call take effect and answer with an error all the same.
    #[must_use]
    pub fn after(mut self, error: Error) -> Self {
        self.how = How::After(error);
        self
    }

    /// Lets the call take effect and the reply get lost.
    #[must_use]
    pub fn lost_reply(self) -> Self {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        self.after(error::lost("", broken))
    }

    /// Lets the call change nothing and never answer.
    #[must_use]
    pub fn hang_before(mut self) -> Self {
        self.how = How::HangBefore;
        self
    }

    /// Lets the call take effect and never answer.
    #[must_use]
    pub fn hang_after(mut self) -> Self {
        self.how = How::HangAfter;
        self
    }

    /// Cancels `token` when the fault strikes, after the effect of the call if it has one.
    #[must_use]
    pub fn telling(mut self, token: CancellationToken) -> Self {
        self.told = Some(token);
        self
    }

    /// Counts a call and says whether something happens to it.
    pub(crate) fn strikes(&mut self, operation: &str) -> bool {
        if self.operation.is_some_and(|o| o != operation) {
            return false;
        }
        self.seen += 1;
        self.seen == self.nth || (self.forever && self.seen > self.nth)
    }
}

/// Makes the error of an answer of EC2.
pub fn refused(operation: &str, code: &str, message: &str) -> Error {
    let status = if code.starts_with("Internal") || code.starts_with("Unavailable") { 500 } else { 400 };
    error::refused(operation, Answer { status, code, message, request_id: Some("req-1"), retry_after: None })
}
