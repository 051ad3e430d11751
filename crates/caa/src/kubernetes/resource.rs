//! The extended resource of this node: how many pod VMs it may hold.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use peerpod_api::names;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    api::{Api, ApiError, ApiResult, patiently},
    record::Identity,
};

/// How often the node is looked at: one that was made anew, or whose kubelet reset it, offers nothing.
const LOOK: Duration = Duration::from_secs(60);
/// The longest pause after a failure that may pass.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The pause after a right was missing.
const WITHOUT_RIGHT: Duration = Duration::from_secs(600);
/// How long the end may take.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(5);

/// What became of an attempt to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// The node offers it, in the name of this daemon.
    Ours,
    /// Another daemon offers it by now.
    Taken,
}

/// Offers `kata.peerpods.io/vm` on a node.
#[derive(Clone)]
pub struct Resource {
    api: Arc<dyn Api>,
    who: Identity,
    limit: i64,
}

impl Resource {
    /// Offers `limit` pod VMs.
    pub fn new(api: Arc<dyn Api>, who: Identity, limit: i64) -> Self {
        Self { api, who, limit }
    }

    /// Offers until `stop` fires, or another daemon takes over.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut first = true;
        let mut pause = Duration::from_millis(500);
        loop {
            let Some(offered) = stop.run_until_cancelled(self.offer(first)).await else { return };
            let wait = match offered {
                Ok(Offered::Ours) => {
                    if first {
                        tracing::info!(node = %self.who.node, limit = self.limit, resource = names::EXTENDED_RESOURCE, "the node offers pod VMs");
                    }
                    first = false;
                    pause = Duration::from_millis(500);
                    LOOK
                }
                Ok(Offered::Taken) => {
                    tracing::info!(node = %self.who.node, "another daemon offers the pod VMs of this node");
                    return;
                }
                Err(error) => {
                    let mend = match &error {
                        ApiError::NotFound(_) => {
                            " (set NODE_NAME or -node-name to the node's name in the cluster)"
                        }
                        _ => "",
                    };
                    tracing::warn!(%error, "the node's pod VMs cannot be offered, trying again{mend}");
                    pause = (pause * 2).min(RETRY_MAX);
                    if matches!(error, ApiError::Forbidden(_)) { WITHOUT_RIGHT } else { pause }
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Writes owner and number by one patch of exactly the node that was read. The `first` time it takes over from
    /// whoever was there; later it gives way.
    ///
    /// # Errors
    ///
    /// When the node cannot be read or changed.
    pub async fn offer(&self, first: bool) -> ApiResult<Offered> {
        let node = self.api.node(&self.who.node).await?;
        let node = node.ok_or_else(|| ApiError::NotFound(format!("node {}", self.who.node)))?;
        let owner = owner(&node);
        if !first && owner.is_some_and(|owner| *owner != self.who.owner) {
            return Ok(Offered::Taken);
        }
        let number = self.limit.to_string();
        let offers = node
            .status
            .as_ref()
            .and_then(|s| s.capacity.as_ref())
            .and_then(|c| c.get(names::EXTENDED_RESOURCE));
        if owner == Some(&self.who.owner) && offers.is_some_and(|offers| offers.0 == number) {
            return Ok(Offered::Ours);
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": node.metadata.resource_version,
                "annotations": { names::RESOURCE_OWNER: self.who.owner },
            },
            "status": { "capacity": { names::EXTENDED_RESOURCE: number } },
        });
        self.api.merge_node_status(&self.who.node, &patch).await?;
        Ok(Offered::Ours)
    }

    /// Takes the offer back where it is still this daemon's.
    ///
    /// # Errors
    ///
    /// When the API server does not answer in time.
    pub async fn withdraw(&self) -> anyhow::Result<()> {
        let pointer = |name: &str| name.replace('~', "~0").replace('/', "~1");
        let patch = json!([
            {
                "op": "test",
                "path": format!("/metadata/annotations/{}", pointer(names::RESOURCE_OWNER)),
                "value": self.who.owner,
            },
            { "op": "remove", "path": format!("/status/capacity/{}", pointer(names::EXTENDED_RESOURCE)) },
        ]);
        let ask = || async {
            match self.api.patch_node_status(&self.who.node, &patch).await {
                Err(ApiError::Refused(reason)) => {
                    tracing::info!(reason, "the node's offer stays: it is not this daemon's");
                    Ok(())
                }
                Err(ApiError::NotFound(_)) => Ok(()),
                other => other,
            }
        };
        patiently("take back the node's offer", WITHDRAW_LIMIT, ask).await
    }
}

fn owner(node: &Node) -> Option<&String> {
    node.metadata.annotations.as_ref().and_then(|a| a.get(names::RESOURCE_OWNER))
}
