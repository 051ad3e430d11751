//! The end of a connection, noticed while nothing is read from it.

use tokio::io::{Interest, ReadHalf};
use tokio::net::unix::OwnedReadHalf;

/// The reading half of a connection.
pub(crate) trait Ended {
    /// Waits until the other end is gone, whatever is still to be read. Where that cannot be told, this waits for ever.
    fn ended(&self) -> impl Future<Output = ()> + Send;
}

/// A connection of any kind.
impl<S: Send> Ended for ReadHalf<S> {
    fn ended(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

impl Ended for OwnedReadHalf {
    async fn ended(&self) {
        // Urgent data does not exist here, so that this is about the end alone, and not about what can be read.
        if self.ready(Interest::PRIORITY).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_end_is_noticed_with_everything_unread() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (read, _write) = near.into_split();
        far.write_all(&[7; 4096]).await.unwrap();
        read.readable().await.unwrap();
        assert!(read.ended().now_or_never().is_none(), "there is something to read, and no end");
        drop(far);
        read.ended().await;
    }
}
