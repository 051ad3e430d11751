//! The extra variables of `provider:`: declared once, checked before the provider sees them.

use std::{borrow::Cow, mem::forget, time::Duration};

use cloud_providers::{OptionKind, OptionSpec, parse_bool, parse_go_duration, parse_list, parse_map};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ProviderConfig;

type Text = Cow<'static, str>;

/// An extra variable of `provider:`.
///
/// Name, type, default, required, secret and help stand here and nowhere else: checks, lists, samples and redaction come
/// from it. It is plain data, since a provider may live in another process.
///
/// ```
/// use testbed::Key;
///
/// const KEYS: &[Key] = &[
///     Key::text("rack", "The file that lists the machines").required(),
///     Key::int("patience", 0, 3600, "Seconds to wait for a machine that is taken").default("60"),
///     Key::text("password", "The password of the rack").env("RACK_PASSWORD").secret(),
/// ];
/// assert_eq!(KEYS[1].typed_default(), Some(60.into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Key {
    /// Its name.
    pub name: Text,
    /// What it means, in a sentence without final dot.
    #[serde(default)]
    pub help: Text,
    /// What it takes.
    #[serde(default)]
    pub kind: KeyKind,
    /// The value when it is not given, as it would be written; `None` when there is none.
    #[serde(default)]
    pub default: Option<Text>,
    /// The variable of the process environment that gives the value when the document does not.
    #[serde(default)]
    pub env: Option<Text>,
    /// It must be given.
    #[serde(default)]
    pub required: bool,
    /// It is never written to disk or shown.
    #[serde(default)]
    pub secret: bool,
}

/// What an extra variable takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeyKind {
    /// Whatever YAML can say; the provider looks at it itself.
    #[default]
    Any,
    /// Text.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number within the bounds.
    Int {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// A number with a fraction.
    Float,
    /// A duration in Go's syntax, such as `1.5h` or `5m0s`.
    Duration,
    /// A list of texts.
    List,
    /// A mapping.
    Map,
    /// One of these words, separated by `|`.
    Word(Text),
}

impl Key {
    /// Declares a variable of `kind`.
    pub const fn new(name: &'static str, kind: KeyKind, help: &'static str) -> Self {
        let (name, help) = (Cow::Borrowed(name), Cow::Borrowed(help));
        Self { name, help, kind, default: None, env: None, required: false, secret: false }
    }

    /// Declares a text.
    pub const fn text(name: &'static str, help: &'static str) -> Self {
        Self::new(name, KeyKind::Text, help)
    }

    /// Declares a boolean.
    pub const fn bool(name: &'static str, help: &'static str) -> Self {
        Self::new(name, KeyKind::Bool, help)
    }

    /// Declares a whole number within bounds.
    pub const fn int(name: &'static str, min: i64, max: i64, help: &'static str) -> Self {
        Self::new(name, KeyKind::Int { min, max }, help)
    }

    /// Declares a list of texts.
    pub const fn list(name: &'static str, help: &'static str) -> Self {
        Self::new(name, KeyKind::List, help)
    }

    /// Declares one of several words, which stand in `words` separated by `|`.
    pub const fn word(name: &'static str, words: &'static str, help: &'static str) -> Self {
        Self::new(name, KeyKind::Word(Cow::Borrowed(words)), help)
    }

    /// Sets the default.
    #[must_use]
    pub const fn default(mut self, text: &'static str) -> Self {
        // What is replaced is a borrowed text or nothing; a constant may not run its destructor.
        forget(self.default.replace(Cow::Borrowed(text)));
        self
    }

    /// Sets the variable of the process environment.
    #[must_use]
    pub const fn env(mut self, name: &'static str) -> Self {
        forget(self.env.replace(Cow::Borrowed(name)));
        self
    }

    /// Demands a value.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Keeps the value out of everything that is written or shown.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Returns the default as the document would have it.
    pub fn typed_default(&self) -> Option<Value> {
        let text = self.default.as_deref()?;
        Some(self.kind.read(text).unwrap_or_else(|_| text.into()))
    }
}

/// Readers of extra variables, for providers: what they get was checked against their [`Key`]s.
impl ProviderConfig {
    /// Returns a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.extra.get(key)?.as_str()
    }

    /// Returns a boolean, `false` where there is none.
    pub fn flag(&self, key: &str) -> bool {
        self.extra.get(key).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Returns a whole number.
    pub fn int(&self, key: &str) -> Option<i64> {
        self.extra.get(key)?.as_i64()
    }

    /// Returns a list of texts, empty where there is none.
    pub fn list(&self, key: &str) -> Vec<&str> {
        let items = self.extra.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(Value::as_str).collect()
    }

    /// Returns a duration.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        parse_go_duration(self.text(key)?).ok()
    }
}

impl KeyKind {
    /// Says what it takes, for messages and tables.
    pub fn expected(&self) -> String {
        match self {
            Self::Any => "any value".into(),
            Self::Text => "text".into(),
            Self::Bool => "true or false".into(),
            Self::Int { min, max } if *max == i64::MAX => format!("a whole number of at least {min}"),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Float => "a number".into(),
            Self::Duration => "a duration such as 300ms, 90s, 5m0s or 1.5h".into(),
            Self::List => "a list of texts".into(),
            Self::Map => "a mapping".into(),
            Self::Word(words) => format!("one of {}", words.replace('|', ", ")),
        }
    }

    /// Checks a value of the document and returns it in the one form that the provider gets.
    ///
    /// # Errors
    ///
    /// What was expected. It never quotes the value, which may be a secret.
    pub fn check(&self, value: &Value) -> Result<Value, String> {
        let bad = || self.expected();
        match (self, value) {
            (Self::Any, value) => Ok(value.clone()),
            // YAML turns `no` and `1.10` into something else before we see it, so text must say that it is text.
            (Self::Text | Self::Duration, Value::Bool(_)) => Err(format!("{}: put it in quotes", bad())),
            (Self::Text, Value::Number(n)) if n.is_f64() => Err(format!("{}: put it in quotes", bad())),
            (Self::Text, Value::Number(n)) => Ok(n.to_string().into()),
            (Self::Duration, Value::Number(n)) if n.as_i64() == Some(0) => Ok("0".into()),
            (Self::Bool, Value::Bool(_)) => Ok(value.clone()),
            (Self::Int { min, max }, Value::Number(n)) => {
                n.as_i64().filter(|n| (min..=max).contains(&n)).map(Value::from).ok_or_else(bad)
            }
            (Self::Float, Value::Number(_)) => Ok(value.clone()),
            (Self::List, Value::Array(items)) => {
                let items = items.iter().map(|item| Self::Text.check(item));
                items.collect::<Result<_, _>>().map(Value::Array).map_err(|_| bad())
            }
            (Self::Map, Value::Object(_)) => Ok(value.clone()),
            (_, Value::String(text)) => self.read(text),
            _ => Err(bad()),
        }
    }

    /// Reads the text form: what stands in a variable, in a default, or in quotes in the document.
    fn read(&self, text: &str) -> Result<Value, String> {
        let bad = || self.expected();
        match self {
            Self::Text => Ok(text.into()),
            Self::Any => Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
            Self::Bool => parse_bool(text).map(Value::from).map_err(|_| bad()),
            Self::Int { min, max } => {
                let number = text.trim().parse::<i64>().ok().filter(|n| (min..=max).contains(&n));
                number.map(Value::from).ok_or_else(bad)
            }
            Self::Float => {
                text.trim().parse::<f64>().ok().filter(|n| n.is_finite()).map(Value::from).ok_or_else(bad)
            }
            Self::Duration => parse_go_duration(text).map(|_| text.into()).map_err(|_| bad()),
            Self::List => Ok(parse_list(text).into()),
            Self::Map => {
                let pairs = parse_map(text).map_err(|_| "a mapping, or key=value pairs".to_owned())?;
                Ok(Value::Object(pairs.into_iter().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>()))
            }
            Self::Word(words) => words.split('|').find(|word| *word == text).map(Value::from).ok_or_else(bad),
        }
    }
}

/// An option of a cloud, for lists and for the check of names.
impl From<&OptionSpec> for Key {
    fn from(spec: &OptionSpec) -> Self {
        let kind = match spec.kind {
            OptionKind::Text => KeyKind::Text,
            OptionKind::Bool => KeyKind::Bool,
            OptionKind::Int { min, max } => KeyKind::Int { min, max },
            OptionKind::Float => KeyKind::Float,
            OptionKind::Duration => KeyKind::Duration,
            OptionKind::List => KeyKind::List,
            OptionKind::Map => KeyKind::Map,
            OptionKind::Word(words) => KeyKind::Word(words.join("|").into()),
            _ => KeyKind::Any,
        };
        Self {
            name: spec.flag.into(),
            help: spec.help.into(),
            kind,
            default: spec.default.map(Into::into),
            env: spec.env.map(Into::into),
            required: spec.required,
            secret: spec.secret,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_keep_their_type_or_are_refused() {
        let word = KeyKind::Word("fast|slow".into());
        for (kind, given, got) in [
            (KeyKind::Any, json!({"a": [1]}), json!({"a": [1]})),
            (KeyKind::Text, json!(7), json!("7")),
            (KeyKind::Bool, json!(true), json!(true)),
            (KeyKind::Bool, json!("off"), json!(false)),
            (KeyKind::Int { min: 0, max: 9 }, json!(7), json!(7)),
            (KeyKind::Int { min: 0, max: 9 }, json!("7"), json!(7)),
            (KeyKind::Float, json!(0.5), json!(0.5)),
            (KeyKind::Duration, json!(0), json!("0")),
            (KeyKind::Duration, json!("90s"), json!("90s")),
            (KeyKind::List, json!(["a", 1]), json!(["a", "1"])),
            (KeyKind::List, json!("a,b"), json!(["a", "b"])),
            (KeyKind::Map, json!({"k": [true]}), json!({"k": [true]})),
            (KeyKind::Map, json!("k=v"), json!({"k": "v"})),
            (word.clone(), json!("slow"), json!("slow")),
        ] {
            assert_eq!(kind.check(&given), Ok(got), "{kind:?} {given}");
        }
        for (kind, given) in [
            (KeyKind::Text, json!(false)),
            (KeyKind::Text, json!(1.5)),
            (KeyKind::Text, json!(["a"])),
            (KeyKind::Bool, json!(1)),
            (KeyKind::Int { min: 0, max: 9 }, json!(10)),
            (KeyKind::Int { min: 0, max: 9 }, json!(1.5)),
            (KeyKind::Float, json!("NaN")),
            (KeyKind::Duration, json!("soon")),
            (KeyKind::Duration, json!(5)),
            (KeyKind::List, json!([["a"]])),
            (KeyKind::Map, json!(["a"])),
            (word, json!("medium")),
        ] {
            let text = kind.check(&given).unwrap_err();
            assert!(text.starts_with(&kind.expected()), "{kind:?} {given}: {text}");
        }
    }

    #[test]
    fn a_key_crosses_to_another_process() {
        const KEY: Key = Key::word("mode", "fast|slow", "How").default("slow").env("MODE").secret();
        let json = serde_json::to_value(KEY).unwrap();
        assert_eq!(serde_json::from_value::<Key>(json).unwrap(), KEY);
        let least: Key = serde_json::from_value(json!({"name": "x"})).unwrap();
        assert_eq!((least.kind, least.required), (KeyKind::Any, false));
    }
}
