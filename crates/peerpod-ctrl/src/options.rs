//! The options of the program. Those of the existing controller keep their names, defaults and forms.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use cloud_providers::{
    EnvSource, OptionKind, OptionSpec, Scope, Values,
    layers::{self, LayerSettings},
};

use crate::{
    settings::Settings,
    sweep::{Mode, SweepSettings},
};

/// Every option.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("metrics-bind-address", "address of /metrics and /sweep; 0 serves none")
        .default(":8080"),
    OptionSpec::text("health-probe-bind-address", "address of /healthz and /readyz; 0 serves none")
        .default(":8081"),
    OptionSpec::bool("leader-elect", "take part in the election, so that one of several controllers works")
        .default("false"),
    OptionSpec::text(
        "kubeconfig",
        "file that names the API server; default: KUBECONFIG, or what the pod has",
    ),
    OptionSpec::bool(
        "zap-devel",
        "text instead of JSON, and the level debug, unless other flags say otherwise",
    )
    .default("false"),
    OptionSpec::new("zap-encoder", OptionKind::Word(&["json", "console"]), "form of the log on stderr"),
    OptionSpec::text("zap-log-level", "debug, info, error, panic, or a number above 0 for more than debug"),
    OptionSpec::text("zap-stacktrace-level", "accepted, without effect"),
    OptionSpec::text("zap-time-encoding", "accepted, without effect: times are RFC 3339"),
    OptionSpec::text("log-level", "least level of the log, or a filter such as info,peerpod_ctrl=debug")
        .env("LOG_LEVEL"),
    OptionSpec::text("cluster-id", "id of the cluster as the daemons have it; default: UID of kube-system")
        .env("CLUSTER_ID"),
    OptionSpec::new(
        "profiles",
        OptionKind::List,
        "named profiles: each is read from peer-pods-cm-<name> and peer-pods-secret-<name>",
    )
    .env("PROFILES"),
    OptionSpec::new(
        "daemon-grace",
        OptionKind::Duration,
        "how long the daemon of a node has the first go at a deletion",
    )
    .env("DAEMON_GRACE")
    .default("1m0s"),
    OptionSpec::int("max-concurrent-deletions", 1, 1000, "deletions at the same time, for each account")
        .env("MAX_CONCURRENT_DELETIONS")
        .default("10"),
    OptionSpec::new(
        "delete-timeout",
        OptionKind::Duration,
        "how long a provider may take for one deletion before it is asked again",
    )
    .env("DELETE_TIMEOUT")
    .default("10m0s"),
    OptionSpec::new(
        "sweep",
        OptionKind::Word(&["report", "delete"]),
        "what happens to things in the cloud that carry the cluster's tags and are in no record",
    )
    .env("SWEEP")
    .default("report"),
    OptionSpec::new(
        "sweep-grace",
        OptionKind::Duration,
        "how long such a thing is watched, and how old it is at least, before it is deleted",
    )
    .env("SWEEP_GRACE")
    .default("15m0s"),
    OptionSpec::int("sweep-cap", 0, 100_000, "the most deletions of one sweep")
        .env("SWEEP_CAP")
        .default("10"),
    OptionSpec::new("sweep-interval", OptionKind::Duration, "pause between two sweeps")
        .env("SWEEP_INTERVAL")
        .default("5m0s"),
    layers::RETRIES,
    layers::RETRY_CAP,
    layers::CREATE_RATE,
    layers::DELETE_RATE,
    layers::LIST_RATE,
];

/// The options of `drain` beside [`OPTIONS`].
pub const DRAIN_OPTIONS: &[OptionSpec] = &[
    OptionSpec::bool("dry-run", "list and delete nothing").default("false"),
    OptionSpec::bool("json", "tell the end as JSON on stdout").default("false"),
    OptionSpec::new("timeout", OptionKind::Duration, "how long to go on while something is left")
        .default("15m0s"),
];

/// The options, checked together.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Address of `/metrics`.
    pub metrics_address: Option<SocketAddr>,
    /// Address of `/healthz` and `/readyz`.
    pub health_address: Option<SocketAddr>,
    /// Take part in the election.
    pub leader_elect: bool,
    /// File that names the API server.
    pub kubeconfig: Option<String>,
    /// Log as JSON.
    pub log_json: bool,
    /// Log filter.
    pub log_level: String,
    /// Id of the cluster, if given.
    pub cluster_id: Option<String>,
    /// Named profiles.
    pub profiles: Vec<String>,
    /// How the sweep behaves.
    pub sweep: SweepSettings,
    /// How the cloud is asked.
    pub layers: LayerSettings,
    daemon_grace: Duration,
    concurrency: usize,
    delete_limit: Duration,
    /// What deserves a word at start.
    pub warnings: Vec<String>,
}

impl Options {
    /// Checks everything together. What is returned is usable only without problems.
    pub fn check(values: &Values, env: &dyn EnvSource) -> (Self, Vec<String>) {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let mut address = |flag: &str| match parse_address(&values.text(flag)) {
            Ok(address) => address,
            Err(why) => {
                problems.push(format!("-{flag}: {why}"));
                None
            }
        };
        let metrics_address = address("metrics-bind-address");
        let health_address = address("health-probe-bind-address");
        let sweep = SweepSettings {
            mode: if values.text("sweep") == "delete" { Mode::Delete } else { Mode::Report },
            grace: values.duration("sweep-grace"),
            cap: usize::try_from(values.int("sweep-cap")).unwrap_or_default(),
            interval: values.duration("sweep-interval"),
            ..SweepSettings::default()
        };
        for (flag, time) in
            [("sweep-interval", sweep.interval), ("delete-timeout", values.duration("delete-timeout"))]
        {
            if time < Duration::from_secs(1) {
                problems.push(format!("-{flag} is {time:?}, expected at least 1s"));
            }
        }
        if sweep.mode == Mode::Delete && sweep.grace < Duration::from_secs(60) {
            warnings.push(format!(
                "-sweep-grace is {:?}: a create that is under way may look like an orphan",
                sweep.grace
            ));
        }
        let profiles = values.list("profiles");
        for profile in &profiles {
            if !cloud_providers::tags::is_plain(profile) {
                problems
                    .push(format!("-profiles: {profile:?} is no part of a ConfigMap's name: a-z, 0-9 and -"));
            }
        }
        for flag in ["zap-stacktrace-level", "zap-time-encoding"] {
            if values.optional(flag).is_some() {
                warnings.push(format!("-{flag} has no effect"));
            }
        }
        if env.variable("PEERPODS_NAMESPACE").is_none() && env.variable("POD_NAMESPACE").is_none() {
            warnings.push(
                "PEERPODS_NAMESPACE is not set: the configuration is read from the pod's own namespace"
                    .into(),
            );
        }
        let devel = values.bool("zap-devel");
        let encoder = values.optional("zap-encoder");
        let level = match (values.optional("log-level"), values.optional("zap-log-level")) {
            (Some(filter), _) => filter,
            (None, Some(zap)) => match level_of(&zap) {
                Some(level) => level.to_owned(),
                None => {
                    problems.push(format!(
                        "-zap-log-level is {zap:?}, expected debug, info, error, panic or a number"
                    ));
                    String::new()
                }
            },
            (None, None) => if devel { DEBUG } else { "info" }.to_owned(),
        };
        let options = Self {
            metrics_address,
            health_address,
            leader_elect: values.bool("leader-elect"),
            kubeconfig: values.optional("kubeconfig"),
            log_json: encoder.map_or(!devel, |e| e == "json"),
            log_level: level,
            cluster_id: values.optional("cluster-id"),
            profiles,
            sweep,
            layers: LayerSettings::from_values(values),
            daemon_grace: values.duration("daemon-grace"),
            concurrency: usize::try_from(values.int("max-concurrent-deletions")).unwrap_or(1),
            delete_limit: values.duration("delete-timeout"),
            warnings,
        };
        (options, problems)
    }

    /// Returns the settings of a controller for a cluster.
    pub fn settings(&self, scope: Scope) -> Settings {
        let mut settings = Settings::new(scope);
        settings.daemon_grace = self.daemon_grace;
        settings.concurrency = self.concurrency;
        settings.delete_limit = self.delete_limit;
        settings
    }
}

/// Reads an address as Go does: `:8080` is every address of the machine, `0` and nothing are none.
fn parse_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    let bad = || format!("{text:?} is no address such as :8080 or 127.0.0.1:8080");
    if let Some(port) = text.strip_prefix(':') {
        // The address of IPv6 takes IPv4 as well, unless the machine has none.
        let port: u16 = port.parse().map_err(|_| bad())?;
        return Ok(Some((IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into()));
    }
    let text =
        text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    text.parse().map(Some).map_err(|_| bad())
}

/// The level debug of ours; of libraries it would be a line for each packet.
const DEBUG: &str = "info,peerpod_ctrl=debug,cloud_providers=debug";
const TRACE: &str = "info,peerpod_ctrl=trace,cloud_providers=trace";

/// Zap's levels in ours.
fn level_of(zap: &str) -> Option<&'static str> {
    match zap {
        "debug" => Some(DEBUG),
        "info" => Some("info"),
        "error" | "panic" => Some("error"),
        number => match number.parse::<u32>().ok()? {
            0 => None,
            1 => Some(DEBUG),
            _ => Some(TRACE),
        },
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings as Raw};

    use super::*;

    fn check(args: &[&str]) -> (Options, Vec<String>) {
        let args: Vec<std::ffi::OsString> = args.iter().map(Into::into).collect();
        let mut raw = Raw::new(OPTIONS);
        raw.parse_cmd(clap::Command::new("x"), &args).unwrap();
        let (values, mut problems) = raw.parse_all();
        let (options, more) = Options::check(&values, &MapEnv::new([("POD_NAMESPACE", "n")]));
        problems.extend(more);
        (options, problems)
    }

    #[test]
    fn the_existing_controllers_command_line_is_accepted() {
        let (options, problems) = check(&[
            "--health-probe-bind-address=:8081",
            "--metrics-bind-address=127.0.0.1:8080",
            "--leader-elect",
            "--zap-devel=true",
            "--zap-encoder=console",
            "--zap-log-level=2",
            "--zap-stacktrace-level=error",
            "--zap-time-encoding=iso8601",
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        assert!(options.leader_elect && !options.log_json && options.log_level == TRACE);
        assert_eq!(options.metrics_address.unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(options.health_address.unwrap().port(), 8081);
        assert_eq!(options.warnings.len(), 2, "{:?}", options.warnings);
    }

    #[test]
    fn the_defaults_are_the_existing_controllers_and_careful() {
        let (options, problems) = check(&[]);
        assert!(problems.is_empty() && options.warnings.is_empty());
        assert_eq!(options.metrics_address.unwrap().to_string(), "[::]:8080");
        assert!(!options.leader_elect && options.log_json && options.log_level == "info");
        assert_eq!((options.sweep.mode, options.sweep.cap), (Mode::Report, 10));
        assert_eq!(check(&["-metrics-bind-address=0"]).0.metrics_address, None);
    }

    #[test]
    fn all_problems_come_together() {
        let text = check(&[
            "-metrics-bind-address=here",
            "-sweep=perhaps",
            "-sweep-interval=0s",
            "-profiles=A_B",
            "-zap-log-level=loud",
        ])
        .1
        .join("; ");
        for part in ["-metrics-bind-address", "sweep", "sweep-interval", "A_B", "loud"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
