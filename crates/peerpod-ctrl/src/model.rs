//! What the controller knows of the cluster, as plain data. Nothing here is a type of Kubernetes.

use std::{collections::BTreeMap, fmt};

use cloud_providers::InstanceId;
use peerpod_api::{Facts, PeerPod, Stage, names, object::condition, rules};
use serde::Serialize;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// Names an object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A PeerPod object, the cluster's record of one VM, with what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Namespace and name.
    pub key: Key,
    /// What it says.
    pub facts: Facts,
    /// The object itself.
    pub object: PeerPod,
}

impl Record {
    /// Reads an object.
    pub fn new(object: PeerPod) -> Self {
        let metadata = &object.metadata;
        let key = Key::new(
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        );
        Self { key, facts: Facts::of(&object), object }
    }

    /// Returns the object's UID.
    pub fn uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether its deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        rules::is_deleting(&self.object)
    }

    /// Whether a finalizer of ours keeps it.
    pub fn is_kept(&self) -> bool {
        rules::stage(&self.object) != Stage::Done
    }

    /// Returns when its deletion was asked for, in seconds since 1970 of the API server's clock.
    pub fn deleting_unix(&self) -> Option<u64> {
        let time = self.object.metadata.deletion_timestamp.as_ref()?;
        u64::try_from(time.0.as_second()).ok()
    }

    /// Returns the sandbox or record that took its place, once a controller decided so.
    pub fn superseded(&self) -> Option<&str> {
        self.object.metadata.annotations.as_ref()?.get(names::SUPERSEDED_BY).map(String::as_str)
    }

    /// Returns the name of the provider; empty when it does not say.
    pub fn provider(&self) -> &str {
        self.facts.provider.as_deref().unwrap_or_default()
    }

    /// Returns the cloud's id of the VM; empty when it does not say.
    pub fn instance_id(&self) -> &str {
        self.facts.instance.as_ref().map(InstanceId::as_str).unwrap_or_default()
    }

    /// Whether a condition says this already.
    pub fn says(&self, note: &Note) -> bool {
        let status = self.object.status.as_ref();
        let mut conditions = status.into_iter().flat_map(|s| &s.conditions).filter(|c| c.status == "True");
        conditions.any(|c| {
            c.type_ == note.reason.condition() && c.reason == note.reason.label() && c.message == note.message
        })
    }

    /// Whether both say the same in everything that decisions are made from.
    pub fn same_matter(&self, other: &Self) -> bool {
        self.facts == other.facts
            && self.uid() == other.uid()
            && self.is_deleting() == other.is_deleting()
            && self.object.metadata.finalizers == other.object.metadata.finalizers
            && self.superseded() == other.superseded()
    }
}

/// A pod, as far as the controller looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Whether its deletion was asked for.
    pub deleting: bool,
    /// How many seconds it was given to end, while it is being deleted.
    pub grace_seconds: u64,
    /// Whether everything in it has ended for good.
    pub over: bool,
}

impl Pod {
    /// Makes a pod that runs.
    pub fn new(key: Key, uid: impl Into<String>) -> Self {
        Self { key, uid: uid.into(), node: None, deleting: false, grace_seconds: 0, over: false }
    }

    /// Whether something in it may still run.
    pub fn lives(&self) -> bool {
        !self.over
    }
}

/// What is known about the daemon of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Daemon {
    /// It runs: it has the first go at its own VMs.
    Alive,
    /// The node or the daemon is surely not there.
    Gone,
    /// Nobody knows.
    #[default]
    Unknown,
}

/// Everything of the cluster at one moment, read from the API server itself and not from a cache.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct View {
    /// UID of the namespace kube-system.
    pub cluster_uid: String,
    /// The least of the lists' versions, as a number where it is one.
    pub revision: Option<u64>,
    /// Every record of every namespace.
    pub records: Vec<Record>,
    /// Every pod of every namespace.
    pub pods: Vec<Pod>,
    /// Every node, with what is known about its daemon.
    pub nodes: BTreeMap<String, Daemon>,
    /// Whether every list came to its end.
    pub complete: bool,
}

impl View {
    /// Collects a view that is complete.
    pub fn new(cluster_uid: impl Into<String>, records: Vec<Record>, pods: Vec<Pod>) -> Self {
        Self {
            cluster_uid: cluster_uid.into(),
            revision: None,
            records,
            pods,
            nodes: BTreeMap::new(),
            complete: true,
        }
    }
}

/// A change of the records.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// All of them: the first list, or a new one after the stream broke.
    Listed(Vec<Record>),
    /// One was made or changed.
    Applied(Box<Record>),
    /// One is gone.
    Deleted(Key),
}

/// Why a record is where it is: the reason of its condition and of Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Reason {
    /// The daemon of its node has the first go.
    WaitingForDaemon,
    /// The controller has asked the cloud to delete the VM.
    Deleting,
    /// The cloud did not do it; it is tried again.
    DeletionFailed,
    /// The record is being deleted and its pod lives: the VM stays for as long as the pod.
    PodAlive,
    /// Somebody protected it.
    Protected,
    /// Another sandbox of the same pod took its place.
    Superseded,
    /// The provider is not part of this program.
    UnknownProvider,
    /// The provider's configuration does not work.
    ProviderUnavailable,
    /// It names neither an instance nor a token.
    NoInstance,
    /// It names no instance, and the provider cannot remove things by token.
    CannotRelease,
    /// Its token does not read, or names another cluster.
    ForeignToken,
    /// No pod owns it: nothing will ever ask for its deletion.
    NoOwner,
}

impl Reason {
    /// The word in conditions, Events and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::WaitingForDaemon => "WaitingForDaemon",
            Self::Deleting => "Deleting",
            Self::DeletionFailed => "DeletionFailed",
            Self::PodAlive => "PodAlive",
            Self::Protected => "Protected",
            Self::Superseded => "Superseded",
            Self::UnknownProvider => "UnknownProvider",
            Self::ProviderUnavailable => "ProviderUnavailable",
            Self::NoInstance => "NoInstance",
            Self::CannotRelease => "CannotRelease",
            Self::ForeignToken => "ForeignToken",
            Self::NoOwner => "NoOwner",
        }
    }

    /// The type of the condition that carries it.
    pub fn condition(self) -> &'static str {
        match self {
            Self::WaitingForDaemon
            | Self::Deleting
            | Self::DeletionFailed
            | Self::PodAlive
            | Self::Protected => condition::DELETION_PENDING,
            Self::Superseded => condition::SUPERSEDED,
            Self::UnknownProvider
            | Self::ProviderUnavailable
            | Self::NoInstance
            | Self::CannotRelease
            | Self::ForeignToken
            | Self::NoOwner => condition::STUCK,
        }
    }

    /// Whether somebody should look at it.
    pub fn is_warning(self) -> bool {
        !matches!(self, Self::WaitingForDaemon | Self::Deleting | Self::Superseded)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What is told about a record: as its condition, and as an Event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Why.
    pub reason: Reason,
    /// In words, with the thing to mend.
    pub message: String,
}

impl Note {
    /// Makes a note.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}
