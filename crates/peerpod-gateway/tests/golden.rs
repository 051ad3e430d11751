//! A guest whose forwarder is an existing one, played byte by byte from a text: what it is sent, and that it is served.

mod common;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use peerpod_gateway::{AgentProxies, Gateway};
use peerpod_proto::Client;
use rustls::{NamedGroup, server::Acceptor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;

use common::{LIMIT, NAME, Pki, Pods, Valid, within};

/// A byte of a frame, or any.
type Pattern = Vec<Option<u8>>;

/// One frame of the text.
struct Step {
    to_guest: bool,
    bytes: Pattern,
    /// Whether more may follow, up to the end of the frame.
    open: bool,
}

/// What the shim writes and reads, in the numbering of its own connection.
struct Call {
    request: Vec<u8>,
    response: Vec<u8>,
}

fn steps() -> Vec<Step> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/level-0/first-calls.txt");
    let text = std::fs::read_to_string(file).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words = match line.split_at(1) {
            (">", rest) => {
                steps.push(Step { to_guest: true, bytes: Vec::new(), open: false });
                rest
            }
            ("<", rest) => {
                steps.push(Step { to_guest: false, bytes: Vec::new(), open: false });
                rest
            }
            (" ", rest) => rest,
            (other, _) => panic!("{other:?} begins a line"),
        };
        let step = steps.last_mut().unwrap();
        for word in words.split_whitespace() {
            match word {
                "*" => step.open = true,
                ".." => step.bytes.push(None),
                digits => step.bytes.push(Some(u8::from_str_radix(digits, 16).unwrap())),
            }
        }
    }
    steps
}

impl Step {
    fn exact(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.expect("every byte of an answer is given")).collect()
    }

    fn check(&self, frame: &[u8]) {
        let fits = if self.open { frame.len() >= self.bytes.len() } else { frame.len() == self.bytes.len() };
        let same =
            self.bytes.iter().zip(frame).position(|(wanted, got)| wanted.is_some_and(|byte| byte != *got));
        assert!(fits && same.is_none(), "differs at {same:?}: {frame:02x?}");
    }

    /// The same frame on another stream.
    fn on_stream(&self, stream: u32) -> Vec<u8> {
        let mut frame = self.exact();
        frame[4..8].copy_from_slice(&stream.to_be_bytes());
        frame
    }
}

/// Reads one frame with its header.
async fn frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut frame = vec![0; 10];
    within(stream.read_exact(&mut frame)).await.unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    frame.resize(10 + length, 0);
    within(stream.read_exact(&mut frame[10..])).await.unwrap();
    frame
}

/// What the shim sends for the calls that follow the question for levels.
fn calls(steps: &[Step]) -> Vec<Call> {
    let pairs = steps[2..].chunks(2).zip(0..);
    let call = |(pair, number): (&[Step], u32)| {
        assert!(pair[0].to_guest && !pair[1].to_guest, "questions and answers take turns");
        let stream = 2 * number + 1;
        Call { request: pair[0].on_stream(stream), response: pair[1].on_stream(stream) }
    };
    pairs.map(call).collect()
}

#[tokio::test]
async fn a_guest_whose_forwarder_knows_no_levels_is_served_byte_for_byte() {
    let (pki, pods, gateway) = (Pki::new(Valid::Now), Pods::new(), Gateway::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spec = pods.spec("s1", listener.local_addr().unwrap()).with_tls(pki.spec());
    let steps = Arc::new(steps());
    let calls = calls(&steps);
    assert!(calls.len() >= 2);
    let played = Arc::clone(&steps);
    let config = peerpod_proto::tls::server_config(
        pki.server.0.as_bytes(),
        pki.server.1.as_bytes(),
        pki.client.0.as_bytes(),
        &peerpod_proto::tls::TlsProfile::default(),
    )
    .unwrap();
    let guest = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        // Nothing comes before the handshake: the first byte is that of a TLS record.
        let mut first = [0; 3];
        within(tcp.peek(&mut first)).await.unwrap();
        assert_eq!(first, [0x16, 0x03, 0x01], "a handshake record");
        let hello = within(LazyConfigAcceptor::new(Acceptor::default(), tcp)).await.unwrap();
        let said = hello.client_hello();
        assert_eq!(said.server_name(), Some(NAME), "the guest is called by its instance's name");
        assert!(said.alpn().is_none(), "existing forwarders know no protocols to choose from");
        let groups = said.named_groups().unwrap_or_default();
        assert_eq!(groups.first(), Some(&NamedGroup::X25519MLKEM768), "{groups:?}");
        let mut tls = within(hello.into_stream(config)).await.unwrap();
        for step in played.iter() {
            if step.to_guest {
                step.check(&frame(&mut tls).await);
            } else {
                within(tls.write_all(&step.exact())).await.unwrap();
            }
        }
        tls
    });
    within(gateway.register(spec)).await.unwrap();
    within(gateway.wait_ready("s1", CancellationToken::new())).await.unwrap();
    let mut shim = UnixStream::connect(pods.socket("s1")).await.unwrap();
    for call in calls {
        shim.write_all(&call.request).await.unwrap();
        assert_eq!(frame(&mut shim).await, call.response, "the shim reads what the guest wrote");
    }
    let guest = within(guest).await.unwrap();
    test_support::wait_for_async("the level is known", LIMIT, || async {
        let list = gateway.list().await.unwrap();
        list.into_iter().find(|status| status.sandbox_id == "s1")?.peer_level
    })
    .await
    .map(|level| assert_eq!(level, 0))
    .unwrap();
    drop(guest);
}

#[tokio::test]
async fn a_forwarder_that_does_not_answer_for_levels_delays_no_call() {
    let (pods, gateway) = (Pods::new(), Gateway::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let steps = steps();
    within(gateway.register(pods.spec("s1", listener.local_addr().unwrap()))).await.unwrap();
    let (mut tcp, _) = within(listener.accept()).await.unwrap();
    steps[0].check(&frame(&mut tcp).await);
    // It is silent about that, for ever; calls go their way.
    within(gateway.wait_ready("s1", CancellationToken::new())).await.unwrap();
    let shim = Client::connect_unix(&pods.socket("s1")).await.unwrap();
    let asked = tokio::spawn(async move {
        shim.request("grpc.Health", "Check", Bytes::new(), Some(LIMIT), Vec::new()).await
    });
    let request = frame(&mut tcp).await;
    assert!(String::from_utf8_lossy(&request).contains("grpc.Health"), "{request:02x?}");
    let mut answer = vec![0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    answer[4..8].copy_from_slice(&request[4..8]);
    tcp.write_all(&answer).await.unwrap();
    within(asked).await.unwrap().unwrap();
}
