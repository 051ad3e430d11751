//! The daemon's options and what they mean together.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use cloud_providers::{
    EnvSource, OptionKind, OptionSpec, Values,
    layers::{self, LayerSettings},
    secrecy::{ExposeSecret as _, SecretString},
};
use ipnet::IpNet;

use crate::{
    identity::{CustomFiles, CustomTls},
    kubernetes::connect::Source,
    metrics::SpanCounts,
    orphans::OrphanPolicy,
    recent::Recent,
    trace::TraceSettings,
};

/// Default of `-state-dir`.
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/peerpod";

/// Every option of the daemon, shared by all providers.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("socket", "socket that Kata shims call")
        .env("REMOTE_HYPERVISOR_ENDPOINT")
        .default("/run/peerpod/hypervisor.sock"),
    OptionSpec::text("pods-dir", "folder with one folder for each sandbox")
        .env("PODS_DIR")
        .default("/run/peerpod/pods"),
    OptionSpec::text("pause-image", "accepted for compatibility; the guest brings its own pause image")
        .env("PAUSE_IMAGE"),
    OptionSpec::int("forwarder-port", 1, 65535, "port of the forwarder in the guest")
        .env("FORWARDER_PORT")
        .default("15150"),
    OptionSpec::text("ca-cert-file", "CA of the guests' certificates, instead of one made for each sandbox")
        .env("CACERT_FILE"),
    OptionSpec::text("cert-file", "certificate that this node shows to guests").env("CERT_FILE"),
    OptionSpec::text("cert-key", "key of -cert-file").env("CERT_KEY"),
    OptionSpec::bool(
        "tls-skip-verify",
        "refused: a node that does not verify its guests can be given any guest",
    )
    .env("TLS_SKIP_VERIFY")
    .default("false"),
    OptionSpec::new(
        "tls-min-version",
        OptionKind::Word(&["VersionTLS12", "VersionTLS13"]),
        "least TLS version",
    )
    .env("TLS_MIN_VERSION"),
    OptionSpec::new("tls-cipher-suites", OptionKind::List, "cipher suites of TLS 1.2 by their IANA names")
        .env("TLS_CIPHER_SUITES"),
    OptionSpec::new(
        "proxy-timeout",
        OptionKind::Duration,
        "how long a start waits for the guest's forwarder",
    )
    .env("PROXY_TIMEOUT")
    .default("5m0s"),
    OptionSpec::new("tunnel-type", OptionKind::Word(&["vxlan"]), "tunnel between node and guest")
        .env("TUNNEL_TYPE")
        .default("vxlan"),
    OptionSpec::int("vxlan-port", 1, 65535, "UDP port of the tunnels").env("VXLAN_PORT").default("4789"),
    OptionSpec::int("vxlan-min-id", 1, 16_777_215, "least id of a tunnel").default("555000"),
    OptionSpec::text("initdata", "init-data of pods that bring none: base64 of gzip of TOML")
        .env("INITDATA")
        .secret(),
    OptionSpec::bool("cloud-config-verify", "ask the cloud at start whether the configuration can work")
        .env("CLOUD_CONFIG_VERIFY")
        .default("false"),
    OptionSpec::int(
        "peerpods-limit-per-node",
        -1_000_000,
        1_000_000,
        "pods that this node may hold; below 0 there is no limit and nothing is advertised",
    )
    .env("PEERPODS_LIMIT_PER_NODE")
    .default("10"),
    OptionSpec::bool("enable-scratch-space", "ask guests for encrypted scratch space")
        .env("ENABLE_SCRATCH_SPACE")
        .default("false"),
    OptionSpec::bool(
        "ext-network-via-podvm",
        "pods reach the outside through a second interface of their VM",
    )
    .env("EXTERNAL_NETWORK_VIA_PODVM")
    .default("false"),
    OptionSpec::new("pod-subnet-cidrs", OptionKind::List, "prefixes that pods reach through the tunnel")
        .env("POD_SUBNET_CIDRS"),
    OptionSpec::bool("disable-tls", "speak to guests in clear; refused for confidential VMs")
        .default("false"),
    OptionSpec::text(
        "host-interface",
        "interface of this node that carries the tunnels; default: the one of the default route",
    ),
    // Additions of this project.
    OptionSpec::text(
        "gateway-socket",
        "control socket of a peerpod-gateway; default: the gateway runs inside this daemon",
    )
    .env("GATEWAY_SOCKET"),
    OptionSpec::text(
        "cluster-id",
        "stable id of the cluster; default: the UID of its namespace kube-system, or one that is made and kept in \
         -state-dir",
    )
    .env("CLUSTER_ID"),
    OptionSpec::text(
        "cloud-profile",
        "name of the provider's configuration where a cluster has several; records carry it for the controller",
    )
    .env("CLOUD_PROFILE"),
    OptionSpec::text(
        "kubeconfig",
        "file that says where the API server is; default: KUBECONFIG where NODE_NAME is set, or what a pod has",
    ),
    OptionSpec::text("node-name", "name of this node; default: its host name").env("NODE_NAME"),
    OptionSpec::text("state-dir", "folder of the journal; it must survive restarts")
        .env("STATE_DIR")
        .default(DEFAULT_STATE_DIR),
    OptionSpec::new(
        "orphan-policy",
        OptionKind::Word(&["report", "delete"]),
        "what happens to instances of this node that are in no record",
    )
    .env("ORPHAN_POLICY")
    .default("report"),
    OptionSpec::new(
        "orphan-grace",
        OptionKind::Duration,
        "how long such an instance is watched before it is deleted",
    )
    .env("ORPHAN_GRACE")
    .default("10m0s"),
    OptionSpec::new(
        "pod-loss-grace",
        OptionKind::Duration,
        "how long two signs that a pod is gone must agree before its VM is deleted without a StopVM",
    )
    .env("POD_LOSS_GRACE")
    .default("1m0s"),
    OptionSpec::int(
        "create-concurrency",
        1,
        1000,
        "instances that the cloud is asked for at the same time; further starts wait for their turn",
    )
    .env("CREATE_CONCURRENCY")
    .default("16"),
    layers::RETRIES,
    layers::RETRY_CAP,
    layers::CREATE_RATE,
    layers::DELETE_RATE,
    layers::LIST_RATE,
    OptionSpec::new(
        "handover-rest",
        OptionKind::Duration,
        "how long a daemon that took the journal over from another one keeps it before it hands it on",
    )
    .env("HANDOVER_REST")
    .default("1m0s"),
    OptionSpec::text("direct-volumes-dir", "folder in which Kata describes direct volumes")
        .env("DIRECT_VOLUMES_DIR")
        .default(peerpod_gateway::DIRECT_VOLUMES),
    OptionSpec::text(
        "metrics-address",
        "address that serves /metrics, such as 127.0.0.1:9201; default: none",
    )
    .env("METRICS_ADDRESS"),
    OptionSpec::new("log-format", OptionKind::Word(&["text", "json"]), "form of the log on stderr")
        .env("LOG_FORMAT")
        .default("text"),
    OptionSpec::text("log-level", "least level of the log, or a filter such as info,caa=debug")
        .env("LOG_LEVEL")
        .default("info"),
];

/// The daemon's options, checked together.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DaemonConfig {
    /// Socket that shims call.
    pub socket: PathBuf,
    /// Folder of the sandboxes' folders.
    pub pods_dir: PathBuf,
    /// Port of the forwarder.
    pub forwarder_port: u16,
    /// Certificates of the operator.
    pub custom_tls: CustomTls,
    /// Where these were read, to notice replacements.
    pub custom_files: CustomFiles,
    /// `--disable-tls`.
    pub disable_tls: bool,
    /// Least TLS version, as given.
    pub tls_min_version: String,
    /// Cipher suites, as given.
    pub tls_cipher_suites: Vec<String>,
    /// Limit of the wait for the forwarder.
    pub proxy_timeout: Duration,
    /// UDP port of tunnels.
    pub vxlan_port: u16,
    /// Least tunnel id.
    pub vxlan_min_id: u32,
    /// Init-data of pods that bring none.
    pub init_data: Option<SecretString>,
    /// Ask the cloud at start.
    pub verify: bool,
    /// Advertised limit.
    pub limit: i64,
    /// Instances that the provider is asked for at the same time.
    pub concurrent_creates: usize,
    /// Limits around every call of the provider.
    pub layers: LayerSettings,
    /// Ask for scratch space.
    pub scratch_space: bool,
    /// Second interface for the outside.
    pub external_network: bool,
    /// Prefixes through the tunnel.
    pub pod_subnets: Vec<IpNet>,
    /// Interface of the tunnels.
    pub host_interface: Option<String>,
    /// Control socket of an external gateway.
    pub gateway_socket: Option<PathBuf>,
    /// Cluster id, if given.
    pub cluster_id: Option<String>,
    /// Name of the provider's configuration, where a cluster has several.
    pub cloud_profile: Option<String>,
    /// Where the API server is told; `None` where there is no cluster.
    pub kubernetes: Option<Source>,
    /// Namespace of this daemon's own objects.
    pub namespace: String,
    /// UID of the pod in which this daemon runs.
    pub pod_uid: Option<String>,
    /// Name of this node.
    pub node_name: String,
    /// Whether Kubernetes runs this daemon: `NODE_NAME` was given.
    pub in_cluster: bool,
    /// Folder that survives restarts.
    pub state_dir: PathBuf,
    /// What happens to instances of this node that are in no record.
    pub orphan_policy: OrphanPolicy,
    /// How long they are watched before they are deleted.
    pub orphan_grace: Duration,
    /// How long two signs that a pod is gone must agree.
    pub pod_loss_grace: Duration,
    /// How long a journal that was handed over is kept before it is handed on.
    pub handover_rest: Duration,
    /// Where Kata describes direct volumes.
    pub direct_volumes_dir: PathBuf,
    /// Address of `/metrics`.
    pub metrics_address: Option<SocketAddr>,
    /// Port of the start-up probe, served on loopback.
    pub probe_port: u16,
    /// Log as JSON.
    pub log_json: bool,
    /// Log filter.
    pub log_level: String,
    /// Where spans go, if anywhere.
    pub trace: Option<TraceSettings>,
    /// What became of spans.
    pub spans: SpanCounts,
    /// What was logged about sandboxes a little while ago.
    pub recent: Recent,
    /// Name of the provider, for people.
    pub provider: String,
    /// Every option with its value, secrets redacted, for people.
    pub shown: Vec<(String, String)>,
    /// What deserves a word at start.
    pub warnings: Vec<String>,
}

impl DaemonConfig {
    /// Reads the files that options name and checks everything together.
    ///
    /// Returns the configuration beside all problems; it is usable only when there are none.
    pub fn check(values: &Values, env: &dyn EnvSource) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let disable_tls = values.bool("disable-tls");
        if values.bool("tls-skip-verify") {
            problems.push(
                "-tls-skip-verify or TLS_SKIP_VERIFY is refused: without verification any machine can stand in for a \
                 guest; remove it, or use -disable-tls for a test without confidential VMs"
                    .into(),
            );
        }
        let min_version = values.text("tls-min-version");
        let suites = values.list("tls-cipher-suites");
        if let Err(error) = peerpod_proto::tls::TlsProfile::parse(&min_version, &suites) {
            problems.push(error.to_string());
        }
        let custom_tls = custom_tls(values, &mut problems);
        if disable_tls {
            warnings.push(
                "-disable-tls leaves the calls to guests in clear: whoever reaches the network reads and changes every call"
                    .into(),
            );
            if custom_tls.ca.is_some() || custom_tls.client.is_some() {
                problems.push(
                    "-disable-tls contradicts -ca-cert-file, -cert-file and -cert-key: leave one side out"
                        .into(),
                );
            }
        }
        let init_data = values.secret("initdata");
        if let Some(text) = &init_data
            && let Err(error) = crate::init_data::encode_checked(text.expose_secret())
        {
            problems.push(format!("-initdata or INITDATA: {error}"));
        }
        let mut pod_subnets = Vec::new();
        for text in values.list("pod-subnet-cidrs") {
            match text.parse() {
                Ok(net) => pod_subnets.push(net),
                Err(_) => problems.push(format!(
                    "-pod-subnet-cidrs or POD_SUBNET_CIDRS: {text:?} is no prefix such as 10.0.0.0/8"
                )),
            }
        }
        let metrics_address = values.optional("metrics-address").and_then(|text| {
            text.parse()
                .map_err(|_| {
                    problems.push(format!(
                        "-metrics-address or METRICS_ADDRESS: {text:?} is no address such as 127.0.0.1:9201"
                    ))
                })
                .ok()
        });
        let probe_port = match env.variable("PROBE_PORT") {
            None => 8000,
            Some(text) => text.parse().unwrap_or_else(|_| {
                problems.push(format!("variable PROBE_PORT is {text:?}, expected a port number"));
                0
            }),
        };
        if env.variable("ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN").is_some() {
            warnings.push(
                "ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN has no effect: shared objects are not loaded; a provider is \
                 compiled in by feature"
                    .into(),
            );
        }
        if values.optional("pause-image").is_some() {
            warnings.push("-pause-image has no effect: the guest brings its own pause image".into());
        }
        for (flag, path) in [("socket", values.text("socket")), ("pods-dir", values.text("pods-dir"))] {
            // The shim's URL parser takes a colon for the end of a host name.
            if path.contains(':') || !path.starts_with('/') {
                problems.push(format!("-{flag} is {path:?}, expected an absolute path without a colon"));
            }
        }
        let trace = TraceSettings::read(env, &mut problems);
        if trace.is_some() && !cfg!(feature = "otlp") {
            warnings.push(
                "the variables of OpenTelemetry name a collector, and this program has no exporter: spans are in the log \
                 alone; use one that is built with the feature otlp"
                    .into(),
            );
        }
        let node_name = values.optional("node-name");
        let kubernetes = Source::find(values.optional("kubeconfig"), env);
        if kubernetes.is_none() && env.variable("NODE_NAME").is_some() {
            warnings.push(
                "NODE_NAME is set and no API server is told (KUBERNETES_SERVICE_HOST, KUBECONFIG, -kubeconfig): nothing \
                 is recorded in a cluster, and no pod VMs are offered to it"
                    .into(),
            );
        }
        let config = Self {
            socket: values.text("socket").into(),
            pods_dir: values.text("pods-dir").into(),
            forwarder_port: port(values, "forwarder-port"),
            custom_tls,
            custom_files: custom_files(values),
            disable_tls,
            tls_min_version: min_version,
            tls_cipher_suites: suites,
            proxy_timeout: values.duration("proxy-timeout"),
            vxlan_port: port(values, "vxlan-port"),
            vxlan_min_id: u32::try_from(values.int("vxlan-min-id")).unwrap_or_default(),
            init_data,
            verify: values.bool("cloud-config-verify"),
            limit: values.int("peerpods-limit-per-node"),
            concurrent_creates: usize::try_from(values.int("create-concurrency")).unwrap_or(1),
            layers: LayerSettings::from_values(values),
            scratch_space: values.bool("enable-scratch-space"),
            external_network: values.bool("ext-network-via-podvm"),
            pod_subnets,
            host_interface: values.optional("host-interface"),
            gateway_socket: values.optional("gateway-socket").map(Into::into),
            cluster_id: values.optional("cluster-id"),
            cloud_profile: values.optional("cloud-profile"),
            namespace: kubernetes.as_ref().map(|source| source.namespace(env)).unwrap_or_default(),
            kubernetes,
            pod_uid: env.variable("POD_UID"),
            in_cluster: env.variable("NODE_NAME").is_some(),
            node_name: node_name.unwrap_or_else(host_name),
            state_dir: values.text("state-dir").into(),
            orphan_policy: match values.text("orphan-policy").as_str() {
                "delete" => OrphanPolicy::Delete,
                _ => OrphanPolicy::Report,
            },
            orphan_grace: values.duration("orphan-grace"),
            pod_loss_grace: values.duration("pod-loss-grace"),
            handover_rest: values.duration("handover-rest"),
            direct_volumes_dir: values.text("direct-volumes-dir").into(),
            metrics_address,
            probe_port,
            log_json: values.text("log-format") == "json",
            log_level: values.text("log-level"),
            trace,
            spans: SpanCounts::default(),
            recent: Recent::default(),
            provider: String::new(),
            shown: shown(values),
            warnings,
        };
        (config, problems)
    }
}

/// Every option as people may see it.
pub(crate) fn shown(values: &Values) -> Vec<(String, String)> {
    values.shown().into_iter().map(|(flag, text)| (format!("-{flag}"), text)).collect()
}

fn port(values: &Values, flag: &str) -> u16 {
    u16::try_from(values.int(flag)).unwrap_or_default()
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

fn custom_tls(values: &Values, problems: &mut Vec<String>) -> CustomTls {
    let mut read = |flag: &str| {
        let path = values.optional(flag)?;
        match fs::read_to_string(&path) {
            Ok(text) if text.contains("-----BEGIN ") => Some(text),
            Ok(_) => {
                problems.push(format!("-{flag}: {path} holds no PEM text"));
                None
            }
            Err(error) => {
                problems.push(format!("-{flag}: cannot read {path}: {error}"));
                None
            }
        }
    };
    let (ca, cert, key) = (read("ca-cert-file"), read("cert-file"), read("cert-key"));
    let given = |flag: &str| values.optional(flag).is_some();
    if given("cert-file") != given("cert-key") {
        problems.push("-cert-file and -cert-key (CERT_FILE, CERT_KEY) go together: give both or none".into());
    }
    let made = CustomTls { ca, client: cert.zip(key) };
    if let Err(error) = made.check() {
        problems.push(format!("-ca-cert-file, -cert-file, -cert-key: {error:#}"));
    }
    made
}

fn custom_files(values: &Values) -> CustomFiles {
    let path = |flag: &str| values.optional(flag).map(PathBuf::from);
    CustomFiles { ca: path("ca-cert-file"), client: path("cert-file").zip(path("cert-key")) }
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings};

    use super::*;

    fn check(env: &[(&str, &str)]) -> (DaemonConfig, Vec<String>) {
        let env = MapEnv::new(env.iter().copied());
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&env);
        DaemonConfig::check(&settings.parse().unwrap(), &env)
    }

    #[test]
    fn the_defaults_are_those_of_the_existing_daemon() {
        let (config, problems) = check(&[]);
        assert!(problems.is_empty() && config.warnings.is_empty(), "{problems:?} {:?}", config.warnings);
        assert_eq!(config.socket, PathBuf::from("/run/peerpod/hypervisor.sock"));
        assert_eq!(config.pods_dir, PathBuf::from("/run/peerpod/pods"));
        assert_eq!((config.forwarder_port, config.vxlan_port, config.vxlan_min_id), (15150, 4789, 555_000));
        assert_eq!(
            (config.proxy_timeout, config.limit, config.probe_port),
            (Duration::from_secs(300), 10, 8000)
        );
        assert!(!config.disable_tls && !config.scratch_space && !config.external_network && !config.verify);
    }

    #[test]
    fn an_option_without_effect_is_warned_about() {
        let (config, problems) = check(&[("PAUSE_IMAGE", "registry.k8s.io/pause:3.7")]);
        assert!(problems.is_empty());
        assert!(
            config.warnings.iter().any(|w| w.contains("-pause-image has no effect")),
            "{:?}",
            config.warnings
        );
        let (config, _) = check(&[("ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN", "true")]);
        assert!(
            config.warnings.iter().any(|w| w.contains("ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN")),
            "{:?}",
            config.warnings
        );
    }

    #[test]
    fn certificates_go_together_and_are_checked_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name).to_str().unwrap().to_owned()
        };
        let identity = crate::identity::Identity::generate("podvm-x-y", &CustomTls::default()).unwrap();
        let other = crate::identity::Identity::generate("podvm-x-y", &CustomTls::default()).unwrap();
        let (cert, key) = (path("c", &identity.client_cert), path("k", &identity.client_key));
        let wrong_key = path("w", &other.client_key);
        let text = path("t", "no PEM");
        assert!(check(&[("CERT_FILE", &cert), ("CERT_KEY", &key)]).1.is_empty());
        for (env, part) in [
            (vec![("CERT_FILE", cert.as_str())], "go together"),
            (vec![("CERT_FILE", &cert), ("CERT_KEY", &text)], "holds no PEM"),
            (vec![("CACERT_FILE", "/nonexistent/ca")], "/nonexistent/ca"),
            (vec![("CERT_FILE", &cert), ("CERT_KEY", &wrong_key)], "-cert-key"),
        ] {
            let problems = check(&env).1.join("; ");
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }
}
