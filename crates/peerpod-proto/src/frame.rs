//! The frames of ttrpc: a header of ten bytes and a payload.

mod read;
mod write;

use std::io;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::read::{FrameReader, Inbound};
pub use self::write::FrameWriter;

/// Length of the header in front of a payload.
pub const HEADER_LEN: usize = 10;

/// The longest payload a frame may have: 4 MiB.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// Kind of the frames in which the ends of a session tell each other what they have received; see [`crate::relay`].
const ACKNOWLEDGEMENT: u8 = 0xa0;

/// Room is made for so many acknowledgements at once, and used again once they are written.
const ACKNOWLEDGEMENTS: usize = 32;

/// A task that has read or written so much lets the others of its thread go on first. Sandboxes that share a thread would
/// wait for all that the busiest of them has to do otherwise.
const TURN: usize = 64 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A request.
    Request,
    /// A response.
    Response,
    /// Data of a stream; no service of peer pods has streams.
    Data,
    /// A kind that is not known here.
    Other(u8),
}

impl From<u8> for Kind {
    fn from(kind: u8) -> Self {
        match kind {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Data,
            kind => Self::Other(kind),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Data => 3,
            Kind::Other(kind) => kind,
        }
    }
}

/// The header of a frame: all numbers big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Length of the payload.
    pub length: u32,
    /// Which call the frame belongs to.
    pub stream_id: u32,
    /// What the frame carries.
    pub kind: Kind,
    /// Flags; 0 for calls with one request and one response.
    pub flags: u8,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream_id: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: Kind::from(kind),
            flags,
        }
    }

    /// Writes a header.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream_id.to_be_bytes());
        bytes[8] = self.kind.into();
        bytes[9] = self.flags;
        bytes
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Which call the frame belongs to.
    pub stream_id: u32,
    /// What the frame carries.
    pub kind: Kind,
    /// Flags; 0 for calls with one request and one response.
    pub flags: u8,
    /// The payload, at most [`MAX_PAYLOAD`] long.
    pub payload: Bytes,
}

impl Frame {
    /// Makes the frame of a request.
    pub fn request(stream_id: u32, payload: Bytes) -> Self {
        Self { stream_id, kind: Kind::Request, flags: 0, payload }
    }

    /// Makes the frame of a response.
    pub fn response(stream_id: u32, payload: Bytes) -> Self {
        Self { stream_id, kind: Kind::Response, flags: 0, payload }
    }

    /// What an acknowledgement tells; nothing for any other frame.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        if self.kind != Kind::Other(ACKNOWLEDGEMENT) {
            return None;
        }
        self.payload.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// The header of this frame.
    pub fn header(&self) -> Header {
        Header {
            length: self.payload.len() as u32,
            stream_id: self.stream_id,
            kind: self.kind,
            flags: self.flags,
        }
    }
}

/// Makes acknowledgements, in room that is used again.
#[derive(Debug, Default)]
pub(crate) struct Acknowledgements(BytesMut);

impl Acknowledgements {
    /// Tells how much of a session was received: responses, or the highest stream id of a request.
    pub(crate) fn frame(&mut self, received: u64) -> Frame {
        if self.0.capacity() < size_of::<u64>() {
            self.0.reserve(ACKNOWLEDGEMENTS * size_of::<u64>());
        }
        self.0.put_u64(received);
        let payload = self.0.split().freeze();
        Frame { stream_id: 1, kind: Kind::Other(ACKNOWLEDGEMENT), flags: 0, payload }
    }
}

/// Why frames can no longer be read or written. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The connection ended within a frame.
    #[error("connection ended within a frame, {missing} bytes before its end")]
    Truncated {
        /// How many bytes are missing, of the header or of the payload.
        missing: usize,
    },
    /// A frame to be written is too long.
    #[error("frame of {length} bytes exceeds the limit of {MAX_PAYLOAD}")]
    TooLong {
        /// Length of the payload.
        length: usize,
    },
    /// The connection failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
}
