//! What the standard variables of OpenTelemetry say.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use cloud_providers::EnvSource;
use secrecy::SecretString;

/// Where spans go below the address that is given for every kind of telemetry.
const PATH: &str = "v1/traces";
const TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(5);
const QUEUE: usize = 2048;
const BATCH: usize = 512;

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sampler {
    /// As the caller says; those that begin here are.
    Parent,
    /// All of them, whatever the caller says.
    All,
    /// None.
    Nothing,
}

/// Where spans go, and how.
#[derive(Clone)]
#[non_exhaustive]
pub struct TraceSettings {
    /// The address of the collector.
    pub endpoint: String,
    /// Headers of each request; their values are often tokens.
    pub headers: Vec<(String, SecretString)>,
    /// How long a request may take.
    pub timeout: Duration,
    /// CA of the collector, instead of those of the system.
    pub certificate: Option<PathBuf>,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// What describes this program, `service.name` among it.
    pub resource: BTreeMap<String, String>,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Spans that wait; those beyond are dropped.
    pub queue: usize,
    /// The most spans of a request.
    pub batch: usize,
    /// How long a span waits for others before it is sent.
    pub pause: Duration,
}

impl fmt::Debug for TraceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("TraceSettings")
            .field("endpoint", &self.endpoint)
            .field("headers", &headers)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}

impl TraceSettings {
    /// Reads the variables. Without an address there is nothing to do, and no variable is looked at.
    ///
    /// Adds what cannot be used to `problems`; values of headers are never quoted.
    pub fn read(env: &dyn EnvSource, problems: &mut Vec<String>) -> Option<Self> {
        // What is said about traces counts before what is said about everything.
        let variable = |name: &str| {
            let given = |key: String| env.variable(&key).map(|value| (key, value.trim().to_owned()));
            given(format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| given(format!("OTEL_EXPORTER_OTLP_{name}")))
                .filter(|(_, value)| !value.is_empty())
        };
        let is = |key: &str, word: &str| {
            env.variable(key).is_some_and(|value| value.trim().eq_ignore_ascii_case(word))
        };
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return None;
        }
        let (key, endpoint) = variable("ENDPOINT")?;
        let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        // An address may hold a password, so it is not quoted.
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/') || rest.contains('@')) {
            problems.push(format!(
                "{key} is no address such as http://127.0.0.1:4318; a name and a password do not belong in it, see OTEL_EXPORTER_OTLP_HEADERS"
            ));
        }
        let endpoint = match key.ends_with("_TRACES_ENDPOINT") {
            true => endpoint,
            false => format!("{}/{PATH}", endpoint.trim_end_matches('/')),
        };
        if let Some((key, exporter)) =
            env.variable("OTEL_TRACES_EXPORTER").map(|v| ("OTEL_TRACES_EXPORTER", v))
            && exporter.trim() != "otlp"
            && !exporter.trim().is_empty()
        {
            problems.push(format!("{key} is {exporter:?}, expected otlp or none"));
        }
        let mut word = |name: &str, known: &[&str]| {
            let (key, value) = variable(name)?;
            if !known.contains(&value.as_str()) {
                problems.push(format!("{key} is {value:?}, expected {}", known.join(" or ")));
            }
            Some(value)
        };
        word("PROTOCOL", &["http/protobuf"]);
        let gzip = word("COMPRESSION", &["gzip", "none"]).is_some_and(|value| value == "gzip");
        let headers = match variable("HEADERS") {
            None => Vec::new(),
            Some((key, text)) => headers(&text).unwrap_or_else(|| {
                problems.push(format!("{key} is no list of name=value, separated by commas"));
                Vec::new()
            }),
        };
        let mut number =
            |key: String, value: Option<String>, default: usize| match value.filter(|v| !v.is_empty()) {
                None => default,
                Some(text) => text.parse().ok().filter(|n| *n > 0).unwrap_or_else(|| {
                    problems.push(format!("{key} is {text:?}, expected a whole number above 0"));
                    default
                }),
            };
        let millis = |time: Duration| usize::try_from(time.as_millis()).unwrap_or(usize::MAX);
        let time = |millis: usize| Duration::from_millis(millis as u64);
        let (key, value) = variable("TIMEOUT").unzip();
        let timeout = time(number(key.unwrap_or_default(), value, millis(TIMEOUT)));
        let mut of_batch = |name: &str, default| {
            let key = format!("OTEL_BSP_{name}");
            let value = env.variable(&key).map(|value| value.trim().to_owned());
            number(key, value, default)
        };
        let (queue, batch) = (of_batch("MAX_QUEUE_SIZE", QUEUE), of_batch("MAX_EXPORT_BATCH_SIZE", BATCH));
        let pause = time(of_batch("SCHEDULE_DELAY", millis(PAUSE)));
        let sampler = match env.variable("OTEL_TRACES_SAMPLER").as_deref().map(str::trim) {
            None | Some("" | "parentbased_always_on") => Sampler::Parent,
            Some("always_on") => Sampler::All,
            Some("always_off") => Sampler::Nothing,
            Some(other) => {
                problems.push(format!(
                    "OTEL_TRACES_SAMPLER is {other:?}, expected parentbased_always_on, always_on or always_off"
                ));
                Sampler::Parent
            }
        };
        Some(Self {
            endpoint,
            headers,
            timeout,
            certificate: variable("CERTIFICATE").map(|(_, path)| path.into()),
            gzip,
            resource: resource(env, problems),
            sampler,
            queue,
            batch: batch.min(queue),
            pause,
        })
    }
}

/// What describes this program.
fn resource(env: &dyn EnvSource, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut resource = BTreeMap::from([
        ("service.name".to_owned(), "cloud-api-adaptor".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    let text = env.variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    match pairs(&text) {
        Some(pairs) => resource.extend(pairs),
        None => problems.push(format!(
            "OTEL_RESOURCE_ATTRIBUTES is {text:?}, expected a list of name=value, separated by commas"
        )),
    }
    if let Some(name) = env.variable("OTEL_SERVICE_NAME").filter(|name| !name.trim().is_empty()) {
        resource.insert("service.name".into(), name.trim().to_owned());
    }
    resource
}

fn headers(text: &str) -> Option<Vec<(String, SecretString)>> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let fits =
        |(name, value): &(String, String)| name.chars().all(token) && !value.chars().any(char::is_control);
    let pairs = pairs(text)?;
    let right = pairs.iter().all(fits);
    right.then(|| pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.into())).collect())
}

/// Reads `name=value,name=value`, whose values may be written with `%20` and the like.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let name = name.trim();
        (!name.is_empty()).then(|| Some((name.to_owned(), decoded(value.trim())?)))?
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn read(env: &[(&str, &str)]) -> (Option<TraceSettings>, Vec<String>) {
        let mut problems = Vec::new();
        (TraceSettings::read(&MapEnv::new(env.iter().copied()), &mut problems), problems)
    }

    #[test]
    fn without_an_address_nothing_is_sent() {
        for env in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "nonsense")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), ("OTEL_SDK_DISABLED", "true")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            let (settings, problems) = read(env);
            assert!(settings.is_none() && problems.is_empty(), "{env:?}: {problems:?}");
        }
    }

    #[test]
    fn the_standard_variables_are_followed() {
        let (settings, problems) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20canary, x = y"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=other"),
            ("OTEL_SERVICE_NAME", "adaptor"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
        ]);
        let settings = settings.unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(settings.endpoint, "http://collector:4318/v1/traces");
        assert_eq!(settings.resource["service.name"], "adaptor");
        assert_eq!(settings.resource["deployment.environment"], "test");
        assert_eq!((settings.timeout, settings.gzip), (Duration::from_millis(1500), true));
        assert_eq!((settings.queue, settings.batch), (7, 7));
        assert_eq!(settings.headers[0].0, "authorization");
        assert_eq!(settings.headers[0].1.expose_secret(), "Bearer canary");
        assert!(!format!("{settings:?}").contains("canary"));
    }

    #[test]
    fn what_is_said_about_traces_counts_first_and_its_address_is_taken_as_it_is() {
        let (settings, _) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces/in"),
        ]);
        assert_eq!(settings.unwrap().endpoint, "https://traces/in");
    }

    #[test]
    fn what_cannot_be_used_is_named_together_and_no_header_is_quoted() {
        let (_, problems) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "canary"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_RESOURCE_ATTRIBUTES", "x"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ]);
        assert_eq!(problems.len(), 8, "{problems:#?}");
        assert!(!problems.join(" ").contains("canary"), "{problems:?}");
    }
}
