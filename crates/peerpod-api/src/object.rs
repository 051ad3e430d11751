//! The type of the objects and its definition.

use std::borrow::Cow;

use k8s_openapi::{
    NamespaceResourceScope,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::Resource;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};
use serde_json::{Value, json};

use crate::names;

/// Records one pod VM: the intent to make it, the instance once there is one, and what became of its deletion.
///
/// Read it through [`crate::Facts`]. An object without `spec` is read as an empty one: one odd object in a list must
/// not hide all others.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct PeerPod {
    /// Name, owner, finalizers, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it stands for.
    #[serde(default)]
    pub spec: PeerPodSpec,
    /// What the controller found.
    #[serde(default)]
    pub status: Option<PeerPodStatus>,
}

/// What a [`PeerPod`] stands for. Every field may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerPodSpec {
    /// Name of the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud_provider: Option<String>,
    /// The cloud's id of the instance; missing until there is one.
    #[serde(rename = "instanceID", skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Id of the sandbox.
    #[serde(rename = "sandboxID", skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Text of the creation token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Name of the node whose daemon wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Name of the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_name: Option<String>,
    /// Name of the configuration that the provider was built from, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Where the instance is and of which type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// Where an instance is and of which type, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Placement {
    /// The cloud's region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The cloud's zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The type that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
}

impl Placement {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the controller found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerPodStatus {
    /// Of the existing definition, spelled as there; nobody writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleand: Option<bool>,
    /// The generation of the spec that the conditions are about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Types are those of [`condition`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Types of conditions.
pub mod condition {
    /// `True` while the instance is still to be deleted; reason and message say what the cloud answered last.
    pub const DELETION_PENDING: &str = "DeletionPending";
    /// `True` while somebody has to mend something before the object can go; the message says what.
    pub const STUCK: &str = "Stuck";
    /// `True` when a later sandbox of the same pod took over.
    pub const SUPERSEDED: &str = "Superseded";
}

impl PeerPod {
    /// Makes an object without an owner.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, spec: PeerPodSpec) -> Self {
        let metadata = ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(name.into()),
            ..ObjectMeta::default()
        };
        Self { metadata, spec, status: None }
    }
}

impl Serialize for PeerPod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct(names::KIND, 5)?;
        object.serialize_field("apiVersion", names::API_VERSION)?;
        object.serialize_field("kind", names::KIND)?;
        object.serialize_field("metadata", &self.metadata)?;
        object.serialize_field("spec", &self.spec)?;
        match &self.status {
            Some(status) => object.serialize_field("status", status)?,
            None => object.skip_field("status")?,
        }
        object.end()
    }
}

impl Resource for PeerPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        names::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        names::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        names::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        names::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Returns the definition, to be applied to a cluster. It replaces the existing one: stored objects stay valid.
pub fn crd() -> CustomResourceDefinition {
    let column = |name: &str, path: &str, kind: &str, priority: i32, description: &str| json!({"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description});
    let definition = json!({
        "metadata": {"name": names::CRD},
        "spec": {
            "group": names::GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names::KIND,
                "listKind": "PeerPodList",
                "plural": names::PLURAL,
                "singular": names::SINGULAR,
            },
            "versions": [{
                "name": names::VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema()},
                "additionalPrinterColumns": [
                    column("Provider", ".spec.cloudProvider", "string", 0, "provider that made the instance"),
                    column("Instance", ".spec.instanceID", "string", 0, "the cloud's id of the instance"),
                    column("Node", ".spec.nodeName", "string", 0, "node whose daemon serves the pod"),
                    column(
                        "Pending",
                        ".status.conditions[?(@.type==\"DeletionPending\")].reason",
                        "string",
                        0,
                        "why the instance is not deleted yet",
                    ),
                    column("Age", ".metadata.creationTimestamp", "date", 0, "time since the intent was recorded"),
                    column("Type", ".spec.placement.instanceType", "string", 1, "type of the instance"),
                    column("Zone", ".spec.placement.zone", "string", 1, "zone of the instance"),
                    column("Sandbox", ".spec.sandboxID", "string", 1, "id of the sandbox"),
                ],
            }],
        },
    });
    serde_json::from_value(definition).expect("the definition is one of this version of Kubernetes")
}

/// The schema of an object. Nothing is required, as in the existing definition.
fn schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "Records one pod VM of a cloud.",
        "properties": {
            "apiVersion": text("Version of the schema of this object."),
            "kind": text("Kind of this object."),
            "metadata": {"type": "object"},
            "spec": {
                "type": "object",
                "description": "What the object stands for.",
                "properties": {
                    "cloudProvider": text("Name of the provider."),
                    "instanceID": text("The cloud's id of the instance; missing until there is one."),
                    "sandboxID": text("Id of the sandbox."),
                    "token": text("Text of the creation token, which every resource in the cloud carries."),
                    "nodeName": text("Name of the node whose daemon wrote it."),
                    "instanceName": text("Name of the instance."),
                    "profile": text("Name of the configuration of the provider, where there are several."),
                    "placement": {
                        "type": "object",
                        "description": "Where the instance is and of which type, as far as it is known.",
                        "properties": {
                            "region": text("The cloud's region."),
                            "zone": text("The cloud's zone."),
                            "instanceType": text("The type that was chosen."),
                        },
                    },
                },
            },
            "status": {
                "type": "object",
                "description": "What the controller found.",
                "properties": {
                    "cleand": {"type": "boolean", "description": "Not used."},
                    "observedGeneration": {
                        "type": "integer",
                        "format": "int64",
                        "description": "The generation of the spec that the conditions are about.",
                    },
                    "conditions": {
                        "type": "array",
                        "description": "What is to be known about the object.",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["type"],
                        "items": {
                            "type": "object",
                            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
                            "properties": {
                                "type": text("Name of the condition."),
                                "status": {
                                    "type": "string",
                                    "enum": ["True", "False", "Unknown"],
                                    "description": "Whether it holds.",
                                },
                                "reason": text("One word for programs."),
                                "message": text("A sentence for people."),
                                "lastTransitionTime": {
                                    "type": "string",
                                    "format": "date-time",
                                    "description": "When the status changed last.",
                                },
                                "observedGeneration": {
                                    "type": "integer",
                                    "format": "int64",
                                    "description": "The generation of the spec that it is about.",
                                },
                            },
                        },
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    /// An object with every field.
    fn full() -> PeerPod {
        let some = |text: &str| Some(text.to_owned());
        let mut object = PeerPod::new(
            "shop",
            "web-0-resource-x",
            PeerPodSpec {
                cloud_provider: some("aws"),
                instance_id: some("i-1"),
                sandbox_id: some("s1"),
                token: some("cluster:c/s1/1"),
                node_name: some("node-1"),
                instance_name: some("podvm-web-0-s1"),
                profile: some("gpu"),
                placement: Some(Placement {
                    region: some("r"),
                    zone: some("z"),
                    instance_type: some("m6a.large"),
                }),
            },
        );
        object.status = Some(PeerPodStatus {
            cleand: Some(false),
            observed_generation: Some(1),
            conditions: vec![Condition {
                type_: condition::DELETION_PENDING.into(),
                status: "True".into(),
                reason: "throttled".into(),
                message: "the cloud is busy".into(),
                observed_generation: Some(1),
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
            }],
        });
        object
    }

    /// Fails for a key of `value` that `schema` does not have, since the server would prune it.
    fn fits(value: &Value, schema: &Value, path: &str) {
        match value {
            Value::Object(map) if path != "/metadata" => {
                for (key, inner) in map {
                    let path = format!("{path}/{key}");
                    let known = schema["properties"].get(key);
                    fits(inner, known.unwrap_or_else(|| panic!("{path} is not in the definition")), &path);
                }
                let have: Vec<_> = map.keys().collect();
                for key in schema["properties"].as_object().unwrap().keys() {
                    assert!(have.contains(&key), "{path}/{key} is in the definition only");
                }
            }
            Value::Array(items) => items.iter().for_each(|item| fits(item, &schema["items"], path)),
            _ => {}
        }
    }

    #[test]
    fn the_definition_has_exactly_the_fields_of_the_type() {
        fits(&serde_json::to_value(full()).unwrap(), &schema(), "");
    }

    #[test]
    fn an_object_survives_its_text_form() {
        let text = serde_json::to_string(&full()).unwrap();
        assert_eq!(serde_json::from_str::<PeerPod>(&text).unwrap(), full());
    }

    #[test]
    fn an_object_of_the_existing_daemon_is_read_and_written_alike() {
        let text = r#"{"apiVersion":"confidentialcontainers.org/v1alpha1","kind":"PeerPod","metadata":
            {"name":"web-0-resource-b4x7z","namespace":"shop","finalizers":["peer.pod/finalizer"]},
            "spec":{"cloudProvider":"libvirt","instanceID":"i1"},"status":{"cleand":false}}"#;
        let object: PeerPod = serde_json::from_str(text).unwrap();
        assert_eq!(object.spec.instance_id.as_deref(), Some("i1"));
        let written = serde_json::to_value(&object).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn an_object_without_spec_is_an_empty_one() {
        let object: PeerPod = serde_json::from_str(r#"{"metadata":{"name":"x"}}"#).unwrap();
        assert_eq!(object.spec, PeerPodSpec::default());
    }

    #[test]
    fn the_definition_is_the_existing_one_by_name() {
        let definition = crd();
        assert_eq!(definition.metadata.name.as_deref(), Some("peerpods.confidentialcontainers.org"));
        assert_eq!(
            PeerPod::url_path(&(), Some("shop")),
            "/apis/confidentialcontainers.org/v1alpha1/namespaces/shop/peerpods"
        );
        let version = &definition.spec.versions[0];
        assert!(version.name == "v1alpha1" && version.served && version.storage);
        assert!(version.subresources.as_ref().unwrap().status.is_some());
    }
}
