//! Where values come from besides the command line.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{OptionKind, OptionSpec};
use crate::{Error, ErrorKind, Result};

/// Answers for variables: the process environment, a ConfigMap with a Secret, or a `provider:` mapping.
pub trait EnvSource: Send + Sync {
    /// Returns the value of a variable. An empty value counts as not set.
    fn variable(&self, name: &str) -> Option<String>;

    /// Returns the value of an option. The default asks for the option's variable.
    fn option(&self, spec: &OptionSpec) -> Option<String> {
        spec.env.and_then(|name| self.variable(name)).filter(|v| !v.is_empty())
    }

    /// Names the source of an option for messages.
    fn describe(&self, spec: &OptionSpec) -> String {
        format!("variable {}", spec.env.unwrap_or(spec.flag))
    }
}

/// The environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnv;

impl EnvSource for ProcessEnv {
    fn variable(&self, name: &str) -> Option<String> {
        // A value that is not UTF-8 is not passed over: with its bad bytes replaced it fails where it is used.
        std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()).filter(|v| !v.is_empty())
    }
}

/// Variables held in memory: data of a ConfigMap and a Secret, or a test's.
#[derive(Clone, Default)]
pub struct MapEnv(BTreeMap<String, String>);

impl MapEnv {
    /// Collects variables; a later one replaces an earlier one of the same name.
    pub fn new<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(variables.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl std::fmt::Debug for MapEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values may be credentials.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl EnvSource for MapEnv {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.get(name).filter(|v| !v.is_empty()).cloned()
    }
}

/// A `provider:` mapping: keys are flag names with typed values; the provider's own prefix may be left out.
#[derive(Clone)]
pub struct Mapping {
    provider: String,
    values: BTreeMap<String, String>,
}

impl Mapping {
    /// Takes the mapping of `provider`. The key `type` is the provider's name and is passed over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming all keys that no option of `specs` has, with the known ones, and all values that
    /// are neither scalars, lists of scalars nor mappings of scalars.
    pub fn new(
        provider: &str,
        values: &serde_json::Map<String, Value>,
        specs: &[OptionSpec],
    ) -> Result<Self> {
        let mut texts = BTreeMap::new();
        let mut problems = Vec::new();
        for (key, value) in values.iter().filter(|(k, _)| *k != "type") {
            let full = format!("{provider}-{key}");
            let Some(spec) =
                specs.iter().find(|s| s.flag == key).or_else(|| specs.iter().find(|s| s.flag == full))
            else {
                problems.push(format!("unknown key {key:?}"));
                continue;
            };
            let text = match text_of(spec.kind, value) {
                Ok(text) => text,
                Err(expected) => {
                    problems.push(format!("{key:?} must be {expected}"));
                    continue;
                }
            };
            if texts.insert(spec.flag.to_owned(), text).is_some() {
                problems.push(format!("{key:?} is given twice, with and without the prefix {provider}-"));
            }
        }
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            let known = specs.iter().map(|s| s.flag).collect::<Vec<_>>().join(", ");
            return Err(error.with("provider", provider).with("known keys", known));
        }
        Ok(Self { provider: provider.to_owned(), values: texts })
    }
}

/// Writes a typed value in the text form of options, or says what was expected.
fn text_of(kind: OptionKind, value: &Value) -> Result<String, String> {
    match (kind, value) {
        (_, Value::Null) => Ok(String::new()),
        (OptionKind::List, Value::Array(items)) => {
            Ok(items.iter().map(part_of).collect::<Result<Vec<_>, _>>()?.join(","))
        }
        (OptionKind::Map, Value::Object(map)) => {
            let pairs = map.iter().map(|(k, v)| Ok(format!("{}={}", plain_part(k)?, part_of(v)?)));
            Ok(pairs.collect::<Result<Vec<_>, String>>()?.join(","))
        }
        (_, Value::String(text)) => Ok(text.clone()),
        // YAML turns `no` and `1.10` into something else before we see it, so text must say that it is text.
        (OptionKind::Text, Value::Bool(_)) => Err("text: put it in quotes".into()),
        (OptionKind::Text, Value::Number(n)) if n.is_f64() => Err("text: put it in quotes".into()),
        (_, Value::Bool(flag)) => Ok(flag.to_string()),
        (_, Value::Number(n)) => Ok(n.to_string()),
        _ => Err(kind.expected()),
    }
}

/// Writes one value of a list or of pairs.
fn part_of(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => plain_part(text),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(n) => Ok(n.to_string()),
        _ => Err("a list of texts or a mapping of texts".into()),
    }
}

/// Refuses what the text form of lists would take apart.
fn plain_part(text: &str) -> Result<String, String> {
    if text.contains(',') {
        return Err("without commas in a single value: write it as several".into());
    }
    Ok(text.to_owned())
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("provider", &self.provider)
            .field("keys", &self.values.keys())
            .finish()
    }
}

impl EnvSource for Mapping {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn option(&self, spec: &OptionSpec) -> Option<String> {
        self.values.get(spec.flag).filter(|v| !v.is_empty()).cloned()
    }

    fn describe(&self, spec: &OptionSpec) -> String {
        format!("key {} of provider {}", spec.flag, self.provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::text("aws-region", "region").env("AWS_REGION"),
        OptionSpec::bool("disable-cvm", "no CVM"),
    ];

    #[test]
    fn a_mapping_takes_typed_values_and_short_keys() {
        let json = serde_json::json!({"type": "aws", "region": "eu-1", "disable-cvm": false});
        let mapping = Mapping::new("aws", json.as_object().unwrap(), SPECS).unwrap();
        assert_eq!(mapping.option(&SPECS[0]).unwrap(), "eu-1");
        assert_eq!(mapping.option(&SPECS[1]).unwrap(), "false");
    }

    #[test]
    fn unknown_keys_are_refused_with_the_known_ones() {
        let json = serde_json::json!({"regoin": "x", "zone": [{}]});
        let text = Mapping::new("aws", json.as_object().unwrap(), SPECS).unwrap_err().to_string();
        assert!(
            text.contains("regoin") && text.contains("zone") && text.contains("aws-region, disable-cvm"),
            "{text}"
        );
    }

    #[test]
    fn values_keep_their_meaning_or_are_refused() {
        const MORE: &[OptionSpec] = &[
            OptionSpec::text("zone", ""),
            OptionSpec::new("types", OptionKind::List, ""),
            OptionSpec::new("tags", OptionKind::Map, ""),
            OptionSpec::int("size", 0, 99, ""),
        ];
        let read = |json: Value| {
            let mapping = Mapping::new("x", json.as_object().unwrap(), MORE)?;
            Ok::<_, Error>(MORE.iter().filter_map(|s| mapping.option(s)).collect::<Vec<_>>())
        };
        let good = serde_json::json!({"zone": 7, "types": ["a", 1], "tags": {"k": "v", "n": 2}, "size": 5});
        assert_eq!(read(good).unwrap(), ["7", "a,1", "k=v,n=2", "5"]);
        assert_eq!(read(serde_json::json!({"zone": null, "types": "a,b"})).unwrap(), ["a,b"]);
        for (bad, part) in [
            (serde_json::json!({"zone": false}), "put it in quotes"),
            (serde_json::json!({"zone": 1.5}), "put it in quotes"),
            (serde_json::json!({"zone": ["a"]}), "must be text"),
            (serde_json::json!({"types": ["a,b"]}), "without commas"),
            (serde_json::json!({"tags": {"a,b": "c"}}), "without commas"),
            (serde_json::json!({"types": [["a"]]}), "a list of texts"),
            (serde_json::json!({"size": {"a": 1}}), "a whole number"),
        ] {
            let text = read(bad).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
