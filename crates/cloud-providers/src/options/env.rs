//! Where values come from besides the command line.

use std::collections::BTreeMap;

use serde_json::Value;

use super::OptionSpec;
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
        std::env::var(name).ok().filter(|v| !v.is_empty())
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
            let Some(text) = text_of(value) else {
                problems.push(format!("{key:?} must be {}", spec.kind.expected()));
                continue;
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

/// Writes a typed value in the text form of options.
fn text_of(value: &Value) -> Option<String> {
    let scalar = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    };
    match value {
        Value::Null => Some(String::new()),
        Value::Array(items) => Some(items.iter().map(scalar).collect::<Option<Vec<_>>>()?.join(",")),
        Value::Object(map) => {
            let pairs =
                map.iter().map(|(k, v)| Some(format!("{k}={}", scalar(v)?))).collect::<Option<Vec<_>>>()?;
            Some(pairs.join(","))
        }
        other => scalar(other),
    }
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
}
