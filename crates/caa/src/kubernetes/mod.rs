//! The cluster's side of the daemon, where there is a Kubernetes cluster.
//!
//! [`connect`] finds the API server, [`api`] says what is asked of it and [`client`] asks it. `record` writes a
//! `PeerPod` for each sandbox and reads pods and Secrets, `events` tells people, [`resource`] offers the node's pod VMs,
//! [`heartbeat`] shows that the daemon lives. Everything is bounded in time, and nothing here is waited for by StopVM.

pub mod api;
mod auth;
pub mod client;
pub mod connect;
mod events;
pub mod heartbeat;
mod record;
pub mod resource;

pub use record::{Identity, Kubernetes};

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use peerpod_api::names;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::{
    api::{Api, patiently},
    client::KubeApi,
    resource::Resource,
};
use crate::{cluster::ClusterRecord, config::DaemonConfig};

/// How long the cluster's id is waited for, when an earlier daemon knew it, and when none did.
const KNOWN_ID_LIMIT: Duration = Duration::from_secs(5);
const FIRST_ID_LIMIT: Duration = Duration::from_secs(60);

/// The daemon's side of a cluster.
#[derive(Clone)]
pub struct Side {
    api: Arc<dyn Api>,
    who: Identity,
}

impl Side {
    /// Sets up what the configuration names; `None` where there is no cluster. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When a file with credentials cannot be read.
    pub async fn connect(config: &DaemonConfig, provider: &str) -> Result<Option<Self>> {
        let Some(source) = &config.kubernetes else { return Ok(None) };
        let owner =
            config.pod_uid.clone().unwrap_or_else(|| format!("daemon-{:016x}", rand::random::<u64>()));
        let mut who = Identity::new(&config.node_name, provider, owner);
        who.profile.clone_from(&config.cloud_profile);
        who.namespace.clone_from(&config.namespace);
        Ok(Some(Self::new(Arc::new(KubeApi::new(source.client().await?)), who)))
    }

    /// Stands on any API server, for tests and simulations.
    pub fn new(api: Arc<dyn Api>, who: Identity) -> Self {
        Self { api, who }
    }

    /// Returns the record of sandboxes.
    pub fn record(&self) -> Arc<dyn ClusterRecord> {
        Arc::new(Kubernetes::new(self.api.clone(), self.who.clone()))
    }

    /// Returns the UID of kube-system; `None` where the cluster does not tell and the daemon can do without.
    ///
    /// With `stored` an earlier daemon of this node has kept an id. A cluster that is away must not keep running pods
    /// from being served again.
    ///
    /// # Errors
    ///
    /// When the API server does not answer and no id is known: what is made now would be of no cluster.
    pub async fn cluster_id(&self, stored: bool) -> Result<Option<String>> {
        let ask = || async {
            match self.api.namespace_uid(names::CLUSTER_ID_NAMESPACE).await {
                Err(api::ApiError::Forbidden(text)) => {
                    tracing::warn!(
                        text,
                        "the cluster's id is not known: instances belong to this node alone, and no controller sweeps \
                         them (let the service account get the namespace kube-system, or set -cluster-id)"
                    );
                    Ok(None)
                }
                other => other,
            }
        };
        let limit = if stored { KNOWN_ID_LIMIT } else { FIRST_ID_LIMIT };
        match patiently("ask for the cluster's id (or set -cluster-id)", limit, ask).await {
            Err(error) if stored => {
                tracing::warn!(error = %format!("{error:#}"), "the cluster's id is the one that an earlier daemon was told");
                Ok(None)
            }
            other => other,
        }
    }

    /// Shows that the daemon lives, until `stop` fires.
    pub fn keep_lease(&self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(heartbeat::keep(self.api.clone(), self.who.clone(), stop))
    }

    /// Offers the node's pod VMs; a limit below 0 offers none.
    pub fn offer(&self, limit: i64) -> Option<Offer> {
        if limit < 0 {
            return None;
        }
        let resource = Resource::new(self.api.clone(), self.who.clone(), limit);
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (resource, stop) = (resource.clone(), stop.clone());
            async move { resource.keep(stop).await }
        });
        Some(Offer { resource, stop, task })
    }
}

/// The node's offer of pod VMs, which is looked after until it ends.
pub struct Offer {
    resource: Resource,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Offer {
    /// Ends it. With `withdraw` the node offers none any more, unless another daemon does.
    ///
    /// # Errors
    ///
    /// When the API server does not answer in time: the node keeps offering.
    pub async fn end(self, withdraw: bool) -> Result<()> {
        self.stop.cancel();
        // It must not offer again what is taken back.
        let _ = self.task.await;
        if withdraw { self.resource.withdraw().await } else { Ok(()) }
    }
}
