//! The messages of OTLP that a request with spans needs, and spans as such messages.

use std::{collections::BTreeMap, time::SystemTime};

use crate::trace::{EndedSpan, TraceEvent, TraceValue};

/// Field numbers are those of `opentelemetry/proto/{collector/trace,trace,common,resource}/v1`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(message, repeated, tag = "1")]
    pub(super) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(super) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(super) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(super) attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub(super) scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub(super) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Scope {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(super) name: String,
    #[prost(int32, tag = "6")]
    pub(super) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(super) start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub(super) end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub(super) attributes: Vec<Attribute>,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Event>,
    #[prost(message, optional, tag = "15")]
    pub(super) status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Event {
    #[prost(fixed64, tag = "1")]
    pub(super) time_unix_nano: u64,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Status {
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(int32, tag = "3")]
    pub(super) code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Attribute {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AnyValue {
    #[prost(oneof = "any_value::Value", tags = "1, 2, 3, 4")]
    pub(super) value: Option<any_value::Value>,
}

pub(super) mod any_value {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Value {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Float(f64),
    }
}

/// What a collector answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
/// The code of a status that says error.
const ERROR: i32 = 2;

/// Our fields that OpenTelemetry has a name for.
const NAMES: [(&str, &str); 4] = [
    ("pod", "k8s.pod.name"),
    ("namespace", "k8s.namespace.name"),
    ("node", "k8s.node.name"),
    ("instance_id", "host.id"),
];

/// Makes a request.
pub(super) fn request(resource: &BTreeMap<String, String>, spans: &[EndedSpan]) -> Request {
    let attributes = resource.iter().map(|(key, value)| text(key, value.clone())).collect();
    let scope = Scope { name: "caa".into(), version: env!("CARGO_PKG_VERSION").into() };
    let spans = spans.iter().map(span).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource = Some(Resource { attributes });
    Request { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
}

fn span(ended: &EndedSpan) -> Span {
    let parent = ended.parent;
    Span {
        trace_id: ended.context.trace_id().to_be_bytes().to_vec(),
        span_id: ended.context.span_id().to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
        name: ended.name.clone(),
        kind: match ended.name.as_str() {
            "CreateVM" | "StartVM" | "StopVM" => SERVER,
            name if name.starts_with("provider ") => CLIENT,
            _ => INTERNAL,
        },
        start_time_unix_nano: nanos(ended.began),
        end_time_unix_nano: nanos(ended.ended),
        attributes: attributes(&ended.attributes),
        events: ended.events.iter().map(event).collect(),
        status: ended.error.as_ref().map(|why| Status { message: why.clone(), code: ERROR }),
    }
}

fn event(event: &TraceEvent) -> Event {
    let attributes = attributes(&event.attributes);
    Event { time_unix_nano: nanos(event.at), name: event.message.clone(), attributes }
}

fn attributes(fields: &[(&'static str, TraceValue)]) -> Vec<Attribute> {
    let name = |field: &str| {
        NAMES.iter().find(|(ours, _)| *ours == field).map_or(field, |(_, name)| name).to_owned()
    };
    let attribute = |(field, value): &(&'static str, TraceValue)| {
        let value = match value.clone() {
            TraceValue::Text(text) => any_value::Value::Text(text),
            TraceValue::Int(number) => any_value::Value::Int(number),
            TraceValue::Float(number) => any_value::Value::Float(number),
            TraceValue::Bool(yes) => any_value::Value::Bool(yes),
        };
        Attribute { key: name(field), value: Some(AnyValue { value: Some(value) }) }
    };
    fields.iter().map(attribute).collect()
}

fn text(key: &str, value: String) -> Attribute {
    Attribute { key: key.to_owned(), value: Some(AnyValue { value: Some(any_value::Value::Text(value)) }) }
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
