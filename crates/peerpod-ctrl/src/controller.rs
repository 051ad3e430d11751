//! The controller's loop: which record is looked at, and when. One task owns all of it.
//!
//! Records that are being deleted wait in the lane of their account, so that a cloud that does not answer holds up its
//! own records and nobody else's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use cloud_providers::Error;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    decide,
    hooks::SafetyKey,
    model::{Change, Key, Reason, Record},
    providers::account_name,
    settings::Settings,
    work::{Looked, Outcome, Parts, Shared},
};

/// Looks at the same time; they ask the API server only.
const LOOKS: usize = 16;
/// How long tasks may take to end once the controller stops. A lost lease leaves five seconds between the moment at
/// which its holder stops and the one at which another may begin.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// The loop turns at least this often, so that its standing still is seen and ages are true.
const TURN: Duration = Duration::from_secs(5);
/// Bounds of the pause before a broken stream of changes is begun anew.
const WATCH_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Changes that may wait for the loop.
const CHANGES: usize = 1024;

/// Runs until `stop` fires. When it returns nothing that it began goes on.
pub async fn run(parts: Parts, settings: Settings, stop: CancellationToken) {
    let shared = Arc::new(Shared::new(parts, settings, stop.clone()));
    let (sender, changes) = mpsc::channel(CHANGES);
    // In a set, so that it ends with this future also when that is dropped.
    let mut watcher = JoinSet::new();
    watcher.spawn(keep_watching(shared.clone(), sender));
    let providers = shared.parts.providers.changes();
    let mut controller = Controller::new(shared);
    controller.turn(changes, providers, &stop).await;
    watcher.shutdown().await;
    controller.end().await;
}

/// Begins the stream of changes anew whenever it breaks.
async fn keep_watching(shared: Arc<Shared>, changes: mpsc::Sender<Change>) {
    let mut pause = WATCH_PAUSE.0;
    loop {
        let begun = Instant::now();
        let result = shared.parts.cluster.watch(changes.clone()).await;
        if shared.cancel.is_cancelled() || changes.is_closed() {
            return;
        }
        shared.parts.metrics.watch_restarts.inc();
        if let Err(error) = result {
            tracing::warn!(%error, "the stream of changes broke, beginning anew");
        }
        // What held for long is not part of a series of failures.
        if begun.elapsed() > WATCH_PAUSE.1 {
            pause = WATCH_PAUSE.0;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(WATCH_PAUSE.1);
    }
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing to do until it changes.
    Settled,
    /// Looked at when the time has come.
    Due(Instant),
    /// Waits for its turn to be looked at, or to be deleted.
    Queued,
    /// A task is at it. `true` when it changed meanwhile.
    Busy(bool),
}

#[derive(Debug)]
struct Entry {
    record: Record,
    state: State,
    /// When this controller first saw that its time has come: since then it waits for its daemon.
    doomed_since: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// Why it is held.
    held: Option<Reason>,
    /// It is gone; the task that is still at it will find out.
    deleted: bool,
}

/// What may run at the same time.
#[derive(Debug, Default)]
struct Lane {
    limit: usize,
    running: usize,
    waiting: VecDeque<Key>,
}

/// Which lane: looks have one together, deletions one for each account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LaneName {
    Looks,
    Account(String),
}

enum Finished {
    Looked(Looked),
    Deleted(Outcome),
}

struct Controller {
    shared: Arc<Shared>,
    entries: BTreeMap<Key, Entry>,
    by_owner: BTreeMap<String, BTreeSet<Key>>,
    due: BTreeSet<(Instant, Key)>,
    lanes: BTreeMap<LaneName, Lane>,
    tasks: JoinSet<Finished>,
    at_work: HashMap<Id, (Key, LaneName, AbortHandle)>,
    /// Labels that have a value in the metrics, so that they go back to zero.
    accounts: BTreeSet<String>,
    reasons: BTreeSet<Reason>,
}

impl Controller {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            entries: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            due: BTreeSet::new(),
            lanes: BTreeMap::new(),
            tasks: JoinSet::new(),
            at_work: HashMap::new(),
            accounts: BTreeSet::new(),
            reasons: BTreeSet::new(),
        }
    }

    async fn turn(
        &mut self,
        mut changes: mpsc::Receiver<Change>,
        mut providers: watch::Receiver<u64>,
        stop: &CancellationToken,
    ) {
        let mut told = Instant::now();
        let mut constant = false;
        loop {
            self.shared.parts.metrics.beat();
            if told.elapsed() >= TURN {
                told = Instant::now();
                self.measure();
            }
            let next = self.due.first().map_or_else(|| Instant::now() + TURN, |(at, _)| *at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.finished(done),
                Some(change) = changes.recv() => self.changed(change),
                result = providers.changed(), if !constant => {
                    constant = result.is_err();
                    self.try_all_again();
                }
                () = tokio::time::sleep_until(next.min(Instant::now() + TURN)) => self.run_due(),
            }
        }
    }

    /// Waits for what was cancelled, and drops what ignores it.
    async fn end(mut self) {
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, finished).await.is_err() {
            tracing::warn!("some deletions did not end in time and are dropped; they are done again");
            self.tasks.shutdown().await;
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Listed(records) => {
                let there: BTreeSet<Key> = records.iter().map(|r| r.key.clone()).collect();
                let gone: Vec<Key> = self.entries.keys().filter(|k| !there.contains(k)).cloned().collect();
                gone.iter().for_each(|key| self.removed(key));
                records.into_iter().for_each(|record| self.applied(record));
            }
            Change::Applied(record) => self.applied(*record),
            Change::Deleted(key) => self.removed(&key),
        }
        self.shared.parts.metrics.records.set(i64::try_from(self.entries.len()).unwrap_or(i64::MAX));
    }

    fn applied(&mut self, record: Record) {
        let key = record.key.clone();
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.record.uid() == record.uid() && entry.record.same_matter(&record) && !entry.deleted {
                // Only our own words changed.
                entry.record = record;
                return;
            }
            if entry.record.uid() != record.uid() {
                // Another one of the same name: nothing of the old one's story holds.
                (entry.doomed_since, entry.failures, entry.held) = (None, 0, None);
                self.shared.forget(&key);
            }
            if let Some(owner) = &entry.record.facts.pod
                && record.facts.pod.as_ref().is_none_or(|o| o.uid != owner.uid)
            {
                let uid = owner.uid.clone();
                self.unlink(&uid, &key);
            }
        }
        if let Some(owner) = &record.facts.pod {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        let owner = record.facts.pod.clone();
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            record: record.clone(),
            state: State::Settled,
            doomed_since: None,
            failures: 0,
            held: None,
            deleted: false,
        });
        entry.record = record;
        entry.deleted = false;
        self.wake(&key);
        // What this one may have taken the place of.
        let siblings = owner.and_then(|o| self.by_owner.get(&o.uid)).cloned().unwrap_or_default();
        for sibling in siblings.into_iter().filter(|s| *s != key) {
            self.wake(&sibling);
        }
    }

    fn unlink(&mut self, owner: &str, key: &Key) {
        if let Some(keys) = self.by_owner.get_mut(owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(owner);
            }
        }
    }

    fn removed(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let State::Busy(_) = entry.state {
            entry.deleted = true;
            return;
        }
        self.drop_entry(key);
    }

    fn drop_entry(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let State::Due(at) = entry.state {
            self.due.remove(&(at, key.clone()));
        }
        if entry.state == State::Queued {
            self.lanes.values_mut().for_each(|lane| lane.waiting.retain(|k| k != key));
        }
        if let Some(owner) = &entry.record.facts.pod {
            self.unlink(&owner.uid.clone(), key);
        }
        self.shared.forget(key);
    }

    /// Has a record looked at as soon as possible.
    fn wake(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match entry.state {
            State::Busy(_) => entry.state = State::Busy(true),
            State::Queued => {}
            // A failed deletion keeps its pause: a change of the record does not make the cloud answer.
            State::Due(_) if entry.failures > 0 => {}
            State::Settled | State::Due(_) => self.schedule(key, Duration::ZERO),
        }
    }

    fn schedule(&mut self, key: &Key, pause: Duration) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let State::Due(at) = entry.state {
            self.due.remove(&(at, key.clone()));
        }
        let at = Instant::now() + pause;
        entry.state = State::Due(at);
        self.due.insert((at, key.clone()));
    }

    /// The providers changed: what failed or was held may work now.
    fn try_all_again(&mut self) {
        let keys: Vec<Key> = self
            .entries
            .iter()
            .filter(|(_, e)| e.record.is_deleting() && matches!(e.state, State::Due(_)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.schedule(&key, Duration::ZERO);
        }
    }

    fn run_due(&mut self) {
        let now = Instant::now();
        while let Some((at, key)) = self.due.first().cloned()
            && at <= now
        {
            self.due.pop_first();
            self.enqueue(key, LaneName::Looks);
        }
    }

    fn enqueue(&mut self, key: Key, lane: LaneName) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.state = State::Queued;
        let limit = match lane {
            LaneName::Looks => LOOKS,
            LaneName::Account(_) => self.shared.settings.concurrency.max(1),
        };
        let queue = self.lanes.entry(lane.clone()).or_insert_with(|| Lane { limit, ..Lane::default() });
        queue.waiting.push_back(key);
        self.advance(&lane);
    }

    /// Begins what the lane has room for.
    fn advance(&mut self, name: &LaneName) {
        loop {
            let Some(lane) = self.lanes.get_mut(name) else { return };
            if lane.running >= lane.limit {
                return;
            }
            let Some(key) = lane.waiting.pop_front() else {
                if lane.running == 0 {
                    self.lanes.remove(name);
                }
                return;
            };
            lane.running += 1;
            self.begin(key, name.clone());
        }
    }

    fn begin(&mut self, key: Key, lane: LaneName) {
        let others = self.siblings(&key);
        let shared = self.shared.clone();
        let Some(entry) = self.entries.get_mut(&key) else {
            if let Some(lane) = self.lanes.get_mut(&lane) {
                lane.running -= 1;
            }
            return;
        };
        entry.state = State::Busy(false);
        let record = entry.record.clone();
        let newer = decide::superseded_by(&record, &others, &shared.parts.hooks).cloned();
        if !record.is_deleting() && newer.is_none() {
            entry.doomed_since = None;
        }
        let doomed = record.is_deleting() || newer.is_some();
        let waited = match doomed {
            true => entry.doomed_since.get_or_insert_with(Instant::now).elapsed(),
            false => Duration::ZERO,
        };
        let handle = match lane {
            LaneName::Looks => self
                .tasks
                .spawn(async move { Finished::Looked(shared.look(&record, newer.as_ref(), waited).await) }),
            LaneName::Account(_) => self.tasks.spawn(async move {
                Finished::Deleted(shared.delete(&record, newer.as_ref(), waited).await)
            }),
        };
        self.at_work.insert(handle.id(), (key, lane, handle));
    }

    /// The other records of the same pod.
    fn siblings(&self, key: &Key) -> Vec<Record> {
        let owner = self.entries.get(key).and_then(|e| e.record.facts.pod.as_ref());
        let keys = owner.and_then(|o| self.by_owner.get(&o.uid));
        let others = keys.into_iter().flatten().filter(|k| *k != key);
        others.filter_map(|k| self.entries.get(k)).filter(|e| !e.deleted).map(|e| e.record.clone()).collect()
    }

    fn finished(&mut self, done: Result<(Id, Finished), JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some((key, name, _)) = self.at_work.remove(&id) else { return };
        if let Some(lane) = self.lanes.get_mut(&name) {
            lane.running = lane.running.saturating_sub(1);
        }
        self.settle(&key, done.map(|(_, finished)| finished));
        self.advance(&name);
    }

    fn settle(&mut self, key: &Key, done: Result<Finished, JoinError>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let changed = entry.state == State::Busy(true);
        if entry.deleted {
            self.drop_entry(key);
            return;
        }
        entry.state = State::Settled;
        entry.held = None;
        let settings = &self.shared.settings;
        let pause = |entry: &mut Entry, error: Option<&Error>| {
            entry.failures = entry.failures.saturating_add(1);
            settings.backoff.pause(error, entry.failures, seed(key))
        };
        let next = match done {
            Ok(Finished::Looked(Looked::Delete)) => {
                let account = account_name(entry.record.provider(), entry.record.facts.profile.as_deref());
                self.enqueue(key.clone(), LaneName::Account(account));
                return;
            }
            Ok(Finished::Looked(Looked::Settled)) => None,
            Ok(Finished::Looked(Looked::Wait(pause, reason))) => {
                entry.held = reason;
                Some(pause)
            }
            Ok(Finished::Deleted(Outcome::Done)) => {
                entry.failures = 0;
                // Gone, or about to be; if it is neither, it changed and comes back.
                Some(settings.recheck)
            }
            Ok(Finished::Deleted(Outcome::Changed)) => Some(Duration::ZERO),
            Ok(Finished::Deleted(Outcome::Held(note, pause))) => {
                (entry.failures, entry.held) = (0, Some(note.reason));
                Some(pause)
            }
            Ok(Finished::Deleted(Outcome::Failed(error))) => {
                entry.held = Some(Reason::DeletionFailed);
                let next = pause(entry, Some(&error));
                self.shared.parts.hooks.has(SafetyKey::TryAgain).then_some(next)
            }
            Ok(Finished::Looked(Looked::Away(error)) | Finished::Deleted(Outcome::Away(error))) => {
                tracing::warn!(record = %key, %error, "the API server did not do what was asked, trying again");
                Some(pause(entry, None))
            }
            Err(error) => {
                // A bug in a provider, or in us, is one record's problem.
                tracing::error!(record = %key, %error, "the task for a record panicked, trying again");
                self.shared.parts.metrics.failure("controller", "internal");
                Some(pause(entry, None))
            }
        };
        match next {
            Some(_) if changed && entry.failures == 0 => self.schedule(key, Duration::ZERO),
            Some(pause) => self.schedule(key, pause),
            None if changed => self.schedule(key, Duration::ZERO),
            None => {}
        }
    }

    /// Sets the gauges.
    fn measure(&mut self) {
        let metrics = self.shared.parts.metrics.clone();
        let now = self.shared.parts.hooks.unix_now();
        let mut pending: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        let mut held: BTreeMap<Reason, usize> = BTreeMap::new();
        let names = self.shared.parts.providers.names();
        for entry in self.entries.values() {
            if entry.record.is_deleting() && entry.record.is_kept() {
                let account = account_name(entry.record.provider(), entry.record.facts.profile.as_deref());
                let account = if names.contains(&account) { account } else { "unknown".to_owned() };
                let age = now.saturating_sub(entry.record.deleting_unix().unwrap_or(now));
                let (count, oldest) = pending.entry(account).or_default();
                *count += 1;
                *oldest = age.max(*oldest);
            }
            if let Some(reason) = entry.held {
                *held.entry(reason).or_default() += 1;
            }
        }
        self.accounts.extend(pending.keys().cloned());
        self.reasons.extend(held.keys().copied());
        for account in &self.accounts {
            let (count, oldest) = pending.get(account).copied().unwrap_or_default();
            metrics.pending(account, count, oldest);
        }
        for reason in &self.reasons {
            metrics.held(reason.label(), held.get(reason).copied().unwrap_or_default());
        }
    }
}

/// Spreads the pauses of records that failed together.
fn seed(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
