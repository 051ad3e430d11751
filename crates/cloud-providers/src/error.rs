//! Errors that say what went wrong, where, and what to do about it.

use std::{error::Error as StdError, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Resource, placement::Shortage};

/// The result of every call of the contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option is missing, does not parse or contradicts another one.
    Config,
    /// The cloud does not accept who we say we are.
    Auth,
    /// The cloud knows us and forbids the operation.
    Permission,
    /// A limit of the account is reached.
    Quota,
    /// The cloud has no room for this type of machine at this place now.
    Capacity {
        /// The zone that was tried.
        zone: Option<String>,
        /// The instance type that was tried.
        instance_type: Option<String>,
    },
    /// Too many calls; the same call may succeed a little later.
    Throttled,
    /// The thing named by the request does not exist.
    NotFound,
    /// Something else holds the name, or the token was used with another request.
    Conflict,
    /// A passing fault: network, restart, a server's internal error.
    Transient,
    /// This provider cannot do what was asked, see [`crate::Capabilities`].
    Unsupported,
    /// The caller cancelled, or its deadline passed.
    Cancelled,
    /// A fault of ours, or an answer nobody expected.
    Internal,
}

impl ErrorKind {
    /// Returns a fixed word for logs and metric labels.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Auth => "auth",
            Self::Permission => "permission",
            Self::Quota => "quota",
            Self::Capacity { .. } => "capacity",
            Self::Throttled => "throttled",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Transient => "transient",
            Self::Unsupported => "unsupported",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// Returns what a caller does by default after an error of this kind.
    fn default_retry(&self) -> Retry {
        match self {
            Self::Throttled => Retry::After { delay: Duration::from_secs(1) },
            Self::Transient => Retry::After { delay: Duration::from_millis(500) },
            Self::Capacity { .. } => Retry::Elsewhere,
            _ => Retry::Never,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Retry {
    /// The same call fails again until somebody changes something.
    Never,
    /// The same call may succeed after at least `delay`.
    After {
        /// The least time to wait, the server's own word where it gave one.
        delay: Duration,
    },
    /// The same request may succeed in another zone, or with another type.
    Elsewhere,
}

/// One link of the chain of causes, kept as text so that it can cross a process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        Self { message: error.to_string(), source: error.source().map(|s| Box::new(Self::of(s))) }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|c| c as _)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    message: String,
    operation: Option<String>,
    code: Option<String>,
    cloud_message: Option<String>,
    context: Vec<(String, String)>,
    leftovers: Vec<Resource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shortage: Option<Shortage>,
    source: Option<Cause>,
}

/// An error of the contract: plain data, so that a provider can live in another process.
///
/// The text describes our own step; the causes follow through [`StdError::source`] and are printed once, at the edge,
/// by [`Error::report`].
///
/// ```
/// use cloud_providers::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Config, "instance type is outside the allowed list")
///     .with("requested", "m9.huge")
///     .with("set", "PODVM_INSTANCE_TYPES");
/// assert_eq!(
///     error.to_string(),
///     "instance type is outside the allowed list (requested: m9.huge, set: PODVM_INSTANCE_TYPES)"
/// );
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Inner>);

impl Error {
    /// Makes an error with the retry rule that fits `kind` in most cases.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            retry: kind.default_retry(),
            kind,
            message: message.into(),
            operation: None,
            code: None,
            cloud_message: None,
            context: Vec::new(),
            leftovers: Vec::new(),
            shortage: None,
            source: None,
        }))
    }

    /// Makes a [`ErrorKind::Config`] error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Makes a [`ErrorKind::Internal`] error.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Makes the error of an operation that a provider does not have.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what)
    }

    /// Joins several problems into one error, so that a user mends them all at once.
    ///
    /// Returns `None` when there is no problem.
    pub fn all(kind: ErrorKind, problems: Vec<String>) -> Option<Self> {
        match problems.len() {
            0 => None,
            1 => Some(Self::new(kind, problems.into_iter().next().unwrap_or_default())),
            n => Some(Self::new(kind, format!("{n} problems: {}", problems.join("; ")))),
        }
    }

    /// Adds a value that matters, shown in parentheses.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.0.context.push((key.into(), value.to_string()));
        self
    }

    /// Sets the retry rule.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Names the step that failed, such as `RunInstances`.
    #[must_use]
    pub fn with_operation(mut self, operation: impl Into<String>) -> Self {
        self.0.operation = Some(operation.into());
        self
    }

    /// Keeps a code alone, where the source says the rest, as with errors of the system.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// Keeps the cloud's own code and message beside our classification.
    #[must_use]
    pub fn with_cloud(mut self, code: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.code = Some(code.into());
        self.0.cloud_message = Some(message.into());
        self
    }

    /// Names resources that could not be undone and are still there.
    #[must_use]
    pub fn with_leftovers(mut self, leftovers: impl IntoIterator<Item = Resource>) -> Self {
        self.0.leftovers.extend(leftovers);
        self
    }

    /// Says what a refusal for lack of room is about, see [`crate::placement`].
    #[must_use]
    pub fn with_shortage(mut self, shortage: Shortage) -> Self {
        self.0.shortage = Some(shortage);
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + 'static) -> Self {
        self.0.source = Some(Cause::of(&source));
        self
    }

    /// Replaces `secret` wherever it stands in the error and its causes.
    ///
    /// For answers of clouds that quote what they were sent. An empty secret replaces nothing.
    #[must_use]
    pub fn redact(mut self, secret: &str) -> Self {
        if secret.is_empty() {
            return self;
        }
        let clean = |text: &mut String| *text = text.replace(secret, "[redacted]");
        let e = &mut *self.0;
        clean(&mut e.message);
        e.operation.iter_mut().chain(&mut e.code).chain(&mut e.cloud_message).for_each(clean);
        e.context.iter_mut().for_each(|(_, value)| clean(value));
        let mut cause = e.source.as_mut();
        while let Some(link) = cause {
            clean(&mut link.message);
            cause = link.source.as_deref_mut();
        }
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Returns what to do next.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Returns the step that failed.
    pub fn operation(&self) -> Option<&str> {
        self.0.operation.as_deref()
    }

    /// Returns the cloud's own error code.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Returns the cloud's own message.
    pub fn cloud_message(&self) -> Option<&str> {
        self.0.cloud_message.as_deref()
    }

    /// Returns what is still there although the call failed.
    pub fn leftovers(&self) -> &[Resource] {
        &self.0.leftovers
    }

    /// Returns what a refusal for lack of room is about, where the cloud's code says it.
    pub fn shortage(&self) -> Option<Shortage> {
        self.0.shortage
    }

    /// Returns the whole chain in one line: this error, then each cause.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        if let Some(operation) = &e.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&e.message)?;
        let mut pairs: Vec<(&str, &str)> = e.context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        if let Some(code) = &e.code {
            pairs.push(("code", code));
        }
        if let Some(message) = &e.cloud_message {
            pairs.push(("cloud says", message));
        }
        let leftovers = e.leftovers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        if !leftovers.is_empty() {
            pairs.push(("left over", &leftovers));
        }
        for (i, (key, value)) in pairs.iter().enumerate() {
            write!(f, "{}{key}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if pairs.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, retry {:?}: {}", self.0.kind, self.0.retry, self.report())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|c| c as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_printed_once() {
        let io = std::io::Error::other("disk is full");
        let error = Error::internal("cannot write the seed").with("path", "/x").with_source(io);
        assert_eq!(error.to_string(), "cannot write the seed (path: /x)");
        assert_eq!(error.report(), "cannot write the seed (path: /x): disk is full");
    }

    #[test]
    fn an_error_survives_serialisation() {
        let error =
            Error::new(ErrorKind::Capacity { zone: Some("a".into()), instance_type: None }, "no room")
                .with_operation("RunInstances")
                .with_cloud("InsufficientInstanceCapacity", "try later")
                .with_leftovers([Resource::new("network_interface", "eni-1")])
                .with_source(std::io::Error::other("x"));
        let json = serde_json::to_string(&error).unwrap();
        let back: Error = serde_json::from_str(&json).unwrap();
        assert_eq!(back, error);
        assert_eq!(back.retry(), Retry::Elsewhere);
        assert!(back.to_string().contains("left over: network_interface eni-1"));
    }

    #[test]
    fn a_redacted_secret_is_in_no_form_of_the_error() {
        let source =
            Error::internal("header Authorization: canary").with_source(std::io::Error::other("canary"));
        let error = Error::new(ErrorKind::Auth, "bad key canary")
            .with("sent", "canary!")
            .with_operation("Login canary")
            .with_cloud("canary", "key canary is unknown")
            .with_source(source)
            .redact("canary");
        let json = serde_json::to_string(&error).unwrap();
        for text in [error.to_string(), error.report(), format!("{error:?}"), json] {
            assert!(!text.contains("canary") && text.contains("[redacted]"), "{text}");
        }
        assert_eq!(error.clone().redact(""), error);
    }

    #[test]
    fn every_kind_says_what_to_do_and_shows_its_word() {
        let capacity = ErrorKind::Capacity { zone: None, instance_type: None };
        for (kind, label, retry) in [
            (ErrorKind::Config, "config", Retry::Never),
            (ErrorKind::Auth, "auth", Retry::Never),
            (ErrorKind::Permission, "permission", Retry::Never),
            (ErrorKind::Quota, "quota", Retry::Never),
            (capacity, "capacity", Retry::Elsewhere),
            (ErrorKind::Throttled, "throttled", Retry::After { delay: Duration::from_secs(1) }),
            (ErrorKind::NotFound, "not_found", Retry::Never),
            (ErrorKind::Conflict, "conflict", Retry::Never),
            (ErrorKind::Transient, "transient", Retry::After { delay: Duration::from_millis(500) }),
            (ErrorKind::Unsupported, "unsupported", Retry::Never),
            (ErrorKind::Cancelled, "cancelled", Retry::Never),
            (ErrorKind::Internal, "internal", Retry::Never),
        ] {
            let error = Error::new(kind, "x");
            assert_eq!((error.kind().to_string().as_str(), error.retry()), (label, retry));
            assert!(format!("{error:?}").starts_with(label), "{error:?}");
        }
    }

    #[test]
    fn several_problems_become_one_error() {
        assert!(Error::all(ErrorKind::Config, vec![]).is_none());
        let error = Error::all(ErrorKind::Config, vec!["a".into(), "b".into()]).unwrap();
        assert_eq!(error.to_string(), "2 problems: a; b");
    }
}
