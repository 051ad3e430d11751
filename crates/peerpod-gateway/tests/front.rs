//! The socket of the shims, with a played daemon behind it.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use peerpod_gateway::{ControlServer, Gateway, GatewayErrorKind, RemoteGateway};
use peerpod_proto::messages::hypervisor;
use peerpod_proto::server::decode;
use peerpod_proto::{CallContext, Client, Code, Server, Service, Status};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use common::{LIMIT, wait_for, within};

/// What a daemon was asked, and how it answers by method.
#[derive(Default)]
struct Daemon {
    calls: Mutex<Vec<String>>,
    cancelled: CancellationToken,
    /// The next StopVM is not answered in its time.
    slow: AtomicBool,
}

#[async_trait::async_trait]
impl Service for Daemon {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        let what = match method {
            hypervisor::STOP_VM => decode::<hypervisor::StopVmRequest>(payload.clone())?.id,
            _ => String::from_utf8_lossy(&payload).into_owned(),
        };
        self.calls.lock().unwrap().push(format!("{service} {method} {what}"));
        match method {
            "Deadline" => Ok(format!("{}", ctx.deadline.is_some()).into()),
            "Metadata" => Ok(format!("{:?}", ctx.metadata).into()),
            hypervisor::STOP_VM if self.slow.swap(false, Ordering::Relaxed) => {
                ctx.cancel.cancelled().await;
                Err(Status::new(Code::Canceled, "too late"))
            }
            "Refuse" => Err(Status::new(Code::ResourceExhausted, "no room in zone a")),
            "Hang" => {
                ctx.cancel.cancelled().await;
                self.cancelled.cancel();
                Err(Status::new(Code::Canceled, "cancelled"))
            }
            _ => Ok(payload),
        }
    }
}

impl Daemon {
    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

/// A gateway in this process with its control socket.
struct Node {
    dir: TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = ControlServer::bind(Gateway::new(), &dir.path().join("control.sock")).await.unwrap();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let task = tokio::spawn(async move { control.serve(stopping).await.unwrap() });
        Self { dir, stop, task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn remote(&self) -> RemoteGateway {
        RemoteGateway::new(self.path("control.sock"))
    }

    /// Plays a daemon until the returned token is cancelled or dropped.
    async fn daemon(&self, daemon: &Arc<Daemon>) -> tokio_util::sync::DropGuard {
        let stop = self.listen(daemon);
        let (shims, own) = (self.path("hypervisor.sock"), self.path("daemon.sock"));
        assert!(within(self.remote().serve_shims(&shims, &own)).await.unwrap());
        stop
    }

    fn listen(&self, daemon: &Arc<Daemon>) -> tokio_util::sync::DropGuard {
        let own = self.path("daemon.sock");
        let _ = std::fs::remove_file(&own);
        let listener = UnixListener::bind(&own).unwrap();
        let stop = CancellationToken::new();
        let (server, stopping) = (Server::new(daemon.clone()).with_grace(Duration::ZERO), stop.clone());
        tokio::spawn(async move { server.serve_unix(listener, stopping).await });
        stop.drop_guard()
    }

    async fn shim(&self) -> Client {
        Client::connect_unix(self.path("hypervisor.sock")).await.unwrap()
    }
}

async fn ask(shim: &Client, method: &str, payload: &str) -> Result<String, Status> {
    let call = shim.request("x.Y", method, payload.to_owned().into(), None, Vec::new());
    within(call).await.map(|answer| String::from_utf8_lossy(&answer).into_owned())
}

async fn stop(shim: &Client, id: &str) -> Result<(), Status> {
    let request = hypervisor::StopVmRequest { id: id.into() };
    let call = shim.call(hypervisor::SERVICE, hypervisor::STOP_VM, &request, None);
    within(call).await.map(|_: hypervisor::StopVmResponse| ())
}

#[tokio::test]
async fn calls_reach_the_daemon_as_they_came_and_answers_come_back() {
    let (node, daemon) = (Node::start().await, Arc::new(Daemon::default()));
    let _daemon = node.daemon(&daemon).await;
    let shim = node.shim().await;
    assert_eq!(ask(&shim, "Anything", "unread").await.unwrap(), "unread");
    assert_eq!(daemon.calls(), ["x.Y Anything unread"]);
    assert_eq!(ask(&shim, "Deadline", "").await.unwrap(), "false");
    let timed = shim.request("x.Y", "Deadline", Bytes::new(), Some(LIMIT), Vec::new());
    assert_eq!(within(timed).await.unwrap(), "true");
    let refused = ask(&shim, "Refuse", "").await.unwrap_err();
    assert_eq!((refused.code(), refused.message.as_str()), (Code::ResourceExhausted, "no room in zone a"));
    let pair = peerpod_proto::envelope::KeyValue { key: "traceparent".into(), value: "00-1".into() };
    let traced = shim.request("x.Y", "Metadata", Bytes::new(), None, vec![pair]);
    assert!(String::from_utf8_lossy(&within(traced).await.unwrap()).contains("traceparent"));
}

#[tokio::test]
async fn a_shim_that_hangs_up_cancels_its_call_in_the_daemon() {
    let (node, daemon) = (Node::start().await, Arc::new(Daemon::default()));
    let _daemon = node.daemon(&daemon).await;
    let shim = node.shim().await;
    let other = node.shim().await;
    let call = tokio::spawn({
        let shim = shim.clone();
        async move { ask(&shim, "Hang", "").await }
    });
    wait_for("the call is there", || !daemon.calls().is_empty()).await;
    drop(shim);
    call.abort();
    within(daemon.cancelled.cancelled()).await;
    assert_eq!(ask(&other, "Echo", "still here").await.unwrap(), "still here");
}

#[tokio::test]
async fn a_shims_connection_outlives_daemons_and_their_calls() {
    let (node, first) = (Node::start().await, Arc::new(Daemon::default()));
    let guard = node.daemon(&first).await;
    let shim = node.shim().await;
    let cut = tokio::spawn({
        let shim = shim.clone();
        async move { ask(&shim, "Hang", "").await }
    });
    wait_for("the call is there", || !first.calls().is_empty()).await;
    drop(guard);
    let status = cut.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // No daemon: the call waits for the next one.
    let waiting = tokio::spawn({
        let shim = shim.clone();
        async move { ask(&shim, "Echo", "patient").await }
    });
    tokio::task::yield_now().await;
    let second = Arc::new(Daemon::default());
    let _second = node.daemon(&second).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "patient");
    assert_eq!(second.calls(), ["x.Y Echo patient"]);
}

#[tokio::test]
async fn a_stop_without_daemon_is_answered_and_handed_to_the_next_one() {
    let (node, first) = (Node::start().await, Arc::new(Daemon::default()));
    drop(node.daemon(&first).await);
    let shim = node.shim().await;
    for id in ["s1", "s2", "s1"] {
        stop(&shim, id).await.unwrap();
    }
    assert!(first.calls().is_empty());
    let second = Arc::new(Daemon::default());
    let guard = node.daemon(&second).await;
    let stops = ["s1", "s2"].map(|id| format!("{} {} {id}", hypervisor::SERVICE, hypervisor::STOP_VM));
    wait_for("both are handed over", || second.calls() == stops).await;
    // Once is enough.
    drop(guard);
    let third = Arc::new(Daemon::default());
    let _third = node.daemon(&third).await;
    stop(&shim, "s3").await.unwrap();
    assert_eq!(third.calls().len(), 1, "{:?}", third.calls());
}

#[tokio::test]
async fn a_stop_that_a_hanging_daemon_did_not_answer_is_told_again() {
    let (node, daemon) = (Node::start().await, Arc::new(Daemon::default()));
    let _daemon = node.daemon(&daemon).await;
    let shim = node.shim().await;
    daemon.slow.store(true, Ordering::Relaxed);
    let request = hypervisor::StopVmRequest { id: "s1".into() };
    let second = Some(Duration::from_millis(200));
    // The shim hears of its own deadline or of the answer, whichever is first; it goes on in either case.
    let call = shim.call(hypervisor::SERVICE, hypervisor::STOP_VM, &request, second);
    let _: Result<hypervisor::StopVmResponse, Status> = within(call).await;
    wait_for("the same daemon is told again", || daemon.calls().len() == 2).await;
}

#[tokio::test]
async fn a_call_that_finds_no_daemon_ends_at_its_callers_deadline() {
    let (node, daemon) = (Node::start().await, Arc::new(Daemon::default()));
    drop(node.daemon(&daemon).await);
    std::fs::remove_file(node.path("daemon.sock")).unwrap();
    let shim = node.shim().await;
    let call = shim.request("x.Y", "Echo", Bytes::new(), Some(Duration::from_millis(200)), Vec::new());
    let status = within(call).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable), "{status:?}");
}

#[tokio::test]
async fn one_gateway_serves_one_path_and_removes_it_at_its_end() {
    let (node, daemon) = (Node::start().await, Arc::new(Daemon::default()));
    let _daemon = node.daemon(&daemon).await;
    let own = node.path("daemon.sock");
    let error = within(node.remote().serve_shims(&node.path("other.sock"), &own)).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::Conflict);
    assert!(error.to_string().contains("hypervisor.sock"), "{error}");
    node.stop.cancel();
    within(node.task).await.unwrap();
    assert!(!node.dir.path().join("hypervisor.sock").exists());
}

#[tokio::test]
async fn a_daemon_that_goes_before_it_answers_is_followed_by_the_next_for_what_changes_nothing() {
    let (node, daemon) = (Node::start().await, Arc::new(Daemon::default()));
    let own = node.path("daemon.sock");
    let listener = UnixListener::bind(&own).unwrap();
    assert!(within(node.remote().serve_shims(&node.path("hypervisor.sock"), &own)).await.unwrap());
    let mut calls = Vec::new();
    for method in [hypervisor::VERSION, hypervisor::CREATE_VM] {
        let shim = node.shim().await;
        calls.push(tokio::spawn(async move {
            shim.request(hypervisor::SERVICE, method, "v".into(), None, Vec::new()).await
        }));
        // It is connected and asked, and ends.
        let (mut connection, _) = within(listener.accept()).await.unwrap();
        let mut byte = [0];
        within(tokio::io::AsyncReadExt::read_exact(&mut connection, &mut byte)).await.unwrap();
    }
    drop(listener);
    let _daemon = node.listen(&daemon);
    let [version, created] = calls.try_into().unwrap();
    assert_eq!(within(version).await.unwrap().unwrap(), "v");
    let status = within(created).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "nobody knows what it did");
}

/// A gateway of another version.
struct Version(u32);

#[async_trait::async_trait]
impl Service for Version {
    async fn call(&self, _: CallContext, _: &str, called: &str, _: Bytes) -> Result<Bytes, Status> {
        match called {
            "Hello" => Ok(format!(
                r#"{{"name":"gw","version":"x","min_level":1,"max_level":{},"later":true}}"#,
                self.0
            )
            .into()),
            "ServeShims" if self.0 >= 2 => Ok("{}".into()),
            called => Err(Status::unknown_method(called)),
        }
    }
}

#[tokio::test]
async fn a_gateway_of_the_version_before_or_after_is_used_for_what_it_can() {
    let dir = tempfile::tempdir().unwrap();
    for (level, can) in [(1, false), (3, true)] {
        let path = dir.path().join(format!("{level}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(async move { Server::new(Arc::new(Version(level))).serve_unix(listener, stop).await });
        let (shims, own) = (Path::new("/x/hypervisor.sock"), Path::new("/x/daemon.sock"));
        assert_eq!(within(RemoteGateway::new(&path).serve_shims(shims, own)).await.unwrap(), can);
    }
}
