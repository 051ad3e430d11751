//! Records, pods and nodes.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cloud_providers::tags;
use futures_util::StreamExt as _;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{self as core, Event, EventSource, Namespace, Node, ObjectReference},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};
use peerpod_api::{PeerPod, names, writes};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::{Connection, asked, list_all, maybe};
use crate::{
    cluster::{Cluster, ClusterError, Result},
    conditions,
    model::{Change, Daemon, Key, Note, Pod, Record, View},
};

/// How long a quiet stream of changes may last before the server ends it, in seconds: a connection that died without a
/// word is noticed after a little more.
const WATCH_SECONDS: u32 = 120;
/// The most bytes of a message, and of a record's name in that of an Event.
const MESSAGE_MAX: usize = 1024;
const NAME_MAX: usize = 230;

/// The cluster in Kubernetes.
pub struct KubeCluster {
    client: Client,
    namespace: String,
    /// When each daemon's Lease was last seen to change.
    beats: Mutex<BTreeMap<String, Beat>>,
}

struct Beat {
    renewed: Timestamp,
    seen: Instant,
    /// Whether it changed since it was first seen.
    changed: bool,
}

impl Debug for KubeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeCluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl KubeCluster {
    /// Asks by `connection`.
    pub fn new(connection: &Connection) -> Self {
        Self {
            client: connection.client.clone(),
            namespace: connection.namespace.clone(),
            beats: Mutex::default(),
        }
    }

    fn records(&self, namespace: &str) -> Api<PeerPod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Returns the UID of the namespace kube-system, which is the cluster's id by default.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    pub async fn cluster_uid(&self) -> Result<String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = asked(api.get(names::CLUSTER_ID_NAMESPACE)).await?;
        namespace.metadata.uid.ok_or_else(|| ClusterError::Refused("kube-system has no UID".into()))
    }
}

/// The first bytes of a message.
pub(super) fn cut(text: &str) -> &str {
    let end = (0..=MESSAGE_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

fn writer() -> PatchParams {
    PatchParams { field_manager: Some(names::CONTROLLER.into()), ..PatchParams::default() }
}

async fn merge<K>(api: &Api<K>, name: &str, patch: &(impl Serialize + Debug + Sync)) -> Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    asked(api.patch(name, &writer(), &Patch::Merge(patch))).await.map(drop)
}

/// Reads a pod.
pub(super) fn pod_of(pod: &core::Pod) -> Pod {
    let metadata = &pod.metadata;
    let key =
        Key::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let grace = metadata.deletion_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
    let mut read = Pod::new(key, metadata.uid.clone().unwrap_or_default());
    read.node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    read.deleting = metadata.deletion_timestamp.is_some();
    read.grace_seconds = grace.unwrap_or_default();
    read.over = matches!(phase, "Succeeded" | "Failed");
    read
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn watch(&self, changes: mpsc::Sender<Change>) -> Result<()> {
        let api: Api<PeerPod> = Api::all(self.client.clone());
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let mut stream = watcher(api, config).default_backoff().boxed();
        let mut listed = Vec::new();
        while let Some(event) = stream.next().await {
            let change = match event {
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed.push(Record::new(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => Change::Listed(std::mem::take(&mut listed)),
                Ok(watcher::Event::Apply(object)) => Change::Applied(Box::new(Record::new(object))),
                Ok(watcher::Event::Delete(object)) => Change::Deleted(Record::new(object).key),
                // The stream goes on by itself, with pauses that grow, and lists anew where it has to.
                Err(error) => {
                    tracing::warn!(
                        error = super::chain(&error),
                        "the stream of changes broke, beginning anew"
                    );
                    continue;
                }
            };
            if changes.send(change).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn record(&self, key: &Key) -> Result<Option<Record>> {
        Ok(maybe(asked(self.records(&key.namespace).get(&key.name)).await)?.map(Record::new))
    }

    async fn pod(&self, key: &Key) -> Result<Option<Pod>> {
        let api: Api<core::Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        Ok(maybe(asked(api.get(&key.name)).await)?.as_ref().map(pod_of))
    }

    async fn daemons(&self) -> Result<BTreeMap<String, Daemon>> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let labels = format!("{}={}", names::MANAGED_BY_LABEL, names::DAEMON);
        let (nodes, leases) = tokio::join!(
            list_all(|params| {
                let nodes = &nodes;
                async move { nodes.list_metadata(&params).await }
            }),
            list_all(|params| {
                let params = params.labels(&labels);
                let leases = &leases;
                async move { leases.list(&params).await }
            }),
        );
        let nodes = nodes?;
        if !nodes.complete {
            return Err(ClusterError::Unavailable("the list of nodes broke off".into()));
        }
        // Without this right nothing is known about daemons, and each has the first go.
        let leases = leases.map(|l| l.items).unwrap_or_default();
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(judge(nodes.items.iter().filter_map(|n| n.metadata.name.as_deref()), &leases, &mut beats))
    }

    async fn view(&self) -> Result<View> {
        let cluster_uid = self.cluster_uid().await?;
        let (records, pods): (Api<PeerPod>, Api<core::Pod>) =
            (Api::all(self.client.clone()), Api::all(self.client.clone()));
        // Pods after records: a pod that is not there then is gone, and not yet to come.
        let records = list_all(|params| {
            let records = &records;
            async move { records.list(&params).await }
        })
        .await?;
        let pods = list_all(|params| {
            let pods = &pods;
            async move { pods.list(&params).await }
        })
        .await?;
        let mut view = View::new(
            cluster_uid,
            records.items.into_iter().map(Record::new).collect(),
            pods.items.iter().map(pod_of).collect(),
        );
        view.complete = records.complete && pods.complete;
        view.revision = records.revision.zip(pods.revision).map(|(a, b)| a.min(b));
        Ok(view)
    }

    async fn release(&self, record: &Record) -> Result<()> {
        let Some(patch) = writes::release(&record.object) else { return Ok(()) };
        merge(&self.records(&record.key.namespace), &record.key.name, &patch).await
    }

    async fn delete(&self, record: &Record, by: Option<&str>) -> Result<()> {
        let api = self.records(&record.key.namespace);
        if let Some(by) = by {
            let metadata = &record.object.metadata;
            let patch = json!({"metadata": {
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
                "annotations": {names::SUPERSEDED_BY: by},
            }});
            merge(&api, &record.key.name, &patch).await?;
        }
        let preconditions =
            Preconditions { uid: record.object.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(preconditions);
        asked(api.delete(&record.key.name, &params)).await.map(drop)
    }

    async fn set_condition(&self, record: &Record, note: &Note) -> Result<()> {
        let api = self.records(&record.key.namespace);
        let mut patch = conditions::patch(&record.object, note, Time(Timestamp::now()));
        // Another object of the same name is not meant.
        patch["metadata"] = json!({"uid": record.object.metadata.uid});
        asked(api.patch_status(&record.key.name, &writer(), &Patch::Merge(&patch))).await.map(drop)
    }

    async fn event(&self, record: &Record, note: &Note) -> Result<()> {
        let metadata = &record.object.metadata;
        let now = Time(Timestamp::now());
        let uid = metadata.uid.clone().unwrap_or_default();
        let which = tags::hash(&format!("{uid}/{}", note.reason), 12);
        let name = format!("{}.{which}", &record.key.name[..record.key.name.len().min(NAME_MAX)]);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(record.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(names::API_VERSION.into()),
                kind: Some(names::KIND.into()),
                name: Some(record.key.name.clone()),
                namespace: Some(record.key.namespace.clone()),
                uid: metadata.uid.clone(),
                resource_version: metadata.resource_version.clone(),
                ..ObjectReference::default()
            },
            type_: Some(if note.reason.is_warning() { "Warning" } else { "Normal" }.into()),
            reason: Some(note.reason.label().into()),
            message: Some(cut(&note.message).to_owned()),
            source: Some(EventSource { component: Some(names::CONTROLLER.into()), host: None }),
            reporting_component: Some(names::CONTROLLER.into()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now.clone()),
            count: Some(1),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &record.key.namespace);
        match asked(api.create(&PostParams::default(), &event)).await {
            // The same thing again is the same Event.
            Err(ClusterError::Conflict) => {
                let again = json!({"message": event.message, "lastTimestamp": now});
                merge(&api, &name, &again).await
            }
            other => other.map(drop),
        }
    }
}

/// Says what is known about each daemon from its Lease.
///
/// No clocks are compared beyond the first look: a Lease that changed within [`names::HEARTBEAT_SECONDS`] is that of a
/// daemon that lives, and one that stood still for so long under our eyes is that of one that is gone.
fn judge<'a>(
    nodes: impl Iterator<Item = &'a str>,
    leases: &[Lease],
    beats: &mut BTreeMap<String, Beat>,
) -> BTreeMap<String, Daemon> {
    let limit = Duration::from_secs(u64::try_from(names::HEARTBEAT_SECONDS).unwrap_or(40));
    let renewals: BTreeMap<&str, Timestamp> = leases
        .iter()
        .filter_map(|l| {
            Some((l.metadata.name.as_deref()?, l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0)?))
        })
        .collect();
    beats.retain(|name, _| renewals.contains_key(name.as_str()));
    let mut states = BTreeMap::new();
    for node in nodes {
        let lease = names::heartbeat_lease(node);
        let state = match renewals.get(lease.as_str()) {
            // The existing daemon, or one that may not write Leases.
            None => Daemon::Unknown,
            Some(renewed) => {
                let beat = beats.entry(lease).or_insert_with(|| Beat {
                    renewed: *renewed,
                    seen: Instant::now(),
                    changed: false,
                });
                if beat.renewed != *renewed {
                    *beat = Beat { renewed: *renewed, seen: Instant::now(), changed: true };
                }
                match (beat.seen.elapsed() > limit, beat.changed) {
                    (true, _) => Daemon::Gone,
                    (false, true) => Daemon::Alive,
                    (false, false) => Daemon::Unknown,
                }
            }
        };
        states.insert(node.to_owned(), state);
    }
    states
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};

    use super::*;

    fn lease(node: &str, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta { name: Some(names::heartbeat_lease(node)), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_lives_while_its_lease_changes_whatever_the_clocks_say() {
        let mut beats = BTreeMap::new();
        let mut at = |renewed: i64| judge(["n"].into_iter(), &[lease("n", renewed)], &mut beats)["n"];
        assert_eq!(at(5), Daemon::Unknown, "seen once");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(at(15), Daemon::Alive);
        tokio::time::advance(Duration::from_secs(41)).await;
        assert_eq!(at(15), Daemon::Gone);
        assert_eq!(at(16), Daemon::Alive);
        let states = judge(["a", "b"].into_iter(), &[lease("b", 1)], &mut BTreeMap::new());
        assert_eq!(states["a"], Daemon::Unknown, "it writes none");
        assert_eq!(states.get("c"), None, "there is no such node");
    }

    #[test]
    fn pods_are_read_with_their_phase_and_the_time_they_were_given() {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "web", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z",
                         "deletionGracePeriodSeconds": 30},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        let read = pod_of(&pod);
        assert!(read.deleting && !read.over && read.grace_seconds == 30);
        assert_eq!((read.uid.as_str(), read.node.as_deref()), ("u", Some("n")));
    }
}
