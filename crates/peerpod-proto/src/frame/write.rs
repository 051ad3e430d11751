//! Writing frames.

use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{Frame, FrameError, MAX_PAYLOAD};

/// Payloads up to this length are copied together, which is cheaper than handing the kernel many pieces.
const SMALL: usize = 4 << 10;

/// The most pieces handed over with one call.
const PIECES: usize = 64;

/// Writes frames to a connection, many at once where many are ready.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner }
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
        let mut pieces = pieces(frames);
        if let [piece] = pieces.as_slice() {
            self.inner.write_all(piece).await?;
        } else {
            self.write_pieces(&mut pieces).await?;
        }
        self.inner.flush().await?;
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

    async fn write_pieces(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        let mut first = 0;
        while first < pieces.len() {
            let written = {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let count = pieces.len().saturating_sub(first).min(PIECES);
                for (slice, piece) in slices.iter_mut().zip(&pieces[first..]) {
                    *slice = IoSlice::new(piece);
                }
                self.inner.write_vectored(&slices[..count]).await?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let mut left = written;
            while first < pieces.len() && left >= pieces[first].len() {
                left -= pieces[first].len();
                first += 1;
            }
            if first < pieces.len() {
                pieces[first].advance(left);
            }
        }
        Ok(())
    }
}

/// Lays frames out as few pieces: small ones are copied together, large payloads stay where they are.
fn pieces(frames: &[Frame]) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut together = BytesMut::new();
    for frame in frames {
        together.put_slice(&frame.header().to_bytes());
        if frame.payload.len() <= SMALL {
            together.put_slice(&frame.payload);
        } else {
            pieces.push(together.split().freeze());
            pieces.push(frame.payload.clone());
        }
    }
    if !together.is_empty() {
        pieces.push(together.freeze());
    }
    pieces
}
