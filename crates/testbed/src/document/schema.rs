//! The JSON schema of the document, made from the table of its keys.

use serde_json::{Map, Value, json};

use super::{
    draft::MOST,
    keys::{self, Keys},
};

/// Returns the JSON schema of `reservation.yaml`, for editors and other programs.
///
/// It says what stands where. What must fit together (names of networks, roles, providers) is checked by
/// [`super::check`] alone. The file `reservation.schema.json` of this crate has the same.
pub fn schema() -> Value {
    let mut document = object(keys::TOP);
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    document["title"] = "reservation.yaml".into();
    document["oneOf"] = json!([{ "required": ["provider"] }, { "required": ["providers"] }]);
    document["$defs"] = definitions();
    document
}

/// Returns the schema of a mapping with `keys`.
fn object(keys: Keys) -> Value {
    let mut properties = Map::new();
    for key in keys {
        for (name, alias) in std::iter::once((key.name, false)).chain(key.aliases.iter().map(|a| (*a, true)))
        {
            let help = if alias { format!("The same as {}", key.name) } else { key.help.to_owned() };
            properties.insert(name.into(), json!({ "$ref": at(key.shape), "description": help }));
        }
    }
    json!({
        "type": "object",
        "properties": properties,
        "patternProperties": { "^x-": true },
        "additionalProperties": false,
    })
}

fn at(shape: &str) -> String {
    format!("#/$defs/{shape}")
}

fn to(shape: &str) -> Value {
    json!({ "$ref": at(shape) })
}

/// Returns the schema of a mapping with any keys.
fn map_of(value: Value) -> Value {
    json!({ "type": "object", "additionalProperties": value })
}

/// Returns the schema of a list, or of one value in its place.
fn some_of(shape: &str) -> Value {
    json!({ "anyOf": [to(shape), { "type": "array", "items": to(shape) }] })
}

/// Returns the schema of a whole number.
fn int(least: u64, most: u64) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

fn definitions() -> Value {
    let mut all = Map::new();
    for part in [words(), amounts(), machines(), around()] {
        let Value::Object(part) = part else { unreachable!("each part is an object") };
        all.extend(part);
    }
    all.into()
}

/// Texts of some form.
fn words() -> Value {
    json!({
        "text": { "type": ["string", "number", "boolean"] },
        "texts": some_of("text"),
        "percent": { "type": ["string", "number"] },
        "bool": { "type": "boolean" },
        "word": { "type": ["string", "number", "boolean"], "pattern": "^\\S+$" },
        "words": some_of("word"),
        "label": { "type": ["string", "number"], "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" },
        "ip": { "type": "string", "pattern": "^[0-9a-fA-F:.]+$" },
        "ips": some_of("ip"),
        "cidr": { "type": "string", "pattern": "^[0-9a-fA-F:.]+/[0-9]+$" },
        "shortage": { "enum": ["strict", "lenient", "debug"] },
        "distribution": { "enum": ["strict", "lenient", "debug"] },
        "perprovider": { "anyOf": [to("text"), map_of(to("text"))] },
    })
}

/// Numbers, some of them with a unit.
fn amounts() -> Value {
    let amount = json!({ "anyOf": [
        int(1, 1 << 30),
        { "type": "string", "pattern": "^ *[0-9]+ *[MGT](i|iB|B)? *$" },
    ]});
    json!({
        "count": int(0, MOST),
        "vcpus": int(1, 4096),
        "gpus": int(0, 1024),
        "port": int(1, 65535),
        "memory": amount,
        "disk": amount,
        "size": object(keys::SIZE),
        "ports": some_of("reachable"),
        "reachable": { "anyOf": [int(1, 65535), { "type": "string", "pattern": "^[0-9]+(/(tcp|udp))?$" }] },
    })
}

/// Machines in every style.
fn machines() -> Value {
    let mut host = object(keys::HOST);
    host["required"] = json!(["address"]);
    let mut count = object(keys::COUNT);
    count["anyOf"] = json!([{ "required": ["count"] }, { "required": ["number"] }]);
    let mut explicit = object(keys::EXPLICIT);
    explicit["required"] = json!(["machines"]);
    let by_role = map_of(json!({ "anyOf": [to("count"), count] }));
    json!({
        "host": host,
        "kinds": map_of(json!({ "anyOf": [by_role, some_of("host")] })),
        "resources": { "anyOf": [to("kinds"), explicit] },
        "topology": map_of(to("kinds")),
        "machines": { "type": "array", "items": object(keys::MACHINE) },
        "flavours": map_of(object(keys::FLAVOUR)),
        "images": map_of(to("perprovider")),
        "variables": { "type": "object" },
    })
}

/// What stands around the machines.
fn around() -> Value {
    let mut provider = json!({ "type": "object", "required": ["type"] });
    // Whoever knows the provider knows its other keys.
    provider["properties"] = json!({
        "type": { "$ref": at("word"), "description": "The provider's name" },
        "resources": { "$ref": at("resources"), "description": "The machines of this provider" },
        "role_distribution": { "$ref": at("distribution"), "description": "The same as shortage, in the words of Enos" },
    });
    json!({
        "provider": { "anyOf": [to("word"), provider] },
        "providers": { "type": "array", "items": to("provider"), "minItems": 1 },
        "network": { "anyOf": [to("word"), object(keys::NETWORK)] },
        "networks": { "anyOf": [
            { "type": "array", "items": to("network") },
            map_of(json!({ "anyOf": [to("network"), { "type": "null" }] })),
            to("network"),
        ]},
        "hooks": object(keys::HOOKS),
        "hooklist": some_of("hook"),
        "hook": { "anyOf": [to("text"), object(keys::HOOK)] },
        "constraints": object(keys::CONSTRAINTS),
        "pairs": some_of("pair"),
        "pair": object(keys::PAIR),
    })
}
