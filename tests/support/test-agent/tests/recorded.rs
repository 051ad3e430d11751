//! The recorded conversation of a real shim, played against the agent.

#[expect(dead_code, reason = "shared with the other test of this crate")]
mod common;

use std::collections::HashMap;

use bytes::Bytes;
use common::TestAgent;
use peerpod_proto::envelope::{Request, Response};
use peerpod_proto::frame::HEADER_LEN;
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::oci::LinuxNamespace;
use peerpod_proto::wire::Editor;
use prost::Message;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/kata-4.1.0-runtime-rs");

/// The messages of a recording, by stream.
fn recorded(name: &str) -> Vec<(u32, Bytes)> {
    let all = Bytes::from(std::fs::read(format!("{FIXTURES}/{name}")).unwrap());
    let mut messages = Vec::new();
    let mut at = 0;
    while at < all.len() {
        let header: [u8; HEADER_LEN] = all[at..at + HEADER_LEN].try_into().unwrap();
        let header = peerpod_proto::frame::Header::parse(header);
        let start = at + HEADER_LEN;
        at = start + header.length as usize;
        messages.push((header.stream_id, all.slice(start..at)));
    }
    assert_eq!(at, all.len());
    messages
}

/// What the forwarder does on the way: the recording was taken behind it.
fn with_network(payload: &[u8], netns: &str) -> Bytes {
    let namespace = LinuxNamespace { kind: "network".to_owned(), path: netns.to_owned() };
    let mut editor = Editor::new(payload);
    editor.append(&[6, 8], 6, &namespace.encode_to_vec()).unwrap();
    editor.finish().unwrap().into()
}

#[tokio::test]
async fn the_recorded_shim_is_answered_as_by_the_real_agent() {
    let agent = TestAgent::start();
    let netns = agent.netns.path().to_string_lossy().into_owned();
    let client = agent.client().await;
    let answers: HashMap<u32, Response> = recorded("agent.s2c.bin")
        .into_iter()
        .map(|(stream, bytes)| (stream, Response::decode(bytes).unwrap()))
        .collect();
    let mut pending = Vec::new();
    let mut compared = 0;
    for (stream, bytes) in recorded("agent.c2s.bin") {
        let request = Request::decode(bytes).unwrap();
        let (service, method) = (request.service.clone(), request.method.clone());
        let payload = match method.as_str() {
            method::CREATE_CONTAINER => with_network(&request.payload, &netns),
            _ => request.payload.clone(),
        };
        // Calls about the container itself end with it; all others end before the shim goes on.
        let waits = match method.as_str() {
            method::GET_OOM_EVENT => true,
            method::WAIT_PROCESS => {
                agent::WaitProcessRequest::decode(payload.clone()).unwrap().exec_id.is_empty()
            }
            method::READ_STDOUT | method::READ_STDERR => {
                agent::ReadStreamRequest::decode(payload.clone()).unwrap().exec_id.is_empty()
            }
            _ => false,
        };
        let call = {
            let (client, method) = (client.clone(), method.clone());
            tokio::spawn(async move { client.request(&service, &method, payload, None, Vec::new()).await })
        };
        if waits {
            pending.push((stream, method, call));
            continue;
        }
        let answer = tokio::time::timeout(common::LIMIT, call).await.expect(&method).unwrap();
        compare(stream, &method, &answer, &answers[&stream]);
        compared += 1;
    }
    for (stream, method, call) in pending {
        if method == method::GET_OOM_EVENT {
            assert!(!answers.contains_key(&stream), "the real agent did not answer either");
            assert!(!call.is_finished());
            call.abort();
            continue;
        }
        // The removal of the containers forgets them, but whoever waited is answered.
        let answer = tokio::time::timeout(common::LIMIT, call).await.expect(&method).unwrap();
        compare(stream, &method, &answer, &answers[&stream]);
        compared += 1;
    }
    assert_eq!(compared, answers.len());
    let shared = agent.root.path().join("run/kata-containers/shared/containers");
    let copied = std::fs::read_dir(shared).unwrap().count();
    assert_eq!(copied, 4, "hosts, hostname and resolv.conf twice");
}

fn compare(stream: u32, method: &str, ours: &Result<Bytes, peerpod_proto::Status>, recorded: &Response) {
    let theirs = recorded.clone().into_result();
    match (ours, &theirs) {
        (Ok(ours), Ok(theirs)) => match method {
            method::WAIT_PROCESS => {
                let ours = agent::WaitProcessResponse::decode(ours.clone()).unwrap().status;
                let theirs = agent::WaitProcessResponse::decode(theirs.clone()).unwrap().status;
                // The first process of a pid namespace ignores SIGTERM, so the real one died of SIGKILL later.
                assert!(
                    ours == theirs || (ours, theirs) == (143, 137),
                    "stream {stream}: {ours} and {theirs}"
                );
            }
            _ => assert!(!ours.is_empty() || theirs.is_empty(), "stream {stream} {method}: no content"),
        },
        (Err(ours), Err(theirs)) => {
            assert_eq!(
                (ours.code(), &ours.message),
                (theirs.code(), &theirs.message),
                "stream {stream} {method}"
            );
        }
        (ours, theirs) => panic!("stream {stream} {method}: {ours:?}, the real agent {theirs:?}"),
    }
}
