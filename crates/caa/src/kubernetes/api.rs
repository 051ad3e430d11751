//! What is asked of the API server, behind a trait, so that tests and simulations can be one.

use std::{
    fmt,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Node, Pod, Secret, ServiceAccount},
};
use peerpod_api::PeerPod;
use serde_json::Value;

/// Bounds of the pause between two attempts.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// Why the API server did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApiError {
    /// The object is not there.
    NotFound(String),
    /// The server does not know objects of this kind: their definition is not installed.
    NoSuchKind,
    /// An object of this name is there already.
    Exists,
    /// The object changed since it was read, or is another one of the same name.
    Conflict(String),
    /// A right is missing.
    Forbidden(String),
    /// It does not answer, or not now.
    Unavailable(String),
    /// It will not do this, however often it is asked.
    Refused(String),
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(what) => write!(f, "not found: {what}"),
            Self::NoSuchKind => {
                let crd = peerpod_api::names::CRD;
                write!(f, "the definition {crd} is not installed: see `peerpod-ctrl crd`")
            }
            Self::Exists => f.write_str("it exists already"),
            Self::Conflict(text) => write!(f, "it changed meanwhile: {text}"),
            Self::Forbidden(text) => write!(f, "a right is missing: {text}"),
            Self::Unavailable(text) => write!(f, "the API server does not answer: {text}"),
            Self::Refused(text) => write!(f, "the API server refuses: {text}"),
        }
    }
}

impl std::error::Error for ApiError {}

impl ApiError {
    /// Whether the same question may get another answer.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Conflict(_))
    }
}

/// The result of asking the API server.
pub type ApiResult<T> = Result<T, ApiError>;

/// The API server. Every call is bounded in time by whoever implements it; reads are fresh, never from a cache.
#[async_trait]
pub trait Api: Send + Sync {
    /// Reads a pod. `None` when it is not there.
    async fn pod(&self, namespace: &str, name: &str) -> ApiResult<Option<Pod>>;

    /// Lists the pods of a node, all of them or none.
    async fn pods_of_node(&self, node: &str) -> ApiResult<Vec<Pod>>;

    /// Reads a service account. `None` when it is not there.
    async fn service_account(&self, namespace: &str, name: &str) -> ApiResult<Option<ServiceAccount>>;

    /// Reads a Secret. `None` when it is not there.
    async fn secret(&self, namespace: &str, name: &str) -> ApiResult<Option<Secret>>;

    /// Reads a record. `None` when it is not there.
    async fn record(&self, namespace: &str, name: &str) -> ApiResult<Option<PeerPod>>;

    /// Creates a record.
    async fn create_record(&self, record: &PeerPod) -> ApiResult<()>;

    /// Changes a record by a merge patch.
    async fn patch_record(&self, namespace: &str, name: &str, patch: &Value) -> ApiResult<()>;

    /// Asks for the deletion of the record with this UID.
    async fn delete_record(&self, namespace: &str, name: &str, uid: &str) -> ApiResult<()>;

    /// Returns the UID of a namespace.
    async fn namespace_uid(&self, name: &str) -> ApiResult<Option<String>>;

    /// Reads a node. `None` when it is not there.
    async fn node(&self, name: &str) -> ApiResult<Option<Node>>;

    /// Changes a node's status, and its metadata with it, by a merge patch.
    async fn merge_node_status(&self, name: &str, patch: &Value) -> ApiResult<()>;

    /// Changes a node's status, and its metadata with it, by a JSON patch. A test in it that fails is
    /// [`ApiError::Refused`].
    async fn patch_node_status(&self, name: &str, patch: &Value) -> ApiResult<()>;

    /// Creates an Event.
    async fn create_event(&self, event: &Event) -> ApiResult<()>;

    /// Changes an Event by a merge patch.
    async fn patch_event(&self, namespace: &str, name: &str, patch: &Value) -> ApiResult<()>;

    /// Creates a Lease, or changes it.
    async fn put_lease(&self, lease: &Lease) -> ApiResult<()>;
}

/// Asks until there is an answer that stays, or `limit` is over. What it waits for is logged once.
///
/// # Errors
///
/// What cannot pass, at once; otherwise the last error, with the time that was given to it.
pub async fn patiently<T, F, A>(what: &str, limit: Duration, mut ask: F) -> anyhow::Result<T>
where
    F: FnMut() -> A,
    A: Future<Output = ApiResult<T>>,
{
    let begun = Instant::now();
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = RETRY_MIN;
    let mut last = None;
    let mut tries = 0u32;
    loop {
        tries += 1;
        match tokio::time::timeout_at(deadline, ask()).await {
            Ok(Ok(answer)) => {
                if tries > 1 {
                    tracing::info!(what, tries, elapsed = ?begun.elapsed(), "the API server has answered");
                }
                return Ok(answer);
            }
            Ok(Err(error)) if error.is_passing() => {
                if tries == 1 {
                    tracing::warn!(what, %error, ?limit, "waiting for the API server");
                }
                last = Some(error);
            }
            Ok(Err(error)) => return Err(anyhow::anyhow!("{what}: {error}")),
            Err(_) => {}
        }
        let jitter = pause.mul_f64(rand::random_range(0.5..1.0));
        if tokio::time::timeout_at(deadline, tokio::time::sleep(jitter)).await.is_err() {
            let last = last.unwrap_or_else(|| ApiError::Unavailable("no answer".into()));
            return Err(anyhow::anyhow!("{what}: {last} (tried {tries} times within {limit:?})"));
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(25);

    fn away() -> ApiError {
        ApiError::Unavailable("connection refused".into())
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_asked_again_and_what_stays_is_told_at_once() {
        let tries = Cell::new(0);
        let ask = || async {
            tries.set(tries.get() + 1);
            if tries.get() < 4 { Err(away()) } else { Ok(7) }
        };
        assert_eq!(patiently("count", LIMIT, ask).await.unwrap(), 7);
        let begun = tokio::time::Instant::now();
        let ask = || async { Err::<(), _>(ApiError::Forbidden("no".into())) };
        let error = patiently("count", LIMIT, ask).await.unwrap_err().to_string();
        assert_eq!((error.as_str(), begun.elapsed()), ("count: a right is missing: no", Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_in_time_and_says_for_what_it_was() {
        for hangs in [false, true] {
            let begun = tokio::time::Instant::now();
            let ask = || async { if hangs { pending().await } else { Err::<(), _>(away()) } };
            let error = patiently("record the pod VM", LIMIT, ask).await.unwrap_err().to_string();
            assert_eq!(begun.elapsed(), LIMIT);
            assert!(error.starts_with("record the pod VM: the API server does not answer"), "{error}");
            assert!(hangs || error.contains("connection refused"), "{error}");
        }
    }
}
