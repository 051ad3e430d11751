//! One reader of what an object says.

use cloud_providers::{InstanceId, Token};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::{PeerPod, Placement, names};

/// What an object says: its fields, and its annotations where a field is missing.
///
/// A definition that is older than our fields prunes them, and annotations survive. What the existing daemon wrote has
/// neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Name of the provider.
    pub provider: Option<String>,
    /// The instance.
    pub instance: Option<InstanceId>,
    /// Name of the instance.
    pub instance_name: Option<String>,
    /// Id of the sandbox.
    pub sandbox: Option<String>,
    /// The creation token.
    pub token: Option<Token>,
    /// Name of the node.
    pub node: Option<String>,
    /// Name of the provider's configuration.
    pub profile: Option<String>,
    /// Where the instance is.
    pub placement: Option<Placement>,
    /// The pod that it belongs to.
    pub pod: Option<PodOwner>,
    /// See [`crate::rules::is_superseded`].
    pub order: Option<u64>,
    /// Whether a sweep leaves alone what it stands for.
    pub protected: bool,
    /// What is there and cannot be read, for people. Such a fact counts as missing, and never as that of the existing
    /// daemon.
    pub unreadable: Vec<String>,
}

impl Facts {
    /// Reads an object.
    pub fn of(object: &PeerPod) -> Self {
        let spec = &object.spec;
        let annotation = |key: &str| object.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned();
        // An empty text is a missing one: the existing programs write both.
        let either = |field: &Option<String>, key: &str| {
            field.clone().filter(|t| !t.is_empty()).or_else(|| annotation(key)).filter(|t| !t.is_empty())
        };
        let plain = |field: &Option<String>| field.clone().filter(|t| !t.is_empty());
        let mut unreadable = Vec::new();
        let token = either(&spec.token, names::TOKEN).and_then(|text| {
            text.parse().map_err(|e: cloud_providers::Error| unreadable.push(e.to_string())).ok()
        });
        let order = annotation(names::ORDER).and_then(|text| {
            let complaint = |_| unreadable.push(format!("annotation {} is no number: {text}", names::ORDER));
            text.parse().map_err(complaint).ok()
        });
        let placement = spec.placement.clone().filter(|p| !p.is_empty()).or_else(|| {
            let text = annotation(names::PLACEMENT)?;
            let complaint = |e| unreadable.push(format!("annotation {}: {e}", names::PLACEMENT));
            serde_json::from_str(&text).map_err(complaint).ok()
        });
        Self {
            provider: plain(&spec.cloud_provider),
            instance: plain(&spec.instance_id).map(InstanceId::new),
            instance_name: either(&spec.instance_name, names::INSTANCE_NAME),
            sandbox: either(&spec.sandbox_id, names::SANDBOX),
            token,
            node: either(&spec.node_name, names::NODE),
            profile: either(&spec.profile, names::PROFILE),
            placement,
            pod: PodOwner::of(object),
            order,
            protected: annotation(names::PROTECT).is_some_and(|v| v != "false"),
            unreadable,
        }
    }
}

/// The pod that an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodOwner {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodOwner {
    /// Names a pod.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, uid: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), uid: uid.into() }
    }

    /// Reads the owner of an object; `None` where it has none.
    ///
    /// The one that controls it comes first, then any other pod: somebody may have put an owner of another kind in
    /// front.
    pub fn of(object: &PeerPod) -> Option<Self> {
        let pods = || {
            let owners = object.metadata.owner_references.iter().flatten();
            owners.filter(|o| o.kind == "Pod" && o.api_version == "v1" && !o.uid.is_empty())
        };
        let owner = pods().find(|o| o.controller == Some(true)).or_else(|| pods().next())?;
        Some(Self::new(object.metadata.namespace.clone().unwrap_or_default(), &owner.name, &owner.uid))
    }

    /// Returns the reference as the existing daemon writes it.
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}
