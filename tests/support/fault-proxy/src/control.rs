//! The proxy told by HTTP what to do, for whoever is in another process.
//!
//! | call | does |
//! |---|---|
//! | `GET /rules` | lists the rules with how many calls fitted and to how many each was done |
//! | `POST /rules` | adds a rule, or replaces the one of its name |
//! | `DELETE /rules`, `DELETE /rules/NAME` | removes all rules, or one |
//! | `GET /journal`, `DELETE /journal` | lists the calls so far, or forgets them |
//! | `GET /counts` | counts calls by what they are called, and tells the most in any second |
//! | `GET /settings`, `PUT /settings` | shows or sets the behaviour, such as that of EC2 |

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::journal;
use crate::proxy::{HttpFaultProxy, Shared};
use crate::rule::Rule;

/// Listens for orders; ends when it is dropped.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    _serve: AbortOnDropHandle<()>,
}

impl Control {
    /// Takes orders for `proxy` at `listen`.
    ///
    /// Whoever reaches the address gives orders: it is meant for loopback.
    ///
    /// # Errors
    ///
    /// When the system refuses the address.
    pub async fn start(proxy: &HttpFaultProxy, listen: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let router = router(proxy.shared());
        let serve = tokio::spawn(async move {
            // It ends with the proxy only.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, _serve: AbortOnDropHandle::new(serve) })
    }

    /// Where orders are taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

type Refusal = (StatusCode, String);

fn refuse(error: &anyhow::Error) -> Refusal {
    (StatusCode::BAD_REQUEST, format!("{error:#}\n"))
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/rules", get(rules).post(add).delete(clear))
        .route("/rules/{name}", axum::routing::delete(remove))
        .route("/journal", get(entries).delete(forget))
        .route("/counts", get(counts))
        .route("/settings", get(settings).put(set))
        .with_state(shared)
}

async fn rules(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let rules = shared.rules().into_iter();
    let rules = rules.map(|(rule, fitting, done)| json!({ "rule": rule, "fitting": fitting, "done": done }));
    Json(rules.collect())
}

async fn add(State(shared): State<Arc<Shared>>, body: String) -> Result<StatusCode, Refusal> {
    let rule: Rule = serde_json::from_str(&body).map_err(|error| refuse(&error.into()))?;
    shared.add(rule).map_err(|error| refuse(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clear(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.clear();
    StatusCode::NO_CONTENT
}

async fn remove(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    if shared.remove(&name) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err((StatusCode::NOT_FOUND, format!("there is no rule {name}\n")))
}

async fn entries(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!(shared.journal()))
}

async fn forget(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.clear_journal();
    StatusCode::NO_CONTENT
}

async fn counts(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let entries = shared.journal();
    Json(json!({ "calls": journal::counts(&entries), "peak_per_second": journal::peak(&entries) }))
}

async fn settings(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(shared.behaviour().settings())
}

async fn set(State(shared): State<Arc<Shared>>, body: String) -> Result<StatusCode, Refusal> {
    let settings = serde_json::from_str(&body).map_err(|error| refuse(&anyhow::Error::from(error)))?;
    shared.behaviour().set(settings).map_err(|error| refuse(&error))?;
    Ok(StatusCode::NO_CONTENT)
}
