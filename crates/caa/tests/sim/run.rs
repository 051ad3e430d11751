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
    layers::{self, Timeouts},
    scripted::{Lag, ScriptedProvider},
    tags,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::SimDisk,
    parts::{CloudGate, Outside, SimProvider, Store, View},
    sim::{GRACE, Life, ORPHAN_GRACE, Point, Sim, SimWatcher},
};

const SECOND: Duration = Duration::from_secs(1);
/// How long after the last pod, and without further faults, something may be left.
const SETTLE: Duration = Duration::from_secs(3 * 3600);
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

/// A daemon that serves.
#[derive(Clone)]
pub(crate) struct Daemon {
    sandboxes: Sandboxes,
    pub life: Life,
}

/// A node with all that happens on it.
#[derive(Clone)]
pub(crate) struct Node {
    pub sim: Sim,
    pub outside: Arc<Mutex<Outside>>,
    pub folder: PathBuf,
    config: Arc<DaemonConfig>,
    pub daemon: Arc<Mutex<Option<Daemon>>>,
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
    pub(crate) fn add(&self, unit: &str, scope: &Scope, holder: Option<&str>) -> String {
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
        let metrics = Metrics::new("scripted");
        let bare = Arc::new(SimProvider(scripted, view.clone()));
        let seed = rand::Rng::random(&mut sim.state().rng);
        let limits = self.config.layers.clone();
        let retry = limits.retry.with_seed(seed);
        let limits = limits.with_retry(retry);
        // The layer drops calls that are overdue as well: without that protection it has to go, too.
        let limits = match sim.off {
            Some(Protection::DropOverdue) => {
                let never = SECOND * 1_000_000;
                limits.with_timeouts(
                    Timeouts::default()
                        .with_create(never)
                        .with_delete(never)
                        .with_read(never)
                        .with_undo(never),
                )
            }
            _ => limits,
        };
        let provider = layers::standard("scripted", bare, &limits, metrics.clone());
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
    pub(crate) async fn call<T>(
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
