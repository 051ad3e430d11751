//! Peers that stop reading make those who write to them wait, so that what a relay holds for them is bounded.
//!
//! Where connections are in memory the clock stands still until nothing can go on, so that a busy machine changes nothing.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::Relay;
use peerpod_proto::envelope::{Request, Response};
use peerpod_proto::frame::{Frame, FrameReader, FrameWriter, Inbound};
use peerpod_proto::relay::{BoxedStream, Dial, DialError, LinkState, PassThrough, RelayOptions};
use peerpod_proto::{Code, Status};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::time::timeout;

use common::{Raw, within};

/// What may wait on its way, the buffers of both connections included.
const BOUND: usize = 1 << 20;

/// What a pipe holds.
const PIPE: usize = 64 << 10;

/// One message of a stream.
const CHUNK: usize = 32 << 10;

/// The clock goes on by itself only when nothing else can: then nothing moves any more.
const STILL: Duration = Duration::from_millis(300);

/// Connects once.
struct Once(Mutex<Option<DuplexStream>>);

#[async_trait::async_trait]
impl Dial for Once {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        match self.0.lock().unwrap().take() {
            Some(stream) => Ok(Box::new(stream)),
            None => Err(DialError::permanent("there is no second connection")),
        }
    }
}

/// A relay that is connected: calls that wait for a connection have a bound of their own.
async fn connected() -> (Relay, DuplexStream) {
    let (backend, far) = tokio::io::duplex(PIPE);
    let relay =
        Relay::new(Arc::new(Once(Mutex::new(Some(far)))), Arc::new(PassThrough), RelayOptions::default());
    let connected = |state: &LinkState| matches!(state, LinkState::Connected { .. });
    relay.state().wait_for(connected).await.unwrap();
    (relay, backend)
}

/// A further front of a relay.
fn front(relay: &Relay) -> DuplexStream {
    let (front, near) = tokio::io::duplex(PIPE);
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(near).await });
    front
}

fn request(method: &str, payload: Bytes) -> Bytes {
    Request::new("grpc.AgentService", method, payload, None).to_bytes()
}

/// Writes calls until nothing moves any more, and returns how many could be written.
async fn flood(front: DuplexStream, method: &str, length: usize) -> (u32, tokio::io::ReadHalf<DuplexStream>) {
    let (answers, write) = tokio::io::split(front);
    let mut writer = FrameWriter::new(write);
    let envelope = request(method, vec![7; length].into());
    for written in 0..5_000u32 {
        let frame = [Frame::request(2 * written + 1, envelope.clone())];
        if timeout(STILL, writer.write(&frame)).await.is_err() {
            return (written, answers);
        }
    }
    panic!("nobody makes those wait who write {method}");
}

#[tokio::test(start_paused = true)]
async fn a_front_that_reads_nothing_makes_the_backend_wait() {
    let (relay, backend) = connected().await;
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    let answering = tokio::spawn(async move {
        let (read, write) = tokio::io::split(backend);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let answer = Response::new(Ok(Bytes::from(vec![7; CHUNK]))).to_bytes();
        while let Ok(Some(Inbound::Frame(frame))) = reader.read().await {
            let answer = Frame::response(frame.stream_id, answer.clone());
            writer.write(&[answer]).await.unwrap();
            count.fetch_add(CHUNK, Ordering::Relaxed);
        }
    });
    let _unread = flood(front(&relay), "ReadStdout", 0).await;
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > 0, "the backend was asked");
    assert!(answered <= BOUND, "{answered} bytes of answers wait for a front that reads nothing");
    answering.abort();
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_reads_nothing_makes_fronts_wait() {
    let (relay, _backend) = connected().await;
    let mut taken = 0;
    let mut unread = Vec::new();
    for _ in 0..3 {
        let (calls, answers) = flood(front(&relay), "WriteStdin", CHUNK).await;
        taken += calls as usize * CHUNK;
        unread.push(answers);
    }
    assert!(taken > 0, "the relay takes calls");
    assert!(taken <= BOUND, "{taken} bytes of calls wait for a backend that reads nothing");
}

#[tokio::test(start_paused = true)]
async fn a_long_call_is_not_read_before_there_is_room_for_it() {
    let (relay, backend) = connected().await;
    let (calls, _answers) = flood(front(&relay), "CopyFile", 1 << 20).await;
    assert_eq!(calls, 1, "one is on its way, and the next one where it came from");
    let mut agent = Raw::new(backend);
    for _ in 0..calls {
        assert!(agent.frame().await.payload.len() > 1 << 20, "what waits arrives");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_their_place_are_over_at_their_deadlines() {
    let (relay, _backend) = connected().await;
    let (answers, write) = tokio::io::split(front(&relay));
    let (mut reader, mut writer) = (FrameReader::new(answers), FrameWriter::new(write));
    const CALLS: u32 = 300;
    let writing = async {
        for call in 0..CALLS {
            let mut request = Request::new("grpc.AgentService", "WriteStdin", vec![7; 4000].into(), None);
            request.timeout_nano = 1_000_000_000;
            writer.write(&[Frame::request(2 * call + 1, request.to_bytes())]).await.unwrap();
        }
    };
    let reading = async {
        for answered in 0..CALLS {
            // The place of one that is over may be needed for the next one.
            let inbound = timeout(Duration::from_secs(2), reader.read()).await;
            let inbound = inbound.unwrap_or_else(|_| panic!("{answered} of {CALLS} calls are answered"));
            let Some(Inbound::Frame(frame)) = inbound.unwrap() else { panic!("an answer") };
            let status =
                <Response as prost::Message>::decode(frame.payload).unwrap().into_result().unwrap_err();
            assert_eq!(status, Status::deadline_exceeded());
            assert_eq!(status.code(), Code::DeadlineExceeded);
        }
    };
    tokio::join!(writing, reading);
}

#[tokio::test]
async fn a_front_that_leaves_while_it_is_not_read_is_noticed() {
    let (relay, _backend) = connected().await;
    let (mut client, served) = UnixStream::pair().unwrap();
    let serving = tokio::spawn({
        let relay = relay.clone();
        async move { relay.serve_unix(served).await }
    });
    let envelope = request("CopyFile", vec![7; 1 << 20].into());
    let mut frame = Frame::request(1, envelope.clone()).header().to_bytes().to_vec();
    frame.extend_from_slice(&envelope);
    client.write_all(&frame).await.unwrap();
    // Of a second one more than is read together with its header, so that the end lies behind what is not read.
    frame[4..8].copy_from_slice(&3u32.to_be_bytes());
    client.write_all(&frame[..16 << 10]).await.unwrap();
    assert_eq!(relay.fronts(), 1);
    drop(client);
    within(serving).await.unwrap();
    assert_eq!(relay.fronts(), 0);
}
