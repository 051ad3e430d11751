//! Writing frames.

use std::io::{self, IoSlice};
use std::ops::Range;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;

use super::{Frame, FrameError, MAX_PAYLOAD, TURN};

/// Payloads up to this length are copied together, which is cheaper than handing the kernel many pieces.
const SMALL: usize = 4 << 10;

/// The most pieces handed over with one call. They are part of every task that writes.
const PIECES: usize = 16;

/// The most room for small frames that is kept from one call to the next.
const KEPT: usize = 32 << 10;

/// Writes frames to a connection, many at once where many are ready.
///
/// What is needed to lay frames out is used again, so that writing allocates nothing once it is under way.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    /// Headers and small payloads.
    together: Vec<u8>,
    pieces: Vec<Piece>,
}

/// A part of what is written with one call.
#[derive(Debug)]
enum Piece {
    /// Bytes that were put together.
    Together(Range<usize>),
    /// The payload of the frame with this index, where it lies.
    Payload(usize),
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, together: Vec::new(), pieces: Vec::new() }
    }

    /// Writes frames in order and flushes them.
    ///
    /// A call that is dropped may leave a part of a frame behind; the connection must then be closed.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`], before anything is written, when a payload is above the limit;
    /// [`FrameError::Io`] when the connection fails.
    pub async fn write(&mut self, frames: &[Frame]) -> Result<(), FrameError> {
        if let Some(frame) = frames.iter().find(|frame| frame.payload.len() > MAX_PAYLOAD) {
            return Err(FrameError::TooLong { length: frame.payload.len() });
        }
        self.lay_out(frames);
        if let [Piece::Together(all)] = self.pieces.as_slice() {
            self.inner.write_all(&self.together[all.clone()]).await?;
        } else {
            self.write_pieces(frames).await?;
        }
        self.inner.flush().await?;
        if self.together.capacity() > KEPT {
            self.together = Vec::new();
        }
        Ok(())
    }

    /// Closes the writing side.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.inner.shutdown().await
    }

    /// Lays frames out as few pieces: small ones are copied together, large payloads stay where they are.
    fn lay_out(&mut self, frames: &[Frame]) {
        self.together.clear();
        self.pieces.clear();
        let mut start = 0;
        for (index, frame) in frames.iter().enumerate() {
            self.together.extend_from_slice(&frame.header().to_bytes());
            if frame.payload.len() <= SMALL {
                self.together.extend_from_slice(&frame.payload);
            } else {
                self.pieces.push(Piece::Together(start..self.together.len()));
                self.pieces.push(Piece::Payload(index));
                start = self.together.len();
            }
        }
        if start < self.together.len() {
            self.pieces.push(Piece::Together(start..self.together.len()));
        }
    }

    async fn write_pieces(&mut self, frames: &[Frame]) -> io::Result<()> {
        let Self { inner, together, pieces } = self;
        let bytes = |piece: &Piece| match piece {
            Piece::Together(range) => &together[range.clone()],
            Piece::Payload(index) => &frames[*index].payload[..],
        };
        // How much of the first piece that is left was written.
        let (mut first, mut done) = (0, 0);
        let mut turn = 0;
        while first < pieces.len() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = (pieces.len() - first).min(PIECES);
            for (slice, piece) in slices.iter_mut().zip(&pieces[first..]) {
                *slice = IoSlice::new(bytes(piece));
            }
            slices[0] = IoSlice::new(&bytes(&pieces[first])[done..]);
            let written = inner.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += written;
            turn += written;
            if turn >= TURN {
                turn = 0;
                yield_now().await;
            }
            while first < pieces.len() && done >= bytes(&pieces[first]).len() {
                done -= bytes(&pieces[first]).len();
                first += 1;
            }
        }
        Ok(())
    }
}
