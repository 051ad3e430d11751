//! What the controller asks of the cluster, behind a trait: Kubernetes in the program, memory in tests and simulations.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::model::{Change, Daemon, Key, Note, Pod, Record, View};

/// Why the cluster did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The object is not there.
    #[error("the object is gone")]
    NotFound,
    /// The object changed since it was read, or is another one of the same name.
    #[error("the object changed meanwhile")]
    Conflict,
    /// The version that was asked for is too old: everything is read anew.
    #[error("the version is too old")]
    Expired,
    /// A right is missing.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The API server does not answer, or not in time.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
    /// It answered something else.
    #[error("the API server refused: {0}")]
    Refused(String),
}

/// The result of asking the cluster.
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// The cluster. Every call is bounded in time by whoever implements it.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// Tells every change of the records, beginning with all of them, until something breaks.
    ///
    /// # Errors
    ///
    /// Why it ended. The caller starts it again, and gets everything anew.
    async fn watch(&self, changes: mpsc::Sender<Change>) -> Result<()>;

    /// Reads one record from the API server itself, not from a cache. `None` when it is gone.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    async fn record(&self, key: &Key) -> Result<Option<Record>>;

    /// Reads one pod from the API server itself, not from a cache. `None` when it is gone.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    async fn pod(&self, key: &Key) -> Result<Option<Pod>>;

    /// Says what is known about the daemon of each node. A short cache is fine: it decides who goes first, and nothing
    /// else. A node that is not in the answer does not exist.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    async fn daemons(&self) -> Result<BTreeMap<String, Daemon>>;

    /// Reads everything from the API server itself.
    ///
    /// # Errors
    ///
    /// When nothing could be read. A list that broke off gives a view that is not complete.
    async fn view(&self) -> Result<View>;

    /// Removes our finalizers from exactly this version of the record, and leaves those of others.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Conflict`] when it changed, [`ClusterError::NotFound`] when it is gone.
    async fn release(&self, record: &Record) -> Result<()>;

    /// Asks for the deletion of exactly this record, by UID, after marking it as superseded where `by` says by what.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Conflict`] when another record has its name by now, [`ClusterError::NotFound`] when it is gone.
    async fn delete(&self, record: &Record, by: Option<&str>) -> Result<()>;

    /// Writes a note as the record's condition. An older CRD may drop it.
    ///
    /// # Errors
    ///
    /// When it could not be written.
    async fn set_condition(&self, record: &Record, note: &Note) -> Result<()>;

    /// Tells a note as an Event about the record.
    ///
    /// # Errors
    ///
    /// When it could not be written.
    async fn event(&self, record: &Record, note: &Note) -> Result<()>;
}
