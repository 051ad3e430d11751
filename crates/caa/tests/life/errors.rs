//! What becomes of each kind of error with each rule about repeating: how often the cloud is asked, what the shim is told,
//! and within which time. The clock is tokio's and paused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use caa::sandbox::Caller;
use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Ownership, Provider,
    Retry, Token, layers,
    scripted::{Fault, ScriptedProvider, World},
};
use peerpod_proto::{Code, Status};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fakes::Node;

/// Answers every create with one error.
#[derive(Debug)]
struct Refusing {
    error: Error,
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Provider for Refusing {
    async fn create_instance(
        &self,
        _: &OpContext,
        request: &CreateRequest,
    ) -> cloud_providers::Result<Instance> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        // Some clouds quote what they were sent.
        let quoted = String::from_utf8_lossy(request.user_data.as_bytes()).into_owned();
        Err(self.error.clone().with("sent", quoted))
    }

    async fn delete_instance(
        &self,
        _: &OpContext,
        _: &InstanceId,
        _: &Ownership,
    ) -> cloud_providers::Result<()> {
        Ok(())
    }

    async fn release(&self, _: &OpContext, _: &Token) -> cloud_providers::Result<()> {
        Ok(())
    }

    async fn teardown(&self) -> cloud_providers::Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::default();
        can.release = true;
        can
    }
}

/// Starts a sandbox whose cloud answers `error`. Returns how often it was asked, the status, and the time that took.
async fn start(error: Error, patience: Option<Duration>) -> (usize, Status, Duration) {
    let cloud = Arc::new(Refusing { error, asked: AtomicUsize::new(0) });
    let settings = layers::LayerSettings::default();
    let provider = layers::standard("refusing", cloud.clone(), &settings, Arc::new(layers::NoObserver));
    let node = Node::with_provider(World::new(), provider, &[]);
    node.create("s1").await.unwrap();
    let begun = Instant::now();
    let deadline = patience.map(|patience| begun + patience);
    let caller = Caller { pid: None, deadline, gone: CancellationToken::new() };
    let status = node.sandboxes.start_vm_for("s1", &caller).await.unwrap_err();
    let took = begun.elapsed();
    node.wait_empty().await;
    (cloud.asked.load(Ordering::Relaxed), status, took)
}

fn kinds() -> Vec<(ErrorKind, Code, &'static str)> {
    let capacity = ErrorKind::Capacity { zone: Some("z1".into()), instance_type: None };
    vec![
        (ErrorKind::Config, Code::FailedPrecondition, "mend the one that is named"),
        (ErrorKind::Auth, Code::Unauthenticated, "renew them"),
        (ErrorKind::Permission, Code::PermissionDenied, "grant the one that is named"),
        (ErrorKind::Quota, Code::ResourceExhausted, "a quota of the account is reached (raise it"),
        (capacity, Code::ResourceExhausted, "allow more zones or instance types"),
        (ErrorKind::Throttled, Code::Unavailable, "lower -cloud-creates-per-second"),
        (ErrorKind::NotFound, Code::NotFound, "is not there"),
        (ErrorKind::Conflict, Code::AlreadyExists, "look whose it is"),
        (ErrorKind::Transient, Code::Unavailable, "the kubelet tries again"),
        (ErrorKind::Unsupported, Code::FailedPrecondition, "leave it out of the pod"),
        // Ended by the provider, and by nobody else.
        (ErrorKind::Cancelled, Code::DeadlineExceeded, "see what ended it"),
        (ErrorKind::Internal, Code::Internal, "report it"),
    ]
}

/// As a provider makes it of a cloud's answer.
fn answer(kind: &ErrorKind, retry: Retry) -> Error {
    Error::new(kind.clone(), "the machine is refused")
        .with_operation("RunMachine")
        .with_cloud("CloudCode42", "no machine for you")
        .with_retry(retry)
}

#[tokio::test(start_paused = true)]
async fn every_kind_with_every_rule_about_repeating_has_its_calls_its_code_its_words_and_its_time() {
    let after = |seconds| Retry::After { delay: Duration::from_secs(seconds) };
    // Four repetitions, each after a pause of at most 20 s.
    let most = Duration::from_secs(81);
    let at_once = Duration::from_millis(100);
    let kinds = kinds();
    assert_eq!(kinds.len(), caa::status::table().lines().count() - 2, "every kind of the page is here");
    for (kind, code, hint) in kinds {
        for (retry, calls, least, within) in [
            (Retry::Never, 1, Duration::ZERO, at_once),
            // Other places are the provider's own; after them it is over.
            (Retry::Elsewhere, 1, Duration::ZERO, at_once),
            (after(1), 5, Duration::from_secs(4), most),
            // The cloud wants a longer pause than anybody waits.
            (after(60), 1, Duration::ZERO, at_once),
        ] {
            // What was ended is not begun again.
            let (calls, least) =
                if kind == ErrorKind::Cancelled { (1, Duration::ZERO) } else { (calls, least) };
            let (asked, status, took) = start(answer(&kind, retry), None).await;
            let case = format!("{kind} {retry:?}: {} after {took:?}: {}", asked, status.message);
            assert_eq!((asked, status.code()), (calls, code), "{case}");
            assert!((least..within).contains(&took), "{case}");
            for part in ["create the instance: ", hint, "RunMachine", "CloudCode42", "no machine for you"] {
                assert!(status.message.contains(part), "{part} is missing: {case}");
            }
            assert_eq!(status.message.contains(&format!("attempts: {calls}")), calls > 1, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_each_kind_does_by_itself_is_what_the_page_says() {
    let table = caa::status::table();
    for (kind, code, _) in kinds() {
        let (asked, status, _) = start(Error::new(kind.clone(), "refused"), None).await;
        let repeats = matches!(kind, ErrorKind::Throttled | ErrorKind::Transient);
        assert_eq!((asked, status.code()), (if repeats { 5 } else { 1 }, code), "{kind}");
        let row = table.lines().find(|line| line.starts_with(&format!("| `{kind}` |"))).unwrap();
        assert_eq!(row.contains("| repeated after"), repeats, "{row}");
        // The page has the code of a call that its caller ended.
        let shown = if kind == ErrorKind::Cancelled { Code::Canceled } else { code };
        assert!(row.contains(&format!("{shown:?}")), "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_repeated_within_the_shims_time_and_its_last_words_are_the_answer() {
    for (patience, calls) in [(60, 5..=5), (10, 2..=5), (3, 2..=3), (1, 1..=1)] {
        let patience = Duration::from_secs(patience);
        let error = answer(&ErrorKind::Transient, Retry::After { delay: Duration::from_secs(1) });
        let (asked, status, took) = start(error, Some(patience)).await;
        let case = format!("{patience:?}: {asked} calls, {took:?}: {}", status.message);
        assert!(calls.contains(&asked) && took < patience, "{case}");
        assert_eq!(status.code(), Code::Unavailable, "{case}");
        assert!(status.message.contains("no machine for you"), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_never_answers_is_told_before_the_shims_time_is_over_and_leaves_nothing() {
    let world = World::new();
    let provider = Arc::new(ScriptedProvider::new(&world).with_call_limit(Duration::from_secs(3600)));
    let provider = layers::standard("scripted", provider, &Default::default(), Arc::new(layers::NoObserver));
    let node = Node::with_provider(world.clone(), provider, &[]);
    world.script(Fault::on("run_instance").hang_after());
    node.create("s1").await.unwrap();
    let begun = Instant::now();
    let patience = Duration::from_secs(60);
    let caller = Caller { pid: None, deadline: Some(begun + patience), gone: CancellationToken::new() };
    let status = node.sandboxes.start_vm_for("s1", &caller).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{}", status.message);
    assert!(begun.elapsed() < patience, "the answer comes before the shim stops waiting");
    assert!(status.message.contains("create the instance"), "{}", status.message);
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_told_before_the_shims_time_is_over() {
    let node = Node::new();
    *node.gateway.silent.lock().unwrap() = true;
    node.gateway.unreached.lock().unwrap().insert("s1".into());
    node.create("s1").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let caller = Caller { pid: None, deadline: Some(deadline), gone: CancellationToken::new() };
    let status = node.sandboxes.start_vm_for("s1", &caller).await.unwrap_err();
    assert!(Instant::now() < deadline);
    assert_eq!(status.code(), Code::DeadlineExceeded);
    for part in ["reach the forwarder of the guest", "dialled 1 times", "60s"] {
        assert!(status.message.contains(part), "{part} is missing in {}", status.message);
    }
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_quotes_the_request_is_told_without_its_secrets() {
    let error = answer(&ErrorKind::Internal, Retry::Never);
    let (_, status, _) = start(error, None).await;
    assert!(status.message.contains("[redacted]"), "{}", status.message);
    for secret in ["PRIVATE KEY", "apf.json", "tls-server-key", "#cloud-config"] {
        assert!(!status.message.contains(secret), "{secret} is in {}", status.message);
    }
}
