//! The ends of pods that no StopVM tells.
//!
//! A shim that is killed, that ends itself because its agent does not answer, or whose connection to this node's daemon
//! broke, sends no StopVM, and its VM would stay for ever. Other signs tell the same. One of them alone may mean little;
//! two that agree for a while end the sandbox.
//!
//! | sign | means nothing alone, because |
//! |---|---|
//! | both agent connections are closed | a shim may be between two of them |
//! | the kept connection to the hypervisor socket is closed | only the shim of runtime-rs keeps one |
//! | the pod's network namespace is gone | its path may be hidden from the daemon |
//! | the shim's process is gone | it is seen only in the namespace of processes of the host |
//! | the pod is gone in the cluster | its API may answer from an old state, and its kubelet may still be at it |
//!
//! The cluster is asked once for all sandboxes that have another sign, so not at all as long as all is well. One that does
//! not answer, or none, is no sign.
//!
//! VMs go, too, without anybody telling: deleted or switched off by hand, or taken back by the cloud. A guest that is not
//! reached for the same time is looked for in one list of all that the node owns, never one call for each VM; when a
//! complete list does not have it, or calls it stopped or terminated, its sandbox is ended, and its shim sees the
//! connections close.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use cloud_providers::{InstanceState, OpContext, Scope};
use peerpod_gateway::{ProxyState, ProxyStatus, ShimConnections};
use peerpod_proto::{Code, Status};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Phase, Sandboxes};
use crate::{
    cluster::{Notice, PodRef},
    hooks::Protection,
    store::{SandboxRecord, lock},
};

/// Bounds of the pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the provider may take to list what it owns.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// How much longer it may take to notice that this time is over.
const LIST_SLACK: Duration = Duration::from_secs(10);
/// How long the gateway may take to say what it serves.
const GATEWAY_LIMIT: Duration = Duration::from_secs(30);
/// How long the cluster may take to say which pods are gone.
const CLUSTER_LIMIT: Duration = Duration::from_secs(10);
/// How many signs must agree.
const ENOUGH: usize = 2;

/// A sign that a pod is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sign {
    AgentConnectionsClosed,
    HypervisorConnectionClosed,
    NetnsGone,
    ShimGone,
    PodGone,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AgentConnectionsClosed => "its agent connections are closed",
            Self::HypervisorConnectionClosed => "its hypervisor connection is closed",
            Self::NetnsGone => "its network namespace is gone",
            Self::ShimGone => "its shim's process is gone",
            Self::PodGone => "its pod is gone in the cluster",
        })
    }
}

impl Sandboxes {
    /// The connections of shims that this daemon serves itself.
    pub fn shims(&self) -> &Arc<ShimConnections> {
        &self.0.shims
    }

    /// Ends sandboxes whose pods are gone, until `stop` fires. `grace` is how long the signs must agree.
    pub async fn watch_signs(self, grace: Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval((grace / 4).clamp(PAUSE_MIN, PAUSE_MAX));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hooks = &self.0.parts.hooks;
        let enough = if hooks.has(Protection::SecondSign) { ENOUGH } else { 1 };
        let sign_grace = if hooks.has(Protection::SignGrace) { grace } else { Duration::ZERO };
        let mut since = Agreement { enough, since: BTreeMap::new() };
        let mut unreached = Unreached::default();
        let mut strangers: BTreeMap<String, Instant> = BTreeMap::new();
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let Some(Seen { signs, out_of_reach, unknown }) = stop.run_until_cancelled(self.signs()).await
            else {
                return;
            };
            strangers.retain(|id, _| unknown.contains(id));
            for id in unknown {
                let since = *strangers.entry(id.clone()).or_insert_with(Instant::now);
                if since.elapsed() >= grace && stop.run_until_cancelled(self.close(&id)).await.is_none() {
                    return;
                }
            }
            for (id, signs) in since.due(&signs, sign_grace, Instant::now()) {
                let Ok(sandbox) = self.find(&id) else { continue };
                let signs = signs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    sandbox_id = id,
                    signs,
                    "the pod is gone without a StopVM: its sandbox is ended"
                );
                sandbox.cancel.cancel();
            }
            let lost = unreached.due(&out_of_reach, grace, Instant::now());
            if !lost.is_empty() {
                let Some(gone) = stop.run_until_cancelled(self.vanished(lost)).await else { return };
                for (id, why) in gone {
                    let Ok(sandbox) = self.find(&id) else { continue };
                    tracing::error!(
                        sandbox_id = id,
                        why,
                        "the VM is gone, and nobody told: its sandbox is ended"
                    );
                    self.0.tell(&sandbox, Notice::lost(&why));
                    sandbox.state.send_modify(|s| s.failure = Some(Status::new(Code::Unavailable, why)));
                    sandbox.cancel.cancel();
                }
            }
        }
    }

    /// Returns which of these sandboxes have no running VM any more, and why, on the word of a complete list.
    async fn vanished(&self, lost: Vec<String>) -> Vec<(String, String)> {
        let parts = &self.0.parts;
        if !self.0.capabilities.list_owned {
            return Vec::new();
        }
        let token_of = |id: &String| self.find(id).ok().map(|s| lock(&s.record).request.token.clone());
        // Nearly always one. A sandbox keeps its scope when the cluster id of the daemon changes.
        let scopes: BTreeSet<Scope> = lost.iter().filter_map(token_of).map(|token| token.scope).collect();
        let mut listed = BTreeSet::new();
        let mut there: BTreeMap<String, InstanceState> = BTreeMap::new();
        for scope in scopes {
            let ctx = OpContext::new().with_timeout(LIST_LIMIT);
            let list = tokio::time::timeout(LIST_LIMIT + LIST_SLACK, parts.provider.list_owned(&ctx, &scope));
            match list.await {
                Ok(Ok(list)) if list.complete || !parts.hooks.has(Protection::CompleteList) => {
                    listed.insert(scope);
                    let instances = list.entries.into_iter().filter(|e| e.instance.is_some());
                    there.extend(instances.map(|e| (e.token_tag, e.state)));
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %error.report(), "VMs that are out of reach could not be looked for")
                }
                Err(_) => tracing::warn!(
                    limit = ?LIST_LIMIT,
                    "VMs that are out of reach could not be looked for: the provider ignores its deadline"
                ),
            }
        }
        let why = |id: &String| {
            let token = token_of(id).filter(|token| listed.contains(&token.scope))?;
            match there.get(&token.tag_value()) {
                None => Some("the VM is gone, deleted or taken back by the cloud".to_owned()),
                Some(state) if state.is_over() => {
                    Some(format!("the VM is {state}, by its guest, by hand or by the cloud"))
                }
                Some(_) => None,
            }
        };
        lost.into_iter().filter_map(|id| why(&id).map(|why| (id, why))).collect()
    }

    /// Returns the signs of every running sandbox, and those whose guest is not reached. What cannot be asked is no sign.
    async fn signs(&self) -> Seen {
        let gateway = &self.0.parts.gateway;
        // One that does not answer says nothing, and must not keep the other signs from being seen.
        let asked = async { (gateway.list().await.ok(), gateway.closed_shims().await.unwrap_or_default()) };
        let (proxies, mut closed) = tokio::time::timeout(GATEWAY_LIMIT, asked).await.unwrap_or_default();
        closed.extend(self.0.shims.closed());
        let running: Vec<SandboxRecord> = lock(&self.0.table)
            .values()
            .filter(|s| s.state.borrow().phase == Phase::Ready && !s.cancel.is_cancelled())
            .map(|s| lock(&s.record).clone())
            .collect();
        let unreached = |id: &str| {
            let proxy = proxies.as_deref().and_then(|all| all.iter().find(|p| p.sandbox_id == id));
            proxy.is_some_and(|p| !matches!(p.state, ProxyState::Connected { .. }))
        };
        let out_of_reach = running.iter().filter(|r| unreached(&r.id)).map(|r| r.id.clone()).collect();
        let mut signs: BTreeMap<_, _> =
            running.iter().map(|r| (r.id.clone(), signs_of(r, proxies.as_deref(), &closed))).collect();
        for id in self.gone_pods(running.iter().filter(|r| !signs[&r.id].is_empty())).await {
            if let Some(signs) = signs.get_mut(&id) {
                signs.insert(Sign::PodGone);
            }
        }
        // After the gateway was asked: who was registered since is not in its list.
        let known = lock(&self.0.table);
        let proxies = proxies.unwrap_or_default().into_iter().map(|p| p.sandbox_id);
        let unknown = proxies.filter(|id| !known.contains_key(id)).collect();
        drop(known);
        Seen { signs, out_of_reach, unknown }
    }

    /// Closes an agent socket that no record knows, such as one that an earlier daemon asked for too late.
    async fn close(&self, id: &str) {
        let close = tokio::time::timeout(GATEWAY_LIMIT, self.0.parts.gateway.unregister(id));
        match close.await {
            Ok(Ok(())) => tracing::warn!(sandbox_id = id, "an agent socket that is in no record is closed"),
            Ok(Err(error)) => {
                tracing::warn!(sandbox_id = id, %error, "an agent socket that is in no record cannot be closed")
            }
            Err(_) => tracing::warn!(sandbox_id = id, "the gateway does not close an agent socket in time"),
        }
    }

    /// Asks the cluster, once, which of these sandboxes' pods are gone. What it does not say is no sign.
    async fn gone_pods(&self, records: impl Iterator<Item = &SandboxRecord>) -> BTreeSet<String> {
        let pod = |r: &SandboxRecord| PodRef::new(&r.id, &r.pod_name, &r.pod_namespace, r.pod_uid.clone());
        let pods: Vec<PodRef> = records.filter(|r| !r.pod_name.is_empty()).map(pod).collect();
        if pods.is_empty() {
            return BTreeSet::new();
        }
        let asked = tokio::time::timeout(CLUSTER_LIMIT, self.0.parts.cluster.gone_pods(&pods)).await;
        match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {CLUSTER_LIMIT:?}"))) {
            Ok(gone) => gone.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "the cluster could not be asked which pods are gone");
                BTreeSet::new()
            }
        }
    }
}

/// What one look tells.
struct Seen {
    /// The signs of every running sandbox.
    signs: BTreeMap<String, BTreeSet<Sign>>,
    /// Sandboxes whose guest is not reached.
    out_of_reach: BTreeSet<String>,
    /// What the gateway serves and no sandbox is.
    unknown: BTreeSet<String>,
}

/// Since when guests are out of reach, and when they were last looked for.
#[derive(Debug, Default)]
struct Unreached {
    since: BTreeMap<String, Instant>,
    looked: Option<Instant>,
}

impl Unreached {
    /// Returns those that are out of reach for `grace`, once in as long a time. A guest that was just made is not among
    /// them: lists of clouds lag behind.
    fn due(&mut self, out_of_reach: &BTreeSet<String>, grace: Duration, now: Instant) -> Vec<String> {
        self.since.retain(|id, _| out_of_reach.contains(id));
        for id in out_of_reach {
            self.since.entry(id.clone()).or_insert(now);
        }
        if self.looked.is_some_and(|looked| now.duration_since(looked) < grace) {
            return Vec::new();
        }
        let long = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= grace);
        let lost: Vec<String> = long.map(|(id, _)| id.clone()).collect();
        if !lost.is_empty() {
            self.looked = Some(now);
        }
        lost
    }
}

fn signs_of(
    record: &SandboxRecord,
    proxies: Option<&[ProxyStatus]>,
    closed: &BTreeSet<String>,
) -> BTreeSet<Sign> {
    let proxy = proxies.and_then(|all| all.iter().find(|p| p.sandbox_id == record.id));
    let mut signs = BTreeSet::new();
    if proxy.is_some_and(|p| p.fronts == 0) {
        signs.insert(Sign::AgentConnectionsClosed);
    }
    if closed.contains(&record.id) {
        signs.insert(Sign::HypervisorConnectionClosed);
    }
    if is_gone(Path::new(&record.netns)) {
        signs.insert(Sign::NetnsGone);
    }
    if record.shim.is_some_and(|shim| !shim.is_alive()) {
        signs.insert(Sign::ShimGone);
    }
    signs
}

/// Whether a path is gone from a folder that is there: a folder that is hidden from the daemon says nothing.
fn is_gone(path: &Path) -> bool {
    let missing =
        |p: &Path| std::fs::symlink_metadata(p).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    missing(path) && path.parent().is_some_and(|folder| !missing(folder))
}

/// Since when enough signs agree, by sandbox.
#[derive(Debug)]
struct Agreement {
    /// How many signs are enough.
    enough: usize,
    since: BTreeMap<String, Instant>,
}

impl Agreement {
    fn due<'a>(
        &mut self,
        signs: &'a BTreeMap<String, BTreeSet<Sign>>,
        grace: Duration,
        now: Instant,
    ) -> Vec<(String, &'a BTreeSet<Sign>)> {
        let agree = |id: &String| signs.get(id).is_some_and(|s| s.len() >= self.enough);
        self.since.retain(|id, _| agree(id));
        for id in signs.keys().filter(|id| agree(id)) {
            self.since.entry(id.clone()).or_insert(now);
        }
        let old = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= grace);
        old.map(|(id, _)| (id.clone(), &signs[id])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(agreement: &mut Agreement, begun: Instant, seconds: u64, signs: &[Sign]) -> usize {
        let signs = BTreeMap::from([("s1".to_owned(), signs.iter().copied().collect())]);
        agreement.due(&signs, GRACE, begun + Duration::from_secs(seconds)).len()
    }

    #[test]
    fn two_signs_that_agree_for_the_grace_time_end_a_sandbox_and_one_never_does() {
        use Sign::{AgentConnectionsClosed as Agent, NetnsGone as Netns, ShimGone as Shim};
        let [mut one, mut two, mut flickering] =
            [(); 3].map(|()| Agreement { enough: ENOUGH, since: BTreeMap::new() });
        let begun = Instant::now();
        for (second, due) in [(0, 0), (59, 0), (60, 1)] {
            assert_eq!(at(&mut one, begun, second * 100, &[Agent]), 0);
            assert_eq!(at(&mut two, begun, second, &[Agent, Shim]), due, "at {second} s");
        }
        // The agent connections came back in between.
        for (second, signs) in [(0, vec![Agent, Netns]), (50, vec![Netns]), (61, vec![Agent, Netns])] {
            assert_eq!(at(&mut flickering, begun, second, &signs), 0);
        }
        assert_eq!(at(&mut flickering, begun, 121, &[Agent, Netns]), 1);
    }

    #[test]
    fn guests_out_of_reach_are_looked_for_once_in_a_grace_time() {
        let (mut unreached, begun) = (Unreached::default(), Instant::now());
        let one = BTreeSet::from(["s1".to_owned()]);
        let mut at = |ids: &BTreeSet<String>, second| {
            !unreached.due(ids, GRACE, begun + Duration::from_secs(second)).is_empty()
        };
        let dues = [0, 59, 60, 61, 119, 120].map(|second| at(&one, second));
        assert_eq!(dues, [false, false, true, false, false, true]);
        assert!(!at(&BTreeSet::new(), 200));
        assert!(!at(&one, 201), "it was reached in between");
        assert!(at(&one, 261));
    }

    #[test]
    fn a_namespace_is_gone_only_when_its_folder_can_be_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_gone(dir.path()));
        assert!(is_gone(&dir.path().join("cni-1")));
        assert!(!is_gone(&dir.path().join("hidden/cni-1")));
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        use crate::store::ShimProcess;
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = ShimProcess::look(pid).unwrap();
        assert!(own.is_alive());
        assert!(!ShimProcess { started: own.started + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let seen = ShimProcess::look(i32::try_from(child.id()).unwrap());
        child.wait().unwrap();
        assert!(seen.is_none_or(|seen| !seen.is_alive()));
        assert_eq!(ShimProcess::look(0), None);
    }
}
