//! [`Api`] over the client of `kube`.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Namespace, Node, Pod, Secret, ServiceAccount},
};
use kube::{
    Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use peerpod_api::{PeerPod, names};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::api::{Api, ApiError, ApiResult};

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How many objects a page of a list has.
const PAGE: u32 = 500;
/// The most pages of a list; a server that never ends one is not waited for.
const PAGES: usize = 100;

/// An API server that is reached through `kube`.
#[derive(Clone)]
pub struct KubeApi(Client);

impl KubeApi {
    /// Asks by `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    fn of<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        kube::Api::namespaced(self.0.clone(), namespace)
    }
}

/// Waits for one answer.
async fn asked<T>(request: impl Future<Output = kube::Result<T>>) -> ApiResult<T> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => answer.map_err(error),
        Err(_) => Err(ApiError::Unavailable(format!("no answer within {REQUEST_LIMIT:?}"))),
    }
}

/// Takes what is not there for `None`.
fn maybe<T>(answer: ApiResult<T>) -> ApiResult<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn get<K>(api: &kube::Api<K>, name: &str) -> ApiResult<Option<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    maybe(asked(api.get(name)).await)
}

fn error(error: kube::Error) -> ApiError {
    let kube::Error::Api(status) = error else {
        return match error {
            kube::Error::SerdeError(error) => {
                ApiError::Refused(format!("its answer cannot be read: {error}"))
            }
            kube::Error::BuildRequest(error) => ApiError::Refused(error.to_string()),
            error => ApiError::Unavailable(chain(&error)),
        };
    };
    let text = status.message.clone();
    match status.code {
        // Without details it is not the object that is missing but everything of its kind.
        404 if status.details.as_ref().is_some_and(|d| !d.name.is_empty()) => ApiError::NotFound(text),
        404 => ApiError::NoSuchKind,
        409 if status.is_already_exists() => ApiError::Exists,
        409 => ApiError::Conflict(text),
        403 => ApiError::Forbidden(text),
        // A token that has run out is read from its file again.
        401 | 408 | 410 | 429 | 500.. => ApiError::Unavailable(format!("{text} ({})", status.code)),
        _ => ApiError::Refused(text),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn writer() -> PatchParams {
    PatchParams { field_manager: Some(names::DAEMON.into()), ..PatchParams::default() }
}

fn creator() -> PostParams {
    PostParams { field_manager: Some(names::DAEMON.into()), ..PostParams::default() }
}

async fn merge<K>(api: &kube::Api<K>, name: &str, patch: &impl Merge) -> ApiResult<K>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    asked(api.patch(name, &writer(), &Patch::Merge(patch))).await
}

trait Merge: Serialize + std::fmt::Debug {}
impl<T: Serialize + std::fmt::Debug> Merge for T {}

#[async_trait]
impl Api for KubeApi {
    async fn pod(&self, namespace: &str, name: &str) -> ApiResult<Option<Pod>> {
        get(&self.of(namespace), name).await
    }

    async fn pods_of_node(&self, node: &str) -> ApiResult<Vec<Pod>> {
        let api: kube::Api<Pod> = kube::Api::all(self.0.clone());
        // Without a resource version: the server asks its store, and not its cache.
        let mut params = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PAGE);
        let mut pods = Vec::new();
        for _ in 0..PAGES {
            let page = asked(api.list(&params)).await?;
            pods.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(pods),
            }
        }
        Err(ApiError::Refused(format!("the list of pods has no end after {PAGES} pages")))
    }

    async fn service_account(&self, namespace: &str, name: &str) -> ApiResult<Option<ServiceAccount>> {
        get(&self.of(namespace), name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> ApiResult<Option<Secret>> {
        get(&self.of(namespace), name).await
    }

    async fn record(&self, namespace: &str, name: &str) -> ApiResult<Option<PeerPod>> {
        let api: kube::Api<PeerPod> = self.of(namespace);
        match get(&api, name).await {
            // The rights of the existing daemon have no `get`. A patch that changes nothing gives the object, too.
            Err(ApiError::Forbidden(_)) => maybe(merge(&api, name, &json!({})).await),
            other => other,
        }
    }

    async fn create_record(&self, record: &PeerPod) -> ApiResult<()> {
        let namespace = record.metadata.namespace.as_deref().unwrap_or_default();
        asked(self.of(namespace).create(&creator(), record)).await.map(drop)
    }

    async fn patch_record(&self, namespace: &str, name: &str, patch: &Value) -> ApiResult<()> {
        merge(&self.of::<PeerPod>(namespace), name, patch).await.map(drop)
    }

    async fn delete_record(&self, namespace: &str, name: &str, uid: &str) -> ApiResult<()> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(preconditions);
        asked(self.of::<PeerPod>(namespace).delete(name, &params)).await.map(drop)
    }

    async fn namespace_uid(&self, name: &str) -> ApiResult<Option<String>> {
        let api: kube::Api<Namespace> = kube::Api::all(self.0.clone());
        Ok(get(&api, name).await?.and_then(|namespace| namespace.metadata.uid))
    }

    async fn node(&self, name: &str) -> ApiResult<Option<Node>> {
        get(&kube::Api::all(self.0.clone()), name).await
    }

    async fn merge_node_status(&self, name: &str, patch: &Value) -> ApiResult<()> {
        let api: kube::Api<Node> = kube::Api::all(self.0.clone());
        asked(api.patch_status(name, &writer(), &Patch::Merge(patch))).await.map(drop)
    }

    async fn patch_node_status(&self, name: &str, patch: &Value) -> ApiResult<()> {
        let api: kube::Api<Node> = kube::Api::all(self.0.clone());
        let patch = serde_json::from_value(patch.clone()).map_err(|e| ApiError::Refused(e.to_string()))?;
        asked(api.patch_status(name, &writer(), &Patch::Json::<()>(patch))).await.map(drop)
    }

    async fn create_event(&self, event: &Event) -> ApiResult<()> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        asked(self.of(namespace).create(&creator(), event)).await.map(drop)
    }

    async fn patch_event(&self, namespace: &str, name: &str, patch: &Value) -> ApiResult<()> {
        merge(&self.of::<Event>(namespace), name, patch).await.map(drop)
    }

    async fn put_lease(&self, lease: &Lease) -> ApiResult<()> {
        let api: kube::Api<Lease> = self.of(lease.metadata.namespace.as_deref().unwrap_or_default());
        match merge(&api, lease.metadata.name.as_deref().unwrap_or_default(), lease).await {
            Err(ApiError::NotFound(_)) => asked(api.create(&creator(), lease)).await.map(drop),
            other => other.map(drop),
        }
    }
}
