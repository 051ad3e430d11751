//! What simulations may take away.
//!
//! A controller that ships runs with every safety key on; only with the feature `testing` can one be off. The campaign
//! takes each away in turn and has to notice: a key that nothing misses would be one that no test guards.

/// What keeps a living pod's VM, or keeps a dead pod's VM from being left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SafetyKey {
    /// A record is read anew before its VM is deleted.
    FreshRecord,
    /// A pod is read anew before its VM is deleted, and its UID compared.
    FreshPod,
    /// The daemon of the node has the first go.
    DaemonFirst,
    /// A record is superseded only by a later one of the same pod with another sandbox.
    SandboxOrder,
    /// A finalizer goes only after the provider said gone.
    GoneFirst,
    /// A failed deletion is tried again.
    TryAgain,
    /// What another cluster made is not deleted.
    OwnScope,
    /// What a record names is no orphan.
    KnownToCluster,
    /// What may serve a pod that lives is no orphan.
    LivingPod,
    /// The cloud is listed first, and the cluster after it.
    CloudBeforeCluster,
    /// An incomplete list of the cloud deletes nothing.
    CompleteCloud,
    /// An incomplete view of the cluster deletes nothing.
    CompleteView,
    /// A view of another cluster, or of an earlier time, deletes nothing.
    SaneView,
    /// An orphan is watched for a while before it is deleted.
    OrphanGrace,
    /// No sweep deletes more than so many.
    Cap,
    /// What carries the protect tag stays.
    ProtectTag,
    /// A leader stops before its lease can be another's.
    StopBeforeLease,
}

impl SafetyKey {
    /// Every key.
    pub const ALL: [Self; 17] = [
        Self::FreshRecord,
        Self::FreshPod,
        Self::DaemonFirst,
        Self::SandboxOrder,
        Self::GoneFirst,
        Self::TryAgain,
        Self::OwnScope,
        Self::KnownToCluster,
        Self::LivingPod,
        Self::CloudBeforeCluster,
        Self::CompleteCloud,
        Self::CompleteView,
        Self::SaneView,
        Self::OrphanGrace,
        Self::Cap,
        Self::ProtectTag,
        Self::StopBeforeLease,
    ];
}

/// Which key is off, and whose clock counts.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    off: Option<SafetyKey>,
    #[cfg(any(test, feature = "testing"))]
    clock: Option<std::sync::Arc<std::sync::atomic::AtomicU64>>,
}

impl Hooks {
    /// Takes a key away.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn without(mut self, key: SafetyKey) -> Self {
        self.off = Some(key);
        self
    }

    /// Reads the time of day, in seconds since 1970, from `clock`.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_clock(mut self, clock: std::sync::Arc<std::sync::atomic::AtomicU64>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Whether a key is on.
    pub(crate) fn has(&self, key: SafetyKey) -> bool {
        self.off != Some(key)
    }

    /// Seconds since 1970.
    pub(crate) fn unix_now(&self) -> u64 {
        #[cfg(any(test, feature = "testing"))]
        if let Some(clock) = &self.clock {
            return clock.load(std::sync::atomic::Ordering::SeqCst);
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |elapsed| elapsed.as_secs())
    }
}
