//! What all parts of one simulated run share: chance, faults, what pods do, and what must never happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use caa::{
    hooks::{Protection, Watcher},
    sandbox::AwaitPoint,
};
use cloud_providers::{Resource, Scope, scripted::World, tags};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::disk::Device;

/// Where a fault can strike: the part, the operation, and the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Point(pub &'static str, pub &'static str, pub &'static str);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.0, self.1, self.2)
    }
}

/// The remote calls of the provider that sandboxes can lead to.
const REMOTE: [&str; 10] = [
    "get_resource",
    "list_resources",
    "create_disk",
    "create_interface",
    "run_instance",
    "tag_resource",
    "get_instance",
    "terminate_instance",
    "delete_disk",
    "delete_interface",
];

/// Every point. A run of many seeds in which one was never reached has tested less than it says.
pub(crate) fn all_points() -> BTreeSet<Point> {
    let both = |part: &'static str, operations: &[&'static str]| {
        let each = operations.iter().flat_map(|o| [Point(part, o, "before"), Point(part, o, "after")]);
        each.collect::<Vec<_>>()
    };
    let mut points: BTreeSet<Point> = both("provider", &REMOTE).into_iter().collect();
    points.extend(both("provider", &["create", "delete", "release", "list"]));
    points.extend(both("network", &["inspect", "reserve", "connect", "teardown"]));
    points.extend(both("gateway", &["register", "wait_ready", "unregister", "list", "closed_shims"]));
    points.extend(both("cluster", &["claim", "bind", "release", "gone_pods"]));
    points.extend(
        ["write", "fsync", "set_len", "create", "rename", "open", "free"].map(|o| Point("journal", o, "at")),
    );
    points.extend(AwaitPoint::ALL.map(|p| Point("await", name_of(p), "at")));
    points
}

fn name_of(point: AwaitPoint) -> &'static str {
    match point {
        AwaitPoint::Planned => "planned",
        AwaitPoint::Turn => "turn",
        AwaitPoint::Enter => "enter",
        AwaitPoint::Recorded => "recorded",
        AwaitPoint::Ready => "ready",
        AwaitPoint::Stopping => "stopping",
        AwaitPoint::Again => "again",
        AwaitPoint::Reattach => "reattach",
        AwaitPoint::Forget => "forget",
        _ => "unknown",
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation fails, or its answer is lost.
    Error,
    /// It is never answered.
    Hang,
    /// The daemon is killed.
    Crash,
    /// It takes its time.
    Delay(Duration),
}

/// What one seed draws at its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Chance of a fault at a point, in 1,000.
    pub faults: u32,
    /// How often a daemon may be killed.
    pub crashes: u32,
    /// Whether the gateway is a process of its own.
    pub gateway_process: bool,
    /// Whether the provider can remove by token.
    pub release: bool,
    /// Whether orphans are removed.
    pub delete_orphans: bool,
}

/// What the shim of a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shim {
    /// Keeps its connections for the pod's whole life.
    Rust,
    /// Makes one for each call.
    Go,
}

/// What is known of a pod from outside of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub shim: Shim,
    /// StartVM was answered well, and nobody wants the end.
    pub living: bool,
    /// Its shim has connections to the agent socket.
    pub agent_open: bool,
    /// The connection on which it called StartVM was kept, and is closed.
    pub hypervisor_closed: bool,
    /// Its guest is out of reach.
    pub unreachable: bool,
    /// The guest never answers.
    pub mute: bool,
    /// The cluster has no such pod any more.
    pub gone: bool,
}

pub(crate) struct State {
    pub rng: StdRng,
    pub faults_on: bool,
    crashes: u32,
    pub hits: BTreeMap<Point, u64>,
    trace: Option<Vec<String>>,
    pub pods: BTreeMap<String, Pod>,
    pub violations: Vec<String>,
    /// StopVM calls that a gateway took while no daemon was there.
    pub kept_stops: BTreeSet<String>,
    /// What belongs to others, and must stay.
    pub foreign: BTreeSet<String>,
    /// Orphans of this node, and when they came.
    pub orphans: BTreeMap<String, Instant>,
    /// Whether anything was done that excuses a failed call.
    pub disturbed: bool,
    /// How often a daemon came or went.
    pub changes: u64,
    /// How often the process of the gateway was restarted.
    pub gateways: u64,
}

impl State {
    /// Every connection of every shim breaks.
    pub(crate) fn gateway_restarts(&mut self) {
        self.disturbed = true;
        self.gateways += 1;
        for pod in self.pods.values_mut() {
            pod.living = false;
            pod.agent_open = false;
        }
    }
}

/// One simulated run.
#[derive(Clone)]
pub(crate) struct Sim(Arc<Inner>);

pub(crate) struct Inner {
    pub off: Option<Protection>,
    pub profile: Profile,
    pub cloud: World,
    pub device: Arc<Mutex<Device>>,
    pub scope: Scope,
    start: Instant,
    state: Mutex<State>,
    /// Told when a daemon came or went. Not a `watch`, whose waiters wake in an order of chance.
    pub changed: Notify,
}

impl std::ops::Deref for Sim {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Whether a daemon lives; its parts ask before everything they do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life(pub CancellationToken);

impl Life {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// How long the daemon of the simulation lets signs agree, and watches orphans.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
pub(crate) const ORPHAN_GRACE: Duration = Duration::from_secs(300);

impl Sim {
    pub(crate) fn new(seed: u64, off: Option<Protection>, trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let release = rng.random_bool(0.75);
        let profile = Profile {
            faults: [0, 5, 15, 40][rng.random_range(0..4)],
            crashes: [0, 1, 2, 5][rng.random_range(0..4)],
            gateway_process: rng.random_bool(0.6),
            release,
            // They are removed by their token.
            delete_orphans: release && rng.random_bool(0.7),
        };
        let state = State {
            rng,
            faults_on: true,
            crashes: profile.crashes,
            hits: BTreeMap::new(),
            trace: trace.then(Vec::new),
            pods: BTreeMap::new(),
            violations: Vec::new(),
            kept_stops: BTreeSet::new(),
            foreign: BTreeSet::new(),
            orphans: BTreeMap::new(),
            disturbed: false,
            changes: 0,
            gateways: 0,
        };
        Self(Arc::new(Inner {
            off,
            profile,
            cloud: World::new(),
            device: Arc::default(),
            scope: Scope::Cluster("sim".into()),
            start: Instant::now(),
            state: Mutex::new(state),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Writes down what happens.
    pub(crate) fn log(&self, line: impl fmt::Display) {
        let at = self.seconds();
        if let Some(trace) = &mut self.state().trace {
            trace.push(format!("{at:10.3} {line}"));
        }
    }

    pub(crate) fn violation(&self, what: impl fmt::Display) {
        self.log(format_args!("VIOLATION: {what}"));
        let at = self.seconds();
        self.state().violations.push(format!("at {at:.3} s: {what}"));
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        self.state().trace.take().unwrap_or_default()
    }

    /// A number of milliseconds by chance.
    pub(crate) fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.state().rng.random_range(range))
    }

    pub(crate) fn chance(&self, percent: u32) -> bool {
        self.state().rng.random_ratio(percent, 100)
    }

    /// One of the things that happen to a running pod.
    pub(crate) fn state_pick(&self) -> u32 {
        self.state().rng.random_range(0..5)
    }

    pub(crate) fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.state().rng.random_range(0..of.len())]
    }

    /// Draws whether a fault strikes here.
    fn draw(&self, point: Point, kinds: &[Fault]) -> Option<Fault> {
        let mut state = self.state();
        *state.hits.entry(point).or_default() += 1;
        if !state.faults_on {
            return None;
        }
        let faults = self.profile.faults;
        let strikes = faults > 0 && state.rng.random_ratio(faults, 1000);
        // Kills are drawn apart: they are the point of it, and a run with kills alone is the clearest.
        let kill = state.crashes > 0 && state.rng.random_ratio(1, 60);
        if kill && kinds.contains(&Fault::Crash) {
            state.crashes -= 1;
            state.disturbed = true;
            return Some(Fault::Crash);
        }
        let others: Vec<Fault> = kinds.iter().copied().filter(|k| *k != Fault::Crash).collect();
        if !strikes || others.is_empty() {
            return None;
        }
        state.disturbed = true;
        let chosen = others[state.rng.random_range(0..others.len())];
        Some(match chosen {
            Fault::Delay(most) => {
                let most = u64::try_from(most.as_millis()).unwrap_or(1).max(1);
                Fault::Delay(Duration::from_millis(state.rng.random_range(0..most)))
            }
            other => other,
        })
    }

    /// Passes a point. An error is the answer of the operation; a daemon that is dead, or dies here, never returns.
    pub(crate) async fn pass(
        &self,
        life: &Life,
        point: Point,
        subject: &str,
        kinds: &[Fault],
    ) -> Result<(), ()> {
        if life.is_over() {
            return std::future::pending().await;
        }
        let fault = self.draw(point, kinds);
        self.log(format_args!("{point} {subject} {}", fault.map(|f| format!("{f:?}")).unwrap_or_default()));
        match fault {
            None => {}
            Some(Fault::Error) => return Err(()),
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::Crash) => {
                self.kill(life);
                return std::future::pending().await;
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                if life.is_over() {
                    return std::future::pending().await;
                }
            }
        }
        Ok(())
    }

    /// Passes a point that cannot wait. `false` is a failure.
    pub(crate) fn pass_now(&self, life: &Life, point: Point) -> bool {
        if life.is_over() {
            return false;
        }
        let fault = self.draw(point, &[Fault::Error, Fault::Crash]);
        if fault.is_some() {
            self.log(format_args!("{point} {fault:?}"));
        }
        match fault {
            None => true,
            Some(Fault::Crash) => {
                self.kill(life);
                false
            }
            Some(_) => false,
        }
    }

    /// A daemon came or went.
    pub(crate) fn daemon_changed(&self) {
        self.state().changes += 1;
        self.changed.notify_waiters();
    }

    /// Kills a daemon: what it did not bring to the disk may be lost.
    pub(crate) fn kill(&self, life: &Life) {
        if life.is_over() {
            return;
        }
        self.log("the daemon is killed");
        let mut device = self.device.lock().unwrap();
        device.crash(&mut self.state().rng);
        drop(device);
        life.0.cancel();
    }

    /// The sandbox that a thing in the cloud was made for.
    pub(crate) fn owner(&self, id: &str) -> Option<String> {
        let remote = self.cloud.resources().into_iter().find(|r| r.resource.id == id)?;
        remote.tags.get(tags::UNIT).cloned()
    }

    /// Instances of a sandbox that exist and were not told to go.
    pub(crate) fn instances(&self, id: &str) -> Vec<String> {
        let all = self.cloud.resources().into_iter();
        let of = all.filter(|r| r.resource.kind == Resource::INSTANCE && !r.is_going());
        let of = of.filter(|r| r.tags.get(tags::UNIT).is_some_and(|unit| unit == id));
        of.map(|r| r.resource.id).collect()
    }
}

/// The points at which sandboxes wait.
pub(crate) struct SimWatcher(pub Sim, pub Life);

#[async_trait]
impl Watcher for SimWatcher {
    async fn reached(&self, point: AwaitPoint, sandbox_id: &str) {
        let kinds = [Fault::Crash, Fault::Delay(Duration::from_millis(500))];
        let _ = self.0.pass(&self.1, Point("await", name_of(point), "at"), sandbox_id, &kinds).await;
    }

    fn unix_now(&self) -> u64 {
        1_700_000_000 + self.0.start.elapsed().as_secs()
    }
}
