//! What an operator may set, as values.

use std::time::Duration;

use cloud_providers::Scope;

use crate::backoff::Backoff;

/// How the controller behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The cluster.
    pub scope: Scope,
    /// How long a daemon that lives, or of which nothing is known, has the first go at a deletion.
    pub daemon_grace: Duration,
    /// Deletions at the same time, for each account of a cloud.
    pub concurrency: usize,
    /// How long a provider may take for one deletion before it is asked again.
    pub delete_limit: Duration,
    /// Pauses after errors.
    pub backoff: Backoff,
    /// How often a record that waits for somebody else is looked at again.
    pub recheck: Duration,
}

impl Settings {
    /// The defaults, for a cluster.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            daemon_grace: Duration::from_secs(60),
            concurrency: 10,
            delete_limit: Duration::from_secs(600),
            backoff: Backoff::default(),
            recheck: Duration::from_secs(60),
        }
    }
}
