//! What `/metrics` says after starts that worked and starts that did not.

use std::sync::Arc;

use caa::{http, metrics::Metrics};
use cloud_providers::{
    Error, ErrorKind,
    layers::{self, LayerSettings},
    scripted::{Fault, ScriptedProvider, World},
};
use peerpod_gateway::{GatewayError, GatewayErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::fakes::Node;

/// Asks as Prometheus does.
async fn scrape(metrics: Arc<Metrics>) -> String {
    let listener = http::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(http::serve(listener, "/nowhere".into(), metrics, stop.clone()));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    stop.cancel();
    serving.await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("application/openmetrics-text"), "{text}");
    text
}

#[tokio::test]
async fn starts_and_failures_are_counted_by_provider_phase_and_kind_of_error() {
    let world = World::new();
    let metrics = Metrics::new("scripted");
    let inner = Arc::new(ScriptedProvider::new(&world));
    let provider = layers::standard("scripted", inner, &LayerSettings::default(), metrics.clone());
    let node = Node::counting(world.clone(), provider, metrics.clone());
    for id in ["works-1", "works-2"] {
        node.create(id).await.unwrap();
        node.start(id).await.unwrap();
        node.sandboxes.stop_vm(id).await;
    }
    world.script(Fault::on("create_disk").before(Error::new(ErrorKind::Quota, "no more of these")));
    node.create("no-quota").await.unwrap();
    node.start("no-quota").await.unwrap_err();
    *node.gateway.failure.lock().unwrap() = Some(GatewayError::new(GatewayErrorKind::Tls, "refused"));
    node.create("refused").await.unwrap();
    node.start("refused").await.unwrap_err();
    let annotations = test_support::ShimPlayer::annotations("web");
    node.create_with("no-netns", &annotations, "/nowhere").await.unwrap_err();
    node.wait_empty().await;

    let text = scrape(metrics).await;
    let label = "provider=\"scripted\"";
    for part in [
        format!("peerpod_start_phase_seconds_count{{{label},phase=\"create\"}} 3"),
        format!("peerpod_start_phase_seconds_count{{{label},phase=\"connect\"}} 2"),
        format!("peerpod_start_phase_seconds_count{{{label},phase=\"start_vm\"}} 2"),
        format!("peerpod_start_phase_seconds_count{{{label},phase=\"create_vm\"}} 4"),
        format!("peerpod_start_failures_total{{{label},phase=\"create\",kind=\"quota\"}} 1"),
        format!("peerpod_start_failures_total{{{label},phase=\"connect\",kind=\"unauthenticated\"}} 1"),
        format!("peerpod_start_failures_total{{{label},phase=\"inspect\",kind=\"invalid_argument\"}} 1"),
        format!("peerpod_failures_total{{{label},operation=\"create_instance\",kind=\"quota\"}} 1"),
        format!("peerpod_failures_total{{{label},operation=\"start_vm\",kind=\"resource_exhausted\"}} 1"),
        format!("peerpod_failures_total{{{label},operation=\"create_vm\",kind=\"invalid_argument\"}} 1"),
        format!("peerpod_provider_calls_total{{{label},operation=\"create_instance\",outcome=\"ok\"}} 3"),
        format!("peerpod_provider_calls_total{{{label},operation=\"create_instance\",outcome=\"quota\"}} 1"),
        format!("peerpod_provider_calls_total{{{label},operation=\"delete_instance\",outcome=\"ok\"}} 3"),
        format!("peerpod_provider_calls_total{{{label},operation=\"console\",outcome=\"ok\"}} 1"),
        format!("peerpod_sandboxes{{{label}}} 0"),
        format!("peerpod_deletions_pending{{{label}}} 0"),
    ] {
        assert!(text.contains(&part), "{part} is missing in {text}");
    }
    for id in ["works-1", "no-quota", "refused", "no-netns", "s-00"] {
        assert!(!text.contains(id), "{id} is a label: the series grow with the pods");
    }
}
