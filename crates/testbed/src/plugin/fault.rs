//! Errors on the wire.

use cloud_providers::{Error, ErrorKind};
use serde_json::{Map, Value, json};

/// Writes an error.
pub(super) fn write(error: &Error) -> Value {
    serde_json::to_value(error).unwrap_or_else(|_| json!({ "kind": "internal", "message": error.report() }))
}

/// Reads an error. `kind` and `message` are enough; whatever else the contract's error has may stand beside them.
///
/// What cannot be read is kept in words: a failure that is told badly is still a failure.
pub(super) fn read(value: Value) -> Error {
    let Value::Object(given) = value else {
        return Error::internal("the provider failed").with("it says", value);
    };
    let message = given.get("message").and_then(Value::as_str).unwrap_or("the provider failed").to_owned();
    let read = kind(&given).and_then(|kind| {
        let mut fields = match serde_json::to_value(Error::new(kind, &message)) {
            Ok(Value::Object(fields)) => fields,
            _ => return None,
        };
        for (name, value) in &given {
            match name.as_str() {
                "kind" | "message" => {}
                "context" => _ = fields.insert(name.clone(), pairs(value)),
                _ => _ = fields.insert(name.clone(), value.clone()),
            }
        }
        serde_json::from_value(Value::Object(fields)).ok()
    });
    read.unwrap_or_else(|| {
        let kind = kind(&given).unwrap_or(ErrorKind::Internal);
        Error::new(kind, message).with("the provider's own words", Value::Object(given))
    })
}

fn kind(given: &Map<String, Value>) -> Option<ErrorKind> {
    let kind = match given.get("kind")? {
        // The one kind with fields may be named without them.
        Value::String(word) if word == "capacity" => json!({ "capacity": {} }),
        other => other.clone(),
    };
    serde_json::from_value(kind).ok()
}

/// Takes context as a mapping too.
fn pairs(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    map.iter().map(|(key, value)| json!([key, text(value)])).collect()
}

#[cfg(test)]
mod tests {
    use cloud_providers::{Resource, Retry};

    use super::*;

    #[test]
    fn an_error_crosses_whole() {
        let kind = ErrorKind::Capacity { zone: Some("a".into()), instance_type: None };
        let error = Error::new(kind, "no room")
            .with("zone", "a")
            .with_cloud("E1", "full")
            .with_leftovers([Resource::new("disk", "d-1")])
            .with_source(std::io::Error::other("x"));
        assert_eq!(read(write(&error)), error);
    }

    #[test]
    fn two_fields_are_enough() {
        let error = read(json!({ "kind": "capacity", "message": "no room" }));
        assert_eq!(*error.kind(), ErrorKind::Capacity { zone: None, instance_type: None });
        assert_eq!(error.retry(), Retry::Elsewhere);
        let error = read(json!({
            "kind": "quota",
            "message": "too many",
            "context": { "limit": 5, "of": "cores" },
            "leftovers": [{ "kind": "disk", "id": "d-1" }],
        }));
        assert!(
            error.to_string().starts_with("too many (limit: 5, of: cores, left over: disk d-1"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_in_its_own_words() {
        for (value, part) in [
            (json!("boom"), "boom"),
            (json!({ "message": "later", "kind": "of-tomorrow" }), "of-tomorrow"),
            (json!({ "message": "odd", "kind": "quota", "leftovers": 7 }), "odd"),
            (json!({}), "the provider failed"),
            (json!(null), "null"),
        ] {
            let error = read(value);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(*read(json!({ "kind": "quota", "retry": 7 })).kind(), ErrorKind::Quota);
    }
}
