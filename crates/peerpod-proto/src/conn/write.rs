//! The writing half of a connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{BATCH, FRAME_COST, Out, Outbox, WAITS};
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
                let mut acknowledge = written.take(&mut taken, &mut batch, &mut end);
                if outbox.calls.load(Ordering::Relaxed) > 0 {
                    // Answers of other calls may be there already: who has several under way gets them together.
                    for _ in 0..WAITS {
                        let before = batch.len();
                        yield_now().await;
                        while taken.len() + before < BATCH
                            && let Ok(out) = queue.try_recv()
                        {
                            taken.push(out);
                        }
                        // At once: what is taken out of the queue would be lost if the connection went meanwhile.
                        acknowledge |= written.take(&mut taken, &mut batch, &mut end);
                        if batch.len() == before {
                            break;
                        }
                    }
                }
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
        let (before, mut acknowledge) = (batch.len(), false);
        for out in taken.drain(..) {
            match out {
                Out::Frame(frame) => batch.push(frame),
                Out::Acknowledge => acknowledge = true,
                Out::End => *end = true,
            }
        }
        let new = &batch[before..];
        self.bytes += new.iter().map(|frame| frame.payload.len() + FRAME_COST).sum::<usize>();
        if let Some(kept) = &self.outbox.kept
            && !kept.note(new)
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn answers_that_wait_for_others_are_kept_when_the_connection_goes() {
        // Whether the writer sees the end or goes on first is up to chance.
        for _ in 0..32 {
            let (outbox, queue) = Outbox::new(Some(1 << 20));
            let link = CancellationToken::new();
            let (write, _peer) = tokio::io::duplex(1 << 10);
            assert!(outbox.begin_call() && outbox.begin_call() && outbox.begin_call());
            outbox.respond_raw(3, Bytes::from_static(b"answer"));
            let writing = write_all(write, queue, Arc::clone(&outbox), link.clone(), Vec::new());
            let writer = tokio::spawn(writing);
            // It has taken the answer, and waits for those of the other calls.
            yield_now().await;
            outbox.respond_raw(5, Bytes::from_static(b"answer"));
            yield_now().await;
            link.cancel();
            writer.await.unwrap();
            let kept = outbox.kept().unwrap().after(0).unwrap();
            assert_eq!(kept.iter().map(|frame| frame.stream_id).collect::<Vec<_>>(), [3, 5]);
            assert_eq!(outbox.queued.load(Ordering::Relaxed), 0);
        }
    }
}
