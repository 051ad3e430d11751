//! The early object, and the patches of what comes later, as data.
//!
//! Patches are merge patches that name UID and resource version: a server refuses them (409) when the object changed or is
//! another one of the same name, and whoever wrote reads again and decides again. Finalizers of others stay.
//!
//! A server takes no new finalizer for an object that is being deleted: it refuses [`bind`] then (422), and the intent
//! stays until the token is released. `tests/objects.rs` has what a real server answers.

use std::collections::BTreeMap;

use cloud_providers::{InstanceId, Token};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::{PeerPod, PeerPodSpec, Placement, PodOwner, names};

/// What is known before anything is made in the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// Id of the sandbox.
    pub sandbox: String,
    /// The creation token.
    pub token: Token,
    /// The pod.
    pub pod: PodOwner,
    /// Name of the provider.
    pub provider: String,
    /// Name of the node.
    pub node: Option<String>,
    /// Name that the instance will have.
    pub instance_name: Option<String>,
    /// Name of the provider's configuration.
    pub profile: Option<String>,
    /// Grows with each sandbox of the node, see [`crate::rules::is_superseded`].
    pub order: Option<u64>,
}

impl Claim {
    /// Names what must be known.
    pub fn new(sandbox: impl Into<String>, token: Token, pod: PodOwner) -> Self {
        Self {
            sandbox: sandbox.into(),
            token,
            pod,
            provider: String::new(),
            node: None,
            instance_name: None,
            profile: None,
            order: None,
        }
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let all = [
            (names::SANDBOX, Some(self.sandbox.clone())),
            (names::TOKEN, Some(self.token.to_string())),
            (names::NODE, self.node.clone()),
            (names::INSTANCE_NAME, self.instance_name.clone()),
            (names::PROFILE, self.profile.clone()),
            (names::ORDER, self.order.map(|n| n.to_string())),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    fn spec(&self) -> PeerPodSpec {
        PeerPodSpec {
            cloud_provider: Some(self.provider.clone()).filter(|p| !p.is_empty()),
            instance_id: None,
            sandbox_id: Some(self.sandbox.clone()),
            token: Some(self.token.to_string()),
            node_name: self.node.clone(),
            instance_name: self.instance_name.clone(),
            profile: self.profile.clone(),
            placement: None,
        }
    }
}

/// Returns the object to be created before anything is made in the cloud: no id, and only the finalizer that the existing
/// controller does not know.
pub fn early(claim: &Claim) -> PeerPod {
    let mut labels = BTreeMap::from([
        (names::MANAGED_BY_LABEL.to_owned(), names::DAEMON.to_owned()),
        (names::SANDBOX_LABEL.to_owned(), names::label_value(&claim.sandbox)),
    ]);
    if let Some(node) = &claim.node {
        labels.insert(names::NODE_LABEL.to_owned(), names::label_value(node));
    }
    let metadata = ObjectMeta {
        name: Some(names::object_name(&claim.pod.name, &claim.sandbox)),
        namespace: Some(claim.pod.namespace.clone()),
        finalizers: Some(vec![names::INTENT_FINALIZER.to_owned()]),
        owner_references: Some(vec![claim.pod.reference()]),
        annotations: Some(claim.annotations()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    PeerPod { metadata, spec: claim.spec(), status: None }
}

/// Returns the patch that makes an existing object of the same sandbox say what `claim` says; `None` where it does.
///
/// A start that is repeated, after a crash or with a later attempt, finds its object.
pub fn claim_again(object: &PeerPod, claim: &Claim) -> Option<Value> {
    let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
    if crate::rules::stage(object) == crate::rules::Stage::Done {
        finalizers.push(names::INTENT_FINALIZER.to_owned());
    }
    let wanted = claim.annotations();
    let have = object.metadata.annotations.clone().unwrap_or_default();
    let said = wanted.iter().all(|(key, value)| have.get(key) == Some(value));
    if said && Some(&finalizers) == object.metadata.finalizers.as_ref() {
        return None;
    }
    let mut patch = guarded(object, &finalizers);
    patch["metadata"]["annotations"] = json!(wanted);
    patch["spec"] = json!(claim.spec());
    Some(patch)
}

/// Returns the one patch that writes the instance's id and replaces our own finalizer by the one that every controller
/// knows; `None` where the object says so already.
pub fn bind(object: &PeerPod, id: &InstanceId, placement: &Placement) -> Option<Value> {
    let mut finalizers = without(object, &[names::INTENT_FINALIZER]);
    if !finalizers.iter().any(|f| f == names::FINALIZER) {
        finalizers.push(names::FINALIZER.to_owned());
    }
    let said = object.spec.instance_id.as_deref() == Some(id.as_str());
    if said && Some(&finalizers) == object.metadata.finalizers.as_ref() {
        return None;
    }
    let mut patch = guarded(object, &finalizers);
    patch["spec"] = json!({"instanceID": id.as_str()});
    if !placement.is_empty() {
        patch["spec"]["placement"] = json!(placement);
        patch["metadata"]["annotations"] = json!({names::PLACEMENT: json!(placement).to_string()});
    }
    Some(patch)
}

/// Returns the patch that removes our finalizers and no others; `None` where there are none.
///
/// Only after [`crate::rules::may_finalizer_go`].
pub fn release(object: &PeerPod) -> Option<Value> {
    let finalizers = without(object, &[names::INTENT_FINALIZER, names::FINALIZER]);
    let none_was_ours = finalizers.len() == object.metadata.finalizers.iter().flatten().count();
    (!none_was_ours).then(|| guarded(object, &finalizers))
}

fn without(object: &PeerPod, gone: &[&str]) -> Vec<String> {
    object.metadata.finalizers.iter().flatten().filter(|f| !gone.contains(&f.as_str())).cloned().collect()
}

fn guarded(object: &PeerPod, finalizers: &[String]) -> Value {
    json!({"metadata": {
        "uid": object.metadata.uid,
        "resourceVersion": object.metadata.resource_version,
        "finalizers": finalizers,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Facts, Stage, rules};
    use cloud_providers::Scope;

    fn claim() -> Claim {
        let token = Token::new(Scope::Cluster("c1".into()), "s1", 1);
        Claim {
            provider: "aws".into(),
            node: Some("Node.1".into()),
            instance_name: Some("podvm-web-s1".into()),
            profile: Some("gpu".into()),
            order: Some(7),
            ..Claim::new("s1", token, PodOwner::new("shop", "web", "uid-1"))
        }
    }

    fn stored(mut object: PeerPod) -> PeerPod {
        (object.metadata.uid, object.metadata.resource_version) = (Some("u".into()), Some("5".into()));
        object
    }

    /// What a server makes of a merge patch; a definition that is older than our fields drops them.
    fn patched(object: &PeerPod, patch: &Value, older: bool) -> PeerPod {
        fn merge(target: &mut Value, patch: &Value) {
            let Value::Object(changes) = patch else { return target.clone_from(patch) };
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in changes {
                match value {
                    Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
                    _ => merge(&mut target[key], value),
                }
            }
        }
        let mut value = serde_json::to_value(object).unwrap();
        merge(&mut value, patch);
        let object = serde_json::from_value(value).unwrap();
        if older { pruned(object) } else { object }
    }

    fn pruned(mut object: PeerPod) -> PeerPod {
        object.spec = PeerPodSpec {
            cloud_provider: object.spec.cloud_provider,
            instance_id: object.spec.instance_id,
            ..PeerPodSpec::default()
        };
        object
    }

    #[test]
    fn an_older_definition_loses_no_fact() {
        let placement = Placement { zone: Some("z1".into()), ..Placement::default() };
        let whole = stored(early(&claim()));
        let small = pruned(whole.clone());
        assert_ne!(whole.spec, small.spec);
        assert_eq!(Facts::of(&whole), Facts::of(&small));
        let bound = |object: &PeerPod, older| {
            let patch = bind(object, &InstanceId::new("i-1"), &placement).unwrap();
            patched(object, &patch, older)
        };
        let facts = Facts::of(&bound(&small, true));
        assert_eq!(facts, Facts::of(&bound(&whole, false)));
        assert_eq!(facts.placement, Some(placement.clone()));
        assert_eq!((facts.node.as_deref(), facts.order), (Some("Node.1"), Some(7)));
        assert!(facts.unreadable.is_empty());
    }

    #[test]
    fn the_early_object_means_nothing_to_the_existing_controller() {
        let object = early(&claim());
        assert!(object.spec.instance_id.is_none());
        assert!(!object.metadata.finalizers.unwrap().contains(&names::FINALIZER.to_owned()));
        // The existing controller looks at the first owner.
        let owner = &object.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Pod", "uid-1"));
        assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
    }

    #[test]
    fn one_patch_sets_id_and_finalizer_and_takes_ours_away() {
        let mut object = stored(early(&claim()));
        object.metadata.finalizers.as_mut().unwrap().insert(0, "foreign/one".into());
        let patch = bind(&object, &InstanceId::new("i-1"), &Placement::default()).unwrap();
        assert_eq!(patch["metadata"]["finalizers"], json!(["foreign/one", "peer.pod/finalizer"]));
        assert_eq!(
            (&patch["metadata"]["uid"], &patch["metadata"]["resourceVersion"]),
            (&json!("u"), &json!("5"))
        );
        assert_eq!(patch["spec"], json!({"instanceID": "i-1"}));
        let after = patched(&object, &patch, false);
        assert_eq!(rules::stage(&after), Stage::Bound);
        assert_eq!(bind(&after, &InstanceId::new("i-1"), &Placement::default()), None, "said already");
    }

    #[test]
    fn a_release_leaves_the_finalizers_of_others() {
        let mut object = stored(early(&claim()));
        object.metadata.finalizers =
            Some(vec!["a/b".into(), names::FINALIZER.into(), names::INTENT_FINALIZER.into(), "c/d".into()]);
        let patch = release(&object).unwrap();
        assert_eq!(patch["metadata"]["finalizers"], json!(["a/b", "c/d"]));
        let after = patched(&object, &patch, false);
        assert_eq!(rules::stage(&after), Stage::Done);
        assert_eq!(release(&after), None);
        assert_eq!(release(&PeerPod::default()), None, "no list at all");
    }

    #[test]
    fn a_repeated_claim_changes_only_what_is_new() {
        let object = stored(early(&claim()));
        assert_eq!(claim_again(&object, &claim()), None);
        let mut later = claim();
        later.token.attempt = 2;
        let patch = claim_again(&object, &later).unwrap();
        let after = patched(&object, &patch, false);
        assert_eq!(Facts::of(&after).token, Some(later.token.clone()));
        assert_eq!(rules::stage(&after), Stage::Intent);
        // One that was released meanwhile gets its finalizer back, on a definition of any age.
        let released = pruned(patched(&object, &release(&object).unwrap(), true));
        let again = patched(&released, &claim_again(&released, &claim()).unwrap(), true);
        assert_eq!(rules::stage(&again), Stage::Intent);
    }
}
