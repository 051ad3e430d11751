//! Frames over any way of cutting a connection into reads, and the recorded conversations of a real shim.

mod common;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use peerpod_proto::envelope::{Request, RequestView, Response};
use peerpod_proto::frame::{
    Frame, FrameError, FrameReader, FrameWriter, HEADER_LEN, Header, Inbound, Kind, MAX_PAYLOAD,
};
use peerpod_proto::messages::agent::{self, CopyFileRequest, CreateContainerRequest};
use peerpod_proto::messages::hypervisor::{CreateVmRequest, CreateVmResponse};
use proptest::prelude::*;
use prost::Message;
use tokio::io::{AsyncRead, ReadBuf};

use common::within;

/// A connection that brings its bytes in pieces of given sizes.
struct Pieces {
    bytes: Bytes,
    sizes: Vec<usize>,
    next: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = if self.sizes.is_empty() { usize::MAX } else { self.sizes[self.next % self.sizes.len()] };
        self.next += 1;
        let size = size.min(buffer.remaining()).min(self.bytes.len());
        buffer.put_slice(&self.bytes.split_to(size));
        Poll::Ready(Ok(()))
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// All frames of some bytes, and how the reading ended.
fn read_all(bytes: Bytes, sizes: Vec<usize>) -> (Vec<Inbound>, Result<(), FrameError>) {
    block_on(async {
        let mut reader = FrameReader::new(Pieces { bytes, sizes, next: 0 });
        let mut found = Vec::new();
        loop {
            match reader.read().await {
                Ok(Some(inbound)) => found.push(inbound),
                Ok(None) => return (found, Ok(())),
                Err(error) => return (found, Err(error)),
            }
        }
    })
}

fn write_all(frames: &[Frame]) -> Vec<u8> {
    block_on(async {
        let mut bytes = Vec::new();
        FrameWriter::new(&mut bytes).write(frames).await.unwrap();
        bytes
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let payload = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..600),
        1 => (4000..20_000usize).prop_map(|size| vec![7; size]),
    ];
    (any::<u32>(), 0..6u8, any::<u8>(), payload).prop_map(|(stream_id, kind, flags, payload)| Frame {
        stream_id,
        kind: Kind::from(kind),
        flags,
        payload: payload.into(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_survive_any_cut(
        frames in prop::collection::vec(frame(), 0..30),
        sizes in prop::collection::vec(1..5000usize, 0..8),
    ) {
        let bytes = write_all(&frames);
        let expected: usize = frames.iter().map(|frame| HEADER_LEN + frame.payload.len()).sum();
        prop_assert_eq!(bytes.len(), expected);
        let (found, end) = read_all(bytes.into(), sizes);
        prop_assert!(end.is_ok());
        prop_assert_eq!(found, frames.into_iter().map(Inbound::Frame).collect::<Vec<_>>());
    }

    #[test]
    fn a_cut_within_a_frame_is_an_error_after_the_whole_ones(
        frames in prop::collection::vec(frame(), 1..5),
        cut in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(1..50usize, 0..4),
    ) {
        let bytes = write_all(&frames);
        let cut = cut.index(bytes.len());
        let mut ends = vec![0];
        for frame in &frames {
            ends.push(ends[ends.len() - 1] + HEADER_LEN + frame.payload.len());
        }
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let (found, end) = read_all(bytes[..cut].to_vec().into(), sizes);
        prop_assert_eq!(found.len(), whole);
        if ends.contains(&cut) {
            prop_assert!(end.is_ok());
        } else {
            let header = cut < ends[whole] + HEADER_LEN;
            let want = if header { ends[whole] + HEADER_LEN } else { ends[whole + 1] } - cut;
            let truncated = matches!(end, Err(FrameError::Truncated { missing }) if missing == want);
            prop_assert!(truncated);
        }
    }
}

#[test]
fn an_oversized_frame_is_discarded_and_reading_goes_on() {
    let length = MAX_PAYLOAD + 1;
    let header = Header { length: length as u32, stream_id: 3, kind: Kind::Request, flags: 0 };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + length, 1);
    let next = Frame::request(5, Bytes::from_static(b"next"));
    bytes.extend(write_all(std::slice::from_ref(&next)));
    let (found, end) = read_all(bytes.into(), vec![100_000]);
    assert!(end.is_ok());
    assert_eq!(found, [Inbound::Oversized(header), Inbound::Frame(next)]);
}

#[test]
fn the_largest_frame_passes() {
    let frame = Frame::request(1, vec![9; MAX_PAYLOAD].into());
    let (found, end) = read_all(write_all(std::slice::from_ref(&frame)).into(), vec![65_536, 3]);
    assert!(end.is_ok());
    assert_eq!(found, [Inbound::Frame(frame)]);
}

#[test]
fn a_frame_above_the_limit_is_not_written() {
    let frames = [Frame::request(1, Bytes::new()), Frame::request(3, vec![0; MAX_PAYLOAD + 1].into())];
    let mut bytes = Vec::new();
    let error = block_on(FrameWriter::new(&mut bytes).write(&frames)).unwrap_err();
    assert!(error.to_string().contains("4194305"));
    assert!(bytes.is_empty());
}

#[tokio::test]
async fn reading_can_be_interrupted_without_a_loss() {
    let (ours, theirs) = tokio::io::duplex(64);
    let frame = Frame::request(1, vec![5; 10_000].into());
    let expected = Inbound::Frame(frame.clone());
    let writing = tokio::spawn(async move { FrameWriter::new(theirs).write(&[frame]).await });
    let mut reader = FrameReader::new(ours);
    let found = within(async {
        loop {
            tokio::select! {
                biased;
                inbound = reader.read() => break inbound,
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
    assert_eq!(found.unwrap().unwrap(), expected);
    writing.await.unwrap().unwrap();
}

fn recorded(name: &str) -> Bytes {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/kata-4.1.0-runtime-rs");
    std::fs::read(format!("{directory}/{name}")).expect("the recording is there").into()
}

fn frames_of(name: &str) -> Vec<Frame> {
    let bytes = recorded(name);
    let (found, end) = read_all(bytes.clone(), vec![7]);
    assert!(end.is_ok(), "{name} ends between two frames");
    let frames: Vec<_> = found
        .into_iter()
        .map(|inbound| match inbound {
            Inbound::Frame(frame) => frame,
            Inbound::Oversized(header) => panic!("{name} has an oversized frame: {header:?}"),
        })
        .collect();
    assert_eq!(write_all(&frames), bytes, "{name} is written as it was read");
    frames
}

#[test]
fn every_byte_of_the_recorded_requests_is_understood() {
    let mut requests = 0;
    for name in ["agent.c2s.bin", "hypervisor.c2s.bin", "createvm-cri.bin", "createvm-ctr.bin"] {
        let mut last = 0;
        for frame in frames_of(name) {
            assert_eq!((frame.kind, frame.flags), (Kind::Request, 0));
            assert!(frame.stream_id % 2 == 1 && frame.stream_id > last);
            last = frame.stream_id;
            let view = RequestView::parse(&frame.payload).unwrap();
            let request = Request::decode(frame.payload.clone()).unwrap();
            assert_eq!((view.service, view.method), (request.service.as_str(), request.method.as_str()));
            assert_eq!(frame.payload.slice(view.payload_range()), request.payload);
            requests += 1;
        }
    }
    assert_eq!(requests, 30 + 5 + 2);
}

#[test]
fn every_recorded_answer_is_understood() {
    let answers = frames_of("agent.s2c.bin");
    let failed: Vec<_> = answers
        .iter()
        .filter_map(|frame| Response::decode(frame.payload.clone()).unwrap().into_result().err())
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].message, "InvalidExecId");
    let created = Response::decode(frames_of("hypervisor.s2c.bin")[0].payload.clone()).unwrap();
    let created = CreateVmResponse::decode(created.into_result().unwrap()).unwrap();
    assert_eq!(created.agent_socket_path, "/run/peerpod/pods/agent.ttrpc");
}

#[test]
fn the_recorded_create_vm_has_its_nine_annotations() {
    for (name, memory) in [("createvm-cri.bin", "128"), ("createvm-ctr.bin", "2048")] {
        let request = Request::decode(frames_of(name)[0].payload.clone()).unwrap();
        let create = CreateVmRequest::decode(request.payload).unwrap();
        assert_eq!(create.annotations.len(), 9, "{name}");
        assert_eq!(create.annotations["io.katacontainers.config.hypervisor.default_memory"], memory);
        assert!(create.network_namespace_path.starts_with("/var/run/netns/cni"));
    }
}

/// The messages of the recording hold nothing that our structs do not name, so they encode to the same length.
#[test]
fn the_recorded_containers_are_read_completely() {
    let mut seen = 0;
    for frame in frames_of("agent.c2s.bin") {
        let request = Request::decode(frame.payload).unwrap();
        match request.method.as_str() {
            agent::method::CREATE_CONTAINER => {
                let create = CreateContainerRequest::decode(request.payload.clone()).unwrap();
                // Both ends leave defaults out, so the order of the map is all that may differ.
                assert_eq!(create.encoded_len(), request.payload.len());
                assert!(create.oci.unwrap().linux.unwrap().namespaces.iter().any(|ns| ns.kind == "mnt"));
                seen += 1;
            }
            agent::method::COPY_FILE => {
                let copy = CopyFileRequest::decode(request.payload).unwrap();
                assert_eq!(copy.file_size as usize, copy.data.len());
                seen += 1;
            }
            _ => {}
        }
    }
    assert_eq!(seen, 6);
}
