//! What the daemon reads: pods and their Secrets.

use axum::http::Method;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use caa::cluster::{ClusterRecord, PodRef};
use serde_json::json;

use crate::server::{Fault, Server};

fn pods(names: &[(&str, &str)]) -> Vec<PodRef> {
    let pod =
        |(name, uid): &(&str, &str)| PodRef::new(format!("s-{name}"), *name, "shop", Some((*uid).into()));
    names.iter().map(pod).collect()
}

#[tokio::test]
async fn a_pod_is_gone_when_neither_list_nor_server_has_it() {
    let server = Server::start().await;
    server.pod("there", "uid-1");
    server.pod("db-0", "uid-new");
    // On no node's list, as in the moment before it is bound to one, or when this node's name is spelled another way.
    server.put("/api/v1/namespaces/shop/pods/hidden", json!({"metadata": {"uid": "uid-2"}, "spec": {}}));
    let asked = pods(&[("there", "uid-1"), ("db-0", "uid-old"), ("hidden", "uid-2"), ("away", "uid-3")]);
    let gone = server.record().gone_pods(&asked).await.unwrap().unwrap();
    assert_eq!(gone.into_iter().collect::<Vec<_>>(), ["s-away", "s-db-0"]);
}

#[tokio::test]
async fn a_list_that_fails_or_breaks_off_says_nothing() {
    let server = Server::start().await;
    for n in 0..600 {
        server.pod(&format!("p{n:03}"), &format!("uid-{n}"));
    }
    let asked = pods(&[("p001", "uid-1"), ("p599", "uid-599"), ("away", "uid-x")]);
    let cluster = server.record();
    // An API server that is asked for the next page after too long.
    server.fault(Method::GET, "continue=", Fault::Code(410), None);
    assert!(cluster.gone_pods(&asked).await.is_err());
    server.mend();
    assert_eq!(cluster.gone_pods(&asked).await.unwrap().unwrap().len(), 1);
    server.fault(Method::GET, "/pods/away", Fault::Code(500), None);
    assert!(cluster.gone_pods(&asked).await.is_err(), "the last word is missing");
    server.mend();
    server.fault(Method::GET, "/api/v1/pods", Fault::Code(403), None);
    let error = format!("{:#}", cluster.gone_pods(&asked).await.unwrap_err());
    assert!(error.contains("a right is missing"), "{error}");
}

#[tokio::test]
async fn credentials_come_from_the_service_account_and_the_pod() {
    let server = Server::start().await;
    let secret = |name: &str, key: &str, text: &str| {
        let data = json!({ key: STANDARD.encode(text) });
        server.put(&format!("/api/v1/namespaces/shop/secrets/{name}"), json!({ "data": data }));
    };
    secret("of-account", ".dockercfg", r#"{"a.io":{"username":"u","password":"p"},"b.io":{"auth":"QQ=="}}"#);
    secret("of-pod", ".dockerconfigjson", r#"{"auths":{"b.io":{"auth":"Qg=="}}}"#);
    secret("broken", ".dockerconfigjson", "no JSON");
    server.put(
        "/api/v1/namespaces/shop/serviceaccounts/builder",
        json!({"imagePullSecrets": [{"name": "of-account"}]}),
    );
    let names = ["of-pod", "missing", "broken"].map(|name| json!({ "name": name }));
    let spec = json!({"serviceAccountName": "builder", "imagePullSecrets": names, "containers": []});
    server.put("/api/v1/namespaces/shop/pods/web", json!({ "spec": spec }));
    server.put("/api/v1/namespaces/shop/pods/plain", json!({"spec": {"containers": []}}));
    let cluster = server.record();
    assert_eq!(
        cluster.pull_secrets("shop", "web").await.unwrap().unwrap(),
        r#"{"auths":{"a.io":{"auth":"dTpw"},"b.io":{"auth":"Qg=="}}}"#
    );
    assert_eq!(
        cluster.pull_secrets("shop", "plain").await.unwrap(),
        None,
        "it has no account and no secrets"
    );
    assert_eq!(cluster.pull_secrets("shop", "nobody").await.unwrap(), None);
}

#[tokio::test]
async fn the_uid_of_a_pod_is_that_of_the_server() {
    let server = Server::start().await;
    server.pod("web", "uid-web");
    let cluster = server.record();
    assert_eq!(cluster.pod_uid("shop", "web").await.unwrap().as_deref(), Some("uid-web"));
    let error = format!("{:#}", cluster.pod_uid("shop", "nobody").await.unwrap_err());
    assert!(error.contains("pod shop/nobody is not in the cluster"), "{error}");
}
