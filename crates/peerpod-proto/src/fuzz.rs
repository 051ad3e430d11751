//! Hostile input: frames, envelopes and edits.

use bytes::Bytes;
use fuzz_support::{Seen, Target, fixtures, proto, recorded};
use proptest::prelude::*;
use prost::Message;
use tokio::io::AsyncReadExt;

use crate::envelope::{Request, RequestView};
use crate::frame::{Frame, FrameError, FrameReader, FrameWriter, HEADER_LEN, Inbound, MAX_PAYLOAD};
use crate::messages::agent::CreateContainerRequest;
use crate::wire::{self, Editor};

const RECORDED: &str = "kata-4.1.0-runtime-rs";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Reads frames as the format is described, with nothing clever: what is there, and how many bytes are missing.
fn plainly(mut bytes: &[u8]) -> (Vec<Inbound>, usize) {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return (found, HEADER_LEN - bytes.len());
        };
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let length = number(0) as usize;
        let frame = |payload: &[u8]| Frame {
            stream_id: number(4),
            kind: header[8].into(),
            flags: header[9],
            payload: Bytes::copy_from_slice(payload),
        };
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            return (found, length - rest.len());
        };
        found.push(match length {
            ..=MAX_PAYLOAD => Inbound::Frame(frame(payload)),
            _ => Inbound::Oversized(crate::frame::Header {
                length: number(0),
                stream_id: number(4),
                kind: header[8].into(),
                flags: header[9],
            }),
        });
        bytes = rest;
    }
    (found, 0)
}

#[test]
fn frames() {
    let runtime = runtime();
    let frame = (any::<u32>(), 0..5u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..40));
    let fresh = prop::collection::vec(frame, 0..6).prop_map(|frames| {
        let bytes = |(stream_id, kind, flags, payload): (u32, u8, u8, Vec<u8>)| {
            let frame = Frame { stream_id, kind: kind.into(), flags, payload: payload.into() };
            [&frame.header().to_bytes()[..], &frame.payload].concat()
        };
        frames.into_iter().flat_map(bytes).collect()
    });
    let recorded = fixtures(RECORDED).into_iter().filter(|(name, _)| name.ends_with(".bin"));
    Target::new("frames")
        .seeds(recorded)
        .seed(
            "oversized",
            [&[0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0][..], &vec![7; MAX_PAYLOAD + 1], b"\0\0\0\0"].concat(),
        )
        .fresh(fresh)
        .longest(1 << 16)
        // A frame that begins has its room at once, up to the limit of frames, in each of the two readers; anything
        // beyond would be a fault.
        .memory(2 * MAX_PAYLOAD as u64 + (1 << 20), 16)
        .run(|input| {
            // The bytes come in pieces whose sizes depend on them.
            let cut = input.iter().take(5).fold(1, |cut, byte| cut * 3 % 4099 + usize::from(*byte)).max(1);
            let (mut reader, mut read) = (FrameReader::new(input), Vec::new());
            let (head, tail) = input.split_at(cut.min(input.len()));
            let mut pieces = FrameReader::new(head.chain(tail));
            let end = runtime.block_on(async {
                loop {
                    let next = reader.read().await;
                    let same = pieces.read().await;
                    match (next, same) {
                        (Ok(Some(frame)), Ok(Some(same))) => {
                            assert_eq!(frame, same, "another frame when it is cut at {cut}");
                            read.push(frame);
                        }
                        (Ok(None), Ok(None)) => break 0,
                        (
                            Err(FrameError::Truncated { missing }),
                            Err(FrameError::Truncated { missing: same }),
                        ) => {
                            assert_eq!(missing, same);
                            break missing;
                        }
                        (next, same) => panic!("{next:?} in one piece, {same:?} in two"),
                    }
                }
            });
            let (expected, missing) = plainly(input);
            assert_eq!(read, expected);
            assert_eq!(end, missing);
            let whole: Vec<Frame> = read
                .iter()
                .filter_map(|inbound| match inbound {
                    Inbound::Frame(frame) => Some(frame.clone()),
                    Inbound::Oversized(_) => None,
                })
                .collect();
            if whole.len() == read.len() {
                let mut written = Vec::new();
                runtime.block_on(FrameWriter::new(&mut written).write(&whole)).unwrap();
                let length: usize = whole.iter().map(|frame| HEADER_LEN + frame.payload.len()).sum();
                assert_eq!(written, input[..length], "what was read is written as it was");
            }
            let kinds: Vec<u8> = whole.iter().take(6).map(|frame| u8::from(frame.kind).min(4)).collect();
            Seen::accepted((whole.len() < read.len(), kinds, end == 0, end > MAX_PAYLOAD))
        });
}

/// The payloads of all recorded requests.
fn requests() -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for (name, bytes) in fixtures(RECORDED).into_iter().filter(|(name, _)| name.ends_with("c2s.bin")) {
        for (index, inbound) in plainly(&bytes).0.into_iter().enumerate() {
            if let Inbound::Frame(frame) = inbound {
                found.push((format!("{name}:{index}"), frame.payload.to_vec()));
            }
        }
    }
    found
}

#[test]
fn envelopes() {
    Target::new("envelopes")
        .seeds(requests())
        .words(&["grpc.AgentService", "CopyFile", "traceparent"])
        .proto()
        .run(|input| {
            let reference = Request::decode(input);
            match (RequestView::parse(input), reference) {
                (Ok(view), Ok(request)) => {
                    assert_eq!(view.service, request.service);
                    assert_eq!(view.method, request.method);
                    assert_eq!(view.timeout_nano, request.timeout_nano);
                    assert_eq!(input[view.payload_range()], request.payload);
                    assert_eq!(Request::decode(request.to_bytes()).unwrap(), request, "round trip");
                    Seen::accepted((view.service.len().min(3), request.metadata.len().min(3), view.timeout()))
                }
                // The view does not look into metadata, and refuses what is no field of protobuf 3.
                (Ok(view), Err(error)) => {
                    let text = error.to_string();
                    assert!(text.contains("metadata") || !plain(input), "{view:?}, and prost says {text}");
                    Seen::refused(&error).and(1)
                }
                (Err(error), Ok(request)) => {
                    let known = matches!(error, wire::WireError::WireType { .. });
                    assert!(known, "{error}, and prost reads {request:?}");
                    Seen::refused(&error).and(2)
                }
                (Err(error), Err(_)) => Seen::refused(&error),
            }
        });
}

/// Whether every field is one that a reader of messages without groups takes.
fn plain(input: &[u8]) -> bool {
    proto::fields(input).is_some()
}

/// The field numbers of CreateContainer that edits are made at.
const OCI: u32 = 6;
const ANNOTATIONS: u32 = 7;
const MOUNTS: u32 = 5;
const LINUX: u32 = 8;

#[test]
fn edits() {
    Target::new("edits")
        .seeds(recorded("CreateContainer"))
        .words(&["key", "io.kubernetes.cri.sandbox-name"])
        .proto()
        .run(|input| {
            let walked: Result<Vec<wire::Field>, _> = wire::fields(input).collect();
            match (&walked, proto::fields(input)) {
                (Ok(walked), Some(fields)) => {
                    assert_eq!(walked.len(), fields.len());
                    for (walked, field) in walked.iter().zip(fields) {
                        assert_eq!(walked.bytes(input), field.value);
                        assert_eq!(u64::from(walked.number), field.number);
                    }
                }
                (Err(_), None) => {}
                (Ok(_), None) => panic!("these are no fields"),
                // Numbers of fields have 29 bits.
                (Err(error), Some(fields)) => {
                    let fine = fields.iter().all(|field| field.number < 1 << 29);
                    let long =
                        matches!(error, wire::WireError::Varint { .. } | wire::WireError::FieldNumber { .. });
                    assert!(!fine || long, "{error}");
                }
            }
            assert_eq!(Editor::new(input).finish().unwrap(), input, "nothing is edited");
            let Ok(before) = CreateContainerRequest::decode(input) else {
                return Seen::refused("no container");
            };
            match edited(input) {
                Ok(out) => {
                    // Reads as the same message with the changes, whatever else is in it.
                    let mut expected = before;
                    let oci = expected.oci.get_or_insert_default();
                    oci.annotations.insert("key".into(), "value".into());
                    let linux = oci.linux.get_or_insert_default();
                    linux.namespaces.push(Default::default());
                    if let Some(mount) = oci.mounts.first_mut() {
                        mount.source = "/there".into();
                    }
                    let shown = (
                        oci.mounts.len().min(3),
                        oci.annotations.len().min(4),
                        linux.namespaces.len().min(4),
                    );
                    assert_eq!(CreateContainerRequest::decode(&out[..]).unwrap(), expected);
                    Seen::accepted(shown)
                }
                Err(error) => Seen::refused(&error),
            }
        });
}

/// Makes one edit of each kind.
fn edited(input: &[u8]) -> Result<Vec<u8>, wire::WireError> {
    let mut editor = Editor::new(input);
    editor.set_map_entry(&[OCI], ANNOTATIONS, "key", "value")?;
    let out = editor.finish()?;
    let mut editor = Editor::new(&out);
    editor.append(&[OCI, LINUX], 6, b"")?;
    if editor.contains(&[OCI, MOUNTS])? {
        editor.set_in_element(&[OCI, MOUNTS], 0, 2, b"/there")?;
    }
    editor.finish()
}
