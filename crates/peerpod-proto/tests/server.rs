//! The rules of the server, with frames made by hand and with our client.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::envelope::{KeyValue, Request};
use peerpod_proto::frame::{Frame, HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use peerpod_proto::{Client, Code, Server, Status};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use common::{LIMIT, Probe, Raw, probe, request, wait_for, within};

/// Serves one connection; returns its other end.
fn serve(probe: &Arc<Probe>, stop: &CancellationToken) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (server, stop) = (Server::new(Arc::clone(probe) as _), stop.clone());
    tokio::spawn(async move { server.serve_connection(theirs, None, &stop).await });
    ours
}

fn raw(probe: &Arc<Probe>) -> Raw<DuplexStream> {
    Raw::new(serve(probe, &CancellationToken::new()))
}

fn client(probe: &Arc<Probe>) -> Client {
    Client::connect(serve(probe, &CancellationToken::new()))
}

async fn call(client: &Client, method: &str, payload: &'static [u8]) -> Result<Bytes, Status> {
    within(client.request("test.Probe", method, payload.into(), None, Vec::new())).await
}

#[tokio::test]
async fn calls_are_answered_out_of_order() {
    let probe = probe();
    let client = client(&probe);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", b"first").await }
    });
    wait_for("the first call runs", || probe.running.load(Ordering::SeqCst) == 1).await;
    assert_eq!(call(&client, "Echo", b"second").await.unwrap(), "second");
    probe.release.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap(), "first");
}

#[tokio::test]
async fn stream_ids_are_odd_and_grow() {
    let mut raw = raw(&probe());
    raw.send(2, &request("Echo", "even")).await;
    let (id, status) = raw.answer().await;
    let status = status.unwrap_err();
    assert_eq!((id, status.code()), (2, Code::InvalidArgument));
    assert_eq!(status.message, "StreamID must be odd for client initiated streams");
    raw.send(5, &request("Echo", "five")).await;
    assert_eq!(raw.answer().await.1.unwrap(), "five");
    for used in [5, 3] {
        raw.send(used, &request("Echo", "again")).await;
        let (id, status) = raw.answer().await;
        let status = status.unwrap_err();
        assert_eq!((id, status.code()), (used, Code::InvalidArgument));
        assert_eq!(status.message, "StreamID cannot be re-used and must increment");
    }
    raw.send(7, &request("Echo", "on")).await;
    assert_eq!(raw.answer().await, (7, Ok("on".into())));
}

#[tokio::test]
async fn unknown_names_are_unimplemented() {
    let client = client(&probe());
    let unknown = within(client.request("x.Y", "Echo", Bytes::new(), None, Vec::new())).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message.as_str()), (Code::Unimplemented, "service x.Y"));
    let unknown = call(&client, "Nope", b"").await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message.as_str()), (Code::Unimplemented, "method Nope"));
}

#[tokio::test]
async fn garbage_is_answered_on_its_stream() {
    let mut raw = raw(&probe());
    raw.send_bytes(1, Bytes::from_static(b"\x0a\xff")).await;
    let status = raw.answer().await.1.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message.starts_with("unmarshal request error: "), "{}", status.message);
    raw.send(3, &request("Decode", "\x0a\x7fshort")).await;
    let status = raw.answer().await.1.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message.starts_with("ttrpc: error unmarshalling payload: "), "{}", status.message);
    raw.write.write(&[Frame { kind: Kind::Data, ..Frame::request(5, Bytes::new()) }]).await.unwrap();
    assert_eq!(raw.answer().await.1.unwrap_err().message, "StreamID is no longer active");
    raw.write.write(&[Frame { kind: Kind::Other(9), ..Frame::request(7, Bytes::new()) }]).await.unwrap();
    raw.send(9, &request("Echo", "fine")).await;
    assert_eq!(raw.answer().await, (9, Ok("fine".into())));
}

#[tokio::test]
async fn an_oversized_request_leaves_the_connection_usable() {
    let mut stream = serve(&probe(), &CancellationToken::new());
    let length = MAX_PAYLOAD as u32 + 1;
    let header = Header { length, stream_id: 1, kind: Kind::Request, flags: 0 };
    stream.write_all(&header.to_bytes()).await.unwrap();
    stream.write_all(&vec![0; length as usize]).await.unwrap();
    let mut raw = Raw::new(stream);
    let (id, status) = raw.answer().await;
    let status = status.unwrap_err();
    assert_eq!((id, status.code()), (1, Code::ResourceExhausted));
    assert_eq!(status.message, "message length 4194305 exceed maximum message size of 4194304");
    raw.send(3, &request("Echo", "on")).await;
    assert_eq!(raw.answer().await, (3, Ok("on".into())));
}

#[tokio::test]
async fn an_oversized_response_becomes_an_error() {
    let status = call(&client(&probe()), "Large", b"4194305").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn large_messages_pass_both_ways() {
    let client = client(&probe());
    let payload: Bytes = (0..3 << 20).map(|byte| byte as u8).collect::<Vec<_>>().into();
    let echoed =
        within(client.request("test.Probe", "Echo", payload.clone(), None, Vec::new())).await.unwrap();
    assert!(echoed == payload);
}

#[tokio::test]
async fn a_panic_fails_its_own_call_only() {
    let client = client(&probe());
    assert_eq!(call(&client, "Panic", b"").await.unwrap_err().code(), Code::Internal);
    assert_eq!(call(&client, "Echo", b"on").await.unwrap(), "on");
}

#[tokio::test]
async fn the_status_of_a_handler_reaches_the_caller() {
    let status = call(&client(&probe()), "Fail", b"").await.unwrap_err();
    assert_eq!(status, Status::new(Code::NotFound, "no such thing"));
}

#[tokio::test]
async fn metadata_reaches_the_handler() {
    let metadata = vec![
        KeyValue { key: "traceparent".into(), value: "00-1".into() },
        KeyValue { key: "traceparent".into(), value: "00-2".into() },
    ];
    let client = client(&probe());
    let answer = within(client.request("test.Probe", "Metadata", Bytes::new(), None, metadata.clone())).await;
    assert_eq!(Request::decode(answer.unwrap()).unwrap().metadata, metadata);
}

#[tokio::test]
async fn a_deadline_is_answered_when_it_passes_and_the_handler_is_told() {
    let probe = probe();
    let mut raw = raw(&probe);
    let timeout = Duration::from_millis(50);
    let begin = tokio::time::Instant::now();
    raw.send(1, &Request { timeout_nano: timeout.as_nanos() as i64, ..request("Wait", "") }).await;
    let status = raw.answer().await.1.unwrap_err();
    assert!(begin.elapsed() >= timeout);
    assert_eq!(
        (status.code(), status.message.as_str()),
        (Code::DeadlineExceeded, "context deadline exceeded")
    );
    wait_for("the handler ends itself", || probe.cancelled.load(Ordering::SeqCst) == 1).await;
    raw.send(3, &request("Echo", "on")).await;
    assert_eq!(raw.answer().await, (3, Ok("on".into())));
}

#[tokio::test]
async fn without_a_timeout_there_is_no_deadline() {
    let client = client(&probe());
    assert_eq!(call(&client, "Deadline", b"").await.unwrap(), "false");
    for (timeout, limited) in [(LIMIT, "true"), (Duration::from_secs(u64::MAX), "false")] {
        let answer = client.request("test.Probe", "Deadline", Bytes::new(), Some(timeout), Vec::new());
        assert_eq!(within(answer).await.unwrap(), limited);
    }
}

#[tokio::test]
async fn a_disconnect_cancels_the_token_of_running_calls() {
    let probe = probe();
    let mut raw = raw(&probe);
    raw.send(1, &request("Wait", "")).await;
    wait_for("the call runs", || probe.running.load(Ordering::SeqCst) == 1).await;
    drop(raw);
    wait_for("the handler is told", || probe.cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_stop_waits_for_running_calls_within_bounds() {
    let probe = probe();
    let (ours, theirs) = tokio::io::duplex(4096);
    let server = Server::new(Arc::clone(&probe) as _).with_grace(Duration::from_millis(100));
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { server.serve_connection(theirs, None, &stop).await }
    });
    let mut raw = Raw::new(ours);
    raw.send(1, &request("Wait", "answered")).await;
    raw.send(3, &request("Wait", "cut off")).await;
    wait_for("both calls run", || probe.running.load(Ordering::SeqCst) == 2).await;
    stop.cancel();
    probe.release.notify_one();
    assert_eq!(raw.answer().await.1.unwrap(), "answered");
    assert!(within(raw.read.read()).await.unwrap().is_none());
    within(serving).await.unwrap();
}

#[tokio::test]
async fn a_client_learns_of_a_closed_connection() {
    let probe = probe();
    let stop = CancellationToken::new();
    let (ours, theirs) = tokio::io::duplex(4096);
    let serving = tokio::spawn({
        let (server, stop) = (Server::new(Arc::clone(&probe) as _), stop.clone());
        async move { server.serve_connection(theirs, None, &stop).await }
    });
    let client = Client::connect(ours);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", b"").await }
    });
    wait_for("the call runs", || probe.running.load(Ordering::SeqCst) == 1).await;
    serving.abort();
    assert_eq!(waiting.await.unwrap().unwrap_err(), Status::closed());
    within(client.closed()).await;
    assert_eq!(call(&client, "Echo", b"").await.unwrap_err(), Status::closed());
}

#[tokio::test]
async fn a_call_that_is_dropped_is_forgotten() {
    let probe = probe();
    let client = client(&probe);
    let dropped = tokio::time::timeout(Duration::from_millis(20), call(&client, "Wait", b"")).await;
    assert!(dropped.is_err());
    probe.release.notify_one();
    assert_eq!(call(&client, "Echo", b"on").await.unwrap(), "on");
}

#[tokio::test]
async fn a_client_gives_up_at_its_deadline_although_the_server_is_silent() {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let client = Client::connect(ours);
    let timeout = Some(Duration::from_millis(30));
    let status = within(client.request("s", "m", Bytes::new(), timeout, Vec::new())).await.unwrap_err();
    assert_eq!(status, Status::deadline_exceeded());
    let mut header = [0; HEADER_LEN];
    theirs.read_exact(&mut header).await.unwrap();
    assert_eq!(Header::parse(header).stream_id, 1);
}

#[tokio::test]
async fn many_calls_of_many_tasks_keep_their_ids_in_order() {
    let client = client(&probe());
    let calls: Vec<_> = (0..500)
        .map(|number| {
            let client = client.clone();
            let payload = Bytes::from(format!("call {number}"));
            tokio::spawn(async move {
                let answer = client.request("test.Probe", "Echo", payload.clone(), None, Vec::new()).await;
                assert_eq!(answer.unwrap(), payload);
            })
        })
        .collect();
    for call in calls {
        within(call).await.unwrap();
    }
}

#[tokio::test]
async fn a_unix_socket_serves_allowed_users_only() {
    let directory = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(directory.path()).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
    for (allowed, served) in [(own, true), (own + 1, false)] {
        let path = directory.path().join(format!("{allowed}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let server = Server::new(probe() as _).with_allowed_uids([allowed]);
        let serving = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve_unix(listener, stop).await }
        });
        let client = Client::connect(UnixStream::connect(&path).await.unwrap());
        let answer = call(&client, "Echo", b"x").await;
        assert_eq!(answer.is_ok(), served, "{answer:?}");
        stop.cancel();
        within(serving).await.unwrap();
    }
}

/// Serves a socket; returns its path and what ends it.
fn serve_socket(
    server: Server,
    directory: &tempfile::TempDir,
) -> (std::path::PathBuf, CancellationToken, tokio::task::JoinHandle<()>) {
    let path = directory.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    (path, stop, tokio::spawn(async move { server.serve_unix(listener, stopping).await }))
}

#[tokio::test]
async fn who_is_connected_at_the_end_is_answered_whenever_it_was_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(probe() as _).with_linger(LIMIT);
    let (path, stop, serving) = serve_socket(server, &directory);
    let accepted = Client::connect(UnixStream::connect(&path).await.unwrap());
    assert_eq!(call(&accepted, "Echo", b"before").await.unwrap(), "before");
    // Nothing else runs between these and the end: they are in the queue of the socket.
    let mut queued = Vec::new();
    for _ in 0..3 {
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.set_nonblocking(true).unwrap();
        queued.push(stream);
    }
    stop.cancel();
    wait_for("nobody else is accepted", || std::os::unix::net::UnixStream::connect(&path).is_err()).await;
    assert_eq!(call(&accepted, "Echo", b"after").await.unwrap(), "after");
    for stream in queued {
        let client = Client::connect(UnixStream::from_std(stream).unwrap());
        assert_eq!(call(&client, "Echo", b"late").await.unwrap(), "late");
    }
    drop(accepted);
    within(serving).await.unwrap();
}

#[tokio::test]
async fn a_client_that_stays_does_not_keep_a_server_from_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(probe() as _).with_linger(Duration::from_millis(20));
    let (path, stop, serving) = serve_socket(server, &directory);
    let client = Client::connect(UnixStream::connect(&path).await.unwrap());
    assert_eq!(call(&client, "Echo", b"before").await.unwrap(), "before");
    stop.cancel();
    within(serving).await.unwrap();
    assert_eq!(call(&client, "Echo", b"after").await.unwrap_err(), Status::closed());
}
