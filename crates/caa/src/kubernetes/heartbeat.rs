//! The Lease by which this node's daemon shows that it lives, so that the controller lets it delete its own VMs first.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use peerpod_api::names;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    api::{Api, ApiError},
    record::Identity,
};

/// The pause between two renewals: three may fail before the daemon counts as silent.
const PAUSE: Duration = Duration::from_secs(10);
/// The pause after a right was missing.
const WITHOUT_RIGHT: Duration = Duration::from_secs(600);

/// Renews the Lease of this node until `stop` fires.
pub async fn keep(api: Arc<dyn Api>, who: Identity, stop: CancellationToken) {
    let mut failing_since = None;
    loop {
        let renewed = match stop.run_until_cancelled(api.put_lease(&lease(&who))).await {
            None => return,
            Some(renewed) => renewed,
        };
        let pause = match renewed {
            Ok(()) => {
                if let Some(since) = failing_since.take() {
                    let since: Instant = since;
                    tracing::info!(silent = ?since.elapsed(), "the Lease of this node is renewed again");
                }
                PAUSE
            }
            Err(ApiError::Forbidden(text)) => {
                tracing::info!(text, "this daemon may not keep a Lease: the controller takes it for silent");
                WITHOUT_RIGHT
            }
            Err(error) => {
                if failing_since.is_none() {
                    tracing::warn!(%error, "the Lease of this node cannot be renewed, trying again");
                    failing_since = Some(Instant::now());
                }
                PAUSE
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn lease(who: &Identity) -> Lease {
    let labels = BTreeMap::from([
        (names::MANAGED_BY_LABEL.to_owned(), names::DAEMON.to_owned()),
        (names::NODE_LABEL.to_owned(), names::label_value(&who.node)),
    ]);
    Lease {
        metadata: ObjectMeta {
            name: Some(names::heartbeat_lease(&who.node)),
            namespace: Some(who.namespace.clone()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(names::NODE.to_owned(), who.node.clone())])),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(who.owner.clone()),
            lease_duration_seconds: Some(names::HEARTBEAT_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}
