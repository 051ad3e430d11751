//! A program's connection to the API server, which can be cut, slow, behind, and lose replies.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use peerpod_api::{PeerPod, names, writes};
use peerpod_ctrl::{
    cluster::{Cluster, ClusterError, Result},
    election::{LeaseState, Leases},
    model::{Change, Daemon, Key, Note, Pod, Record, View},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    server::{CLUSTER, Server},
    sim::{Fault, Link, Point, Program, Sim},
};

/// How long a call waits for an answer.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(30);
const FAULTS: [Fault; 4] = [Fault::Error, Fault::Hang, Fault::Crash, Fault::Delay(Duration::from_secs(8))];
/// How long a connection that is cut seems to be there.
const NOTICE: Duration = Duration::from_secs(10);

/// One program's connection.
#[derive(Clone)]
pub(crate) struct Client {
    pub sim: Sim,
    pub server: Server,
    pub program: Program,
    /// How far the changes that it is told lag behind.
    pub lag: Duration,
    /// The latest version of the cluster that the leadership of the moment has seen in a view.
    pub knew: Arc<AtomicU64>,
}

fn away(why: &str) -> ClusterError {
    ClusterError::Unavailable(why.into())
}

impl Client {
    pub(crate) fn new(server: &Server, program: &Program) -> Self {
        let sim = server.sim.clone();
        let most = u64::try_from(sim.profile.lag.as_millis()).unwrap_or_default();
        let lag = sim.millis(0..most + 1);
        Self { sim, server: server.clone(), program: program.clone(), lag, knew: Arc::default() }
    }

    /// Makes a call: its effect comes between two points.
    async fn call<T>(
        &self,
        operation: &'static str,
        subject: impl std::fmt::Display,
        effect: impl FnOnce(&Server) -> Result<T>,
    ) -> Result<T> {
        let part = if self.program.is_controller { "controller" } else { "daemon" };
        let point = |moment| Point(part, operation, moment);
        let work = async {
            let before = self.sim.pass(&self.program, point("before"), &subject, &FAULTS).await;
            before.map_err(|()| away("scripted"))?;
            sleep(self.sim.millis(1..200)).await;
            self.alive().await;
            if self.sim.is_cut(&self.program, Link::Api) {
                std::future::pending::<()>().await;
            }
            let result = effect(&self.server);
            let after = self.sim.pass(&self.program, point("after"), &subject, &FAULTS).await;
            after.map_err(|()| away("the reply was lost"))?;
            result
        };
        let result = timeout(CALL_LIMIT, work).await.unwrap_or_else(|_| Err(away("no answer")));
        self.alive().await;
        self.program.tick(&self.sim);
        result
    }

    /// A program that is dead does nothing more.
    async fn alive(&self) {
        if self.program.life.is_over() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) async fn create(&self, object: PeerPod) -> Result<PeerPod> {
        self.call("create", crate::server::key_of(&object), |s| s.create(object.clone())).await
    }

    pub(crate) async fn patch(&self, operation: &'static str, key: &Key, patch: &Value) -> Result<PeerPod> {
        self.call(operation, key, |s| s.patch(key, patch, false)).await
    }

    pub(crate) async fn remove(&self, key: &Key, uid: &str) -> Result<()> {
        self.call("remove", key, |s| s.delete(key, Some(uid))).await
    }

    pub(crate) async fn heartbeat(&self, node: &str) -> Result<()> {
        let unix = self.program.unix(&self.sim);
        let beat = |s: &Server| {
            s.heartbeat(node, unix);
            Ok(())
        };
        self.call("heartbeat", node, beat).await
    }

    /// The first list of a watch may be one of the past.
    fn first_revision(&self) -> u64 {
        let behind = self.sim.profile.followers && self.sim.state().faults_on && self.sim.chance(50);
        match behind {
            true => self.server.older_revision(self.sim.millis(0..300_000)),
            false => self.server.revision(),
        }
    }
}

#[async_trait]
impl Cluster for Client {
    async fn watch(&self, changes: mpsc::Sender<Change>) -> Result<()> {
        let mut at = self.call("watch", "", |_| Ok(())).await.map(|()| self.first_revision())?;
        let sim = &self.sim;
        sim.log(format_args!("{} is told changes from {at}", self.program.name));
        if changes.send(Change::Listed(self.server.records_at(at))).await.is_err() {
            return Ok(());
        }
        loop {
            self.alive().await;
            let news = sim.changed.notified();
            if sim.is_cut(&self.program, Link::Api) {
                sleep(NOTICE).await;
                return Err(away("the stream broke"));
            }
            let next = self.server.change_after(at);
            let Some((revision, made, change)) = next else {
                tokio::select! {
                    biased;
                    () = changes.closed() => return Ok(()),
                    () = news => {}
                }
                continue;
            };
            tokio::time::sleep_until(made + self.lag).await;
            while sim.is_cut(&self.program, Link::Watch) {
                sleep(Duration::from_secs(5)).await;
            }
            let point = Point("controller", "change", "at");
            let kinds = [Fault::Error, Fault::Crash, Fault::Delay(Duration::from_secs(8))];
            if sim.pass(&self.program, point, revision, &kinds).await.is_err() {
                // The server forgot the version, or the stream broke.
                return Err(if sim.chance(50) { ClusterError::Expired } else { away("the stream broke") });
            }
            at = revision;
            if changes.send(change).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn record(&self, key: &Key) -> Result<Option<Record>> {
        self.call("get", key, |s| Ok(s.read(&self.program.name, key).map(Record::new))).await
    }

    async fn pod(&self, key: &Key) -> Result<Option<Pod>> {
        self.call("get_pod", key, |s| Ok(s.pod(key))).await
    }

    async fn daemons(&self) -> Result<BTreeMap<String, Daemon>> {
        self.call("daemons", "", |s| Ok(s.daemons(self.program.unix(&self.sim)))).await
    }

    async fn view(&self) -> Result<View> {
        self.call("view", "", |s| {
            let sim = &self.sim;
            let mut view = s.view(self.program.unix(sim));
            sim.state().counts.sweeps += 1;
            if !sim.state().faults_on {
                return Ok(view);
            }
            if sim.chance(8) {
                // Somebody put another cluster behind the same address.
                view = View::new("another-cluster", Vec::new(), Vec::new());
                view.revision = Some(u64::MAX);
            } else if sim.profile.followers && sim.chance(15) {
                // From the past: further back than an orphan is watched only for somebody who knows better.
                let grace = u64::try_from(sim.profile.orphan_grace.as_millis()).unwrap_or_default();
                let near = s.older_revision(sim.millis(0..grace + 1));
                let far = s.older_revision(sim.millis(0..3_600_000));
                let knew = self.knew.load(Ordering::SeqCst);
                if let Some(revision) = [far].into_iter().find(|r| *r < knew).or((grace > 0).then_some(near))
                {
                    (view.records, view.revision) = (s.records_at(revision), Some(revision));
                }
            } else if sim.chance(15) {
                // A list broke off.
                if self.sim.chance(50) {
                    view.records.truncate(view.records.len() / 2);
                } else {
                    view.pods.clear();
                }
                view.complete = false;
            }
            if view.complete && view.cluster_uid == CLUSTER {
                self.knew.fetch_max(view.revision.unwrap_or_default(), Ordering::SeqCst);
            }
            Ok(view)
        })
        .await
    }

    async fn release(&self, record: &Record) -> Result<()> {
        let Some(patch) = writes::release(&record.object) else { return Ok(()) };
        self.patch("release", &record.key, &patch).await.map(drop)
    }

    async fn delete(&self, record: &Record, by: Option<&str>) -> Result<()> {
        if let Some(by) = by {
            let patch = json!({"metadata": {"uid": record.uid(), "annotations": {names::SUPERSEDED_BY: by}}});
            self.patch("supersede", &record.key, &patch).await?;
        }
        self.remove(&record.key, record.uid()).await
    }

    async fn set_condition(&self, record: &Record, note: &Note) -> Result<()> {
        let what = format!("{} {}", record.key, note.reason);
        self.call("condition", what, |s| s.set_condition(record, note)).await
    }

    async fn event(&self, record: &Record, note: &Note) -> Result<()> {
        let told = |s: &Server| {
            s.event(record);
            Ok(())
        };
        self.call("event", format!("{} {}", record.key, note.reason), told).await
    }
}

#[async_trait]
impl Leases for Client {
    async fn read(&self) -> Result<Option<LeaseState>> {
        self.call("read_lease", "", |s| Ok(s.lease())).await
    }

    async fn write(&self, lease: &LeaseState) -> Result<LeaseState> {
        self.call("write_lease", &lease.holder, |s| s.write_lease(lease)).await
    }
}
