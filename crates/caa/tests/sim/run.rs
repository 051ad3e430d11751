//! One seed: daemons that come and go, pods that come and go, and what must be left of them: nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use caa::{
    config::{DaemonConfig, OPTIONS},
    hooks::{Hooks, Protection},
    journal::Journal,
    metrics::Metrics,
    orphans::{self, OrphanPolicy, OrphanSettings},
    sandbox::{Parts, Sandboxes},
};
use cloud_providers::{
    MapEnv, Resource, Scope, Settings, Token,
    scripted::{Lag, ScriptedProvider},
    tags,
};
use peerpod_proto::{Code, Status};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::SimDisk,
    parts::{CloudGate, Outside, SimProvider, Store, View},
    sim::{GRACE, Life, ORPHAN_GRACE, Pod, Point, Shim, Sim, SimWatcher},
};

const SECOND: Duration = Duration::from_secs(1);
/// How long after the last pod, and without further faults, something may be left.
const SETTLE: Duration = Duration::from_secs(3 * 3600);
/// Bounds of the calls, in which all limits of the daemon's steps have room.
const CREATE_BOUND: Duration = Duration::from_secs(300);
const START_BOUND: Duration = Duration::from_secs(3000);
/// What the real shim waits for StopVM.
const STOP_BOUND: Duration = Duration::from_secs(1);

/// What one seed came to.
pub(crate) struct Outcome {
    pub violations: Vec<String>,
    pub hits: BTreeMap<Point, u64>,
    pub trace: Vec<String>,
    pub pods: usize,
    pub daemons: u64,
}

/// Runs one seed in its own virtual time.
pub(crate) fn run(seed: u64, off: Option<Protection>, trace: bool) -> Outcome {
    let folder = tempfile::Builder::new().prefix("caa-sim-").tempdir_in(fast_folder()).unwrap();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let sim = Sim::new(seed, off, trace);
        let world = Node::new(sim.clone(), folder.path().to_owned());
        world.run().await;
        let state = sim.state();
        let (hits, violations) = (state.hits.clone(), state.violations.clone());
        let (pods, daemons) = (state.pods.len(), state.changes);
        drop(state);
        Outcome { violations, hits, trace: sim.take_trace(), pods, daemons }
    })
}

/// Memory, where there is a file system of it: the folders of sandboxes are real.
fn fast_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// How far a shim came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// StartVM was answered well.
    Running,
    /// A call failed, or nobody waited for it.
    Failed,
    /// The shim died between the two calls.
    Silent,
}

#[derive(Clone)]
struct Daemon {
    sandboxes: Sandboxes,
    life: Life,
}

#[derive(Clone)]
struct Node {
    sim: Sim,
    outside: Arc<Mutex<Outside>>,
    folder: PathBuf,
    config: Arc<DaemonConfig>,
    daemon: Arc<Mutex<Option<Daemon>>>,
    over: CancellationToken,
}

impl Node {
    fn new(sim: Sim, folder: PathBuf) -> Self {
        let pods = folder.join("pods");
        std::fs::create_dir_all(&pods).unwrap();
        std::fs::create_dir_all(folder.join("netns")).unwrap();
        let env = MapEnv::new([("PODS_DIR", pods.to_str().unwrap()), ("NODE_NAME", "node-1")]);
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&env);
        let (mut config, problems) = DaemonConfig::check(&settings.parse().unwrap(), &env);
        assert!(problems.is_empty(), "{problems:?}");
        // Keys differ from run to run, and with them the sizes of records.
        config.disable_tls = true;
        config.limit = -1;
        config.vxlan_min_id = 16_777_215 - 11;
        config.concurrent_creates = 2;
        Self {
            sim,
            outside: Arc::default(),
            folder,
            config: Arc::new(config),
            daemon: Arc::default(),
            over: CancellationToken::new(),
        }
    }

    async fn run(&self) {
        let sim = &self.sim;
        sim.log(format_args!("{:?}", sim.profile));
        self.populate();
        let daemons = tokio::spawn(self.clone().daemons());
        tokio::spawn(self.clone().gateways());
        let pods = sim.pick(&[1, 2, 3, 5]);
        let mut tasks = Vec::new();
        for n in 0..pods {
            let mut random = [0u8; 8];
            rand::Rng::fill(&mut sim.state().rng, &mut random);
            let id = format!("{n}{:016x}", u64::from_le_bytes(random));
            tasks.push(tokio::spawn(self.clone().pod(id)));
        }
        for task in tasks {
            if let Err(error) = task.await {
                sim.violation(format_args!("a pod's task ended: {error}"));
            }
        }
        sim.log("all pods ended, and there are no more faults");
        sim.state().faults_on = false;
        self.settle().await;
        self.over.cancel();
        let _ = daemons.await;
    }

    /// Puts what belongs to others into the cloud and onto the node.
    fn populate(&self) {
        let sim = &self.sim;
        let cloud = &sim.cloud;
        cloud.set_unique_names(false);
        cloud.set_latency(sim.millis(1..2000));
        cloud.set_boot_time(sim.millis(1..40_000));
        cloud.set_shutdown_time(sim.millis(1..40_000));
        cloud.set_page_size(sim.pick(&[1, 3, 100]));
        if sim.chance(30) {
            cloud.set_lag(Lag::time(sim.millis(1..5000)));
        }
        let ours = &sim.scope;
        let other = Scope::Cluster("other".into());
        for (n, (scope, holder)) in
            [(ours, Some("node-2")), (&other, Some("node-1")), (ours, None)].iter().enumerate()
        {
            let id = self.add(&format!("foreign-{n}"), scope, *holder);
            sim.state().foreign.insert(id);
        }
        let first = self.config.vxlan_min_id;
        self.outside.lock().unwrap().others.extend([first + 1, first + 4]);
    }

    /// An instance that no sandbox of this node made.
    fn add(&self, unit: &str, scope: &Scope, holder: Option<&str>) -> String {
        let token = Token::new(scope.clone(), unit, 1);
        let scope = tags::encode_value(&scope.to_string());
        let text = token.to_string();
        let value = token.tag_value();
        let mut all = vec![
            (tags::SCOPE, scope.as_str()),
            (tags::TOKEN, value.as_str()),
            (tags::TOKEN_TEXT, text.as_str()),
            (tags::UNIT, unit),
        ];
        all.extend(holder.map(|holder| (tags::HOLDER, holder)));
        self.sim.cloud.add(Resource::INSTANCE, unit, &all)
    }

    /// Starts a daemon, and another one whenever it ended.
    async fn daemons(self) {
        let sim = &self.sim;
        while !self.over.is_cancelled() {
            let life = Life::default();
            if let Err(error) = self.start(&life).await {
                sim.log(format_args!("the daemon does not start: {error:#}"));
                if !sim.state().disturbed {
                    sim.violation(format_args!("the daemon does not start for nothing: {error:#}"));
                }
                let text = format!("{error:#}");
                if text.contains("damaged") {
                    sim.violation(format_args!("the journal is damaged: {error:#}"));
                }
                sim.kill(&life);
            }
            let ending = async {
                if sim.chance(20) {
                    sleep(sim.millis(1_000..300_000)).await;
                    return true;
                }
                std::future::pending().await
            };
            let graceful = tokio::select! {
                biased;
                () = self.over.cancelled() => break,
                () = life.0.cancelled() => false,
                graceful = ending => graceful && sim.state().faults_on,
            };
            let daemon = self.daemon.lock().unwrap().clone();
            if let (true, Some(daemon)) = (graceful, daemon) {
                sim.log("the daemon is told to end");
                sim.state().disturbed = true;
                tokio::select! {
                    biased;
                    _ = daemon.sandboxes.suspend(SECOND * 15) => {}
                    () = life.0.cancelled() => {}
                }
                sim.kill(&life);
            }
            if !life.is_over() {
                // Nobody ended it: it goes on without further ends.
                tokio::select! {
                    biased;
                    () = self.over.cancelled() => break,
                    () = life.0.cancelled() => {}
                }
            }
            *self.daemon.lock().unwrap() = None;
            if !sim.profile.gateway_process {
                self.outside.lock().unwrap().forget_proxies();
                // Every connection of every shim broke.
                for pod in sim.state().pods.values_mut() {
                    pod.agent_open = false;
                    pod.hypervisor_closed = false;
                }
            }
            sim.daemon_changed();
            sleep(sim.millis(100..20_000)).await;
        }
        if let Some(daemon) = self.daemon.lock().unwrap().take() {
            daemon.life.0.cancel();
        }
    }

    /// Restarts the gateway's process now and then: every connection of every shim breaks, and it has forgotten all.
    async fn gateways(self) {
        let sim = &self.sim;
        while sim.profile.gateway_process && sim.chance(75) {
            sleep(sim.millis(10_000..300_000)).await;
            if !sim.state().faults_on {
                return;
            }
            sim.log("the gateway is restarted");
            self.outside.lock().unwrap().forget_proxies();
            sim.state().gateway_restarts();
            sim.changed.notify_waiters();
            let daemon = self.daemon.lock().unwrap().clone();
            if let Some(daemon) = daemon.filter(|d| !d.life.is_over()) {
                daemon.sandboxes.reattach().await;
            }
        }
    }

    async fn start(&self, life: &Life) -> anyhow::Result<()> {
        let sim = &self.sim;
        let watcher = Arc::new(SimWatcher(sim.clone(), life.clone()));
        let hooks = Hooks::new(sim.off, watcher);
        let disk = SimDisk { sim: sim.clone(), life: life.clone() };
        let journal = Journal::open_on(Arc::new(disk), &PathBuf::from("/state"), hooks.clone()).await?;
        let view = View { sim: sim.clone(), life: life.clone(), outside: self.outside.clone() };
        let scripted = ScriptedProvider::new(&sim.cloud.gated(Arc::new(CloudGate(view.clone()))));
        let provider = Arc::new(SimProvider(scripted, view.clone()));
        let metrics = Metrics::new("scripted");
        let sandboxes = Sandboxes::new(Parts {
            config: self.config.clone(),
            provider: provider.clone(),
            gateway: Arc::new(view.clone()),
            store: Arc::new(Store(journal, view.clone())),
            cluster: Arc::new(view.clone()),
            network: Arc::new(view),
            metrics: metrics.clone(),
            scope: sim.scope.clone(),
            direct_volumes: self.folder.join("direct-volumes"),
            hooks,
        });
        let restored = sandboxes.restore().await?;
        if life.is_over() {
            anyhow::bail!("it was killed");
        }
        sim.log(format_args!("a daemon serves: {restored:?}"));
        for sandbox in sandboxes.list() {
            sim.log(format_args!("  {} {:?}", sandbox.id, sandbox.phase));
        }
        tokio::spawn(sandboxes.clone().watch_signs(GRACE, life.0.clone()));
        let policy = if sim.profile.delete_orphans { OrphanPolicy::Delete } else { OrphanPolicy::Report };
        let settings =
            OrphanSettings { scope: sim.scope.clone(), node: "node-1".into(), policy, grace: ORPHAN_GRACE };
        tokio::spawn(orphans::watch(provider, sandboxes.clone(), settings, metrics, life.0.clone()));
        *self.daemon.lock().unwrap() = Some(Daemon { sandboxes: sandboxes.clone(), life: life.clone() });
        sim.daemon_changed();
        let kept = std::mem::take(&mut sim.state().kept_stops);
        for id in kept {
            sim.log(format_args!("StopVM {id}, kept by the gateway"));
            let sandboxes = sandboxes.clone();
            tokio::spawn(async move { sandboxes.stop_vm(&id).await });
        }
        Ok(())
    }

    /// The daemon of the moment; with a gateway process calls wait for one.
    async fn current(&self) -> Option<Daemon> {
        let find = async {
            loop {
                let change = self.sim.changed.notified();
                if let Some(daemon) = self.daemon.lock().unwrap().clone().filter(|d| !d.life.is_over()) {
                    return daemon;
                }
                change.await;
            }
        };
        let wait = if self.sim.profile.gateway_process { SECOND * 60 } else { Duration::ZERO };
        timeout(wait, find).await.ok()
    }

    /// Makes a call and checks its bound. `None` when the connection broke.
    async fn call<T>(
        &self,
        (name, turn): (&str, u64),
        id: &str,
        bound: Duration,
        call: impl AsyncFnOnce(Sandboxes) -> T,
    ) -> Option<T> {
        let sim = &self.sim;
        let Some(daemon) = self.current().await else {
            sim.log(format_args!("{name} {id}: nobody answers"));
            return None;
        };
        let begun = Instant::now();
        tokio::select! {
            biased;
            () = daemon.life.0.cancelled() => {
                sim.log(format_args!("{name} {id}: the connection broke"));
                None
            }
            answer = timeout(bound, call(daemon.sandboxes.clone())) => match answer {
                Ok(answer) => {
                    let took = begun.elapsed();
                    // Several that wait for the same wake in an order of chance.
                    sleep(Duration::from_millis(turn)).await;
                    sim.log(format_args!("{name} {id} is answered after {took:?}"));
                    Some(answer)
                }
                Err(_) => {
                    sim.violation(format_args!("{name} of {id} is not answered within {bound:?}"));
                    None
                }
            },
        }
    }

    async fn stop_vm(&self, id: &str) {
        // Three times in a row, as the shim of runtime-rs does.
        for _ in 0..self.sim.pick(&[1, 3]) {
            let daemon = self.daemon.lock().unwrap().clone().filter(|d| !d.life.is_over());
            if daemon.is_none() && self.sim.profile.gateway_process {
                self.sim.log(format_args!("StopVM {id}: the gateway keeps it"));
                self.sim.state().kept_stops.insert(id.to_owned());
                continue;
            }
            let answered =
                self.call(("StopVM", 1), id, STOP_BOUND, async |s: Sandboxes| s.stop_vm(id).await).await;
            if answered.is_none() && self.sim.profile.gateway_process {
                self.sim.state().kept_stops.insert(id.to_owned());
            }
        }
    }

    /// One pod, from its shim's first call to its last trace.
    async fn pod(self, id: String) {
        let sim = self.sim.clone();
        sleep(sim.millis(0..60_000)).await;
        let netns = self.folder.join("netns").join(&id);
        std::fs::write(&netns, "").unwrap();
        let shim = sim.pick(&[Shim::Rust, Shim::Go]);
        let pod = Pod {
            shim,
            living: false,
            agent_open: false,
            hypervisor_closed: false,
            unreachable: false,
            mute: sim.chance(4),
            gone: false,
        };
        sim.state().disturbed |= pod.mute;
        sim.state().pods.insert(id.clone(), pod);
        sim.log(format_args!("pod {id} of a {shim:?} shim"));
        let begun = self.begin(&id, &netns).await;
        if begun == Begun::Running {
            self.live(&id).await;
        }
        sim.state().pods.get_mut(&id).unwrap().living = false;
        sleep(sim.millis(0..400)).await;
        if begun == Begun::Silent || (begun == Begun::Running && sim.chance(30)) {
            sim.log(format_args!("the shim of {id} dies without a word"));
        } else {
            self.stop_vm(&id).await;
        }
        if let Some(pod) = sim.state().pods.get_mut(&id) {
            pod.agent_open = false;
            pod.hypervisor_closed = pod.shim == Shim::Rust;
        }
        sleep(sim.millis(0..120_000)).await;
        sim.state().pods.get_mut(&id).unwrap().gone = true;
        sleep(sim.millis(0..60_000)).await;
        sim.log(format_args!("the namespace of {id} goes"));
        std::fs::remove_file(&netns).unwrap();
        self.outside.lock().unwrap().remove_netns(&netns);
    }

    /// CreateVM and StartVM.
    async fn begin(&self, id: &str, netns: &std::path::Path) -> Begun {
        let sim = &self.sim;
        let annotations = test_support::ShimPlayer::annotations("web");
        let netns = netns.to_str().unwrap();
        let (never, serving) = (CancellationToken::new(), CancellationToken::new());
        let create = || {
            self.call(("CreateVM", 2), id, CREATE_BOUND, async |s: Sandboxes| {
                serving.cancel();
                s.create_vm(id, &annotations, netns, &never).await
            })
        };
        let twice = sim.chance(15);
        let stop_early = sim.chance(8);
        let answered = CancellationToken::new();
        let mut stopped_first = false;
        let first = async {
            let first = create().await;
            answered.cancel();
            first
        };
        let (first, second) = tokio::join!(first, async {
            if stop_early {
                sleep(sim.millis(0..500)).await;
                sim.state().disturbed = true;
                // A call that waits for a daemon comes after the stop.
                let late = !serving.is_cancelled();
                let stop = async |s: Sandboxes| s.stop_vm(id).await;
                let stopped = self.call(("StopVM", 0), id, STOP_BOUND, stop).await.is_some();
                stopped_first = stopped && !late && !answered.is_cancelled();
            }
            if !twice {
                return None;
            }
            sleep(sim.millis(0..1_500)).await;
            create().await
        });
        if matches!((&first, &second), (Some(Ok(_)), Some(Ok(_)))) && !stop_early {
            sim.violation(format_args!("two CreateVM of {id} were both answered well"));
        }
        if stopped_first && matches!(first, Some(Ok(_))) && !twice {
            sim.violation(format_args!("CreateVM of {id} is answered well after its StopVM was"));
        }
        let planned = [&first, &second].into_iter().any(|answer| matches!(answer, Some(Ok(_))));
        if !planned {
            self.check_excuse("CreateVM", id, first.and_then(Result::err));
            return Begun::Failed;
        }
        if stop_early {
            return Begun::Failed;
        }
        if sim.chance(4) {
            sim.log(format_args!("the shim of {id} dies before StartVM"));
            return Begun::Silent;
        }
        let (caller, answered) = (CancellationToken::new(), CancellationToken::new());
        let start = async {
            let call = async |s: Sandboxes| s.start_vm(id, &caller).await;
            let started = self.call(("StartVM", 3), id, START_BOUND, call).await;
            answered.cancel();
            started
        };
        // A deadline of kubelet: StopVM comes while StartVM waits, or the connection closes.
        let gives_up = async {
            if !sim.chance(15) {
                return false;
            }
            let patience = sim.millis(0..90_000);
            if answered.run_until_cancelled(sleep(patience)).await.is_none() {
                return false;
            }
            sim.state().disturbed = true;
            match sim.chance(50) {
                true => caller.cancel(),
                false => self.stop_vm(id).await,
            }
            true
        };
        let again = async {
            if sim.chance(10) {
                sleep(sim.millis(0..20_000)).await;
                let call = async |s: Sandboxes| s.start_vm(id, &never).await;
                let _ = self.call(("StartVM again", 4), id, START_BOUND, call).await;
            }
        };
        let (started, gave_up, ()) = tokio::join!(start, gives_up, again);
        match started {
            _ if gave_up => Begun::Failed,
            Some(Ok(())) => {
                sim.state().pods.get_mut(id).unwrap().agent_open = true;
                Begun::Running
            }
            started => {
                self.check_excuse("StartVM", id, started.and_then(Result::err));
                Begun::Failed
            }
        }
    }

    /// A call may fail only when something was disturbed.
    fn check_excuse(&self, call: &str, id: &str, status: Option<Status>) {
        let Some(status) = status else { return };
        self.sim.log(format_args!("{call} of {id} failed: {:?} {}", status.code(), status.message));
        let excused = self.sim.state().disturbed || status.code() == Code::AlreadyExists;
        if !excused {
            self.sim.violation(format_args!("{call} of {id} failed for nothing: {}", status.message));
        }
    }

    /// A pod that runs, and what happens to it that must not end it, and what must.
    async fn live(&self, id: &str) {
        let sim = &self.sim;
        if sim.instances(id).is_empty() {
            sim.violation(format_args!("StartVM of {id} was answered well and there is no VM"));
            return;
        }
        let shim = {
            let mut state = sim.state();
            let pod = state.pods.get_mut(id).unwrap();
            pod.living = true;
            pod.shim
        };
        if shim == Shim::Go && sim.chance(50) {
            // It called StartVM on a connection that it left open for a while.
            sim.state().pods.get_mut(id).unwrap().hypervisor_closed = true;
        }
        let with = |change: &dyn Fn(&mut Pod)| change(sim.state().pods.get_mut(id).unwrap());
        for _ in 0..sim.pick(&[0, 1, 2, 4]) {
            if !self.stays(id, sim.millis(1_000..300_000)).await {
                return;
            }
            match sim.state_pick() {
                0 if shim == Shim::Go => {
                    sim.log(format_args!("{id} is between two agent connections"));
                    with(&|p| p.agent_open = false);
                    let stays = self.stays(id, sim.millis(1_000..35_000)).await;
                    with(&|p| p.agent_open = true);
                    if !stays {
                        return;
                    }
                }
                1 => {
                    sim.log(format_args!("the guest of {id} is out of reach for a while"));
                    with(&|p| p.unreachable = true);
                    let stays = self.stays(id, sim.millis(30_000..110_000)).await;
                    with(&|p| p.unreachable = false);
                    if !stays {
                        return;
                    }
                }
                2 if sim.chance(25) => {
                    sim.log(format_args!("the VM of {id} vanishes"));
                    with(&|p| {
                        p.living = false;
                        p.unreachable = true;
                    });
                    sim.state().disturbed = true;
                    for instance in sim.instances(id) {
                        sim.cloud.remove(&instance).unwrap();
                    }
                    sleep(sim.millis(1_000..600_000)).await;
                    return;
                }
                3 => {
                    let unit = format!("orphan-{id}");
                    if sim.cloud.resources().iter().any(|r| r.name == unit) {
                        continue;
                    }
                    let orphan = self.add(&unit, &sim.scope, Some("node-1"));
                    sim.log(format_args!("{orphan} carries the name of this node, and nobody knows it"));
                    sim.state().orphans.insert(orphan, Instant::now());
                }
                _ => {}
            }
        }
        self.stays(id, sim.millis(1_000..600_000)).await;
    }

    /// Lets time pass. `false` when the pod cannot go on, since its shim lost its connections.
    async fn stays(&self, id: &str, time: Duration) -> bool {
        let sim = &self.sim;
        let broke = async {
            if sim.profile.gateway_process {
                let gateways = sim.state().gateways;
                loop {
                    let change = sim.changed.notified();
                    if sim.state().gateways != gateways {
                        return;
                    }
                    change.await;
                }
            }
            let change = sim.changed.notified();
            let life = self.daemon.lock().unwrap().as_ref().map(|d| d.life.clone());
            match life {
                Some(life) => life.0.cancelled().await,
                None => change.await,
            }
        };
        tokio::select! {
            biased;
            () = broke => {
                sim.log(format_args!("the shim of {id} lost its connections"));
                sim.state().pods.get_mut(id).unwrap().living = false;
                false
            }
            () = sleep(time) => {
                if sim.instances(id).is_empty() {
                    sim.violation(format_args!("the VM of the living pod {id} is gone"));
                }
                true
            }
        }
    }

    /// Waits until nothing is left, and says what is.
    async fn settle(&self) {
        let sim = &self.sim;
        let end = Instant::now() + SETTLE;
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                sim.log("nothing is left");
                return;
            }
            if Instant::now() >= end {
                for what in left {
                    sim.violation(format_args!("left after {SETTLE:?}: {what}"));
                }
                return;
            }
            sleep(SECOND * 30).await;
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let sim = &self.sim;
        let mut left = self.outside.lock().unwrap().leftovers();
        let state = sim.state();
        let ours = |id: &str| {
            state.foreign.contains(id) || (state.orphans.contains_key(id) && !sim.profile.delete_orphans)
        };
        let there: BTreeSet<String> = sim.cloud.resources().into_iter().map(|r| r.resource.id).collect();
        left.extend(there.iter().filter(|id| !ours(id)).map(|id| format!("{id} in the cloud")));
        let lost = state.foreign.iter().filter(|id| !there.contains(*id));
        for id in lost {
            left.push(format!("nothing of {id}, which belongs to somebody else"));
        }
        drop(state);
        match self.daemon.lock().unwrap().clone() {
            None => left.push("no daemon".to_owned()),
            Some(daemon) => {
                left.extend(
                    daemon.sandboxes.list().iter().map(|s| format!("sandbox {} is {:?}", s.id, s.phase)),
                );
            }
        }
        let folders = std::fs::read_dir(self.folder.join("pods")).unwrap().flatten();
        left.extend(folders.map(|e| format!("folder {}", e.file_name().to_string_lossy())));
        left
    }
}
