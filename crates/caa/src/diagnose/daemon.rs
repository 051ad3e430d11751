//! What the daemon tells of itself and its sandboxes.

use std::{collections::BTreeMap, time::Duration};

use peerpod_gateway::ProxyStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    recent::Past,
    sandbox::{SandboxInfo, Sandboxes},
    store::SandboxRecord,
};

/// How long the gateway may take to say what it knows.
const GATEWAY_LIMIT: Duration = Duration::from_secs(5);

/// What a daemon knows, without keys, user data and secrets of its options. Plain data: `caactl` may be of another version.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Version of the daemon.
    pub version: String,
    /// Name of its provider.
    pub provider: String,
    /// Name of its node.
    pub node: String,
    /// Every option that was given or has a default, secrets redacted.
    pub options: BTreeMap<String, String>,
    /// What the provider can do.
    pub capabilities: Value,
    /// The sandboxes that were asked for, by id.
    pub sandboxes: BTreeMap<String, Known>,
    /// The counters, as text.
    pub metrics: String,
    /// What could not be found out, and why.
    pub missing: Vec<String>,
}

/// What is known of one sandbox.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Known {
    /// Its line of `caactl list`, while it lives.
    pub now: Option<SandboxInfo>,
    /// What people may see of its record.
    pub record: Option<Value>,
    /// What was logged of it, and its console.
    pub past: Option<Past>,
    /// What the gateway knows of its guest.
    pub gateway: Option<ProxyStatus>,
}

impl Sandboxes {
    /// Tells what is known of the sandboxes whose id begins with `wanted`, of all for an empty text; those that are gone and
    /// still remembered are among them.
    pub async fn diagnosis(&self, wanted: &str) -> Diagnosis {
        let parts = self.parts();
        let mut missing = Vec::new();
        let mut sandboxes: BTreeMap<String, Known> = BTreeMap::new();
        for id in parts.config.recent.sandboxes() {
            let past = parts.config.recent.of(&id);
            sandboxes.insert(id, Known { past, ..Known::default() });
        }
        for info in self.list() {
            let known = sandboxes.entry(info.id.clone()).or_default();
            known.now = Some(info);
        }
        match parts.store.list().await {
            Ok(records) => {
                for record in &records {
                    sandboxes.entry(record.id.clone()).or_default().record =
                        Some(SandboxRecord::view(record));
                }
            }
            Err(error) => missing.push(format!("the journal cannot be read: {error:#}")),
        }
        match tokio::time::timeout(GATEWAY_LIMIT, parts.gateway.list()).await {
            Ok(Ok(list)) => {
                for status in list {
                    let known = sandboxes.entry(status.sandbox_id.clone()).or_default();
                    known.gateway = Some(status);
                }
            }
            Ok(Err(error)) => missing.push(format!("the gateway does not tell what it serves: {error}")),
            Err(_) => missing.push(format!("the gateway did not answer within {GATEWAY_LIMIT:?}")),
        }
        sandboxes.retain(|id, _| id.starts_with(wanted));
        Diagnosis {
            version: env!("CARGO_PKG_VERSION").into(),
            provider: parts.config.provider.clone(),
            node: parts.config.node_name.clone(),
            options: parts.config.shown.iter().cloned().collect(),
            capabilities: serde_json::to_value(parts.provider.capabilities()).unwrap_or_default(),
            sandboxes,
            metrics: parts.metrics.text(),
            missing,
        }
    }
}
