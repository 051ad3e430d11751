//! The operator's certificates are replaced while sandboxes live.

use std::{fs, path::Path, sync::Arc};

use caa::identity::{CUSTOM_SERVER_NAME, CustomTls, Identity};
use cloud_providers::scripted::{ScriptedProvider, World};
use peerpod_gateway::TlsSpec;

use super::fakes::Node;

/// Certificates as an operator would have them made.
fn issued() -> Identity {
    Identity::generate("podvm-operator-1", &CustomTls::default()).unwrap()
}

fn replace(dir: &Path, made: &Identity) {
    for (name, content) in
        [("ca.crt", &made.ca), ("client.crt", &made.client_cert), ("client.key", &made.client_key)]
    {
        fs::write(dir.join("fresh"), content).unwrap();
        fs::rename(dir.join("fresh"), dir.join(name)).unwrap();
    }
}

fn node(dir: &Path, with_ca: bool) -> Node {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (ca, cert, key) = (at("ca.crt"), at("client.crt"), at("client.key"));
    let mut env = vec![("CERT_FILE", cert.as_str()), ("CERT_KEY", key.as_str())];
    if with_ca {
        env.push(("CACERT_FILE", ca.as_str()));
    }
    let world = World::new();
    Node::with_provider(world.clone(), Arc::new(ScriptedProvider::new(&world)), &env)
}

fn shown(node: &Node, id: &str) -> TlsSpec {
    node.gateway.specs.lock().unwrap()[id].tls.clone().unwrap()
}

async fn running(node: &Node, id: &str) {
    node.create(id).await.unwrap();
    node.start(id).await.unwrap();
}

#[tokio::test]
async fn running_and_new_sandboxes_follow_the_operators_certificates() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), issued(), issued());
    replace(dir.path(), &first);
    let node = node(dir.path(), true);
    running(&node, "s1").await;
    let before = shown(&node, "s1");
    assert_eq!((&before.ca_pem, &before.cert_pem), (&first.ca, &first.client_cert));
    assert_eq!(before.server_name, CUSTOM_SERVER_NAME);

    node.sandboxes.renew_certificates().await;
    assert_eq!(shown(&node, "s1"), before, "nothing was replaced");

    replace(dir.path(), &second);
    node.sandboxes.renew_certificates().await;
    running(&node, "s2").await;
    for id in ["s1", "s2"] {
        let now = shown(&node, id);
        assert_eq!((&now.ca_pem, &now.cert_pem), (&second.ca, &second.client_cert), "{id}");
        assert_eq!(now.key_pem.expose(), second.client_key, "{id}");
    }

    fs::write(dir.path().join("client.crt"), "half a file").unwrap();
    node.sandboxes.renew_certificates().await;
    running(&node, "s3").await;
    assert_eq!(shown(&node, "s1").cert_pem, second.client_cert);
    assert_eq!(shown(&node, "s3").cert_pem, second.client_cert);

    for id in ["s1", "s2", "s3"] {
        node.sandboxes.stop_vm(id).await;
    }
    node.wait_empty().await;
    replace(dir.path(), &first);
    node.sandboxes.renew_certificates().await;
    assert_eq!(node.leftovers(), Vec::<String>::new(), "what has ended is not served again");
}

#[tokio::test]
async fn a_guest_that_was_told_a_certificate_keeps_it_and_the_next_one_has_the_new() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), issued(), issued());
    replace(dir.path(), &first);
    let node = node(dir.path(), false);
    running(&node, "s1").await;
    replace(dir.path(), &second);
    node.sandboxes.renew_certificates().await;
    running(&node, "s2").await;
    assert_eq!(shown(&node, "s1").cert_pem, first.client_cert);
    assert_eq!(shown(&node, "s2").cert_pem, second.client_cert);
}

#[tokio::test]
async fn a_gateway_that_is_out_of_reach_is_told_at_the_next_look() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), issued(), issued());
    replace(dir.path(), &first);
    let node = node(dir.path(), true);
    running(&node, "s1").await;
    replace(dir.path(), &second);
    *node.gateway.refuses.lock().unwrap() = true;
    node.sandboxes.renew_certificates().await;
    assert_eq!(shown(&node, "s1").cert_pem, first.client_cert);
    *node.gateway.refuses.lock().unwrap() = false;
    node.sandboxes.renew_certificates().await;
    assert_eq!(shown(&node, "s1").cert_pem, second.client_cert);
}
