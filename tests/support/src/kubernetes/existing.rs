//! What the existing programs do to a cluster, for tests beside ours.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::RealCluster;

const GROUP: &str = "/apis/confidentialcontainers.org/v1alpha1";
const FINALIZER: &str = "peer.pod/finalizer";

/// The definition of `PeerPod` as the existing programs install it: it has no fields of ours, and prunes them.
pub fn existing_definition() -> Value {
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "peerpods.confidentialcontainers.org"},
        "spec": {
            "group": "confidentialcontainers.org",
            "names": {"kind": "PeerPod", "listKind": "PeerPodList", "plural": "peerpods", "singular": "peerpod"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "apiVersion": text,
                        "kind": text,
                        "metadata": {"type": "object"},
                        "spec": {"type": "object", "properties": {"cloudProvider": text, "instanceID": text}},
                        "status": {"type": "object", "properties": {"cleand": {"type": "boolean"}}},
                    },
                }},
            }],
        },
    })
}

/// The object that the existing daemon writes for a pod once its instance runs.
///
/// `suffix` stands for the five random characters of its name.
pub fn existing_peer_pod(pod: &Value, provider: &str, instance: &str, suffix: &str) -> Value {
    let (name, namespace) = (&pod["metadata"]["name"], &pod["metadata"]["namespace"]);
    json!({
        "apiVersion": "confidentialcontainers.org/v1alpha1",
        "kind": "PeerPod",
        "metadata": {
            "name": format!("{}-resource-{suffix}", name.as_str().unwrap_or_default()),
            "namespace": namespace,
            "finalizers": [FINALIZER],
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"],
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"cloudProvider": provider, "instanceID": instance},
    })
}

/// Plays the existing controller's rules, step by step.
#[derive(Debug, Default)]
pub struct ExistingController {
    /// The ids of instances that it had a cloud delete, in order. It asks for an empty id as for any other.
    pub deleted: Vec<String>,
    /// The names of objects that it deleted since it took them for those of an earlier sandbox.
    pub superseded: Vec<String>,
}

impl ExistingController {
    /// Looks at every object once, as it does when each of them changed.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub fn reconcile(&mut self, cluster: &RealCluster) -> Result<()> {
        let all = cluster.list(&format!("{GROUP}/peerpods"))?;
        for object in &all {
            if object["metadata"]["deletionTimestamp"].is_string() {
                self.finish(cluster, object)?;
            } else {
                self.delete_earlier(cluster, object, &all)?;
            }
        }
        Ok(())
    }

    fn delete_earlier(&mut self, cluster: &RealCluster, object: &Value, all: &[Value]) -> Result<()> {
        let owner = |object: &Value| object.pointer("/metadata/ownerReferences/0/uid").cloned();
        let made = |object: &Value| object["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
        let earlier = |other: &&Value| {
            // Times are text of one form, in UTC, so that they compare as text.
            owner(other).is_some() && owner(other) == owner(object) && made(other) < made(object)
        };
        for other in all.iter().filter(earlier) {
            cluster.delete(&path(other)?)?;
            self.superseded.push(other["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        Ok(())
    }

    fn finish(&mut self, cluster: &RealCluster, object: &Value) -> Result<()> {
        let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        self.deleted.push(object["spec"]["instanceID"].as_str().unwrap_or_default().to_owned());
        let mut object = object.clone();
        let others: Vec<Value> = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
        object["metadata"]["finalizers"] = others.into();
        // It writes back what its type has: fields that it does not know are lost.
        let spec = object["spec"].as_object().cloned().unwrap_or_default();
        let known = spec.into_iter().filter(|(key, _)| key == "cloudProvider" || key == "instanceID");
        object["spec"] = Value::Object(known.collect());
        let answer = cluster.request("PUT", &path(&object)?, Some(("application/json", &object)))?;
        // Somebody changed or removed it meanwhile: it looks again the next time.
        if answer.status == 409 || answer.status == 404 { Ok(()) } else { answer.ok().map(drop) }
    }
}

fn path(object: &Value) -> Result<String> {
    let text =
        |key: &str| object["metadata"][key].as_str().with_context(|| format!("an object has no {key}"));
    Ok(format!("{GROUP}/namespaces/{}/peerpods/{}", text("namespace")?, text("name")?))
}
