//! The check of what is said to a provider.

use cloud_providers::{EnvSource, Error, ErrorKind, Result};
use serde_json::Value;

use crate::{Key, ProviderConfig, near::hint};

/// Returns the declaration that a key of the document stands for. The provider's own prefix may be left out.
pub(super) fn declared<'a>(provider: &str, keys: &'a [Key], given: &str) -> Option<&'a Key> {
    let full = format!("{provider}-{given}");
    keys.iter().find(|key| key.name == given).or_else(|| keys.iter().find(|key| key.name == full))
}

/// Checks names and types, takes what is open from the environment and from the defaults, and demands what is required.
///
/// The result is a value of its own: no two uses share a default.
pub(super) fn check(
    provider: &str,
    keys: &[Key],
    config: &ProviderConfig,
    env: &dyn EnvSource,
) -> Result<ProviderConfig> {
    let mut problems = Vec::new();
    // Said once what is wrong with it, a key is not missing as well.
    let mut refused = Vec::new();
    let mut checked = config.clone();
    checked.extra.clear();
    for (given, value) in &config.extra {
        let place = place(config, given);
        let Some(key) = declared(provider, keys, given) else {
            let near = hint(given, keys.iter().map(|key| &*key.name));
            problems.push(format!("{place}unknown key {given:?}{near}"));
            continue;
        };
        // An empty value is one that was not given, as for variables.
        if value.is_null() || value.as_str().is_some_and(str::is_empty) {
            continue;
        }
        match key.kind.check(value) {
            Ok(value) => {
                if checked.extra.insert(key.name.to_string(), value).is_some() {
                    problems
                        .push(format!("{place}{:?} is given twice, with and without its prefix", key.name));
                }
            }
            Err(expected) => {
                refused.push(key);
                problems.push(format!("{place}{given:?} must be {expected}"));
            }
        }
    }
    for key in keys {
        if checked.extra.contains_key(&*key.name) || refused.contains(&key) {
            continue;
        }
        let variable = key.env.as_deref().and_then(|name| Some((name, env.variable(name)?)));
        let value = match variable {
            Some((name, text)) => match key.kind.check(&Value::String(text)) {
                Ok(value) => Some(value),
                Err(expected) => {
                    problems.push(format!("variable {name} must be {expected}"));
                    continue;
                }
            },
            None => key.typed_default(),
        };
        match value {
            Some(value) => {
                checked.extra.insert(key.name.to_string(), value);
            }
            None if key.required => problems.push(missing(key)),
            None => {}
        }
    }
    let Some(error) = Error::all(ErrorKind::Config, problems) else { return Ok(checked) };
    Err(error.with("provider", provider).with("known keys", list(keys)))
}

/// Checks names alone, where somebody else reads the values.
pub(super) fn check_names(provider: &str, keys: &[Key], config: &ProviderConfig) -> Result<()> {
    let unknown = config.extra.keys().filter(|given| declared(provider, keys, given).is_none());
    let problems = unknown.map(|given| {
        let short =
            keys.iter().map(|key| key.name.strip_prefix(&format!("{provider}-")).unwrap_or(&key.name));
        format!("{}unknown key {given:?}{}", place(config, given), hint(given, short))
    });
    match Error::all(ErrorKind::Config, problems.collect()) {
        Some(error) => Err(error.with("provider", provider).with("known keys", list(keys))),
        None => Ok(()),
    }
}

fn missing(key: &Key) -> String {
    let or = key.env.as_deref().map(|name| format!(" or the variable {name}")).unwrap_or_default();
    let help = if key.help.is_empty() { String::new() } else { format!(" ({})", key.help) };
    format!("{:?} is missing: set it under provider{or}{help}", key.name)
}

fn list(keys: &[Key]) -> String {
    match keys {
        [] => "none".to_owned(),
        _ => keys.iter().map(|key| &*key.name).collect::<Vec<_>>().join(", "),
    }
}

/// Returns where a key stands in the document, in front of a message.
pub(super) fn place(config: &ProviderConfig, key: &str) -> String {
    config.places.of(key).map(|place| format!("{place}: ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;
    use serde_json::json;

    use super::*;
    use crate::Place;

    const KEYS: &[Key] = &[
        Key::text("my-rack", "The file of the machines").required(),
        Key::int("patience", 0, 60, "Seconds").default("7"),
        Key::text("password", "The password").env("RACK_PASSWORD").secret().required(),
        Key::list("tags", "Words"),
        Key::bool("loud", "Talks"),
    ];

    fn read(config: ProviderConfig, env: &MapEnv) -> Result<ProviderConfig> {
        check("my", KEYS, &config, env)
    }

    #[test]
    fn values_come_from_the_document_then_a_variable_then_the_default() {
        let env = MapEnv::new([("RACK_PASSWORD", "canary")]);
        let config = ProviderConfig::new("my")
            .with("rack", "r.txt")
            .with("tags", json!(["a", 1]))
            .with("loud", true)
            .with("patience", Value::Null);
        let checked = read(config.clone(), &env).unwrap();
        assert_eq!((checked.text("my-rack"), checked.text("password")), (Some("r.txt"), Some("canary")));
        assert_eq!((checked.int("patience"), checked.flag("loud")), (Some(7), true));
        assert_eq!(checked.list("tags"), ["a", "1"]);
        let own = read(config.with("password", "own").with("patience", 9), &env).unwrap();
        assert_eq!((own.text("password"), own.int("patience")), (Some("own"), Some(9)));
    }

    #[test]
    fn everything_wrong_is_told_at_once_and_no_value_is() {
        let config =
            ProviderConfig::new("my").with("patience", 99).with("pasword", "canary").with("loud", "canary");
        let text = read(config, &MapEnv::default()).unwrap_err().to_string();
        for part in [
            "\"patience\" must be a whole number from 0 to 60",
            "unknown key \"pasword\", did you mean \"password\"?",
            "\"loud\" must be true or false",
            "\"my-rack\" is missing: set it under provider (The file of the machines)",
            "\"password\" is missing: set it under provider or the variable RACK_PASSWORD",
            "known keys: my-rack, patience, password, tags, loud",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("canary") && text.contains("5 problems"), "{text}");
        let config = ProviderConfig::new("my").with("rack", "a").with("my-rack", "b").with("password", "c");
        assert!(read(config, &MapEnv::default()).unwrap_err().to_string().contains("given twice"));
        let bad = MapEnv::new([("RACK_PASSWORD", "p")]);
        let none: &[Key] = &[];
        let text = check("x", none, &ProviderConfig::new("x").with("y", 1), &bad).unwrap_err().to_string();
        assert!(text.contains("known keys: none"), "{text}");
    }

    #[test]
    fn a_problem_says_where_in_the_document_it_is() {
        let place = Place { file: "lab.yaml".into(), line: 3, column: 5 };
        let mut config =
            ProviderConfig::new("my").with("pasword", "x").with("rack", "r").with("password", "p");
        config.places = [("pasword".to_owned(), place)].into_iter().collect();
        let text = read(config, &MapEnv::default()).unwrap_err().to_string();
        assert!(text.starts_with("lab.yaml:3:5: unknown key \"pasword\""), "{text}");
    }

    #[test]
    fn two_uses_share_no_defaults() {
        let env = MapEnv::new([("RACK_PASSWORD", "p")]);
        let mut first = read(ProviderConfig::new("my").with("rack", "a"), &env).unwrap();
        first.extra.insert("patience".into(), 1.into());
        first.extra.insert("tags".into(), json!(["x"]));
        let second = read(ProviderConfig::new("my").with("rack", "a"), &env).unwrap();
        assert_eq!((second.int("patience"), second.list("tags").len()), (Some(7), 0));
    }
}
