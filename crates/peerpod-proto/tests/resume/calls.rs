//! Calls under way while the link breaks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerpod_proto::messages::agent::method;
use peerpod_proto::{Client, Code};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::common::{wait_for, within};
use crate::set::*;

#[tokio::test]
async fn calls_under_way_are_answered_over_the_next_connection() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    let slow = call(&shim, "Slow", "not repeatable");
    let waiting = call(&shim, method::WAIT_PROCESS, "p");
    wait_for("both are under way", || set.agent.waits.load(Ordering::SeqCst) == 2).await;
    set.proxy.set_refusing(true);
    set.proxy.cut();
    set.lost().await;
    // Answered while there is no connection.
    set.agent.exit.notify_waiters();
    let new = call(&shim, "Echo", "made meanwhile");
    set.proxy.set_refusing(false);
    assert_eq!(within(slow).await.unwrap().unwrap(), "not repeatable");
    assert_eq!(within(waiting).await.unwrap().unwrap(), "exit code");
    assert_eq!(within(new).await.unwrap().unwrap(), "made meanwhile");
    assert!(set.back(2).await);
    assert_eq!(set.agent.waits.load(Ordering::SeqCst), 2, "nothing was asked twice");
}

/// What waits is never acknowledged while nothing else comes, and must not keep a long call waiting for that.
#[tokio::test]
async fn the_longest_calls_pass_beside_calls_that_wait_for_days() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    let waiting: Vec<_> = (0..20).map(|n| call(&shim, method::WAIT_PROCESS, format!("p{n}"))).collect();
    wait_for("they wait", || set.agent.waits.load(Ordering::SeqCst) == 20).await;
    let long: Vec<_> = (0..4u8).map(|n| bytes::Bytes::from(vec![n; (4 << 20) - 100])).collect();
    let calls: Vec<_> = long.iter().map(|payload| call(&shim, "Echo", payload.clone())).collect();
    for (payload, call) in long.iter().zip(calls) {
        assert!(within(call).await.unwrap().unwrap() == *payload, "it comes back as it was");
    }
    set.agent.exit.notify_waiters();
    for call in waiting {
        assert_eq!(within(call).await.unwrap().unwrap(), "exit code");
    }
}

/// Both directions are full all the time: requests, answers, and the acknowledgements of both behind them.
#[tokio::test]
async fn much_in_both_directions_at_once_arrives() {
    let set = Set::new().await;
    let shims: Vec<_> = (0..3).map(|_| shim(&set.gateway)).collect();
    let payload = bytes::Bytes::from(generated(0, 300 << 10));
    let calls: Vec<_> = (0..90).map(|number| call(&shims[number % 3], "Echo", payload.clone())).collect();
    for call in calls {
        assert!(within(call).await.unwrap().unwrap() == payload, "it comes back as it was");
    }
}

#[tokio::test]
async fn a_deadline_passes_while_there_is_no_connection() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    let short = call_for(&shim, "Hang", "short", Some(Duration::from_millis(300)));
    wait_for("it is under way", || set.agent.seen.lock().unwrap().len() == 1).await;
    set.proxy.set_refusing(true);
    set.proxy.cut();
    assert_eq!(within(short).await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    set.proxy.set_refusing(false);
    assert!(set.back(2).await);
    assert_eq!(within(call(&shim, "Echo", "on")).await.unwrap().unwrap(), "on");
}

#[tokio::test]
async fn a_connection_that_hangs_gives_its_session_to_the_next_one() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    assert_eq!(within(call(&shim, "Echo", "one")).await.unwrap().unwrap(), "one");
    let slow = call(&shim, "Slow", "slow");
    wait_for("it is under way", || set.agent.waits.load(Ordering::SeqCst) == 1).await;
    // The guest's side sees nothing of the break: its proxy closes one side only.
    let half = HalfOpen::start(set.forwarder.address).await;
    let gateway = gateway(half.address);
    let client = Client::connect({
        let (near, far) = tokio::io::duplex(64 << 10);
        let relay = gateway.clone();
        tokio::spawn(async move { relay.serve(far).await });
        near
    });
    let wait = call(&client, "Slow", "over a half-open connection");
    wait_for("both are under way", || set.agent.waits.load(Ordering::SeqCst) == 2).await;
    half.cut_near();
    wait_for("it is dialled again", || half.connections.load(Ordering::SeqCst) == 2).await;
    set.agent.exit.notify_waiters();
    assert_eq!(within(wait).await.unwrap().unwrap(), "over a half-open connection");
    assert_eq!(within(slow).await.unwrap().unwrap(), "slow");
    assert_eq!(set.agent.waits.load(Ordering::SeqCst), 2);
}

/// Breaks the near side of its connections and leaves the far side open for ever.
struct HalfOpen {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    cut: Arc<Mutex<CancellationToken>>,
}

impl HalfOpen {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, cut) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<CancellationToken>>::default());
        let (count, cuts) = (Arc::clone(&connections), Arc::clone(&cut));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let cut = cuts.lock().unwrap().clone();
                let mut far = TcpStream::connect(target).await.unwrap();
                tokio::spawn(async move {
                    let both = tokio::io::copy_bidirectional(&mut near, &mut far);
                    let _ = cut.run_until_cancelled(both).await;
                    drop(near);
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, connections, cut }
    }

    fn cut_near(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

#[tokio::test]
async fn an_agent_that_closes_meanwhile_is_told_after_the_reconnect() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    let slow = call(&shim, "Slow", "x");
    wait_for("it is under way", || set.agent.waits.load(Ordering::SeqCst) == 1).await;
    set.proxy.set_refusing(true);
    set.proxy.cut();
    set.lost().await;
    set.forwarder.local.cut();
    set.proxy.set_refusing(false);
    let status = within(slow).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message.contains("the connection to the agent broke"), "{status}");
    assert!(set.back(2).await);
}
