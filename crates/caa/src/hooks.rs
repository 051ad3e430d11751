//! What tests may look at, and take away.
//!
//! A daemon that ships runs with [`Hooks::default`]: every protection is on, nobody looks on, and time is the system's.
//! Only with the feature `testing` can it be otherwise. The simulated campaign takes each protection away in turn and
//! has to notice; a protection that nothing misses would be one that no test guards.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::sandbox::AwaitPoint;

/// What keeps a VM from being leaked, or a pod from being lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Protection {
    /// A transition is in the journal before its side effect.
    JournalBeforeCall,
    /// What the journal was told is on the disk when it says so.
    Fsync,
    /// What is asked of the provider carries the token that the journal knows.
    Token,
    /// Signs that a pod is gone must agree for a while.
    SignGrace,
    /// One sign that a pod is gone is not enough.
    SecondSign,
    /// Only a list that is complete says that a VM is gone.
    CompleteList,
    /// Orphans are watched for a while before they are removed.
    OrphanGrace,
    /// What another node holds is no orphan of this one.
    OwnNode,
    /// What a sandbox knows is no orphan.
    KnownToken,
    /// A deletion is repeated until the provider says gone.
    UntilGone,
    /// One sandbox id is planned once at a time.
    OnePerId,
    /// A StopVM during CreateVM is remembered.
    StopWhilePlanned,
    /// A planned sandbox without StartVM goes after a while.
    PlannedLimit,
    /// A step that ignores its cancellation is dropped.
    DropOverdue,
    /// Serving a restored sandbox and taking it down take turns.
    ServingTurns,
    /// A tunnel id in use by somebody else is passed over.
    NextTunnelId,
    /// Tunnel ids of restored sandboxes are taken.
    ClaimTunnelIds,
}

impl Protection {
    /// Every protection.
    pub const ALL: [Self; 17] = [
        Self::JournalBeforeCall,
        Self::Fsync,
        Self::Token,
        Self::SignGrace,
        Self::SecondSign,
        Self::CompleteList,
        Self::OrphanGrace,
        Self::OwnNode,
        Self::KnownToken,
        Self::UntilGone,
        Self::OnePerId,
        Self::StopWhilePlanned,
        Self::PlannedLimit,
        Self::DropOverdue,
        Self::ServingTurns,
        Self::NextTunnelId,
        Self::ClaimTunnelIds,
    ];
}

/// Looks on while sandboxes live.
#[async_trait]
pub trait Watcher: Send + Sync {
    /// A point was reached. The daemon goes on when this returns.
    async fn reached(&self, point: AwaitPoint, sandbox_id: &str);

    /// Seconds since 1970.
    fn unix_now(&self) -> u64;
}

/// What tests may look at, and take away.
#[derive(Clone, Default)]
pub struct Hooks {
    off: Option<Protection>,
    watcher: Option<Arc<dyn Watcher>>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("off", &self.off).field("watched", &self.watcher.is_some()).finish()
    }
}

impl Hooks {
    /// Takes a protection away, and has somebody look on.
    #[cfg(feature = "testing")]
    pub fn new(off: Option<Protection>, watcher: Arc<dyn Watcher>) -> Self {
        Self { off, watcher: Some(watcher) }
    }

    /// Whether a protection is on.
    pub(crate) fn has(&self, protection: Protection) -> bool {
        self.off != Some(protection)
    }

    /// Tells that a point is reached.
    pub(crate) async fn at(&self, point: AwaitPoint, sandbox_id: &str) {
        if let Some(watcher) = &self.watcher {
            watcher.reached(point, sandbox_id).await;
        }
    }

    /// Seconds since 1970.
    pub(crate) fn unix_now(&self) -> u64 {
        match &self.watcher {
            Some(watcher) => watcher.unix_now(),
            None => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.map_or(0, |elapsed| elapsed.as_secs())
            }
        }
    }
}
