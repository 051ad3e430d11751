//! What an installation creates in a cluster: accounts with the least rights that our programs do with, and the
//! controller's Deployment.
//!
//! `cargo xtask manifests` writes it to `manifests/`. [`RULES`] says of each right what it is for.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::names;

/// Whose right it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `peerpod-ctrl`.
    Controller,
    /// `cloud-api-adaptor`.
    Daemon,
}

impl Program {
    /// The name of its account, its roles and bindings.
    pub fn account(self) -> &'static str {
        match self {
            Self::Controller => names::CONTROLLER,
            Self::Daemon => names::DAEMON,
        }
    }
}

/// Where a right holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In every namespace, and for what is in none.
    Everywhere,
    /// In the namespace of the installation.
    Own,
}

/// A right, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whose it is.
    pub program: Program,
    /// Where it holds.
    pub place: Place,
    /// The API group; empty for that of pods.
    pub group: &'static str,
    /// The resource, with its subresource after a slash.
    pub resource: &'static str,
    /// The only objects it holds for; none for all.
    pub objects: &'static [&'static str],
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// What it is for.
    pub why: &'static str,
}

const fn rule(
    program: Program,
    place: Place,
    (group, resource): (&'static str, &'static str),
    objects: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { program, place, group, resource, objects, verbs, why }
}

const RBAC: &str = "rbac.authorization.k8s.io";
const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
const PEERPODS: (&str, &str) = (names::GROUP, names::PLURAL);

use self::{
    Place::{Everywhere, Own},
    Program::{Controller, Daemon},
};

/// Every right of our programs.
pub const RULES: &[Rule] = &[
    rule(
        Controller,
        Everywhere,
        PEERPODS,
        &[],
        &["get", "list", "watch", "patch", "delete"],
        "follows the records, releases those whose instance is gone, deletes those that a later sandbox took the place of",
    ),
    rule(
        Controller,
        Everywhere,
        (names::GROUP, "peerpods/status"),
        &[],
        &["patch"],
        "tells why an instance is not deleted yet",
    ),
    rule(
        Controller,
        Everywhere,
        ("", "pods"),
        &[],
        &["get", "list"],
        "never deletes the instance of a pod that lives, and knows which nodes have a daemon",
    ),
    rule(
        Controller,
        Everywhere,
        ("", "nodes"),
        &[],
        &["list"],
        "knows when a node, and with it its daemon, is gone",
    ),
    rule(
        Controller,
        Everywhere,
        ("", "namespaces"),
        &[names::CLUSTER_ID_NAMESPACE],
        &["get"],
        "its UID is the id of the cluster, which instances are tagged with",
    ),
    rule(
        Controller,
        Everywhere,
        ("", "events"),
        &[],
        &["create", "patch"],
        "tells what happens to a pod's instance",
    ),
    rule(
        Controller,
        Own,
        ("", "configmaps"),
        &[names::CONFIG_MAP],
        &["get", "list", "watch"],
        "the provider's settings, read again when they change",
    ),
    rule(
        Controller,
        Own,
        ("", "secrets"),
        &[names::SECRET],
        &["get", "list", "watch"],
        "the provider's credentials, read again when they change",
    ),
    rule(
        Controller,
        Own,
        LEASES,
        &[],
        &["create", "list"],
        "the lease of who leads, before there is one; the leases by which daemons show that they live",
    ),
    rule(
        Controller,
        Own,
        LEASES,
        &[names::LEADER_LEASE],
        &["get", "update"],
        "one controller leads at a time",
    ),
    rule(
        Daemon,
        Everywhere,
        PEERPODS,
        &[],
        &["get", "create", "patch", "delete"],
        "records each sandbox before its instance is made, and releases it when the instance is gone",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "pods"),
        &[],
        &["get", "list"],
        "the UID, volumes and pull secrets of a pod, and which pods of this node are gone",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "serviceaccounts"),
        &[],
        &["get"],
        "pull secrets that a pod has from its account",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "secrets"),
        &[],
        &["get"],
        "pull secrets are in the namespaces of pods, with names that only the pods say",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "nodes"),
        &[],
        &["get"],
        "whether this daemon still offers the node's pod VMs",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "nodes/status"),
        &[],
        &["patch"],
        "offers the node's pod VMs as an extended resource",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "namespaces"),
        &[names::CLUSTER_ID_NAMESPACE],
        &["get"],
        "its UID is the id of the cluster, which instances are tagged with",
    ),
    rule(
        Daemon,
        Everywhere,
        ("", "events"),
        &[],
        &["create", "patch"],
        "tells what happens to a pod's instance",
    ),
    rule(
        Daemon,
        Own,
        LEASES,
        &[],
        &["create", "patch"],
        "shows that it lives, so that the controller lets it delete its own instances first",
    ),
];

/// A file of an installation: its name, and its objects.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// Its name.
    pub name: &'static str,
    /// What it is, for its first lines.
    pub about: String,
    /// Its objects, in the order in which they are made.
    pub objects: Vec<Value>,
}

impl File {
    /// Returns it as YAML, its first lines as comments.
    pub fn text(&self) -> String {
        let mut text =
            String::from("# Written by `cargo xtask manifests`; change crates/peerpod-api/src/install.rs.\n");
        for line in self.about.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        for object in &self.objects {
            text.push_str("---\n");
            text.push_str(&serde_yaml::to_string(object).expect("an object is plain data"));
        }
        text
    }
}

/// Returns the files of an installation in `namespace`, whose controller runs `image`.
pub fn files(namespace: &str, image: &str) -> Vec<File> {
    let rights = |program: Program| {
        let mut text = String::from("Least rights. What each is for:\n");
        for rule in RULES.iter().filter(|rule| rule.program == program) {
            let objects =
                if rule.objects.is_empty() { String::new() } else { format!(" {}", rule.objects.join(", ")) };
            text.push_str(&format!(
                "- {}{objects} ({}): {}\n",
                rule.resource,
                rule.verbs.join(", "),
                rule.why
            ));
        }
        text
    };
    let mut controller = account(Controller, namespace);
    controller.push(object::<Deployment>("apps/v1", "Deployment", deployment(namespace, image)));
    let definition = serde_json::to_value(crate::crd()).expect("a definition is plain data");
    vec![
        File {
            name: "crd.yaml",
            about: "The kind PeerPod. It replaces the existing definition; stored objects stay valid.\n"
                .into(),
            objects: vec![definition],
        },
        File { name: "daemon-rbac.yaml", about: rights(Daemon), objects: account(Daemon, namespace) },
        File { name: "controller.yaml", about: rights(Controller), objects: controller },
    ]
}

/// The account of a program, its roles and their bindings.
pub fn account(program: Program, namespace: &str) -> Vec<Value> {
    let name = program.account();
    let rules = |place: Place| -> Vec<PolicyRule> {
        let rules = RULES.iter().filter(|rule| rule.program == program && rule.place == place);
        rules.map(policy).collect()
    };
    let own = json!({"name": name, "namespace": namespace, "labels": labels(name)});
    let every = json!({"name": name, "labels": labels(name)});
    let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]);
    let reference = |kind: &str| json!({"apiGroup": RBAC, "kind": kind, "name": name});
    let version = "rbac.authorization.k8s.io/v1";
    vec![
        object::<ServiceAccount>("v1", "ServiceAccount", json!({"metadata": own})),
        object::<ClusterRole>(version, "ClusterRole", json!({"metadata": every, "rules": rules(Everywhere)})),
        object::<ClusterRoleBinding>(
            version,
            "ClusterRoleBinding",
            json!({"metadata": every, "roleRef": reference("ClusterRole"), "subjects": subjects}),
        ),
        object::<Role>(version, "Role", json!({"metadata": own, "rules": rules(Own)})),
        object::<RoleBinding>(
            version,
            "RoleBinding",
            json!({"metadata": own, "roleRef": reference("Role"), "subjects": subjects}),
        ),
    ]
}

/// Returns the object after the type of its kind has read it: a field that the kind does not have is a mistake of ours.
fn object<T: DeserializeOwned + serde::Serialize>(version: &str, kind: &str, mut value: Value) -> Value {
    value["apiVersion"] = version.into();
    value["kind"] = kind.into();
    let typed: T = serde_json::from_value(value.clone()).expect("it is an object of its kind");
    let read = serde_json::to_value(typed).expect("it was read");
    assert_eq!(read, value, "the kind {kind} has no such field");
    value
}

fn policy(rule: &Rule) -> PolicyRule {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(texts(&[rule.group])),
        resources: Some(texts(&[rule.resource])),
        resource_names: Some(texts(rule.objects)).filter(|names| !names.is_empty()),
        verbs: texts(rule.verbs),
        ..PolicyRule::default()
    }
}

fn labels(name: &str) -> Value {
    json!({"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "peer-pods"})
}

fn deployment(namespace: &str, image: &str) -> Value {
    let name = names::CONTROLLER;
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let probe = |path: &str, period: u32| json!({"httpGet": {"path": path, "port": "health"}, "periodSeconds": period});
    json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels(name)},
        "spec": {
            // One does the work; a second one would take over within seconds where a node is lost.
            "replicas": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {
                "metadata": {"labels": labels(name)},
                "spec": {
                    "serviceAccountName": name,
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": "manager",
                        "image": image,
                        "args": [
                            "--leader-elect",
                            "--metrics-bind-address=:8080",
                            "--health-probe-bind-address=:8081",
                        ],
                        "env": [
                            field("POD_NAME", "metadata.name"),
                            field("POD_NAMESPACE", "metadata.namespace"),
                            field("PEERPODS_NAMESPACE", "metadata.namespace"),
                        ],
                        "ports": [
                            {"name": "metrics", "containerPort": 8080},
                            {"name": "health", "containerPort": 8081},
                        ],
                        "livenessProbe": probe("/healthz", 20),
                        "readinessProbe": probe("/readyz", 10),
                        "resources": {
                            "requests": {"cpu": "10m", "memory": "64Mi"},
                            "limits": {"memory": "256Mi"},
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "runAsUser": 65532,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_right_has_a_reason_and_none_is_given_twice_or_for_everything() {
        let mut seen = Vec::new();
        for rule in RULES {
            assert!(
                !rule.why.is_empty() && !rule.verbs.is_empty() && !rule.resource.contains('*'),
                "{rule:?}"
            );
            for verb in rule.verbs {
                assert_ne!(*verb, "*");
                let right = (rule.program.account(), rule.group, rule.resource, rule.objects, *verb);
                assert!(!seen.contains(&right), "{right:?}");
                seen.push(right);
            }
        }
    }

    #[test]
    fn the_files_name_their_namespace_and_image() {
        let files = files("elsewhere", "example.org/ctrl:1");
        let text = format!("{files:?}");
        assert!(text.contains("elsewhere") && text.contains("example.org/ctrl:1"));
        assert!(!text.contains(names::DEFAULT_NAMESPACE));
        let rights = &files[2].about;
        assert!(
            rights.contains("leases 33f6c5d6.confidentialcontainers.org (get, update): one controller"),
            "{rights}"
        );
    }
}
