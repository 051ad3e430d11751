//! Our ends against those of the ttrpc crate, which Kata's own programs use.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::envelope::KeyValue;
use peerpod_proto::relay::{BoxedStream, Dial, DialError, PassThrough, Relay, RelayOptions};
use peerpod_proto::wire::Editor;
use peerpod_proto::{Client, Code, Server, Status};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{MethodHandler, TtrpcContext};

use common::{LIMIT, probe, wait_for, within};

fn their_request(method: &str, payload: &[u8], timeout: Duration) -> ttrpc::Request {
    let mut request = ttrpc::Request::new();
    request.service = "test.Probe".into();
    request.method = method.into();
    request.payload = payload.to_vec();
    request.timeout_nano = timeout.as_nanos() as i64;
    let mut entry = ttrpc::proto::KeyValue::new();
    entry.key = "traceparent".into();
    entry.value = "00-1".into();
    request.metadata.push(entry);
    request
}

fn status_of(error: ttrpc::Error) -> (i32, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code() as i32, status.message().to_owned()),
        other => panic!("expected a status, got {other:?}"),
    }
}

#[tokio::test]
async fn their_client_calls_our_server() {
    let probe = probe();
    let (near, far) = UnixStream::pair().unwrap();
    let server = Server::new(Arc::clone(&probe) as _);
    tokio::spawn(async move { server.serve_connection(far, None, &CancellationToken::new()).await });
    let client = ttrpc::r#async::Client::new(Socket::new(near));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.request(their_request("Wait", b"late", LIMIT)).await }
    });
    wait_for("the call waits", || probe.running.load(Ordering::SeqCst) == 1).await;
    let echoed = within(client.request(their_request("Echo", b"early", LIMIT))).await.unwrap();
    assert_eq!(echoed.payload, b"early");
    probe.release.notify_one();
    assert_eq!(within(waiting).await.unwrap().unwrap().payload, b"late");
    let failed = within(client.request(their_request("Fail", b"", LIMIT))).await.unwrap_err();
    assert_eq!(status_of(failed), (5, "no such thing".to_owned()));
    let unknown = within(client.request(their_request("Nope", b"", LIMIT))).await.unwrap_err();
    assert_eq!(status_of(unknown), (12, "method Nope".to_owned()));
}

struct Theirs;

#[async_trait::async_trait]
impl MethodHandler for Theirs {
    async fn handler(&self, ctx: TtrpcContext, request: ttrpc::Request) -> ttrpc::Result<ttrpc::Response> {
        let mut response = ttrpc::Response::new();
        response.payload = match request.method.as_str() {
            "Metadata" => ctx.metadata["traceparent"].join(",").into_bytes(),
            "Fail" => {
                response.set_status(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no such thing"));
                Vec::new()
            }
            _ => request.payload,
        };
        Ok(response)
    }
}

/// Starts their server at a unix socket.
async fn their_server(path: &std::path::Path) -> ttrpc::r#async::Server {
    let methods = ["Echo", "Metadata", "Fail"]
        .map(|name| (name.to_owned(), Box::new(Theirs) as Box<dyn MethodHandler + Send + Sync>));
    let service = ttrpc::r#async::Service { methods: methods.into(), streams: HashMap::new() };
    let listener = Listener::bind(format!("unix://{}", path.display())).unwrap();
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(listener)
        .register_service(HashMap::from([("test.Probe".to_owned(), service)]));
    server.start().await.unwrap();
    server
}

async fn check_calls(client: &Client) {
    let metadata = vec![KeyValue { key: "traceparent".into(), value: "00-7".into() }];
    let call = |method, payload: &'static [u8]| {
        let metadata = metadata.clone();
        async move { within(client.request("test.Probe", method, payload.into(), Some(LIMIT), metadata)).await }
    };
    assert_eq!(call("Echo", b"hello").await.unwrap(), "hello");
    assert_eq!(call("Metadata", b"").await.unwrap(), "00-7");
    assert_eq!(call("Fail", b"").await.unwrap_err(), Status::new(Code::NotFound, "no such thing"));
    let calls: Vec<_> = (0..100)
        .map(|number| {
            let client = client.clone();
            let payload = Bytes::from(vec![number; 100 * usize::from(number)]);
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
async fn our_client_calls_their_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("their.sock");
    let mut server = their_server(&path).await;
    check_calls(&Client::connect_unix(&path).await.unwrap()).await;
    within(server.shutdown()).await.unwrap();
}

struct DialUnix(std::path::PathBuf);

#[async_trait::async_trait]
impl Dial for DialUnix {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        let stream = UnixStream::connect(&self.0).await;
        Ok(Box::new(stream.map_err(|error| DialError::again(Duration::from_millis(10), error))?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn their_client_reaches_their_server_through_our_relay() {
    let directory = tempfile::tempdir().unwrap();
    let (agent, front) = (directory.path().join("agent.sock"), directory.path().join("front.sock"));
    let mut server = their_server(&agent).await;
    let relay = Relay::new(Arc::new(DialUnix(agent)), Arc::new(PassThrough), RelayOptions::default());
    let listener = UnixListener::bind(&front).unwrap();
    let accepting = tokio::spawn({
        let relay = relay.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                let relay = relay.clone();
                tokio::spawn(async move { relay.serve(stream).await });
            }
        }
    });
    check_calls(&Client::connect_unix(&front).await.unwrap()).await;
    let theirs = ttrpc::r#async::Client::connect(&format!("unix://{}", front.display())).await.unwrap();
    // Their client draws ids and queues frames in two steps; with many threads the order is left to chance.
    let calls: Vec<_> = (0..2000)
        .map(|number| {
            let client = theirs.clone();
            tokio::spawn(async move {
                let payload = format!("call {number}");
                let answer = client.request(their_request("Echo", payload.as_bytes(), LIMIT)).await;
                assert_eq!(answer.unwrap().payload, payload.as_bytes());
            })
        })
        .collect();
    for call in calls {
        within(call).await.unwrap();
    }
    let failed = within(theirs.request(their_request("Fail", b"", LIMIT))).await.unwrap_err();
    assert_eq!(status_of(failed), (5, "no such thing".to_owned()));
    accepting.abort();
    within(server.shutdown()).await.unwrap();
}

/// What the editor writes is read in the same way by another decoder, unknown fields included.
#[test]
fn edited_envelopes_are_read_by_another_decoder() {
    use ttrpc::proto::Codec;
    let mut original = their_request("CreateContainer", b"spec", LIMIT).encode().unwrap();
    original.extend(b"\xfa\x01\x03odd");
    let mut editor = Editor::new(&original);
    editor.set(&[], 3, b"another spec").unwrap();
    let edited = <ttrpc::Request as Codec>::decode(editor.finish().unwrap()).unwrap();
    let mut expected = <ttrpc::Request as Codec>::decode(&original).unwrap();
    expected.payload = b"another spec".to_vec();
    assert_eq!(edited, expected);
}
