//! The recorded conversation of a real shim, through the built daemon to an agent that records.

use std::{fs, io::Write as _, os::unix::net::UnixStream};

use peerpod_proto::{
    envelope::Request,
    frame::{HEADER_LEN, Header},
    messages::agent::{CreateContainerRequest, CreateSandboxRequest},
};
use prost::Message as _;
use test_support::wait_for;

use crate::node::{Node, SOON};

/// Cuts a recording into frames' payloads, with their stream ids.
fn frames(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let header = Header::parse(*head);
        let (payload, rest) = rest.split_at(header.length as usize);
        out.push((header.stream_id, payload.to_vec()));
        bytes = rest;
    }
    out
}

/// The requests that reached the agent, as it wrote them to its console.
fn received(node: &Node, sandbox: &str) -> Vec<Vec<u8>> {
    let Ok((dir, _)) = node.record_of(sandbox) else { return Vec::new() };
    let console = fs::read_to_string(dir.join("console.log")).unwrap_or_default();
    let hex = |text: &str| {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    // The last line may still be on its way.
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    whole
        .lines()
        .filter_map(|line| Some(line.split_once("RECORDED ")?.1))
        .map(|text| hex(text.trim()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_conversation_reaches_the_agent_byte_for_byte_but_for_the_documented_changes() {
    let node = Node::start(1, &["-init-args=--,--record"]).await.unwrap();
    let (shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let recording = include_bytes!("../../../../tests/fixtures/kata-4.1.0-runtime-rs/agent.c2s.bin");
    let sent = frames(recording);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(recording).unwrap();
    let arrived = wait_for("all requests at the agent", SOON, || {
        let arrived = received(&node, "sandbox-1");
        (arrived.len() >= sent.len()).then_some(arrived)
    })
    .unwrap_or_else(|e| {
        panic!("{e:#}: {} of {}\n{}", received(&node, "sandbox-1").len(), sent.len(), node.logs())
    });
    assert_eq!(arrived.len(), sent.len());

    let mut rest = arrived;
    for (_, payload) in &sent {
        let request = Request::decode(payload.as_slice()).unwrap();
        let matching = rest.iter().position(|other| same_call(&request, payload, other));
        let index = matching.unwrap_or_else(|| panic!("{} did not arrive as it was sent", request.method));
        rest.remove(index);
    }
    assert!(rest.is_empty());
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

/// Whether `other` is the request as the agent must see it.
fn same_call(sent: &Request, sent_bytes: &[u8], other: &[u8]) -> bool {
    let changed = matches!(sent.method.as_str(), "CreateContainer" | "CreateSandbox");
    if !changed {
        return sent_bytes == other;
    }
    let Ok(got) = Request::decode(other) else { return false };
    if got.method != sent.method || got.timeout_nano != sent.timeout_nano || got.metadata != sent.metadata {
        return false;
    }
    if sent.method == "CreateSandbox" {
        // The guest keeps its own resolver: names servers of the pod are left out.
        let mut expected = CreateSandboxRequest::decode(sent.payload.clone()).unwrap();
        expected.dns.clear();
        return CreateSandboxRequest::decode(got.payload).unwrap() == expected;
    }
    // The process joins the pod's network in the guest; all bytes of the shim are still there, in order.
    let mut expected = CreateContainerRequest::decode(sent.payload.clone()).unwrap();
    let got_container = CreateContainerRequest::decode(got.payload.clone()).unwrap();
    let linux = expected.oci.as_mut().unwrap().linux.as_mut().unwrap();
    let added =
        got_container.oci.as_ref().unwrap().linux.as_ref().unwrap().namespaces.last().unwrap().clone();
    assert_eq!((added.kind.as_str(), added.path.as_str()), ("network", "/run/netns/podns"));
    linux.namespaces.push(added);
    got_container == expected && got.payload.len() > sent.payload.len()
}
