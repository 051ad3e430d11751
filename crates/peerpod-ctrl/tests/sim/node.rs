//! A node: its daemon, which comes and goes, and keeps the cluster's side as the real one does.
//!
//! The daemon's own state machine has a simulation of its own. Here it is a player of its sequence: journal, claim, create,
//! bind; and at the end journal, delete or release, until the cloud says gone, and then the record's finalizer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{CreateRequest, InstanceId, OpContext, Ownership, Provider as _, Token, Unit};
use peerpod_api::{Claim, Facts, Gone, PeerPod, Placement, PodOwner, names, rules, writes};
use peerpod_ctrl::{
    cluster::{Cluster as _, ClusterError},
    model::{Key, Pod},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    cloud::SimProvider,
    server::Server,
    sim::{Program, Sim},
};

const SECOND: Duration = Duration::from_secs(1);
/// How long the cluster is waited for in the course of a start.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a create may take.
const CREATE_LIMIT: Duration = Duration::from_secs(200);
const DELETE_LIMIT: Duration = Duration::from_secs(600);

/// What the journal says of one sandbox.
#[derive(Clone, Debug)]
struct Entry {
    phase: Phase,
    pod: Pod,
    account: usize,
    order: u64,
    instance: Option<InstanceId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// A node, and what is on its disk.
#[derive(Clone)]
pub(crate) struct Node {
    pub sim: Sim,
    pub server: Server,
    pub name: Arc<str>,
    /// How far its clock is off; it is not set while the run lasts.
    skew: i64,
    journal: Arc<Mutex<BTreeMap<String, Entry>>>,
    daemon: Arc<Mutex<Option<Daemon>>>,
    /// The node is lost, or the run is over.
    pub over: CancellationToken,
}

/// A daemon that serves.
#[derive(Clone)]
pub(crate) struct Daemon {
    node: Node,
    program: Program,
    client: Client,
    providers: Vec<Arc<SimProvider>>,
    /// One at a time is at work for a sandbox, and a stop ends a start.
    turns: Arc<Mutex<BTreeMap<String, Turn>>>,
}

#[derive(Clone, Debug, Default)]
struct Turn {
    lock: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
}

/// What a start writes into the cluster.
#[derive(Clone, Copy)]
enum Step<'a> {
    Claim(&'a Claim),
    Bind(&'a Pod, &'a str, &'a InstanceId),
}

/// Account names, as records and the controller's configuration have them.
pub(crate) fn account_name(account: usize) -> String {
    format!("cloud-{account}")
}

impl Node {
    pub(crate) fn new(server: &Server, name: &str) -> Self {
        server.add_node(name);
        Self {
            sim: server.sim.clone(),
            server: server.clone(),
            name: name.into(),
            skew: server.sim.skew(),
            journal: Arc::default(),
            daemon: Arc::default(),
            over: CancellationToken::new(),
        }
    }

    /// Starts a daemon, and another one whenever it ended.
    pub(crate) async fn run(self) {
        let sim = &self.sim;
        while !self.over.is_cancelled() {
            let program = Program::new(sim, &self.name, false, self.skew);
            let client = Client::new(&self.server, &program);
            let accounts = 0..sim.profile.accounts;
            let providers = accounts.map(|n| Arc::new(SimProvider::new(&self.server, &program, n))).collect();
            let daemon = Daemon {
                node: self.clone(),
                program: program.clone(),
                client,
                providers,
                turns: Arc::default(),
            };
            daemon.restore();
            *self.daemon.lock().unwrap() = Some(daemon.clone());
            sim.log(format_args!("the daemon of {} serves", self.name));
            sim.changed.notify_waiters();
            tokio::spawn(daemon.clone().beat());
            if sim.profile.signs {
                tokio::spawn(daemon.watch_signs());
            }
            tokio::select! {
                biased;
                () = self.over.cancelled() => {}
                () = program.life.0.cancelled() => {}
            }
            *self.daemon.lock().unwrap() = None;
            sim.kill(&program);
            // What a dead daemon asked for has taken effect by then.
            let longest = if sim.chance(20) { 900_000 } else { 20_000 };
            sleep(sim.millis(5_000..longest)).await;
        }
    }

    /// The node is lost for good, and with it all that ran there.
    pub(crate) fn lose(&self) {
        self.server.remove_node(&self.name);
        self.over.cancel();
    }

    /// Its disk is lost: the next daemon knows nothing.
    pub(crate) fn forget(&self) {
        self.sim.log(format_args!("the journal of {} is lost", self.name));
        let daemon = self.daemon.lock().unwrap().take();
        if let Some(daemon) = daemon {
            self.sim.kill(&daemon.program);
        }
        self.journal.lock().unwrap().clear();
    }

    /// What the journal still has to do.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        if self.over.is_cancelled() {
            return Vec::new();
        }
        let journal = self.journal.lock().unwrap();
        let left = journal.iter().filter(|(_, e)| e.phase != Phase::Ready);
        left.map(|(id, e)| format!("the journal of {}: {id} is {:?}", self.name, e.phase)).collect()
    }

    /// The daemon of the moment; calls wait for one.
    async fn current(&self, wait: Duration) -> Option<Daemon> {
        let find = async {
            loop {
                let change = self.sim.changed.notified();
                if self.over.is_cancelled() {
                    return None;
                }
                let daemon = self.daemon.lock().unwrap().clone();
                if let Some(daemon) = daemon.filter(|d| !d.program.life.is_over()) {
                    return Some(daemon);
                }
                change.await;
            }
        };
        timeout(wait, find).await.ok().flatten()
    }

    /// Starts a sandbox. Returns whether the answer was good.
    pub(crate) async fn start(&self, id: &str, pod: &Pod, account: usize) -> bool {
        let Some(daemon) = self.current(SECOND * 60).await else { return false };
        let life = daemon.program.life.0.clone();
        let work = tokio::spawn({
            let (id, pod) = (id.to_owned(), pod.clone());
            async move { daemon.start(&id, &pod, account).await }
        });
        // A call that a restart of the daemon cuts off has failed, whatever became of it.
        let answer = tokio::select! {
            biased;
            () = life.cancelled() => false,
            answer = work => answer.unwrap_or_default(),
        };
        self.sim.log(format_args!("start of {id}: {answer}"));
        answer
    }

    /// Stops a sandbox; a gateway keeps the call until a daemon takes it.
    pub(crate) async fn stop(&self, id: &str) {
        if let Some(daemon) = self.current(SECOND * 3600).await {
            self.sim.log(format_args!("stop of {id}"));
            daemon.stop(id);
        }
    }
}

impl Daemon {
    fn turn(&self, id: &str) -> Turn {
        self.turns.lock().unwrap().entry(id.to_owned()).or_default().clone()
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.node.journal.lock().unwrap().get_mut(id) {
            change(entry);
        }
    }

    fn entry(&self, id: &str) -> Option<Entry> {
        self.node.journal.lock().unwrap().get(id).cloned()
    }

    /// Goes on where the last one ended: a start that was cut off is undone.
    fn restore(&self) {
        let all: Vec<(String, Entry)> =
            self.node.journal.lock().unwrap().iter().map(|(id, e)| (id.clone(), e.clone())).collect();
        for (id, entry) in all.into_iter().filter(|(_, e)| e.phase != Phase::Ready) {
            self.node
                .sim
                .log(format_args!("{} goes on with {id}, which was {:?}", self.node.name, entry.phase));
            self.stop(&id);
        }
    }

    async fn beat(self) {
        while !self.program.life.is_over() {
            let _ = self.client.heartbeat(&self.node.name).await;
            sleep(SECOND * 30).await;
        }
    }

    /// Ends sandboxes whose pods are gone.
    async fn watch_signs(self) {
        while !self.program.life.is_over() {
            sleep(SECOND * 60).await;
            let all: Vec<(String, Entry)> =
                self.node.journal.lock().unwrap().iter().map(|(id, e)| (id.clone(), e.clone())).collect();
            for (id, entry) in all.into_iter().filter(|(_, e)| e.phase == Phase::Ready) {
                let Ok(found) = self.client.pod(&entry.pod.key).await else { continue };
                if found.is_none_or(|found| found.uid != entry.pod.uid) {
                    self.node.sim.log(format_args!("{} finds the pod of {id} gone", self.node.name));
                    self.stop(&id);
                }
            }
        }
    }

    async fn start(&self, id: &str, pod: &Pod, account: usize) -> bool {
        let sim = &self.node.sim;
        let order = {
            let mut journal = self.node.journal.lock().unwrap();
            let last = journal.values().map(|e| e.order).max().unwrap_or_default();
            let order = (self.program.unix(sim) * 1000).max(last + 1);
            let entry = Entry { phase: Phase::Starting, pod: pod.clone(), account, order, instance: None };
            journal.insert(id.to_owned(), entry);
            order
        };
        let turn = self.turn(id);
        let held = turn.lock.lock().await;
        let result = self.try_start(id, pod, account, order, turn.stop).await;
        drop(held);
        match result {
            Ok(()) => {
                let mut good = false;
                self.change(id, |entry| {
                    // It may have been stopped meanwhile.
                    good = entry.phase == Phase::Starting;
                    if good {
                        entry.phase = Phase::Ready;
                    }
                });
                good
            }
            Err(why) => {
                sim.log(format_args!("start of {id} fails: {why}"));
                if let Some(sandbox) = sim.state().sandboxes.get_mut(id) {
                    sandbox.wanted = false;
                }
                self.stop(id);
                false
            }
        }
    }

    async fn try_start(
        &self,
        id: &str,
        pod: &Pod,
        account: usize,
        order: u64,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let token = Token::new(self.node.sim.scope.clone(), id, 1);
        let owner = PodOwner::new(&pod.key.namespace, &pod.key.name, &pod.uid);
        let mut claim = Claim::new(id, token.clone(), owner);
        (claim.provider, claim.node) = (account_name(account), Some(self.node.name.to_string()));
        (claim.order, claim.instance_name) = (Some(order), Some(instance_name(pod, id)));
        self.patiently(Step::Claim(&claim)).await.map_err(|e| format!("claim: {e}"))?;
        let unit = Unit { id: id.to_owned(), name_hint: pod.key.name.clone() };
        let request = CreateRequest::new(token, unit, &*self.node.name);
        let ctx = OpContext::new().with_timeout(CREATE_LIMIT).with_cancel(stop);
        let instance =
            self.providers[account].create_instance(&ctx, &request).await.map_err(|e| e.to_string())?;
        self.change(id, |entry| entry.instance = Some(instance.id.clone()));
        self.patiently(Step::Bind(pod, id, &instance.id)).await.map_err(|e| format!("bind: {e}"))
    }

    /// Tries again for a while what the cluster may do a moment later.
    async fn patiently(&self, step: Step<'_>) -> Result<(), ClusterError> {
        let begun = Instant::now();
        loop {
            let result = match step {
                Step::Claim(claim) => self.claim(claim).await,
                Step::Bind(pod, id, instance) => self.bind(pod, id, instance).await,
            };
            match result {
                Err(ClusterError::Unavailable(_) | ClusterError::Conflict) if begun.elapsed() < PATIENCE => {
                    sleep(SECOND * 2).await;
                }
                other => return other,
            }
        }
    }

    async fn claim(&self, claim: &Claim) -> Result<(), ClusterError> {
        let object = writes::early(claim);
        match self.client.create(object.clone()).await {
            Err(ClusterError::Conflict) => {}
            other => return other.map(drop),
        }
        let Some(there) = self.client.record(&crate::server::key_of(&object)).await? else {
            return Err(ClusterError::Conflict);
        };
        if rules::is_deleting(&there.object) {
            return Err(ClusterError::Refused("the pod is gone".into()));
        }
        match writes::claim_again(&there.object, claim) {
            Some(patch) => self.client.patch("claim", &there.key, &patch).await.map(drop),
            None => Ok(()),
        }
    }

    async fn bind(&self, pod: &Pod, id: &str, instance: &InstanceId) -> Result<(), ClusterError> {
        let key = record_key(pod, id);
        let record = self.client.record(&key).await?.ok_or(ClusterError::NotFound)?;
        if rules::is_deleting(&record.object) {
            return Err(ClusterError::Refused("the pod was deleted while its VM was made".into()));
        }
        match writes::bind(&record.object, instance, &Placement::default()) {
            Some(patch) => self.client.patch("bind", &key, &patch).await.map(drop),
            None => Ok(()),
        }
    }

    /// Answers at once; the deletion goes on until it is done.
    fn stop(&self, id: &str) {
        let Some(entry) = self.entry(id) else { return };
        let turn = self.turn(id);
        if entry.phase == Phase::Stopping && turn.stop.is_cancelled() {
            return;
        }
        self.change(id, |entry| entry.phase = Phase::Stopping);
        turn.stop.cancel();
        let (daemon, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            let _turn = turn.lock.lock().await;
            let mut pause = SECOND;
            while let Some(entry) = daemon.entry(&id) {
                if daemon.program.life.is_over() {
                    return;
                }
                // A cloud may leave a call unanswered.
                let late = |_| Err("no answer".to_owned());
                match timeout(DELETE_LIMIT, daemon.try_stop(&id, &entry)).await.unwrap_or_else(late) {
                    Ok(()) => {
                        daemon.node.journal.lock().unwrap().remove(&id);
                        daemon.node.sim.log(format_args!("{id} is gone"));
                        return;
                    }
                    Err(why) => daemon.node.sim.log(format_args!("stop of {id} fails: {why}")),
                }
                sleep(pause).await;
                pause = (pause * 2).min(SECOND * 120);
            }
        });
    }

    async fn try_stop(&self, id: &str, entry: &Entry) -> Result<(), String> {
        let provider = &self.providers[entry.account];
        let ctx = OpContext::new().with_timeout(DELETE_LIMIT);
        let token = Token::new(self.node.sim.scope.clone(), id, 1);
        if let Some(instance) = &entry.instance {
            let ownership = Ownership::Tagged(token.scope.clone());
            provider.delete_instance(&ctx, instance, &ownership).await.map_err(|e| e.to_string())?;
        }
        provider.release(&ctx, &token).await.map_err(|e| e.to_string())?;
        let gone = Gone { instance: entry.instance.clone(), token: Some(token) };
        self.release(&entry.pod, id, &gone).await.map_err(|e| e.to_string())
    }

    async fn release(&self, pod: &Pod, id: &str, gone: &Gone) -> Result<(), ClusterError> {
        let Some(record) = self.client.record(&record_key(pod, id)).await? else { return Ok(()) };
        let object: &PeerPod = &record.object;
        if Facts::of(object).sandbox.as_deref() != Some(id) {
            return Ok(());
        }
        if !rules::may_finalizer_go(object, gone) {
            return Err(ClusterError::Refused("it names something else".into()));
        }
        if let Some(patch) = writes::release(object) {
            match self.client.patch("release", &record.key, &patch).await {
                Err(ClusterError::NotFound) => return Ok(()),
                other => drop(other?),
            }
        }
        if record.is_deleting() {
            return Ok(());
        }
        // The pod may live on with a new sandbox.
        match self.client.remove(&record.key, record.uid()).await {
            Err(ClusterError::NotFound | ClusterError::Conflict) => Ok(()),
            other => other,
        }
    }
}

fn instance_name(pod: &Pod, id: &str) -> String {
    cloud_providers::names::instance_name(&pod.key.name, id, 63).unwrap()
}

/// The name of the record of a sandbox.
pub(crate) fn record_key(pod: &Pod, id: &str) -> Key {
    Key::new(&pod.key.namespace, names::object_name(&pod.key.name, id))
}
