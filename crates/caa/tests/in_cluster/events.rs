//! Events on pods.

use axum::http::Method;
use caa::cluster::{ClusterRecord, Notice, SandboxRef};
use serde_json::Value;
use test_support::wait_for_async;

use crate::{
    fakes::SOON,
    server::{Fault, Server},
};

const EVENTS: &str = "/api/v1/namespaces/shop/events";

fn sandbox(id: &str) -> SandboxRef {
    let mut sandbox = SandboxRef::new(id, "web", "shop");
    sandbox.pod_uid = Some("uid-web".into());
    sandbox
}

async fn events(server: &Server, count: usize) -> Vec<Value> {
    let seen = || async { Some(server.all(EVENTS)).filter(|all| all.len() == count) };
    wait_for_async("the events", SOON, seen).await.unwrap()
}

#[tokio::test]
async fn an_event_is_about_the_pod_and_has_the_clouds_words() {
    let server = Server::start().await;
    server.record().tell(
        &sandbox("s1"),
        Notice::start_failed("create the instance: no capacity (code: InsufficientInstanceCapacity)"),
    );
    let event = &events(&server, 1).await[0];
    let about = &event["involvedObject"];
    assert_eq!(
        (&about["kind"], &about["name"], &about["uid"]),
        (&"Pod".into(), &"web".into(), &"uid-web".into())
    );
    assert_eq!((&event["type"], &event["reason"]), (&"Warning".into(), &"PodVMStartFailed".into()));
    assert!(event["message"].as_str().unwrap().contains("InsufficientInstanceCapacity"));
    assert_eq!(event["source"]["component"], "cloud-api-adaptor");
    assert_eq!(event["count"], 1);
}

#[tokio::test]
async fn what_happens_again_is_the_same_event_and_is_written_rarely() {
    let server = Server::start().await;
    let cluster = server.record();
    for n in 0..50 {
        cluster.tell(&sandbox("s1"), Notice::deletion_pending(format!("attempt {n}")));
    }
    // Told last, written last.
    cluster.tell(&sandbox("s2"), Notice::lost("gone"));
    let all = events(&server, 2).await;
    assert!(all.iter().any(|event| event["message"] == "attempt 0"));
    assert_eq!(server.count("POST"), 2);
    assert_eq!(server.count("PATCH"), 0, "the pause is not over");
}

#[tokio::test]
async fn a_storm_of_news_is_cut() {
    let server = Server::start().await;
    let cluster = server.record();
    for n in 0..200 {
        cluster.tell(&sandbox(&format!("s{n}")), Notice::lost("gone"));
    }
    wait_for_async("the burst", SOON, || async { (server.all(EVENTS).len() >= 25).then_some(()) })
        .await
        .unwrap();
    assert!(server.all(EVENTS).len() < 100, "{}", server.all(EVENTS).len());
}

#[tokio::test]
async fn a_missing_right_is_not_asked_for_again_and_again() {
    let server = Server::start().await;
    server.fault(Method::POST, "/events", Fault::Code(403), 1);
    let cluster = server.record();
    cluster.tell(&sandbox("s1"), Notice::lost("gone"));
    wait_for_async("the attempt", SOON, || async { (server.count("POST") == 1).then_some(()) })
        .await
        .unwrap();
    for n in 0..20 {
        cluster.tell(&sandbox(&format!("t{n}")), Notice::lost("gone"));
    }
    // Whatever is asked after them comes after them.
    server.pod("web", "uid-web");
    cluster.pod_uid("shop", "web").await.unwrap();
    assert_eq!(server.count("POST"), 1);
}
