//! What a frame carries: a request with the name of its service and method, or a response.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::status::{Code, Status};
use crate::wire::{self, WireError, WireType};

/// Number of the field that carries the inner message of a request.
pub(crate) const REQUEST_PAYLOAD: u32 = 3;

/// One entry of a request's metadata. The same key may come more than once; keys are looked up in lower case.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct KeyValue {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Full name of the service.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Name of the method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded inner message.
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
    /// Time the caller gives, in nanoseconds from now; 0 for no limit.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// Metadata, for example the headers of a trace.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

impl Request {
    /// Makes a request without metadata.
    pub fn new(
        service: impl Into<String>,
        method: impl Into<String>,
        payload: Bytes,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            service: service.into(),
            method: method.into(),
            payload,
            timeout_nano: timeout.map_or(0, timeout_nano),
            metadata: Vec::new(),
        }
    }

    /// The time the caller gives.
    pub fn timeout(&self) -> Option<Duration> {
        positive_nanos(self.timeout_nano)
    }

    /// Encodes the request as the payload of a frame.
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

/// A response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Why the call failed. Absent or empty on success.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The encoded inner message.
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
}

impl Response {
    /// Makes the response of a call. A successful one carries no status.
    pub fn new(result: Result<Bytes, Status>) -> Self {
        match result {
            Ok(payload) => Self { status: None, payload },
            Err(status) => {
                // A failed call with code 0 would be read as success on the other side.
                let status = if status.is_ok() { Status::new(Code::Unknown, status.message) } else { status };
                Self { status: Some(status), payload: Bytes::new() }
            }
        }
    }

    /// The inner message, or why there is none.
    ///
    /// # Errors
    ///
    /// The status of the response, when it is there and not empty.
    pub fn into_result(self) -> Result<Bytes, Status> {
        match self.status {
            Some(status) if !status.is_ok() => Err(status),
            _ => Ok(self.payload),
        }
    }

    /// Encodes the response as the payload of a frame.
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

/// What a relay needs to know of a request, read without copying it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestView<'a> {
    /// Full name of the service.
    pub service: &'a str,
    /// Name of the method.
    pub method: &'a str,
    /// Time the caller gives, in nanoseconds; 0 for no limit.
    pub timeout_nano: i64,
    payload: Range<usize>,
}

impl<'a> RequestView<'a> {
    /// Reads the envelope of a request.
    ///
    /// # Errors
    ///
    /// When the bytes are no protobuf message, or a name is no UTF-8.
    pub fn parse(envelope: &'a [u8]) -> Result<Self, WireError> {
        let mut view = Self { service: "", method: "", timeout_nano: 0, payload: 0..0 };
        for field in wire::fields(envelope) {
            let field = field?;
            match (field.number, field.wire_type) {
                (1, WireType::Len) => view.service = utf8(field.bytes(envelope), "service")?,
                (2, WireType::Len) => view.method = utf8(field.bytes(envelope), "method")?,
                (REQUEST_PAYLOAD, WireType::Len) => view.payload = field.value,
                (4, WireType::Varint) => view.timeout_nano = field.varint.cast_signed(),
                // Metadata is forwarded and never read here.
                (5, WireType::Len) => {}
                (1..=5, _) => return Err(WireError::UnexpectedType { field: field.number }),
                _ => {}
            }
        }
        Ok(view)
    }

    /// The time the caller gives.
    pub fn timeout(&self) -> Option<Duration> {
        positive_nanos(self.timeout_nano)
    }

    /// Where the inner message lies in the envelope.
    pub fn payload_range(&self) -> Range<usize> {
        self.payload.clone()
    }
}

fn utf8<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::NotUtf8 { what })
}

fn positive_nanos(nanos: i64) -> Option<Duration> {
    u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
}

/// Writes a timeout for the wire. Zero would mean "no limit", so a time that is over becomes one nanosecond.
fn timeout_nano(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let mut request = Request::new(
            "grpc.AgentService",
            "CopyFile",
            Bytes::from_static(b"\x0a\x02/x"),
            Some(Duration::from_secs(60)),
        );
        request.metadata.push(KeyValue { key: "traceparent".into(), value: "00-1".into() });
        request
    }

    #[test]
    fn view_reads_what_prost_reads() {
        let bytes = request().to_bytes();
        let view = RequestView::parse(&bytes).unwrap();
        assert_eq!(view.service, "grpc.AgentService");
        assert_eq!(view.method, "CopyFile");
        assert_eq!(view.timeout(), Some(Duration::from_secs(60)));
        assert_eq!(&bytes[view.payload_range()], b"\x0a\x02/x");
    }

    #[test]
    fn view_takes_the_last_of_a_repeated_field() {
        let mut bytes = request().encode_to_vec();
        bytes.extend_from_slice(&[0x12, 2, b'o', b'k']);
        assert_eq!(RequestView::parse(&bytes).unwrap().method, "ok");
    }

    #[test]
    fn view_refuses_damaged_envelopes() {
        let bytes = request().encode_to_vec();
        assert!(RequestView::parse(&bytes[..bytes.len() - 1]).is_err());
        assert!(RequestView::parse(b"\x0a\x02\xff\xfe").is_err());
        assert!(RequestView::parse(b"\x08\x01").is_err());
    }

    #[test]
    fn absent_and_empty_status_mean_success() {
        let absent = Response::decode(&b"\x12\x01x"[..]).unwrap();
        assert_eq!(absent.into_result().unwrap(), "x");
        let empty = Response::decode(&b"\x0a\x00\x12\x01x"[..]).unwrap();
        assert_eq!(empty.into_result().unwrap(), "x");
    }

    #[test]
    fn success_carries_no_status() {
        assert_eq!(Response::new(Ok(Bytes::from_static(b"x"))).to_bytes(), &b"\x12\x01x"[..]);
    }

    #[test]
    fn a_failure_never_reads_as_success() {
        let response = Response::new(Err(Status::new(Code::Ok, "odd")));
        assert_eq!(response.into_result().unwrap_err().code(), Code::Unknown);
    }

    #[test]
    fn negative_and_zero_timeouts_mean_no_limit() {
        for timeout_nano in [0, -1, i64::MIN] {
            assert_eq!(Request { timeout_nano, ..Default::default() }.timeout(), None);
        }
        assert_eq!(Request::new("s", "m", Bytes::new(), Some(Duration::ZERO)).timeout_nano, 1);
    }
}
