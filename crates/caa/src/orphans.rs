//! What carries this node's name in the cloud and is in no record.
//!
//! Such a thing is left when a journal was lost, or when a cloud made more than it said. It is always reported. It is
//! removed only with `-orphan-policy delete`, and then only when all of this holds: it names this node as its holder and
//! carries the cluster's scope, the list it comes from was complete, it was seen for `-orphan-grace`, and no sandbox
//! knows its token at the moment of its removal. Another node's, another cluster's and nobody's are never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, OpContext, Owned, OwnedList, Provider, Scope, Token, tags};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    hooks::{Hooks, Protection},
    metrics::Metrics,
    sandbox::Sandboxes,
};

/// How long the provider may take to list what it owns.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// How much longer the provider may take to notice that its time is over.
const SLACK: Duration = Duration::from_secs(10);
/// How long the removal of one orphan may take; the next look tries again.
const RELEASE_LIMIT: Duration = Duration::from_secs(600);
/// Bounds of the pause between two looks.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What is done with orphans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrphanPolicy {
    /// They are named in the log and counted.
    Report,
    /// They are removed after the grace time.
    Delete,
}

/// Looks for orphans at the start and then again and again, until `stop` fires.
pub async fn watch(
    provider: Arc<dyn Provider>,
    sandboxes: Sandboxes,
    settings: OrphanSettings,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let can = provider.capabilities();
    if !can.list_owned {
        return;
    }
    let hooks = sandboxes.hooks();
    let delete = settings.policy == OrphanPolicy::Delete && can.release;
    let mut seen = Seen::default();
    let pause = (settings.grace / 4).clamp(PAUSE_MIN, PAUSE_MAX);
    loop {
        let ctx = OpContext::new().with_cancel(stop.clone()).with_timeout(LIST_LIMIT);
        match within(LIST_LIMIT, provider.list_owned(&ctx, &settings.scope)).await {
            Ok(list) => {
                // After the list: what was made in between is in the table before it is in the cloud.
                let due = seen.look(&list, &settings, hooks, &sandboxes.tokens(), Instant::now());
                metrics.orphans.set(i64::try_from(seen.0.len()).unwrap_or(i64::MAX));
                for token in due.into_iter().filter(|_| delete) {
                    // A moment may have passed: this is the last look at whether somebody knows it.
                    let known = sandboxes.tokens().contains(&token.tag_value());
                    if known && hooks.has(Protection::KnownToken) {
                        continue;
                    }
                    let ctx = OpContext::new().with_cancel(stop.clone()).with_timeout(RELEASE_LIMIT);
                    match within(RELEASE_LIMIT, provider.release(&ctx, &token)).await {
                        Ok(()) => {
                            // What carries this token from now on is another thing, with a time of its own.
                            seen.0.remove(&token.tag_value());
                            tracing::warn!(%token, "an orphan of this node is removed");
                        }
                        Err(error) => {
                            tracing::error!(%token, error = %error.report(), "an orphan could not be removed, trying again")
                        }
                    }
                }
            }
            Err(_) if stop.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(error = %error.report(), "what carries the name of this node could not be listed")
            }
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Gives up on a provider that ignores its deadline.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::new(ErrorKind::Transient, format!("no answer came within {limit:?}"));
    tokio::time::timeout(limit + SLACK, work).await.map_err(late)?
}

/// Whose orphans, and what is done with them.
#[derive(Clone, Debug)]
pub struct OrphanSettings {
    /// The cluster.
    pub scope: Scope,
    /// The node.
    pub node: String,
    /// What is done.
    pub policy: OrphanPolicy,
    /// How long an orphan is watched before it is removed.
    pub grace: Duration,
}

/// When each orphan was first seen, by the tag value of its token.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, Instant>);

impl Seen {
    /// Takes a list in, and returns what may be removed now.
    fn look(
        &mut self,
        list: &OwnedList,
        settings: &OrphanSettings,
        hooks: &Hooks,
        known: &BTreeSet<String>,
        now: Instant,
    ) -> Vec<Token> {
        // A holder may be stored encoded.
        let ours = [settings.node.clone(), tags::encode_value(&settings.node)];
        let of_this_node = |e: &&Owned| {
            !hooks.has(Protection::OwnNode) || e.holder.as_ref().is_some_and(|h| ours.contains(h))
        };
        let unknown = |e: &&Owned| !hooks.has(Protection::KnownToken) || !known.contains(&e.token_tag);
        let grace = if hooks.has(Protection::OrphanGrace) { settings.grace } else { Duration::ZERO };
        let orphans: Vec<&Owned> = list.entries.iter().filter(of_this_node).filter(unknown).collect();
        if list.complete {
            self.0.retain(|tag, _| orphans.iter().any(|e| e.token_tag == *tag));
        } else {
            self.0.retain(|tag, _| !known.contains(tag));
            tracing::warn!(
                "the list of what carries the name of this node is not complete: nothing is removed"
            );
        }
        let mut due = Vec::new();
        for entry in orphans {
            let since = *self.0.entry(entry.token_tag.clone()).or_insert_with(|| {
                report(entry);
                now
            });
            let old = now.duration_since(since) >= grace;
            if let Some(token) = entry.token.as_ref().filter(|t| t.scope == settings.scope)
                && old
                && !entry.protected
                && list.complete
            {
                due.push(token.clone());
            }
        }
        due
    }
}

fn report(entry: &Owned) {
    let resources = entry.resources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let instance_id = entry.instance.as_ref().map_or_else(|| "none".to_owned(), |i| i.id.to_string());
    tracing::warn!(
        instance_id,
        resources,
        token = entry.token.as_ref().map_or_else(|| entry.token_tag.clone(), ToString::to_string),
        "this carries the name of this node and is in no record: no StopVM will remove it (-orphan-policy)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> OrphanSettings {
        OrphanSettings {
            scope: Scope::Cluster("c".into()),
            node: "node-1".into(),
            policy: OrphanPolicy::Delete,
            grace: Duration::from_secs(60),
        }
    }

    fn owned(cluster: &str, unit: &str, holder: Option<&str>) -> Owned {
        let token = Token::new(Scope::Cluster(cluster.into()), unit, 1);
        let mut entry = Owned::new(token.tag_value());
        entry.token = Some(token);
        entry.holder = holder.map(str::to_owned);
        entry
    }

    fn due(entries: &[Owned], complete: bool, known: &BTreeSet<String>, seconds: &[u64]) -> Vec<String> {
        let (mut seen, begun) = (Seen::default(), Instant::now());
        let mut last = Vec::new();
        for second in seconds {
            let list = OwnedList::new(entries.to_vec(), complete);
            last =
                seen.look(&list, &settings(), &Hooks::default(), known, begun + Duration::from_secs(*second));
        }
        last.iter().map(|t| t.unit.clone()).collect()
    }

    #[test]
    fn only_this_nodes_unknown_things_are_due_and_only_after_the_grace_time() {
        let (none, known) = (BTreeSet::new(), BTreeSet::from([owned("c", "s2", None).token_tag]));
        let all = [
            owned("c", "s1", Some("node-1")),
            owned("c", "s2", Some("node-1")),
            owned("c", "s3", Some("node-2")),
            owned("c", "s4", None),
            owned("other", "s5", Some("node-1")),
        ];
        assert!(due(&all, true, &known, &[0, 59]).is_empty());
        assert_eq!(due(&all, true, &known, &[0, 60]), ["s1"]);
        assert_eq!(due(&all, true, &none, &[0, 60]), ["s1", "s2"]);
        assert!(due(&all, false, &none, &[0, 60]).is_empty(), "an incomplete list removes nothing");
    }

    #[test]
    fn what_was_gone_or_known_in_between_starts_anew() {
        let entry = [owned("c", "s1", Some("node-1"))];
        let known = BTreeSet::from([entry[0].token_tag.clone()]);
        let (mut seen, begun) = (Seen::default(), Instant::now());
        let mut at = |entries: &[Owned], known: &BTreeSet<String>, seconds| {
            let list = OwnedList::new(entries.to_vec(), true);
            seen.look(&list, &settings(), &Hooks::default(), known, begun + Duration::from_secs(seconds))
                .len()
        };
        assert_eq!(at(&entry, &BTreeSet::new(), 0), 0);
        assert_eq!(at(&entry, &known, 30), 0);
        assert_eq!(at(&entry, &BTreeSet::new(), 61), 0, "it was known at 30 s");
        assert_eq!(at(&[], &BTreeSet::new(), 90), 0);
        assert_eq!(at(&entry, &BTreeSet::new(), 130), 0, "it was gone at 90 s");
        assert_eq!(at(&entry, &BTreeSet::new(), 190), 1);
    }
}
