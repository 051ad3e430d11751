//! What the steady path allocates, counted: two relays with a session between them, on the thread that is measured, and a
//! client and an agent on threads of their own.
//!
//! Payloads stay in the buffers they were read into, and those are all that is allocated: for small frames one of 8 KiB is
//! used for about a hundred of them. Tables and queues may grow a few times while load begins.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::sync::{Arc, Mutex};

use allocation_counter::AllocationInfo;
use bytes::Bytes;
use peerpod_proto::Relay;
use peerpod_proto::Status;
use peerpod_proto::envelope::{Request, Response};
use peerpod_proto::frame::{Frame, HEADER_LEN, Header, Kind};
use peerpod_proto::messages::peer::{self, LevelRequest, LevelResponse};
use peerpod_proto::relay::{
    BoxedStream, Dial, DialError, InterceptContext, Interceptor, Introduction, PassThrough, RelayOptions,
    Rewrite, SESSION_ID_LEN, SessionOptions,
};
use peerpod_proto::server::{decode, encode};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// What one read of small frames has room for.
const READ: u64 = 8 << 10;

/// A buffer is two allocations: itself, and the count of those who use it.
const OF_BUFFER: u64 = 2;

/// What tables, queues and the test itself may need, however many calls there are.
const ONCE: u64 = 200;

/// Connects once.
struct Once(Mutex<Option<UnixStream>>);

#[async_trait::async_trait]
impl Dial for Once {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        match self.0.lock().unwrap().take() {
            Some(stream) => Ok(Box::new(stream)),
            None => Err(DialError::permanent("there is no second connection")),
        }
    }
}

/// Answers the question about levels as the forwarder does.
struct Levels;

#[async_trait::async_trait]
impl Interceptor for Levels {
    fn wants(&self, service: &str, _: &str) -> bool {
        service == peer::SERVICE
    }

    async fn rewrite(
        &self,
        _: InterceptContext,
        _: &str,
        _: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        decode::<LevelRequest>(payload)?;
        let (min_level, max_level) = (peer::MIN_LEVEL, peer::MAX_LEVEL);
        Ok(Rewrite::Reply(encode(&LevelResponse { min_level, max_level, ..Default::default() })))
    }
}

fn session_id() -> Option<[u8; SESSION_ID_LEN]> {
    Some([7; SESSION_ID_LEN])
}

fn read_frame(stream: &mut Blocking) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).ok()?;
    let header = Header::parse(header);
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

/// Answers every request with the same.
fn agent(mut stream: Blocking, answer: Bytes) {
    while let Some((header, _)) = read_frame(&mut stream) {
        assert_eq!(header.kind, Kind::Request);
        let header = Frame::response(header.stream_id, answer.clone()).header();
        let mut frame = header.to_bytes().to_vec();
        frame.extend_from_slice(&answer);
        stream.write_all(&frame).unwrap();
    }
}

/// Makes calls, so many at the same time.
fn client(mut stream: Blocking, first: u32, request: &Bytes, calls: u32, outstanding: u32) -> Blocking {
    let send = |stream: &mut Blocking, call: u32| {
        let mut frame = Frame::request(first + 2 * call, request.clone()).header().to_bytes().to_vec();
        frame.extend_from_slice(request);
        stream.write_all(&frame).unwrap();
    };
    for call in 0..outstanding {
        send(&mut stream, call);
    }
    for answered in 0..calls {
        read_frame(&mut stream).expect("an answer");
        if answered + outstanding < calls {
            send(&mut stream, answered + outstanding);
        }
    }
    stream
}

/// A chain of two relays.
struct Chain {
    runtime: Runtime,
    client: Option<Blocking>,
    next_id: u32,
    request: Bytes,
    _relays: [Relay; 2],
}

impl Chain {
    fn new(request: Bytes, answer: Bytes) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (near, far) = Blocking::pair().unwrap();
        let (agent_near, agent_far) = Blocking::pair().unwrap();
        std::thread::spawn(move || agent(agent_far, answer));
        let relays = runtime.block_on(async {
            let (gateway_side, forwarder_side) = UnixStream::pair().unwrap();
            agent_near.set_nonblocking(true).unwrap();
            let to_agent = Once(Mutex::new(Some(UnixStream::from_std(agent_near).unwrap())));
            let options = RelayOptions::default()
                .with_adopt_waiting_calls(true)
                .with_sessions(SessionOptions::default());
            let forwarder = Relay::new(Arc::new(to_agent), Arc::new(Levels), options);
            let serving = forwarder.clone();
            tokio::spawn(async move { serving.serve_peer(forwarder_side, None).await });
            let introduction = Introduction::new("gateway", "0", session_id);
            let options = RelayOptions::default().with_introduction(introduction);
            let to_guest = Once(Mutex::new(Some(gateway_side)));
            let gateway = Relay::new(Arc::new(to_guest), Arc::new(PassThrough), options);
            gateway.peer_level().wait_for(Option::is_some).await.unwrap();
            assert_eq!(*gateway.peer_level().borrow(), Some(peer::MAX_LEVEL));
            far.set_nonblocking(true).unwrap();
            let (serving, far) = (gateway.clone(), UnixStream::from_std(far).unwrap());
            tokio::spawn(async move { serving.serve_unix(far).await });
            [gateway, forwarder]
        });
        Self { runtime, client: Some(near), next_id: 1, request, _relays: relays }
    }

    /// Makes calls and returns what was allocated for them on the thread of the relays.
    fn calls(&mut self, calls: u32, outstanding: u32) -> AllocationInfo {
        let stream = self.client.take().unwrap();
        let (first, request) = (self.next_id, self.request.clone());
        self.next_id += 2 * calls;
        let (done, end) = tokio::sync::oneshot::channel();
        let calling = std::thread::spawn(move || {
            let stream = client(stream, first, &request, calls, outstanding);
            done.send(()).unwrap();
            stream
        });
        let counted = allocation_counter::measure(|| self.runtime.block_on(end).unwrap());
        self.client = Some(calling.join().unwrap());
        counted
    }
}

fn check() -> Bytes {
    Request::new("grpc.Health", "Check", Bytes::new(), None).to_bytes()
}

#[test]
fn small_calls_allocate_nothing_but_the_buffers_they_are_read_into() {
    for outstanding in [1, 8, 64] {
        let answer = Response::new(Ok(Bytes::from_static(&[8, 1]))).to_bytes();
        // Request and answer are read twice each.
        let read = 2 * (check().len() + answer.len() + 2 * HEADER_LEN) as u64;
        let mut chain = Chain::new(check(), answer);
        chain.calls(2_000, outstanding);
        for calls in [2_000, 4_000] {
            let counted = chain.calls(calls, outstanding);
            // A buffer is given up with an eighth of it unused, and acknowledgements are read as well.
            let buffers = u64::from(calls) * (read + 8) / (READ - READ / 8) + 1;
            let most = ONCE + OF_BUFFER * buffers;
            assert!(
                counted.count_total <= most,
                "{calls} calls, {outstanding} at the same time: {} allocations, {most} at most",
                counted.count_total
            );
        }
    }
}

#[test]
fn long_payloads_are_kept_once_in_each_relay() {
    const LENGTH: usize = 1 << 20;
    const CALLS: u64 = 40;
    let payload = Bytes::from(vec![7; LENGTH]);
    let request = Request::new("grpc.AgentService", "CopyFile", payload, None).to_bytes();
    let mut chain = Chain::new(request, Response::new(Ok(Bytes::new())).to_bytes());
    chain.calls(10, 1);
    let counted = chain.calls(CALLS as u32, 1);
    let each = counted.bytes_total / CALLS;
    // Where each begins is read together with its header, and moved to the rest.
    let most = 2 * (LENGTH as u64 + 3 * READ);
    assert!(
        each <= most,
        "{each} bytes are allocated for a payload of {LENGTH} on its way through two relays"
    );
    let each = counted.count_total / CALLS;
    assert!(each <= 14, "{each} allocations for each of them");
}
