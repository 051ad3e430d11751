//! Peers of other levels.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::peer::{self, LevelResponse};
use peerpod_proto::relay::{SESSION_ID_LEN, SessionOptions};
use peerpod_proto::server::decode;
use peerpod_proto::{CallContext, Client, Code, Server, Service, Status};
use test_support::FaultProxy;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::common::{wait_for, within};
use crate::set::*;

/// What the peers of other levels answer and ask.
async fn level_with(sessions: Option<SessionOptions>, levels: Levels) -> (Option<u32>, bool) {
    let agent = Arc::<Agent>::default();
    let forwarder = Forwarder::of_levels(&agent, sessions, levels).await;
    let set = Set::over(agent, forwarder).await;
    let client = shim(&set.gateway);
    let waiting = call(&client, method::WAIT_PROCESS, "p");
    wait_for("it is under way", || set.agent.waits.load(Ordering::SeqCst) == 1).await;
    set.proxy.cut();
    let resumed = set.back(2).await;
    assert_eq!(within(call(&client, "Echo", "on")).await.unwrap().unwrap(), "on");
    set.agent.exit.notify_waiters();
    assert_eq!(within(waiting).await.unwrap().unwrap(), "exit code");
    (*set.gateway.peer_level().borrow(), resumed)
}

#[tokio::test]
async fn forwarders_before_and_after_this_version_are_understood() {
    let sessions = Some(SessionOptions::default());
    assert_eq!(level_with(sessions, Levels(0, 2)).await, (Some(2), true), "this version");
    assert_eq!(level_with(None, Levels(0, 1)).await, (Some(1), false), "the version before");
    assert_eq!(level_with(sessions, Levels(0, 3)).await, (Some(2), true), "the version after");
    assert_eq!(level_with(None, Levels(0, 2)).await, (Some(2), false), "sessions switched off");
    assert_eq!(level_with(None, Levels(7, 9)).await, (Some(0), false), "the far future");
}

/// Asks a forwarder for its level, byte for byte, and makes a call beside it.
async fn ask(forwarder: &Forwarder, request: &[u8]) -> LevelResponse {
    let client = Client::connect(TcpStream::connect(forwarder.address).await.unwrap());
    let payload = Bytes::copy_from_slice(request);
    let answer = within(client.request(peer::SERVICE, peer::LEVEL, payload, None, Vec::new())).await.unwrap();
    assert_eq!(within(call(&client, "Echo", "beside")).await.unwrap().unwrap(), "beside");
    decode(answer).unwrap()
}

#[tokio::test]
async fn gateways_before_and_after_this_version_are_understood() {
    let forwarder = Forwarder::start(&Arc::default(), Some(SessionOptions::default())).await;
    // The version before: name, version and levels 0 to 1; nothing of sessions.
    let before = ask(&forwarder, b"\x0a\x02gw\x12\x010\x20\x01").await;
    assert_eq!((before.max_level, before.kept, before.grace_millis), (2, false, 0));
    // The version after: levels 0 to 3, a session, and a field that nobody knows yet.
    let mut request = b"\x0a\x02gw\x12\x010\x20\x03\x2a\x20".to_vec();
    request.extend([7; SESSION_ID_LEN]);
    request.extend(b"\xfa\x01\x03odd");
    let after = ask(&forwarder, &request).await;
    assert_eq!((after.max_level, after.kept, after.resumed), (2, true, false));
    assert_eq!(after.grace_millis, 120_000);
    // An id that can be guessed is none.
    let short = ask(&forwarder, b"\x0a\x02gw\x20\x02\x2a\x04abcd").await;
    assert!(!short.kept);
}

#[tokio::test]
async fn an_existing_forwarder_is_level_0_and_loses_what_does_not_wait() {
    // One that knows no levels and keeps nothing: the agent's own server.
    let agent = Arc::<Agent>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    struct Existing(Arc<Agent>);
    #[async_trait::async_trait]
    impl Service for Existing {
        async fn call(
            &self,
            ctx: CallContext,
            service: &str,
            called: &str,
            payload: Bytes,
        ) -> Result<Bytes, Status> {
            if service != agent::SERVICE {
                return Err(Status::unknown_service(service));
            }
            self.0.call(ctx, service, called, payload).await
        }
    }
    let serving = Arc::clone(&agent);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = Server::new(Arc::new(Existing(Arc::clone(&serving))));
            tokio::spawn(
                async move { server.serve_connection(stream, None, &CancellationToken::new()).await },
            );
        }
    });
    let proxy = FaultProxy::start(address).await.unwrap();
    let gateway = gateway(proxy.address());
    let client = shim(&gateway);
    assert_eq!(within(call(&client, "Echo", "first")).await.unwrap().unwrap(), "first");
    within(gateway.peer_level().wait_for(|level| *level == Some(0))).await.unwrap();
    let slow = call(&client, "Slow", "x");
    let waiting = call(&client, method::WAIT_PROCESS, "p");
    wait_for("both are under way", || agent.waits.load(Ordering::SeqCst) == 2).await;
    proxy.cut();
    assert_eq!(within(slow).await.unwrap().unwrap_err().code(), Code::Unavailable);
    wait_for("it is asked again", || agent.waits.load(Ordering::SeqCst) == 3).await;
    agent.exit.notify_waiters();
    assert_eq!(within(waiting).await.unwrap().unwrap(), "exit code");
}
