//! The Lease of the leader.

use async_trait::async_trait;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use peerpod_api::names;

use super::{Connection, asked, maybe};
use crate::{
    cluster::Result,
    election::{LeaseState, Leases},
};

/// The Lease in Kubernetes.
#[derive(Clone, Debug)]
pub struct KubeLease {
    api: Api<Lease>,
    name: String,
}

impl KubeLease {
    /// The Lease of the existing controller, so that of both one works at a time.
    pub fn new(connection: &Connection) -> Self {
        let api = Api::namespaced(connection.client.clone(), &connection.namespace);
        Self { api, name: names::LEADER_LEASE.to_owned() }
    }
}

fn state_of(lease: &Lease) -> LeaseState {
    let spec = lease.spec.clone().unwrap_or_default();
    LeaseState {
        holder: spec.holder_identity.unwrap_or_default(),
        seconds: spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

#[async_trait]
impl Leases for KubeLease {
    async fn read(&self) -> Result<Option<LeaseState>> {
        Ok(maybe(asked(self.api.get(&self.name)).await)?.as_ref().map(state_of))
    }

    async fn write(&self, lease: &LeaseState) -> Result<LeaseState> {
        let now = MicroTime(Timestamp::now());
        // The time of acquisition is kept by whoever holds it; a new holder sets it.
        let kept = match lease.version.is_empty() {
            true => None,
            false => maybe(asked(self.api.get(&self.name)).await)?
                .and_then(|l| l.spec)
                .filter(|s| s.holder_identity.as_deref() == Some(lease.holder.as_str()))
                .and_then(|s| s.acquire_time),
        };
        let object = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: Some(lease.version.clone()).filter(|v| !v.is_empty()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(lease.holder.clone()),
                lease_duration_seconds: i32::try_from(lease.seconds).ok(),
                lease_transitions: Some(lease.transitions),
                acquire_time: kept.or_else(|| Some(now.clone())),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        let params = PostParams { field_manager: Some(names::CONTROLLER.into()), ..PostParams::default() };
        let written = match lease.version.is_empty() {
            true => asked(self.api.create(&params, &object)).await?,
            false => asked(self.api.replace(&self.name, &params, &object)).await?,
        };
        Ok(state_of(&written))
    }
}
