//! A collector of OpenTelemetry, and what it reads of a request: the parts of OTLP that the tests look at.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use prost::Message as _;

/// What a collector reads of a request: the parts of OTLP that these tests look at.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    pub(crate) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SpanStatus {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Attribute {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Value {
    #[prost(string, optional, tag = "1")]
    pub(crate) text: Option<String>,
}

pub(crate) fn texts(attributes: &[Attribute]) -> BTreeMap<&str, &str> {
    let text = |a: &'_ Attribute| a.value.as_ref().and_then(|v| v.text.clone());
    attributes
        .iter()
        .filter(|a| text(a).is_some())
        .map(|a| (a.key.as_str(), a.value.as_ref().unwrap().text.as_deref().unwrap()))
        .collect()
}

/// A collector that keeps what it gets, and answers as told first.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    pub(crate) got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    pub(crate) answers: Arc<Mutex<Vec<StatusCode>>>,
}

impl Collector {
    /// Serves on loopback and returns the address.
    pub(crate) fn serve(&self) -> String {
        self.serve_at(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Serves at a socket, which may be of another network namespace, and returns the address.
    pub(crate) fn serve_at(&self, listener: std::net::TcpListener) -> String {
        let address = format!("http://{}", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let take = |State(this): State<Self>, headers: HeaderMap, body: Bytes| async move {
            this.got.lock().unwrap().push((headers, body));
            this.answers.lock().unwrap().pop().unwrap_or(StatusCode::OK)
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        let got = self.got.lock().unwrap();
        got.iter().map(|(_, body)| Request::decode(body.clone()).unwrap()).collect()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let scopes = self.requests().into_iter().flat_map(|r| r.resource_spans).flat_map(|r| r.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}
