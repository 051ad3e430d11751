//! The sweep: what carries the tags of this cluster in a cloud and is in no record of it.
//!
//! It is the second line behind the records, for what a program lost that died at the wrong moment. It deletes only under
//! two independent keys: the thing carries this cluster's tags with the full token, and a view of the cluster that was
//! read after the cloud's list, from the API server itself and to its end, knows nothing of it. Each key is guarded: a
//! list that is not complete, a view of another cluster or of an earlier time, and a sweep that wants more than its cap
//! delete nothing or no more; what is young, protected, or may serve a pod that lives stays.
//!
//! This file decides and makes no call; [`crate::sweeper`] does the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cloud_providers::{Owned, OwnedList, Scope, Token, tags};
use peerpod_api::rules;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    hooks::{Hooks, SafetyKey},
    model::{Key, Pod, Record, View},
    providers::account_name,
};

/// What is done with orphans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are named and counted.
    Report,
    /// They are deleted.
    Delete,
}

/// How the sweep behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SweepSettings {
    /// What is done with orphans.
    pub mode: Mode,
    /// How long an orphan is watched, and how old it is at least, before it is deleted.
    pub grace: Duration,
    /// The most deletions of one sweep.
    pub cap: usize,
    /// The pause between two sweeps.
    pub interval: Duration,
    /// How long a cloud may take to list what it has, and to delete one orphan.
    pub limit: Duration,
    /// The UID that the namespace kube-system must have; `None` where the cluster's id is somebody's choice.
    pub cluster_uid: Option<String>,
}

impl Default for SweepSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Report,
            grace: Duration::from_secs(900),
            cap: 10,
            interval: Duration::from_secs(300),
            limit: Duration::from_secs(300),
            cluster_uid: None,
        }
    }
}

/// Why an entry of a cloud's list stays, or goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
#[non_exhaustive]
pub enum Verdict {
    /// A record names it.
    Known {
        /// The record.
        record: String,
    },
    /// It carries the protect tag.
    Protected,
    /// A pod that lives may be served by it.
    PodLives {
        /// The pod.
        pod: String,
    },
    /// Its full token is not known, so that nothing says for whom it was made: to be looked at by somebody.
    NoToken,
    /// Its token is of another cluster.
    Foreign,
    /// An orphan whose time has not come.
    Young {
        /// Seconds for which it was watched.
        watched: u64,
    },
    /// An orphan whose time has come.
    Due,
}

impl Verdict {
    /// Whether it is an orphan, as far as anybody can tell.
    pub fn is_orphan(&self) -> bool {
        !matches!(self, Self::Known { .. } | Self::Foreign)
    }
}

/// One entry of a cloud's list with what was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The token's tag value.
    pub token_tag: String,
    /// The token, where it is known.
    pub token: Option<String>,
    /// The node.
    pub holder: Option<String>,
    /// The instance.
    pub instance_id: Option<String>,
    /// Its name.
    pub instance_name: Option<String>,
    /// Everything that carries the token.
    pub resources: Vec<String>,
    /// When it was made, in seconds since 1970, where that is known.
    pub created_unix: Option<u64>,
    /// Why it stays or goes.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// `deleted`, or why it could not be; nothing when nothing was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// What was found in one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccountReport {
    /// The account.
    pub account: String,
    /// Whether the list came to its end.
    pub complete: bool,
    /// Why there is no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many entries are known to the cluster; they are not listed.
    pub known: usize,
    /// All others.
    pub findings: Vec<Finding>,
}

/// What one sweep saw and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The cluster.
    pub scope: String,
    /// When it ended, in seconds since 1970.
    pub at_unix: u64,
    /// What is done with orphans.
    pub mode: Mode,
    /// Why nothing was deleted, whatever was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<String>,
    /// Each account.
    pub accounts: Vec<AccountReport>,
    /// Records whose pod is gone and whose deletion nobody asked for.
    pub abandoned: Vec<String>,
    /// Orphans, over all accounts.
    pub orphans: usize,
    /// How many were deleted.
    pub deleted: usize,
    /// How many were due and stayed because the sweep had deleted its share.
    pub over_cap: usize,
}

/// Which account, and which token there.
pub(crate) type Name = (String, String);

/// What is remembered from sweep to sweep.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// When each orphan was first seen as one.
    seen: BTreeMap<Name, Instant>,
    /// When each record without pod was first seen as one, by its UID.
    abandoned: BTreeMap<String, Instant>,
    /// The latest version of the cluster that a view had.
    revision: u64,
}

impl Memory {
    /// Forgets an orphan that is gone.
    pub(crate) fn forget(&mut self, account: &str, tag: &str) {
        self.seen.remove(&(account.to_owned(), tag.to_owned()));
    }
}

/// Says why nothing may be deleted on the word of a view.
pub(crate) fn frozen(
    view: &View,
    memory: &mut Memory,
    settings: &SweepSettings,
    hooks: &Hooks,
) -> Option<String> {
    if !view.complete && hooks.has(SafetyKey::CompleteView) {
        return Some("the view of the cluster is not complete".into());
    }
    if !hooks.has(SafetyKey::SaneView) {
        return None;
    }
    if let Some(wanted) = settings.cluster_uid.as_ref().filter(|uid| **uid != view.cluster_uid) {
        return Some(format!("the view is of another cluster: {} instead of {wanted}", view.cluster_uid));
    }
    let revision = view.revision.unwrap_or_default();
    if revision < memory.revision {
        return Some(format!(
            "the view is of an earlier time: version {revision} after {}; an older state of the cluster was restored, or \
             the server answers from the past",
            memory.revision
        ));
    }
    memory.revision = revision;
    None
}

/// What the cluster knows, by what a cloud can tell.
pub(crate) struct Known<'a> {
    by_tag: BTreeMap<String, &'a Record>,
    /// By account and instance: two accounts may give the same id.
    by_instance: BTreeMap<(String, &'a str), &'a Record>,
    /// UIDs of pods that have a record, with their sandboxes and when those were planned, in milliseconds.
    of_pod: BTreeMap<&'a str, Vec<(&'a str, Option<u64>)>>,
    by_unit: BTreeMap<String, &'a Record>,
    pods: &'a [Pod],
}

impl<'a> Known<'a> {
    pub(crate) fn new(view: &'a View) -> Self {
        let mut known = Self {
            by_tag: BTreeMap::new(),
            by_instance: BTreeMap::new(),
            of_pod: BTreeMap::new(),
            by_unit: BTreeMap::new(),
            pods: &view.pods,
        };
        for record in &view.records {
            if let Some(token) = &record.facts.token {
                known.by_tag.insert(token.tag_value(), record);
                known.by_unit.insert(unit_of(token), record);
            }
            if let Some(id) = &record.facts.instance {
                // One that names no provider may mean any.
                let account = match record.provider() {
                    "" => String::new(),
                    provider => account_name(provider, record.facts.profile.as_deref()),
                };
                known.by_instance.insert((account, id.as_str()), record);
            }
            if let Some(pod) = &record.facts.pod {
                let sandboxes = known.of_pod.entry(&pod.uid).or_default();
                sandboxes
                    .extend(record.facts.sandbox.as_deref().map(|sandbox| (sandbox, record.facts.order)));
            }
        }
        known
    }

    /// Returns the record that names an entry: its token, its instance, or another attempt of the same sandbox.
    fn record(&self, account: &str, entry: &Owned) -> Option<&'a Record> {
        let instance = entry.instance.as_ref().map(|i| i.id.as_str());
        let in_account = |account: &str| self.by_instance.get(&(account.to_owned(), instance?));
        self.by_tag
            .get(&entry.token_tag)
            .or_else(|| in_account(account).or_else(|| in_account("")))
            .or_else(|| self.by_unit.get(&unit_of(entry.token.as_ref()?)))
            .copied()
    }

    /// Returns a pod that lives and may be served by the instance of an entry.
    ///
    /// A pod with a record of a sandbox that was planned after the instance was made is served by that one. In any other
    /// case its record may be what was lost, and then the name of the instance is all that ties them together.
    fn living_pod(&self, entry: &Owned) -> Option<&'a Pod> {
        let instance = entry.instance.as_ref()?;
        let unit = entry.token.as_ref().map(|t| t.unit.as_str());
        self.pods.iter().filter(|pod| pod.lives()).find(|pod| {
            let mut sandboxes = self.of_pod.get(pod.uid.as_str()).into_iter().flatten();
            // Both times are of the node's clock. Within one second nobody knows.
            let served_by_another = sandboxes.any(|(sandbox, planned)| {
                let times = planned.zip(entry.created_unix);
                Some(*sandbox) != unit && times.is_some_and(|(planned, made)| planned / 1000 > made)
            });
            let on_its_node = match (&pod.node, &entry.holder) {
                (Some(node), Some(holder)) => node == holder || tags::encode_value(node) == *holder,
                _ => true,
            };
            !served_by_another && on_its_node && rules::is_generated_name(&instance.name, &pod.key.name)
        })
    }
}

fn unit_of(token: &Token) -> String {
    format!("{}/{}", token.scope, token.unit)
}

/// What decisions are made with, besides what was read.
pub(crate) struct Judge<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) settings: &'a SweepSettings,
    pub(crate) hooks: &'a Hooks,
    pub(crate) now: Instant,
    pub(crate) now_unix: u64,
}

/// Decides about every entry of one account's list. Returns what is due as well.
pub(crate) fn plan(
    judge: &Judge<'_>,
    account: &str,
    list: &OwnedList,
    view: &View,
    memory: &mut Memory,
) -> (AccountReport, Vec<Owned>) {
    let known = Known::new(view);
    let mut report = AccountReport {
        account: account.to_owned(),
        complete: list.complete,
        error: None,
        known: 0,
        findings: Vec::new(),
    };
    let (mut orphans, mut due) = (BTreeSet::new(), Vec::new());
    for entry in &list.entries {
        let verdict = judge.verdict(account, entry, &known, memory);
        if let Verdict::Known { .. } = verdict {
            report.known += 1;
            continue;
        }
        if matches!(verdict, Verdict::Young { .. } | Verdict::Due) {
            orphans.insert(entry.token_tag.clone());
        }
        if verdict == Verdict::Due {
            due.push(entry.clone());
        }
        report.findings.push(finding(entry, verdict));
    }
    // What is no orphan now begins anew when it is one again. What an incomplete list leaves out may be there still.
    memory.seen.retain(|(a, tag), _| {
        let listed = list.complete || list.entries.iter().any(|e| e.token_tag == *tag);
        a != account || !listed || orphans.contains(tag)
    });
    // The oldest first: what a cap leaves is younger.
    due.sort_by_key(|entry| (entry.created_unix, entry.token_tag.clone()));
    (report, due)
}

impl Judge<'_> {
    /// Decides about one entry.
    pub(crate) fn verdict(
        &self,
        account: &str,
        entry: &Owned,
        known: &Known<'_>,
        memory: &mut Memory,
    ) -> Verdict {
        let foreign = entry.token.as_ref().is_some_and(|token| token.scope != *self.scope);
        if foreign && self.hooks.has(SafetyKey::OwnScope) {
            return Verdict::Foreign;
        }
        if let Some(record) = known.record(account, entry)
            && self.hooks.has(SafetyKey::KnownToCluster)
        {
            return Verdict::Known { record: record.key.to_string() };
        }
        if entry.protected && self.hooks.has(SafetyKey::ProtectTag) {
            return Verdict::Protected;
        }
        if let Some(pod) = known.living_pod(entry)
            && self.hooks.has(SafetyKey::LivingPod)
        {
            return Verdict::PodLives { pod: pod.key.to_string() };
        }
        if entry.token.is_none() {
            return Verdict::NoToken;
        }
        if !self.hooks.has(SafetyKey::OrphanGrace) {
            return Verdict::Due;
        }
        let grace = self.settings.grace;
        let since = *memory.seen.entry((account.to_owned(), entry.token_tag.clone())).or_insert(self.now);
        let watched = self.now.duration_since(since);
        // A time of making that lies ahead says that clocks differ, and nothing about age.
        let old = entry
            .created_unix
            .is_none_or(|made| made > self.now_unix || Duration::from_secs(self.now_unix - made) >= grace);
        if watched >= grace && old { Verdict::Due } else { Verdict::Young { watched: watched.as_secs() } }
    }
}

fn finding(entry: &Owned, verdict: Verdict) -> Finding {
    Finding {
        token_tag: entry.token_tag.clone(),
        token: entry.token.as_ref().map(ToString::to_string),
        holder: entry.holder.clone(),
        instance_id: entry.instance.as_ref().map(|i| i.id.to_string()),
        instance_name: entry.instance.as_ref().map(|i| i.name.clone()),
        resources: entry.resources.iter().map(ToString::to_string).collect(),
        created_unix: entry.created_unix,
        verdict,
        outcome: None,
    }
}

/// Finds records whose pod is gone and whose deletion nobody asked for, for longer than the grace time.
///
/// Kubernetes collects them by itself within seconds, unless its collector is off.
pub(crate) fn abandoned<'a>(
    view: &'a View,
    memory: &mut Memory,
    settings: &SweepSettings,
    now: Instant,
) -> Vec<&'a Record> {
    let pods: BTreeMap<&Key, &str> = view.pods.iter().map(|p| (&p.key, p.uid.as_str())).collect();
    let without_pod = |record: &&Record| {
        let Some(pod) = &record.facts.pod else { return false };
        let there = pods.get(&Key::new(&pod.namespace, &pod.name));
        !record.is_deleting() && there.is_none_or(|uid| *uid != pod.uid)
    };
    let found: Vec<&Record> = view.records.iter().filter(without_pod).collect();
    memory.abandoned.retain(|uid, _| found.iter().any(|r| r.uid() == uid));
    let due = |record: &&Record| {
        let since = *memory.abandoned.entry(record.uid().to_owned()).or_insert(now);
        now.duration_since(since) >= settings.grace
    };
    found.into_iter().filter(due).collect()
}

#[cfg(test)]
mod tests;
