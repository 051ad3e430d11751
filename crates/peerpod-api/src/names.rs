//! Names that the programs of a cluster must agree on.

use cloud_providers::tags;
use sha2::{Digest, Sha256};

/// API group of [`crate::PeerPod`].
pub const GROUP: &str = "confidentialcontainers.org";
/// Version of [`crate::PeerPod`].
pub const VERSION: &str = "v1alpha1";
/// Group and version as objects carry them.
pub const API_VERSION: &str = "confidentialcontainers.org/v1alpha1";
/// Kind of [`crate::PeerPod`].
pub const KIND: &str = "PeerPod";
/// Plural of [`KIND`].
pub const PLURAL: &str = "peerpods";
/// Singular of [`KIND`].
pub const SINGULAR: &str = "peerpod";
/// Name of the definition.
pub const CRD: &str = "peerpods.confidentialcontainers.org";

/// Says that an instance exists; whoever removes it has deleted the instance. The existing controller knows it too.
pub const FINALIZER: &str = "peer.pod/finalizer";
/// Says that an instance may come to be, or may have come to be, without a known id. Only our programs know it.
///
/// It is replaced by [`FINALIZER`] in the patch that writes the id, so that the existing controller never sees an object
/// of its own with an empty id, and none of ours stays behind when it takes over.
pub const INTENT_FINALIZER: &str = "peer.pod/intent";

/// Annotation: id of the sandbox.
pub const SANDBOX: &str = "peer.pod/sandbox";
/// Annotation: text of the creation token.
pub const TOKEN: &str = "peer.pod/token";
/// Annotation: name of the node.
pub const NODE: &str = "peer.pod/node";
/// Annotation: name of the instance.
pub const INSTANCE_NAME: &str = "peer.pod/instance-name";
/// Annotation: name of the configuration that the provider was built from, where there are several.
pub const PROFILE: &str = "peer.pod/profile";
/// Annotation: [`crate::Placement`] as JSON.
pub const PLACEMENT: &str = "peer.pod/placement";
/// Annotation: milliseconds since 1970 by the node's clock when the sandbox was planned, and always more than those of
/// the sandboxes that the node knew then; see [`crate::rules::is_superseded`].
pub const ORDER: &str = "peer.pod/order";
/// Annotation: any value but `false` keeps the controller's sweep from deleting what the object stands for.
pub const PROTECT: &str = "peer.pod/protect";

/// Annotation: id of the sandbox, or name of the object, that took an object's place. The controller writes it before it
/// deletes the object.
pub const SUPERSEDED_BY: &str = "peer.pod/superseded-by";

/// Label: [`label_value`] of the sandbox's id.
pub const SANDBOX_LABEL: &str = "peer.pod/sandbox";
/// Label: [`label_value`] of the node's name.
pub const NODE_LABEL: &str = "peer.pod/node";
/// Label: who wrote an object; the value is that of [`DAEMON`] or of the controller.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// The node daemon: field manager of its writes, reporter of its Events, and value of the label `app` of its pods.
pub const DAEMON: &str = "cloud-api-adaptor";
/// The controller: field manager of its writes and reporter of its Events.
pub const CONTROLLER: &str = "peerpod-ctrl";

/// The extended resource that nodes offer and pods ask for: one pod VM.
pub const EXTENDED_RESOURCE: &str = "kata.peerpods.io/vm";
/// Annotation of a node: UID of the daemon's pod that offers [`EXTENDED_RESOURCE`].
pub const RESOURCE_OWNER: &str = "kata.peerpods.io/caa-owner";

/// ConfigMap with the provider's plain settings.
pub const CONFIG_MAP: &str = "peer-pods-cm";
/// Secret with the provider's credentials.
pub const SECRET: &str = "peer-pods-secret";
/// Where the programs are installed when nothing says otherwise.
pub const DEFAULT_NAMESPACE: &str = "confidential-containers-system";
/// Namespace whose UID is the cluster's id by default.
pub const CLUSTER_ID_NAMESPACE: &str = "kube-system";
/// Lease of the controller that leads.
pub const LEADER_LEASE: &str = "33f6c5d6.confidentialcontainers.org";

/// Seconds after which a daemon that did not renew its Lease counts as silent.
pub const HEARTBEAT_SECONDS: i32 = 40;

/// Letters of the random part of names, as the existing programs use them: no vowels, no look-alikes.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The most characters of an object's name.
const NAME_MAX: usize = 253;
/// Characters that stand for the sandbox.
const SANDBOX_CHARS: usize = 10;
/// Between the pod's name and the sandbox's characters.
const INFIX: &str = "-resource-";

/// Returns the name of the one object of a sandbox: `<pod>-resource-<ten characters of the sandbox's hash>`.
///
/// The same sandbox has the same name after any restart, and two sandboxes of one pod have different ones. A long name
/// of a pod loses its end.
///
/// ```
/// let name = peerpod_api::names::object_name("web-0", "0a1b2c3d");
/// assert!(name.starts_with("web-0-resource-"));
/// assert_eq!(name, peerpod_api::names::object_name("web-0", "0a1b2c3d"));
/// ```
pub fn object_name(pod: &str, sandbox: &str) -> String {
    let keep = |c: char| if matches!(c, 'a'..='z' | '0'..='9' | '-' | '.') { c } else { '-' };
    let mut name: String =
        pod.to_lowercase().chars().map(keep).take(NAME_MAX - INFIX.len() - SANDBOX_CHARS).collect();
    // A name begins with a letter or digit, and so does each part between dots end with one.
    let edge = |c: char| !c.is_ascii_alphanumeric();
    name = name.trim_matches(edge).to_owned();
    if name.is_empty() {
        name.push_str("pod");
    }
    let hash = Sha256::digest(sandbox.as_bytes());
    name.push_str(INFIX);
    name.extend(hash.iter().take(SANDBOX_CHARS).map(|b| ALPHABET[usize::from(*b) % ALPHABET.len()] as char));
    name
}

/// Returns `text` as the value of a label: itself where Kubernetes takes it, otherwise its hash.
pub fn label_value(text: &str) -> String {
    tags::encode_value(text)
}

/// Returns the name of the Lease by which the daemon of `node` shows that it lives.
///
/// It is in the daemon's own namespace and has [`MANAGED_BY_LABEL`] = [`DAEMON`] and [`NODE_LABEL`].
pub fn heartbeat_lease(node: &str) -> String {
    format!("{DAEMON}-{}", tags::encode_value(node))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Kubernetes takes as the name of an object.
    fn is_subdomain(name: &str) -> bool {
        let part = |p: &str| {
            p.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && p.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && p.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        name.len() <= 253 && name.split('.').all(part)
    }

    #[test]
    fn two_sandboxes_of_one_pod_have_two_names() {
        assert_ne!(object_name("db-0", "s1"), object_name("db-0", "s2"));
    }

    #[test]
    fn a_name_ends_as_the_existing_daemon_writes_it() {
        let name = object_name("db-0", "s1");
        let tail = name.strip_prefix("db-0-resource-").unwrap();
        assert!(tail.len() == 10 && tail.bytes().all(|b| ALPHABET.contains(&b)), "{name}");
    }

    #[test]
    fn labels_of_a_containerd_sandbox_fit() {
        // 64 hexadecimal digits are one too many for a label.
        assert!(label_value(&"0a".repeat(32)).len() <= 63);
        assert_eq!(label_value("node-1"), "node-1");
    }

    proptest! {
        #[test]
        fn every_pod_gives_a_name_that_kubernetes_takes(
            pod in "[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?){0,3}",
            sandbox in any::<String>(),
        ) {
            let name = object_name(&pod, &sandbox);
            prop_assert!(is_subdomain(&name), "{}", name);
        }

        #[test]
        fn any_text_gives_a_name_within_the_limit(pod in any::<String>(), sandbox in any::<String>()) {
            let name = object_name(&pod, &sandbox);
            prop_assert!(name.len() <= 253 && name.contains(INFIX));
        }
    }
}
