//! What all parts of one simulated run share: chance, faults, clocks, what pods want, and what must never happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cloud_providers::{Resource, Scope, scripted::World, tags};
use peerpod_ctrl::{
    hooks::SafetyKey,
    model::{Key, Pod},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Where a fault can strike: the part, the operation, and the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Point(pub &'static str, pub &'static str, pub &'static str);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.0, self.1, self.2)
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation fails, or its answer is lost.
    Error,
    /// It is never answered; whoever bounds it gives up.
    Hang,
    /// The program is killed.
    Crash,
    /// It takes its time.
    Delay(Duration),
}

/// What one seed draws at its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Chance of a fault at a point, in 1,000.
    pub faults: u32,
    /// How often a program may be killed.
    pub crashes: u32,
    /// Controllers that run at the same time.
    pub controllers: usize,
    /// Nodes.
    pub nodes: usize,
    /// Accounts of clouds.
    pub accounts: usize,
    /// The most that a clock is wrong, in seconds.
    pub skew: i64,
    /// How long the controller leaves a deletion to the daemon.
    pub daemon_grace: Duration,
    /// Whether daemons find out by themselves that a pod is gone.
    pub signs: bool,
    /// The definition of the objects is older than our fields and prunes them.
    pub older: bool,
    /// How far the changes that a controller is told lag behind, at most.
    pub lag: Duration,
    /// Whether lists may come from a server that lags behind.
    pub followers: bool,
    /// How long a Lease holds, how long without renewal its holder works on, and how often it renews, in seconds.
    pub lease: (u32, u32, u32),
    /// Whether orphans are deleted.
    pub sweeps: bool,
    /// How long an orphan is watched.
    pub orphan_grace: Duration,
    /// The most deletions of one sweep.
    pub cap: usize,
    /// The pause between two sweeps.
    pub interval: Duration,
}

/// What one sandbox is to its pod.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    /// Somebody asked for it, and nobody wants its end.
    pub wanted: bool,
    /// Its start was answered well.
    pub ready: bool,
    /// The account its VM is in.
    pub account: usize,
    /// Its pod.
    pub pod: Pod,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub pods: u64,
    pub sandboxes: u64,
    pub by_controllers: u64,
    pub by_daemons: u64,
    pub programs: u64,
    pub cuts: u64,
    pub leaders: u64,
    pub sweeps: u64,
    pub swept: u64,
}

/// A link that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    /// No call to the API server arrives.
    Api,
    /// Calls arrive, and changes are told no more.
    Watch,
    /// No call to a cloud arrives.
    Cloud,
}

pub(crate) struct State {
    pub rng: StdRng,
    pub faults_on: bool,
    crashes: u32,
    pub hits: BTreeMap<Point, u64>,
    trace: Option<Vec<String>>,
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub violations: Vec<String>,
    /// What belongs to others, and must stay.
    pub foreign: BTreeSet<String>,
    /// Records that nobody can act on, and what of the cloud they stand for.
    pub odd: BTreeMap<Key, Option<String>>,
    /// Orphans, by token, and since when they are there.
    pub orphans: BTreeMap<String, Instant>,
    /// Leaderships that go on: their number, and whose they are.
    leaders: BTreeMap<u64, Program>,
    /// Accounts whose last list of a leadership had no end.
    pub cut_lists: BTreeSet<(u64, usize)>,
    /// When leaderships began to delete orphans.
    swept: Vec<(u64, Instant)>,
    /// Links that are cut, until when.
    cuts: BTreeMap<(Arc<str>, Link), Instant>,
    pub counts: Counts,
}

/// One simulated run.
#[derive(Clone)]
pub(crate) struct Sim(Arc<Inner>);

pub(crate) struct Inner {
    pub off: Option<SafetyKey>,
    pub profile: Profile,
    pub clouds: Vec<World>,
    pub scope: Scope,
    start: Instant,
    state: Mutex<State>,
    /// Told when a link was cut or healed, a program came or went, or an object changed. Not a `watch`, whose waiters
    /// wake in an order of chance.
    pub changed: Notify,
}

impl std::ops::Deref for Sim {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Seconds since 1970 when every run begins.
const BASE: u64 = 1_700_000_000;

/// Whether a program lives; its parts ask before everything they do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life(pub CancellationToken);

impl Life {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// One life of a program, with its own clock.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The same for all lives.
    pub name: Arc<str>,
    pub life: Life,
    pub is_controller: bool,
    pub clock: Arc<AtomicU64>,
    skew: i64,
}

impl Program {
    pub(crate) fn new(sim: &Sim, name: &str, is_controller: bool, skew: i64) -> Self {
        sim.state().counts.programs += 1;
        let program =
            Self { name: name.into(), life: Life::default(), is_controller, clock: Arc::default(), skew };
        program.tick(sim);
        program
    }

    /// Sets its clock.
    pub(crate) fn tick(&self, sim: &Sim) {
        self.clock.store(self.unix(sim), Ordering::SeqCst);
    }

    /// Seconds since 1970 by its own clock.
    pub(crate) fn unix(&self, sim: &Sim) -> u64 {
        sim.unix().saturating_add_signed(self.skew)
    }
}

impl Sim {
    /// How far a clock is off.
    pub(crate) fn skew(&self) -> i64 {
        let most = self.profile.skew;
        if most == 0 { 0 } else { self.state().rng.random_range(-most..=most) }
    }

    pub(crate) fn new(seed: u64, off: Option<SafetyKey>, trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let profile = Profile {
            faults: [0, 5, 15, 40][rng.random_range(0..4)],
            crashes: [0, 1, 2, 5][rng.random_range(0..4)],
            controllers: [1, 2, 2][rng.random_range(0..3)],
            nodes: rng.random_range(1..=2),
            accounts: rng.random_range(1..=2),
            skew: [0, 30, 600][rng.random_range(0..3)],
            daemon_grace: Duration::from_secs([10, 60, 120][rng.random_range(0..3)]),
            signs: rng.random_bool(0.5),
            older: rng.random_bool(0.2),
            lag: Duration::from_millis([0, 500, 20_000][rng.random_range(0..3)]),
            followers: rng.random_bool(0.4),
            lease: [(15, 10, 2), (60, 40, 10), (240, 180, 60)]
                [[0, 1, 1, 2, 2, 2, 2, 2, 2, 2][rng.random_range(0..10)]],
            sweeps: rng.random_bool(0.7),
            orphan_grace: Duration::from_secs([0, 60, 300][rng.random_range(0..3)]),
            cap: [1, 3, 10][rng.random_range(0..3)],
            interval: Duration::from_secs([60, 300][rng.random_range(0..2)]),
        };
        let state = State {
            rng,
            faults_on: true,
            crashes: profile.crashes,
            hits: BTreeMap::new(),
            trace: trace.then(Vec::new),
            sandboxes: BTreeMap::new(),
            violations: Vec::new(),
            foreign: BTreeSet::new(),
            odd: BTreeMap::new(),
            orphans: BTreeMap::new(),
            leaders: BTreeMap::new(),
            cut_lists: BTreeSet::new(),
            swept: Vec::new(),
            cuts: BTreeMap::new(),
            counts: Counts::default(),
        };
        Self(Arc::new(Inner {
            off,
            profile,
            clouds: (0..profile.accounts).map(|_| World::new()).collect(),
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

    /// Seconds since 1970 by the clock that is right.
    pub(crate) fn unix(&self) -> u64 {
        BASE + self.start.elapsed().as_secs()
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
        let kill = state.crashes > 0 && state.rng.random_ratio(1, 100);
        if kill && kinds.contains(&Fault::Crash) {
            state.crashes -= 1;
            return Some(Fault::Crash);
        }
        let others: Vec<Fault> = kinds.iter().copied().filter(|k| *k != Fault::Crash).collect();
        if !strikes || others.is_empty() {
            return None;
        }
        let chosen = others[state.rng.random_range(0..others.len())];
        Some(match chosen {
            Fault::Delay(most) => {
                let most = u64::try_from(most.as_millis()).unwrap_or(1).max(1);
                Fault::Delay(Duration::from_millis(state.rng.random_range(0..most)))
            }
            other => other,
        })
    }

    /// Passes a point. An error is the answer of the operation; a program that is dead, or dies here, never returns.
    pub(crate) async fn pass(
        &self,
        program: &Program,
        point: Point,
        subject: impl fmt::Display,
        kinds: &[Fault],
    ) -> Result<(), ()> {
        if program.life.is_over() {
            return std::future::pending().await;
        }
        let fault = self.draw(point, kinds);
        self.log(format_args!(
            "{} {point} {subject} {}",
            program.name,
            fault.map(|f| format!("{f:?}")).unwrap_or_default()
        ));
        match fault {
            None => {}
            Some(Fault::Error) => return Err(()),
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::Crash) => {
                self.kill(program);
                return std::future::pending().await;
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                if program.life.is_over() {
                    return std::future::pending().await;
                }
            }
        }
        program.tick(self);
        Ok(())
    }

    /// Kills a program.
    pub(crate) fn kill(&self, program: &Program) {
        if !program.life.is_over() {
            self.log(format_args!("{} is killed", program.name));
            program.life.0.cancel();
            self.changed.notify_waiters();
        }
    }

    /// A program begins to lead: nobody else may.
    pub(crate) fn lead(&self, program: &Program) -> Leadership {
        let mut state = self.state();
        state.leaders.retain(|_, leader| !leader.life.is_over());
        let others: Vec<Arc<str>> = state.leaders.values().map(|leader| leader.name.clone()).collect();
        state.counts.leaders += 1;
        let number = state.counts.leaders;
        state.leaders.insert(number, program.clone());
        drop(state);
        self.log(format_args!("{} leads: {number}", program.name));
        for other in others {
            self.violation(format_args!("{} and {other} lead at the same moment", program.name));
        }
        Leadership { sim: self.clone(), number }
    }

    /// The leadership of a program that leads.
    pub(crate) fn leadership(&self, program: &Program) -> Option<u64> {
        let state = self.state();
        let own = |leader: &&Program| leader.name == program.name && !leader.life.is_over();
        state.leaders.iter().find(|(_, leader)| own(leader)).map(|(number, _)| *number)
    }

    /// A leadership begins to delete an orphan.
    pub(crate) fn sweeps(&self, number: u64) {
        let now = Instant::now();
        let (cap, interval) = (self.profile.cap, self.profile.interval);
        let mut state = self.state();
        state.counts.swept += 1;
        state.swept.retain(|(_, at)| now.duration_since(*at) < interval);
        state.swept.push((number, now));
        let many = state.swept.iter().filter(|(of, _)| *of == number).count();
        drop(state);
        if many > cap {
            self.violation(format_args!("a sweep deletes {many} orphans, and its cap is {cap}"));
        }
        if !self.profile.sweeps {
            self.violation("a sweep that reports deletes an orphan");
        }
    }

    /// Cuts a link of a program for a while.
    pub(crate) fn cut(&self, name: &str, link: Link, time: Duration) {
        self.log(format_args!("{name}: {link:?} is cut for {time:?}"));
        let mut state = self.state();
        state.cuts.insert((name.into(), link), Instant::now() + time);
        state.counts.cuts += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether a link of a program is cut.
    pub(crate) fn is_cut(&self, program: &Program, link: Link) -> bool {
        let state = self.state();
        state.faults_on
            && state.cuts.get(&(program.name.clone(), link)).is_some_and(|until| Instant::now() < *until)
    }

    /// The cloud that has an instance or a part of one, and what it is tagged with.
    pub(crate) fn unit_of(&self, account: usize, id: &str) -> Option<String> {
        let remote = self.clouds[account].resources().into_iter().find(|r| r.resource.id == id)?;
        remote.tags.get(tags::UNIT).cloned()
    }

    /// Ids of everything that carries a tag's value, instances only or all.
    pub(crate) fn tagged(&self, key: &str, value: &str, instances: bool) -> Vec<String> {
        let all = self.clouds.iter().flat_map(World::resources);
        let of = all.filter(|r| r.tags.get(key).is_some_and(|v| v == value));
        let of = of.filter(|r| !instances || r.resource.kind == Resource::INSTANCE);
        of.map(|r| r.resource.id).collect()
    }
}

/// Ends when it is dropped.
pub(crate) struct Leadership {
    sim: Sim,
    pub number: u64,
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.sim.log(format_args!("leadership {} is over", self.number));
        self.sim.state().leaders.remove(&self.number);
    }
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.pods += other.pods;
        self.sandboxes += other.sandboxes;
        self.by_controllers += other.by_controllers;
        self.by_daemons += other.by_daemons;
        self.programs += other.programs;
        self.cuts += other.cuts;
        self.leaders += other.leaders;
        self.sweeps += other.sweeps;
        self.swept += other.swept;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pods, {} sandboxes, {} starts of programs, {} leaderships, {} cut links, {} views for sweeps, VMs deleted by \
             daemons {}, by controllers {}, orphans deleted {}",
            self.pods,
            self.sandboxes,
            self.programs,
            self.leaders,
            self.cuts,
            self.sweeps,
            self.by_daemons,
            self.by_controllers,
            self.swept
        )
    }
}
