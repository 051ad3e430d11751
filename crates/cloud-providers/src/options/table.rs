//! What the docs and other programs need of a set of options: a table, and a schema of the `provider:` mapping.

use serde_json::{Map, Value, json};

use super::{OptionKind, OptionSpec, parse_bool, parse_list, parse_map};

/// Writes the options as a Markdown table, in the order of declaration.
///
/// ```
/// # use cloud_providers::{OptionSpec, options_table};
/// let specs = [OptionSpec::int("size", 1, 64, "Disk in GiB").env("SIZE").default("30")];
/// assert_eq!(
///     options_table(&specs),
///     "| flag | variable | value | default | |\n| --- | --- | --- | --- | --- |\n\
///      | `-size` | `SIZE` | a whole number from 1 to 64 | `30` | Disk in GiB |\n"
/// );
/// ```
pub fn options_table(specs: &[OptionSpec]) -> String {
    let mut table =
        String::from("| flag | variable | value | default | |\n| --- | --- | --- | --- | --- |\n");
    for spec in specs {
        let env = spec.env.map(code).unwrap_or_default();
        let default = match (spec.required, spec.default) {
            (true, _) => "required".to_owned(),
            (false, Some(text)) if spec.secret && !text.is_empty() => "secret".to_owned(),
            (false, Some(text)) if !text.is_empty() => code(text),
            (false, _) => String::new(),
        };
        let secret = if spec.secret { " (secret)" } else { "" };
        let row = [
            code(&format!("-{}", spec.flag)),
            env,
            cell(&spec.kind.expected()),
            default,
            format!("{}{secret}", cell(spec.help)),
        ];
        table.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    table
}

fn code(text: &str) -> String {
    format!("`{}`", cell(text))
}

/// Escapes what would end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// Returns the JSON schema of the `provider:` mapping of `provider`: what [`super::Mapping`] takes.
///
/// Keys are flag names, and the same without the provider's prefix. A required option may also come from a flag or a
/// variable, so the schema demands none; only [`crate::Cloud::new_provider`] knows all sources.
pub fn mapping_schema(provider: &str, specs: &[OptionSpec]) -> Value {
    let mut properties = Map::new();
    properties.insert("type".into(), json!({ "const": provider, "description": "The provider's name" }));
    for spec in specs {
        let schema = option_schema(spec);
        // A full name wins over a short one that happens to be equal.
        if let Some(short) = spec.flag.strip_prefix(&format!("{provider}-"))
            && !specs.iter().any(|s| s.flag == short)
            && short != "type"
        {
            properties.insert(short.to_owned(), schema.clone());
        }
        properties.insert(spec.flag.to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("provider {provider}"),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn option_schema(spec: &OptionSpec) -> Value {
    let scalar = json!({ "type": ["string", "integer", "number", "boolean"] });
    let part = json!({ "anyOf": [
        { "type": "string", "pattern": "^[^,]*$" },
        { "type": ["integer", "number", "boolean"] },
    ]});
    let mut schema = match spec.kind {
        OptionKind::Text => json!({ "type": ["string", "integer", "null"] }),
        OptionKind::Bool => {
            json!({ "anyOf": [{ "type": ["boolean", "null"] }, { "enum": ["", "true", "false", "yes", "no", "on", "off"] }] })
        }
        OptionKind::Int { min, max } => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            { "type": "string", "pattern": "^ *[+-]?[0-9]+ *$|^$" },
            { "type": "null" },
        ]}),
        OptionKind::Float => {
            json!({ "anyOf": [{ "type": ["number", "null"] }, { "type": "string" }] })
        }
        OptionKind::Duration => json!({ "anyOf": [
            { "type": "string", "pattern": "^([+]?([0-9]*[.]?[0-9]*(ns|us|µs|μs|ms|s|m|h))+|[+]?0)?$" },
            { "enum": [0, null] },
        ]}),
        OptionKind::List => {
            json!({ "anyOf": [{ "type": "array", "items": part }, scalar, { "type": "null" }] })
        }
        OptionKind::Map => json!({ "anyOf": [
            { "type": "object", "additionalProperties": part, "propertyNames": { "pattern": "^[^,]*$" } },
            { "type": ["string", "null"] },
        ]}),
        OptionKind::Word(words) => {
            let words: Vec<&str> = words.iter().copied().chain([""]).collect();
            json!({ "anyOf": [{ "enum": words }, { "type": "null" }] })
        }
    };
    let fields = schema.as_object_mut().expect("every arm is an object");
    let secret = if spec.secret { " (secret)" } else { "" };
    fields.insert("description".into(), format!("{}{secret}", spec.help).into());
    if let Some(default) = spec.default.filter(|d| !d.is_empty() && !spec.secret) {
        fields.insert("default".into(), typed(spec.kind, default));
    }
    schema
}

/// Returns a default as the type that one would write in a mapping.
fn typed(kind: OptionKind, text: &str) -> Value {
    match kind {
        OptionKind::Bool => parse_bool(text).map_or(text.into(), Value::from),
        OptionKind::Int { .. } => text.trim().parse::<i64>().map_or(text.into(), Value::from),
        OptionKind::Float => text.trim().parse::<f64>().map_or(text.into(), Value::from),
        OptionKind::List => parse_list(text).into(),
        OptionKind::Map => match parse_map(text) {
            Ok(pairs) => Value::Object(pairs.into_iter().map(|(k, v)| (k, v.into())).collect()),
            Err(_) => text.into(),
        },
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mapping;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::text("aws-region", "Region, a|b").env("AWS_REGION").required(),
        OptionSpec::text("aws-key", "Key").env("AWS_KEY").secret().default("canary"),
        OptionSpec::bool("disable-cvm", "No CVM").default("true"),
        OptionSpec::int("size", 1, 64, "Size").default("30"),
        OptionSpec::new("timeout", OptionKind::Duration, "Limit").default("5m0s"),
        OptionSpec::new("groups", OptionKind::List, "Groups").default("a,b"),
        OptionSpec::new("tags", OptionKind::Map, "Tags").default("k=v"),
        OptionSpec::new("mode", OptionKind::Word(&["fast", "slow"]), "Mode"),
        OptionSpec::new("ratio", OptionKind::Float, "Ratio").default("0.5"),
    ];

    #[test]
    fn the_table_has_a_row_per_option_and_no_secret() {
        let table = options_table(SPECS);
        assert_eq!(table.lines().count(), SPECS.len() + 2);
        assert!(
            table.contains("| `-aws-region` | `AWS_REGION` | text | required | Region, a\\|b |"),
            "{table}"
        );
        assert!(table.contains("| `-aws-key` | `AWS_KEY` | text | secret | Key (secret) |"), "{table}");
        assert!(table.contains("| `-mode` |  | one of fast, slow |  | Mode |"), "{table}");
        assert!(!table.contains("canary"));
        for row in table.lines() {
            let bars = row.replace("\\|", "").matches('|').count();
            assert_eq!(bars, 6, "{row}");
        }
    }

    #[test]
    fn the_schema_has_the_keys_that_a_mapping_takes() {
        let schema = mapping_schema("aws", SPECS);
        assert_eq!(schema["additionalProperties"], false);
        let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), SPECS.len() + 3, "{keys:?}");
        for key in keys {
            let one = json!({ key.as_str(): null });
            assert!(Mapping::new("aws", one.as_object().unwrap(), SPECS).is_ok(), "{key}");
        }
        assert!(!schema.to_string().contains("canary"));
    }

    #[test]
    fn defaults_in_the_schema_are_typed() {
        let schema = mapping_schema("aws", SPECS);
        let default = |key: &str| schema["properties"][key]["default"].clone();
        assert_eq!(default("disable-cvm"), json!(true));
        assert_eq!(default("size"), json!(30));
        assert_eq!(default("timeout"), json!("5m0s"));
        assert_eq!(default("groups"), json!(["a", "b"]));
        assert_eq!(default("tags"), json!({"k": "v"}));
        assert_eq!(default("ratio"), json!(0.5));
    }
}
