//! A TCP proxy that does to its connections what networks do.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The most bytes passed on at once.
const PIECE: usize = 16 << 10;

/// Passes TCP connections on to a target, and cuts them, stalls them or refuses new ones on demand.
///
/// A connection that is cut is reset on both sides: what is on its way is lost, also in the middle of a frame.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    cut: Mutex<CancellationToken>,
    refusing: AtomicBool,
    stalled: AtomicBool,
    resumed: Notify,
    /// Bytes that still pass before all connections are cut; below zero for no limit.
    budget: AtomicI64,
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl FaultProxy {
    /// Listens on a port of loopback.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Self {
            address: listener.local_addr()?,
            shared: Arc::new(Shared {
                target: Mutex::new(target),
                cut: Mutex::default(),
                refusing: AtomicBool::new(false),
                stalled: AtomicBool::new(false),
                resumed: Notify::new(),
                budget: AtomicI64::new(-1),
                connections: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
            }),
            stop: CancellationToken::new(),
        };
        let (shared, stop) = (Arc::clone(&proxy.shared), proxy.stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(accept(listener, shared)).await });
        Ok(proxy)
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes new connections on to another target.
    pub fn set_target(&self, target: SocketAddr) {
        *lock(&self.shared.target) = target;
    }

    /// Resets all connections; new ones are taken.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Resets all connections after so many more bytes, in both directions together.
    pub fn cut_after(&self, bytes: u32) {
        self.shared.budget.store(bytes.into(), Ordering::SeqCst);
    }

    /// Whether bytes still pass until the cut that [`FaultProxy::cut_after`] asked for.
    pub fn is_to_be_cut(&self) -> bool {
        self.shared.budget.load(Ordering::SeqCst) >= 0
    }

    /// Resets new connections at once, or takes them again.
    pub fn set_refusing(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
    }

    /// Passes no byte on and closes nothing, or goes on.
    pub fn set_stalled(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::SeqCst);
        self.shared.resumed.notify_waiters();
    }

    /// How many connections were passed on so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes have passed so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.stop.cancel();
        self.shared.cut();
    }
}

impl Shared {
    fn cut(&self) {
        std::mem::take(&mut *lock(&self.cut)).cancel();
    }

    /// How many of `length` bytes may pass; fewer when the connections are to be cut then.
    fn pass(&self, length: usize) -> (usize, bool) {
        let wanted = i64::try_from(length).unwrap_or(i64::MAX);
        let take = |left: i64| (left >= 0).then(|| if left <= wanted { -1 } else { left - wanted });
        match self.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(left) if left <= wanted => (usize::try_from(left).unwrap_or(0), true),
            _ => (length, false),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((near, _)) = listener.accept().await {
        if shared.refusing.load(Ordering::SeqCst) {
            reset_on_close(&near);
            continue;
        }
        let shared = Arc::clone(&shared);
        let cut = lock(&shared.cut).clone();
        tokio::spawn(async move {
            let target = *lock(&shared.target);
            let Ok(far) = TcpStream::connect(target).await else { return reset_on_close(&near) };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            shared.connections.fetch_add(1, Ordering::SeqCst);
            pass_on(near, far, &shared, &cut).await;
        });
    }
}

async fn pass_on(mut near: TcpStream, mut far: TcpStream, shared: &Shared, cut: &CancellationToken) {
    reset_on_close(&near);
    reset_on_close(&far);
    let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
    let both =
        async { tokio::try_join!(copy(near_read, far_write, shared), copy(far_read, near_write, shared)) };
    // However it ends, both streams are closed now.
    let _ = cut.run_until_cancelled(both).await;
}

async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, shared: &Shared) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        loop {
            let mut resumed = std::pin::pin!(shared.resumed.notified());
            resumed.as_mut().enable();
            if !shared.stalled.load(Ordering::SeqCst) {
                break;
            }
            resumed.await;
        }
        let (passed, is_last) = shared.pass(count);
        to.write_all(&piece[..passed]).await?;
        shared.bytes.fetch_add(passed as u64, Ordering::SeqCst);
        if is_last {
            shared.cut();
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

/// Has a connection end with a reset, as after a fault, and not with an orderly end.
fn reset_on_close(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn bytes_pass_until_the_connection_is_cut() {
        let proxy = FaultProxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let mut back = [0; 5];
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!((&back, proxy.bytes()), (b"hello", 10));
        proxy.cut();
        assert!(stream.read(&mut back).await.is_err(), "reset, not closed");
        proxy.set_refusing(true);
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(refused.read(&mut back).await.is_err());
        assert_eq!(proxy.connections(), 1);
    }

    #[tokio::test]
    async fn a_cut_comes_after_the_bytes_that_were_asked_for() {
        let proxy = FaultProxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.cut_after(7);
        stream.write_all(b"hello").await.unwrap();
        let mut back = Vec::new();
        let error = stream.read_to_end(&mut back).await;
        assert!(error.is_err() && back.len() <= 2, "{back:?}");
        assert!(!proxy.is_to_be_cut());
        assert_eq!(proxy.bytes(), 7);
    }

    #[tokio::test]
    async fn a_stalled_connection_goes_on_later() {
        let proxy = FaultProxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.set_stalled(true);
        stream.write_all(b"x").await.unwrap();
        let mut back = [0];
        let early = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(early, stream.read_exact(&mut back)).await.is_err());
        proxy.set_stalled(false);
        stream.read_exact(&mut back).await.unwrap();
    }
}
