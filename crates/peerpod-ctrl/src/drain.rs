//! `peerpod-ctrl drain`: deletes everything of a cluster and says what is left.
//!
//! It is for the end of an installation. Records are deleted with their VMs, whether or not a pod lives, and then
//! whatever else carries the cluster's tags in the clouds. Only what is protected stays.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cloud_providers::{Error, ErrorKind, OpContext, Owned, Ownership};
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{LEFT, UNKNOWN},
    cluster::ClusterError,
    decide::{self, Doomed, Verdict},
    model::Record,
    providers::{Account, NoAccount, account_name},
    settings::Settings,
    work::{Outcome, Parts, Shared},
};

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_secs(2);
/// How much longer than its limit a provider may take to notice that its time is over.
const SLACK: Duration = Duration::from_secs(10);

/// How to drain.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DrainSettings {
    /// Delete nothing.
    pub dry_run: bool,
    /// How long to go on while something is left.
    pub timeout: Duration,
}

impl DrainSettings {
    /// Deletes, for so long.
    pub fn new(timeout: Duration) -> Self {
        Self { dry_run: false, timeout }
    }
}

/// Something that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Left {
    /// `record`, or the account of the cloud.
    pub place: String,
    /// Its name there.
    pub name: String,
    /// Why it is there still, where that is known.
    pub why: Option<String>,
}

/// What a drain found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Drained {
    /// The cluster.
    pub scope: String,
    /// What was there at the beginning.
    pub found: Vec<Left>,
    /// What is there at the end.
    pub left: Vec<Left>,
    /// What could not be looked at: something may be left there.
    pub unknown: Vec<Left>,
}

impl Drained {
    /// Returns the exit code: 0 when nothing is left, 3 when something is, 4 when that is not known.
    pub fn exit_code(&self) -> u8 {
        match (self.left.is_empty(), self.unknown.is_empty()) {
            (true, true) => 0,
            (false, _) => LEFT.0,
            (true, false) => UNKNOWN.0,
        }
    }
}

/// Deletes everything of the cluster, again and again until nothing is left, the time is over, or `stop` fires.
pub async fn drain(parts: Parts, settings: Settings, how: DrainSettings, stop: CancellationToken) -> Drained {
    let end = Instant::now() + how.timeout;
    let drainer = Drainer { shared: Arc::new(Shared::new(parts, settings.clone(), stop.clone())) };
    let mut whys = BTreeMap::new();
    let mut drained = Drained { scope: settings.scope.to_string(), ..Drained::default() };
    let mut first = true;
    loop {
        let (records, owned, unknown) = drainer.look().await;
        drained.left = records
            .iter()
            .map(|r| of_record(r, &whys))
            .chain(owned.iter().map(|o| of_owned(o, &whys)))
            .collect();
        drained.unknown = unknown;
        if std::mem::take(&mut first) {
            drained.found.clone_from(&drained.left);
            tracing::info!(scope = drained.scope, things = drained.found.len(), "draining");
        }
        let done = drained.left.is_empty() && drained.unknown.is_empty();
        if how.dry_run || done || stop.is_cancelled() || Instant::now() >= end {
            return drained;
        }
        let round = drainer.delete(records, owned);
        tokio::select! {
            biased;
            told = round => whys.extend(told),
            () = tokio::time::sleep_until(end + SLACK) => {}
            () = stop.cancelled() => {}
        }
        // What is only protected will not go by waiting.
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Which thing, for what was told about it.
type Name = (String, String);

fn of_record(record: &Record, whys: &BTreeMap<Name, String>) -> Left {
    let (place, name) = ("record".to_owned(), record.key.to_string());
    let why = whys.get(&(place.clone(), name.clone())).cloned();
    Left { place, name, why }
}

fn of_owned((account, entry): &(Account, Owned), whys: &BTreeMap<Name, String>) -> Left {
    let resources = entry.resources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let token = entry.token.as_ref().map_or_else(|| entry.token_tag.clone(), ToString::to_string);
    let why = whys.get(&(account.name.clone(), entry.token_tag.clone())).cloned();
    Left { place: account.name.clone(), name: format!("{token} ({resources})"), why }
}

struct Drainer {
    shared: Arc<Shared>,
}

impl Drainer {
    /// Lists everything: records that stand for something, and what the clouds have.
    async fn look(&self) -> (Vec<Record>, Vec<(Account, Owned)>, Vec<Left>) {
        let parts = &self.shared.parts;
        let (mut records, mut owned, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut note = |place: String, name: &str, why: String| {
            unknown.push(Left { place, name: name.to_owned(), why: Some(why) });
        };
        match parts.cluster.view().await {
            Ok(view) => {
                if !view.complete {
                    note("cluster".into(), "records", "the list broke off".into());
                }
                records.extend(view.records.into_iter().filter(Record::is_kept));
            }
            Err(error) => note("cluster".into(), "records", error.to_string()),
        }
        for (name, account) in parts.providers.all().await {
            let account = match account {
                Ok(account) => account,
                Err(error) => {
                    note(name, "everything", error.report());
                    continue;
                }
            };
            if !account.provider.capabilities().list_owned {
                note(name, "what is in no record", "this provider cannot list what it owns".into());
                continue;
            }
            match self.within(account.provider.list_owned(&self.ctx(), &self.shared.settings.scope)).await {
                Ok(list) => {
                    if !list.complete {
                        note(name, "everything", "the list is not complete".into());
                    }
                    owned.extend(list.entries.into_iter().map(|entry| (account.clone(), entry)));
                }
                Err(error) => note(name, "everything", error.report()),
            }
        }
        (records, owned, unknown)
    }

    fn ctx(&self) -> OpContext {
        OpContext::new()
            .with_cancel(self.shared.cancel.clone())
            .with_timeout(self.shared.settings.delete_limit)
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.shared.settings.delete_limit;
        let late = |_| Error::new(ErrorKind::Transient, format!("no answer came within {limit:?}"));
        tokio::time::timeout(limit.saturating_add(SLACK), work).await.map_err(late)?
    }

    /// Deletes records with their VMs first, and then what no record names. Returns why something stays.
    async fn delete(&self, records: Vec<Record>, owned: Vec<(Account, Owned)>) -> Vec<(Name, String)> {
        let named: Vec<String> =
            records.iter().filter_map(|r| r.facts.token.as_ref()).map(|t| t.tag_value()).collect();
        let limit = Arc::new(tokio::sync::Semaphore::new(self.shared.settings.concurrency.max(1)));
        let mut tasks = JoinSet::new();
        for record in records {
            let (shared, limit) = (self.shared.clone(), limit.clone());
            tasks.spawn(async move {
                let _turn = limit.acquire_owned().await;
                let why = delete_record(&shared, &record).await;
                (("record".to_owned(), record.key.to_string()), why)
            });
        }
        for (account, entry) in owned {
            // A record of it takes it along.
            if named.contains(&entry.token_tag) {
                continue;
            }
            let (drainer, limit) = (Self { shared: self.shared.clone() }, limit.clone());
            tasks.spawn(async move {
                let _turn = limit.acquire_owned().await;
                let why = drainer.delete_owned(&account, &entry).await;
                ((account.name, entry.token_tag), why)
            });
        }
        let mut whys = Vec::new();
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((name, Some(why))) => whys.push((name, why)),
                Ok((_, None)) => {}
                Err(error) => tracing::error!(%error, "a task of the drain panicked, trying again"),
            }
        }
        whys
    }

    async fn delete_owned(&self, account: &Account, entry: &Owned) -> Option<String> {
        if entry.protected {
            return Some("it carries the protect tag".into());
        }
        let scope = &self.shared.settings.scope;
        let (ctx, provider) = (self.ctx(), &account.provider);
        let result = match (&entry.token, &entry.instance) {
            (Some(token), _) if token.scope != *scope => {
                return Some("its token is of another cluster".into());
            }
            (Some(token), _) if provider.capabilities().release => {
                self.within(provider.release(&ctx, token)).await
            }
            (_, Some(instance)) => {
                let ownership = Ownership::Tagged(scope.clone());
                self.within(provider.delete_instance(&ctx, &instance.id, &ownership)).await
            }
            _ => return Some("its token is not known in full, and there is no instance to name".into()),
        };
        result.err().map(|error| error.report())
    }
}

/// Deletes a record's VM and then the record, whether its pod lives or not. Returns why it stays.
async fn delete_record(shared: &Shared, record: &Record) -> Option<String> {
    let cluster = &shared.parts.cluster;
    if record.facts.protected {
        return Some(format!("it is protected ({})", peerpod_api::names::PROTECT));
    }
    if !record.is_deleting() {
        match cluster.delete(record, None).await {
            Ok(()) | Err(ClusterError::NotFound) => {}
            Err(error) => return Some(error.to_string()),
        }
    }
    let fresh = match cluster.record(&record.key).await {
        Ok(Some(fresh)) if fresh.uid() == record.uid() => fresh,
        Ok(_) => return None,
        Err(error) => return Some(error.to_string()),
    };
    // As if the pod were gone, and everybody had had the first go.
    let hooks = &shared.parts.hooks;
    let doomed = match decide::verdict(&fresh, None, Duration::MAX, &shared.settings, hooks) {
        Verdict::Done => return None,
        Verdict::Hold(note, _) => return Some(note.message),
        Verdict::Delete(doomed) => doomed,
    };
    let account = shared.parts.providers.account(fresh.provider(), fresh.facts.profile.as_deref()).await;
    let account = match account {
        Ok(account) => account,
        Err(NoAccount::Unknown(why)) => return Some(why),
        Err(NoAccount::Broken(error)) => {
            let name = account_name(fresh.provider(), fresh.facts.profile.as_deref());
            return Some(format!("provider {name}: {}", error.report()));
        }
    };
    if matches!(doomed, Doomed::Token(_)) && !account.provider.capabilities().release {
        return Some(format!("it names no instance, and {} cannot remove things by token", account.name));
    }
    if let Err(error) = shared.call(&account.provider, &doomed).await {
        return Some(error.report());
    }
    match shared.take_off(&fresh, &doomed.gone()).await {
        Ok(Outcome::Done) => None,
        Ok(_) => Some("it changed meanwhile".into()),
        Err(error) => Some(error.to_string()),
    }
}

/// What a person reads.
pub fn text(drained: &Drained, dry_run: bool) -> String {
    let mut text = String::new();
    let mut list = |title: &str, things: &[Left]| {
        if things.is_empty() {
            return;
        }
        text.push_str(&format!("{title} ({}):\n", things.len()));
        for thing in things {
            let why = thing.why.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
            text.push_str(&format!("  {} {}{why}\n", thing.place, thing.name));
        }
    };
    if dry_run {
        list("there is", &drained.left);
    } else {
        list("left", &drained.left);
    }
    list("not known", &drained.unknown);
    let gone = drained.found.len().saturating_sub(drained.left.len());
    match (dry_run, drained.exit_code()) {
        (true, _) => text.push_str(&format!(
            "{} things of {}, nothing was deleted\n",
            drained.left.len(),
            drained.scope
        )),
        (false, 0) => text.push_str(&format!("nothing of {} is left, {gone} things went\n", drained.scope)),
        (false, _) => text.push_str(&format!("{gone} things of {} went\n", drained.scope)),
    }
    text
}

#[cfg(test)]
mod tests;
