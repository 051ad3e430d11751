//! The cloud of the double: what exists, what was called, what is scripted.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::fault::{Fault, How};
use crate::{Error, Resource, Result, UserData};

/// How far lists lag behind. Questions for one id are always answered with the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// A change shows only after so many further list calls.
    pub calls: u64,
    /// A change shows only after so much time.
    pub time: Duration,
}

impl Lag {
    /// Lets a change show after `calls` further list calls.
    pub fn calls(calls: u64) -> Self {
        Self { calls, time: Duration::ZERO }
    }

    /// Lets a change show after `time`.
    pub fn time(time: Duration) -> Self {
        Self { calls: 0, time }
    }
}

/// How a remote call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It has not ended.
    Pending,
    /// It succeeded.
    Done,
    /// It failed, with this text.
    Failed(String),
    /// The caller gave up waiting.
    Dropped,
}

/// One remote call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// Which one, such as `run_instance`.
    pub operation: &'static str,
    /// Name or id that it was about; empty for lists.
    pub target: String,
    /// When it began, since the world did.
    pub at: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// One thing that exists in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remote {
    /// Kind and id.
    pub resource: Resource,
    /// Name, unique per kind.
    pub name: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Disks, interfaces and volumes of an instance.
    pub attached: Vec<Resource>,
    /// Address of an instance.
    pub address: Option<IpAddr>,
    /// What an instance was given to read.
    pub user_data: UserData,
    /// Whether an instance was switched off.
    pub stopped: bool,
    pub(super) ready_at: Instant,
    pub(super) since: Since,
    pub(super) gone: Option<Since>,
    pub(super) gone_at: Option<Instant>,
}

/// A moment in time and in the count of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since {
    lists: u64,
    at: Instant,
}

/// What happens to a call, and who is told.
type Struck = (How, Option<CancellationToken>);

pub(super) struct State {
    start: Instant,
    next: u64,
    lists: u64,
    pub(super) resources: BTreeMap<String, Remote>,
    /// Ids of all that ever had a kind and a name: thousands are looked for by name.
    names: HashMap<(String, String), Vec<String>>,
    /// Idempotency value to (parameters, instance id); never forgotten, as in clouds.
    pub(super) replays: HashMap<String, (String, String)>,
    calls: Vec<Call>,
    faults: Vec<Fault>,
    latency: Duration,
    latencies: HashMap<String, Duration>,
    pub(super) boot: Duration,
    pub(super) shutdown: Duration,
    pub(super) lag: Lag,
    pub(super) page: usize,
    address: Option<IpAddr>,
    unique_names: bool,
    pub(super) console: Vec<u8>,
}

/// Stands between one client and the world, as the network and the client's process do.
///
/// With gates of their own, two clients of one world can fail apart: one may be cut off, or dead, while the other goes on.
#[async_trait]
pub trait Gate: Send + Sync {
    /// A call is about to be made. An error is the caller's answer, and the call is not made.
    async fn before(&self, operation: &'static str, target: &str) -> Result<()>;

    /// A call took effect. An error is the caller's answer in place of the reply.
    async fn after(&self, operation: &'static str, target: &str) -> Result<()>;
}

/// A cloud in memory. Clones are the same world.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    gate: Option<Arc<dyn Gate>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("World")
            .field("resources", &state.resources.len())
            .field("calls", &state.calls.len())
            .finish()
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Makes an empty world without delays and faults.
    pub fn new() -> Self {
        let state = State {
            start: Instant::now(),
            next: 1,
            lists: 0,
            resources: BTreeMap::new(),
            names: HashMap::new(),
            replays: HashMap::new(),
            calls: Vec::new(),
            faults: Vec::new(),
            latency: Duration::ZERO,
            latencies: HashMap::new(),
            boot: Duration::ZERO,
            shutdown: Duration::ZERO,
            lag: Lag::default(),
            page: 100,
            address: None,
            unique_names: true,
            console: b"\x1b[2Jthe machine boots\r\nthe machine is up\r\n".to_vec(),
        };
        Self { state: Arc::new(Mutex::new(state)), gate: None }
    }

    /// Returns the same world as a client behind `gate` sees it.
    #[must_use]
    pub fn gated(&self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self.clone() }
    }

    /// Returns the world of this name, the same one everywhere in this process.
    ///
    /// For tests that reach the provider through its registration and options.
    pub fn named(name: &str) -> Self {
        static WORLDS: OnceLock<Mutex<HashMap<String, World>>> = OnceLock::new();
        let mut worlds = WORLDS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        worlds.entry(name.to_owned()).or_default().clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it looked is no reason to hide the state from its clean-up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fault. Several may be scripted; the first that strikes decides.
    pub fn script(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Takes back every fault that has not struck.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Sets how long every remote call takes.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Sets how long calls of one operation take.
    pub fn set_latency_of(&self, operation: &str, latency: Duration) {
        self.lock().latencies.insert(operation.to_owned(), latency);
    }

    /// Sets how long an instance needs until it has an address.
    pub fn set_boot_time(&self, time: Duration) {
        self.lock().boot = time;
    }

    /// Sets how long an instance needs to go.
    pub fn set_shutdown_time(&self, time: Duration) {
        self.lock().shutdown = time;
    }

    /// Sets how far lists lag behind.
    pub fn set_lag(&self, lag: Lag) {
        self.lock().lag = lag;
    }

    /// Returns how far lists lag behind: what a cloud's documentation would promise.
    pub fn lag(&self) -> Lag {
        self.lock().lag
    }

    /// Sets how many entries a page of a list has.
    pub fn set_page_size(&self, entries: usize) {
        self.lock().page = entries.max(1);
    }

    /// Sets what every instance has written to its console.
    pub fn set_console(&self, bytes: impl Into<Vec<u8>>) {
        self.lock().console = bytes.into();
    }

    /// Sets whether a name can be taken twice, as it can in clouds where it is a tag like any other.
    pub fn set_unique_names(&self, unique: bool) {
        self.lock().unique_names = unique;
    }

    /// Gives every instance made from now on this address instead of one of its own.
    pub fn set_address(&self, address: IpAddr) {
        self.lock().address = Some(address);
    }

    /// Puts something into the world that no provider made, and returns its id.
    pub fn add(&self, kind: &str, name: &str, tags: &[(&str, &str)]) -> String {
        let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.lock().insert(kind, name, tags, Vec::new())
    }

    /// Attaches something to an instance by hand, around every provider.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::NotFound`] when there is no such instance.
    pub fn attach(&self, instance: &str, resource: Resource) -> Result<()> {
        self.lock().by_id(instance)?.attached.push(resource);
        Ok(())
    }

    /// Sets a tag by hand, or removes it, around every provider.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::NotFound`] when there is no such thing.
    pub fn set_tag(&self, id: &str, key: &str, value: Option<&str>) -> Result<()> {
        let mut state = self.lock();
        let tags = &mut state.by_id(id)?.tags;
        match value {
            Some(value) => drop(tags.insert(key.to_owned(), value.to_owned())),
            None => drop(tags.remove(key)),
        }
        Ok(())
    }

    /// Switches an instance off by hand, around every provider.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::NotFound`] when there is no such instance.
    pub fn stop(&self, id: &str) -> Result<()> {
        self.lock().by_id(id)?.stopped = true;
        Ok(())
    }

    /// Removes something at once, by hand, around every provider.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::NotFound`] when there is no such thing.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.lock().remove(id, Duration::ZERO)
    }

    /// Returns everything that exists, as it truly is, in the order of creation.
    pub fn resources(&self) -> Vec<Remote> {
        let now = Instant::now();
        self.lock().resources.values().filter(|r| r.exists(now)).cloned().collect()
    }

    /// Returns every remote call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Returns the operations called so far, in order.
    pub fn operations(&self) -> Vec<&'static str> {
        self.lock().calls.iter().map(|c| c.operation).collect()
    }

    /// Makes a remote call: counted, delayed, and answered as scripted.
    pub(super) async fn call<T>(
        &self,
        operation: &'static str,
        target: &str,
        effect: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        if let Some(gate) = &self.gate {
            gate.before(operation, target).await.map_err(|e| e.with_operation(operation))?;
        }
        let (index, latency, struck) = self.lock().begin(operation, target);
        let mut end = End { world: self, index, outcome: Outcome::Dropped };
        let (how, told) = struck.unzip();
        let tell = || told.flatten().iter().for_each(CancellationToken::cancel);
        if how == Some(How::HangBefore) {
            tell();
            return std::future::pending().await;
        }
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let result = match how {
            Some(How::Before(error)) => Err(error),
            Some(How::After(error)) => effect(&mut self.lock()).and(Err(error)),
            Some(How::HangAfter) => {
                effect(&mut self.lock())?;
                tell();
                return std::future::pending().await;
            }
            Some(How::HangBefore) | None => effect(&mut self.lock()),
        };
        let result = match &self.gate {
            Some(gate) if result.is_ok() => gate.after(operation, target).await.and(result),
            _ => result,
        };
        tell();
        end.outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        result.map_err(|e| e.with_operation(operation))
    }
}

/// Writes down how a call ended, also when its future is dropped.
struct End<'a> {
    world: &'a World,
    index: usize,
    outcome: Outcome,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        state.calls[self.index].outcome = self.outcome.clone();
    }
}

impl Remote {
    /// Returns whether it was told to go.
    pub fn is_going(&self) -> bool {
        self.gone_at.is_some()
    }

    /// Returns whether it is there at `now`.
    pub(super) fn exists(&self, now: Instant) -> bool {
        self.gone_at.is_none_or(|end| now < end)
    }
}

impl State {
    fn begin(&mut self, operation: &'static str, target: &str) -> (usize, Duration, Option<Struck>) {
        self.calls.push(Call {
            operation,
            target: target.to_owned(),
            at: self.start.elapsed(),
            outcome: Outcome::Pending,
        });
        // Every fault counts every call, also the ones that another fault takes.
        let struck: Vec<Struck> = self
            .faults
            .iter_mut()
            .filter_map(|f| f.strikes(operation).then(|| (f.how.clone(), f.told.clone())))
            .collect();
        let latency = self.latencies.get(operation).copied().unwrap_or(self.latency);
        (self.calls.len() - 1, latency, struck.into_iter().next())
    }

    fn since_now(&self) -> Since {
        Since { lists: self.lists, at: Instant::now() }
    }

    /// Puts something into the world and returns its id. Ids sort by age.
    pub(super) fn insert(
        &mut self,
        kind: &str,
        name: &str,
        tags: BTreeMap<String, String>,
        attached: Vec<Resource>,
    ) -> String {
        let n = self.next;
        self.next += 1;
        let id = format!("s-{n:06}");
        let low = |shift: u32| u8::try_from((n >> shift) & 0xff).unwrap_or_default();
        let own = IpAddr::V4(Ipv4Addr::new(10, low(16), low(8), low(0)));
        let instance = kind == Resource::INSTANCE;
        let remote = Remote {
            resource: Resource::new(kind, &id),
            name: name.to_owned(),
            tags,
            attached,
            address: instance.then(|| self.address.unwrap_or(own)),
            user_data: UserData::default(),
            stopped: false,
            ready_at: Instant::now() + if instance { self.boot } else { Duration::ZERO },
            since: self.since_now(),
            gone: None,
            gone_at: None,
        };
        self.names.entry((kind.to_owned(), name.to_owned())).or_default().push(id.clone());
        self.resources.insert(id.clone(), remote);
        id
    }

    /// Returns what has this kind and name now, where names say anything.
    pub(super) fn by_name(&self, kind: &str, name: &str) -> Option<&Remote> {
        if !self.unique_names {
            return None;
        }
        let now = Instant::now();
        let ids = self.names.get(&(kind.to_owned(), name.to_owned()))?;
        ids.iter().filter_map(|id| self.resources.get(id)).find(|r| r.exists(now))
    }

    /// Returns what has this id now.
    pub(super) fn by_id(&mut self, id: &str) -> Result<&mut Remote> {
        let now = Instant::now();
        self.resources
            .get_mut(id)
            .filter(|r| r.exists(now))
            .ok_or_else(|| Error::new(crate::ErrorKind::NotFound, "no such resource").with("id", id))
    }

    /// Lets something go, at once or after `delay`.
    pub(super) fn remove(&mut self, id: &str, delay: Duration) -> Result<()> {
        let since = self.since_now();
        let remote = self.by_id(id)?;
        // Asked again while it is going, it goes when it was going to.
        if remote.gone_at.is_none() {
            remote.gone = Some(since);
            remote.gone_at = Some(since.at + delay);
        }
        Ok(())
    }

    /// Counts a list call and returns what it shows.
    pub(super) fn listed(&mut self) -> impl Iterator<Item = &Remote> {
        self.lists += 1;
        let now = Instant::now();
        let (lag, lists) = (self.lag, self.lists);
        let shows = move |s: Since| lists - s.lists > lag.calls && now >= s.at + lag.time;
        let visible = move |r: &&Remote| shows(r.since) && (r.exists(now) || !r.gone.is_some_and(shows));
        self.resources.values().filter(visible)
    }
}
