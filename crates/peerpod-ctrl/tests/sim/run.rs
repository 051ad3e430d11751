//! One seed: controllers and daemons that come and go, pods that come and go, and what must be left of them: nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cloud_providers::{
    Error, ErrorKind, Provider,
    scripted::{Fault, Lag, World},
    tags,
};
use peerpod_api::{Facts, PeerPod, Stage, rules};
use peerpod_ctrl::{
    controller,
    election::{ElectionSettings, take_part},
    hooks::{Hooks, SafetyKey},
    metrics::Metrics,
    model::{Key, Pod},
    providers::Fixed,
    settings::Settings,
    sweep::{Mode, Report, SweepSettings},
    sweeper,
    work::Parts,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    cloud::SimProvider,
    node::{Node, account_name},
    pods,
    server::{CLUSTER, Server, key_of},
    sim::{Counts, Link, Point, Program, Sim, State},
};

const SECOND: Duration = Duration::from_secs(1);
/// How long after the last pod, and without further faults, something may be left.
const SETTLE: Duration = Duration::from_secs(3 * 3600);

/// How long after the question for its deletion a record says why it is still there.
const EXPLAINED: Duration = Duration::from_secs(1200);

/// What one seed came to.
pub(crate) struct Outcome {
    pub violations: Vec<String>,
    pub hits: BTreeMap<Point, u64>,
    pub trace: Vec<String>,
    pub counts: Counts,
}

/// Runs one seed in its own virtual time.
pub(crate) fn run(seed: u64, off: Option<SafetyKey>, trace: bool) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let sim = Sim::new(seed, off, trace);
        Run::new(&sim).run().await;
        let trace = sim.take_trace();
        let mut state = sim.state();
        Outcome {
            violations: std::mem::take(&mut state.violations),
            hits: std::mem::take(&mut state.hits),
            trace,
            counts: std::mem::take(&mut state.counts),
        }
    })
}

struct Run {
    sim: Sim,
    server: Server,
    nodes: Vec<Node>,
    over: CancellationToken,
}

impl Run {
    fn new(sim: &Sim) -> Self {
        sim.log(format_args!("{:?}", sim.profile));
        for cloud in &sim.clouds {
            cloud.set_unique_names(false);
            cloud.set_latency(sim.millis(500..3000));
            cloud.set_boot_time(sim.millis(1..20_000));
            cloud.set_shutdown_time(sim.millis(1..20_000));
            cloud.set_page_size(sim.pick(&[2, 100, 100]));
            if sim.chance(30) {
                cloud.set_lag(Lag::time(sim.millis(1..5000)));
            }
        }
        let server = Server::new(sim);
        let nodes = (0..sim.profile.nodes).map(|n| Node::new(&server, &format!("node-{n}"))).collect();
        Self { sim: sim.clone(), server, nodes, over: CancellationToken::new() }
    }

    async fn run(&self) {
        let sim = &self.sim;
        pods::populate(&self.server);
        tokio::spawn(self.server.clone().collect());
        self.nodes.iter().for_each(|node| drop(tokio::spawn(node.clone().run())));
        let controllers: Vec<JoinHandle<()>> = (0..sim.profile.controllers)
            .map(|n| {
                let name = format!("controller-{n}");
                let controller = Replica { server: self.server.clone(), name, over: self.over.clone() };
                tokio::spawn(controller.run())
            })
            .collect();
        tokio::spawn(pods::orphans(sim.clone()));
        tokio::spawn(chaos(sim.clone(), self.nodes.clone()));
        let count = sim.pick(&[2, 3, 5]);
        let mut lives = Vec::new();
        for index in 0..count {
            let node = self.nodes[index % self.nodes.len()].clone();
            let life = tokio::spawn(pods::Life::run(node, index, index == 0));
            lives.push(life);
        }
        // The first one outlives the run.
        for life in lives.into_iter().skip(1) {
            if let Err(error) = life.await {
                sim.violation(format_args!("a pod's task ended: {error}"));
            }
        }
        sim.log("all pods that end have ended, and there are no more faults");
        sim.state().faults_on = false;
        sim.changed.notify_waiters();
        if sim.chance(25) {
            self.outage().await;
        }
        self.settle().await;
        for key in self.unexplained() {
            sim.violation(format_args!("{key} is stuck, and nothing says why"));
        }
        self.over.cancel();
        for controller in controllers {
            if let Err(error) = controller.await {
                sim.violation(format_args!("a controller's task ended: {error}"));
            }
        }
    }

    /// For a while no cloud ends anything: every record that waits has to say so.
    async fn outage(&self) {
        let sim = &self.sim;
        sim.log("no cloud deletes anything");
        let down = || Error::new(ErrorKind::Transient, "the cloud is down");
        for cloud in &sim.clouds {
            for operation in ["terminate_instance", "list_resources"] {
                cloud.script(Fault::on(operation).forever().before(down()));
            }
        }
        sleep(EXPLAINED * 2).await;
        for key in self.unexplained() {
            sim.violation(format_args!("{key} waits for its deletion, and nothing says why"));
        }
        sim.clouds.iter().for_each(World::clear_faults);
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
        let mut left: Vec<String> = self.nodes.iter().flat_map(Node::leftovers).collect();
        let state = sim.state();
        let objects = self.server.objects();
        let recorded: BTreeMap<String, &PeerPod> =
            objects.iter().filter_map(|o| Some((Facts::of(o).token?.tag_value(), &**o))).collect();
        let wanted = |unit: &str| state.sandboxes.get(unit).is_some_and(|s| s.wanted);
        for (account, cloud) in sim.clouds.iter().enumerate() {
            for remote in cloud.resources() {
                let unit = remote.tags.get(tags::UNIT).map(String::as_str).unwrap_or_default();
                let name = format!("{account}/{}", remote.resource.id);
                let tag = remote.tags.get(tags::TOKEN).map(String::as_str).unwrap_or_default();
                let excused = match recorded.get(tag) {
                    Some(object) => self.may_serve(object, &objects),
                    None => self.stays(&state, unit),
                };
                if !wanted(unit) && !state.foreign.contains(&name) && !excused {
                    left.push(format!("{} {name} of {unit}", remote.resource.kind));
                }
            }
        }
        for (unit, sandbox) in state.sandboxes.iter().filter(|(_, s)| s.wanted && s.ready) {
            let there = sim.clouds[sandbox.account].resources().into_iter();
            let vms = there.filter(|r| r.resource.kind == "instance" && !r.is_going());
            let vms = vms.filter(|r| r.tags.get(tags::UNIT) == Some(unit)).count();
            if vms != 1 {
                left.push(format!("{vms} VMs of the living sandbox {unit}"));
            }
        }
        for object in &objects {
            let key = key_of(object);
            let needed = Facts::of(object).sandbox.as_deref().is_some_and(wanted);
            if !needed && !state.odd.contains_key(&key) && !self.may_serve(object, &objects) {
                left.push(format!("record {key} is {:?}", rules::stage(object)));
            }
        }
        left
    }
}

impl Run {
    /// Records that wait for their deletion, and nothing says why.
    fn unexplained(&self) -> Vec<String> {
        let waits = |o: &PeerPod| {
            let asked = self.server.moments(o.metadata.uid.as_deref().unwrap_or_default()).0;
            rules::stage(o) != Stage::Done && asked.is_some_and(|asked| asked.elapsed() > EXPLAINED)
        };
        let objects = self.server.objects();
        let silent = objects.iter().filter(|o| waits(o) && !self.server.is_explained(o));
        silent.map(|o| key_of(o).to_string()).collect()
    }

    /// Whether a record may be that of a pod that lives, as far as anybody can tell: no later one of this pod is there.
    fn may_serve(&self, object: &PeerPod, objects: &[Arc<PeerPod>]) -> bool {
        let Some(owner) = Facts::of(object).pod else { return false };
        let pod = self.server.pod(&Key::new(&owner.namespace, &owner.name));
        let lives = pod.is_some_and(|pod| pod.uid == owner.uid && pod.lives());
        lives && !objects.iter().any(|other| rules::is_superseded(object, other))
    }

    /// Whether what no record names stays where it is: because sweeps only report, or because a pod that lives may be
    /// served by it.
    fn stays(&self, state: &State, unit: &str) -> bool {
        let lives = |pod: &Pod| self.server.pod(&pod.key).is_some_and(|p| p.lives());
        !self.sim.profile.sweeps || state.sandboxes.get(unit).is_some_and(|s| lives(&s.pod))
    }
}

/// A controller's Deployment: one process after another.
struct Replica {
    server: Server,
    name: String,
    over: CancellationToken,
}

impl Replica {
    async fn run(self) {
        let sim = &self.server.sim;
        while !self.over.is_cancelled() {
            let program = Program::new(sim, &self.name, true, sim.skew());
            let stop = CancellationToken::new();
            let running = self.start(&program, &stop);
            let ending = async {
                if sim.chance(20) && sim.state().faults_on {
                    sleep(sim.millis(1_000..600_000)).await;
                    return;
                }
                std::future::pending().await
            };
            tokio::select! {
                biased;
                () = self.over.cancelled() => {}
                () = program.life.0.cancelled() => {}
                () = ending => {
                    sim.log(format_args!("{} is told to end", self.name));
                    stop.cancel();
                    sleep(SECOND * 10).await;
                }
            }
            running.abort();
            let _ = running.await;
            sim.kill(&program);
            if !self.over.is_cancelled() {
                sleep(sim.millis(100..30_000)).await;
            }
        }
    }

    fn start(&self, program: &Program, stop: &CancellationToken) -> JoinHandle<()> {
        let sim = &self.server.sim;
        let accounts = (0..sim.profile.accounts).map(|n| {
            let provider = SimProvider::new(&self.server, program, n);
            (account_name(n), Arc::new(provider) as Arc<dyn Provider>)
        });
        let mut hooks = Hooks::default().with_clock(program.clock.clone());
        if let Some(off) = sim.off {
            hooks = hooks.without(off);
        }
        let client = Client::new(&self.server, program);
        let parts = Parts {
            cluster: Arc::new(client.clone()),
            providers: Arc::new(Fixed::new(accounts)),
            metrics: Metrics::new(),
            hooks,
        };
        let mut settings = Settings::new(sim.scope.clone());
        settings.daemon_grace = sim.profile.daemon_grace;
        let mut sweep = SweepSettings::default();
        sweep.mode = if sim.profile.sweeps { Mode::Delete } else { Mode::Report };
        (sweep.grace, sweep.cap, sweep.interval) =
            (sim.profile.orphan_grace, sim.profile.cap, sim.profile.interval);
        sweep.cluster_uid = Some(CLUSTER.into());
        let mut election = ElectionSettings::new(format!("{}-{}", self.name, sim.state().counts.programs));
        let (lease, deadline, retry) = sim.profile.lease;
        (election.lease, election.renew_deadline, election.retry) =
            (SECOND * lease, SECOND * deadline, SECOND * retry);
        sim.log(format_args!("{} begins as {}", self.name, election.identity));
        let (metrics, hooks) = (parts.metrics.clone(), parts.hooks.clone());
        let (sim, program, knew) = (sim.clone(), program.clone(), client.knew.clone());
        let work = move |end: CancellationToken| {
            let (parts, settings, sweep) = (parts.clone(), settings.clone(), sweep.clone());
            let (sim, program, knew) = (sim.clone(), program.clone(), knew.clone());
            async move {
                let _leads = sim.lead(&program);
                knew.store(0, Ordering::SeqCst);
                let (reports, told) = watch::channel(None);
                tokio::join!(
                    controller::run(parts.clone(), settings.clone(), end.clone()),
                    sweeper::run(parts, settings, sweep, reports, end),
                    listen(&sim, told),
                );
            }
        };
        tokio::spawn(take_part(Arc::new(client), election, metrics, hooks, stop.clone(), work))
    }
}

/// Writes down what sweeps found, until there are no more.
async fn listen(sim: &Sim, mut told: watch::Receiver<Option<Arc<Report>>>) {
    while told.changed().await.is_ok() {
        let Some(report) = told.borrow_and_update().clone() else { continue };
        sim.log(format_args!(
            "sweep: {} orphans, {} deleted, {:?}",
            report.orphans, report.deleted, report.frozen
        ));
        for finding in report.accounts.iter().flat_map(|a| &a.findings) {
            let name = finding.token.as_deref().unwrap_or(&finding.token_tag);
            sim.log(format_args!("  {name}: {:?} {:?}", finding.verdict, finding.outcome));
        }
    }
}

/// Cuts links, and lets nodes lose what they had.
async fn chaos(sim: Sim, nodes: Vec<Node>) {
    let programs: Vec<String> = nodes
        .iter()
        .map(|node| node.name.to_string())
        .chain((0..sim.profile.controllers).map(|n| format!("controller-{n}")))
        .collect();
    let mut lost = sim.profile.faults == 0 || sim.chance(60);
    loop {
        sleep(sim.millis(10_000..400_000)).await;
        if !sim.state().faults_on {
            return;
        }
        if sim.profile.faults == 0 {
            continue;
        }
        let at = sim.pick(&(0..programs.len()).collect::<Vec<_>>());
        match sim.pick(&[0, 1, 2, 3, 4]) {
            0 | 1 => sim.cut(&programs[at], Link::Api, sim.millis(1_000..400_000)),
            2 => sim.cut(&programs[at], Link::Watch, sim.millis(1_000..900_000)),
            3 => sim.cut(&programs[at], Link::Cloud, sim.millis(1_000..400_000)),
            _ if lost => {}
            _ => {
                lost = true;
                let node = nodes.last().expect("there is one");
                if nodes.len() > 1 && sim.chance(50) { node.lose() } else { node.forget() }
            }
        }
    }
}
