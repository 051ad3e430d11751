//! The options and what they mean once parsed.

use std::time::Duration;

use cloud_providers::{OptionKind, OptionSpec, Values, secrecy::SecretString, tags};

/// The most tags that the cloud lets a machine have.
pub(crate) const TAG_LIMIT: usize = 50;
/// Tags of ours: those of `tags::for_request` and their readable copies.
const OWN_TAGS: usize = 9;

/// Every option of the provider. An option of the cloud's own (region, network, image) is one more entry here and one
/// more field of `Config`.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("__name__-endpoint", "Address of the cloud's interface")
        .env("__ENV___ENDPOINT")
        .required(),
    OptionSpec::text("__name__-key", "Key of the account").env("__ENV___KEY").required().secret(),
    OptionSpec::new("__name__-tags", OptionKind::Map, "More tags for every machine").env("__ENV___TAGS"),
    OptionSpec::new("__name__-call-timeout", OptionKind::Duration, "Longest time of one call to the cloud")
        .env("__ENV___CALL_TIMEOUT")
        .default("30s"),
    OptionSpec::new(
        "__name__-start-timeout",
        OptionKind::Duration,
        "Longest time in which a machine comes up or goes",
    )
    .env("__ENV___START_TIMEOUT")
    .default("5m0s"),
];

/// Parsed options.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) endpoint: String,
    pub(crate) key: SecretString,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) call_timeout: Duration,
    pub(crate) start_timeout: Duration,
}

impl Config {
    /// Reads the parsed values and adds what is wrong with them to `problems`.
    pub(crate) fn read(values: &Values, problems: &mut Vec<String>) -> Self {
        let endpoint = values.text("__name__-endpoint");
        // An empty one was told already: it is required.
        if !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            problems.push(format!(
                "-__name__-endpoint or __ENV___ENDPOINT is {endpoint:?}, expected a URL such as https://api.example.org"
            ));
        }
        let user_tags = values.map("__name__-tags");
        if let Err(error) = tags::check_user_tags(user_tags.iter().map(|(key, _)| key.as_str())) {
            problems.push(format!("-__name__-tags or __ENV___TAGS: {error}"));
        }
        if user_tags.len() + OWN_TAGS > TAG_LIMIT {
            let most = TAG_LIMIT - OWN_TAGS;
            problems.push(format!("-__name__-tags or __ENV___TAGS has {} tags, at most {most} fit", user_tags.len()));
        }
        let call_timeout = values.duration("__name__-call-timeout");
        if call_timeout.is_zero() {
            problems.push("-__name__-call-timeout or __ENV___CALL_TIMEOUT is 0s, expected more than that".to_owned());
        }
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            key: values.secret("__name__-key").unwrap_or_else(|| String::new().into()),
            tags: user_tags,
            call_timeout,
            start_timeout: values.duration("__name__-start-timeout"),
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings};

    use super::*;

    fn read(env: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&MapEnv::new(env.iter().copied()));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        (config, problems)
    }

    #[test]
    fn endpoint_and_key_are_enough() {
        let (config, problems) = read(&[("__ENV___ENDPOINT", "http://localhost:1/"), ("__ENV___KEY", "k")]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(config.endpoint, "http://localhost:1");
        assert_eq!(config.call_timeout, Duration::from_secs(30));
        assert!(!format!("{config:?}").contains("\"k\""), "the key is shown");
    }

    #[test]
    fn all_problems_are_named_together() {
        let many: String = (0..TAG_LIMIT).map(|n| format!("t{n}=x,")).collect();
        let (_, problems) = read(&[
            ("__ENV___ENDPOINT", "localhost"),
            ("__ENV___TAGS", &format!("{many}peerpod-x=y")),
            ("__ENV___CALL_TIMEOUT", "0s"),
            ("__ENV___START_TIMEOUT", "soon"),
        ]);
        let text = problems.join("\n");
        for part in [
            "__ENV___ENDPOINT is",
            "__ENV___KEY is required",
            "peerpod-x",
            "at most",
            "__ENV___CALL_TIMEOUT is 0s",
            "__ENV___START_TIMEOUT",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
