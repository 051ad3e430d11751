//! What is done for one record: reading anew, calling the provider, telling.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, OpContext, Provider};
use peerpod_api::{Gone, rules};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{Cluster, ClusterError},
    decide::{self, Doomed, Look, Verdict},
    hooks::{Hooks, SafetyKey},
    metrics::Metrics,
    model::{Daemon, Key, Note, Pod, Reason, Record},
    providers::{NoAccount, Providers, account_name},
    settings::Settings,
};

/// What is known about daemons is asked for at most this often.
const DAEMONS_FOR: Duration = Duration::from_secs(5);
/// How much longer than its limit a provider may take to notice that its time is over.
const SLACK: Duration = Duration::from_secs(10);
/// A deletion that is over by then leaves no word behind.
const QUIET: Duration = Duration::from_secs(5);
/// Words about one record with the same reason come at most this often.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// How often a finalizer's removal is tried anew at once when the record changed meanwhile.
const CONFLICTS: u32 = 5;

/// What a controller works with.
#[derive(Clone)]
pub struct Parts {
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Accounts of clouds.
    pub providers: Arc<dyn Providers>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Safety keys.
    pub hooks: Hooks,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

/// Everything that the tasks of one controller share.
pub(crate) struct Shared {
    pub(crate) parts: Parts,
    pub(crate) settings: Settings,
    pub(crate) cancel: CancellationToken,
    daemons: tokio::sync::Mutex<Option<(Instant, BTreeMap<String, Daemon>)>>,
    told: Mutex<BTreeMap<Key, Told>>,
    /// Pods, by the record of theirs that waits for their end, and since when they are known to end.
    ending: Mutex<BTreeMap<Key, (String, Instant)>>,
}

struct Told {
    note: Note,
    at: Instant,
}

/// How the first look ended.
#[derive(Debug)]
pub(crate) enum Looked {
    /// Nothing to do until the record changes.
    Settled,
    /// To be looked at again.
    Wait(Duration, Option<Reason>),
    /// To be deleted, when it is its turn.
    Delete,
    /// The API server did not answer.
    Away(ClusterError),
}

/// How a deletion ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Our finalizers are off, or there was nothing of ours.
    Done,
    /// It is held for a reason that it was told.
    Held(Note, Duration),
    /// It names something else by now.
    Changed,
    /// The provider did not do it.
    Failed(Error),
    /// The API server did not answer.
    Away(ClusterError),
}

impl Shared {
    pub(crate) fn new(parts: Parts, settings: Settings, cancel: CancellationToken) -> Self {
        let (daemons, told) = (tokio::sync::Mutex::new(None), Mutex::new(BTreeMap::new()));
        Self { parts, settings, cancel, daemons, told, ending: Mutex::default() }
    }

    fn has(&self, key: SafetyKey) -> bool {
        self.parts.hooks.has(key)
    }

    /// Forgets what was told about a record that is gone.
    pub(crate) fn forget(&self, key: &Key) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Returns for how long the pod of a record has been ending, as far as this controller saw. The record may have been
    /// deleted long before.
    fn ending_for(&self, key: &Key, pod: &Pod) -> Duration {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (uid, since) = ending.entry(key.clone()).or_insert_with(|| (pod.uid.clone(), now));
        if *uid != pod.uid {
            (*uid, *since) = (pod.uid.clone(), now);
        }
        now.duration_since(*since)
    }

    /// Looks at a record as the cache has it.
    pub(crate) async fn look(&self, record: &Record, newer: Option<&Record>, waited: Duration) -> Looked {
        let daemon = match self.daemon(record.facts.node.as_deref()).await {
            Ok(daemon) => daemon,
            Err(error) => {
                // It decides who goes first and nothing else.
                tracing::debug!(%error, "nothing is known about the daemons");
                Daemon::Unknown
            }
        };
        let hooks = &self.parts.hooks;
        match decide::look(record, newer, waited, daemon, &self.settings, hooks) {
            Look::Nothing => Looked::Settled,
            Look::Delete => Looked::Delete,
            Look::Wait(pause, note) => {
                if let Some(note) = &note {
                    self.tell(record, note).await;
                }
                Looked::Wait(pause, note.map(|n| n.reason))
            }
            Look::Supersede(by) => self.supersede(record, newer, &by).await,
        }
    }

    async fn daemon(&self, node: Option<&str>) -> Result<Daemon, ClusterError> {
        let Some(node) = node else { return Ok(Daemon::Unknown) };
        let mut known = self.daemons.lock().await;
        if known.as_ref().is_none_or(|(at, _)| at.elapsed() >= DAEMONS_FOR) {
            *known = Some((Instant::now(), self.parts.cluster.daemons().await?));
        }
        // A node that is not listed does not exist, and with it its daemon.
        let states = known.as_ref().map(|(_, states)| states);
        Ok(states.and_then(|s| s.get(node)).copied().unwrap_or(Daemon::Gone))
    }

    /// Asks for the deletion of a record whose place another one took, if that still holds.
    async fn supersede(&self, record: &Record, newer: Option<&Record>, by: &str) -> Looked {
        let read = async {
            let newer = match newer {
                Some(newer) => self.parts.cluster.record(&newer.key).await?,
                None => None,
            };
            Ok((self.parts.cluster.record(&record.key).await?, newer))
        };
        let (record, newer) = match read.await {
            Ok((Some(record), Some(newer))) => (record, newer),
            Ok(_) => return Looked::Wait(self.settings.recheck, None),
            Err(error) => return Looked::Away(error),
        };
        if record.is_deleting() || decide::superseded_by(&record, [&newer], &self.parts.hooks).is_none() {
            return Looked::Wait(self.settings.recheck, None);
        }
        tracing::info!(record = %record.key, by, "another sandbox of the same pod took its place: deleting the record");
        match self.parts.cluster.delete(&record, Some(by)).await {
            // The deletion comes back as a change.
            Ok(()) | Err(ClusterError::NotFound | ClusterError::Conflict) => {
                let note = Note::new(Reason::Superseded, format!("{by} took its place: the old VM goes"));
                self.tell(&record, &note).await;
                Looked::Wait(self.settings.recheck, None)
            }
            Err(error) => Looked::Away(error),
        }
    }

    /// Reads everything anew and deletes what the record names.
    ///
    /// `newer` is the record that took its place, as far as a cache can tell.
    pub(crate) async fn delete(&self, cached: &Record, newer: Option<&Record>, waited: Duration) -> Outcome {
        match self.try_delete(cached, newer, waited).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Away(error),
        }
    }

    async fn try_delete(
        &self,
        cached: &Record,
        newer: Option<&Record>,
        waited: Duration,
    ) -> Result<Outcome, ClusterError> {
        let cluster = &self.parts.cluster;
        let record = match self.has(SafetyKey::FreshRecord) {
            true => cluster.record(&cached.key).await?,
            false => Some(cached.clone()),
        };
        // Another record of the same name comes with changes of its own.
        let Some(record) = record.filter(|r| r.uid() == cached.uid()) else { return Ok(Outcome::Done) };
        let newer = match newer {
            Some(newer) => cluster.record(&newer.key).await?,
            None => None,
        };
        let pod = match &record.facts.pod {
            // The pod may live on: another sandbox serves it.
            Some(_) if decide::superseded_by(&record, &newer, &self.parts.hooks).is_some() => None,
            Some(owner) => cluster.pod(&Key::new(&record.key.namespace, &owner.name)).await?,
            None => None,
        };
        let hooks = &self.parts.hooks;
        let waited = match &pod {
            Some(pod) if pod.deleting => waited.min(self.ending_for(&record.key, pod)),
            _ => waited,
        };
        let doomed = match decide::verdict(&record, pod.as_ref(), waited, &self.settings, hooks) {
            Verdict::Done => return Ok(Outcome::Done),
            Verdict::Hold(note, pause) => return Ok(self.held(&record, note, pause).await),
            Verdict::Delete(doomed) => doomed,
        };
        let account =
            match self.parts.providers.account(record.provider(), record.facts.profile.as_deref()).await {
                Ok(account) => account,
                Err(NoAccount::Unknown(why)) => {
                    let note = Note::new(Reason::UnknownProvider, why);
                    return Ok(self.held(&record, note, self.settings.recheck).await);
                }
                Err(NoAccount::Broken(error)) => {
                    self.parts.metrics.failure(
                        &account_name(record.provider(), record.facts.profile.as_deref()),
                        error.kind().label(),
                    );
                    let note = Note::new(Reason::ProviderUnavailable, error.report());
                    return Ok(self.held(&record, note, self.settings.recheck).await);
                }
            };
        if matches!(doomed, Doomed::Token(_)) && !account.provider.capabilities().release {
            let name = record.facts.instance_name.as_deref().unwrap_or("of this pod");
            let message = format!(
                "it names no instance, and the provider {} cannot remove things by token: look for a VM {name} in the \
                 cloud, and then remove the finalizer by hand",
                account.name
            );
            let note = Note::new(Reason::CannotRelease, message);
            return Ok(self.held(&record, note, self.settings.recheck).await);
        }
        if !self.has(SafetyKey::GoneFirst) {
            self.take_off(&record, &doomed.gone()).await?;
        }
        let begun = Instant::now();
        let call = self.call(&account.provider, &doomed);
        tokio::pin!(call);
        let result = tokio::select! {
            biased;
            result = &mut call => result,
            () = tokio::time::sleep(QUIET) => {
                let note = Note::new(Reason::Deleting, format!("provider {} was asked to delete the VM", account.name));
                self.tell(&record, &note).await;
                call.await
            }
        };
        let id = record.instance_id();
        match result {
            Ok(()) => {
                self.parts.metrics.gone(&account.name);
                tracing::info!(
                    provider = account.name, record = %record.key, instance_id = id,
                    sandbox_id = record.facts.sandbox.as_deref().unwrap_or_default(),
                    elapsed = ?begun.elapsed(), "the pod VM is gone"
                );
                self.take_off(&record, &doomed.gone()).await
            }
            Err(error) => {
                let kind = error.kind().label();
                self.parts.metrics.failure(&account.name, kind);
                tracing::warn!(
                    provider = account.name, record = %record.key, instance_id = id, kind,
                    error = error.report(), "the pod VM is not deleted yet"
                );
                if !self.cancel.is_cancelled() {
                    self.tell(&record, &Note::new(Reason::DeletionFailed, error.report())).await;
                }
                Ok(Outcome::Failed(error))
            }
        }
    }

    async fn held(&self, record: &Record, note: Note, pause: Duration) -> Outcome {
        self.tell(record, &note).await;
        Outcome::Held(note, pause)
    }

    /// Calls the provider within bounds.
    pub(crate) async fn call(&self, provider: &Arc<dyn Provider>, doomed: &Doomed) -> Result<(), Error> {
        let limit = self.settings.delete_limit;
        let ctx = OpContext::new().with_cancel(self.cancel.clone()).with_timeout(limit);
        let work = async {
            match doomed {
                Doomed::Instance(id, ownership) => provider.delete_instance(&ctx, id, ownership).await,
                Doomed::Token(token) => provider.release(&ctx, token).await,
            }
        };
        let late = |_| Error::new(ErrorKind::Transient, format!("no answer came within {limit:?}"));
        tokio::time::timeout(limit.saturating_add(SLACK), work).await.map_err(late)?
    }

    /// Removes our finalizers, also when the record changes meanwhile, as long as it names what is gone.
    pub(crate) async fn take_off(&self, record: &Record, gone: &Gone) -> Result<Outcome, ClusterError> {
        let mut record = record.clone();
        for _ in 0..CONFLICTS {
            match self.parts.cluster.release(&record).await {
                Err(ClusterError::Conflict) => {}
                Ok(()) | Err(ClusterError::NotFound) => return Ok(Outcome::Done),
                Err(error) => return Err(error),
            }
            match self.parts.cluster.record(&record.key).await? {
                Some(fresh) if fresh.uid() == record.uid() && fresh.is_kept() => record = fresh,
                _ => return Ok(Outcome::Done),
            }
            if !rules::may_finalizer_go(&record.object, gone) {
                // It got an id, or another attempt, while the cloud was at work.
                return Ok(Outcome::Changed);
            }
        }
        Err(ClusterError::Conflict)
    }

    /// Writes a note as condition and Event, unless that was just done. What cannot be written is in the log.
    pub(crate) async fn tell(&self, record: &Record, note: &Note) {
        let fresh = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            match told.get(&record.key) {
                Some(old) if old.note == *note => false,
                Some(old) if old.note.reason == note.reason && old.at.elapsed() < TELL_AGAIN => false,
                // An earlier run of the controller told it already.
                None if record.says(note) => {
                    told.insert(record.key.clone(), Told { note: note.clone(), at: Instant::now() });
                    false
                }
                _ => {
                    told.insert(record.key.clone(), Told { note: note.clone(), at: Instant::now() });
                    true
                }
            }
        };
        if !fresh {
            return;
        }
        if note.reason.is_warning() {
            tracing::warn!(record = %record.key, reason = note.reason.label(), message = note.message);
        } else {
            tracing::debug!(record = %record.key, reason = note.reason.label(), message = note.message);
        }
        let (condition, event) = tokio::join!(
            self.parts.cluster.set_condition(record, note),
            self.parts.cluster.event(record, note)
        );
        for (what, result) in [("condition", condition), ("event", event)] {
            match result {
                Ok(()) | Err(ClusterError::NotFound) => {}
                Err(error) => {
                    tracing::debug!(record = %record.key, %error, "the {what} could not be written");
                    // So that it is tried again the next time.
                    self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.key);
                }
            }
        }
    }
}
