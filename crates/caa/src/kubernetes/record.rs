//! The record of one sandbox: written before the VM, bound to it, released after it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Result;
use async_trait::async_trait;
use cloud_providers::{InstanceId, Token};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use peerpod_api::{Claim, Facts, Gone, PeerPod, Placement, PodOwner, names, rules, writes};
use tokio::sync::mpsc;

use super::{
    api::{Api, ApiError, ApiResult, patiently},
    auth::AuthJson,
    events::{self, Told},
};
use crate::cluster::{ClusterRecord, Notice, PodRef, SandboxRef};

/// How long the cluster is waited for in the course of a start. The caller gives up a little later, with less to tell.
const START_LIMIT: Duration = Duration::from_secs(25);
/// How long image pull secrets are waited for; a pod of a public image needs none.
const SECRETS_LIMIT: Duration = Duration::from_secs(10);
/// How long one attempt to release a record may take; the caller tries again.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);
/// How long the question for lost pods may take.
const PODS_LIMIT: Duration = Duration::from_secs(8);
/// How many pods are read at the same time.
const PODS_AT_ONCE: usize = 8;

/// Who this daemon is, in the words of the cluster.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// Name of the node.
    pub node: String,
    /// Name of the provider.
    pub provider: String,
    /// Where its Lease is.
    pub namespace: String,
    /// UID of the pod in which it runs, or a number of its own.
    pub owner: String,
    /// Name of the provider's configuration, where a cluster has several.
    pub profile: Option<String>,
}

impl Identity {
    /// Names a daemon in the namespace in which the existing one is installed.
    pub fn new(node: impl Into<String>, provider: impl Into<String>, owner: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            provider: provider.into(),
            namespace: names::DEFAULT_NAMESPACE.into(),
            owner: owner.into(),
            profile: None,
        }
    }
}

/// Records sandboxes as [`PeerPod`] objects.
pub struct Kubernetes {
    api: Arc<dyn Api>,
    who: Identity,
    notices: mpsc::Sender<Told>,
}

impl Kubernetes {
    /// Records sandboxes through `api`. Events are told by a task that ends when this value does.
    pub fn new(api: Arc<dyn Api>, who: Identity) -> Self {
        let notices = events::spawn(api.clone(), &who);
        Self { api, who, notices }
    }

    /// Returns the pod of a sandbox that is about to have a VM.
    async fn owner(&self, sandbox: &SandboxRef) -> ApiResult<PodOwner> {
        let (namespace, name) = (&sandbox.pod_namespace, &sandbox.pod_name);
        if let Some(uid) = &sandbox.pod_uid {
            return Ok(PodOwner::new(namespace, name, uid));
        }
        let pod = self.api.pod(namespace, name).await?;
        let uid = pod.and_then(|pod| pod.metadata.uid).ok_or_else(|| no_such_pod(namespace, name))?;
        Ok(PodOwner::new(namespace, name, uid))
    }

    fn claim_of(&self, sandbox: &SandboxRef, token: &Token, pod: PodOwner) -> Claim {
        let mut claim = Claim::new(&sandbox.sandbox_id, token.clone(), pod);
        claim.provider.clone_from(&self.who.provider);
        claim.node = Some(self.who.node.clone());
        claim.instance_name = Some(sandbox.instance_name.clone()).filter(|n| !n.is_empty());
        claim.order = sandbox.order;
        claim.profile.clone_from(&self.who.profile);
        claim
    }

    /// Creates the record, or makes the one that is there say the same.
    async fn try_claim(&self, sandbox: &SandboxRef, token: &Token) -> ApiResult<()> {
        let claim = self.claim_of(sandbox, token, self.owner(sandbox).await?);
        match self.api.create_record(&writes::early(&claim)).await {
            Err(ApiError::Exists) => {}
            Err(ApiError::NoSuchKind) => {
                tracing::warn!(
                    sandbox_id = %sandbox.sandbox_id,
                    "the pod VM is not recorded in the cluster, and nothing cleans up when this node is lost: {}",
                    ApiError::NoSuchKind
                );
                return Ok(());
            }
            other => return other,
        }
        let Some(record) = self.read(sandbox).await? else {
            return Err(ApiError::Conflict("the record came and went".into()));
        };
        if rules::is_deleting(&record) {
            return Err(ApiError::Refused(
                "the record of the sandbox is being deleted, since its pod is gone".into(),
            ));
        }
        match writes::claim_again(&record, &claim) {
            Some(patch) => self.patch(&record, &patch).await,
            None => Ok(()),
        }
    }

    async fn try_bind(&self, sandbox: &SandboxRef, id: &InstanceId) -> ApiResult<()> {
        let record = match self.read(sandbox).await {
            Err(ApiError::NoSuchKind) => return Ok(()),
            other => other?,
        };
        let Some(record) = record else {
            return Err(ApiError::NotFound("the record of the sandbox is gone, and with it its pod".into()));
        };
        if rules::is_deleting(&record) {
            return Err(ApiError::Refused("the pod was deleted while its VM was made".into()));
        }
        let mut placement = Placement::default();
        placement.instance_type.clone_from(&sandbox.instance_type);
        match writes::bind(&record, id, &placement) {
            Some(patch) => self.patch(&record, &patch).await,
            None => Ok(()),
        }
    }

    async fn try_release(&self, sandbox: &SandboxRef, gone: &Gone) -> ApiResult<()> {
        let record = match self.read(sandbox).await {
            Err(ApiError::NoSuchKind) => return Ok(()),
            other => other?,
        };
        let Some(record) = record else { return Ok(()) };
        if !rules::may_finalizer_go(&record, gone) {
            let facts = Facts::of(&record);
            return Err(ApiError::Refused(format!(
                "the record {} names instance {} and another token than this sandbox: look at it, and remove its \
                 finalizers when the instance is gone",
                record.metadata.name.as_deref().unwrap_or_default(),
                facts.instance.map_or_else(|| "(none)".into(), |id| id.to_string()),
            )));
        }
        if let Some(patch) = writes::release(&record) {
            match self.patch(&record, &patch).await {
                // Its pod went before, and this finalizer was the last thing that held it.
                Err(ApiError::NotFound(_)) => return Ok(()),
                other => other?,
            }
        }
        if rules::is_deleting(&record) {
            return Ok(());
        }
        // The pod may live on with a new sandbox; the record of this one is of no use to anybody.
        let (namespace, name, uid) = key(&record);
        match self.api.delete_record(namespace, name, uid).await {
            Err(ApiError::Forbidden(text)) => {
                tracing::debug!(text, "records go with their pods, since this daemon may not delete them");
                Ok(())
            }
            Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
            other => other,
        }
    }

    /// Reads the record of a sandbox.
    async fn read(&self, sandbox: &SandboxRef) -> ApiResult<Option<PeerPod>> {
        let name = names::object_name(&sandbox.pod_name, &sandbox.sandbox_id);
        let Some(record) = self.api.record(&sandbox.pod_namespace, &name).await? else { return Ok(None) };
        // Names are hashes, and somebody may write any object.
        match Facts::of(&record).sandbox {
            Some(found) if found == sandbox.sandbox_id => Ok(Some(record)),
            found => Err(ApiError::Refused(format!(
                "the record {name} is of another sandbox ({}): delete it when its instance is gone",
                found.as_deref().unwrap_or("none is named")
            ))),
        }
    }

    async fn patch(&self, record: &PeerPod, patch: &serde_json::Value) -> ApiResult<()> {
        let (namespace, name, _) = key(record);
        self.api.patch_record(namespace, name, patch).await
    }

    /// Reads the pods that a list of the node does not have: only the pod itself says that it is gone.
    async fn confirm(&self, missing: Vec<&PodRef>) -> ApiResult<BTreeSet<String>> {
        let look = |pod: &PodRef| {
            let (api, pod) = (self.api.clone(), pod.clone());
            async move {
                let found = api.pod(&pod.namespace, &pod.name).await?;
                let uid = found.and_then(|found| found.metadata.uid);
                Ok::<_, ApiError>(pod.is_gone(uid.as_deref()).then_some(pod.sandbox_id))
            }
        };
        let looks = stream::iter(missing.into_iter().map(look).collect::<Vec<_>>());
        let gone: Vec<Option<String>> = looks.buffer_unordered(PODS_AT_ONCE).try_collect().await?;
        Ok(gone.into_iter().flatten().collect())
    }
}

#[async_trait]
impl ClusterRecord for Kubernetes {
    async fn pod_uid(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        let ask = || async {
            let pod = self.api.pod(namespace, name).await?;
            pod.and_then(|pod| pod.metadata.uid).ok_or_else(|| no_such_pod(namespace, name))
        };
        patiently("look up the pod", START_LIMIT, ask).await.map(Some)
    }

    async fn pull_secrets(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        let ask = || async {
            let Some(pod) = self.api.pod(namespace, name).await? else { return Ok(Vec::new()) };
            let spec = pod.spec.unwrap_or_default();
            let account = spec.service_account_name.filter(|n| !n.is_empty()).unwrap_or("default".into());
            let account = self.api.service_account(namespace, &account).await?;
            // Those of the pod come last and count.
            let of_account = account.and_then(|a| a.image_pull_secrets).unwrap_or_default();
            let wanted = of_account.into_iter().chain(spec.image_pull_secrets.unwrap_or_default());
            let mut names: Vec<String> = Vec::new();
            for name in wanted.map(|reference| reference.name) {
                names.retain(|n| *n != name);
                names.push(name);
            }
            let mut secrets = Vec::new();
            for name in names.into_iter().filter(|n| !n.is_empty()) {
                match self.api.secret(namespace, &name).await? {
                    Some(secret) => secrets.push((name, secret)),
                    None => tracing::debug!(namespace, secret = name, "an image pull secret is not there"),
                }
            }
            Ok(secrets)
        };
        let secrets = patiently("read image pull secrets", SECRETS_LIMIT, ask).await?;
        let mut all = AuthJson::default();
        for (name, secret) in secrets {
            if let Err(error) = all.add(&secret) {
                tracing::warn!(namespace, secret = name, %error, "an image pull secret is left out");
            }
        }
        Ok(all.text())
    }

    async fn gone_pods(&self, pods: &[PodRef]) -> Result<Option<BTreeSet<String>>> {
        let ask = || async {
            let there = self.api.pods_of_node(&self.who.node).await?;
            let is_there = |pod: &PodRef| there.iter().any(|found| is_same(found, pod));
            self.confirm(pods.iter().filter(|pod| !is_there(pod)).collect()).await
        };
        // Once: whoever asks does so again and again.
        match tokio::time::timeout(PODS_LIMIT, ask()).await {
            Ok(answer) => Ok(Some(answer?)),
            Err(_) => anyhow::bail!("no answer came within {PODS_LIMIT:?}"),
        }
    }

    async fn claim(&self, sandbox: &SandboxRef) -> Result<()> {
        let token: Token = sandbox.token.parse()?;
        patiently("record the pod VM", START_LIMIT, || self.try_claim(sandbox, &token)).await
    }

    async fn bind(&self, sandbox: &SandboxRef, instance_id: &str) -> Result<()> {
        let id = InstanceId::new(instance_id);
        patiently("record the instance", START_LIMIT, || self.try_bind(sandbox, &id)).await
    }

    async fn release(&self, sandbox: &SandboxRef) -> Result<()> {
        let gone = Gone {
            instance: sandbox.instance_id.clone().map(InstanceId::new),
            token: sandbox.token.parse().ok(),
        };
        patiently("release the record", RELEASE_LIMIT, || self.try_release(sandbox, &gone)).await
    }

    fn tell(&self, sandbox: &SandboxRef, notice: Notice) {
        // A full queue is a cluster that does not answer; the log has it all.
        let told = Told { sandbox: sandbox.clone(), notice };
        if self.notices.try_send(told).is_err() {
            tracing::debug!(sandbox_id = %sandbox.sandbox_id, "an Event is left out: the cluster does not take them");
        }
    }
}

fn no_such_pod(namespace: &str, name: &str) -> ApiError {
    ApiError::NotFound(format!("pod {namespace}/{name} is not in the cluster"))
}

fn is_same(found: &Pod, pod: &PodRef) -> bool {
    let meta = &found.metadata;
    meta.name.as_deref() == Some(&pod.name)
        && meta.namespace.as_deref() == Some(&pod.namespace)
        && !pod.is_gone(meta.uid.as_deref())
}

fn key(record: &PeerPod) -> (&str, &str, &str) {
    let meta = &record.metadata;
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    )
}
