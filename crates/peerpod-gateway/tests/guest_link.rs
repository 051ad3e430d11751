//! The link to a guest: what goes over the wire, and guests that take no more than one connection.

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use peerpod_gateway::{AgentProxies, Gateway, ProxyState};
use peerpod_proto::{Server, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use common::{Agent, Guest, Pki, Pods, Valid, call, echo, wait_for, within};

/// Header of a TLS record: its kind, a version, and the length of what follows.
const RECORD: usize = 5;

/// Kind of the records that carry data, in TLS 1.3 also those of the last part of a handshake.
const DATA: u8 = 23;

/// What a record of TLS 1.3 can carry, and what its encryption adds.
const FULL: usize = 16 << 10;
const ADDED: usize = 17;

/// Carries one connection after another to a guest, and keeps the lengths of the records that a gateway sends.
struct Tap {
    address: SocketAddr,
    data: Arc<Mutex<Vec<usize>>>,
}

impl Tap {
    async fn start(guest: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, data) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<usize>>>::default());
        let seen = Arc::clone(&data);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(guest).await.unwrap();
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
                loop {
                    let mut header = [0; RECORD];
                    if near_read.read_exact(&mut header).await.is_err() {
                        break;
                    }
                    let [kind, _, _, high, low] = header;
                    let mut record = vec![0; usize::from(u16::from_be_bytes([high, low]))];
                    if near_read.read_exact(&mut record).await.is_err() {
                        break;
                    }
                    if kind == DATA {
                        seen.lock().unwrap().push(record.len());
                    }
                    let carried = [&header[..], &record].concat();
                    if far_write.write_all(&carried).await.is_err() {
                        break;
                    }
                }
            }
        });
        Self { address, data }
    }

    /// The lengths of the records since the last time.
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.data.lock().unwrap())
    }
}

#[tokio::test]
async fn a_small_message_is_one_record_and_a_large_one_as_few_as_can_be() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let guest = Guest::start(Some(pki.acceptor())).await;
    let tap = Tap::start(guest.address).await;
    gateway.register(pods.spec("s1", tap.address).with_tls(pki.spec())).await.unwrap();
    within(gateway.wait_ready("s1", CancellationToken::new())).await.unwrap();
    let shim = pods.shim("s1").await;
    // An answer says that everything before its request has passed.
    echo(&shim, "what comes first").await;
    tap.take();
    echo(&shim, "small").await;
    let small = tap.take();
    assert!(matches!(small[..], [length] if length < 200), "{small:?}");
    let payload = Bytes::from(vec![7; 1 << 20]);
    let answer = within(call(&shim, "Echo", payload.clone())).await.unwrap();
    assert!(answer == payload);
    let large = tap.take();
    let sent: usize = large.iter().map(|length| length - ADDED).sum();
    assert!(sent > payload.len() && sent < payload.len() + 200, "{sent} bytes were sent");
    // Where the wire takes no more, the library cuts a record short to keep what it holds within bounds.
    let full = large.iter().filter(|length| **length == FULL + ADDED).count();
    assert!(full * 2 > large.len(), "{full} of {} records are full", large.len());
}

/// How many connections to a port are begun and have no answer.
fn unanswered(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!(":{port:04X}");
    let begun = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next().is_some_and(|remote| remote.ends_with(&to)) && words.next() == Some("02")
    };
    table.lines().filter(begun).count()
}

/// Packets without an answer are followed by further ones. A connection that comes of one of them too late is closed at
/// once; such ones stand here in front of the one that counts, as they may in the queue of a guest.
#[tokio::test]
async fn a_guest_that_takes_one_connection_at_a_time_is_started_all_the_same() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut late = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        late.push(connected.unwrap());
        assert!(late.len() < 100, "the queue of a listener is short");
    }
    assert!(!late.is_empty());
    gateway.register(pods.spec("s1", address).with_tls(pki.spec())).await.unwrap();
    wait_for("several packets have no answer", || unanswered(address.port()) >= 3).await;
    let before = late.len();
    drop(late);
    let (ended, acceptor) = (Arc::<AtomicUsize>::default(), pki.acceptor());
    let count = Arc::clone(&ended);
    tokio::spawn(async move {
        let agent: Arc<dyn Service> = Arc::new(Agent::default());
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let never = CancellationToken::new();
                Server::new(Arc::clone(&agent)).serve_connection(stream, None, &never).await;
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    within(gateway.wait_ready("s1", CancellationToken::new())).await.unwrap();
    let shim = pods.shim("s1").await;
    echo(&shim, "served").await;
    assert!(ended.load(Ordering::SeqCst) >= before, "those in front of it were taken and ended first");
    let status = gateway.list().await.unwrap().remove(0);
    assert!(matches!(status.state, ProxyState::Connected { connections: 1, .. }), "{:?}", status.state);
}
