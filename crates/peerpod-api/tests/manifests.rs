//! The files of an installation are those that the code generates, and a real API server takes them.

use std::time::Duration;

use peerpod_api::{install, install::Program, names};
use serde_json::Value;
use test_support::{RealCluster, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_files_are_those_that_the_code_generates() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let mut there: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    let files = install::files(names::DEFAULT_NAMESPACE, names::CONTROLLER);
    let mut wanted: Vec<&str> = files.iter().map(|file| file.name).collect();
    wanted.sort_unstable();
    assert_eq!(there, wanted, "run `cargo xtask manifests`");
    for file in files {
        let text = std::fs::read_to_string(folder.join(file.name)).unwrap();
        assert_eq!(text, file.text(), "{}: run `cargo xtask manifests`", file.name);
    }
}

#[test]
fn a_server_takes_them_and_an_account_may_do_what_is_listed_and_nothing_else() {
    let cluster = RealCluster::start().unwrap();
    let namespace = serde_json::json!({"metadata": {"name": names::DEFAULT_NAMESPACE}});
    cluster.create("/api/v1/namespaces", &namespace).unwrap();
    for file in install::files(names::DEFAULT_NAMESPACE, names::CONTROLLER) {
        cluster.apply_text(&file.text()).unwrap();
    }
    for program in [Program::Controller, Program::Daemon] {
        let token = cluster.token_of(names::DEFAULT_NAMESPACE, program.account()).unwrap();
        let may = |namespace: &str, verb: &str, group: &str, resource: &str, name: &str| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let review = serde_json::json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "namespace": namespace, "verb": verb, "group": group, "resource": resource,
                    "subresource": subresource, "name": name,
                }},
            });
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let answer = cluster.request_as(&token, "POST", path, Some(("application/json", &review)));
            answer.unwrap().ok().unwrap()["status"]["allowed"] == Value::Bool(true)
        };
        let rules = || install::RULES.iter().filter(|rule| rule.program == program);
        let first = rules().next().unwrap();
        let there = || may("shop", first.verbs[0], first.group, first.resource, "").then_some(());
        wait_for("the role to take effect", LIMIT, there).unwrap();
        for rule in rules() {
            let name = rule.objects.first().copied().unwrap_or_default();
            for verb in rule.verbs {
                let own = may(names::DEFAULT_NAMESPACE, verb, rule.group, rule.resource, name);
                assert!(own, "{rule:?}: {verb}");
                let elsewhere = may("shop", verb, rule.group, rule.resource, name);
                let everywhere = rules().any(|other| {
                    (other.group, other.resource, other.place)
                        == (rule.group, rule.resource, install::Place::Everywhere)
                        && other.verbs.contains(verb)
                });
                assert_eq!(elsewhere, everywhere, "{rule:?}: {verb} in another namespace");
            }
        }
        for (verb, group, resource, name) in [
            ("create", "", "pods", ""),
            ("delete", "", "pods", "web"),
            ("list", "", "secrets", ""),
            ("update", "", "nodes", "node-1"),
            ("delete", "", "nodes", "node-1"),
            ("get", "", "configmaps", "another"),
            ("get", "", "namespaces", "another"),
            ("delete", "coordination.k8s.io", "leases", names::LEADER_LEASE),
            ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
        ] {
            assert!(!may("shop", verb, group, resource, name), "{program:?}: {verb} {resource} {name}");
        }
    }
    let token = cluster.token_of(names::DEFAULT_NAMESPACE, Program::Controller.account()).unwrap();
    let secrets = format!("/api/v1/namespaces/{}/secrets", names::DEFAULT_NAMESPACE);
    assert_eq!(cluster.request_as(&token, "GET", &format!("{secrets}/another"), None).unwrap().status, 403);
    let ours = cluster.request_as(&token, "GET", &format!("{secrets}/{}", names::SECRET), None).unwrap();
    assert_eq!(ours.status, 404, "it may look, and nobody made it");
    let watch = format!("{secrets}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3D{}", names::SECRET);
    assert_eq!(cluster.request_as(&token, "GET", &watch, None).unwrap().status, 200);
}
