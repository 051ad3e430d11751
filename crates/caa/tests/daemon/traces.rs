//! Traces of a whole daemon, as a collector on its node gets them.

use peerpod_proto::{
    envelope::KeyValue,
    messages::hypervisor::{
        CREATE_VM, CreateVmRequest, CreateVmResponse, SERVICE, START_VM, STOP_VM, StartVmRequest,
        StopVmRequest,
    },
    server::encode,
};
use prost::Message as _;
use test_support::{AgentPlayer, ShimPlayer, wait_for};

use crate::{
    collector::{Collector, Span, texts},
    node::{Node, SOON},
};

/// The shim's trace, and its span around each call.
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const CREATE: u64 = 0x00f0_67aa_0ba9_02b7;
const START: u64 = 0x00f0_67aa_0ba9_02b8;
const STOP: u64 = 0x00f0_67aa_0ba9_02b9;

/// The node has an address of loopback for itself, so that the port is free.
const COLLECTOR: &str = "127.0.0.1:4318";
const VARIABLES: &[(&str, &str)] = &[
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
    ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ("OTEL_SERVICE_NAME", "adaptor-of-the-node"),
];

fn within(span: u64) -> Vec<KeyValue> {
    vec![KeyValue { key: "traceparent".into(), value: format!("00-{TRACE:032x}-{span:016x}-01") }]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_shims_call_to_a_guest_that_is_ready() {
    let node = Node::with_variables(1, &[], VARIABLES).await.unwrap();
    let collector = Collector::default();
    let listener = node.netns.run(|| Ok(std::net::TcpListener::bind(COLLECTOR)?)).unwrap();
    collector.serve_at(listener);
    let shim = node.shim("sandbox-1").await.unwrap();
    let request = CreateVmRequest {
        id: "sandbox-1".into(),
        annotations: ShimPlayer::annotations("pod-0"),
        network_namespace_path: node.pods[0].netns.path().display().to_string(),
    };
    let client = shim.client();
    let answer = client.request(SERVICE, CREATE_VM, encode(&request), None, within(CREATE)).await.unwrap();
    let socket = CreateVmResponse::decode(answer).unwrap().agent_socket_path;
    let request = encode(&StartVmRequest { id: "sandbox-1".into() });
    let started = client.request(SERVICE, START_VM, request, Some(SOON), within(START)).await;
    started.unwrap_or_else(|error| panic!("{error:?}\n{}", node.logs()));
    // The guest is ready: its agent answers.
    AgentPlayer::connect(socket.as_ref()).await.unwrap().check().await.unwrap();
    let request = encode(&StopVmRequest { id: "sandbox-1".into() });
    client.request(SERVICE, STOP_VM, request, Some(SOON), within(STOP)).await.unwrap();
    node.wait_empty().unwrap();
    let spans = wait_for("the whole trace", SOON, || {
        let spans = collector.spans();
        let has = |name: &str| spans.iter().any(|span| span.name == name);
        ["CreateVM", "StartVM", "StopVM", "teardown"].iter().all(|name| has(name)).then_some(spans)
    })
    .unwrap();

    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let one = |name: &str| -> &Span {
        let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {names:?}");
        found[0]
    };
    let ours = spans.iter().filter(|span| span.trace_id == TRACE.to_be_bytes());
    assert_eq!(ours.count(), spans.len(), "every span is of the shim's trace: {names:?}");
    for (name, parent) in [("CreateVM", CREATE), ("StartVM", START), ("StopVM", STOP)] {
        assert_eq!(one(name).parent_span_id, parent.to_be_bytes(), "{name} is below the shim's span");
        assert_eq!(texts(&one(name).attributes)["sandbox_id"], "sandbox-1");
        assert!(one(name).status.is_none(), "{name}: {:?}", one(name).status);
    }
    // The phases of the start, up to the connection to the guest, follow one another below the call.
    let start = one("StartVM");
    let mut before = start.start;
    for phase in ["phase create", "phase tunnel", "phase connect"] {
        let span = one(phase);
        assert_eq!(span.parent_span_id, start.span_id, "{phase}");
        assert!(
            before <= span.start && span.start < span.end && span.end <= start.end,
            "{phase} in {names:?}"
        );
        before = span.start;
    }
    assert_eq!(one("provider create_instance").parent_span_id, one("phase create").span_id);
    // The span of a call ends a moment after its answer, when the next call may have come already.
    assert!(one("CreateVM").start < start.start);
    let resource = collector.requests()[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(texts(&resource.attributes)["service.name"], "adaptor-of-the-node");
    // The log of the same calls names the trace.
    let log = node.daemon.output();
    assert!(log.contains(&format!("{TRACE:032x}")), "{log}");
}
