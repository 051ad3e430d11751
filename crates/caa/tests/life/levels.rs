//! What the log says at which level.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use caa::trace::{Traces, within};
use cloud_providers::scripted::{Fault, World};
use peerpod_gateway::{GatewayError, GatewayErrorKind};
use peerpod_proto::envelope::KeyValue;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{Layer as _, filter::LevelFilter, fmt, layer::SubscriberExt as _};

use crate::fakes::{Node, listen};

/// The log of this thread, as text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Everything that is logged while the guard lives, as the program itself logs it.
    pub(crate) fn begin() -> (Self, DefaultGuard) {
        listen();
        let log = Self::default();
        let writer = log.clone();
        let lines = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let traces = Traces::default().with_filter(LevelFilter::INFO);
        let subscriber =
            tracing_subscriber::registry().with(traces).with(lines.with_filter(LevelFilter::TRACE));
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    /// The lines of a level.
    fn of(&self, level: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let level = format!(" {level} ");
        text.lines()
            .filter(|line| line.get(..40).is_some_and(|head| head.contains(&level)))
            .map(str::to_owned)
            .collect()
    }
}

#[tokio::test]
async fn a_life_that_works_logs_nothing_above_info() {
    let (log, _guard) = Log::begin();
    let node = Node::new();
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    assert_eq!((log.of("ERROR"), log.of("WARN")), (vec![], vec![]));
    let info = log.of("INFO");
    for part in [
        "sandbox is planned",
        "phase of the start is done",
        "pod VM is ready",
        "instance is deleted",
        "sandbox is gone",
    ] {
        assert!(info.iter().any(|line| line.contains(part)), "{part} is missing in {info:#?}");
    }
    assert!(info.len() <= 10, "rare changes, not a diary: {info:#?}");
}

#[tokio::test]
async fn a_start_that_fails_is_one_error_with_the_reason() {
    let world = World::new();
    let cloud = cloud_providers::Error::new(cloud_providers::ErrorKind::Quota, "no more of these");
    world.script(Fault::on("create_disk").before(cloud));
    let gateway = Some(GatewayError::new(GatewayErrorKind::Timeout, "nobody answers"));
    for (reason, failure) in [("no more of these", None), ("nobody answers", gateway)] {
        let (log, _guard) = Log::begin();
        let provider = cloud_providers::scripted::ScriptedProvider::new(&world);
        let node = Node::with_provider(world.clone(), Arc::new(provider), &[]);
        *node.gateway.failure.lock().unwrap() = failure;
        node.create("s1").await.unwrap();
        node.start("s1").await.unwrap_err();
        node.wait_empty().await;
        let errors = log.of("ERROR");
        assert_eq!(errors.len(), 1, "{errors:#?}");
        assert!(errors[0].contains(reason) && errors[0].contains("s1"), "{errors:#?}");
        let warnings = log.of("WARN");
        assert!(warnings.iter().all(|line| line.contains("console")), "{warnings:#?}");
    }
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_planned_is_one_error_too() {
    let (log, _guard) = Log::begin();
    let node = Node::new();
    let annotations = test_support::ShimPlayer::annotations("web");
    node.create_with("s1", &annotations, "/nowhere").await.unwrap_err();
    let errors = log.of("ERROR");
    assert_eq!((errors.len(), log.of("WARN").len()), (1, 0), "{errors:#?}");
    assert!(errors[0].contains("/nowhere"), "{errors:#?}");
}

#[tokio::test]
async fn a_deletion_that_is_repeated_is_no_error_while_it_goes_on() {
    let world = World::new();
    let (log, _guard) = Log::begin();
    let node = Node::with_provider(
        world.clone(),
        Arc::new(cloud_providers::scripted::ScriptedProvider::new(&world)),
        &[],
    );
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    // As often as the provider itself asks again, and once more.
    for nth in 1..=4 {
        let busy = cloud_providers::Error::new(cloud_providers::ErrorKind::Permission, "come back later");
        world.script(Fault::on("terminate_instance").nth(nth).before(busy));
    }
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    assert_eq!(log.of("ERROR"), Vec::<String>::new());
    let warnings = log.of("WARN");
    let told = warnings.iter().all(|line| line.contains("come back later"));
    assert!(!warnings.is_empty() && told, "{warnings:#?}");
}

#[tokio::test]
async fn lines_of_a_start_carry_the_id_of_the_shims_trace() {
    let (log, _guard) = Log::begin();
    let node = Node::new();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let value = format!("00-{trace}-00f067aa0ba902b7-01");
    let metadata = [KeyValue { key: "Traceparent".into(), value }];
    within(&metadata, Box::pin(node.create("s1"))).await.unwrap();
    within(&metadata, Box::pin(node.start("s1"))).await.unwrap();
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
    for part in ["sandbox is planned", "phase of the start is done", "pod VM is ready", "instance is deleted"]
    {
        for line in log.of("INFO").iter().filter(|line| line.contains(part)) {
            assert!(line.contains(&format!("trace_id={trace}")), "{line}");
        }
    }
}
