//! What the integration tests share.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::envelope::{Request, Response};
use peerpod_proto::frame::{Frame, FrameReader, FrameWriter, Inbound};
use peerpod_proto::{CallContext, Code, Service, Status};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::Notify;

/// Longer than anything here takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Fails the test when something takes for ever.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it ends in time")
}

/// Waits for a state.
pub async fn wait_for(what: &str, mut state: impl FnMut() -> bool) {
    let begin = tokio::time::Instant::now();
    while !state() {
        assert!(begin.elapsed() < LIMIT, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A service whose methods do what their names say.
#[derive(Default)]
pub struct Probe {
    pub calls: AtomicUsize,
    pub running: AtomicUsize,
    pub cancelled: AtomicUsize,
    pub release: Notify,
}

/// Counts a running call down, however it ends.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Service for Probe {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&self.running);
        if !matches!(service, "test.Probe" | "grpc.AgentService") {
            return Err(Status::unknown_service(service));
        }
        match method {
            "Echo" | "CreateContainer" => Ok(payload),
            "Panic" => panic!("as asked"),
            "Fail" => Err(Status::new(Code::NotFound, "no such thing")),
            "Decode" => peerpod_proto::server::decode::<Request>(payload).map(|_| Bytes::new()),
            "Large" => Ok(vec![b'x'; String::from_utf8_lossy(&payload).parse().unwrap()].into()),
            "Metadata" => Ok(Request { metadata: ctx.metadata, ..Default::default() }.to_bytes()),
            "Deadline" => Ok(ctx.deadline.is_some().to_string().into()),
            "Wait" | "WaitProcess" => {
                tokio::select! {
                    () = self.release.notified() => Ok(payload),
                    () = ctx.cancel.cancelled() => {
                        self.cancelled.fetch_add(1, Ordering::SeqCst);
                        Err(Status::new(Code::Canceled, "context canceled"))
                    }
                }
            }
            unknown => Err(Status::unknown_method(unknown)),
        }
    }
}

/// The sending end of a connection whose frames are made by hand.
pub struct Raw<S> {
    pub read: FrameReader<ReadHalf<S>>,
    pub write: FrameWriter<WriteHalf<S>>,
}

impl<S: AsyncRead + AsyncWrite> Raw<S> {
    pub fn new(stream: S) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read: FrameReader::new(read), write: FrameWriter::new(write) }
    }

    pub async fn send(&mut self, id: u32, request: &Request) {
        self.send_bytes(id, request.to_bytes()).await;
    }

    pub async fn send_bytes(&mut self, id: u32, envelope: Bytes) {
        self.write.write(&[Frame::request(id, envelope)]).await.expect("the frame is written");
    }

    pub async fn frame(&mut self) -> Frame {
        match within(self.read.read()).await.expect("a frame is read") {
            Some(Inbound::Frame(frame)) => frame,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    /// The next response, with its stream id.
    pub async fn answer(&mut self) -> (u32, Result<Bytes, Status>) {
        let frame = self.frame().await;
        (frame.stream_id, Response::decode(frame.payload).expect("a response").into_result())
    }
}

/// A request without a timeout.
pub fn request(method: &str, payload: impl Into<Bytes>) -> Request {
    Request::new("test.Probe", method, payload.into(), None)
}

pub fn probe() -> Arc<Probe> {
    Arc::new(Probe::default())
}
