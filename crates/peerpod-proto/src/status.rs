//! The outcome of a call: a code, a message and details, with the wording the existing programs use.

use std::fmt;

use bytes::Bytes;

/// The codes of gRPC, which ttrpc shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Code {
    /// The call succeeded.
    Ok = 0,
    /// The caller gave up.
    Canceled = 1,
    /// Anything without a code of its own; also a closed connection.
    Unknown = 2,
    /// The request cannot be right, whatever the state.
    InvalidArgument = 3,
    /// The caller's time is over.
    DeadlineExceeded = 4,
    /// What was asked for does not exist.
    NotFound = 5,
    /// What is to be made exists.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A limit is reached, for example the size of a message.
    ResourceExhausted = 8,
    /// The state does not allow the call now.
    FailedPrecondition = 9,
    /// The call was aborted.
    Aborted = 10,
    /// Past the end.
    OutOfRange = 11,
    /// The service or the method is not known.
    Unimplemented = 12,
    /// Something broke in the program that answers.
    Internal = 13,
    /// The service cannot be reached now.
    Unavailable = 14,
    /// Data was lost.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl From<i32> for Code {
    /// Reads a code from the wire; a number without a meaning is [`Code::Unknown`].
    fn from(code: i32) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::Canceled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

/// One detail of a status: `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Detail {
    /// Type of the value.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// The outcome of a call: `google.rpc.Status`. As an error, it is what the caller is told.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Status {
    /// The code as a number; see [`Status::code()`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What went wrong, for people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// What went wrong, for programs.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Detail>,
}

impl Status {
    /// Makes a status without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as i32, message: message.into(), details: Vec::new() }
    }

    /// The code.
    pub fn code(&self) -> Code {
        Code::from(self.code)
    }

    /// Whether the call succeeded. Some programs send an empty status for success, others leave it out.
    pub fn is_ok(&self) -> bool {
        self.code == 0
    }

    /// The request is not acceptable.
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Something broke on this side.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// No service has that name here.
    pub fn unknown_service(service: &str) -> Self {
        Self::new(Code::Unimplemented, format!("service {service}"))
    }

    /// The service has no method of that name.
    pub fn unknown_method(method: &str) -> Self {
        Self::new(Code::Unimplemented, format!("method {method}"))
    }

    /// The payload of a request is no message of the expected type.
    pub fn bad_payload(reason: impl fmt::Display) -> Self {
        Self::new(Code::Internal, format!("ttrpc: error unmarshalling payload: {reason}"))
    }

    /// The envelope of a request is damaged.
    pub fn bad_envelope(reason: impl fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, format!("unmarshal request error: {reason}"))
    }

    /// The deadline of the call passed.
    pub fn deadline_exceeded() -> Self {
        Self::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// The connection that would carry the call, or carried it, is gone.
    pub fn closed() -> Self {
        Self::new(Code::Unknown, "ttrpc: closed")
    }

    /// The connection that carried a call broke, and nobody knows whether the call was carried out.
    pub(crate) fn broken(peer: &str) -> Self {
        let message = format!(
            "the connection to {peer} broke before the answer came; whether the call took effect is not known"
        );
        Self::new(Code::Unavailable, message)
    }

    /// There was no connection for a call, which was therefore not made.
    pub(crate) fn unreachable(peer: &str, reason: Option<&str>) -> Self {
        let reason = reason.unwrap_or("no attempt has ended yet");
        Self::new(
            Code::Unavailable,
            format!("there is no connection to {peer}, the call was not made: {reason}"),
        )
    }

    /// A message is larger than a frame may be.
    pub fn oversized(length: usize) -> Self {
        Self::new(
            Code::ResourceExhausted,
            format!("message length {length} exceed maximum message size of {}", crate::frame::MAX_PAYLOAD),
        )
    }

    /// Client streams carry odd numbers.
    pub(crate) fn even_stream_id() -> Self {
        Self::invalid_argument("StreamID must be odd for client initiated streams")
    }

    /// Stream numbers of a connection only grow.
    pub(crate) fn reused_stream_id() -> Self {
        Self::invalid_argument("StreamID cannot be re-used and must increment")
    }

    /// Data came for a stream that takes none.
    pub(crate) fn inactive_stream() -> Self {
        Self::invalid_argument("StreamID is no longer active")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, code {})", self.message, self.code(), self.code)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for number in 0..=16 {
            assert_eq!(Code::from(number) as i32, number);
        }
        assert_eq!(Code::from(99), Code::Unknown);
    }

    #[test]
    fn messages_are_those_of_the_existing_programs() {
        assert_eq!(Status::unknown_service("x.Y").message, "service x.Y");
        assert_eq!(Status::unknown_method("Nope").message, "method Nope");
        assert_eq!(
            Status::oversized(4_194_305).message,
            "message length 4194305 exceed maximum message size of 4194304"
        );
        assert_eq!(Status::closed().code, 2);
    }
}
