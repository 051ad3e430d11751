//! What the daemon knows of its sandboxes, behind a trait. [`crate::journal`] keeps it on disk.

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use cloud_providers::{CreateRequest, Instance, Resource};
use peerpod_gateway::VolumeEntry;
use peerpod_net::Family;
use serde::{Deserialize, Serialize};

use crate::{identity::Identity, sandbox::Phase};

/// Everything that is needed to finish or to undo a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Sandbox id.
    pub id: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// UID of the pod, where known.
    pub pod_uid: Option<String>,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Name of the instance, also its TLS name.
    pub instance_name: String,
    /// Id of the tunnel.
    pub tunnel_id: u32,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Name of the pod's interface.
    pub pod_interface: String,
    /// Whether the tunnel runs over an interface of its own.
    pub dedicated: bool,
    /// The family of addresses the tunnel runs over; `None` of an earlier version, which had IPv4 only.
    #[serde(default)]
    pub underlay: Option<Family>,
    /// Volumes of the pod, in the order of their LUNs.
    pub volumes: Vec<VolumeEntry>,
    /// Where the sandbox stands.
    pub phase: Phase,
    /// What is asked of the provider, user data included, so that a repeat is byte-identical.
    pub request: CreateRequest,
    /// TLS identity, `None` with `--disable-tls`.
    pub identity: Option<Identity>,
    /// The instance, once known.
    pub instance: Option<Instance>,
    /// What the provider reported on the way.
    pub resources: Vec<Resource>,
    /// Seconds since 1970 when CreateVM was taken on.
    pub created_unix: u64,
    /// Grows with each sandbox of the node, whatever the clock does; `None` of an earlier version.
    #[serde(default)]
    pub order: Option<u64>,
    /// The shim's process, where it can be seen from here.
    #[serde(default)]
    pub shim: Option<ShimProcess>,
}

impl SandboxRecord {
    /// Returns what people may see of it: no key and no user data.
    pub fn view(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id,
            "phase": self.phase,
            "pod": { "namespace": self.pod_namespace, "name": self.pod_name, "uid": self.pod_uid },
            "netns": self.netns,
            "token": self.request.token.to_string(),
            "instance_name": self.instance_name,
            "instance": self.instance,
            "resources": self.resources.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tunnel": { "id": self.tunnel_id, "port": self.tunnel_port, "interface": self.pod_interface },
            "volumes": self.volumes.len(),
            "user_data_bytes": self.request.user_data.len(),
            "tls_server_name": self.identity.as_ref().map(|i| &i.server_name),
            "created_unix": self.created_unix,
            "order": self.order,
            "shim": self.shim,
        })
    }
}

/// A process that is told from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimProcess {
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since the machine was.
    pub started: u64,
}

impl ShimProcess {
    /// Looks at a running process; `None` when it cannot be seen, as from another namespace of process numbers.
    pub fn look(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything; the state is the first field after it.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        Self::look(self.pid) == Some(*self)
    }
}

/// Keeps sandbox records.
#[async_trait]
pub trait SandboxStore: Send + Sync {
    /// Asks whether a new sandbox can be taken on. The running ones need room for their next steps.
    ///
    /// # Errors
    ///
    /// What is short.
    async fn room(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Keeps or replaces a record; returns when it is safe.
    ///
    /// # Errors
    ///
    /// When it could not be kept: the step that needs it is not taken.
    async fn put(&self, record: &SandboxRecord) -> anyhow::Result<()>;

    /// Forgets a record; an unknown id is fine.
    ///
    /// # Errors
    ///
    /// When it could not be removed.
    async fn remove(&self, id: &str) -> anyhow::Result<()>;

    /// Returns all records.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    async fn list(&self) -> anyhow::Result<Vec<SandboxRecord>>;
}

/// Keeps records in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<BTreeMap<String, SandboxRecord>>);

#[async_trait]
impl SandboxStore for MemoryStore {
    async fn put(&self, record: &SandboxRecord) -> anyhow::Result<()> {
        lock(&self.0).insert(record.id.clone(), record.clone());
        Ok(())
    }

    async fn remove(&self, id: &str) -> anyhow::Result<()> {
        lock(&self.0).remove(id);
        Ok(())
    }

    async fn list(&self) -> anyhow::Result<Vec<SandboxRecord>> {
        Ok(lock(&self.0).values().cloned().collect())
    }
}

/// Locks a mutex whose holders leave the data whole even when they panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
