//! The writing half of a connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{BATCH, FRAME_COST, Out, Outbox};
use crate::frame::{Acknowledgements, Frame, FrameError, FrameWriter};

/// Writes what is queued until the connection ends, and hands the queue back.
pub(super) async fn write_all(
    write: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Out>,
    outbox: Arc<Outbox>,
    link: CancellationToken,
    greeting: Vec<Frame>,
) -> mpsc::UnboundedReceiver<Out> {
    let mut writer = FrameWriter::new(write);
    let (mut taken, mut batch) = (Vec::new(), Vec::new());
    let mut acknowledgements = Acknowledgements::default();
    {
        let work = async {
            if !greeting.is_empty() {
                writer.write(&greeting).await?;
                drop(greeting);
            }
            loop {
                outbox.window().await;
                queue.recv_many(&mut taken, BATCH).await;
                let mut end = taken.is_empty();
                let mut written = Written { outbox: &outbox, bytes: 0 };
                let acknowledge = written.take(&mut taken, &mut batch, &mut end);
                if acknowledge && let Some(kept) = &outbox.kept {
                    batch.push(acknowledgements.frame(kept.received().into()));
                }
                writer.write(&batch).await?;
                batch.clear();
                if end {
                    writer.shutdown().await?;
                    return Ok::<(), FrameError>(());
                }
            }
        };
        tokio::select! {
            result = work => if let Err(error) = result {
                debug!(error = %crate::chain(&error), "responses cannot be written");
            },
            () = link.cancelled() => {}
        }
    }
    link.cancel();
    queue
}

/// Makes room in an outbox once frames are written, or a connection that was to carry them is gone.
struct Written<'a> {
    outbox: &'a Outbox,
    bytes: usize,
}

impl Written<'_> {
    /// Moves what was taken out of the queue into the batch, and keeps it for a session: all at once, so that nothing is
    /// lost where the connection goes before it is written. Returns whether to acknowledge requests.
    fn take(&mut self, taken: &mut Vec<Out>, batch: &mut Vec<Frame>, end: &mut bool) -> bool {
        let mut acknowledge = false;
        for out in taken.drain(..) {
            match out {
                Out::Frame(frame) => batch.push(frame),
                Out::Acknowledge => acknowledge = true,
                Out::End => *end = true,
            }
        }
        self.bytes += batch.iter().map(|frame| frame.payload.len() + FRAME_COST).sum::<usize>();
        if let Some(kept) = &self.outbox.kept
            && !kept.note(batch)
        {
            warn!(bytes = kept.limit(), "a peer acknowledges nothing: its session is kept no more");
        }
        acknowledge
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.outbox.queued.fetch_sub(self.bytes, Ordering::Relaxed);
        self.outbox.drained.notify_waiters();
    }
}
