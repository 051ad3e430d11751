//! What goes wrong, and when.

use tokio_util::sync::CancellationToken;

use crate::{Error, ErrorKind, Result};

/// What happens to a remote call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    /// It fails and nothing changed.
    Before(Error),
    /// It took effect and the reply is an error.
    After(Error),
    /// It is never answered, and nothing changed.
    HangBefore,
    /// It took effect and is never answered.
    HangAfter,
}

/// One scripted fault. Counting starts when it is given to [`super::World::script`].
#[derive(Clone, Debug)]
pub struct Fault {
    pub(super) operation: Option<String>,
    pub(super) nth: u64,
    pub(super) forever: bool,
    pub(super) how: How,
    pub(super) seen: u64,
    pub(super) told: Option<CancellationToken>,
}

impl Fault {
    /// Starts a fault of the first call of `operation`; without further words the call fails before its effect.
    pub fn on(operation: impl Into<String>) -> Self {
        Self { operation: Some(operation.into()), ..Self::on_call(1) }
    }

    /// Starts a fault of the `nth` remote call of any kind, from 1.
    pub fn on_call(nth: u64) -> Self {
        let how = How::Before(Error::new(ErrorKind::Transient, "scripted failure"));
        Self { operation: None, nth, forever: false, how, seen: 0, told: None }
    }

    /// Strikes at the `nth` call of the operation, from 1.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.nth = nth;
        self
    }

    /// Strikes at that call and all later ones.
    #[must_use]
    pub fn forever(mut self) -> Self {
        self.forever = true;
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

    /// Lets the call take effect and the reply get lost: the client sees a broken connection.
    #[must_use]
    pub fn lost_reply(self) -> Self {
        self.after(Error::new(ErrorKind::Transient, "the connection broke before the reply"))
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
    ///
    /// So a test knows the moment at which a call hangs.
    #[must_use]
    pub fn telling(mut self, token: CancellationToken) -> Self {
        self.told = Some(token);
        self
    }

    /// Counts a call and says what happens to it.
    pub(super) fn strikes(&mut self, operation: &str) -> bool {
        if self.operation.as_deref().is_some_and(|o| o != operation) {
            return false;
        }
        self.seen += 1;
        self.seen == self.nth || (self.forever && self.seen > self.nth)
    }
}

/// Reads a fault from `<operation>:<nth>:<what>`, for scripts in options.
///
/// `nth` may end in `+`, for that call and all later ones. `what` is `before`, `after`, `hang-before` or `hang-after`, or
/// the word of an [`ErrorKind`]: the call then fails before its effect as a cloud answers, with a code and a message.
///
/// # Errors
///
/// [`ErrorKind::Config`] with the expected form.
pub fn parse_fault(text: &str) -> Result<Fault> {
    let bad = || {
        Error::config(
            "a scripted fault is <operation>:<nth>[+]:<before|after|hang-before|hang-after|kind of error>",
        )
        .with("given", text)
    };
    let [operation, nth, what] = text.split(':').collect::<Vec<_>>()[..] else { return Err(bad()) };
    let (nth, forever) = nth.strip_suffix('+').map_or((nth, false), |nth| (nth, true));
    let nth = nth.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
    let mut fault = Fault::on(operation).nth(nth);
    fault.forever = forever;
    match what {
        "before" => Ok(fault),
        "after" => Ok(fault.lost_reply()),
        "hang-before" => Ok(fault.hang_before()),
        "hang-after" => Ok(fault.hang_after()),
        word => {
            let kind = kind(word).ok_or_else(bad)?;
            let error = Error::new(kind, "the scripted cloud refuses");
            Ok(fault.before(
                error.with_cloud(format!("Scripted.{word}"), format!("{operation} is refused: {word}")),
            ))
        }
    }
}

fn kind(word: &str) -> Option<ErrorKind> {
    let capacity = ErrorKind::Capacity { zone: None, instance_type: None };
    [
        ErrorKind::Config,
        ErrorKind::Auth,
        ErrorKind::Permission,
        ErrorKind::Quota,
        capacity,
        ErrorKind::Throttled,
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Transient,
        ErrorKind::Unsupported,
        ErrorKind::Cancelled,
        ErrorKind::Internal,
    ]
    .into_iter()
    .find(|kind| kind.label() == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read_with_its_number_and_its_kind() {
        let fault = parse_fault("run_instance:2+:quota").unwrap();
        assert!(fault.forever && fault.nth == 2);
        let How::Before(error) = &fault.how else { panic!("{:?}", fault.how) };
        assert_eq!((error.kind(), error.code()), (&ErrorKind::Quota, Some("Scripted.quota")));
        for bad in ["run_instance", "run_instance:0:before", "run_instance:+:before", "run_instance:1:never"]
        {
            assert!(parse_fault(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
