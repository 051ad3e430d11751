//! The proxy between a client and a small server that counts what it does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use fault_proxy::control::Control;
use fault_proxy::{Act, Answer, Conversation, HttpFaultProxy, Match, Options, Request, Rule, Upstream};
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use test_support::wait_for_async;

const LIMIT: Duration = Duration::from_secs(20);

/// A server that counts its effects and tells the number.
async fn server() -> (String, Arc<AtomicU64>) {
    let effects = Arc::new(AtomicU64::new(0));
    let count = |State(effects): State<Arc<AtomicU64>>, headers: HeaderMap, body: Bytes| async move {
        let number = effects.fetch_add(1, Ordering::SeqCst) + 1;
        let seen = headers.contains_key("authorization");
        let secret = "<secret>s3cr3t</secret>";
        let text = format!("<r><n>{number}</n><signed>{seen}</signed><got>{}</got>{secret}</r>", body.len());
        (StatusCode::CREATED, [("x-request-id", "one")], text)
    };
    let router = Router::new().fallback(post(count)).with_state(Arc::clone(&effects));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, effects)
}

async fn proxy() -> (HttpFaultProxy, Arc<AtomicU64>) {
    let (url, effects) = server().await;
    let upstream = Upstream::server(&url).unwrap();
    (HttpFaultProxy::start(upstream, Options::default()).await.unwrap(), effects)
}

/// A call with a form, signed, over a connection of its own.
async fn call(to: SocketAddr, fields: &str) -> anyhow::Result<Answer> {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", "AWS4 s3cr3t".parse()?);
    headers.insert("content-type", "application/x-www-form-urlencoded".parse()?);
    let request = Request {
        method: Method::POST,
        path: "/".to_owned(),
        query: String::new(),
        headers,
        body: fields.to_owned().into(),
    };
    Upstream::server(&format!("http://{to}"))?.send(&request).await
}

async fn order(to: SocketAddr, method: Method, path: &str, body: &str) -> Answer {
    let request = Request {
        method,
        path: path.to_owned(),
        query: String::new(),
        headers: HeaderMap::new(),
        body: body.to_owned().into(),
    };
    Upstream::server(&format!("http://{to}")).unwrap().send(&request).await.unwrap()
}

fn rule(act: Act) -> Rule {
    Rule::new("rule", Match::action("Run"), act)
}

#[tokio::test]
async fn what_no_rule_is_about_passes_with_status_headers_and_body() {
    let (proxy, effects) = proxy().await;
    proxy.add(rule(Act::Cut)).unwrap();
    let answer = call(proxy.address(), "Action=Stop").await.unwrap();
    assert_eq!(answer.status, 201);
    assert!(answer.headers.contains(&("x-request-id".to_owned(), "one".to_owned())));
    let text = answer.text().unwrap();
    assert!(text.contains("<n>1</n><signed>true</signed><got>11</got>"), "{text}");
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    assert_eq!(proxy.journal()[0].status, Some(201));
    assert_eq!(proxy.counts()["Stop"], 1);
}

#[tokio::test]
async fn before_the_effect_the_server_hears_nothing_and_after_it_the_client_does_not() {
    for (after, effect) in [(false, 0), (true, 1)] {
        for act in [Act::Cut, Act::Answer(Answer::new(500, "broken"))] {
            let (proxy, effects) = proxy().await;
            let answered = matches!(act, Act::Answer(_));
            let rule = if after { rule(act).after_effect() } else { rule(act) };
            proxy.add(rule.with_times(1)).unwrap();
            let answer = call(proxy.address(), "Action=Run").await;
            match answered {
                true => assert_eq!(answer.unwrap().text().unwrap(), "broken"),
                false => assert!(answer.is_err()),
            }
            assert_eq!(effects.load(Ordering::SeqCst), effect, "after: {after}");
            let entry = &proxy.journal()[0];
            assert_eq!((entry.passed, entry.rule.as_deref()), (after, Some("rule")));
            assert_eq!(call(proxy.address(), "Action=Run").await.unwrap().status, 201);
        }
    }
}

#[tokio::test]
async fn a_body_breaks_off_where_it_was_asked_to() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (proxy, effects) = proxy().await;
    proxy.add(rule(Act::CutBody { bytes: 6 }).after_effect()).unwrap();
    let mut stream = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 10\r\n\r\n";
    stream.write_all(format!("{head}Action=Run").as_bytes()).await.unwrap();
    let mut seen = String::new();
    let _ = stream.read_to_string(&mut seen).await;
    assert!(seen.starts_with("HTTP/1.1 201"), "{seen}");
    assert!(seen.ends_with("\r\n\r\n<r><n>"), "{seen}");
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    assert!(call(proxy.address(), "Action=Run").await.is_err());
}

#[tokio::test]
async fn a_stalled_call_goes_on_when_the_rule_is_gone() {
    let (proxy, effects) = proxy().await;
    proxy.add(rule(Act::Stall)).unwrap();
    let address = proxy.address();
    let waiting = tokio::spawn(async move { call(address, "Action=Run").await });
    let stalled = || {
        let stalled = proxy.rules()[0].2 == 1;
        async move { stalled.then_some(()) }
    };
    wait_for_async("the call to be stalled", LIMIT, stalled).await.unwrap();
    assert_eq!(effects.load(Ordering::SeqCst), 0);
    assert!(!waiting.is_finished());
    assert!(proxy.remove("rule") && !proxy.remove("rule"));
    assert_eq!(waiting.await.unwrap().unwrap().status, 201);
}

#[tokio::test]
async fn what_the_server_began_goes_on_when_the_client_leaves() {
    let (proxy, effects) = proxy().await;
    proxy.add(rule(Act::Stall)).unwrap();
    let address = proxy.address();
    let leaving = tokio::spawn(async move { call(address, "Action=Run").await });
    let stalled = || {
        let stalled = proxy.rules()[0].2 == 1;
        async move { stalled.then_some(()) }
    };
    wait_for_async("the call to be stalled", LIMIT, stalled).await.unwrap();
    leaving.abort();
    assert!(leaving.await.is_err());
    proxy.clear();
    let done = || {
        let done = effects.load(Ordering::SeqCst) == 1;
        async move { done.then_some(()) }
    };
    wait_for_async("the effect", LIMIT, done).await.unwrap();
}

#[tokio::test]
async fn a_recorded_conversation_has_no_secrets_and_is_played_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("conversation");
    let (url, _) = server().await;
    let upstream = Upstream::server(&url).unwrap().recording(&file).unwrap();
    let proxy = HttpFaultProxy::start(upstream, Options::default()).await.unwrap();
    for fields in ["Action=Run&ClientToken=1&UserData=s3cr3t", "Action=Stop&Id=1", "Action=Stop&Id=1"] {
        call(proxy.address(), fields).await.unwrap();
    }
    drop(proxy);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(!text.contains("s3cr3t"), "{text}");

    let replay = Conversation::read(&file).unwrap().ignoring(&["ClientToken".to_owned()]);
    let proxy = HttpFaultProxy::start(Upstream::replay(replay), Options::default()).await.unwrap();
    let address = proxy.address();
    for (fields, part) in [
        ("Id=1&Action=Stop", "<n>2</n>"),
        ("UserData=other&Action=Run&ClientToken=2", "<n>1</n>"),
        ("Action=Stop&Id=1", "<n>3</n>"),
    ] {
        let answer = call(address, fields).await.unwrap();
        assert!(answer.status == 201 && answer.text().unwrap().contains(part), "{fields}: {answer:?}");
    }
    assert_eq!(proxy.upstream().conversation().unwrap().remaining(), 0);
    let answer = call(address, "Action=Stop&Id=1").await.unwrap();
    assert!(answer.status == 502 && answer.text().unwrap().contains("Stop"), "{answer:?}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_told_apart() {
    let upstream = Upstream::server("http://127.0.0.1:1").unwrap();
    let proxy = HttpFaultProxy::start(upstream, Options::default()).await.unwrap();
    let answer = call(proxy.address(), "Action=Run").await.unwrap();
    assert!(answer.status == 502 && answer.text().unwrap().contains("127.0.0.1:1"), "{answer:?}");
    for wrong in ["https://ec2.amazonaws.com", "127.0.0.1:1", "http://", "http://a/b"] {
        assert!(Upstream::server(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn orders_by_http_do_what_the_calls_do() {
    let (proxy, _) = proxy().await;
    let control = Control::start(&proxy, ([127, 0, 0, 1], 0).into()).await.unwrap();
    let to = control.address();
    let rule = json!({ "name": "no", "when": { "form": { "Action": "Run" } }, "times": 1,
        "do": { "answer": { "status": 503, "body": "later" } } });
    assert_eq!(order(to, Method::POST, "/rules", &rule.to_string()).await.status, 204);
    let wrong = order(to, Method::POST, "/rules", r#"{"name":"x","do":"cat"}"#).await;
    assert!(wrong.status == 400 && wrong.text().unwrap().contains("cat"), "{wrong:?}");
    for (fields, status) in [("Action=Run", 503), ("Action=Run", 201)] {
        assert_eq!(call(proxy.address(), fields).await.unwrap().status, status);
    }
    let get = async |path: &str| -> Value {
        serde_json::from_slice(&order(to, Method::GET, path, "").await.body).unwrap()
    };
    let rules = get("/rules").await;
    assert_eq!((&rules[0]["fitting"], &rules[0]["done"]), (&json!(2), &json!(1)));
    assert_eq!(get("/counts").await, json!({ "calls": { "Run": 2 }, "peak_per_second": 2 }));
    assert_eq!(get("/journal").await[0]["rule"], "no");
    assert_eq!(order(to, Method::DELETE, "/journal", "").await.status, 204);
    assert_eq!(get("/journal").await, json!([]));
    assert_eq!(order(to, Method::DELETE, "/rules/other", "").await.status, 404);
    assert_eq!(order(to, Method::DELETE, "/rules/no", "").await.status, 204);
    assert_eq!(get("/rules").await, json!([]));
    let settings = order(to, Method::PUT, "/settings", "{}").await;
    assert!(settings.status == 400 && settings.text().unwrap().contains("nothing to set"));
}
