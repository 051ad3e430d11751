//! What a real API server cannot be made to do: stale answers, 410 in the middle, silence.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::{
    cluster::Cluster as _,
    election::Leases as _,
    model::{Change, Key, Note, Reason, Record},
};

/// One answer: status, body, and whether the connection stays open after it.
type Answer = (u16, Value, bool);
/// What a question begins with, and its answers.
type Answers = Vec<(String, VecDeque<Answer>)>;

/// Answers by script: for each beginning of `<method> <path>` the answers in turn, the last one for ever.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<String>>>,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Script {
    fn on(self, question: &str, answers: &[Answer]) -> Self {
        self.answers.lock().unwrap().push((question.to_owned(), answers.to_vec().into()));
        self
    }

    fn answer(&self, question: &str) -> Answer {
        let mut answers = self.answers.lock().unwrap();
        let Some((_, queue)) = answers.iter_mut().find(|(begin, _)| question.starts_with(begin)) else {
            return (500, json!({"message": format!("no answer for {question}")}), false);
        };
        match queue.len() {
            1 => queue[0].clone(),
            _ => queue.pop_front().unwrap(),
        }
    }

    async fn connect(&self) -> Connection {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = Config::new(url.parse().unwrap());
        config.default_retry = false;
        Connection { client: Client::try_from(config).unwrap(), namespace: "ns".into() }
    }

    fn questions(&self, begin: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|q| q.starts_with(begin)).count()
    }
}

async fn serve(State(script): State<Script>, request: Request) -> Response {
    let question = format!("{} {}", request.method(), request.uri());
    script.asked.lock().unwrap().push(question.clone());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
    if let Ok(value) = serde_json::from_slice(&body) {
        script.bodies.lock().unwrap().push(value);
    }
    let (status, value, open) = script.answer(&question);
    let text = match value {
        Value::String(lines) => lines,
        other => other.to_string(),
    };
    let first = futures_util::stream::once(async move { Ok::<_, std::io::Error>(text) });
    let body = match open {
        true => Body::from_stream(first.chain(futures_util::stream::pending())),
        false => Body::from_stream(first),
    };
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

use futures_util::StreamExt as _;

const RECORDS: &str = "GET /apis/confidentialcontainers.org/v1alpha1/peerpods?";

fn object(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "confidentialcontainers.org/v1alpha1", "kind": "PeerPod",
        "metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}"),
                     "resourceVersion": version.to_string(), "finalizers": ["peer.pod/finalizer"]},
        "spec": {"cloudProvider": "local", "instanceID": "i"},
    })
}

fn list(names: &[&str], version: u64, more: Option<&str>) -> Answer {
    let items: Vec<Value> = names.iter().map(|n| object(n, version)).collect();
    let list = json!({
        "apiVersion": "confidentialcontainers.org/v1alpha1", "kind": "PeerPodList",
        "metadata": {"resourceVersion": version.to_string(), "continue": more.unwrap_or_default()},
        "items": items,
    });
    (200, list, false)
}

fn status(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
           "message": reason, "metadata": {}, "details": {"name": "x"}})
}

fn pods(items: &[Value]) -> Answer {
    let list =
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": items});
    (200, list, false)
}

fn kube_system() -> Answer {
    (
        200,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": "U"}}),
        false,
    )
}

#[tokio::test]
async fn a_list_that_expires_in_the_middle_is_not_complete() {
    let script = Script::default()
        .on("GET /api/v1/namespaces/kube-system", &[kube_system()])
        .on("GET /api/v1/pods", &[pods(&[])])
        .on(RECORDS, &[list(&["a"], 7, Some("more")), (410, status(410, "Expired"), false)]);
    let view = KubeCluster::new(&script.connect().await).view().await.unwrap();
    assert!(!view.complete && view.records.len() == 1 && view.revision == Some(7), "{view:?}");
    assert_eq!(view.cluster_uid, "U");
}

#[tokio::test]
async fn a_view_takes_every_page_and_the_pods_after_the_records() {
    let script = Script::default()
        .on("GET /api/v1/namespaces/kube-system", &[kube_system()])
        .on(
            "GET /api/v1/pods",
            &[pods(&[json!({"metadata": {"name": "web", "namespace": "d", "uid": "p"}})])],
        )
        .on(RECORDS, &[list(&["a"], 7, Some("more")), list(&["b"], 7, None)]);
    let view = KubeCluster::new(&script.connect().await).view().await.unwrap();
    assert!(view.complete && view.records.len() == 2 && view.pods.len() == 1, "{view:?}");
    let asked = script.asked.lock().unwrap().clone();
    let at = |begin: &str| asked.iter().rposition(|q| q.starts_with(begin)).unwrap();
    assert!(at(RECORDS) < at("GET /api/v1/pods"), "{asked:?}");
    assert!(
        asked.iter().all(|q| !q.contains("resourceVersion=")),
        "from the store and not from a cache: {asked:?}"
    );
}

#[tokio::test]
async fn a_server_that_fails_gives_no_view() {
    let script = Script::default()
        .on("GET /api/v1/namespaces/kube-system", &[kube_system()])
        .on("GET /", &[(500, status(500, "InternalError"), false)]);
    let error = KubeCluster::new(&script.connect().await).view().await.unwrap_err();
    assert!(matches!(error, ClusterError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_is_too_old_is_listed_anew_and_what_went_meanwhile_is_missing() {
    let gone = json!({"type": "ERROR", "object": status(410, "Expired")}).to_string() + "\n";
    let later = json!({"type": "MODIFIED", "object": object("c", 21)}).to_string() + "\n";
    let watching = "GET /apis/confidentialcontainers.org/v1alpha1/peerpods?&watch=true";
    let script = Script::default()
        .on(watching, &[(200, Value::String(gone), false), (200, Value::String(later), true)])
        .on(RECORDS, &[list(&["a", "b"], 10, None), list(&["b"], 20, None)]);
    let cluster = KubeCluster::new(&script.connect().await);
    let (sender, mut changes) = mpsc::channel(16);
    let watching = tokio::spawn(async move { cluster.watch(sender).await });
    let mut next = async || {
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, changes.recv()).await.expect("a change comes").unwrap()
    };
    let names = |change: Change| match change {
        Change::Listed(all) => all.into_iter().map(|r| r.key.name).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(next().await), ["a", "b"]);
    assert_eq!(names(next().await), ["b"], "the second list replaces the first");
    assert!(matches!(next().await, Change::Applied(record) if record.key.name == "c"));
    watching.abort();
}

#[tokio::test]
async fn what_is_missing_is_told_apart_from_what_fails() {
    let key = Key::new("d", "a");
    let path = "GET /apis/confidentialcontainers.org/v1alpha1/namespaces/d/peerpods/a";
    let read = async |code: u16, body: Value| {
        let script = Script::default().on(path, &[(code, body, false)]);
        KubeCluster::new(&script.connect().await).record(&key).await
    };
    assert_eq!(read(404, status(404, "NotFound")).await.unwrap(), None);
    let mut kind = status(404, "NotFound");
    kind["details"] = json!({});
    let error = read(404, kind).await.unwrap_err().to_string();
    assert!(error.contains("peerpod-ctrl crd"), "the definition is not installed: {error}");
    assert!(matches!(read(403, status(403, "Forbidden")).await, Err(ClusterError::Forbidden(_))));
    assert!(matches!(read(503, status(503, "x")).await, Err(ClusterError::Unavailable(_))));
    assert!(matches!(read(200, json!("half an ans")).await, Err(ClusterError::Refused(_))));
    assert!(read(200, object("a", 1)).await.unwrap().is_some());
}

#[tokio::test]
async fn writes_name_the_version_and_leave_what_others_wrote() {
    let mut value = object("a", 5);
    value["metadata"]["finalizers"] = json!(["of/others", "peer.pod/finalizer"]);
    let record = Record::new(serde_json::from_value(value.clone()).unwrap());
    let script = Script::default().on("", &[(200, value, false)]);
    let cluster = KubeCluster::new(&script.connect().await);
    cluster.release(&record).await.unwrap();
    cluster.set_condition(&record, &Note::new(Reason::Deleting, "m")).await.unwrap();
    cluster.delete(&record, Some("b")).await.unwrap();
    let bodies = script.bodies.lock().unwrap().clone();
    let metadata = json!({"uid": "uid-a", "resourceVersion": "5", "finalizers": ["of/others"]});
    assert_eq!(bodies[0], json!({"metadata": metadata}));
    assert_eq!(bodies[1]["metadata"], json!({"uid": "uid-a"}));
    assert_eq!(bodies[1]["status"]["conditions"][0]["type"], "DeletionPending");
    assert_eq!(bodies[2]["metadata"]["annotations"], json!({"peer.pod/superseded-by": "b"}));
    assert_eq!(bodies[3]["preconditions"]["uid"], "uid-a");
    assert_eq!(script.questions("PATCH"), 3);
}

#[tokio::test]
async fn the_lease_is_written_as_the_existing_controller_reads_it() {
    let path = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/33f6c5d6.confidentialcontainers.org";
    let theirs = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "33f6c5d6.confidentialcontainers.org", "namespace": "ns", "resourceVersion": "3"},
        "spec": {"holderIdentity": "manager_1", "leaseDurationSeconds": 15, "leaseTransitions": 2,
                 "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"},
    });
    let script = Script::default()
        .on(&format!("GET {path}"), &[(200, theirs.clone(), false)])
        .on(&format!("PUT {path}"), &[(200, theirs, false), (409, status(409, "Conflict"), false)]);
    let lease = KubeLease::new(&script.connect().await);
    let mut state = lease.read().await.unwrap().unwrap();
    assert_eq!((state.holder.as_str(), state.seconds, state.transitions), ("manager_1", 15, 2));
    state.holder = "me".into();
    lease.write(&state).await.unwrap();
    let body = script.bodies.lock().unwrap()[0].clone();
    assert_eq!(body["metadata"]["resourceVersion"], "3");
    assert_eq!(body["spec"]["holderIdentity"], "me");
    assert!(body["spec"]["renewTime"].as_str().is_some_and(|t| t.contains('.')), "microseconds: {body}");
    assert_eq!(lease.write(&state).await.unwrap_err(), ClusterError::Conflict);
}

#[tokio::test]
async fn the_configuration_is_read_from_both_objects_and_watched_by_name() {
    let asked = AtomicUsize::new(0);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "peer-pods-cm"},
                     "data": {"CLOUD_PROVIDER": "local", "X": "map"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "peer-pods-secret"},
                        "data": {"X": "c2VjcmV0"}});
    let script = Script::default()
        .on("GET /api/v1/namespaces/ns/configmaps/peer-pods-cm-eu", &[(404, status(404, "NotFound"), false)])
        .on("GET /api/v1/namespaces/ns/secrets/peer-pods-secret-eu", &[(404, status(404, "NotFound"), false)])
        .on("GET /api/v1/namespaces/ns/configmaps/peer-pods-cm", &[(200, map, false)])
        .on("GET /api/v1/namespaces/ns/secrets/peer-pods-secret", &[(200, secret, false)])
        .on("GET /api", &[(404, status(404, "NotFound"), false)]);
    use crate::profiles::ConfigSource as _;
    let config = KubeConfig::new(&script.connect().await, &["eu".into()]);
    let all = config.read(None).await.unwrap().unwrap();
    assert_eq!((all["CLOUD_PROVIDER"].as_str(), all["X"].as_str()), ("local", "secret"));
    assert_eq!(config.read(Some("eu")).await.unwrap(), None);
    let limit = std::time::Instant::now() + Duration::from_secs(30);
    while asked.fetch_add(1, Ordering::SeqCst) == 0
        || script.questions("GET /api/v1/namespaces/ns/secrets?") < 2
    {
        assert!(std::time::Instant::now() < limit, "{:?}", script.asked.lock().unwrap());
        tokio::task::yield_now().await;
    }
    let questions = script.asked.lock().unwrap().clone();
    let watched = questions.iter().filter(|q| q.contains("metadata.name%3Dpeer-pods-secret-eu"));
    assert!(watched.count() > 0, "each by its own name: {questions:?}");
}
