//! As much of JSON Schema as the schema of a reservation uses. Another word in a schema is a panic.

use regex::Regex;
use serde_json::Value;

/// Returns where and why `value` does not fit `schema`; `None` when it does.
pub(crate) fn misfit(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let rules = match schema {
        Value::Bool(true) => return None,
        Value::Object(rules) => rules,
        other => panic!("no schema: {other}"),
    };
    rules.iter().find_map(|(word, rule)| {
        let wrong = |what: &str| Some(format!("{at}: {what} {rule}: {value}"));
        let fits = |schema: &Value| misfit(root, schema, value, at).is_none();
        match word.as_str() {
            "$schema" | "title" | "description" | "$defs" | "patternProperties" => None,
            "$ref" => {
                let path =
                    rule.as_str().and_then(|r| r.strip_prefix('#')).expect("a reference into the schema");
                let target = root.pointer(path).unwrap_or_else(|| panic!("{path} is not there"));
                misfit(root, target, value, at)
            }
            "type" => {
                let kinds: Vec<&str> = match rule {
                    Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
                    kind => kind.as_str().into_iter().collect(),
                };
                (!kinds.iter().any(|kind| is_a(kind, value))).then(|| wrong("no")).flatten()
            }
            "enum" => (!rule.as_array()?.contains(value)).then(|| wrong("none of")).flatten(),
            "pattern" => {
                let text = value.as_str()?;
                (!Regex::new(rule.as_str()?).unwrap().is_match(text)).then(|| wrong("not like")).flatten()
            }
            "minimum" => (value.as_f64()? < rule.as_f64()?).then(|| wrong("below")).flatten(),
            "maximum" => (value.as_f64()? > rule.as_f64()?).then(|| wrong("above")).flatten(),
            "minItems" => {
                ((value.as_array()?.len() as u64) < rule.as_u64()?).then(|| wrong("fewer than")).flatten()
            }
            "anyOf" => (!rule.as_array()?.iter().any(fits)).then(|| wrong("fits none of")).flatten(),
            "oneOf" => (rule.as_array()?.iter().filter(|s| fits(s)).count() != 1)
                .then(|| wrong("not one of"))
                .flatten(),
            "required" => {
                let fields = value.as_object()?;
                let missing =
                    rule.as_array()?.iter().filter_map(Value::as_str).find(|k| !fields.contains_key(*k));
                missing.map(|key| format!("{at}: there is no {key}"))
            }
            "items" => value
                .as_array()?
                .iter()
                .enumerate()
                .find_map(|(n, item)| misfit(root, rule, item, &format!("{at}/{n}"))),
            "properties" => rule
                .as_object()?
                .iter()
                .find_map(|(key, schema)| misfit(root, schema, value.get(key)?, &format!("{at}/{key}"))),
            "additionalProperties" => value.as_object()?.iter().find_map(|(key, value)| {
                let known = rules.get("properties").is_some_and(|p| p.get(key).is_some());
                let free = rules.get("patternProperties").is_some() && key.starts_with("x-");
                match rule {
                    _ if known || free => None,
                    Value::Bool(false) => Some(format!("{at}: no key {key} is known")),
                    schema => misfit(root, schema, value, &format!("{at}/{key}")),
                }
            }),
            other => panic!("this validator does not know {other}"),
        }
    })
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no kind of JSON: {other}"),
    }
}
