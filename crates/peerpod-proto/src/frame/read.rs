//! Reading frames.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::yield_now;

use super::{Frame, FrameError, HEADER_LEN, Header, MAX_PAYLOAD, TURN};

/// Room for reading several small frames at once, on a connection that carries many.
const BUFFER: usize = 8 << 10;

/// Room on one that does not. A node has three connections for each sandbox, and most carry a health check now and then.
const QUIET: usize = 512;

/// A connection that uses its room up in less time carries many frames.
const BUSY: Duration = Duration::from_secs(1);

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A frame.
    Frame(Frame),
    /// A frame above the limit. Its payload is discarded, and the connection can be read on.
    Oversized(Header),
}

/// Reads frames from a connection.
///
/// One read may bring many frames, and payloads are handed out without copying them.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
    /// How much room is made for reading, and when it was used up last.
    room: usize,
    made: Option<Instant>,
    /// How much was read since others had their turn.
    turn: usize,
    /// What is left to discard of a frame above the limit.
    discard: Option<(Header, usize)>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: BytesMut::new(), room: QUIET, made: None, turn: 0, discard: None }
    }

    /// Waits for the header of the next frame and leaves it where it is; `None` where the connection ends before one.
    ///
    /// No room is made for a payload before [`FrameReader::read`] is called, so that its reader may wait first.
    ///
    /// # Errors
    ///
    /// As for [`FrameReader::read`].
    pub(crate) async fn peek(&mut self) -> Result<Option<Header>, FrameError> {
        loop {
            if let Some((header, _)) = self.discard {
                return Ok(Some(header));
            }
            if let Some(header) = self.buffer.first_chunk() {
                return Ok(Some(Header::parse(*header)));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Takes the next frame when all of it is there already.
    pub(crate) fn ready(&mut self) -> Option<Inbound> {
        let header = Header::parse(*self.buffer.first_chunk()?);
        if self.holds(&header) { self.take() } else { None }
    }

    /// Whether all of the frame with this header, the next one, is there already.
    pub(crate) fn holds(&self, header: &Header) -> bool {
        self.discard.is_none() && self.buffer.len() >= HEADER_LEN + header.length as usize
    }

    /// Where it is read from.
    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Reads the next frame, or `None` where the connection ends between two frames.
    ///
    /// A call that is dropped loses nothing: the next one goes on where it was.
    ///
    /// # Errors
    ///
    /// [`FrameError::Truncated`] when the connection ends within a frame, [`FrameError::Io`] when it fails.
    pub async fn read(&mut self) -> Result<Option<Inbound>, FrameError> {
        loop {
            if let Some(inbound) = self.take() {
                return Ok(Some(inbound));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads something more. Returns false where the connection ends between two frames.
    async fn fill(&mut self) -> Result<bool, FrameError> {
        // A frame that has begun has its room already; more would copy it.
        let room = self.buffer.capacity() - self.buffer.len();
        if self.buffer.is_empty() && room < self.room / 8 {
            let now = Instant::now();
            let busy = self.made.replace(now).is_some_and(|made| now.duration_since(made) < BUSY);
            let wanted = if busy { BUFFER } else { QUIET };
            if wanted != self.room || !self.buffer.try_reclaim(wanted) {
                self.room = wanted;
                // Not reserved, which would make it as large as it ever was.
                self.buffer = BytesMut::with_capacity(wanted);
            }
        } else if room == 0 {
            self.buffer.reserve(BUFFER);
        }
        let count = self.read_some().await?;
        if count > 0 {
            self.turn += count;
            if self.turn >= TURN {
                self.turn = 0;
                yield_now().await;
            }
            return Ok(true);
        }
        match self.missing() {
            0 => Ok(false),
            missing => Err(FrameError::Truncated { missing }),
        }
    }

    /// Takes the next frame out of the buffer when all of it is there, or makes room for its rest.
    fn take(&mut self) -> Option<Inbound> {
        if let Some((header, left)) = self.discard {
            let now = left.min(self.buffer.len());
            self.buffer.advance(now);
            if now < left {
                self.discard = Some((header, left - now));
                return None;
            }
            self.discard = None;
            return Some(Inbound::Oversized(header));
        }
        let header = Header::parse(*self.buffer.first_chunk()?);
        let length = header.length as usize;
        if length > MAX_PAYLOAD {
            self.buffer.advance(HEADER_LEN);
            self.discard = Some((header, length));
            return self.take();
        }
        let whole = HEADER_LEN + length;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return None;
        }
        let mut frame = self.buffer.split_to(whole);
        frame.advance(HEADER_LEN);
        let Header { stream_id, kind, flags, .. } = header;
        Some(Inbound::Frame(Frame { stream_id, kind, flags, payload: frame.freeze() }))
    }

    /// How many bytes the frame that has begun still needs.
    fn missing(&self) -> usize {
        if let Some((_, left)) = self.discard {
            return left;
        }
        match self.buffer.first_chunk() {
            Some(header) => Header::parse(*header).length as usize + HEADER_LEN - self.buffer.len(),
            None if self.buffer.is_empty() => 0,
            None => HEADER_LEN - self.buffer.len(),
        }
    }

    async fn read_some(&mut self) -> Result<usize, FrameError> {
        match self.inner.read_buf(&mut self.buffer).await {
            Ok(count) => Ok(count),
            // TLS tells a connection that was cut from one that was closed; here a cut between two frames
            // is an end like any other.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}
