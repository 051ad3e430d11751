//! The simulated API server: objects with versions and finalizers, their history, pods, nodes, heartbeats and Leases, and
//! the garbage collector.
//!
//! What it keeps of the real one: versions that grow; writes that name a version or UID and are refused when it is another;
//! an object that is being deleted, takes no new finalizer and stays for as long as it has one; dependents of an owner that
//! is gone, or is deleted in the foreground, are deleted a while later; lists and watches may be served from the past.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cloud_providers::tags;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use peerpod_api::{Facts, PeerPod, PeerPodSpec, PeerPodStatus, PodOwner, Stage, names, rules};
use peerpod_ctrl::{
    cluster::{ClusterError, Result},
    election::LeaseState,
    memory::time,
    model::{Change, Daemon, Key, Note, Pod, Record, View},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::sim::Sim;

/// UID of the namespace that names the cluster.
pub(crate) const CLUSTER: &str = "cluster-uid";

/// A pod, and what the cluster does with it.
#[derive(Clone, Debug)]
pub(crate) struct PodState {
    pub pod: Pod,
    /// When its deletion was asked for.
    pub asked: Option<Instant>,
    /// It stays for as long as something that it owns does.
    pub foreground: bool,
}

/// One change of the objects.
#[derive(Clone, Debug)]
struct Logged {
    revision: u64,
    at: Instant,
    key: Key,
    object: Option<Arc<PeerPod>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    uids: u64,
    objects: BTreeMap<Key, Arc<PeerPod>>,
    /// When the deletion of an object was asked for, by the clock that is right.
    asked: BTreeMap<String, Instant>,
    /// Since when an object is protected.
    protected: BTreeMap<String, Instant>,
    pods: BTreeMap<Key, PodState>,
    /// Nodes, and the time of the last heartbeat of their daemon, by the daemon's clock.
    nodes: BTreeMap<String, Option<u64>>,
    log: Vec<Logged>,
    /// When another object of the same pod was made after one.
    succeeded: BTreeMap<String, Instant>,
    lease: Option<LeaseState>,
    /// When a program last read an object, by its UID.
    reads: BTreeMap<(Arc<str>, String), Instant>,
    /// Objects as they were when they went.
    gone: Vec<(Arc<PeerPod>, Instant)>,
    told: BTreeMap<Key, u64>,
}

/// The API server.
#[derive(Clone)]
pub(crate) struct Server {
    pub sim: Sim,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn new(sim: &Sim) -> Self {
        Self { sim: sim.clone(), state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Stores an object, or removes it when nothing holds it any more.
    fn store(&self, state: &mut State, mut object: PeerPod) -> PeerPod {
        if self.sim.profile.older {
            // The definition does not know our fields.
            object.spec = PeerPodSpec {
                cloud_provider: object.spec.cloud_provider,
                instance_id: object.spec.instance_id,
                ..PeerPodSpec::default()
            };
            object.status = None;
        }
        state.revision += 1;
        object.metadata.resource_version = Some(state.revision.to_string());
        let key = key_of(&object);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        if Facts::of(&object).protected {
            state.protected.entry(uid.clone()).or_insert_with(Instant::now);
        } else {
            state.protected.remove(&uid);
        }
        let empty = object.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
        let stored = match object.metadata.deletion_timestamp.is_some() && empty {
            true => {
                if let Some(last) = state.objects.remove(&key) {
                    state.gone.push((last, Instant::now()));
                }
                state.told.remove(&key);
                None
            }
            false => {
                let shared = Arc::new(object.clone());
                state.objects.insert(key.clone(), shared.clone());
                Some(shared)
            }
        };
        state.log.push(Logged { revision: state.revision, at: Instant::now(), key, object: stored });
        self.sim.changed.notify_waiters();
        object
    }

    fn mark_deleted(&self, state: &mut State, key: &Key) {
        let Some(object) = state.objects.get(key) else { return };
        if object.metadata.deletion_timestamp.is_none() {
            let mut object = PeerPod::clone(object);
            object.metadata.deletion_timestamp = Some(self.now());
            state.asked.insert(object.metadata.uid.clone().unwrap_or_default(), Instant::now());
            self.sim.log(format_args!("{key} is being deleted"));
            self.store(state, object);
        }
    }

    fn now(&self) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
        time(i64::try_from(self.sim.unix()).unwrap_or_default())
    }

    pub(crate) fn create(&self, mut object: PeerPod) -> Result<PeerPod> {
        let mut state = self.lock();
        if state.objects.contains_key(&key_of(&object)) {
            return Err(ClusterError::Conflict);
        }
        state.uids += 1;
        object.metadata.uid = Some(format!("object-{}", state.uids));
        object.metadata.creation_timestamp = Some(self.now());
        let owner = PodOwner::of(&object);
        let same = |o: &&Arc<PeerPod>| owner.is_some() && PodOwner::of(o) == owner;
        let older: Vec<String> =
            state.objects.values().filter(same).filter_map(|o| o.metadata.uid.clone()).collect();
        for uid in older {
            state.succeeded.entry(uid).or_insert_with(Instant::now);
        }
        Ok(self.store(&mut state, object))
    }

    /// Applies a merge patch. `by_hand` is somebody who may break every rule.
    pub(crate) fn patch(&self, key: &Key, patch: &Value, by_hand: bool) -> Result<PeerPod> {
        let mut state = self.lock();
        let object = state.objects.get(key).cloned().ok_or(ClusterError::NotFound)?;
        for (name, has) in
            [("uid", &object.metadata.uid), ("resourceVersion", &object.metadata.resource_version)]
        {
            if patch["metadata"][name].as_str().is_some_and(|w| Some(w) != has.as_deref()) {
                return Err(ClusterError::Conflict);
            }
        }
        let mut value = json!(*object);
        merge(&mut value, patch);
        let mut changed: PeerPod =
            serde_json::from_value(value).map_err(|e| ClusterError::Refused(e.to_string()))?;
        changed.status.clone_from(&object.status);
        let known = object.metadata.finalizers.clone().unwrap_or_default();
        let added = changed.metadata.finalizers.iter().flatten().any(|f| !known.contains(f));
        if object.metadata.deletion_timestamp.is_some() && added {
            return Err(ClusterError::Refused(
                "no new finalizers can be added if the object is being deleted".into(),
            ));
        }
        if !by_hand && rules::stage(&object) != Stage::Done && rules::stage(&changed) == Stage::Done {
            self.check_gone(&object);
        }
        Ok(self.store(&mut state, changed))
    }

    /// A finalizer of ours goes: what it stands for must be gone.
    fn check_gone(&self, object: &PeerPod) {
        let facts = Facts::of(object);
        let tag = facts.token.as_ref().map(|token| token.tag_value()).unwrap_or_default();
        let left = self.sim.tagged(tags::TOKEN, &tag, true);
        if let Some(id) = left.first() {
            self.sim.violation(format_args!(
                "the finalizer of {} went before its VM {id} was gone",
                key_of(object)
            ));
        }
    }

    /// Asks for the deletion of an object.
    pub(crate) fn delete(&self, key: &Key, uid: Option<&str>) -> Result<()> {
        let mut state = self.lock();
        let object = state.objects.get(key).ok_or(ClusterError::NotFound)?;
        if uid.is_some() && object.metadata.uid.as_deref() != uid {
            return Err(ClusterError::Conflict);
        }
        self.mark_deleted(&mut state, key);
        Ok(())
    }

    pub(crate) fn object(&self, key: &Key) -> Option<PeerPod> {
        self.lock().objects.get(key).map(|o| PeerPod::clone(o))
    }

    /// Reads an object for a program.
    pub(crate) fn read(&self, program: &Arc<str>, key: &Key) -> Option<PeerPod> {
        let object = self.object(key)?;
        let uid = object.metadata.uid.clone().unwrap_or_default();
        self.lock().reads.insert((program.clone(), uid), Instant::now());
        Some(object)
    }

    /// When a program last read an object.
    pub(crate) fn last_read(&self, program: &Arc<str>, uid: &str) -> Option<Instant> {
        self.lock().reads.get(&(program.clone(), uid.to_owned())).copied()
    }

    /// The objects that went no longer ago than `limit`.
    pub(crate) fn gone_lately(&self, limit: Duration) -> Vec<Arc<PeerPod>> {
        let mut state = self.lock();
        state.gone.retain(|(_, at)| at.elapsed() <= limit);
        state.gone.iter().map(|(object, _)| object.clone()).collect()
    }

    pub(crate) fn objects(&self) -> Vec<Arc<PeerPod>> {
        self.lock().objects.values().cloned().collect()
    }

    /// When the deletion of an object was asked for; since when its daemon knows that it has to go; and since when it is
    /// protected.
    pub(crate) fn moments(&self, uid: &str) -> (Option<Instant>, Option<Instant>, Option<Instant>) {
        let state = self.lock();
        let asked = state.asked.get(uid).copied();
        let doomed = asked.into_iter().chain(state.succeeded.get(uid).copied()).min();
        (asked, doomed, state.protected.get(uid).copied())
    }

    pub(crate) fn lease(&self) -> Option<LeaseState> {
        self.lock().lease.clone()
    }

    /// Writes the Lease, if it has that version still.
    pub(crate) fn write_lease(&self, lease: &LeaseState) -> Result<LeaseState> {
        let mut state = self.lock();
        let version = state.lease.as_ref().map(|l| l.version.clone()).unwrap_or_default();
        if lease.version != version {
            return Err(ClusterError::Conflict);
        }
        state.revision += 1;
        let written = LeaseState { version: state.revision.to_string(), ..lease.clone() };
        state.lease = Some(written.clone());
        Ok(written)
    }

    /// Somebody removes a record around all rules.
    pub(crate) fn strip(&self, key: &Key) {
        self.sim.log(format_args!("somebody strips {key}"));
        let _ = self.patch(key, &json!({"metadata": {"finalizers": null}}), true);
        let _ = self.delete(key, None);
    }

    pub(crate) fn set_condition(&self, record: &Record, note: &Note) -> Result<()> {
        let mut state = self.lock();
        let object = state.objects.get(&record.key).ok_or(ClusterError::NotFound)?;
        let mut object = PeerPod::clone(object);
        let condition = Condition {
            type_: note.reason.condition().into(),
            status: "True".into(),
            reason: note.reason.label().into(),
            message: note.message.clone(),
            last_transition_time: self.now(),
            observed_generation: None,
        };
        let status = object.status.get_or_insert_with(PeerPodStatus::default);
        status.conditions.retain(|c| c.type_ != condition.type_);
        status.conditions.push(condition);
        self.store(&mut state, object);
        Ok(())
    }

    /// Counts what people were told about a record.
    pub(crate) fn event(&self, record: &Record) {
        *self.lock().told.entry(record.key.clone()).or_default() += 1;
    }

    /// Whether anything says why a record is where it is.
    pub(crate) fn is_explained(&self, object: &PeerPod) -> bool {
        let conditions =
            object.status.as_ref().is_some_and(|s| s.conditions.iter().any(|c| c.status == "True"));
        conditions || self.lock().told.contains_key(&key_of(object))
    }

    pub(crate) fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// A revision that a server which lags behind would answer with.
    pub(crate) fn older_revision(&self, age: Duration) -> u64 {
        let state = self.lock();
        let older = state.log.iter().rev().find(|l| l.at.elapsed() >= age).map(|l| l.revision);
        older.unwrap_or_default()
    }

    /// The objects as they were.
    pub(crate) fn records_at(&self, revision: u64) -> Vec<Record> {
        let state = self.lock();
        let mut objects: BTreeMap<&Key, &Arc<PeerPod>> = BTreeMap::new();
        for logged in state.log.iter().take_while(|l| l.revision <= revision) {
            match &logged.object {
                Some(object) => drop(objects.insert(&logged.key, object)),
                None => drop(objects.remove(&logged.key)),
            }
        }
        objects.values().map(|o| Record::new(PeerPod::clone(o))).collect()
    }

    /// The first change of an object after a revision: its revision, its time and what it was.
    pub(crate) fn change_after(&self, revision: u64) -> Option<(u64, Instant, Change)> {
        let state = self.lock();
        let logged = &state.log[state.log.partition_point(|l| l.revision <= revision)..];
        let first = logged.first()?;
        let change = match &first.object {
            Some(object) => Change::Applied(Box::new(Record::new(PeerPod::clone(object)))),
            None => Change::Deleted(first.key.clone()),
        };
        Some((first.revision, first.at, change))
    }

    /// Everything, as it is.
    pub(crate) fn view(&self, now: u64) -> View {
        let nodes = self.daemons(now);
        let state = self.lock();
        let records = state.objects.values().map(|o| Record::new(PeerPod::clone(o))).collect();
        let mut view = View::new(CLUSTER, records, state.pods.values().map(|p| p.pod.clone()).collect());
        view.revision = Some(state.revision);
        view.nodes = nodes;
        view
    }

    /// What is known about daemons by somebody whose clock says `now`.
    pub(crate) fn daemons(&self, now: u64) -> BTreeMap<String, Daemon> {
        let fresh =
            |at: &Option<u64>| at.is_some_and(|at| now.abs_diff(at) < names::HEARTBEAT_SECONDS as u64);
        let daemon = |at| if fresh(at) { Daemon::Alive } else { Daemon::Unknown };
        self.lock().nodes.iter().map(|(name, at)| (name.clone(), daemon(at))).collect()
    }

    pub(crate) fn add_node(&self, name: &str) {
        self.lock().nodes.insert(name.to_owned(), None);
    }

    pub(crate) fn has_node(&self, name: &str) -> bool {
        self.lock().nodes.contains_key(name)
    }

    pub(crate) fn remove_node(&self, name: &str) {
        self.lock().nodes.remove(name);
        self.sim.log(format_args!("node {name} is removed"));
    }

    pub(crate) fn heartbeat(&self, node: &str, unix: u64) {
        if let Some(at) = self.lock().nodes.get_mut(node) {
            *at = Some(unix);
        }
    }

    pub(crate) fn add_pod(&self, name: &str, node: &str) -> Pod {
        let mut state = self.lock();
        (state.uids, state.revision) = (state.uids + 1, state.revision + 1);
        let mut pod = Pod::new(Key::new("default", name), format!("pod-{}", state.uids));
        pod.node = Some(node.to_owned());
        let made = PodState { pod: pod.clone(), asked: None, foreground: false };
        state.pods.insert(pod.key.clone(), made);
        drop(state);
        self.sim.log(format_args!("pod {} {} on {node}", pod.key, pod.uid));
        pod
    }

    pub(crate) fn pod(&self, key: &Key) -> Option<Pod> {
        self.lock().pods.get(key).map(|p| p.pod.clone())
    }

    /// Changes a pod, if it is that one still.
    pub(crate) fn change_pod(&self, pod: &Pod, change: impl FnOnce(&mut PodState)) {
        let mut state = self.lock();
        state.revision += 1;
        if let Some(found) = state.pods.get_mut(&pod.key).filter(|p| p.pod.uid == pod.uid) {
            change(found);
        }
        self.sim.changed.notify_waiters();
    }

    /// Whether anything that a pod owns is there.
    pub(crate) fn owns_something(&self, pod: &Pod) -> bool {
        let state = self.lock();
        state.objects.values().any(|o| PodOwner::of(o).is_some_and(|owner| owner.uid == pod.uid))
    }

    pub(crate) fn remove_pod(&self, pod: &Pod) {
        let mut state = self.lock();
        if state.pods.get(&pod.key).is_some_and(|p| p.pod.uid == pod.uid) {
            state.revision += 1;
            state.pods.remove(&pod.key);
            self.sim.log(format_args!("pod {} {} is gone", pod.key, pod.uid));
            self.sim.changed.notify_waiters();
        }
    }

    /// Deletes what belongs to pods that are gone, or wait for what they own.
    pub(crate) async fn collect(self) {
        loop {
            let rests = self.sim.state().faults_on && self.sim.chance(2);
            sleep(self.sim.millis(500..if rests { 1_800_000 } else { 20_000 })).await;
            let mut state = self.lock();
            let pods = &state.pods;
            let doomed = |o: &PeerPod| {
                let Some(owner) = PodOwner::of(o) else { return false };
                match pods.get(&Key::new(&owner.namespace, &owner.name)).filter(|p| p.pod.uid == owner.uid) {
                    Some(pod) => pod.foreground && pod.asked.is_some(),
                    None => true,
                }
            };
            let keys: Vec<Key> =
                state.objects.iter().filter(|(_, o)| doomed(o)).map(|(k, _)| k.clone()).collect();
            for key in keys {
                self.mark_deleted(&mut state, &key);
            }
        }
    }
}

pub(crate) fn key_of(object: &PeerPod) -> Key {
    let metadata = &object.metadata;
    Key::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
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
