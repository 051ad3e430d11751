//! A cluster in memory: objects with versions, finalizers, owners and a stream of changes, and links that fail.
//!
//! What it keeps of the real one: versions that grow, patches that name a version or UID and are refused when it is
//! another, an object that is being deleted and stays for as long as it has finalizers, and the removal of objects whose
//! owner is gone. What it leaves out: authorisation, defaults, schemas, several servers. Time is tokio's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use peerpod_api::{PeerPod, names, writes};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::{
    cluster::{Cluster, ClusterError, Result},
    conditions,
    election::{LeaseState, Leases},
    model::{Change, Daemon, Key, Note, Pod, Record, View},
};

/// Returns a time of the API server.
pub fn time(unix: i64) -> Time {
    Time(Timestamp::from_second(unix).unwrap_or_default())
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    uids: u64,
    clock: Option<Arc<std::sync::atomic::AtomicU64>>,
    objects: BTreeMap<Key, PeerPod>,
    pods: BTreeMap<Key, Pod>,
    nodes: BTreeMap<String, Daemon>,
    watchers: Vec<mpsc::UnboundedSender<Change>>,
    collects: bool,
    lease: Option<LeaseState>,
    calls: Vec<(&'static str, Key)>,
    notes: Vec<(Key, Note)>,
}

impl State {
    fn now(&self) -> i64 {
        let clock = self.clock.as_ref().map(|c| c.load(std::sync::atomic::Ordering::SeqCst));
        i64::try_from(clock.unwrap_or(1_000_000)).unwrap_or_default()
    }

    fn store(&mut self, mut object: PeerPod) -> PeerPod {
        self.revision += 1;
        object.metadata.resource_version = Some(self.revision.to_string());
        let record = Record::new(object.clone());
        let empty = object.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
        if object.metadata.deletion_timestamp.is_some() && empty {
            self.objects.remove(&record.key);
            self.tell(&Change::Deleted(record.key));
        } else {
            self.objects.insert(record.key.clone(), object.clone());
            self.tell(&Change::Applied(Box::new(record)));
        }
        object
    }

    fn tell(&mut self, change: &Change) {
        self.watchers.retain(|w| w.send(change.clone()).is_ok());
    }

    fn mark_deleted(&mut self, key: &Key) {
        let now = self.now();
        let Some(mut object) = self.objects.get(key).cloned() else { return };
        if object.metadata.deletion_timestamp.is_none() {
            object.metadata.deletion_timestamp = Some(time(now));
            self.store(object);
        }
    }

    fn collect(&mut self) {
        if !self.collects {
            return;
        }
        let gone = |o: &PeerPod| {
            let owner = peerpod_api::PodOwner::of(o)?;
            let pod = self.pods.get(&Key::new(&owner.namespace, &owner.name));
            pod.is_none_or(|p| p.uid != owner.uid).then_some(())
        };
        let keys: Vec<Key> =
            self.objects.iter().filter(|(_, o)| gone(o).is_some()).map(|(k, _)| k.clone()).collect();
        keys.iter().for_each(|key| self.mark_deleted(key));
    }
}

/// The cluster. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<State>>);

impl Memory {
    /// Makes an empty cluster that removes objects whose owner is gone.
    pub fn new() -> Self {
        let memory = Self::default();
        memory.lock().collects = true;
        memory
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the API server's clock from `clock`, in seconds since 1970.
    pub fn set_clock(&self, clock: Arc<std::sync::atomic::AtomicU64>) {
        self.lock().clock = Some(clock);
    }

    /// Whether objects whose owner is gone are removed.
    pub fn set_collects(&self, collects: bool) {
        let mut state = self.lock();
        state.collects = collects;
        state.collect();
    }

    /// Returns a connection of its own, which may fail on its own.
    pub fn client(&self) -> MemoryClient {
        MemoryClient { server: self.clone(), link: Arc::new(watch::Sender::new(Link::default())) }
    }

    /// Makes a pod that runs, and returns it.
    pub fn add_pod(&self, namespace: &str, name: &str, node: &str) -> Pod {
        let mut state = self.lock();
        state.uids += 1;
        state.revision += 1;
        let mut pod = Pod::new(Key::new(namespace, name), format!("pod-{}", state.uids));
        pod.node = Some(node.to_owned());
        state.pods.insert(pod.key.clone(), pod.clone());
        pod
    }

    /// Changes a pod.
    pub fn change_pod(&self, key: &Key, change: impl FnOnce(&mut Pod)) {
        let mut state = self.lock();
        state.revision += 1;
        if let Some(pod) = state.pods.get_mut(key) {
            change(pod);
        }
    }

    /// Removes a pod, and with it what it owns.
    pub fn remove_pod(&self, key: &Key) {
        let mut state = self.lock();
        state.revision += 1;
        state.pods.remove(key);
        state.collect();
    }

    /// Says what is known about a node's daemon; `None` removes the node.
    pub fn set_node(&self, name: &str, daemon: Option<Daemon>) {
        let mut state = self.lock();
        match daemon {
            Some(daemon) => drop(state.nodes.insert(name.to_owned(), daemon)),
            None => drop(state.nodes.remove(name)),
        }
    }

    /// Stores a new object.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Conflict`] when there is one of its name.
    pub fn create(&self, mut object: PeerPod) -> Result<PeerPod> {
        let mut state = self.lock();
        let key = Record::new(object.clone()).key;
        if state.objects.contains_key(&key) {
            return Err(ClusterError::Conflict);
        }
        state.uids += 1;
        let now = state.now();
        object.metadata.uid = Some(format!("object-{}", state.uids));
        object.metadata.creation_timestamp.get_or_insert_with(|| time(now));
        let object = state.store(object);
        // An object whose owner is gone already is collected too.
        state.collect();
        Ok(object)
    }

    /// Applies a merge patch; one that names UID or version is refused when they are others.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotFound`], [`ClusterError::Conflict`], and [`ClusterError::Refused`] for what is no object.
    pub fn patch(&self, key: &Key, patch: &Value) -> Result<PeerPod> {
        let mut state = self.lock();
        let object = state.objects.get(key).ok_or(ClusterError::NotFound)?;
        let mut value = json!(object);
        for (name, has) in
            [("uid", &object.metadata.uid), ("resourceVersion", &object.metadata.resource_version)]
        {
            let wanted = &patch["metadata"][name];
            if wanted.as_str().is_some_and(|w| Some(w) != has.as_deref()) {
                return Err(ClusterError::Conflict);
            }
        }
        merge(&mut value, patch);
        let object = serde_json::from_value(value).map_err(|e| ClusterError::Refused(e.to_string()))?;
        Ok(state.store(object))
    }

    /// Asks for the deletion of an object.
    pub fn delete(&self, key: &Key) {
        self.lock().mark_deleted(key);
    }

    /// Returns an object.
    pub fn object(&self, key: &Key) -> Option<PeerPod> {
        self.lock().objects.get(key).cloned()
    }

    /// Returns every object.
    pub fn objects(&self) -> Vec<PeerPod> {
        self.lock().objects.values().cloned().collect()
    }

    /// Returns every pod.
    pub fn pods(&self) -> Vec<Pod> {
        self.lock().pods.values().cloned().collect()
    }

    /// Returns the calls of all clients, by name.
    pub fn calls(&self) -> Vec<(&'static str, Key)> {
        self.lock().calls.clone()
    }

    /// Returns the Events, in order.
    pub fn events(&self) -> Vec<(Key, Note)> {
        self.lock().notes.clone()
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else { return target.clone_from(patch) };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in changes {
        match value {
            Value::Null => drop(target.as_object_mut().and_then(|t| t.remove(key))),
            _ => merge(&mut target[key.as_str()], value),
        }
    }
}

/// What a connection does.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Link {
    /// No call arrives, and the stream of changes breaks.
    pub down: bool,
    /// Changes take effect and their replies are lost.
    pub loses_replies: bool,
    /// The stream of changes stays open and tells nothing more.
    pub silent: bool,
    /// A view is cut short: `Some(n)` keeps so many records.
    pub cut_view: Option<usize>,
    /// How long each call takes.
    pub latency: Duration,
    /// What the view says instead of its own identity and version: another cluster, or an earlier time.
    pub view_of: Option<(String, u64)>,
}

/// A connection to a [`Memory`].
#[derive(Clone, Debug)]
pub struct MemoryClient {
    server: Memory,
    link: Arc<watch::Sender<Link>>,
}

impl MemoryClient {
    /// Changes what the connection does.
    pub fn set_link(&self, change: impl FnOnce(&mut Link)) {
        self.link.send_modify(change);
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        key: &Key,
        changes: bool,
        work: impl FnOnce(&Memory) -> Result<T> + Send,
    ) -> Result<T> {
        let link = self.link.borrow().clone();
        tokio::time::sleep(link.latency).await;
        if self.link.borrow().down {
            return Err(ClusterError::Unavailable("the link is down".into()));
        }
        self.server.lock().calls.push((operation, key.clone()));
        let result = work(&self.server);
        if changes && link.loses_replies {
            return Err(ClusterError::Unavailable("the reply was lost".into()));
        }
        result
    }
}

const NOTHING: fn() -> Key = || Key::new("", "");

#[async_trait]
impl Cluster for MemoryClient {
    async fn watch(&self, changes: mpsc::Sender<Change>) -> Result<()> {
        let mut link = self.link.subscribe();
        let mut stream = self
            .call("watch", &NOTHING(), false, |server| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let mut state = server.lock();
                let all = state.objects.values().cloned().map(Record::new).collect();
                let _ = sender.send(Change::Listed(all));
                state.watchers.push(sender);
                Ok(receiver)
            })
            .await?;
        loop {
            tokio::select! {
                biased;
                _ = link.changed() => {
                    if link.borrow().down {
                        return Err(ClusterError::Unavailable("the link went down".into()));
                    }
                }
                change = stream.recv(), if !self.link.borrow().silent => match change {
                    Some(change) => {
                        if changes.send(change).await.is_err() {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                () = changes.closed() => return Ok(()),
            }
        }
    }

    async fn record(&self, key: &Key) -> Result<Option<Record>> {
        self.call("get", key, false, |server| Ok(server.object(key).map(Record::new))).await
    }

    async fn pod(&self, key: &Key) -> Result<Option<Pod>> {
        self.call("get_pod", key, false, |server| Ok(server.lock().pods.get(key).cloned())).await
    }

    async fn daemons(&self) -> Result<BTreeMap<String, Daemon>> {
        self.call("daemons", &NOTHING(), false, |server| Ok(server.lock().nodes.clone())).await
    }

    async fn view(&self) -> Result<View> {
        let link = self.link.borrow().clone();
        self.call("view", &NOTHING(), false, |server| {
            let state = server.lock();
            let records: Vec<Record> = state.objects.values().cloned().map(Record::new).collect();
            let mut view = View::new("memory", records, state.pods.values().cloned().collect());
            view.revision = Some(state.revision);
            view.nodes = state.nodes.clone();
            if let Some(n) = link.cut_view {
                view.records.truncate(n);
                view.complete = false;
            }
            if let Some((uid, revision)) = link.view_of {
                (view.cluster_uid, view.revision) = (uid, Some(revision));
                (view.records, view.pods) = (Vec::new(), Vec::new());
            }
            Ok(view)
        })
        .await
    }

    async fn release(&self, record: &Record) -> Result<()> {
        let Some(patch) = writes::release(&record.object) else { return Ok(()) };
        self.call("release", &record.key, true, |server| server.patch(&record.key, &patch).map(drop)).await
    }

    async fn delete(&self, record: &Record, by: Option<&str>) -> Result<()> {
        self.call("delete", &record.key, true, |server| {
            let Some(object) = server.object(&record.key) else { return Err(ClusterError::NotFound) };
            if object.metadata.uid != record.object.metadata.uid {
                return Err(ClusterError::Conflict);
            }
            if let Some(by) = by {
                server
                    .patch(&record.key, &json!({"metadata": {"annotations": {names::SUPERSEDED_BY: by}}}))?;
            }
            server.delete(&record.key);
            Ok(())
        })
        .await
    }

    async fn set_condition(&self, record: &Record, note: &Note) -> Result<()> {
        self.call("condition", &record.key, true, |server| {
            let now = time(server.lock().now());
            let object = server.object(&record.key).ok_or(ClusterError::NotFound)?;
            server.patch(&record.key, &conditions::patch(&object, note, now)).map(drop)
        })
        .await
    }

    async fn event(&self, record: &Record, note: &Note) -> Result<()> {
        self.call("event", &record.key, true, |server| {
            server.lock().notes.push((record.key.clone(), note.clone()));
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Leases for MemoryClient {
    async fn read(&self) -> Result<Option<LeaseState>> {
        self.call("get_lease", &NOTHING(), false, |server| Ok(server.lock().lease.clone())).await
    }

    async fn write(&self, lease: &LeaseState) -> Result<LeaseState> {
        self.call("put_lease", &NOTHING(), true, |server| {
            let mut state = server.lock();
            let version = state.lease.as_ref().map(|l| l.version.clone()).unwrap_or_default();
            if version != lease.version {
                return Err(ClusterError::Conflict);
            }
            state.revision += 1;
            let written = LeaseState { version: state.revision.to_string(), ..lease.clone() };
            state.lease = Some(written.clone());
            Ok(written)
        })
        .await
    }
}
