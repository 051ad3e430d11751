//! What the registry answers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use serde_json::json;

use super::publish;
use super::store::Store;

/// The paths of a registry: the index below `/index/`, the web API below `/api/v1/`.
pub(super) fn routes(store: Arc<Store>, address: SocketAddr) -> Router {
    let config =
        json!({ "dl": format!("http://{address}/api/v1/crates"), "api": format!("http://{address}") });
    Router::new()
        .route("/index/config.json", get(async move || json_response(StatusCode::OK, &config)))
        .route("/index/{*path}", get(index))
        .route("/api/v1/crates/new", put(upload).layer(DefaultBodyLimit::max(2 * publish::LARGEST)))
        .route("/api/v1/crates/{name}/{version}/download", get(download))
        .route("/api/v1/crates/{name}/{version}/yank", delete(yank))
        .route("/api/v1/crates/{name}/{version}/unyank", put(unyank))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "this registry has no such page"))
        .with_state(store)
}

async fn index(State(store): State<Arc<Store>>, Path(path): Path<String>) -> Response {
    match store.index(&path) {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, "text/plain")], text).into_response(),
        Ok(None) => refuse(StatusCode::NOT_FOUND, &format!("there is no package at {path}")),
        Err(error) => broken(&error),
    }
}

async fn download(
    State(store): State<Arc<Store>>,
    Path((name, version)): Path<(String, String)>,
) -> Response {
    match store.archive(&name, &version) {
        Ok(Some(bytes)) => ([(header::CONTENT_TYPE, "application/gzip")], bytes).into_response(),
        Ok(None) => refuse(StatusCode::NOT_FOUND, &format!("there is no {name} {version}")),
        Err(error) => broken(&error),
    }
}

async fn upload(State(store): State<Arc<Store>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = stranger(&store, &headers) {
        return refusal;
    }
    let upload = match publish::read(&body) {
        Ok(upload) => upload,
        Err(problem) => return refuse(StatusCode::BAD_REQUEST, &problem),
    };
    match store.publish(&upload) {
        Ok(Ok(())) => {
            let warnings = json!({ "invalid_categories": [], "invalid_badges": [], "other": [] });
            json_response(StatusCode::OK, &json!({ "warnings": warnings }))
        }
        Ok(Err(problem)) => refuse(StatusCode::BAD_REQUEST, &problem),
        Err(error) => broken(&error),
    }
}

type NameAndVersion = Path<(String, String)>;

async fn yank(store: State<Arc<Store>>, place: NameAndVersion, headers: HeaderMap) -> Response {
    set_yanked(&store, &headers, &place, true)
}

async fn unyank(store: State<Arc<Store>>, place: NameAndVersion, headers: HeaderMap) -> Response {
    set_yanked(&store, &headers, &place, false)
}

fn set_yanked(
    store: &Store,
    headers: &HeaderMap,
    (name, version): &(String, String),
    yanked: bool,
) -> Response {
    if let Some(refusal) = stranger(store, headers) {
        return refusal;
    }
    match store.yank(name, version, yanked) {
        Ok(true) => json_response(StatusCode::OK, &json!({ "ok": true })),
        Ok(false) => {
            refuse(StatusCode::NOT_FOUND, &format!("crate `{name}` does not have a version `{version}`"))
        }
        Err(error) => broken(&error),
    }
}

/// Refuses a request without the token: loopback is shared with everyone on the host.
fn stranger(store: &Store, headers: &HeaderMap) -> Option<Response> {
    let sent = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let refusal = "authentication failed: the token is not the one of this registry";
    (sent != Some(store.token().as_bytes())).then(|| refuse(StatusCode::FORBIDDEN, refusal))
}

/// An answer whose text cargo shows.
fn refuse(status: StatusCode, detail: &str) -> Response {
    json_response(status, &json!({ "errors": [{ "detail": detail }] }))
}

fn broken(error: &anyhow::Error) -> Response {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}"))
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
