//! The cluster over the client of `kube`. Nothing else in this crate knows that client.

mod cluster;
mod config;
mod connect;
mod lease;

pub use cluster::KubeCluster;
pub use config::KubeConfig;
pub use connect::Connection;
pub use lease::KubeLease;

use std::{future::Future, time::Duration};

use kube::api::{ListParams, ObjectList};

use crate::cluster::{ClusterError, Result};

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// How many objects a page of a list has.
const PAGE: u32 = 500;
/// The most pages of a list; a server that never ends one is not waited for.
const PAGES: usize = 1000;

/// Waits for one answer.
async fn asked<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => answer.map_err(error),
        Err(_) => Err(ClusterError::Unavailable(format!("no answer within {REQUEST_LIMIT:?}"))),
    }
}

/// Takes what is not there for `None`.
fn maybe<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(ClusterError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn error(error: kube::Error) -> ClusterError {
    let status = match error {
        kube::Error::Api(status) => status,
        kube::Error::SerdeError(error) => {
            return ClusterError::Refused(format!("its answer cannot be read: {error}"));
        }
        kube::Error::BuildRequest(error) => return ClusterError::Refused(error.to_string()),
        error => return ClusterError::Unavailable(chain(&error)),
    };
    let text = status.message.clone();
    match status.code {
        // Without a name it is not the object that is missing but everything of its kind.
        404 if status.details.as_ref().is_some_and(|d| !d.name.is_empty()) => ClusterError::NotFound,
        404 => ClusterError::Refused(format!(
            "{text}: is the definition {} installed? See `peerpod-ctrl crd`",
            peerpod_api::names::CRD
        )),
        409 => ClusterError::Conflict,
        410 => ClusterError::Expired,
        403 => ClusterError::Forbidden(text),
        401 | 408 | 429 | 500.. => ClusterError::Unavailable(format!("{text} ({})", status.code)),
        _ => ClusterError::Refused(text),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// Everything of a list, with the version of its first page, and whether it came to its end.
struct Listed<K> {
    items: Vec<K>,
    revision: Option<u64>,
    complete: bool,
}

/// Lists page by page. Without a resource version in the question the server asks its store, and not its cache.
///
/// # Errors
///
/// When not even the first page came.
async fn list_all<K: Clone, F>(page: impl Fn(ListParams) -> F) -> Result<Listed<K>>
where
    F: Future<Output = kube::Result<ObjectList<K>>>,
{
    let mut all = Listed { items: Vec::new(), revision: None, complete: false };
    let mut params = ListParams::default().limit(PAGE);
    for number in 0..PAGES {
        let list = match asked(page(params.clone())).await {
            Ok(list) => list,
            Err(error) if number == 0 => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a list broke off");
                return Ok(all);
            }
        };
        let revision = list.metadata.resource_version.as_deref().and_then(|v| v.parse().ok());
        all.revision = all.revision.or(revision);
        all.items.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => {
                all.complete = true;
                return Ok(all);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
