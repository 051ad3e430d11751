//! The relay between fronts and a backend, both made by hand where bytes matter.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::envelope::{KeyValue, Request, Response};
use peerpod_proto::frame::{Frame, HEADER_LEN, Header, Inbound, Kind, MAX_PAYLOAD};
use peerpod_proto::messages::agent;
use peerpod_proto::relay::{
    BoxedStream, Dial, DialError, InterceptContext, Interceptor, LinkState, PassThrough, Relay, RelayOptions,
    Rewrite,
};
use peerpod_proto::{Client, Code, Server, Status};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_util::sync::CancellationToken;

use common::{LIMIT, Probe, Raw, probe, request, wait_for, within};

/// Hands the far ends of the connections it makes to the test.
struct Hand {
    far: mpsc::UnboundedSender<DuplexStream>,
    up: AtomicBool,
    attempts: AtomicUsize,
}

impl Hand {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<DuplexStream>) {
        let (far, backends) = mpsc::unbounded_channel();
        (Arc::new(Self { far, up: AtomicBool::new(true), attempts: AtomicUsize::new(0) }), backends)
    }
}

#[async_trait::async_trait]
impl Dial for Hand {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        if !self.up.load(Ordering::SeqCst) {
            return Err(DialError::again(Duration::from_millis(5), "the backend is down"));
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        self.far.send(far).map_err(|_| DialError::permanent("the test is over"))?;
        Ok(Box::new(near))
    }
}

/// Serves a probe behind the relay; each connection can be cut.
struct Served {
    probe: Arc<Probe>,
    up: AtomicBool,
    cut: std::sync::Mutex<CancellationToken>,
}

impl Served {
    fn new(probe: &Arc<Probe>) -> Arc<Self> {
        Arc::new(Self { probe: Arc::clone(probe), up: AtomicBool::new(true), cut: Default::default() })
    }

    fn cut(&self) {
        self.cut.lock().unwrap().cancel();
    }
}

#[async_trait::async_trait]
impl Dial for Served {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        if !self.up.load(Ordering::SeqCst) {
            return Err(DialError::again(Duration::from_millis(5), "the backend is down"));
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        let server = Server::new(Arc::clone(&self.probe) as _);
        let cut = CancellationToken::new();
        *self.cut.lock().unwrap() = cut.clone();
        tokio::spawn(async move {
            let never = CancellationToken::new();
            cut.run_until_cancelled(server.serve_connection(far, None, &never)).await;
        });
        Ok(Box::new(near))
    }
}

fn relay(dial: Arc<dyn Dial>) -> Relay {
    Relay::new(dial, Arc::new(PassThrough), RelayOptions::default())
}

fn front(relay: &Relay) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    let relay = relay.clone();
    tokio::spawn(async move { relay.serve(far).await });
    near
}

fn raw(relay: &Relay) -> Raw<DuplexStream> {
    Raw::new(front(relay))
}

fn client(relay: &Relay) -> Client {
    Client::connect(front(relay))
}

async fn call(client: &Client, method: &str, payload: &'static [u8]) -> Result<Bytes, Status> {
    within(client.request("test.Probe", method, payload.into(), None, Vec::new())).await
}

async fn backend(backends: &mut mpsc::UnboundedReceiver<DuplexStream>) -> Raw<DuplexStream> {
    Raw::new(within(backends.recv()).await.expect("the relay dials"))
}

/// Answers a request at a backend made by hand.
async fn answer(backend: &mut Raw<DuplexStream>, id: u32, payload: &'static str) {
    let envelope = Response::new(Ok(payload.into())).to_bytes();
    backend.write.write(&[Frame::response(id, envelope)]).await.unwrap();
}

/// A call that only waits, as a shim sends it.
fn waiting(process: &str) -> Request {
    Request::new(
        agent::SERVICE,
        agent::method::WAIT_PROCESS,
        Bytes::copy_from_slice(process.as_bytes()),
        None,
    )
}

#[tokio::test]
async fn requests_pass_byte_for_byte_and_streams_are_numbered_anew() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let (mut one, mut two) = (raw(&relay), raw(&relay));
    let mut backend = backend(&mut backends).await;
    // Unknown fields, metadata, a timeout, an explicit zero, and numbers longer than they need to be.
    let mut request = request("Unheard-of", "payload").to_bytes().to_vec();
    request.extend(b"\x20\x80\x00\x2a\x06\x0a\x01k\x12\x01v\xfa\x01\x03odd");
    let mut header = Frame::request(7, request.clone().into());
    header.flags = 3;
    one.write.write(&[header]).await.unwrap();
    let got = backend.frame().await;
    assert_eq!((got.stream_id, got.kind, got.flags), (1, Kind::Request, 0));
    assert_eq!(got.payload, request);
    two.send_bytes(1, request.clone().into()).await;
    assert_eq!(backend.frame().await.stream_id, 3);
    // The answers come the other way round, with an empty status and an unknown field.
    let response = Bytes::from_static(b"\x0a\x00\x12\x02ok\xfa\x01\x03odd");
    for (id, front, own) in [(3, &mut two, 1), (1, &mut one, 7)] {
        backend.write.write(&[Frame { flags: 1, ..Frame::response(id, response.clone()) }]).await.unwrap();
        assert_eq!(front.frame().await, Frame::response(own, response.clone()));
    }
}

#[tokio::test]
async fn eight_fronts_share_one_backend() {
    let probe = probe();
    let relay = relay(Served::new(&probe));
    let fronts: Vec<_> = (0..8)
        .map(|number| {
            let client = client(&relay);
            tokio::spawn(async move {
                let calls: Vec<_> = (0..100)
                    .map(|call| {
                        let client = client.clone();
                        let payload = Bytes::from(format!("{number}/{call}").repeat(call + 1));
                        tokio::spawn(async move {
                            let answer = client.request(
                                "test.Probe",
                                "Echo",
                                payload.clone(),
                                Some(LIMIT),
                                Vec::new(),
                            );
                            assert_eq!(answer.await.unwrap(), payload);
                        })
                    })
                    .collect();
                for call in calls {
                    call.await.unwrap();
                }
            })
        })
        .collect();
    for front in fronts {
        within(front).await.unwrap();
    }
    assert_eq!(probe.calls.load(Ordering::SeqCst), 800);
}

#[tokio::test]
async fn a_call_that_waits_holds_up_nothing() {
    let probe = probe();
    let relay = relay(Served::new(&probe));
    let client = client(&relay);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", b"late").await }
    });
    wait_for("the call waits", || probe.running.load(Ordering::SeqCst) == 1).await;
    assert_eq!(call(&client, "Echo", b"early").await.unwrap(), "early");
    probe.release.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap(), "late");
}

#[tokio::test]
async fn a_silent_front_disturbs_nobody() {
    let relay = relay(Served::new(&probe()));
    let mut silent = front(&relay);
    assert_eq!(call(&client(&relay), "Echo", b"x").await.unwrap(), "x");
    let mut byte = [0];
    let nothing = tokio::time::timeout(Duration::from_millis(20), silent.read(&mut byte)).await;
    assert!(nothing.is_err(), "the silent connection stays open");
}

#[tokio::test]
async fn bad_frames_are_answered_on_their_front_and_never_forwarded() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let (mut bad, mut good) = (front(&relay), raw(&relay));
    let mut backend = backend(&mut backends).await;
    let header = Header { length: MAX_PAYLOAD as u32 + 1, stream_id: 9, kind: Kind::Request, flags: 0 };
    bad.write_all(&header.to_bytes()).await.unwrap();
    bad.write_all(&vec![0; MAX_PAYLOAD + 1]).await.unwrap();
    let mut bad = Raw::new(bad);
    let mut refused = Vec::new();
    refused.push(bad.answer().await);
    bad.send(4, &request("Echo", "even")).await;
    refused.push(bad.answer().await);
    bad.send_bytes(11, Bytes::from_static(b"\xff\xff")).await;
    refused.push(bad.answer().await);
    bad.send(11, &request("Echo", "again")).await;
    refused.push(bad.answer().await);
    let codes: Vec<_> = refused.into_iter().map(|(id, result)| (id, result.unwrap_err().code())).collect();
    let invalid = Code::InvalidArgument;
    assert_eq!(codes, [(9, Code::ResourceExhausted), (4, invalid), (11, invalid), (11, invalid)]);
    good.send(1, &request("Echo", "good")).await;
    let first = backend.frame().await;
    assert_eq!(Request::decode(first.payload).unwrap().payload, "good");
    answer(&mut backend, 1, "fine").await;
    assert_eq!(good.answer().await.1.unwrap(), "fine");
}

#[tokio::test]
async fn random_bytes_on_one_front_leave_the_others_alone() {
    let relay = relay(Served::new(&probe()));
    let mut garbage = front(&relay);
    let noise: Vec<u8> = (0..50_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let good = client(&relay);
    garbage.write_all(&noise).await.unwrap();
    for _ in 0..20 {
        assert_eq!(call(&good, "Echo", b"x").await.unwrap(), "x");
    }
    drop(garbage);
    assert_eq!(call(&good, "Echo", b"y").await.unwrap(), "y");
}

#[tokio::test]
async fn an_oversized_answer_fails_its_call_only() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let mut front = raw(&relay);
    front.send(1, &request("Echo", "")).await;
    front.send(3, &request("Echo", "")).await;
    let mut far = within(backends.recv()).await.unwrap();
    let mut request = [0; HEADER_LEN];
    far.read_exact(&mut request).await.unwrap();
    let header = Header { length: MAX_PAYLOAD as u32 + 7, stream_id: 1, kind: Kind::Response, flags: 0 };
    far.write_all(&header.to_bytes()).await.unwrap();
    far.write_all(&vec![0; MAX_PAYLOAD + 7]).await.unwrap();
    let (id, status) = front.answer().await;
    assert_eq!((id, status.unwrap_err().code()), (1, Code::ResourceExhausted));
    let mut backend = Raw::new(far);
    answer(&mut backend, 3, "on").await;
    assert_eq!(front.answer().await, (3, Ok("on".into())));
}

#[tokio::test]
async fn a_broken_backend_fails_calls_except_those_that_only_wait() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let mut front = raw(&relay);
    let mut first = backend(&mut backends).await;
    front.send(1, &request("Echo", "lost")).await;
    front.send(3, &waiting("p1")).await;
    front.send(5, &waiting("p2")).await;
    let sent: Vec<_> = [first.frame().await, first.frame().await, first.frame().await].into();
    drop(first);
    let (id, status) = front.answer().await;
    let status = status.unwrap_err();
    assert_eq!((id, status.code()), (1, Code::Unavailable));
    assert!(status.message.contains("the connection to the backend broke"), "{status}");
    let mut second = backend(&mut backends).await;
    for (id, again) in [(1, &sent[1]), (3, &sent[2])] {
        let frame = second.frame().await;
        assert_eq!((frame.stream_id, &frame.payload), (id, &again.payload));
    }
    answer(&mut second, 3, "p2 ended").await;
    assert_eq!(front.answer().await, (5, Ok("p2 ended".into())));
    answer(&mut second, 1, "p1 ended").await;
    assert_eq!(front.answer().await, (3, Ok("p1 ended".into())));
    front.send(7, &request("Echo", "new")).await;
    assert_eq!(second.frame().await.stream_id, 5);
}

#[tokio::test]
async fn new_calls_wait_for_the_reconnect() {
    let probe = probe();
    let dial = Served::new(&probe);
    let relay = relay(Arc::clone(&dial) as _);
    let client = client(&relay);
    assert_eq!(call(&client, "Echo", b"one").await.unwrap(), "one");
    dial.up.store(false, Ordering::SeqCst);
    dial.cut();
    let mut state = relay.state();
    within(state.wait_for(|state| matches!(state, LinkState::Connecting { reconnect: true, .. })))
        .await
        .unwrap();
    let early = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Echo", b"two").await }
    });
    within(state.wait_for(|state| matches!(state, LinkState::Connecting { attempts, .. } if *attempts > 3)))
        .await
        .unwrap();
    dial.up.store(true, Ordering::SeqCst);
    assert_eq!(early.await.unwrap().unwrap(), "two");
}

#[tokio::test]
async fn new_calls_wait_for_a_limited_time_only() {
    let (dial, _backends) = Hand::new();
    dial.up.store(false, Ordering::SeqCst);
    let options = RelayOptions::default().with_first_connect_wait(Duration::from_millis(40));
    let relay = Relay::new(dial, Arc::new(PassThrough), options);
    let client = client(&relay);
    let status = call(&client, "Echo", b"").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message.contains("no connection to the backend") && status.message.contains("is down"),
        "{status}"
    );
    let limited = client.request("s", "m", Bytes::new(), Some(Duration::from_millis(10)), Vec::new());
    assert_eq!(within(limited).await.unwrap_err(), Status::deadline_exceeded());
}

/// The clock goes on only when nothing else does, so that a busy machine does not let the deadline pass before the call
/// reaches the backend.
#[tokio::test(start_paused = true)]
async fn a_deadline_is_answered_although_the_backend_is_silent() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let mut front = raw(&relay);
    front.send(1, &Request { timeout_nano: 30_000_000, ..request("Echo", "") }).await;
    let mut backend = backend(&mut backends).await;
    let got = Request::decode(backend.frame().await.payload).unwrap();
    assert_eq!(got.timeout_nano, 30_000_000, "the timeout is forwarded as it is");
    let (id, status) = front.answer().await;
    assert_eq!((id, status.unwrap_err()), (1, Status::deadline_exceeded()));
    // The answer that comes too late reaches nobody, and the next call works.
    answer(&mut backend, 1, "late").await;
    front.send(3, &request("Echo", "")).await;
    assert_eq!(backend.frame().await.stream_id, 3);
    answer(&mut backend, 3, "in time").await;
    assert_eq!(front.answer().await, (3, Ok("in time".into())));
}

#[tokio::test]
async fn the_answer_to_a_front_that_has_gone_is_dropped() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let (mut gone, mut stays) = (raw(&relay), raw(&relay));
    gone.send(1, &request("Echo", "gone")).await;
    let mut backend = backend(&mut backends).await;
    backend.frame().await;
    drop(gone);
    stays.send(1, &request("Echo", "stays")).await;
    backend.frame().await;
    answer(&mut backend, 1, "for nobody").await;
    answer(&mut backend, 3, "for you").await;
    assert_eq!(stays.answer().await, (1, Ok("for you".into())));
}

#[tokio::test]
async fn a_successor_gets_what_a_broken_front_waited_for() {
    let (dial, mut backends) = Hand::new();
    let options = RelayOptions::default().with_adopt_waiting_calls(true);
    let relay = Relay::new(dial, Arc::new(PassThrough), options);
    let mut first = raw(&relay);
    first.send(1, &waiting("pending")).await;
    first.send(3, &waiting("answered")).await;
    first.send(5, &request("Echo", "forgotten")).await;
    let mut backend = backend(&mut backends).await;
    for _ in 0..3 {
        backend.frame().await;
    }
    drop(first);
    // Another front's call tells when the relay has taken note of the end and of the answer.
    wait_for("the front is gone", || relay.fronts() == 0).await;
    let mut other = raw(&relay);
    answer(&mut backend, 3, "exit code").await;
    answer(&mut backend, 5, "nothing").await;
    other.send(1, &request("Echo", "mark")).await;
    assert_eq!(backend.frame().await.stream_id, 7);
    answer(&mut backend, 7, "mark").await;
    other.answer().await.1.unwrap();

    let mut second = raw(&relay);
    second.send(1, &waiting("answered")).await;
    assert_eq!(second.answer().await, (1, Ok("exit code".into())));
    second.send(3, &waiting("pending")).await;
    second.send(5, &request("Echo", "next")).await;
    // Only the new call reaches the backend: the other one is there already.
    let frame = backend.frame().await;
    assert_eq!(frame.stream_id, 9);
    assert_eq!(Request::decode(frame.payload).unwrap().payload, "next");
    answer(&mut backend, 1, "ended").await;
    assert_eq!(second.answer().await, (3, Ok("ended".into())));
}

#[tokio::test]
async fn a_successor_takes_the_place_of_a_front_that_has_not_noticed_its_end() {
    let (dial, mut backends) = Hand::new();
    let options = RelayOptions::default().with_adopt_waiting_calls(true);
    let relay = Relay::new(dial, Arc::new(PassThrough), options);
    let (mut old, mut new) = (raw(&relay), raw(&relay));
    old.send(1, &waiting("p")).await;
    let mut backend = backend(&mut backends).await;
    assert_eq!(backend.frame().await.stream_id, 1);
    new.send(1, &waiting("p")).await;
    assert_eq!(old.answer().await, (1, Err(Status::closed())));
    answer(&mut backend, 1, "ended").await;
    assert_eq!(new.answer().await, (1, Ok("ended".into())));
    // Two equal calls of one front are two calls.
    for id in [3, 5] {
        new.send(id, &waiting("q")).await;
        assert_eq!(backend.frame().await.stream_id, id);
    }
}

#[tokio::test]
async fn a_front_that_does_not_read_neither_blocks_others_nor_grows_for_ever() {
    let probe = probe();
    let relay = relay(Served::new(&probe));
    let mut lazy = raw(&relay);
    let greedy = tokio::spawn(async move {
        for id in 0..1000u32 {
            let frame = [Frame::request(id * 2 + 1, request("Large", "1000000").to_bytes())];
            let sending = tokio::time::timeout(Duration::from_millis(200), lazy.write.write(&frame)).await;
            // Either the relay reads no further, or it has closed the connection.
            if !matches!(sending, Ok(Ok(()))) {
                break;
            }
        }
        lazy
    });
    let other = client(&relay);
    for _ in 0..50 {
        assert_eq!(call(&other, "Echo", b"x").await.unwrap(), "x");
    }
    let mut lazy = within(greedy).await.unwrap();
    assert_eq!(call(&other, "Echo", b"y").await.unwrap(), "y");
    // What piled up is bounded, whatever the peer asked for.
    let mut piled = 0;
    while let Ok(Ok(Some(inbound))) = tokio::time::timeout(Duration::from_millis(500), lazy.read.read()).await
    {
        if let Inbound::Frame(frame) = inbound {
            piled += frame.payload.len();
        }
    }
    assert!(piled < 200_000_000, "{piled} bytes of answers were kept for a peer that does not read");
}

/// Rewrites some methods of the probe.
struct Rewriter {
    slow: Notify,
    seen: Mutex<Vec<String>>,
    cancelled: AtomicBool,
}

#[async_trait::async_trait]
impl Interceptor for Rewriter {
    fn wants(&self, service: &str, method: &str) -> bool {
        service == agent::SERVICE || method == "Panic"
    }

    async fn rewrite(
        &self,
        ctx: InterceptContext,
        _service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        self.seen.lock().await.push(method.to_owned());
        match method {
            "CreateContainer" => Ok(Rewrite::Forward([&payload[..], b" changed"].concat().into())),
            "StartContainer" => Ok(Rewrite::Reply("from the relay".into())),
            "SetPolicy" => Err(Status::new(Code::PermissionDenied, "not allowed")),
            "Slow" => {
                tokio::select! {
                    () = self.slow.notified() => Ok(Rewrite::Forward(payload)),
                    () = ctx.cancel.cancelled() => {
                        self.cancelled.store(true, Ordering::SeqCst);
                        Ok(Rewrite::Reply(payload))
                    }
                }
            }
            "Panic" => panic!("as asked"),
            _ => Ok(Rewrite::Forward(payload)),
        }
    }
}

fn rewriter() -> Arc<Rewriter> {
    Arc::new(Rewriter { slow: Notify::new(), seen: Mutex::default(), cancelled: AtomicBool::new(false) })
}

fn agent_call(method: &str, payload: &'static str) -> Request {
    Request::new(agent::SERVICE, method, payload.into(), None)
}

#[tokio::test]
async fn an_interceptor_changes_answers_or_refuses() {
    let (dial, mut backends) = Hand::new();
    let relay = Relay::new(dial, rewriter(), RelayOptions::default());
    let mut front = raw(&relay);
    let mut backend = backend(&mut backends).await;
    let mut create = agent_call("CreateContainer", "spec");
    create.timeout_nano = 5_000_000_000;
    create.metadata.push(KeyValue { key: "k".into(), value: "v".into() });
    let mut bytes = create.to_bytes().to_vec();
    bytes.extend(b"\xfa\x01\x03odd");
    front.send_bytes(1, bytes.into()).await;
    let mut expected = Request { payload: "spec changed".into(), ..create }.to_bytes().to_vec();
    expected.extend(b"\xfa\x01\x03odd");
    assert_eq!(backend.frame().await.payload, expected);
    front.send(3, &agent_call("StartContainer", "")).await;
    assert_eq!(front.answer().await, (3, Ok("from the relay".into())));
    front.send(5, &agent_call("SetPolicy", "")).await;
    assert_eq!(front.answer().await.1.unwrap_err().code(), Code::PermissionDenied);
    // What is not changed keeps even a needless encoding.
    let odd = [&agent_call("RemoveContainer", "").to_bytes()[..], b"\x1a\x81\x00x"].concat();
    front.send_bytes(7, odd.clone().into()).await;
    assert_eq!(backend.frame().await.payload, odd);
}

#[tokio::test]
async fn a_slow_interceptor_holds_up_its_own_call_only() {
    let probe = probe();
    let rewriter = rewriter();
    let relay = Relay::new(Served::new(&probe), Arc::clone(&rewriter) as _, RelayOptions::default());
    let mut front = raw(&relay);
    front.send(1, &agent_call("Slow", "")).await;
    front.send(3, &request("Echo", "quick")).await;
    assert_eq!(front.answer().await, (3, Ok("quick".into())));
    rewriter.slow.notify_one();
    let (id, status) = front.answer().await;
    assert_eq!((id, status.unwrap_err().message.as_str()), (1, "method Slow"));
}

#[tokio::test]
async fn an_interceptor_is_told_of_deadlines_and_disconnects() {
    for disconnect in [false, true] {
        let rewriter = rewriter();
        let relay = Relay::new(Served::new(&probe()), Arc::clone(&rewriter) as _, RelayOptions::default());
        let mut front = raw(&relay);
        let timeout_nano = if disconnect { 0 } else { 20_000_000 };
        front.send(1, &Request { timeout_nano, ..agent_call("Slow", "") }).await;
        if disconnect {
            wait_for("it runs", || rewriter.seen.try_lock().is_ok_and(|seen| seen.len() == 1)).await;
            drop(front);
        } else {
            assert_eq!(front.answer().await.1.unwrap_err(), Status::deadline_exceeded());
        }
        wait_for("it is told", || rewriter.cancelled.load(Ordering::SeqCst)).await;
    }
}

#[tokio::test]
async fn a_panic_of_the_interceptor_fails_one_call() {
    let relay = Relay::new(Served::new(&probe()), rewriter(), RelayOptions::default());
    let client = client(&relay);
    assert_eq!(call(&client, "Panic", b"").await.unwrap_err().code(), Code::Internal);
    assert_eq!(call(&client, "Echo", b"on").await.unwrap(), "on");
}

/// Never connects.
struct Hopeless;

#[async_trait::async_trait]
impl Dial for Hopeless {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        Err(DialError::permanent("the certificate is of another guest"))
    }
}

#[tokio::test]
async fn a_permanent_failure_is_known_and_calls_fail_at_once() {
    let relay = relay(Arc::new(Hopeless));
    let mut state = relay.state();
    let failed =
        within(state.wait_for(|state| matches!(state, LinkState::Failed { .. }))).await.unwrap().clone();
    let LinkState::Failed { attempts, error } = failed else { unreachable!() };
    assert_eq!((attempts, error.as_str()), (1, "the certificate is of another guest"));
    let status = call(&client(&relay), "Echo", b"").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message.contains("the certificate is of another guest"), "{status}");
}

/// Panics at first.
struct Panics(AtomicUsize, Arc<Served>);

#[async_trait::async_trait]
impl Dial for Panics {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "as asked");
        self.1.dial().await
    }
}

#[tokio::test]
async fn a_panic_while_dialling_costs_one_attempt() {
    let relay = relay(Arc::new(Panics(AtomicUsize::new(0), Served::new(&probe()))));
    assert_eq!(call(&client(&relay), "Echo", b"x").await.unwrap(), "x");
}

#[tokio::test]
async fn a_shutdown_tells_callers_and_closes_both_sides() {
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let mut front = raw(&relay);
    front.send(1, &waiting("p")).await;
    let mut backend = backend(&mut backends).await;
    backend.frame().await;
    within(relay.shutdown()).await;
    assert_eq!(front.answer().await, (1, Err(Status::closed())));
    assert!(within(front.read.read()).await.unwrap().is_none());
    assert!(within(backend.read.read()).await.unwrap().is_none());
    assert!(matches!(*relay.state().borrow(), LinkState::Closed));
    assert_eq!(relay.request("s", "m", Bytes::new(), None).await.unwrap_err(), Status::closed());
}

#[tokio::test]
async fn own_calls_go_over_the_same_connection() {
    let probe = probe();
    let relay = relay(Served::new(&probe));
    let answer = within(relay.request("test.Probe", "Echo", "own".into(), Some(LIMIT))).await;
    assert_eq!(answer.unwrap(), "own");
    let unknown =
        within(relay.request("peerpod.Peer", "Level", Bytes::new(), Some(LIMIT))).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
}

#[tokio::test]
async fn the_recorded_conversation_passes_unchanged() {
    let recording =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/kata-4.1.0-runtime-rs/agent.c2s.bin");
    let recorded = std::fs::read(recording).unwrap();
    let (dial, mut backends) = Hand::new();
    let relay = relay(dial);
    let mut front = front(&relay);
    front.write_all(&recorded).await.unwrap();
    let mut backend = within(backends.recv()).await.unwrap();
    // Streams 1, 3, 5… of one front are 1, 3, 5… at the backend, so even the headers are equal.
    let mut arrived = vec![0; recorded.len()];
    within(backend.read_exact(&mut arrived)).await.unwrap();
    assert_eq!(arrived, recorded);
}
