//! Runs sweeps: lists the clouds, then the cluster, and deletes what is due.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cloud_providers::{Error, ErrorKind, OpContext, Owned, OwnedList};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::ClusterError,
    hooks::SafetyKey,
    model::{Key, View},
    providers::Account,
    settings::Settings,
    sweep::{self, AccountReport, Judge, Known, Memory, Mode, Report, SweepSettings, Verdict},
    work::Parts,
};

/// How much longer than its limit a provider may take to notice that its time is over.
const SLACK: Duration = Duration::from_secs(10);
/// A view that is older is read anew before anything is deleted on its word.
const FRESH: Duration = Duration::from_secs(10);
/// The pause before the first sweep: a controller that just began has enough to do.
const FIRST: Duration = Duration::from_secs(10);

/// Sweeps again and again until `stop` fires; every report is told to `reports`.
pub async fn run(
    parts: Parts,
    settings: Settings,
    sweep: SweepSettings,
    reports: watch::Sender<Option<Arc<Report>>>,
    stop: CancellationToken,
) {
    let mut sweeper = Sweeper::new(parts, settings, sweep, stop.clone());
    let mut pause = FIRST.min(sweeper.sweep.interval);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = sweeper.sweep.interval;
        tokio::select! {
            biased;
            report = sweeper.once() => {
                drop(reports.send_replace(Some(Arc::new(report))));
            }
            () = ended(&stop) => return,
        }
    }
}

/// Waits until the sweep was told to end and had a moment to do so.
async fn ended(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
}

/// Sweeps, and remembers what it saw.
pub struct Sweeper {
    parts: Parts,
    settings: Settings,
    sweep: SweepSettings,
    memory: Memory,
    stop: CancellationToken,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper").field("sweep", &self.sweep).finish_non_exhaustive()
    }
}

impl Sweeper {
    /// Makes a sweeper that has seen nothing yet.
    pub fn new(parts: Parts, settings: Settings, sweep: SweepSettings, stop: CancellationToken) -> Self {
        Self { parts, settings, sweep, memory: Memory::default(), stop }
    }

    /// Sweeps once.
    pub async fn once(&mut self) -> Report {
        let hooks = self.parts.hooks.clone();
        let cloud_first = hooks.has(SafetyKey::CloudBeforeCluster);
        let early = if cloud_first { None } else { Some(self.parts.cluster.view().await) };
        let lists = self.list().await;
        // After the clouds: what is made has its record first, so that whatever a list has is in this view, or was.
        let view = match early {
            Some(view) => view,
            None => self.parts.cluster.view().await,
        };
        let mut report = Report {
            scope: self.settings.scope.to_string(),
            at_unix: hooks.unix_now(),
            mode: self.sweep.mode,
            frozen: None,
            accounts: Vec::new(),
            abandoned: Vec::new(),
            orphans: 0,
            deleted: 0,
            over_cap: 0,
        };
        match view {
            Ok(view) => self.judge(view, lists, &mut report).await,
            Err(error) => {
                report.frozen = Some(format!("the cluster cannot be viewed: {error}"));
                report.accounts = lists.into_iter().map(|(name, _, list)| unjudged(&name, list)).collect();
            }
        }
        report.at_unix = hooks.unix_now();
        self.tell(&report);
        report
    }

    /// Lists what every account has, all at the same time.
    async fn list(&self) -> Vec<(String, Option<Account>, Result<OwnedList, Error>)> {
        let mut tasks = JoinSet::new();
        let mut lists = Vec::new();
        for (name, account) in self.parts.providers.all().await {
            match account {
                Ok(account) => {
                    let (ctx, scope, limit) = (self.ctx(), self.settings.scope.clone(), self.sweep.limit);
                    tasks.spawn(async move {
                        let list = within(limit, account.provider.list_owned(&ctx, &scope)).await;
                        (name, Some(account), list)
                    });
                }
                Err(error) => lists.push((name, None, Err(error))),
            }
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(list) => lists.push(list),
                Err(error) => tracing::error!(%error, "the task that lists an account panicked"),
            }
        }
        lists.sort_by(|a, b| a.0.cmp(&b.0));
        lists
    }

    fn ctx(&self) -> OpContext {
        OpContext::new().with_cancel(self.stop.clone()).with_timeout(self.sweep.limit)
    }

    async fn judge(
        &mut self,
        view: View,
        lists: Vec<(String, Option<Account>, Result<OwnedList, Error>)>,
        report: &mut Report,
    ) {
        let hooks = self.parts.hooks.clone();
        report.frozen = sweep::frozen(&view, &mut self.memory, &self.sweep, &hooks);
        let mut due = Vec::new();
        for (name, account, list) in lists {
            let list = match list {
                Ok(list) => list,
                Err(error) => {
                    report.accounts.push(unjudged(&name, Err(error)));
                    continue;
                }
            };
            let judge = Judge {
                scope: &self.settings.scope,
                settings: &self.sweep,
                hooks: &hooks,
                now: Instant::now(),
                now_unix: hooks.unix_now(),
            };
            let (found, dues) = sweep::plan(&judge, &name, &list, &view, &mut self.memory);
            report.accounts.push(found);
            let complete = list.complete || !hooks.has(SafetyKey::CompleteCloud);
            if let Some(account) = account.filter(|a| complete && a.provider.capabilities().release) {
                due.extend(dues.into_iter().map(|entry| (account.clone(), entry)));
            }
        }
        report.orphans =
            report.accounts.iter().flat_map(|a| &a.findings).filter(|f| f.verdict.is_orphan()).count();
        let abandoned: Vec<_> = sweep::abandoned(&view, &mut self.memory, &self.sweep, Instant::now())
            .into_iter()
            .cloned()
            .collect();
        report.abandoned = abandoned.iter().map(|r| r.key.to_string()).collect();
        if self.sweep.mode == Mode::Report || report.frozen.is_some() {
            return;
        }
        let mut left = if hooks.has(SafetyKey::Cap) { self.sweep.cap } else { usize::MAX };
        report.over_cap = due.len().saturating_sub(left);
        due.truncate(left);
        left -= due.len();
        self.delete(view, due, report).await;
        for record in abandoned.iter().take(left) {
            // The collector's own rule, with the pod read anew.
            let Some(pod) = &record.facts.pod else { continue };
            let there = self.parts.cluster.pod(&Key::new(&pod.namespace, &pod.name)).await;
            if there.is_ok_and(|there| there.is_none_or(|there| there.uid != pod.uid)) {
                tracing::warn!(record = %record.key, "the pod of this record is gone and nobody deleted it: deleting it");
                match self.parts.cluster.delete(record, None).await {
                    Ok(()) | Err(ClusterError::NotFound | ClusterError::Conflict) => {}
                    Err(error) => tracing::warn!(record = %record.key, %error, "the record was not deleted"),
                }
            }
        }
    }

    /// Deletes what is due, a few at a time, each only if it is due still.
    async fn delete(&mut self, view: View, due: Vec<(Account, Owned)>, report: &mut Report) {
        let hooks = self.parts.hooks.clone();
        let (mut view, mut read_at) = (view, Instant::now());
        for few in due.chunks(self.settings.concurrency.max(1)) {
            if self.stop.is_cancelled() {
                return;
            }
            if read_at.elapsed() > FRESH && hooks.has(SafetyKey::CloudBeforeCluster) {
                read_at = Instant::now();
                view = match self.parts.cluster.view().await {
                    Ok(view) => view,
                    Err(error) => {
                        report.frozen = Some(format!("the cluster cannot be viewed any more: {error}"));
                        return;
                    }
                };
                if let Some(why) = sweep::frozen(&view, &mut self.memory, &self.sweep, &hooks) {
                    report.frozen = Some(why);
                    return;
                }
            }
            let known = Known::new(&view);
            let judge = Judge {
                scope: &self.settings.scope,
                settings: &self.sweep,
                hooks: &hooks,
                now: Instant::now(),
                now_unix: hooks.unix_now(),
            };
            let mut tasks = JoinSet::new();
            for (account, entry) in few {
                let verdict = judge.verdict(&account.name, entry, &known, &mut self.memory);
                let (Verdict::Due, Some(token)) = (verdict, entry.token.clone()) else { continue };
                let (ctx, limit, account) = (self.ctx(), self.sweep.limit, account.clone());
                tasks.spawn(async move {
                    let result = within(limit, account.provider.release(&ctx, &token)).await;
                    (account.name, token, result)
                });
            }
            while let Some(done) = tasks.join_next().await {
                let Ok((account, token, result)) = done else {
                    tracing::error!("the task that deletes an orphan panicked");
                    continue;
                };
                let tag = token.tag_value();
                let outcome = match result {
                    Ok(()) => {
                        tracing::warn!(provider = account, %token, "an orphan is deleted");
                        report.deleted += 1;
                        self.parts.metrics.swept(&account);
                        // What carries this token from now on is another thing, with a time of its own.
                        self.memory.forget(&account, &tag);
                        "deleted".to_owned()
                    }
                    Err(error) => {
                        let why = error.report();
                        tracing::warn!(provider = account, %token, error = why, "an orphan could not be deleted, trying again");
                        self.parts.metrics.failure(&account, error.kind().label());
                        why
                    }
                };
                let findings = report.accounts.iter_mut().filter(|a| a.account == account);
                for finding in findings.flat_map(|a| &mut a.findings).filter(|f| f.token_tag == tag) {
                    finding.outcome = Some(outcome.clone());
                }
            }
        }
    }

    /// Logs and counts what a sweep found.
    fn tell(&self, report: &Report) {
        let metrics = &self.parts.metrics;
        for account in &report.accounts {
            let mut counts: BTreeMap<&'static str, usize> =
                ["protected", "pod_lives", "no_token", "young", "due"].map(|v| (v, 0)).into();
            for finding in &account.findings {
                let verdict = match finding.verdict {
                    Verdict::Protected => "protected",
                    Verdict::PodLives { .. } => "pod_lives",
                    Verdict::NoToken => "no_token",
                    Verdict::Young { .. } => "young",
                    Verdict::Due => "due",
                    _ => continue,
                };
                *counts.entry(verdict).or_default() +=
                    usize::from(finding.outcome.as_deref() != Some("deleted"));
                if matches!(finding.verdict, Verdict::Due) && finding.outcome.is_none() {
                    tracing::warn!(
                        provider = account.account,
                        token = finding.token.as_deref().unwrap_or(&finding.token_tag),
                        instance_id = finding.instance_id.as_deref().unwrap_or("none"),
                        resources = finding.resources.join(", "),
                        "this carries the name of the cluster and no record names it (-sweep)"
                    );
                }
            }
            for (verdict, count) in counts {
                metrics.orphans(&account.account, verdict, count);
            }
            if let Some(error) = &account.error {
                tracing::warn!(
                    provider = account.account,
                    error,
                    "what carries the name of the cluster could not be listed"
                );
            } else if !account.complete {
                tracing::warn!(
                    provider = account.account,
                    "the list of what carries the name of the cluster is not complete: nothing of it is deleted"
                );
            }
        }
        if let Some(why) = &report.frozen {
            tracing::warn!(why, "the sweep deletes nothing");
        }
        if report.over_cap > 0 {
            tracing::warn!(
                more = report.over_cap,
                cap = self.sweep.cap,
                "more orphans are due than one sweep deletes: is this the right cluster? (-sweep-cap)"
            );
        }
        metrics.sweep_ended(report.at_unix, report.frozen.is_some());
    }
}

fn unjudged(name: &str, list: Result<OwnedList, Error>) -> AccountReport {
    let (complete, error) = match list {
        Ok(list) => (list.complete, None),
        // A provider that lists nothing is one that is not swept; it said so beforehand.
        Err(error) => (false, Some(error.report())),
    };
    AccountReport { account: name.to_owned(), complete, error, known: 0, findings: Vec::new() }
}

/// Gives up on a provider that ignores its deadline.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::new(ErrorKind::Transient, format!("no answer came within {limit:?}"));
    tokio::time::timeout(limit.saturating_add(SLACK), work).await.map_err(late)?
}
