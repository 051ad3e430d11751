//! What is no call of a shim: answered on its stream or by closing its connection, and nobody else notices.

use std::{io::Write as _, os::unix::net::UnixStream, path::Path, time::Duration};

use peerpod_proto::{
    Code, Status,
    envelope::{Request, Response},
    frame::{Frame, HEADER_LEN, Header},
    messages::hypervisor,
};
use prost::Message as _;

use crate::node::{Node, SOON};

/// Writes bytes and reads answers until the daemon closes, or `count` frames came.
fn talk(socket: &Path, bytes: &[u8], count: usize) -> Vec<(u32, Status)> {
    use std::io::Read as _;
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(bytes).unwrap();
    if count == 0 {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let mut answers = Vec::new();
    while count == 0 || answers.len() < count {
        let mut head = [0; HEADER_LEN];
        if stream.read_exact(&mut head).is_err() {
            break;
        }
        let header = Header::parse(head);
        let mut payload = vec![0; header.length as usize];
        stream.read_exact(&mut payload).unwrap();
        let response = Response::decode(payload.as_slice()).unwrap();
        answers.push((header.stream_id, response.status.unwrap_or_default()));
    }
    answers
}

fn request(stream: u32, service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
    let request = Request {
        service: service.into(),
        method: method.into(),
        payload: payload.to_vec().into(),
        ..Default::default()
    };
    let frame = Frame::request(stream, request.encode_to_vec().into());
    [frame.header().to_bytes().as_slice(), &frame.payload].concat()
}

#[tokio::test]
async fn odd_frames_are_answered_on_their_stream_and_the_daemon_lives_on() {
    let node = Node::start(0, &[]).await.unwrap();
    let socket = node.socket();
    let version = request(1, hypervisor::SERVICE, hypervisor::VERSION, &[]);

    let answers = talk(&socket, &request(1, "no.Service", "X", &[]), 1);
    assert_eq!(
        (answers[0].1.code(), answers[0].1.message.as_str()),
        (Code::Unimplemented, "service no.Service")
    );
    let answers = talk(&socket, &request(1, hypervisor::SERVICE, "Nope", &[]), 1);
    assert_eq!((answers[0].1.code(), answers[0].1.message.as_str()), (Code::Unimplemented, "method Nope"));
    let answers = talk(&socket, &request(1, hypervisor::SERVICE, hypervisor::CREATE_VM, &[0xff, 0xff]), 1);
    assert_eq!(answers[0].1.code(), Code::Internal, "{answers:?}");
    let answers = talk(&socket, &request(2, hypervisor::SERVICE, hypervisor::VERSION, &[]), 1);
    assert_eq!(answers[0].1.code(), Code::InvalidArgument, "{answers:?}");
    // The same id twice: the second one is refused.
    let answers = talk(&socket, &[version.clone(), version.clone()].concat(), 2);
    let mut codes: Vec<Code> = answers.iter().map(|(_, s)| s.code()).collect();
    codes.sort_by_key(|c| *c as i32);
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument]);

    // Over the limit: the body is passed over and the connection stays usable.
    let size: u32 = (4 << 20) + 1;
    let mut oversized = Frame::request(1, Default::default()).header();
    oversized.length = size;
    let mut bytes = oversized.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + size as usize, 0);
    bytes.extend(request(3, hypervisor::SERVICE, hypervisor::VERSION, &[]));
    let answers = talk(&socket, &bytes, 2);
    assert_eq!(
        answers.iter().map(|(id, s)| (*id, s.code())).collect::<Vec<_>>(),
        [(1, Code::ResourceExhausted), (3, Code::Ok)]
    );

    // Truncated at every length of the header and in the payload: closed without an answer.
    for length in (0..HEADER_LEN).chain([HEADER_LEN + 3]) {
        assert!(talk(&socket, &version[..length], 0).is_empty(), "{length}");
    }
    talk(&socket, &[0xff; 64], 0);

    let shim = node.shim("s").await.unwrap();
    assert_eq!(shim.version().await.unwrap(), "0.0.0");
}

#[tokio::test]
async fn a_recorded_hypervisor_conversation_is_answered() {
    let node = Node::start(0, &[]).await.unwrap();
    let recorded = include_bytes!("../../../../tests/fixtures/kata-4.1.0-runtime-rs/hypervisor.c2s.bin");
    // Of another machine: CreateVM fails on its network namespace, StartVM for lack of CreateVM; the three StopVMs succeed.
    let answers = tokio::task::spawn_blocking({
        let socket = node.socket();
        move || talk(&socket, recorded, 5)
    })
    .await
    .unwrap();
    let ok = answers.iter().filter(|(_, s)| s.is_ok()).count();
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(ok, 3, "{answers:?}");
}

#[tokio::test]
async fn a_call_ends_at_the_callers_deadline() {
    let node = Node::start(0, &[]).await.unwrap();
    let shim = node.shim("s").await.unwrap();
    let request = peerpod_proto::messages::podvminfo::GetInfoRequest {
        pod_name: "p".into(),
        pod_namespace: "n".into(),
        wait: true,
    };
    let (service, method) =
        (peerpod_proto::messages::podvminfo::SERVICE, peerpod_proto::messages::podvminfo::GET_INFO);
    let answer: Result<peerpod_proto::messages::podvminfo::GetInfoResponse, Status> =
        shim.client().call(service, method, &request, Some(Duration::from_millis(300))).await;
    assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(shim.version().await.is_ok(), "the connection stays usable");
}
