//! The cluster's side of a sandbox, behind a trait. Without Kubernetes nothing is recorded and nothing is known; with it
//! [`crate::kubernetes`] does both.

use std::collections::BTreeSet;

use async_trait::async_trait;

/// Which sandbox a record is for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxRef {
    /// Sandbox id.
    pub sandbox_id: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Text of the creation token.
    pub token: String,
    /// Name of the instance.
    pub instance_name: String,
    /// UID of the pod, where it is known.
    pub pod_uid: Option<String>,
    /// Grows with each sandbox of the node.
    pub order: Option<u64>,
    /// The cloud's id of the instance, once it is known.
    pub instance_id: Option<String>,
    /// The type of the instance, once it is known.
    pub instance_type: Option<String>,
}

impl SandboxRef {
    /// Names a sandbox.
    pub fn new(
        sandbox_id: impl Into<String>,
        pod_name: impl Into<String>,
        pod_namespace: impl Into<String>,
    ) -> Self {
        Self {
            sandbox_id: sandbox_id.into(),
            pod_name: pod_name.into(),
            pod_namespace: pod_namespace.into(),
            token: String::new(),
            instance_name: String::new(),
            pod_uid: None,
            order: None,
            instance_id: None,
            instance_type: None,
        }
    }
}

/// What the people of a pod should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// One word for programs.
    pub reason: &'static str,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// A sentence for people, with the cloud's own words.
    pub message: String,
}

impl Notice {
    /// The instance was made.
    pub fn created(instance: &str, instance_type: Option<&str>) -> Self {
        let of_type = instance_type.map(|t| format!(" of type {t}")).unwrap_or_default();
        Self::new("PodVMCreated", false, format!("the pod VM is instance {instance}{of_type}"))
    }

    /// The start waits for something that takes long.
    pub fn waiting(what: impl Into<String>) -> Self {
        Self::new("PodVMWaiting", false, what.into())
    }

    /// The start failed.
    pub fn start_failed(why: impl Into<String>) -> Self {
        Self::new("PodVMStartFailed", true, why.into())
    }

    /// The deletion failed and is tried again.
    pub fn deletion_pending(why: impl Into<String>) -> Self {
        Self::new("PodVMDeletionPending", true, why.into())
    }

    /// A deletion that had failed succeeded.
    pub fn deleted(tries: u32) -> Self {
        Self::new(
            "PodVMDeleted",
            false,
            format!("the pod VM is deleted at last, after {tries} attempts that failed"),
        )
    }

    /// The VM of a running pod is gone.
    pub fn lost(why: impl Into<String>) -> Self {
        Self::new("PodVMLost", true, why.into())
    }

    fn new(reason: &'static str, warning: bool, message: String) -> Self {
        Self { reason, warning, message }
    }
}

/// Which pod is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodRef {
    /// The sandbox that serves it.
    pub sandbox_id: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID, where it is known.
    pub uid: Option<String>,
}

impl PodRef {
    /// Names a pod.
    pub fn new(
        sandbox_id: impl Into<String>,
        name: impl Into<String>,
        namespace: impl Into<String>,
        uid: Option<String>,
    ) -> Self {
        Self { sandbox_id: sandbox_id.into(), name: name.into(), namespace: namespace.into(), uid }
    }

    /// Whether it is gone where the cluster has a pod of this name with the UID `found`, or none. A new pod of the same
    /// name, as a StatefulSet makes it, is another one.
    pub fn is_gone(&self, found: Option<&str>) -> bool {
        match (found, &self.uid) {
            (None, _) => true,
            (Some(found), Some(uid)) => found != uid,
            (Some(_), None) => false,
        }
    }
}

/// What the daemon asks of the cluster and writes into it.
#[async_trait]
pub trait ClusterRecord: Send + Sync {
    /// Returns the UID of a pod, `None` where there is no cluster.
    ///
    /// # Errors
    ///
    /// When there is a cluster and it does not answer.
    async fn pod_uid(&self, namespace: &str, name: &str) -> anyhow::Result<Option<String>>;

    /// Returns the pod's registry credentials as the text of `auth.json`, `None` when it has none.
    ///
    /// # Errors
    ///
    /// When they cannot be read; the pod starts without them.
    async fn pull_secrets(&self, namespace: &str, name: &str) -> anyhow::Result<Option<String>>;

    /// Returns the sandboxes whose pods are gone, by one question for all of them; `None` where nobody knows.
    ///
    /// A pod that is being deleted is not gone: the kubelet still stops it. See [`PodRef::is_gone`].
    ///
    /// # Errors
    ///
    /// When there is a cluster and it does not answer: then nothing is known.
    async fn gone_pods(&self, pods: &[PodRef]) -> anyhow::Result<Option<BTreeSet<String>>> {
        let _ = pods;
        Ok(None)
    }

    /// Writes down the intent, before anything is made in the cloud.
    ///
    /// # Errors
    ///
    /// When the record could not be written; nothing is made then.
    async fn claim(&self, sandbox: &SandboxRef) -> anyhow::Result<()>;

    /// Adds the instance's id once it is known.
    ///
    /// # Errors
    ///
    /// When the record could not be changed.
    async fn bind(&self, sandbox: &SandboxRef, instance_id: &str) -> anyhow::Result<()>;

    /// Removes the record, after the cloud said that everything is gone.
    ///
    /// # Errors
    ///
    /// When it could not be removed; the caller tries again.
    async fn release(&self, sandbox: &SandboxRef) -> anyhow::Result<()>;

    /// Tells the people of the pod, as an Event on it. Returns at once, and nothing depends on it.
    fn tell(&self, sandbox: &SandboxRef, notice: Notice) {
        let _ = (sandbox, notice);
    }
}

/// There is no cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCluster;

#[async_trait]
impl ClusterRecord for NoCluster {
    async fn pod_uid(&self, _: &str, _: &str) -> anyhow::Result<Option<String>> {
        Ok(None)
    }

    async fn pull_secrets(&self, _: &str, _: &str) -> anyhow::Result<Option<String>> {
        Ok(None)
    }

    async fn claim(&self, _: &SandboxRef) -> anyhow::Result<()> {
        Ok(())
    }

    async fn bind(&self, _: &SandboxRef, _: &str) -> anyhow::Result<()> {
        Ok(())
    }

    async fn release(&self, _: &SandboxRef) -> anyhow::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_pod_of_the_same_name_is_another_one() {
        let known = PodRef::new("s1", "db-0", "default", Some("uid-1".into()));
        assert!(known.is_gone(None) && known.is_gone(Some("uid-2")));
        assert!(!known.is_gone(Some("uid-1")));
        let unknown = PodRef::new("s1", "db-0", "default", None);
        assert!(unknown.is_gone(None));
        assert!(!unknown.is_gone(Some("uid-2")), "it may be the one");
    }
}
