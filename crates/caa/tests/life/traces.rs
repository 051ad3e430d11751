//! Traces of starts, as a collector gets them.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use caa::{
    metrics::{Metrics, SpanCounts},
    trace::{TraceSettings, Traces, otlp, within},
};
use cloud_providers::{
    MapEnv,
    layers::{self, LayerSettings},
    scripted::{Fault, ScriptedProvider, World},
};
use peerpod_gateway::{GatewayError, GatewayErrorKind};
use peerpod_proto::envelope::KeyValue;
use prost::Message as _;
use test_support::wait_for_async;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{Layer as _, filter::LevelFilter, layer::SubscriberExt as _};

use crate::{
    collector::{Collector, Request, Span, texts},
    fakes::{Node, SOON, listen},
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Spans of this thread go to a collector while it lives.
struct Tracing {
    _subscriber: tracing::subscriber::DefaultGuard,
    stop: CancellationToken,
    task: JoinHandle<()>,
    counts: SpanCounts,
}

impl Tracing {
    fn to(address: &str, env: &[(&str, &str)]) -> Self {
        listen();
        let all = [("OTEL_EXPORTER_OTLP_ENDPOINT", address), ("OTEL_BSP_SCHEDULE_DELAY", "10")];
        let env = MapEnv::new(all.iter().chain(env).copied());
        let mut problems = Vec::new();
        let settings = TraceSettings::read(&env, &mut problems).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let counts = SpanCounts::default();
        let (sink, exporter) = otlp::exporter(settings, counts.clone()).unwrap();
        let traces = Traces::into_sink(sink).with_filter(LevelFilter::INFO);
        let subscriber = tracing_subscriber::registry().with(traces);
        let _subscriber = tracing::subscriber::set_default(subscriber);
        let stop = CancellationToken::new();
        let task = tokio::spawn(exporter.run(stop.clone()));
        Self { _subscriber, stop, task, counts }
    }

    /// Sends what is left, and returns what was counted.
    async fn end(self) -> String {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task).await.unwrap().unwrap();
        Metrics::with_spans("scripted", &self.counts).text()
    }
}

/// A node whose provider has the layers that every program puts around it.
fn layered(world: &World) -> Node {
    let provider = Arc::new(ScriptedProvider::new(world));
    let settings = LayerSettings::default();
    let observer = Arc::new(layers::NoObserver);
    let provider = layers::standard("scripted", provider, &settings, observer);
    Node::with_provider(world.clone(), provider, &[("NODE_NAME", "worker-1")])
}

fn call(parent: &str) -> Vec<KeyValue> {
    vec![KeyValue { key: "traceparent".into(), value: parent.into() }]
}

#[tokio::test]
async fn one_trace_leads_from_the_shims_span_over_every_phase() {
    let collector = Collector::default();
    let tracing = Tracing::to(&collector.serve(), &[("OTEL_SERVICE_NAME", "adaptor")]);
    let node = layered(&World::new());
    within(&call(PARENT), Box::pin(node.create("s1"))).await.unwrap();
    // The shim sends its headers with each call, or with the first one alone.
    node.start("s1").await.unwrap();
    let instance = node.sandboxes.list()[0].instance_id.clone().unwrap();
    let told = node.gateway.specs.lock().unwrap()["s1"].trace.clone().unwrap();
    within(&call(PARENT), node.sandboxes.stop_vm("s1")).await;
    node.wait_empty().await;
    let counted = tracing.end().await;

    let spans = collector.spans();
    let names: Vec<&str> = spans.iter().map(|s| s.name.as_str()).collect();
    let one = |name: &str| {
        let found: Vec<&Span> = spans.iter().filter(|s| s.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {names:?}");
        found[0]
    };
    for span in &spans {
        assert_eq!(
            span.trace_id,
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes(),
            "{}",
            span.name
        );
        assert!(span.status.is_none() && span.start < span.end, "{span:?}");
    }
    let shim = 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes();
    for (name, above, kind) in [
        ("CreateVM", None, 2),
        ("phase inspect", Some("CreateVM"), 1),
        ("phase prepare", Some("CreateVM"), 1),
        ("StartVM", Some("CreateVM"), 2),
        ("phase claim", Some("StartVM"), 1),
        ("phase create", Some("StartVM"), 1),
        ("provider create_instance", Some("phase create"), 3),
        ("phase bind", Some("StartVM"), 1),
        ("phase tunnel", Some("StartVM"), 1),
        ("phase connect", Some("StartVM"), 1),
        ("StopVM", None, 2),
        ("teardown", Some("StopVM"), 1),
        ("undo delete the instance", Some("teardown"), 1),
        ("provider delete_instance", Some("undo delete the instance"), 3),
        ("undo close the agent socket", Some("teardown"), 1),
    ] {
        let above = above.map_or(shim.to_vec(), |above| one(above).span_id.clone());
        assert_eq!((&one(name).parent_span_id, one(name).kind), (&above, kind), "{name} in {names:?}");
    }
    assert!(told.starts_with(&PARENT[..35]), "the gateway is told of the trace: {told}");
    let connect: String = one("phase connect").span_id.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(&told[36..52], connect);
    let start = texts(&one("StartVM").attributes);
    for (key, value) in [
        ("sandbox_id", "s1"),
        ("k8s.pod.name", "web"),
        ("k8s.namespace.name", "default"),
        ("k8s.node.name", "worker-1"),
        ("host.id", instance.as_str()),
    ] {
        assert_eq!(start.get(key), Some(&value), "{key} in {start:?}");
    }
    assert_eq!(texts(&one("provider create_instance").attributes)["provider"], "scripted");
    let resource = collector.requests()[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(texts(&resource.attributes)["service.name"], "adaptor");
    assert!(
        counted.contains(&format!("peerpod_spans_sent_total{{provider=\"scripted\"}} {}", spans.len())),
        "{counted}"
    );
}

#[tokio::test]
async fn a_start_that_fails_is_marked_where_it_did_and_shows_no_secret() {
    let collector = Collector::default();
    let tracing = Tracing::to(&collector.serve(), &[]);
    let node = layered(&World::new());
    let refused = "the guest refuses our certificate";
    *node.gateway.failure.lock().unwrap() = Some(GatewayError::new(GatewayErrorKind::Tls, refused));
    node.create("s1").await.unwrap();
    let journal = node.sandboxes.journal().await.unwrap();
    node.start("s1").await.unwrap_err();
    let key = node.gateway.keys.lock().unwrap().clone();
    node.wait_empty().await;
    tracing.end().await;
    let spans = collector.spans();
    let status = |name: &str| spans.iter().find(|s| s.name == name).unwrap().status.clone();
    for name in ["StartVM", "phase connect"] {
        let status = status(name).unwrap();
        assert_eq!(status.code, 2);
        assert!(status.message.contains(refused), "{status:?}");
    }
    for name in ["CreateVM", "phase create", "provider create_instance", "teardown"] {
        assert_eq!(status(name), None, "{name}");
    }
    assert!(!journal.is_empty() && !key.is_empty(), "there were secrets to show");
    for (_, body) in collector.got.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(body);
        assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN CERT"), "{text}");
        for key in &key {
            let line = key.lines().nth(1).unwrap();
            assert!(!text.contains(line), "{text}");
        }
    }
}

#[tokio::test]
async fn what_the_cloud_says_is_on_the_span_of_its_call() {
    let collector = Collector::default();
    let tracing = Tracing::to(&collector.serve(), &[]);
    let world = World::new();
    let node = layered(&world);
    let error = cloud_providers::Error::new(cloud_providers::ErrorKind::Quota, "no more of these")
        .with_code("VcpuLimitExceeded");
    world.script(Fault::on("create_disk").before(error));
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap_err();
    node.wait_empty().await;
    tracing.end().await;
    let spans = collector.spans();
    let span = spans.iter().find(|s| s.name == "provider create_instance").unwrap();
    assert!(span.status.as_ref().unwrap().message.contains("VcpuLimitExceeded"), "{span:?}");
    assert_eq!(texts(&span.attributes)["kind"], "quota");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_no_start() {
    // Nobody listens there, and a port that was free a moment ago is refused at once.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let tracing = Tracing::to(&address, &[("OTEL_BSP_MAX_QUEUE_SIZE", "2")]);
    let node = layered(&World::new());
    for id in ["s1", "s2"] {
        node.create(id).await.unwrap();
        node.start(id).await.unwrap();
        node.sandboxes.stop_vm(id).await;
    }
    node.wait_empty().await;
    let counted = tracing.end().await;
    for part in
        ["peerpod_spans_dropped_total{provider=\"scripted\",reason=\"queue_full\"}", "reason=\"not_sent\""]
    {
        assert!(counted.contains(part), "{part} is missing in {counted}");
    }
    assert!(!counted.contains("peerpod_spans_sent_total{provider=\"scripted\"} 1"), "{counted}");
}

#[tokio::test]
async fn a_collector_that_accepts_and_says_nothing_holds_nobody_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let tracing = Tracing::to(&address, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")]);
    let node = layered(&World::new());
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    // Also at the end: it waits for the request under way no longer than for the last spans.
    let ended = tokio::time::timeout(Duration::from_secs(15), tracing.end()).await;
    assert!(ended.unwrap().contains("reason=\"not_sent\""));
}

#[tokio::test]
async fn a_busy_collector_is_asked_again_and_headers_and_compression_are_as_told() {
    let collector = Collector::default();
    collector.answers.lock().unwrap().push(StatusCode::SERVICE_UNAVAILABLE);
    let tracing = Tracing::to(
        &collector.serve(),
        &[
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20canary"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ],
    );
    let node = layered(&World::new());
    node.create("s1").await.unwrap();
    let twice = wait_for_async("the same batch twice", SOON, || async {
        (collector.got.lock().unwrap().len() >= 2).then_some(())
    });
    twice.await.unwrap();
    tracing.end().await;
    let got = collector.got.lock().unwrap();
    assert_eq!(got[0].1, got[1].1);
    assert_eq!(got[0].0["authorization"], "Bearer canary");
    assert_eq!(got[0].0["content-type"], "application/x-protobuf");
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&got[0].1[..]), &mut plain).unwrap();
    assert!(!Request::decode(&plain[..]).unwrap().resource_spans.is_empty());
}

#[tokio::test]
async fn a_trace_that_its_caller_does_not_record_is_not_sent() {
    for (parent, sampler, sent) in [
        (PARENT.replace("-01", "-00"), "parentbased_always_on", false),
        (PARENT.replace("-01", "-00"), "always_on", true),
        (PARENT.to_owned(), "always_off", false),
    ] {
        let collector = Collector::default();
        let tracing = Tracing::to(&collector.serve(), &[("OTEL_TRACES_SAMPLER", sampler)]);
        let node = layered(&World::new());
        within(&call(&parent), Box::pin(node.create("s1"))).await.unwrap();
        tracing.end().await;
        assert_eq!(!collector.spans().is_empty(), sent, "{sampler}");
    }
}
