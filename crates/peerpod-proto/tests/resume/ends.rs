//! The end of sessions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use peerpod_proto::Code;
use peerpod_proto::messages::agent::method;
use peerpod_proto::relay::SessionOptions;

use crate::common::{wait_for, within};
use crate::set::*;

#[tokio::test]
async fn a_session_that_is_gone_fails_calls_except_those_that_only_wait() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    let slow = call(&shim, "Slow", "x");
    let waiting = call(&shim, method::WAIT_PROCESS, "p");
    wait_for("both are under way", || set.agent.waits.load(Ordering::SeqCst) == 2).await;
    // The forwarder is started again and knows no session.
    let other = Forwarder::start(&set.agent, Some(SessionOptions::default())).await;
    set.proxy.set_target(other.address);
    set.proxy.cut();
    let status = within(slow).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message.contains("the connection to the guest at 127.0.0.1")
            && status.message.contains("broke"),
        "{status}"
    );
    wait_for("it is asked again", || set.agent.waits.load(Ordering::SeqCst) == 3).await;
    set.agent.exit.notify_waiters();
    assert_eq!(within(waiting).await.unwrap().unwrap(), "exit code");
    // The new session is one that goes on again.
    let connections = set.proxy.connections();
    set.proxy.cut();
    assert!(set.back(connections + 1).await);
}

#[tokio::test]
async fn a_node_that_stays_away_is_given_up_after_the_grace_time() {
    let grace = Duration::from_millis(200);
    let set = Set::with(Some(SessionOptions::default().with_grace(grace))).await;
    let shim = shim(&set.gateway);
    let slow = call(&shim, "Slow", "x");
    let waiting = call(&shim, method::WAIT_PROCESS, "p");
    wait_for("both are under way", || set.agent.waits.load(Ordering::SeqCst) == 2).await;
    set.proxy.set_refusing(true);
    set.proxy.cut();
    set.lost().await;
    // Told at the node while there is still no connection, and so is a call that is made meanwhile.
    let new = call(&shim, "Echo", "new");
    assert_eq!(within(slow).await.unwrap().unwrap_err().code(), Code::Unavailable);
    let status = within(new).await.unwrap().unwrap_err();
    assert!(
        status.code() == Code::Unavailable && status.message.contains("no connection to the guest"),
        "{status}"
    );
    wait_for("the guest has noticed", || set.forwarder.relay.fronts() == 0).await;
    tokio::time::sleep(grace * 2).await;
    set.proxy.set_refusing(false);
    assert!(!set.back(2).await, "the session is over");
    // The forwarder's own call to the agent went on all the time, and is given to the successor.
    set.agent.exit.notify_waiters();
    assert_eq!(within(waiting).await.unwrap().unwrap(), "exit code");
    assert_eq!(set.agent.waits.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_session_is_for_its_owner_only() {
    let agent = Arc::<Agent>::default();
    let forwarder = Forwarder::start(&agent, Some(SessionOptions::default())).await;
    *forwarder.owner.lock().unwrap() = Some("the gateway's certificate".into());
    let set = Set::over(agent, forwarder).await;
    let client = shim(&set.gateway);
    let slow = call(&client, "Slow", "x");
    wait_for("it is under way", || set.agent.waits.load(Ordering::SeqCst) == 1).await;
    // Another client that knows the id, while the owner is connected and while it is not.
    *set.forwarder.owner.lock().unwrap() = Some("another certificate".into());
    set.proxy.cut();
    assert!(!set.back(2).await, "another certificate does not go on with it");
    assert_eq!(within(slow).await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(within(call(&client, "Echo", "on")).await.unwrap().unwrap(), "on");
}

#[tokio::test]
async fn answers_for_a_node_that_is_away_are_bounded() {
    let set = Set::with(Some(SessionOptions::default().with_max_bytes(100_000))).await;
    let shim = shim(&set.gateway);
    let slow: Vec<_> = (0..4).map(|_| call(&shim, "Slow", vec![b'x'; 60_000])).collect();
    wait_for("they are under way", || set.agent.waits.load(Ordering::SeqCst) == 4).await;
    set.proxy.set_refusing(true);
    set.proxy.cut();
    wait_for("the guest has noticed", || set.forwarder.relay.fronts() == 0).await;
    set.agent.exit.notify_waiters();
    set.lost().await;
    assert_eq!(
        within(call(&self::shim(&set.forwarder.relay), "Echo", "agent")).await.unwrap().unwrap(),
        "agent"
    );
    set.proxy.set_refusing(false);
    assert!(!set.back(2).await, "the session is given up");
    for call in slow {
        assert_eq!(within(call).await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
}
